//! The engine's thread: owns the model and its cache, and runs all requests at the same time.
//!
//! Each round is one pass: the next token of every request whose prompt is done, and up to [`PROMPT_TOKENS`] tokens of
//! prompts, the oldest first. A request gets the same tokens alone and in company, with its beginning found in the
//! cache or not, and after it had to give its blocks up: see [`inference`](crate::model::inference) for why a position's
//! bits depend on nothing of that. What makes it so here is that a token of the prompt is always computed as one, and a
//! token that was said always as such: a known block says which of its tokens were said.
//!
//! Where no block is free, the youngest request gives up all of its blocks and waits at the head of the queue. It goes
//! on from what is still known of them; the rest is computed again.

use super::blocks::{Blocks, Content, ROOT, SAID};
use super::engine::{Event, Finish, MAX_RUNNING, Request, Shared};
use super::grammar::Constraint;
use super::sampling::{Likelihood, Sampler};
use super::text::TextStream;
use crate::kernels::{BLOCK, Backend, DeviceError};
use crate::model::Model;
use crate::model::inference::{ScratchOf, Segment};
use crate::tokenizer::Tokenizer;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;

/// Tokens of prompts in a pass: what a running request waits for between two of its tokens.
pub const PROMPT_TOKENS: usize = 256;

/// A request and what it has come to.
pub(super) struct Sequence {
    /// Its number among those that share the channel.
    index: usize,
    request: Request,
    /// The prompt and what was said.
    tokens: Vec<u32>,
    /// How many of them are the prompt.
    prompt: usize,
    /// Positions in the cache.
    done: usize,
    table: Vec<u32>,
    /// What the full blocks hold, by number.
    contents: Vec<u64>,
    /// Tokens of the prompt that were found in the cache, once it has begun.
    cached: Option<usize>,
    sampler: Sampler,
    text: TextStream,
    prompt_likelihoods: Vec<Likelihood>,
    arrived: Instant,
    started: Instant,
    last_token: Option<Instant>,
    events: UnboundedSender<(usize, Event)>,
    /// How it ended.
    outcome: Option<&'static str>,
}

impl Sequence {
    pub fn new(index: usize, mut request: Request, events: UnboundedSender<(usize, Event)>) -> Sequence {
        let tokens = std::mem::take(&mut request.prompt);
        assert!(!tokens.is_empty(), "a request without a prompt");
        let now = Instant::now();
        Sequence {
            index,
            prompt: tokens.len(),
            done: 0,
            table: Vec::new(),
            contents: Vec::new(),
            cached: None,
            sampler: Sampler::new(request.sampling.clone(), &tokens),
            text: TextStream::new(&request.stop),
            prompt_likelihoods: Vec::new(),
            arrived: now,
            started: now,
            last_token: None,
            events,
            outcome: None,
            tokens,
            request,
        }
    }

