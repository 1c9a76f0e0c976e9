//! Measurements and probes, in a process of their own, on devices that nobody uses.

use std::collections::BTreeMap;

use aquifer_core::{DeviceClass, Launch as Order, Name, Vendor};
use tokio::sync::{mpsc, oneshot};

use super::{Daemon, unix_ms};
use crate::device::measured::{self, Ended, MeasureChoice, On, ToMeasure, Under};

/// How long a device is left alone that is in use by somebody else, in milliseconds.
const BUSY_MS: u64 = 600_000;

/// What a measurement gave.
pub(super) struct Measured {
    of: ToMeasure,
    /// Of a probe: the device, and what its class was measured to do, in TFLOP/s.
    probed: Option<(Name, f64)>,
    ended: Ended,
}

/// A measurement that is made.
pub(super) struct Measuring {
    of: ToMeasure,
    /// Ends it; `None`: it is being ended.
    stop: Option<oneshot::Sender<()>>,
}

/// What was measured, or could not be, since the agent was started.
#[derive(Default)]
pub(super) struct Tried {
    kinds: Vec<(DeviceClass, Under)>,
    /// Until when devices are left alone, in Unix milliseconds: somebody else uses them.
    busy: BTreeMap<Name, u64>,
    /// Why some were not.
    pub findings: Vec<String>,
}

impl Tried {
    fn has(&self, of: &ToMeasure) -> bool {
        self.kinds.iter().any(|(class, under)| *class == of.class && *under == of.under)
    }
}

impl Daemon {
    /// Measures the next class, or probes the next device that should show that it is well, on a device that nobody uses.
    pub(super) fn measure(&mut self, done: &mpsc::Sender<Measured>) {
        let busy = self.measuring.is_some() || self.probes.are_under_way();
        if busy || self.config.measure == MeasureChoice::Never {
            return;
        }
        let Some((of, probed)) = self.next_class().or_else(|| self.next_probe()) else { return };
        let (program, done) = (self.surroundings.program.clone(), done.clone());
        let (stop, stopped) = oneshot::channel();
        self.measuring = Some(Measuring { of: of.clone(), stop: Some(stop) });
        tokio::spawn(async move {
            let stopped = async { _ = stopped.await };
            let ended = measured::measure(&program, &of, probed.is_some(), of.on.patience(), stopped).await;
            _ = done.send(Measured { of, probed, ended }).await; // The daemon may have ended.
        });
    }

    fn next_class(&self) -> Option<(ToMeasure, Option<(Name, f64)>)> {
        let all = self.config.measure == MeasureChoice::Always;
        let classes = self.backends.as_ref()?.to_measure(all, |index| self.is_free(index));
        Some((classes.into_iter().find(|of| !self.tried.has(of))?, None))
    }

    fn next_probe(&self) -> Option<(ToMeasure, Option<(Name, f64)>)> {
        let backends = self.backends.as_ref()?;
        (0u16..).zip(&self.inventory.devices).find_map(|(index, device)| {
            let (of, usual) = backends.to_probe(index)?;
            // What other programs of the machine do would make stragglers of cores.
            let regularly = of.class.vendor != Vendor::Cpu;
            let fault = device.fault.as_ref();
            let wants = self.watch.wants_probe(unix_ms(), &device.uuid, fault, regularly);
            (wants && self.is_free(index)).then(|| (of, Some((device.uuid.clone(), usual))))
        })
    }

    /// Whether nobody would suffer from a measurement on a device, or falsify it: of a card, that nobody computes on it; of a
    /// core, that nothing runs on the node.
    fn is_free(&self, index: u16) -> bool {
        let found = self.backends.as_ref().and_then(|all| all.found().nth(usize::from(index)));
        found.is_some_and(|found| match found.class.vendor {
            Vendor::Cpu => self.talks.agent.alive().next().is_none() && self.waiting.is_empty(),
            _ => !found.is_used && !self.is_held(index) && !self.is_busy(&found.uuid),
        })
    }

    fn is_busy(&self, uuid: &Name) -> bool {
        self.tried.busy.get(uuid).is_some_and(|until| unix_ms() < *until)
    }

    /// A worker is to be launched: what is measured on its devices, or on a core, ends first.
    pub(super) fn make_way(&mut self, order: &Order) {
        let is_in_the_way = |measuring: &Measuring| {
            matches!(measuring.of.on, On::Core(_)) || order.allocation.devices.contains(&measuring.of.index)
        };
        if self.measuring.as_ref().is_some_and(is_in_the_way) {
            self.end_measurement();
        }
    }

    pub(super) fn end_measurement(&mut self) {
        if let Some(stop) = self.measuring.as_mut().and_then(|measuring| measuring.stop.take()) {
            _ = stop.send(()); // It may have ended.
        }
    }

    /// Whether launches have to wait for the end of a measurement or a probe.
    pub(super) fn is_making_way(&self) -> bool {
        let measures = self.measuring.as_ref().is_some_and(|measuring| measuring.stop.is_none());
        measures || self.probes.are_under_way()
    }

    /// A measurement ended. One of a class that failed is not tried again before the agent's next start.
    pub(super) fn on_measured(&mut self, Measured { of, probed, ended }: Measured) {
        self.measuring = None;
        let uuid = self.inventory.devices.get(usize::from(of.index)).map(|device| device.uuid.clone());
        match (&ended, uuid) {
            (Ended::Stopped, _) | (_, None) => (),
            (Ended::Busy, Some(uuid)) => {
                self.tried.busy.insert(uuid, unix_ms() + BUSY_MS);
            }
            (_, Some(uuid)) => self.watch.on_tried(unix_ms(), &uuid),
        }
        let (vendor, model) = (of.class.vendor, of.class.model.clone());
        match (ended, probed) {
            (Ended::Stopped, _) => tracing::debug!(%vendor, %model, "a measurement made way"),
            (Ended::Busy, _) => tracing::info!(%vendor, %model, "not measured now: it is in use"),
            (Ended::Failed(why), Some((uuid, _))) => {
                tracing::warn!(%uuid, "a probe could not be made: {why}");
            }
            (Ended::Measured(figures, _), Some((uuid, usual))) => {
                let percent = figures.tflops().unwrap_or(0.0) / usual * 100.0;
                tracing::info!(%uuid, percent, "device probed");
                self.watch.on_probe(&uuid, percent);
                self.show_anew();
            }
            (Ended::Failed(why), None) => {
                self.tried.findings.push(format!("{vendor}: {model} could not be measured: {why}"));
                self.tried.kinds.push((of.class, of.under));
                self.show_anew();
            }
            (Ended::Measured(figures, trouble), None) => {
                tracing::info!(%vendor, %model, tflops = figures.tflops(), "devices measured");
                let finding = |why| format!("{vendor}: {model} was not measured to the end: {why}");
                self.tried.findings.extend(trouble.map(finding));
                self.tried.kinds.push((of.class.clone(), of.under.clone()));
                self.measured.push((of, figures));
                self.show_anew();
            }
        }
        self.launch_waiting();
    }

    /// Tells what is known of the devices now; if they are being looked at, that is told after it.
    fn show_anew(&mut self) {
        if let Some(backends) = self.backends.take() {
            self.on_refreshed(backends);
        }
    }
}
