//! Probes of several machines together.

use aquifer_core::*;

use super::{Pending, Sim};

/// What a probe takes, and how often it looks whether the other machines have begun.
const TAKES_MS: u64 = 1_000;
/// How often it does before it says that they did not come.
const MOST_TRIES: u32 = 20;

impl Sim {
    /// Whether a machine fails its probes.
    pub fn set_bad(&mut self, machine: usize, is_bad: bool) {
        self.machines[machine].is_bad = is_bad;
    }

    pub(super) fn probe(&mut self, machine: usize, probe: ProbeOrder, tries: u32) {
        let incarnation = self.machines[machine].incarnation;
        let at = Time(self.now.0 + TAKES_MS);
        self.push(at, Pending::Probed { machine, incarnation, probe, tries });
    }

    /// A probe has ended on a machine, or waits for the others.
    pub(super) fn on_probed(&mut self, machine: usize, incarnation: u64, probe: ProbeOrder, tries: u32) {
        let takes_part = |it: &&crate::machine::Machine| {
            let order = it.agent.as_ref().and_then(|agent| agent.probe());
            order.is_some_and(|order| order.id == probe.id)
        };
        let it = &self.machines[machine];
        if it.incarnation != incarnation || !takes_part(&it) {
            return;
        }
        let here: Vec<_> = self.machines.iter().filter(takes_part).collect();
        let is_bad = here.iter().any(|it| it.is_bad);
        let how = match here.len() as u32 == probe.ranks {
            true if is_bad => ProbeState::Failed("a sum is wrong".into()),
            true => ProbeState::Passed,
            false if tries < MOST_TRIES => return self.probe(machine, probe, tries + 1),
            false => ProbeState::Failed("the others did not come".into()),
        };
        if let Some(agent) = &mut self.machines[machine].agent {
            agent.on_probe(probe.id, how);
            self.wake(machine);
        }
    }
}