    /// Nobody listens to a closed channel: the client is gone.
    pub fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    fn is_late(&self) -> bool {
        self.request.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Whether only the last token is to be run, and the model said it.
    fn is_saying(&self) -> bool {
        self.done + 1 == self.tokens.len() && self.prompt <= self.done
    }

    fn missing_blocks(&self) -> usize {
        self.tokens.len().div_ceil(BLOCK) - self.table.len()
    }

    /// What its block `index` holds once it is full.
    fn content(&self, index: usize) -> Content {
        let mark = |position| if position < self.prompt { 0 } else { SAID };
        Content {
            before: index.checked_sub(1).map_or(ROOT, |before| self.contents[before]),
            tokens: std::array::from_fn(|i| self.tokens[index * BLOCK + i] | mark(index * BLOCK + i)),
        }
    }

    /// Goes on behind the blocks that are known to hold what comes next. The last token is always computed, for what
    /// follows it.
    fn adopt(&mut self, blocks: &mut Blocks) {
        if self.request.prompt_likelihoods {
            return;
        }
        while self.done.is_multiple_of(BLOCK) && self.done + BLOCK < self.tokens.len() {
            let index = self.done / BLOCK;
            let Some((block, number)) = blocks.find(&self.content(index)) else { break };
            match self.table.get_mut(index) {
                Some(own) => blocks.release([std::mem::replace(own, block)]),
                None => self.table.push(block),
            }
            self.contents.push(number);
            self.done += BLOCK;
        }
    }

    /// Makes its full blocks known.
    fn publish(&mut self, blocks: &mut Blocks) {
        for index in self.contents.len()..self.done / BLOCK {
            let (block, number) = blocks.publish(self.table[index], self.content(index));
            self.table[index] = block;
            self.contents.push(number);
        }
    }

    fn release(&mut self, blocks: &mut Blocks) {
        blocks.release(std::mem::take(&mut self.table));
        self.contents.clear();
        self.done = 0;
    }

    fn send(&self, event: Event) {
        // A client that is gone needs no event.
        let _ = self.events.send((self.index, event));
    }

    /// The end, with what is left of the text.
    fn end(&mut self, reason: Finish) {
        let text = self.text.finish();
        if !text.is_empty() {
            self.send(Event::Text { text, likelihood: None });
        }
        let tokens = self.tokens.len() - self.prompt;
        self.send(Event::End { reason, tokens, cached: self.cached.unwrap_or(0) });
        self.outcome = Some(match reason {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Deadline => "deadline",
            Finish::Grammar => "grammar",
        });
    }

    /// Likelihoods of the tokens behind those of `logits`, of which the first stands at `start`.
    fn tell_prompt(&mut self, start: usize, logits: &[f32], vocabulary: usize) {
        let top = self.request.likelihoods.unwrap_or(0);
        for (position, logits) in (start + 1..self.prompt).zip(logits.chunks_exact(vocabulary)) {
            // What was computed again was told before.
            if self.prompt_likelihoods.len() + 1 == position {
                self.prompt_likelihoods.push(Likelihood::of(logits, self.tokens[position], top));
            }
        }
        if self.done == self.prompt {
            let likelihoods = std::mem::take(&mut self.prompt_likelihoods);
            self.request.prompt_likelihoods = false;
            self.send(Event::Prompt(likelihoods));
        }
    }

    /// Chooses the next token by `logits` and tells the client what that means.
    fn say(&mut self, tokenizer: &Tokenizer, logits: &[f32]) {
        if self.request.max_tokens == 0 {
            return self.end(Finish::Length);
        }
        let constraint = &mut self.request.constraint;
        let Ok(allowed) = constraint.as_mut().map(Constraint::allowed).transpose() else {
            return self.end(Finish::Grammar);
        };
        let token = self.sampler.next(tokenizer, logits, allowed.as_ref());
        let Ok(complete) = constraint.as_mut().map_or(Ok(false), |constraint| constraint.take(token)) else {
            return self.end(Finish::Grammar);
        };
        self.tokens.push(token);
        let ends = tokenizer.is_end(token) && !self.request.ignore_end;
        let mut stopped = ends || self.request.stop_tokens.contains(&token);
        let marks = &self.request.marks;
        let mark = marks.iter().find(|(mark, _)| *mark == token).map(|(_, text)| text.as_bytes());
        let bytes = tokenizer.token_bytes(token).or(mark).filter(|_| !stopped).unwrap_or_default();
        let piece = self.text.push_all(bytes);
        let likelihood = self.request.likelihoods.filter(|_| !stopped);
        stopped |= piece.stopped || complete;
        let likelihood = likelihood.map(|top| Likelihood::of(logits, token, top));
        if !piece.text.is_empty() || likelihood.is_some() {
            self.send(Event::Text { text: piece.text, likelihood });
        }
        if stopped {
            self.end(Finish::Stop);
        } else if self.tokens.len() - self.prompt == self.request.max_tokens {
            self.end(Finish::Length);
        }
    }
}

pub(super) struct Runner<K: Backend> {
    model: Model<K::Weights>,
    tokenizer: Tokenizer,
    kernels: K,
    cache: K::Cache,
    blocks: Blocks,
    scratch: ScratchOf<K>,
    /// The oldest first.
    running: Vec<Sequence>,
    shared: Arc<Shared>,
}

impl<K: Backend> Runner<K> {
    /// `cache` has so many `blocks`.
    pub fn new(
        model: Model<K::Weights>,
        tokenizer: Tokenizer,
        kernels: K,
        (cache, blocks): (K::Cache, usize),
        shared: Arc<Shared>,
    ) -> Runner<K> {
        let (scratch, running) = (ScratchOf::<K>::default(), Vec::new());
        Runner { model, tokenizer, kernels, cache, blocks: Blocks::new(blocks), scratch, running, shared }
    }

