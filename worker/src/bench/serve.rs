//! Many clients at a time against the engine: what the server gives them, without HTTP.

use super::models::{Server, prepared};
use super::{Bound, Figure};
use crate::kernels::{BLOCK, Cpu};
use crate::random::Random;
use crate::serve::engine::{Engine, Event, Limits, Request};
use crate::serve::metrics::quantile;
use crate::tokenizer::Tokenizer;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What [`serve`] measures.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ServeArgs {
    /// What serves.
    #[command(flatten)]
    pub server: Server,

    /// Clients, each of which asks again when it has its answer
    #[arg(long, default_value_t = 32)]
    pub clients: usize,

    /// Requests in all
    #[arg(long, default_value_t = 64)]
    pub requests: usize,

    /// Tokens of a prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    pub prompt: usize,

    /// Tokens that are generated for each
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    pub generate: usize,
}

/// Requests of many clients: prompts that have nothing in common, then prompts that begin with the same half.
pub fn serve(args: &ServeArgs) -> Vec<Figure> {
    let apart = run(args, 0, "nothing shared");
    let together = run(args, args.prompt / 2, "half of the prompt shared");
    apart.into_iter().chain(together).collect()
}

/// Times of one request, in seconds.
struct Times {
    first: f64,
    next: Vec<f64>,
}

fn run(args: &ServeArgs, shared: usize, name: &str) -> Vec<Figure> {
    let model = prepared(args.server.model, args.server.precision);
    let kernels = Cpu::with_precision(args.server.threads, args.server.precision);
    let blocks = (args.clients + 1) * (args.prompt + args.generate).div_ceil(BLOCK);
    let engine =
        Engine::start(model, Tokenizer::bytes(), kernels, Limits { max_queue: args.clients, blocks })
            .expect("a processor does not fail");
    let (next, times, cached) = (AtomicUsize::new(0), Mutex::new(Vec::new()), AtomicUsize::new(0));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..args.clients {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if args.requests <= number {
                        return;
                    }
                    let mut tokens = prompt(u64::MAX, shared);
                    tokens.extend(prompt(number as u64, args.prompt - shared));
                    let (one, found) = ask(&engine, tokens, args.generate);
                    cached.fetch_add(found, Ordering::Relaxed);
                    times.lock().expect("no panic while locked").push(one);
                }
            });
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    let times = times.into_inner().expect("no panic while locked");
    let mut first: Vec<f64> = times.iter().map(|times| 1e3 * times.first).collect();
    let mut next: Vec<f64> = times.iter().flat_map(|times| &times.next).map(|next| 1e3 * next).collect();
    let generated = (times.len() * args.generate) as f64;
    let found = cached.into_inner() as f64 / (times.len() * args.prompt) as f64;
    let of = |values: &mut [f64], q| quantile(values, q).unwrap_or(0.0);
    let figure =
        |what: &str, value: f64, unit| Figure::new(format!("{name}: {what}"), value, unit, Bound::None);
    vec![
        figure("generated", generated / seconds, "tokens/s"),
        figure("prompts found in the cache", 100.0 * found, "%"),
        figure("first token, half of them", of(&mut first, 0.5), "ms"),
        figure("first token, 99 of 100", of(&mut first, 0.99), "ms"),
        figure("from token to token, half of them", of(&mut next, 0.5), "ms"),
        figure("from token to token, 99 of 100", of(&mut next, 0.99), "ms"),
    ]
}

/// Tokens that are bytes, for the tokenizer that says what they are.
fn prompt(seed: u64, length: usize) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..length).map(|_| (random.bits() % 256) as u32).collect()
}

fn ask(engine: &Engine, prompt: Vec<u32>, generate: usize) -> (Times, usize) {
    let request = Request {
        prompt,
        max_tokens: generate,
        ignore_end: true,
        // Every token is told, also one that is no whole character.
        likelihoods: Some(0),
        ..Request::default()
    };
    let mut last = Instant::now();
    let mut events = engine.submit(vec![request]).expect("the queue has room for all clients");
    let (mut first, mut next) = (None, Vec::new());
    loop {
        match events.blocking_recv().expect("the engine lives").1 {
            Event::Text { likelihood: Some(_), .. } => {
                let took = std::mem::replace(&mut last, Instant::now()).elapsed().as_secs_f64();
                if first.is_none() { first = Some(took) } else { next.push(took) }
            }
            Event::End { cached, .. } => return (Times { first: first.unwrap_or(0.0), next }, cached),
            _ => (),
        }
    }
}
