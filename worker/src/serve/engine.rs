//! The engine: one thread that owns the model and runs all requests at the same time.
//!
//! Each round takes one piece of one prompt, then the next token of every running request in one pass. A request
//! gets the same tokens alone and in company: a pass gives each row the bits it would have alone, and a prompt is
//! cut by its own length only.

use super::sampling::{Sampler, Sampling};
use super::text::TextStream;
use crate::kernels::{Cpu, MAX_DECODE_ROWS};
use crate::model::Model;
use crate::model::inference::{KvCache, Scratch, Segment};
use crate::tokenizer::Tokenizer;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Tokens of a prompt that are run between two tokens of the running requests.
const PREFILL_TOKENS: usize = 256;

/// What to generate.
#[derive(Clone, Debug)]
pub struct Request {
    /// At least one token; with `max_tokens` no more than the model's window.
    pub prompt: Vec<u32>,
    /// The most tokens to generate, at least one.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Strings that end the text.
    pub stop: Vec<String>,
}

/// What a request leads to, in order: pieces of text, then its end.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// More text, never empty.
    Text(String),
    /// The end. Nothing follows.
    End {
        /// Why it ended.
        reason: Finish,
        /// Tokens that were generated, with those that became no text.
        tokens: usize,
    },
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the text, or a stop string did.
    Stop,
    /// It has as many tokens as were asked for.
    Length,
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
    /// The worker is about to end.
    Stopping,
}

/// The handle of the engine. Dropping it stops the engine once nobody waits for an answer any more.
pub struct Engine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    max_queue: usize,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Tokens that went through the model.
    tokens: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Sequence>,
    running: usize,
    stopping: bool,
    abandoned: bool,
    /// How long requests have taken from start to end, in seconds: a moving mean.
    mean_s: f64,
}

struct Sequence {
    cache: KvCache,
    /// Tokens that are not in the cache yet: the rest of the prompt, or the last token.
    pending: Vec<u32>,
    sampler: Sampler,
    text: TextStream,
    tokens: usize,
    max_tokens: usize,
    started: Instant,
    events: UnboundedSender<Event>,
    ended: bool,
}

impl Engine {
    /// Starts the thread.
    pub fn start(model: Model, tokenizer: Tokenizer, kernels: Cpu, max_queue: usize) -> Engine {
        let queue = Mutex::new(Queue::default());
        let shared = Arc::new(Shared { queue, changed: Condvar::new(), tokens: AtomicU64::new(0) });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || Runner::new(model, tokenizer, kernels, shared).run())
        };
        Engine { shared, thread: Some(thread), max_queue }
    }

    /// Takes a request. Dropping the receiver cancels it.
    ///
    /// # Errors
    /// Where too many are waiting, or the engine is stopping.
    pub fn submit(&self, request: Request) -> Result<UnboundedReceiver<Event>, Refusal> {
        let mut queue = self.shared.lock();
        if queue.stopping {
            return Err(Refusal::Stopping);
        }
        queue.waiting.retain(|sequence| !sequence.events.is_closed());
        if self.max_queue <= queue.waiting.len() {
            let rounds = queue.waiting.len().div_ceil(MAX_DECODE_ROWS) as f64;
            let retry_after_s = (rounds * queue.mean_s).ceil().clamp(1.0, 3600.0) as u64;
            return Err(Refusal::Full { max_queue: self.max_queue, retry_after_s });
        }
        let (events, receiver) = unbounded_channel();
        queue.waiting.push_back(Sequence {
            cache: KvCache::default(),
            pending: request.prompt,
            sampler: Sampler::new(request.sampling),
            text: TextStream::new(&request.stop),
            tokens: 0,
            max_tokens: request.max_tokens,
            started: Instant::now(),
            events,
            ended: false,
        });
        self.shared.changed.notify_one();
        Ok(receiver)
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

    /// Tokens that went through the model since the start, prompts included.
    pub fn tokens(&self) -> u64 {
        self.shared.tokens.load(Ordering::Relaxed)
    }

    /// Requests that are running and waiting.
    pub fn load(&self) -> (usize, usize) {
        let queue = self.shared.lock();
        (queue.running, queue.waiting.len())
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
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic while locked")
    }
}

