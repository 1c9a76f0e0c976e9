//! Numbers that are made for one answer.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, GaugeVec, Opts, Registry};

/// What one answer says of the pool.
#[derive(Default)]
pub struct Page(Registry);

/// Name and help of a number, with the names of its labels.
pub type Head<'a, const LABELS: usize> = (&'a str, &'a str, [&'a str; LABELS]);

impl Page {
    /// A number that goes up and down.
    pub fn gauge(&self, name: &str, help: &str, value: f64) {
        self.gauges((name, help, []), [([], value)]);
    }

    /// Numbers that go up and down, each with the values of its labels.
    pub fn gauges<'a, const LABELS: usize>(
        &self,
        head: Head<LABELS>,
        rows: impl IntoIterator<Item = ([&'a str; LABELS], f64)>,
    ) {
        let gauges = GaugeVec::new(options(&head), &head.2).expect("a name of the format");
        rows.into_iter().for_each(|(labels, value)| gauges.with_label_values(&labels).set(value));
        self.enter(gauges);
    }

    /// Numbers that only grow.
    pub fn counters<'a, const LABELS: usize>(
        &self,
        head: Head<LABELS>,
        rows: impl IntoIterator<Item = ([&'a str; LABELS], f64)>,
    ) {
        let counters = CounterVec::new(options(&head), &head.2).expect("a name of the format");
        rows.into_iter().for_each(|(labels, value)| counters.with_label_values(&labels).inc_by(value));
        self.enter(counters);
    }

    /// All of it.
    pub fn families(&self) -> Vec<MetricFamily> {
        self.0.gather()
    }

    fn enter(&self, numbers: impl Collector + 'static) {
        self.0.register(Box::new(numbers)).expect("a name is used once");
    }
}

fn options<const LABELS: usize>(head: &Head<LABELS>) -> Opts {
    Opts::new(head.0, head.1).namespace("aquifer")
}
