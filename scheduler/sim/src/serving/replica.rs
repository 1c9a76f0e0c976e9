//! A replica in virtual time: a roofline, and continuous batching as the bundled server does it.
//!
//! A pass takes the next token of every request that is behind its prompt, and up to 512 tokens of prompts,
//! the oldest first. It takes as long as the longer of its arithmetic (two operations a value of the model and token, at half
//! of what the datasheet says) and its reading (all values of the model, and the keys and values of all that is behind its
//! prompt, at seven tenths of what the datasheet says). A request waits while there is no room for all of its keys and values.
//! Beginnings that were computed before are computed again.

use std::collections::VecDeque;

use aquifer_core::serving::Work;

use super::trace::Request;

/// Tokens of prompts in a pass.
const PROMPT_TOKENS: u64 = 512;
/// Requests that run at the same time, at most.
const MOST_RUNNING: usize = 64;
/// Part of the arithmetic and of the reading of the datasheet that is had.
const ARITHMETIC: f64 = 0.5;
const READING: f64 = 0.7;
/// Part of the memory that is for values, keys and values.
const USABLE: f64 = 0.9;
/// Times are told of so long, in microseconds, and of so many tokens at most.
const WINDOW_US: u64 = 60_000_000;
const MOST_TOLD: usize = 4096;

/// The model that is served: one of eight billion values of a byte, whose keys and values take 128 KiB a token.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Model {
    pub values: f64,
    pub value_bytes: f64,
    pub token_bytes: f64,
}

/// Llama 3 of 8B, in int8, with keys and values in half precision.
pub const MODEL: Model = Model { values: 8e9, value_bytes: 1.0, token_bytes: 131_072.0 };

/// What a datasheet says of a class.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Class {
    pub model: &'static str,
    pub tflops: f64,
    pub memory_gbs: u32,
    pub memory_gb: u64,
}

/// The classes of the pools here: half precision without sparsity, as in the agent's table.
pub const CLASSES: [Class; 4] = [
    Class { model: "t4", tflops: 65.0, memory_gbs: 320, memory_gb: 16 },
    Class { model: "l4", tflops: 121.0, memory_gbs: 300, memory_gb: 24 },
    Class { model: "a100", tflops: 312.0, memory_gbs: 2039, memory_gb: 80 },
    Class { model: "h100", tflops: 989.0, memory_gbs: 3350, memory_gb: 80 },
];

impl Class {
    /// In thousandths of the reference device.
    pub fn speed_milli(&self) -> u32 {
        (self.tflops / 312.0 * 1000.0).round() as u32
    }

    /// Tokens whose keys and values it holds beside the model.
    fn room(&self) -> u64 {
        let bytes = self.memory_gb as f64 * 1e9 * USABLE - MODEL.values * MODEL.value_bytes;
        (bytes.max(0.0) / MODEL.token_bytes) as u64
    }
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Its place in the trace.
    pub number: usize,
    /// What it is.
    pub request: Request,
    /// Tokens of its prompt that are computed.
    done: u64,
    said: u64,
    /// When it said its first token, and its latest.
    first_us: u64,
    last_us: u64,
}

/// What became of a request, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Its place in the trace.
    pub number: usize,
    /// From its coming to its first token.
    pub ttft_us: u64,
    /// From one token to the next, on average; 0: it has one.
    pub tpot_us: u64,
}

impl Asked {
    /// It has just come.
    pub fn new(number: usize, request: Request) -> Asked {
        Asked { number, request, done: 0, said: 0, first_us: 0, last_us: 0 }
    }
}

/// One replica.
#[derive(Clone, Debug)]
pub struct Replica {
    /// What it runs on.
    pub class: Class,
    waiting: VecDeque<Asked>,
    running: Vec<Asked>,
    /// Tokens of prompts by request that the pass computes, which ends then.
    pass: Option<(u64, Vec<u64>)>,
    /// What it has done.
    pub work: Work,
    /// When a request last came.
    pub asked_us: u64,
    firsts: VecDeque<(u64, u64)>,
    nexts: VecDeque<(u64, u64)>,
}

impl Replica {
    /// It has begun to answer.
    pub fn new(class: Class) -> Replica {
        let (waiting, running) = (VecDeque::new(), Vec::new());
        let (firsts, nexts) = (VecDeque::new(), VecDeque::new());
        Replica { class, waiting, running, pass: None, work: Work::default(), asked_us: 0, firsts, nexts }
    }

    /// Requests that are answered, and that wait.
    pub fn load(&self) -> (u32, u32) {
        (self.running.len() as u32, self.waiting.len() as u32)
    }

    /// Whether it could ever hold a request.
    pub fn could_hold(&self, request: &Request) -> bool {
        request.prompt + request.said <= self.class.room()
    }