struct Runner {
    model: Model,
    tokenizer: Tokenizer,
    kernels: Cpu,
    scratch: Scratch,
    running: Vec<Sequence>,
    shared: Arc<Shared>,
}

impl Runner {
    fn new(model: Model, tokenizer: Tokenizer, kernels: Cpu, shared: Arc<Shared>) -> Runner {
        Runner { model, tokenizer, kernels, scratch: Scratch::default(), running: Vec::new(), shared }
    }

    fn run(mut self) {
        while self.admit() {
            self.prefill();
            self.decode();
            self.remove_ended();
        }
    }

    /// Takes waiting requests while there is room; waits if there is nothing to do. False at the end.
    fn admit(&mut self) -> bool {
        let mut queue = self.shared.lock();
        loop {
            if queue.abandoned {
                return false;
            }
            while self.running.len() < MAX_DECODE_ROWS
                && let Some(mut sequence) = queue.waiting.pop_front()
            {
                sequence.started = Instant::now();
                self.running.push(sequence);
            }
            queue.running = self.running.len();
            if !self.running.is_empty() {
                return true;
            }
            if queue.stopping {
                return false;
            }
            queue = self.shared.changed.wait(queue).expect("no panic while locked");
        }
    }

    /// Runs one piece of the oldest unfinished prompt.
    fn prefill(&mut self) {
        let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.is_prefilling()) else {
            return;
        };
        let rest = sequence.pending.split_off(PREFILL_TOKENS.min(sequence.pending.len()));
        let tokens = std::mem::replace(&mut sequence.pending, rest);
        let segment = Segment { cache: &mut sequence.cache, tokens: &tokens };
        let logits = self.model.extend(&self.kernels, &mut self.scratch, &mut [segment]);
        self.shared.tokens.fetch_add(tokens.len() as u64, Ordering::Relaxed);
        if sequence.pending.is_empty() {
            sequence.say(&self.tokenizer, logits);
        }
    }

    /// Runs the last token of every request whose prompt is done.
    fn decode(&mut self) {
        let is_ready = |sequence: &&mut Sequence| !sequence.ended && sequence.pending.len() == 1;
        let mut ready: Vec<_> = self.running.iter_mut().filter(is_ready).collect();
        if ready.is_empty() {
            return;
        }
        let mut segments: Vec<_> = ready
            .iter_mut()
            .map(|sequence| Segment { cache: &mut sequence.cache, tokens: &sequence.pending })
            .collect();
        let logits = self.model.extend(&self.kernels, &mut self.scratch, &mut segments);
        self.shared.tokens.fetch_add(ready.len() as u64, Ordering::Relaxed);
        for (sequence, logits) in ready.into_iter().zip(logits.chunks_exact(self.model.config.vocab_size)) {
            sequence.say(&self.tokenizer, logits);
        }
    }

    fn remove_ended(&mut self) {
        let mut took = Vec::new();
        self.running.retain(|sequence| {
            if sequence.ended {
                took.push(sequence.started.elapsed().as_secs_f64());
            }
            // Nobody listens to a closed channel: the client is gone.
            !sequence.ended && !sequence.events.is_closed()
        });
        let mut queue = self.shared.lock();
        queue.running = self.running.len();
        for took in took {
            queue.mean_s += 0.2 * (took - queue.mean_s);
        }
    }
}

impl Sequence {
    fn is_prefilling(&self) -> bool {
        1 < self.pending.len()
    }

    /// Chooses the next token and tells the client what that means.
    fn say(&mut self, tokenizer: &Tokenizer, logits: &[f32]) {
        let token = self.sampler.next(tokenizer, logits);
        self.tokens += 1;
        let mut stopped = tokenizer.is_end(token);
        let (mut text, bytes) = (String::new(), tokenizer.token_bytes(token).filter(|_| !stopped));
        for &byte in bytes.unwrap_or_default() {
            let piece = self.text.push(byte);
            text.push_str(&piece.text);
            stopped = piece.stopped;
            if stopped {
                break;
            }
        }
        self.send(text);
        if stopped || self.tokens == self.max_tokens {
            let rest = self.text.finish();
            self.send(rest);
            let reason = if stopped { Finish::Stop } else { Finish::Length };
            // A client that is gone needs no end.
            let _ = self.events.send(Event::End { reason, tokens: self.tokens });
            self.ended = true;
        }
        self.pending.clear();
        self.pending.push(token);
    }

