//! Answers reads while another scheduler leads, from a copy of what the store holds.
//!
//! The copy is read at one moment of the store, and read again when somebody asks and it is old. Reading has a thread of
//! its own, so that a store that does not answer holds nobody up for long: what is known is answered, with its age.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use aquifer_core::{Cluster, Policy};
use aquifer_proto::store::decode_all;
use tokio::sync::mpsc;

use super::{Input, Runtime, Shared};
use crate::clock::Clock;
use crate::metrics::Meters;
use crate::store::{Contents, History, StoreError};

/// A copy of at most this age is not read again.
const FRESH: Duration = Duration::from_secs(1);
/// Nor is one whose age is at most so many times what reading it took: questions keep no store busy.
const REST: u32 = 10;
/// So long a question waits for a newer copy. Then it gets what there is.
const WAIT: Duration = Duration::from_secs(1);
/// Between attempts to read the first copy.
const PAUSE: Duration = Duration::from_secs(1);

/// Answers reads, and nothing else.
pub struct Follower {
    /// Commands that are given to it are never answered.
    pub runtime: Runtime,
    has_copy: Arc<AtomicBool>,
}

/// The pool at one moment.
struct Copy {
    cluster: Cluster,
    /// It is not older than that.
    as_of: Instant,
    /// What it took to read.
    took: Duration,
}

impl Follower {
    /// Begins to follow a store that another scheduler writes; ends with the last handle of its runtime. `look` reads what
    /// a scheduler needs to go on.
    pub fn start(
        policy: Policy,
        checkpoint_root: String,
        history: Arc<dyn History>,
        meters: Meters,
        look: impl FnMut() -> Result<Contents, StoreError> + Send + 'static,
    ) -> Follower {
        let shared = Shared::new(checkpoint_root, history, 0, meters);
        let (runtime, asked) = Runtime::new(policy, 0, shared);
        let has_copy = Arc::new(AtomicBool::new(false));
        let (wishes, wished) = channel();
        let (copies, came) = channel();
        std::thread::spawn(move || read(policy, look, &wished, &copies));
        let has = has_copy.clone();
        std::thread::spawn(move || answer(asked, &wishes, &came, &has));
        Follower { runtime, has_copy }
    }

    /// Whether it knows anything yet.
    pub fn has_copy(&self) -> bool {
        self.has_copy.load(Ordering::Relaxed)
    }
}

/// Reads the first copy, and another one for each wish.
fn read(
    policy: Policy,
    mut look: impl FnMut() -> Result<Contents, StoreError>,
    wished: &Receiver<()>,
    copies: &Sender<Option<Copy>>,
) {
    let clock = Clock::start();
    let mut is_first = true;
    loop {
        let as_of = Instant::now();
        let copy = look().and_then(|contents| {
            let records = decode_all(contents.rows)?;
            let cluster = Cluster::restore(policy, contents.term, records, clock.now());
            Ok(Copy { cluster, as_of, took: as_of.elapsed() })
        });
        let copy = copy.inspect_err(|error| tracing::debug!("no newer copy of the pool: {error}")).ok();
        let failed = copy.is_none();
        if !(is_first && failed) && copies.send(copy).is_err() {
            return;
        }
        is_first &= failed;
        let next = match is_first {
            // Wishes begin with the first copy; until then only the end can come.
            true => match wished.recv_timeout(PAUSE) {
                Err(RecvTimeoutError::Disconnected) => return,
                _ => continue,
            },
            false => wished.recv(),
        };
        if next.is_err() {
            return;
        }
    }
}

/// Answers questions from the newest copy.
fn answer(
    mut asked: mpsc::Receiver<Input>,
    wishes: &Sender<()>,
    came: &Receiver<Option<Copy>>,
    has_copy: &AtomicBool,
) {
    let mut copy = loop {
        match came.recv_timeout(PAUSE) {
            Ok(Some(copy)) => break copy,
            Ok(None) | Err(RecvTimeoutError::Timeout) if !asked.is_closed() => (),
            _ => return,
        }
    };
    has_copy.store(true, Ordering::Relaxed);
    let mut wished: Option<Instant> = None;
    while let Some(input) = asked.blocking_recv() {
        let Input::Query(query) = input else { continue };
        let is_old = FRESH.max(REST * copy.took) < copy.as_of.elapsed();
        if is_old && wished.is_none() {
            wished = wishes.send(()).is_ok().then(Instant::now);
        }
        if let Some(since) = wished {
            let wait = if is_old { WAIT.saturating_sub(since.elapsed()) } else { Duration::ZERO };
            if let Ok(newer) = came.recv_timeout(wait) {
                copy = newer.unwrap_or(copy);
                wished = None;
            }
        }
        query(&copy.cluster, Some(copy.as_of));
    }
}