    pub fn run(mut self) {
        while self.admit() {
            self.make_room();
            let pass = self.plan();
            if let Err(error) = self.pass(&pass) {
                return self.shared.fail(error);
            }
            self.remove_ended();
        }
    }

    /// Takes waiting requests while there is room; waits if there is nothing to do. False at the end.
    fn admit(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.lock();
        loop {
            if queue.abandoned {
                return false;
            }
            queue.waiting.retain_mut(|sequence| {
                if sequence.is_late() {
                    sequence.end(Finish::Deadline);
                }
                let outcome = sequence.outcome.or(sequence.is_cancelled().then_some("cancelled"));
                outcome.inspect(|outcome| shared.metrics().count(outcome)).is_none()
            });
            while self.running.len() < MAX_RUNNING
                && let Some(sequence) = queue.waiting.front_mut()
                && begin(sequence, &mut self.blocks, self.running.len())
            {
                self.running.extend(queue.waiting.pop_front());
            }
            queue.running = self.running.len();
            if !self.running.is_empty() {
                return true;
            }
            if queue.stopping {
                return false;
            }
            queue = shared.changed.wait(queue).expect("no panic while locked");
        }
    }

    /// Finds a block for every token; where there is none, the youngest requests go back to the queue.
    fn make_room(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].missing_blocks() == 0 {
                index += 1;
            } else if let Some(block) = self.blocks.take() {
                self.running[index].table.push(block);
            } else {
                assert!(1 < self.running.len(), "a request is larger than the cache");
                let mut youngest = self.running.pop().expect("one is running");
                youngest.release(&mut self.blocks);
                self.shared.metrics().preemptions += 1;
                self.shared.lock().waiting.push_front(youngest);
            }
        }
    }

    /// Which requests run how many tokens, by their place.
    fn plan(&mut self) -> Vec<(usize, usize)> {
        let (mut pass, mut budget) = (Vec::new(), PROMPT_TOKENS);
        for (index, sequence) in self.running.iter_mut().enumerate() {
            if sequence.is_saying() {
                pass.push((index, 1));
                continue;
            }
            // An older request may have computed the same beginning by now.
            sequence.adopt(&mut self.blocks);
            let count = budget.min(sequence.tokens.len() - sequence.done);
            budget -= count;
            if 0 < count {
                sequence.cached.get_or_insert(sequence.done);
                pass.push((index, count));
            }
        }
        pass
    }

    fn pass(&mut self, pass: &[(usize, usize)]) -> Result<(), DeviceError> {
        let began = Instant::now();
        let saying = pass.iter().filter(|(index, _)| self.running[*index].is_saying()).count() as u64;
        let prompts: usize = pass.iter().map(|(_, count)| count).sum::<usize>() - saying as usize;
        let segments: Vec<_> = pass
            .iter()
            .map(|&(index, count)| {
                let sequence = &self.running[index];
                let (start, end) = (sequence.done, sequence.done + count);
                let wanted = match sequence.request.prompt_likelihoods {
                    true => count,
                    false => usize::from(end == sequence.tokens.len()),
                };
                let prompt = sequence.prompt.saturating_sub(start).min(count);
                Segment {
                    table: &sequence.table,
                    start,
                    tokens: &sequence.tokens[start..end],
                    prompt,
                    wanted,
                    hidden: sequence.request.hidden,
                }
            })
            .collect();
        let wanted: Vec<_> = segments.iter().map(|segment| segment.wanted).collect();
        let outputs = self.model.extend(&self.kernels, &mut self.cache, &mut self.scratch, &segments)?;
        let (mut logits, mut hidden) = (outputs.logits, outputs.hidden);
        let (vocabulary, width) = (self.model.config.vocab_size, self.model.config.hidden_size);
        let (mut firsts, mut nexts) = (Vec::new(), Vec::new());
        for (&(index, count), wanted) in pass.iter().zip(wanted) {
            let sequence = &mut self.running[index];
            let (own, rest) = logits.split_at(wanted * vocabulary);
            let (vectors, others) = hidden.split_at((wanted * width).min(hidden.len()));
            (logits, hidden) = (rest, others);
            let start = sequence.done;
            sequence.done += count;
            sequence.publish(&mut self.blocks);
            if sequence.request.prompt_likelihoods {
                sequence.tell_prompt(start, own, vocabulary);
            }
            if sequence.done < sequence.tokens.len() {
                continue;
            }
            if std::mem::take(&mut sequence.request.hidden) {
                sequence.send(Event::Hidden(vectors[vectors.len() - width..].to_vec()));
            }
            let said = sequence.tokens.len();
            sequence.say(&self.tokenizer, &own[own.len() - vocabulary..]);
            if said == sequence.tokens.len() {
                continue;
            }
            let now = Instant::now();
            match sequence.last_token.replace(now) {
                None => firsts.push((now - sequence.arrived).as_secs_f64()),
                Some(last) => nexts.push((now - last).as_secs_f64()),
            }
        }
        // Not before: choosing tokens takes time, and requests that come count themselves.
        let mut metrics = self.shared.metrics();
        metrics.work.add_pass(began.elapsed(), prompts as u64, saying);
        metrics.work.requests += firsts.len() as u64;
        metrics.work.said_tokens += (firsts.len() + nexts.len()) as u64;
        metrics.computed_tokens += pass.iter().map(|(_, count)| *count as u64).sum::<u64>();
        metrics.said_tokens += (firsts.len() + nexts.len()) as u64;
        firsts.into_iter().for_each(|took| metrics.first_token.observe(took));
        nexts.into_iter().for_each(|took| metrics.next_token.observe(took));
        Ok(())
    }

    fn remove_ended(&mut self) {
        let (mut took, shared) = (Vec::new(), Arc::clone(&self.shared));
        let mut metrics = shared.metrics();
        self.running.retain_mut(|sequence| {
            if sequence.outcome.is_none() && sequence.is_late() {
                sequence.end(Finish::Deadline);
            }
            let Some(outcome) = sequence.outcome.or(sequence.is_cancelled().then_some("cancelled")) else {
                return true;
            };
            metrics.count(outcome);
            metrics.prompt_tokens += sequence.prompt as u64;
            metrics.cached_tokens += sequence.cached.unwrap_or(0) as u64;
            took.push(sequence.started.elapsed().as_secs_f64());
            sequence.release(&mut self.blocks);
            false
        });
        metrics.running = self.running.len();
        metrics.blocks.0 = self.blocks.total() - self.blocks.available();
        drop(metrics);
        let mut queue = shared.lock();
        queue.running = self.running.len();
        for took in took {
            queue.mean_s += 0.2 * (took - queue.mean_s);
        }
    }
}

/// Gives a request the blocks of all its tokens, and leaves one for each that is `running`. Whether there were enough.
fn begin(sequence: &mut Sequence, blocks: &mut Blocks, running: usize) -> bool {
    sequence.adopt(blocks);
    let missing = sequence.missing_blocks();
    if 0 < running && blocks.available() < missing + running {
        sequence.release(blocks);
        return false;
    }
    for _ in 0..missing {
        // Alone, a request has room: larger ones than the cache were refused.
        sequence.table.extend(blocks.take());
    }
    sequence.started = Instant::now();
    true
}
