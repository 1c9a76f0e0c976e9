//! Probes of this node beside others, which the scheduler orders while nothing runs here.

use std::time::Duration;

use aquifer_core::{ProbeOrder, ProbeState, Revision};
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};

use super::Daemon;
use crate::trial::{self, Ended, Trouble};

/// How long a probe may take: it waits for the others, a card's driver starts, and all of them add up.
const PATIENCE: Duration = Duration::from_secs(180);

/// What came of a probe.
pub(super) struct Probed {
    id: Revision,
    how: ProbeState,
}

/// The probes of a daemon.
#[derive(Default)]
pub(super) struct Probes {
    /// Waits for devices to be looked at, or for the end of something else.
    next: Option<ProbeOrder>,
    /// Ends the one that is made; `None` within: it is being ended.
    running: Option<Option<oneshot::Sender<()>>>,
}

impl Probes {
    /// Whether one is made or about to be.
    pub fn are_under_way(&self) -> bool {
        self.running.is_some() || self.next.is_some()
    }
}

impl Daemon {
    pub(super) fn order_probe(&mut self, order: ProbeOrder) {
        self.end_probe();
        self.end_measurement();
        self.probes.next = Some(order);
    }

    pub(super) fn end_probe(&mut self) {
        self.probes.next = None;
        if let Some(stop) = self.probes.running.as_mut().and_then(Option::take) {
            _ = stop.send(()); // It may have ended.
        }
    }

    /// Begins the probe that was ordered, if nothing is in its way.
    pub(super) fn begin_probe(&mut self, done: &mpsc::Sender<Probed>) {
        let is_free = self.probes.running.is_none() && self.measuring.is_none();
        let Some(backends) = self.backends.as_ref().filter(|_| is_free) else { return };
        let Some(order) = self.probes.next.take() else { return };
        let beside = backends.to_probe_beside();
        let mut command = Command::new(&self.surroundings.program);
        let (address, port) = &order.master;
        command.args(["worker", "probe", "--rank", &order.rank.to_string()]);
        command.args(["--ranks", &order.ranks.to_string(), "--master", &format!("{address}:{port}")]);
        command.args(["--cards", &beside.cards.to_string()]).envs(beside.env);
        command.args(beside.usual.iter().flat_map(|usual| ["--usual".to_string(), usual.to_string()]));
        let (stop, stopped) = oneshot::channel();
        self.probes.running = Some(Some(stop));
        let done = done.clone();
        tracing::info!(rank = order.rank, ranks = order.ranks, "probing beside other nodes");
        tokio::spawn(async move {
            let how = match trial::run(command, PATIENCE, async { _ = stopped.await }).await {
                Ended::Over { trouble: None, .. } => ProbeState::Passed,
                Ended::Over { trouble: Some(Trouble { code: Some(trial::LATER), what }), .. } => {
                    tracing::warn!("a probe could not be made: {what}");
                    ProbeState::Yielded
                }
                Ended::Over { trouble: Some(Trouble { what, .. }), .. } => ProbeState::Failed(what.into()),
                Ended::NotStarted(error) => {
                    ProbeState::Failed(format!("it cannot be started: {error}").into())
                }
                Ended::Stopped => ProbeState::Yielded,
            };
            _ = done.send(Probed { id: order.id, how }).await; // The daemon may have ended.
        });
    }

    pub(super) fn on_probed(&mut self, Probed { id, how }: Probed) {
        tracing::info!(?how, "probe ended");
        self.probes.running = None;
        self.talks.agent.on_probe(id, how);
        self.launch_waiting();
    }
}
