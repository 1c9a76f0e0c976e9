//! The thread that writes checkpoints, so that steps need not wait for a store.

use super::Input;
use crate::checkpoint::{CheckpointError, Checkpoints, Keeping, Place, TrainingState};
use crate::elastic::Event;
use crate::error::WorkerError;
use rustix::process::setpriority_process;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long what a store does not do is tried again, where there is nothing else to do.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Pauses between two tries: the first one, each twice as long as the one before, up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The name of the thread that writes.
pub(crate) const WRITER: &str = "checkpoints";
/// It runs when the threads that compute leave a processor idle, and else gets about a tenth of one: a step that waits for one of
/// its shards costs more than a checkpoint that takes longer.
const NICE: i32 = 10;

/// The pauses between tries.
pub fn pauses() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(PAUSE), |pause| Some((2 * *pause).min(LONGEST_PAUSE)))
}

/// Writes one state after the other. When it is dropped, it writes those it has, and ends.
pub struct Saver {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
    waits: bool,
}

/// Where the next state lies.
#[derive(Default)]
struct Desk {
    content: Mutex<Content>,
    changed: Condvar,
}

#[derive(Default)]
struct Content {
    next: Option<TrainingState>,
    is_closed: bool,
}

impl Saver {
    /// Starts the thread, which opens the checkpoints where they are not open.
    pub fn start(
        mut checkpoints: Option<Checkpoints>,
        keeping: Keeping,
        model: Option<PathBuf>,
        inputs: Sender<Input>,
    ) -> Saver {
        let desk = Arc::new(Desk::default());
        let waits = matches!(keeping.place, Place::Directory(_));
        let own = Arc::clone(&desk);
        let mut save = move |state: &TrainingState| -> Result<(), CheckpointError> {
            let checkpoints = match &mut checkpoints {
                Some(checkpoints) => checkpoints,
                none => none.insert(Checkpoints::open(&keeping, model.as_deref())?),
            };
            checkpoints.save(state)
        };
        let write = move || {
            _ = setpriority_process(Some(rustix::thread::gettid()), NICE);
            while let Some(state) = own.take() {
                let start = Instant::now();
                for pause in pauses() {
                    let input = match save(&state) {
                        Ok(()) => Input::Event(Event::Saved(state.record.step)),
                        Err(error) if error.is_passing() => {
                            Input::NotSaved(state.record.step, error, start.elapsed())
                        }
                        Err(error) => Input::Failed(error.into()),
                    };
                    let is_done = !matches!(input, Input::NotSaved(..));
                    _ = inputs.send(input);
                    if is_done || own.is_overtaken_in(pause) {
                        break;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name(WRITER.into()).spawn(write).expect("threads");
        Saver { desk, thread: Some(thread), waits }
    }

    /// Has a state written. Where the one before still waits, this one waits for a disk; for a store it takes its place, and
    /// the step that is left out is returned.
    ///
    /// # Errors
    /// Where nothing can be written any more.
    pub fn save(&self, state: TrainingState) -> Result<Option<u64>, WorkerError> {
        let is_finished = || self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        let mut content = self.desk.lock();
        while self.waits && content.next.is_some() && !is_finished() {
            content = self.desk.wait(content, Duration::from_millis(100));
        }
        if is_finished() {
            return Err(WorkerError::Group("no checkpoints can be written any more".into()));
        }
        let left_out = content.next.replace(state).map(|state| state.record.step);
        self.desk.changed.notify_all();
        Ok(left_out)
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.desk.lock().is_closed = true;
        self.desk.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("no holder panics")
    }

    fn wait<'a>(&self, content: MutexGuard<'a, Content>, time: Duration) -> MutexGuard<'a, Content> {
        self.changed.wait_timeout(content, time).expect("no holder panics").0
    }

    /// The next state, or `None` when there will be none.
    fn take(&self) -> Option<TrainingState> {
        let mut content = self.lock();
        while content.next.is_none() && !content.is_closed {
            content = self.changed.wait(content).expect("no holder panics");
        }
        let next = content.next.take();
        self.changed.notify_all();
        next
    }

    /// Waits; whether there is a newer state, or no time for another try.
    fn is_overtaken_in(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let mut content = self.lock();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if content.next.is_some() || content.is_closed {
                return true;
            }
            if left.is_zero() {
                return false;
            }
            content = self.wait(content, left);
        }
    }
}