    fn send(&self, text: String) {
        if !text.is_empty() {
            let _ = self.events.send(Event::Text(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;
    use crate::tokenizer::EOS;

    fn engine(max_queue: usize) -> Engine {
        let mut model = Model::new(ModelConfig::preset("tiny").unwrap(), 5);
        // An untrained model's texts differ more, the larger its weights are.
        model.parameters.iter_mut().for_each(|value| *value *= 3.0);
        // It never ends a text by itself.
        let width = model.config.hidden_size;
        model.layout.embedding.of_mut(&mut model.parameters)[EOS as usize * width..][..width].fill(0.0);
        Engine::start(model, Tokenizer::bytes(), Cpu::new(2), max_queue)
    }

    fn greedy(prompt: &str, max_tokens: usize) -> Request {
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };
        Request { prompt: Tokenizer::bytes().encode(prompt, true), max_tokens, sampling, stop: Vec::new() }
    }

    fn collect(mut receiver: UnboundedReceiver<Event>) -> (String, Finish, usize) {
        let mut text = String::new();
        loop {
            match receiver.blocking_recv().expect("an end") {
                Event::Text(piece) => text.push_str(&piece),
                Event::End { reason, tokens } => return (text, reason, tokens),
            }
        }
    }

    #[test]
    fn a_request_gets_the_same_text_alone_and_in_company() {
        let engine = engine(100);
        let long = "a long prompt that is cut into pieces ".repeat(9);
        let prompts: Vec<_> = (0..24).map(|i| format!("{}{i}", &long[..i * 14])).collect();
        let submit = |prompt: &String| engine.submit(greedy(prompt, 20)).unwrap();
        let alone: Vec<_> = prompts.iter().map(|prompt| collect(submit(prompt))).collect();
        let receivers: Vec<_> = prompts.iter().map(submit).collect();
        let together: Vec<_> = receivers.into_iter().map(collect).collect();
        assert_eq!(alone, together);
        assert!(alone.iter().any(|answer| answer.0 != alone[0].0), "all texts are {:?}", alone[0]);
    }

    #[test]
    fn a_full_queue_refuses_and_says_when_to_come_back() {
        let engine = engine(2);
        let mut taken = Vec::new();
        let refusal = loop {
            match engine.submit(greedy("prompt", 900)) {
                Ok(receiver) => taken.push(receiver),
                Err(refusal) => break refusal,
            }
        };
        assert!(matches!(refusal, Refusal::Full { max_queue: 2, retry_after_s: 1.. }), "{refusal:?}");
        assert!(2 <= taken.len());
        // Cancelled requests leave their places.
        drop(taken);
        engine.submit(greedy("prompt", 1)).unwrap();
    }

    #[test]
    fn a_cancelled_request_stops_running() {
        let engine = engine(4);
        let mut receiver = engine.submit(greedy("prompt", 1_000)).unwrap();
        assert!(matches!(receiver.blocking_recv(), Some(Event::Text(_))));
        drop(receiver);
        let shared = Arc::clone(&engine.shared);
        // Waits for all that runs.
        drop(engine);
        let tokens = shared.tokens.load(Ordering::Relaxed);
        assert!(tokens < 500, "{tokens} tokens");
    }

    #[test]
    fn a_stopping_engine_finishes_what_it_took_and_takes_no_more() {
        let engine = engine(4);
        let receiver = engine.submit(greedy("prompt", 30)).unwrap();
        engine.stop();
        assert_eq!(engine.submit(greedy("prompt", 1)).err(), Some(Refusal::Stopping));
        let (_, reason, tokens) = collect(receiver);
        assert!(tokens == 30 || reason == Finish::Stop);
    }

    #[test]
    fn a_stop_string_ends_the_text_and_is_not_part_of_it() {
        let engine = engine(4);
        let (text, ..) = collect(engine.submit(greedy("prompt", 40)).unwrap());
        let stop: String = text.chars().skip(5).take(2).collect();
        let request = Request { stop: vec![stop.clone()], ..greedy("prompt", 40) };
        let (stopped, reason, _) = collect(engine.submit(request).unwrap());
        assert_eq!((stopped.as_str(), reason), (text.split(&stop).next().unwrap(), Finish::Stop));
    }
}
