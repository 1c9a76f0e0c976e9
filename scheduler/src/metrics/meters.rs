//! What is counted as it happens.

use std::time::Duration;

use aquifer_core::jobs::Outcome;
use aquifer_core::{Cluster, Note};
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Upper bounds of short times, in seconds.
const SHORT: [f64; 14] =
    [1e-5, 2.5e-5, 1e-4, 2.5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
/// Upper bounds of the times that jobs wait, in seconds.
const WAITS: [f64; 13] =
    [0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 10_800.0, 43_200.0, 86_400.0, 604_800.0];
/// Upper bounds of the records of one commit.
const RECORDS: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0];
/// How jobs end.
const OUTCOMES: [&str; 4] = ["succeeded", "failed", "cancelled", "timed-out"];

/// Handles of the numbers that the loop and the sessions count.
#[derive(Clone)]
pub struct Meters {
    decisions: Histogram,
    commands: Histogram,
    commits: Histogram,
    commit_records: Histogram,
    waits: Histogram,
    ended: IntCounterVec,
    events: IntCounterVec,
    connections: IntCounter,
    reconnections: IntCounter,
    open: IntGauge,
    refusals: IntCounterVec,
}

impl Meters {
    /// Nothing has happened yet.
    pub fn new(registry: &Registry) -> Meters {
        let histogram = |name, help, bounds: &[f64]| {
            let options = HistogramOpts::new(name, help).namespace("aquifer").buckets(bounds.to_vec());
            entered(registry, Histogram::with_opts(options).expect("bounds that grow"))
        };
        let options = |name, help| Opts::new(name, help).namespace("aquifer");
        let counter = |name, help| {
            entered(registry, IntCounter::with_opts(options(name, help)).expect("a name of the format"))
        };
        let counters = |name, help, label| {
            let made = IntCounterVec::new(options(name, help), &[label]);
            entered(registry, made.expect("a name of the format"))
        };
        let help = "Jobs that ended since this scheduler began to lead, by how";
        let ended = counters("jobs_ended_total", help, "outcome");
        OUTCOMES.iter().for_each(|outcome| _ = ended.with_label_values(&[*outcome]));
        let help = "What happened since this scheduler began to lead: notes, by kind";
        let events = counters("events_total", help, "kind");
        // What alerts look at is there before it happens the first time.
        for kind in ["node-lost", "node-blamed", "device-quarantined", "requeued", "preempted"] {
            _ = events.with_label_values(&[kind]);
        }
        let help = "Time that deciding on one event took";
        let decisions = histogram("decision_duration_seconds", help, &SHORT);
        let help = "From a client's request to its durable answer";
        let commands = histogram("command_duration_seconds", help, &SHORT);
        let help = "Time that one commit of the store took";
        let commits = histogram("store_commit_duration_seconds", help, &SHORT);
        let commit_records = histogram("store_commit_records", "Records of one commit", &RECORDS);
        let waits = histogram("job_wait_seconds", "From a job's submission to its first placement", &WAITS);
        let connections = counter("agent_connections_total", "Sessions of agents that began");
        let help = "Sessions of agents that began on nodes which were known before";
        let reconnections = counter("agent_reconnections_total", help);
        let help = "Connections of clients and agents";
        let open = IntGauge::with_opts(options("connections", help)).expect("a name of the format");
        let open = entered(registry, open);
        let help = "Connections and calls that were refused, by the limit that was reached";
        let refusals = counters("refusals_total", help, "limit");
        for limit in ["connections", "client-connections", "client-calls", "client-rate", "bytes"] {
            _ = refusals.with_label_values(&[limit]);
        }
        Meters {
            decisions,
            commands,
            commits,
            commit_records,
            waits,
            ended,
            events,
            connections,
            reconnections,
            open,
            refusals,
        }
    }

    /// The core has decided on an event.
    pub fn on_decision(&self, took: Duration) {
        self.decisions.observe(took.as_secs_f64());
    }

    /// A client's request was answered.
    pub fn on_command(&self, took: Duration) {
        self.commands.observe(took.as_secs_f64());
    }

    /// The store has confirmed so many records; with none, it was not asked for anything.
    pub fn on_commit(&self, took: Duration, records: usize) {
        if 0 < records {
            self.commits.observe(took.as_secs_f64());
            self.commit_records.observe(records as f64);
        }
    }

    /// There are so many connections.
    pub fn set_connections(&self, open: usize) {
        self.open.set(open as i64);
    }

    /// Somebody has reached a limit.
    pub fn on_refusal(&self, limit: &str) {
        self.refusals.with_label_values(&[limit]).inc();
    }

    /// An agent's session began.
    pub fn on_session(&self, is_first: bool) {
        self.connections.inc();
        if !is_first {
            self.reconnections.inc();
        }
    }

    /// Something happened in the pool, which is as it is since.
    pub fn on_note(&self, note: &Note, cluster: &Cluster) {
        self.events.with_label_values(&[note.kind()]).inc();
        match note {
            Note::Done(_, outcome) => self.ended.with_label_values(&[word(outcome)]).inc(),
            Note::Placed { job, attempt: 1, .. } => {
                let job = cluster.jobs().get(*job).expect("a job that was placed");
                let waited = job.first_placed.map_or(0, |placed| placed.since(job.submitted));
                self.waits.observe(waited as f64 / 1000.0);
            }
            _ => (),
        }
    }
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => OUTCOMES[0],
        Outcome::Failed(_) | Outcome::Unreachable(_) => OUTCOMES[1],
        Outcome::Cancelled => OUTCOMES[2],
        Outcome::TimedOut => OUTCOMES[3],
    }
}

fn entered<C: Collector + Clone + 'static>(registry: &Registry, numbers: C) -> C {
    registry.register(Box::new(numbers.clone())).expect("a name is used once");
    numbers
}
