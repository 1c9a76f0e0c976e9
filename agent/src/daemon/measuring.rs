//! Measurements and probes, in a process of their own while nothing runs on the node.

use aquifer_core::Name;
use tokio::sync::mpsc;

use super::Daemon;
use crate::device::measured::{self, Figures, MeasureChoice, ToMeasure};

/// What a measurement gave.
pub(super) struct Measured {
    of: ToMeasure,
    /// Of a probe: the device, and what its class was measured to do, in TFLOP/s.
    probed: Option<(Name, f64)>,
    figures: Result<Figures, String>,
}

impl Daemon {
    /// Measures the next class, or probes the next device that should show that it is well, if nothing runs.
    pub(super) fn measure(&mut self, done: &mpsc::Sender<Measured>) {
        let is_idle = self.talks.agent.alive().next().is_none() && self.waiting.is_empty();
        let under_way = self.measuring.as_ref().is_some_and(|measuring| !measuring.is_finished());
        if !is_idle || under_way {
            return;
        }
        let class = self.to_measure.last().map(|of| (of.clone(), None));
        let Some((of, probed)) = class.or_else(|| self.next_probe()) else { return };
        let (program, done) = (self.surroundings.program.clone(), done.clone());
        self.measuring = Some(tokio::spawn(async move {
            let figures = measured::measure(&program, &of, probed.is_some()).await;
            _ = done.send(Measured { of, probed, figures }).await; // The daemon may have ended.
        }));
    }

    fn next_probe(&self) -> Option<(ToMeasure, Option<(Name, f64)>)> {
        let backends = self.backends.as_ref().filter(|_| self.config.measure != MeasureChoice::Never)?;
        (0u16..).zip(&self.inventory.devices).find_map(|(index, device)| {
            let (of, usual) = backends.to_probe(index)?;
            let wants = self.watch.wants_probe(device.fault.as_ref());
            wants.then(|| (of, Some((device.uuid.clone(), usual))))
        })
    }

    /// A measurement ended. One of a class that failed is not tried again before the agent's next start.
    pub(super) fn on_measured(&mut self, Measured { of, probed, figures }: Measured) {
        let (vendor, model) = (of.class.vendor, of.class.model.clone());
        match (figures, probed) {
            (Err(why), Some((uuid, _))) => tracing::warn!(%uuid, "a probe could not be made: {why}"),
            (Err(why), None) => {
                self.to_measure.retain(|it| *it != of);
                tracing::warn!(%vendor, %model, "devices could not be measured: {why}");
            }
            (Ok(figures), Some((uuid, usual))) => {
                let percent = figures.tflops().unwrap_or(0.0) / usual * 100.0;
                tracing::info!(%uuid, percent, "device probed");
                self.watch.on_probe(&uuid, percent);
                self.show_anew();
            }
            (Ok(figures), None) => {
                self.to_measure.retain(|it| *it != of);
                tracing::info!(%vendor, %model, tflops = figures.tflops(), "devices measured");
                self.measured.push((of, figures));
                self.show_anew();
            }
        }
    }

    /// Tells what is known of the devices now; if they are being looked at, that is told after it.
    fn show_anew(&mut self) {
        if let Some(backends) = self.backends.take() {
            self.on_refreshed(backends);
        }
    }
}
