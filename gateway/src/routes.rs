//! Which replicas answer for which model, and which one gets the next request.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// A replica that refused a connection is left alone for so long.
const SHUNNED: Duration = Duration::from_secs(2);

/// A service, as the scheduler tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The job.
    pub job: u64,
    /// Name that clients ask for. Services of one name share its requests.
    pub model: String,
    /// When it was submitted, in seconds since 1970.
    pub created_s: u64,
    /// Where replicas that are ready answer: `http://HOST:PORT/v1`.
    pub endpoints: Vec<String>,
}

/// A replica; its identity is where it answers.
#[derive(Debug, Default)]
struct Replica {
    in_flight: Arc<AtomicUsize>,
    shunned_until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Model {
    jobs: Vec<u64>,
    created_s: u64,
    replicas: BTreeMap<Arc<str>, Replica>,
    held: Arc<AtomicUsize>,
}

/// The models of a pool.
#[derive(Debug)]
pub struct Routes {
    models: Mutex<BTreeMap<String, Model>>,
    /// Requests that may wait for a replica of one model.
    most_held: usize,
    /// Those that wait while nothing is known of any.
    held_unknown: Arc<AtomicUsize>,
    /// Grows with every change; 0: nothing is known yet.
    changes: watch::Sender<u64>,
}

/// A model, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// Its name.
    pub model: String,
    /// Jobs that serve it.
    pub jobs: Vec<u64>,
    /// When the first of its services was submitted, in seconds since 1970.
    pub created_s: u64,
    /// Replicas that are ready.
    pub replicas: usize,
    /// Requests that replicas have.
    pub in_flight: usize,
    /// Requests that wait for a replica.
    pub held: usize,
}

/// A place among the requests that are counted somewhere, until it goes.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Place {
        count.fetch_add(1, Ordering::Relaxed);
        Place(count.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a request goes.
#[derive(Debug)]
pub enum Pick {
    /// To this replica, where it has a place.
    Replica(Arc<str>, Place),
    /// Nowhere yet: no further replica is ready.
    NoneReady,
    /// Nowhere: no service has this name.
    NoSuchModel,
}

impl Routes {
    /// Nothing is known. `most_held`: requests that may wait for a replica of one model.
    pub fn new(most_held: usize) -> Routes {
        let (models, held_unknown) = (Mutex::default(), Arc::default());
        Routes { models, most_held, held_unknown, changes: watch::Sender::new(0) }
    }

    fn models(&self) -> MutexGuard<'_, BTreeMap<String, Model>> {
        self.models.lock().expect("no holder panics")
    }

    /// Replaces what is known. Replicas that stay keep their counts.
    pub fn set(&self, services: Vec<Service>) {
        let mut models = self.models();
        let mut before = std::mem::take(&mut *models);
        let mut changed = false;
        for service in services {
            let Service { job, model, created_s, endpoints } = service;
            let known = before.get_mut(&model);
            let entry = models.entry(model).or_insert_with(|| Model {
                created_s,
                held: known.as_ref().map(|it| it.held.clone()).unwrap_or_default(),
                ..Model::default()
            });
            entry.jobs.push(job);
            entry.created_s = entry.created_s.min(created_s);
            let mut stays = known.map(|it| &mut it.replicas);
            for endpoint in endpoints {
                let endpoint: Arc<str> = endpoint.into();
                let replica = stays.as_mut().and_then(|replicas| replicas.remove(&endpoint));
                changed |= replica.is_none();
                entry.replicas.insert(endpoint, replica.unwrap_or_default());
            }
        }
        drop(models);
        // Those that wait care for replicas that came, and whether anything is known at all.
        self.changes.send_if_modified(|changes| {
            let tell = changed || *changes == 0;
            *changes += u64::from(tell);
            tell
        });
    }

    /// Whether the services of the pool are known.
    pub fn are_known(&self) -> bool {
        0 < *self.changes.borrow()
    }

    /// Tells when replicas came.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The replica that gets a request: of those that are ready and not among `tried` the one with the fewest requests.
    /// Of equals the one that earlier requests of this `beginning` would have got: what it computed for them may be of use.
    pub fn pick(&self, model: &str, tried: &BTreeSet<Arc<str>>, beginning: &[u8]) -> Pick {
        let (models, now) = (self.models(), Instant::now());
        let Some(known) = models.get(model) else {
            return if self.are_known() { Pick::NoSuchModel } else { Pick::NoneReady };
        };
        let can = |(endpoint, replica): &(&Arc<str>, &Replica)| {
            replica.shunned_until.is_none_or(|until| until <= now) && !tried.contains(*endpoint)
        };
        let best = known.replicas.iter().filter(can).min_by_key(|(endpoint, replica)| {
            (replica.in_flight.load(Ordering::Relaxed), rendezvous(beginning, endpoint))
        });
        match best {
            Some((endpoint, replica)) => Pick::Replica(endpoint.clone(), Place::take(&replica.in_flight)),
            None => Pick::NoneReady,
        }
    }

    /// A place among those that wait for a replica of a model, if one is left. `has`: the place that the request has had.
    pub fn hold(&self, model: &str, has: Option<Place>) -> Option<Place> {
        let models = self.models();
        let held = models.get(model).map_or(&self.held_unknown, |known| &known.held);
        if has.as_ref().is_some_and(|Place(count)| Arc::ptr_eq(count, held)) {
            return has;
        }
        (held.load(Ordering::Relaxed) < self.most_held).then(|| Place::take(held))
    }

    /// A replica refused a connection: for a moment it gets nothing.
    pub fn shun(&self, model: &str, endpoint: &str) {
        let mut models = self.models();
        if let Some(replica) = models.get_mut(model).and_then(|known| known.replicas.get_mut(endpoint)) {
            replica.shunned_until = Some(Instant::now() + SHUNNED);
        }
    }

    /// All models, by name.
    pub fn overview(&self) -> Vec<Overview> {
        let in_flight = |replica: &Replica| replica.in_flight.load(Ordering::Relaxed);
        let models = self.models();
        let all = models.iter().map(|(model, known)| Overview {
            model: model.clone(),
            jobs: known.jobs.clone(),
            created_s: known.created_s,
            replicas: known.replicas.len(),
            in_flight: known.replicas.values().map(in_flight).sum(),
            held: known.held.load(Ordering::Relaxed),
        });
        all.collect()
    }
}

