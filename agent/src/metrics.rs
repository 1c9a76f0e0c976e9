//! What operators read of an agent: numbers for Prometheus, and whether it has a scheduler.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aquifer_core::{Health, Name, Vendor};
use prometheus::{GaugeVec, IntCounter, Opts, Registry, TextEncoder};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// So long the daemon is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where the daemon says how it is.
pub(crate) type Question = oneshot::Sender<Seen>;

/// An agent at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Why there is no session with the scheduler; `None`: there is one.
    pub alone_because: Option<String>,
    pub node: String,
    pub term: u64,
    /// What is left of the lease.
    pub lease_left: Duration,
    /// Workers by state.
    pub workers: BTreeMap<&'static str, u64>,
    /// Devices by class, and by what is wrong with them; `None`: nothing.
    pub devices: BTreeMap<(Vendor, Name, Option<Health>), u64>,
}

/// The numbers of one agent.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    sessions: IntCounter,
    ask: mpsc::Sender<Question>,
    questions: Arc<Mutex<Option<mpsc::Receiver<Question>>>>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let (ask, questions) = mpsc::channel(8);
        let registry = Registry::new();
        let help = "Sessions with a scheduler that began: reconnections are all but the first";
        let sessions = IntCounter::new("aquifer_node_sessions_total", help).expect("a name of the format");
        registry.register(Box::new(sessions.clone())).expect("a name is used once");
        Metrics { registry, sessions, ask, questions: Arc::new(Mutex::new(Some(questions))) }
    }
}

impl Metrics {
    /// Where further numbers of this process are entered.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What is asked of the daemon, of which there is one.
    pub(crate) fn questions(&self) -> mpsc::Receiver<Question> {
        self.questions.lock().expect("no holder panics").take().expect("one daemon")
    }

    pub(crate) fn on_session(&self) {
        self.sessions.inc();
    }

    /// Whether the agent has a session with a scheduler.
    ///
    /// # Errors
    /// One sentence why not.
    pub async fn readiness(&self) -> Result<(), String> {
        match self.look().await {
            None => Err(format!("the agent does not answer for {} s", PATIENCE.as_secs())),
            Some(Seen { alone_because: Some(why), .. }) if why.is_empty() => {
                Err("no session with a scheduler".into())
            }
            Some(Seen { alone_because: Some(why), .. }) => Err(format!("no session with a scheduler: {why}")),
            Some(_) => Ok(()),
        }
    }

    /// All numbers in Prometheus' text format. Without those of the node while the daemon does not answer.
    pub async fn text(&self) -> String {
        let page = Registry::new();
        if let Some(seen) = self.look().await {
            seen.write(&page);
        }
        let mut families = self.registry.gather();
        families.extend(page.gather());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new().encode_to_string(&families).expect("every family has numbers")
    }

    async fn look(&self) -> Option<Seen> {
        let (question, answer) = oneshot::channel();
        let asked = async {
            self.ask.send(question).await.ok()?;
            answer.await.ok()
        };
        timeout(PATIENCE, asked).await.ok().flatten()
    }
}

impl Seen {
    fn write(&self, page: &Registry) {
        let enter = |name, help, labels: &[&str], rows: Vec<(Vec<String>, f64)>| {
            let gauges = GaugeVec::new(Opts::new(name, help), labels).expect("a name of the format");
            rows.iter().for_each(|(labels, value)| gauges.with_label_values(labels).set(*value));
            page.register(Box::new(gauges)).expect("a name is used once");
        };
        let alone = |value: f64| vec![(vec![], value)];
        let connected = f64::from(u8::from(self.alone_because.is_none()));
        enter(
            "aquifer_node_info",
            "The node's name; the number is always 1",
            &["node"],
            vec![(vec![self.node.clone()], 1.0)],
        );
        enter(
            "aquifer_node_connected",
            "Whether there is a session with a scheduler: 1 or 0",
            &[],
            alone(connected),
        );
        enter(
            "aquifer_node_term",
            "Highest term of a scheduler that was obeyed",
            &[],
            alone(self.term as f64),
        );
        let help = "What is left of the lease, at whose end workers are stopped";
        enter("aquifer_node_lease_left_seconds", help, &[], alone(self.lease_left.as_secs_f64()));
        let workers = self.workers.iter().map(|(state, count)| (vec![state.to_string()], *count as f64));
        enter("aquifer_node_workers", "Workers, by state", &["state"], workers.collect());
        let health = |health: &Option<Health>| health.map_or("well".into(), |health| health.to_string());
        let devices = self.devices.iter().map(|((vendor, model, fault), count)| {
            (vec![vendor.to_string(), model.to_string(), health(fault)], *count as f64)
        });
        let help = "Devices, by class and by how they are";
        enter("aquifer_node_devices", help, &["vendor", "model", "health"], devices.collect());
    }
}