    /// A request comes.
    pub fn ask(&mut self, now_us: u64, asked: Asked) {
        self.waiting.push_back(asked);
        self.asked_us = now_us;
        self.begin(now_us);
    }

    /// When its pass ends.
    pub fn next_us(&self) -> Option<u64> {
        self.pass.as_ref().map(|(end, _)| *end)
    }

    /// Its pass ends; what has been answered.
    pub fn end_pass(&mut self, now_us: u64) -> Vec<Answered> {
        let (_, prompts) = self.pass.take().expect("a pass");
        for (asked, tokens) in self.running.iter_mut().zip(prompts) {
            asked.done += tokens;
            if asked.done < asked.request.prompt {
                continue;
            }
            asked.said += 1;
            let told = if asked.said == 1 { &mut self.firsts } else { &mut self.nexts };
            let since = if asked.said == 1 { asked.request.at_us } else { asked.last_us };
            if told.len() == MOST_TOLD {
                told.pop_front();
            }
            told.push_back((now_us, now_us - since));
            self.work.said_tokens += 1;
            if asked.said == 1 {
                asked.first_us = now_us;
                self.work.requests += 1;
            }
            asked.last_us = now_us;
        }
        let answered = |asked: &Asked| Answered {
            number: asked.number,
            ttft_us: asked.first_us - asked.request.at_us,
            tpot_us: (asked.last_us - asked.first_us) / (asked.said - 1).max(1),
        };
        let ended = self.running.extract_if(.., |asked| asked.said == asked.request.said);
        let ended = ended.map(|asked| answered(&asked)).collect();
        self.begin(now_us);
        ended
    }

    /// Begins a pass, if there is none and something to do.
    fn begin(&mut self, now_us: u64) {
        if self.pass.is_some() {
            return;
        }
        let holds = |asked: &Asked| asked.request.prompt + asked.request.said;
        let mut held: u64 = self.running.iter().map(holds).sum();
        while let Some(next) = self.waiting.front()
            && self.running.len() < MOST_RUNNING
            && held + holds(next) <= self.class.room()
        {
            held += holds(next);
            self.running.extend(self.waiting.pop_front());
        }
        if self.running.is_empty() {
            return;
        }
        let (mut left, mut saying, mut cached) = (PROMPT_TOKENS, 0, 0);
        let mut prompts = Vec::new();
        for asked in &self.running {
            let tokens = left.min(asked.request.prompt - asked.done);
            left -= tokens;
            prompts.push(tokens);
            if asked.done == asked.request.prompt {
                (saying, cached) = (saying + 1, cached + asked.request.prompt + asked.said);
            }
        }
        let tokens = PROMPT_TOKENS - left;
        let arithmetic =
            2.0 * MODEL.values * (tokens + saying) as f64 / (self.class.tflops * 1e12 * ARITHMETIC);
        let bytes = MODEL.values * MODEL.value_bytes + cached as f64 * MODEL.token_bytes;
        let reading = bytes / (f64::from(self.class.memory_gbs) * 1e9 * READING);
        let took_us = (arithmetic.max(reading) * 1e6) as u64 + 1;
        self.count(took_us, tokens, saying);
        self.pass = Some((now_us + took_us, prompts));
    }

    /// As the bundled server counts its passes.
    fn count(&mut self, took_us: u64, tokens: u64, saying: u64) {
        let work = &mut self.work;
        if tokens == 0 {
            (work.steps, work.steps_us) = (work.steps + 1, work.steps_us + took_us);
        } else {
            let step_us = if saying == 0 { 0 } else { work.steps_us.checked_div(work.steps).unwrap_or(0) };
            work.prompt_us += took_us.saturating_sub(step_us);
            work.prompt_tokens += tokens;
        }
    }

    /// The times to the first token and from one to the next that nine of ten of the last minute did not exceed, in
    /// milliseconds.
    pub fn times_ms(&self, now_us: u64) -> (Option<u64>, Option<u64>) {
        let quantile = |told: &VecDeque<(u64, u64)>| {
            let recent = told.iter().filter(|(at, _)| now_us < at + WINDOW_US);
            let mut took: Vec<u64> = recent.map(|(_, took)| *took).collect();
            took.sort_unstable();
            let at = (took.len() * 9).div_ceil(10).saturating_sub(1);
            took.get(at).map(|us| us.div_ceil(1000))
        };
        (quantile(&self.firsts), quantile(&self.nexts))
    }

    /// It ends: what it has not answered is asked anew.
    pub fn end(self) -> impl Iterator<Item = Asked> {
        let anew = |asked: Asked| Asked::new(asked.number, asked.request);
        self.running.into_iter().chain(self.waiting).map(anew)
    }
}