/// Where a beginning belongs, the smallest first: it stays the same when other replicas come and go.
fn rendezvous(beginning: &[u8], endpoint: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (beginning, endpoint).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(job: u64, model: &str, endpoints: &[&str]) -> Service {
        let endpoints = endpoints.iter().map(ToString::to_string).collect();
        Service { job, model: model.into(), created_s: job, endpoints }
    }

    fn pick(routes: &Routes, beginning: &[u8]) -> (Arc<str>, Place) {
        match routes.pick("m", &BTreeSet::new(), beginning) {
            Pick::Replica(endpoint, place) => (endpoint, place),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_fewest_requests_win_and_beginnings_stay_together() {
        let routes = Routes::new(1);
        routes.set(vec![service(1, "m", &["a", "b"]), service(2, "m", &["c"])]);
        let places: Vec<_> = (0..30).map(|_| pick(&routes, b"x")).collect();
        for endpoint in ["a", "b", "c"] {
            assert_eq!(places.iter().filter(|(it, _)| **it == *endpoint).count(), 10, "{endpoint}");
        }
        drop(places);
        let home = |beginning: &[u8]| pick(&routes, beginning).0;
        let homes: Vec<_> = (0u8..60).map(|at| home(&[at])).collect();
        assert_eq!(homes, (0u8..60).map(|at| home(&[at])).collect::<Vec<_>>(), "idle ones are chosen alike");
        assert_eq!(homes.iter().collect::<BTreeSet<_>>().len(), 3, "and all are");
        // Whose home stays, stays at home.
        routes.set(vec![service(1, "m", &["a", "c"])]);
        for (at, before) in (0u8..60).zip(homes).filter(|(_, home)| **home != *"b") {
            assert_eq!(home(&[at]), before);
        }
    }

    #[test]
    fn counts_outlive_a_change_and_shunned_ones_are_left_alone() {
        let routes = Routes::new(1);
        assert!(
            matches!(routes.pick("m", &BTreeSet::new(), b""), Pick::NoneReady),
            "it may come to be known"
        );
        routes.set(vec![service(1, "m", &["a", "b"])]);
        assert!(matches!(routes.pick("n", &BTreeSet::new(), b""), Pick::NoSuchModel));
        let (first, place) = pick(&routes, b"");
        routes.set(vec![service(1, "m", &["a", "b", "c"])]);
        assert_eq!(routes.overview()[0].in_flight, 1);
        drop(place);
        assert_eq!(routes.overview()[0].in_flight, 0);
        routes.shun("m", &first);
        assert_ne!(pick(&routes, b"").0, first);
        let tried = ["a", "b", "c"].into_iter().map(Arc::from).filter(|it| *it != first).collect();
        assert!(matches!(routes.pick("m", &tried, b""), Pick::NoneReady));
        let early = Routes::new(1).hold("m", None).expect("a place before anything is known");
        let held = routes.hold("m", Some(early)).expect("a place");
        assert!(routes.hold("m", None).is_none());
        let held = routes.hold("m", Some(held)).expect("the same");
        assert_eq!(routes.overview()[0].held, 1);
        drop(held);
        assert!(routes.hold("m", None).is_some());
    }
}
