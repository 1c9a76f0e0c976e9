//! What operators read of a scheduler: numbers for Prometheus, and whether it can be used.
//!
//! What happens is counted as it happens ([`Meters`]); what is, is read from the pool when somebody asks
//! (`snapshot`), by one query that the loop answers like that of any client. Labels are bounded: there are none of
//! jobs, users or nodes.

mod hours;
mod meters;
mod page;
mod snapshot;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use prometheus::{Registry, TextEncoder};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::runtime::Runtime;
pub(crate) use hours::Hours;
pub use meters::Meters;
use page::Page;
use snapshot::Tally;

/// Answers are at most so old: whoever asks more often costs the loop nothing.
const FRESH: Duration = Duration::from_secs(1);
/// So long the loop is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// The numbers of one scheduler, before it leads and while it does.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    meters: Meters,
    leads: OnceLock<Runtime>,
    latest: Mutex<Option<(Instant, Arc<str>)>>,
    tally: Arc<std::sync::Mutex<Tally>>,
}

/// Why a scheduler cannot be used at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It waits for its store, or for its turn.
    #[error("this scheduler does not lead: it stands by, or still reads its store")]
    StandsBy,
    /// The loop does not come back from its store.
    #[error("the store has confirmed nothing for {} s", PATIENCE.as_secs())]
    Stuck,
    /// The process is about to end.
    #[error("this scheduler is shutting down")]
    Ended,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let registry = Registry::new();
        let meters = Meters::new(&registry);
        let (leads, latest, tally) = (OnceLock::new(), Mutex::default(), Arc::default());
        Metrics(Arc::new(Inner { registry, meters, leads, latest, tally }))
    }
}

impl Metrics {
    /// Where further numbers of this process are entered.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// What the loop and the sessions count with.
    pub fn meters(&self) -> Meters {
        self.0.meters.clone()
    }

    /// From now on the pool can be read.
    pub(crate) fn lead(&self, runtime: Runtime) {
        assert!(self.0.leads.set(runtime).is_ok(), "a scheduler leads once");
    }

    /// Whether this scheduler leads and its store confirms: the loop comes back from a commit.
    ///
    /// # Errors
    /// Why not.
    pub async fn readiness(&self) -> Result<(), NotReady> {
        let runtime = self.0.leads.get().ok_or(NotReady::StandsBy)?;
        match timeout(PATIENCE, runtime.read(|_| ())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(NotReady::Ended),
            Err(_) => Err(NotReady::Stuck),
        }
    }

    /// All numbers in Prometheus' text format. Those of the pool are left out while the loop does not answer.
    pub async fn text(&self) -> Arc<str> {
        let mut latest = self.0.latest.lock().await;
        if let Some((at, text)) = &*latest
            && at.elapsed() < FRESH
        {
            return text.clone();
        }
        let text: Arc<str> = self.read().await.into();
        *latest = Some((Instant::now(), text.clone()));
        text
    }

    async fn read(&self) -> String {
        let page = Page::default();
        let runtime = self.0.leads.get();
        page.gauge("leader", "Whether this scheduler leads: 1 or 0", f64::from(u8::from(runtime.is_some())));
        if let Some(runtime) = runtime {
            page.gauge("term", "Term of this scheduler", runtime.term as f64);
            page.gauge("inbox_length", "Inputs that wait for the loop", runtime.waiting() as f64);
            page.gauge("agent_sessions", "Agents that are connected", runtime.shared.session_count() as f64);
            let (tally, shared) = (self.0.tally.clone(), runtime.shared.clone());
            let read = move |cluster: &aquifer_core::Cluster| {
                snapshot::read(cluster, &shared, &mut tally.lock().expect("no holder panics"))
            };
            if let Ok(Ok(read)) = timeout(PATIENCE, runtime.read(read)).await {
                read.write(&page);
            }
        }
        let mut families = self.0.registry.gather();
        families.extend(page.families());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new().encode_to_string(&families).expect("every family has numbers")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use aquifer_core::Policy;
    use aquifer_core::plan::Order;
    use aquifer_proto::store::Row;

    use super::*;
    use crate::store::{Contents, History, Memory, Store, StoreError};

    /// A store that confirms when it is told to.
    struct Slow {
        store: Memory,
        confirm: mpsc::Receiver<()>,
    }

    impl Store for Slow {
        fn contents(&mut self) -> Result<Contents, StoreError> {
            self.store.contents()
        }

        fn history(&self) -> Arc<dyn History> {
            self.store.history()
        }

        fn begin_term(&mut self) -> Result<u64, StoreError> {
            self.store.begin_term()
        }

        fn commit(&mut self, rows: &[Row]) -> Result<(), StoreError> {
            _ = self.confirm.recv(); // Without a sender, at once.
            self.store.commit(rows)
        }

        fn replace(&mut self, contents: &Contents) -> Result<(), StoreError> {
            self.store.replace(contents)
        }
    }

    #[tokio::test]
    async fn a_scheduler_is_ready_while_it_leads_and_its_store_confirms() {
        let metrics = Metrics::default();
        assert_eq!(metrics.readiness().await, Err(NotReady::StandsBy));
        assert!(metrics.text().await.contains("\naquifer_leader 0\n"));
        let (confirms, confirm) = mpsc::channel();
        let store = Slow { store: Memory::default(), confirm };
        let started =
            Runtime::start(Policy::new(Order::FairShare), String::new(), Box::new(store), metrics.meters());
        metrics.lead(started.expect("a store").0);
        assert_eq!(metrics.readiness().await, Err(NotReady::Stuck));
        let text = metrics.read().await;
        assert!(text.contains("\naquifer_leader 1\n"), "what can be told is told: {text}");
        assert!(!text.contains("\naquifer_jobs{"), "the pool cannot be read");
        drop(confirms);
        assert_eq!(metrics.readiness().await, Ok(()));
        assert!(metrics.read().await.contains("\naquifer_jobs{"));
    }
}
