//! The engine's handle: takes requests while there is room for them, and says what became of them.

use super::grammar::Constraint;
use super::metrics::Metrics;
use super::runner::{Runner, Sequence};
use super::sampling::{Likelihood, Sampling};
use crate::kernels::{BLOCK, Backend, DeviceError};
use crate::model::Model;
use crate::tokenizer::Tokenizer;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// The most requests that run at the same time.
pub const MAX_RUNNING: usize = 64;

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// At least one token; with `max_tokens` no more than the model's window.
    pub prompt: Vec<u32>,
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Strings that end the text; they are no part of it.
    pub stop: Vec<String>,
    /// Tokens that end the text; they are no part of it.
    pub stop_tokens: Vec<u32>,
    /// Whether the model's own end does not end the text.
    pub ignore_end: bool,
    /// What the text keeps to; it ends where nothing may follow.
    pub constraint: Option<Constraint>,
    /// Special tokens that are shown as text.
    pub marks: Vec<(u32, &'static str)>,
    /// Whether likelihoods are told, with so many of the likeliest tokens.
    pub likelihoods: Option<usize>,
    /// Whether those of the prompt's tokens are told as well: then nothing of it is taken from the cache.
    pub prompt_likelihoods: bool,
    /// Whether the hidden vector of the prompt's last token is told.
    pub hidden: bool,
    /// When it is no longer wanted.
    pub deadline: Option<Instant>,
}

/// What a request leads to, in order, its end last.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt's tokens but the first, where they were asked for.
    Prompt(Vec<Likelihood>),
    /// The hidden vector of the prompt's last token after the last norm, where it was asked for.
    Hidden(Vec<f32>),
    /// More text, which is empty only where there are likelihoods.
    Text {
        /// The text.
        text: String,
        /// Of the token that it came with, where they were asked for. Its text may come later.
        likelihood: Option<Likelihood>,
    },
    /// The end. Nothing follows.
    End {
        /// Why it ended.
        reason: Finish,
        /// Tokens that were generated, with those that became no text.
        tokens: usize,
        /// Tokens of the prompt that were found in the cache.
        cached: usize,
    },
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the text, or a stop string did.
    Stop,
    /// It has as many tokens as were asked for.
    Length,
    /// Its deadline has passed.
    Deadline,
    /// Going on by its grammar would have held up the others.
    Grammar,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too many are waiting.
    Full {
        /// How many may wait.
        max_queue: usize,
        /// When a place should be free, in seconds.
        retry_after_s: u64,
    },
    /// It needs more tokens than the cache holds.
    TooLong {
        /// Tokens of its prompt and its answer.
        tokens: usize,
        /// Tokens that the cache holds.
        capacity: usize,
    },
    /// The worker is about to end.
    Stopping,
}

/// How much an engine may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that may wait.
    pub max_queue: usize,
    /// Blocks of keys and values, at least one.
    pub blocks: usize,
}

/// The handle of the engine. Dropping it stops the engine once nobody waits for an answer any more.
pub struct Engine {
    pub(super) shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    limits: Limits,
}

pub(super) struct Shared {
    pub queue: Mutex<Queue>,
    pub changed: Condvar,
    pub metrics: Mutex<Metrics>,
}

#[derive(Default)]
pub(super) struct Queue {
    pub waiting: VecDeque<Sequence>,
    pub running: usize,
    pub stopping: bool,
    pub abandoned: bool,
    /// How long requests have taken from start to end, in seconds: a moving mean.
    pub mean_s: f64,
    pub failure: Option<DeviceError>,
}

impl Engine {
    /// Starts the thread, on a device that has the model and room for the cache.
    ///
    /// # Errors
    /// There is no room.
    pub fn start<K: Backend + 'static>(
        model: Model<K::Weights>,
        tokenizer: Tokenizer,
        kernels: K,
        limits: Limits,
    ) -> Result<Engine, DeviceError> {
        let metrics = Mutex::new(Metrics::new(limits.blocks));
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), metrics });
        let cache = (model.cache(&kernels, limits.blocks)?, limits.blocks);
        let runner = Runner::new(model, tokenizer, kernels, cache, Arc::clone(&shared));
        Ok(Engine { shared, thread: Some(std::thread::spawn(move || runner.run())), limits })
    }

    /// Takes requests, all or none; the events of each come with its index. Dropping the receiver cancels them.
    ///
    /// # Errors
    /// Where too many are waiting, one is larger than the cache, or the engine is stopping.
    pub fn submit(&self, requests: Vec<Request>) -> Result<UnboundedReceiver<(usize, Event)>, Refusal> {
        let refused = |refusal| {
            self.shared.metrics().count("refused");
            Err(refusal)
        };
        for request in &requests {
            let (tokens, capacity) = (request.prompt.len() + request.max_tokens, self.capacity());
            if capacity < tokens {
                return refused(Refusal::TooLong { tokens, capacity });
            }
        }
        let mut queue = self.shared.lock();
        if queue.stopping {
            return refused(Refusal::Stopping);
        }
        queue.waiting.retain(|sequence| !sequence.is_cancelled());
        let (waiting, max_queue) = (queue.waiting.len(), self.limits.max_queue);
        // A list that is longer than the queue goes into an empty one.
        if 0 < waiting && max_queue < waiting + requests.len() {
            let rounds = waiting.div_ceil(MAX_RUNNING) as f64;
            let retry_after_s = (rounds * queue.mean_s).ceil().clamp(1.0, 3600.0) as u64;
            return refused(Refusal::Full { max_queue, retry_after_s });
        }
        let (events, receiver) = unbounded_channel();
        for (index, request) in requests.into_iter().enumerate() {
            queue.waiting.push_back(Sequence::new(index, request, events.clone()));
        }
        drop(queue);
        self.shared.metrics().last_request = Some(Instant::now());
        self.shared.changed.notify_one();
        Ok(receiver)
    }

    /// Tokens that the cache holds: the most that a request can have, answer included.
    pub fn capacity(&self) -> usize {
        self.limits.blocks * BLOCK
    }

    /// Refuses what comes from now on; what was taken is finished.
    pub fn stop(&self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_one();
    }

    /// Ends at once: what is running or waiting gets no end.
    pub fn abandon(&self) {
        let mut queue = self.shared.lock();
        (queue.stopping, queue.abandoned) = (true, true);
        queue.waiting.clear();
        self.shared.changed.notify_one();
    }

    /// Whether requests are refused for good.
    pub fn is_stopping(&self) -> bool {
        self.shared.lock().stopping
    }

    /// Why it ended by itself, if it did.
    pub fn failure(&self) -> Option<DeviceError> {
        self.shared.lock().failure.clone()
    }

    /// Requests that are running and waiting.
    pub fn load(&self) -> (usize, usize) {
        let queue = self.shared.lock();
        (queue.running, queue.waiting.len())
    }

    /// What was counted and measured. Not to be held for long.
    pub fn metrics(&self) -> MutexGuard<'_, Metrics> {
        self.shared.metrics()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic in the engine was printed when it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The device cannot go on: nothing is taken any more, and what was taken gets no end.
    pub fn fail(&self, error: DeviceError) {
        let mut queue = self.lock();
        (queue.stopping, queue.abandoned, queue.failure) = (true, true, Some(error));
        queue.waiting.clear();
    }

    pub fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic while locked")
    }

    pub fn metrics(&self) -> MutexGuard<'_, Metrics> {
        self.metrics.lock().expect("no panic while locked")
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
