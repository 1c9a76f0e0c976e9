//! Lengths of jobs, learned from those that have ended.

/// Lengths of earlier jobs, in seconds.
#[derive(Clone, Debug, Default)]
pub struct Lengths(Vec<f64>);

impl Lengths {
    /// From a history, in any order.
    pub fn new(mut lengths: Vec<f64>) -> Lengths {
        lengths.sort_by(f64::total_cmp);
        Lengths(lengths)
    }

    /// Takes in one more.
    pub fn add(&mut self, length: f64) {
        let at = self.0.partition_point(|other| *other < length);
        self.0.insert(at, length);
    }

    /// What is expected to be left of a job after so much of it: the mean over those that were longer; a third of
    /// what it has had if none was. At least a minute.
    pub fn left(&self, had: f64) -> f64 {
        let longer = &self.0[self.0.partition_point(|other| *other <= had + 60.0)..];
        let mean = longer.iter().map(|length| length - had).sum::<f64>() / longer.len() as f64;
        if longer.is_empty() { (had / 3.0).max(60.0) } else { mean.max(60.0) }
    }
}
