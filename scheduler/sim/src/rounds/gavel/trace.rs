//! Jobs, and how fast they run where.

use std::collections::BTreeMap;

use super::super::super::Rng;

/// Names of the classes, in the order of every array here.
pub const CLASSES: [&str; 3] = ["v100", "p100", "k80"];

/// Steps a second of each (model, devices) on each class; 0 where it does not run.
#[derive(Clone, Debug)]
pub struct Rates(BTreeMap<(String, u32), [f64; 3]>);

/// One job of a trace.
#[derive(Clone, Debug)]
pub struct Job {
    /// Seconds from the start of the trace.
    pub arrival_s: f64,
    /// Model and batch size.
    pub model: String,
    /// Devices of the gang, of one class.
    pub devices: u32,
    /// Steps to be run.
    pub steps: u64,
    /// Steps a second on each class; 0 where it does not run.
    pub rates: [f64; 3],
}

impl Job {
    /// Seconds that the job takes on a class, alone and without a pause; none where it does not run.
    pub fn alone_s(&self, class: usize) -> Option<f64> {
        (0.0 < self.rates[class]).then(|| self.steps as f64 / self.rates[class])
    }

    /// Seconds on the class where it is fastest.
    pub fn fastest_s(&self) -> f64 {
        (0..3).filter_map(|class| self.alone_s(class)).fold(f64::INFINITY, f64::min)
    }
}

impl Rates {
    /// Reads `physical_cluster_throughputs.json`: class, then `('MODEL', DEVICES)`, then `null` for running alone.
    ///
    /// # Errors
    /// A sentence that names the part that is not as expected.
    pub fn parse(text: &str) -> Result<Rates, String> {
        let file: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut rates = BTreeMap::new();
        for (index, class) in CLASSES.iter().enumerate() {
            let jobs = file[class].as_object().ok_or_else(|| format!("no class {class:?}"))?;
            for (name, beside) in jobs {
                let parts =
                    name.strip_prefix("('").and_then(|rest| rest.strip_suffix(')')?.split_once("', "));
                let (model, devices) = parts.ok_or_else(|| format!("{class}: no job type in {name:?}"))?;
                let devices =
                    devices.parse().map_err(|_| format!("{class}: no number of devices in {name:?}"))?;
                let alone =
                    beside["null"].as_f64().ok_or_else(|| format!("{class} {name}: no rate alone"))?;
                rates.entry((model.to_string(), devices)).or_insert([0.0; 3])[index] = alone;
            }
        }
        Ok(Rates(rates))
    }

    /// Reads a trace: ten columns, separated by tabs.
    ///
    /// # Errors
    /// A sentence with the number of the line.
    pub fn trace(&self, text: &str) -> Result<Vec<Job>, String> {
        let job = |line: &str| {
            let columns: Vec<_> = line.split('\t').collect();
            let [model, _, _, _, _, steps, devices, _, _, arrival] = columns[..] else { return None };
            let (steps, devices) = (steps.parse().ok()?, devices.parse().ok()?);
            let rates = *self.0.get(&(model.to_string(), devices))?;
            Some(Job { arrival_s: arrival.parse().ok()?, model: model.to_string(), devices, steps, rates })
        };
        let jobs = text.lines().enumerate().map(|(index, line)| {
            job(line)
                .ok_or_else(|| format!("line {}: not ten columns of a known job type: {line:?}", index + 1))
        });
        jobs.collect()
    }
}

/// Jobs like those of Gavel's physical traces: 60, 20 and 20 % on 1, 2 and 4 devices, any model that runs on so
/// many, `longest_h` hours on the first class at most, evenly spread.
///
/// * `gap_s`: mean time between arrivals, exponential; 0 for all at once.
pub fn generate(rates: &Rates, seed: u64, jobs: usize, gap_s: f64, longest_h: f64) -> Vec<Job> {
    let mut rng = Rng(seed ^ 0x6a7e);
    let mut unit = move || (rng.bits() >> 11) as f64 / (1u64 << 53) as f64;
    let mut arrival_s = 0.0;
    let mut all = Vec::new();
    for _ in 0..jobs {
        let size = unit();
        let devices = if size < 0.6 {
            1
        } else if size < 0.8 {
            2
        } else {
            4
        };
        let usable = |(key, rates): &(&(String, u32), &[f64; 3])| key.1 == devices && 0.0 < rates[0];
        let kinds: Vec<_> = self::Rates::entries(rates).filter(usable).collect();
        let ((model, _), rates) = kinds[(unit() * kinds.len() as f64) as usize];
        let hours = 0.1 + (longest_h - 0.1) * unit();
        let steps = (hours * 3600.0 * rates[0]).max(1.0) as u64;
        all.push(Job { arrival_s, model: model.clone(), devices, steps, rates: *rates });
        arrival_s -= gap_s * (1.0 - unit()).ln();
    }
    all
}

impl Rates {
    fn entries(&self) -> impl Iterator<Item = (&(String, u32), &[f64; 3])> {
        self.0.iter()
    }
}
