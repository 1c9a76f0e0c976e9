//! What operators read.

use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::routes::Overview;

/// Upper bounds of the time to the first byte of an answer, in seconds.
const TIMES: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// Numbers of a gateway. Labels are names of models that there are: clients cannot make more.
pub struct Meters {
    registry: Registry,
    answered: IntCounterVec,
    moved: IntCounterVec,
    cut: IntCounterVec,
    first_byte: HistogramVec,
    in_flight: IntGaugeVec,
    held: IntGaugeVec,
    replicas: IntGaugeVec,
}

fn entered<T: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<T>) -> T {
    let made = made.expect("names and labels of the format");
    registry.register(Box::new(made.clone())).expect("names are used once");
    made
}

impl Meters {
    /// Nothing has happened yet.
    pub fn new(registry: &Registry) -> Meters {
        let options = |name, help| Opts::new(name, help).namespace("aquifer_gateway");
        let counters =
            |name, help, labels: &[&str]| entered(registry, IntCounterVec::new(options(name, help), labels));
        let gauges = |name, help| entered(registry, IntGaugeVec::new(options(name, help), &["model"]));
        let times =
            HistogramOpts::new("first_byte_seconds", "Time from a request to the first byte of its answer")
                .namespace("aquifer_gateway")
                .buckets(TIMES.to_vec());
        Meters {
            registry: registry.clone(),
            answered: counters(
                "requests_total",
                "Requests that were answered, by status",
                &["model", "status"],
            ),
            moved: counters(
                "moved_total",
                "Requests that went to another replica, by why",
                &["model", "why"],
            ),
            cut: counters(
                "cut_total",
                "Answers that ended before their time, as their replica was lost",
                &["model"],
            ),
            first_byte: entered(registry, HistogramVec::new(times, &["model"])),
            in_flight: gauges("in_flight", "Requests that replicas have"),
            held: gauges("held", "Requests that wait for a replica"),
            replicas: gauges("replicas", "Replicas that are ready"),
        }
    }

    /// A request of a model is answered, after so long.
    pub fn answered(&self, model: &str, status: u16, seconds: f64) {
        self.answered.with_label_values(&[model, &status.to_string()]).inc();
        self.first_byte.with_label_values(&[model]).observe(seconds);
    }

    /// A request was refused that is of no model.
    pub fn refused(&self, status: u16) {
        self.answered.with_label_values(&["", &status.to_string()]).inc();
    }

    /// A request goes to another replica.
    pub fn moved(&self, model: &str, why: &str) {
        self.moved.with_label_values(&[model, why]).inc();
    }

    /// Counts answers of a model that are cut off.
    pub fn cut(&self, model: &str) -> prometheus::IntCounter {
        self.cut.with_label_values(&[model])
    }

    /// All numbers, in Prometheus' text format.
    pub fn text(&self, models: &[Overview]) -> String {
        for gauges in [&self.in_flight, &self.held, &self.replicas] {
            gauges.reset();
        }
        for it in models {
            let model = [&it.model[..]];
            // What alerts look at is there before it happens the first time.
            _ = (
                self.answered.with_label_values(&[model[0], "200"]),
                self.moved.with_label_values(&[model[0], "lost"]),
            );
            _ = (self.cut.with_label_values(&model), self.first_byte.with_label_values(&model));
            self.in_flight.with_label_values(&model).set(it.in_flight as i64);
            self.held.with_label_values(&model).set(it.held as i64);
            self.replicas.with_label_values(&model).set(it.replicas as i64);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}
