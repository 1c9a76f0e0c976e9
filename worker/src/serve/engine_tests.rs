use super::*;
use crate::kernels::{Cpu, Precision};
use crate::model::ModelConfig;
use crate::serve::grammar::{Grammar, Grammars};
use crate::tokenizer::EOS;

/// An engine over an untrained model.
fn engine_of(blocks: usize, max_queue: usize, precision: Precision) -> Engine {
    let mut model = Model::new(ModelConfig::preset("tiny").unwrap(), 5);
    // Its texts differ more, the larger its weights are.
    model.weights.parameters.iter_mut().for_each(|value| *value *= 3.0);
    // It never ends a text by itself.
    let width = model.config.hidden_size;
    model.layout.embedding.of_mut(&mut model.weights.parameters)[EOS as usize * width..][..width].fill(0.0);
    model.compact(precision);
    let limits = Limits { max_queue, blocks };
    Engine::start(model, Tokenizer::bytes(), Cpu::with_precision(2, precision), limits).unwrap()
}

fn engine(max_queue: usize) -> Engine {
    engine_of(1024, max_queue, Precision::F32)
}

fn greedy(prompt: &str, max_tokens: usize) -> Request {
    Request { prompt: Tokenizer::bytes().encode(prompt, true), max_tokens, ..Request::default() }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Collected {
    text: String,
    reason: Option<Finish>,
    tokens: usize,
    cached: usize,
    likelihoods: Vec<Likelihood>,
    prompt: Vec<Likelihood>,
    hidden: Vec<f32>,
}

/// All answers that share a channel.
fn collect_all(mut receiver: UnboundedReceiver<(usize, Event)>, count: usize) -> Vec<Collected> {
    let mut all = vec![Collected::default(); count];
    while all.iter().any(|one| one.reason.is_none()) {
        let (index, event) = receiver.blocking_recv().expect("an end");
        let one = &mut all[index];
        match event {
            Event::Prompt(likelihoods) => one.prompt = likelihoods,
            Event::Hidden(hidden) => one.hidden = hidden,
            Event::Text { text, likelihood } => {
                one.text.push_str(&text);
                one.likelihoods.extend(likelihood);
            }
            Event::End { reason, tokens, cached } => {
                (one.reason, one.tokens, one.cached) = (Some(reason), tokens, cached);
            }
        }
    }
    all
}

fn run(engine: &Engine, request: Request) -> Collected {
    collect_all(engine.submit(vec![request]).unwrap(), 1).remove(0)
}

/// Prompts with and without a common beginning, shorter and longer than a pass takes.
fn prompts() -> Vec<String> {
    let long = "a long prompt that is cut into pieces ".repeat(9);
    (0..24)
        .map(
            |i| {
                if i % 3 == 0 {
                    format!("{i} {}", &long[..i * 14])
                } else {
                    format!("{}{i}", &long[..i * 14])
                }
            },
        )
        .collect()
}

#[test]
fn a_request_gets_the_same_text_alone_in_company_from_the_cache_and_after_giving_its_blocks_up() {
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let prompts = prompts();
        // Nothing is known to a new engine.
        let alone: Vec<_> =
            prompts.iter().map(|prompt| run(&engine_of(64, 1, precision), greedy(prompt, 70))).collect();
        assert!(alone.iter().all(|answer| answer.cached == 0 && answer.tokens == 70));
        assert!(alone.iter().any(|answer| answer.text != alone[0].text), "all texts are {:?}", alone[0]);
        // The small one has room for two or three of them.
        for blocks in [1024, 64] {
            let engine = engine_of(blocks, 100, precision);
            for round in 0..2 {
                let requests = prompts.iter().map(|prompt| greedy(prompt, 70)).collect();
                let together = collect_all(engine.submit(requests).unwrap(), prompts.len());
                for (alone, together) in alone.iter().zip(&together) {
                    assert_eq!(
                        (&alone.text, alone.tokens),
                        (&together.text, together.tokens),
                        "{blocks} {round}"
                    );
                }
                assert!(together.iter().any(|answer| 16 <= answer.cached), "{blocks} {round}");
            }
            let shared = Arc::clone(&engine.shared);
            // The last round is counted when it has ended.
            drop(engine);
            let metrics = shared.metrics();
            let (preemptions, left) = (metrics.preemptions, metrics.blocks);
            assert_eq!(preemptions == 0, blocks == 1024, "{preemptions} preemptions of {blocks} blocks");
            assert_eq!(left, (0, blocks), "every block was given back");
        }
    }
}

#[test]
fn a_beginning_that_was_said_is_not_taken_for_a_prompt() {
    let prompt = "water finds its way";
    let engine = engine(4);
    let first = run(&engine, greedy(prompt, 60));
    let again = format!("{prompt}{}", first.text);
    let known = run(&engine, greedy(&again, 40));
    let fresh = run(&self::engine(4), greedy(&again, 40));
    assert_eq!(known.text, fresh.text);
    assert_eq!(run(&engine, greedy(&again, 40)).text, fresh.text);
}

#[test]
fn a_prompt_is_found_in_whole_blocks_and_its_last_token_is_always_computed() {
    let engine = engine(4);
    for (length, cached) in [(15, 0), (16, 0), (17, 16), (33, 32), (300, 288)] {
        // A text has one token more than bytes.
        let prompt: String = (0..length - 1).map(|i| char::from(b'a' + (i * length % 26) as u8)).collect();
        assert_eq!(run(&engine, greedy(&prompt, 1)).cached, 0);
        assert_eq!(run(&engine, greedy(&prompt, 1)).cached, cached, "{length} tokens");
    }
}

#[test]
fn a_request_that_is_larger_than_the_cache_is_refused_and_one_that_fills_it_runs() {
    let engine = engine_of(4, 4, Precision::F32);
    let refusal = engine.submit(vec![greedy("prompt", 58)]).err();
    assert_eq!(refusal, Some(Refusal::TooLong { tokens: 65, capacity: 64 }));
    let requests = (0..3).map(|_| greedy("prompt", 57)).collect();
    assert!(collect_all(engine.submit(requests).unwrap(), 3).iter().all(|answer| answer.tokens == 57));
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_back() {
    let engine = engine(2);
    let mut taken = Vec::new();
    let refusal = loop {
        match engine.submit(vec![greedy("prompt", 900)]) {
            Ok(receiver) => taken.push(receiver),
            Err(refusal) => break refusal,
        }
    };
    assert!(matches!(refusal, Refusal::Full { max_queue: 2, retry_after_s: 1.. }), "{refusal:?}");
    assert!(2 <= taken.len());
    assert_eq!(engine.metrics().outcomes["refused"], 1);
    // Cancelled requests leave their places.
    drop(taken);
    engine.submit(vec![greedy("prompt", 1)]).unwrap();
}

#[test]
fn a_cancelled_request_stops_running() {
    let engine = engine(4);
    let mut receiver = engine.submit(vec![greedy("prompt", 1_000)]).unwrap();
    assert!(matches!(receiver.blocking_recv(), Some((0, Event::Text { .. }))));
    drop(receiver);
    let shared = Arc::clone(&engine.shared);
    // Waits for all that runs.
    drop(engine);
    let metrics = shared.metrics();
    assert!(metrics.computed_tokens < 500, "{} tokens", metrics.computed_tokens);
    assert_eq!(metrics.outcomes["cancelled"], 1);
}

#[test]
fn a_request_ends_at_its_deadline_whether_it_runs_or_waits() {
    let engine = engine(4);
    let late = Request { deadline: Some(Instant::now()), ..greedy("prompt", 900) };
    let answer = run(&engine, late);
    assert_eq!((answer.reason, answer.tokens), (Some(Finish::Deadline), 0));
    let soon = Instant::now() + std::time::Duration::from_millis(30);
    let answer = run(&engine, Request { deadline: Some(soon), ..greedy("prompt", 1_000) });
    assert!(answer.reason == Some(Finish::Deadline) && answer.tokens < 1_000, "{answer:?}");
    let shared = Arc::clone(&engine.shared);
    drop(engine);
    assert_eq!(shared.metrics().outcomes["deadline"], 2);
}

#[test]
fn a_stopping_engine_finishes_what_it_took_and_takes_no_more() {
    let engine = engine(4);
    let receiver = engine.submit(vec![greedy("prompt", 30)]).unwrap();
    engine.stop();
    assert_eq!(engine.submit(vec![greedy("prompt", 1)]).err(), Some(Refusal::Stopping));
    assert_eq!(collect_all(receiver, 1)[0].tokens, 30);
}

#[test]
fn a_stop_string_or_token_ends_the_text_and_is_not_part_of_it() {
    let engine = engine(4);
    let text = run(&engine, greedy("prompt", 40)).text;
    let stop: String = text.chars().skip(5).take(2).collect();
    let stopped = run(&engine, Request { stop: vec![stop.clone()], ..greedy("prompt", 40) });
    assert_eq!(
        (stopped.text.as_str(), stopped.reason),
        (text.split(&stop).next().unwrap(), Some(Finish::Stop))
    );
    let told = run(&engine, Request { likelihoods: Some(0), ..greedy("prompt", 40) });
    let tokens: Vec<u32> = told.likelihoods.iter().map(|likelihood| likelihood.token).collect();
    let end = tokens.iter().position(|token| *token == tokens[6]).unwrap();
    let stopped = run(&engine, Request { stop_tokens: vec![tokens[6]], ..greedy("prompt", 40) });
    let before: Vec<u8> = tokens[..end].iter().map(|token| *token as u8).collect();
    assert_eq!((stopped.text, stopped.reason), (String::from_utf8_lossy(&before).into(), Some(Finish::Stop)));
    assert_eq!(stopped.tokens, end + 1);
}

/// What the model said by itself is as likely as the same text in a prompt, but for the rounding of the two paths.
#[test]
fn likelihoods_of_a_prompt_are_those_of_the_same_tokens_said() {
    let engine = engine(4);
    let request = Request { likelihoods: Some(2), ..greedy("prompt", 30) };
    let said = run(&engine, request.clone());
    assert_eq!(said.likelihoods.len(), 30);
    let tokens: Vec<u32> = said.likelihoods.iter().map(|likelihood| likelihood.token).collect();
    assert!(said.likelihoods.iter().all(|likelihood| likelihood.top.len() == 2));
    let prompt = [&request.prompt[..], &tokens].concat();
    let told = run(&engine, Request { prompt, max_tokens: 0, prompt_likelihoods: true, ..request.clone() });
    assert_eq!((told.tokens, told.prompt.len()), (0, 36));
    for (said, told) in said.likelihoods.iter().zip(&told.prompt[6..]) {
        assert!(said.token == told.token && (said.logprob - told.logprob).abs() < 1e-3, "{said:?} {told:?}");
    }
}

#[test]
fn the_hidden_vector_of_a_prompt_is_the_same_from_the_cache() {
    let engine = engine(4);
    let request = Request { hidden: true, ..greedy(&"embed me ".repeat(9), 0) };
    let (first, again) = (run(&engine, request.clone()), run(&engine, request));
    assert_eq!((first.hidden.len(), &first.hidden), (128, &again.hidden));
    assert!(first.cached == 0 && 64 <= again.cached);
}

#[test]
fn a_schema_holds_in_company_with_likelihoods_and_after_giving_blocks_up() {
    let schema = serde_json::json!({
        "type": "object", "required": ["name", "sizes"], "additionalProperties": false,
        "properties": {
            "name": { "type": "string", "maxLength": 20 },
            "sizes": {
                "type": "array", "minItems": 2, "maxItems": 9,
                "items": { "type": "integer", "minimum": 0, "maximum": 999 },
            },
        },
    });
    let constraint = Grammars::new(Tokenizer::bytes()).constraint(&Grammar::Json(schema)).unwrap();
    let prompts = prompts();
    // Every third one says what it likes.
    let request = |i: usize| Request {
        constraint: (i % 3 != 2).then(|| constraint.clone()),
        sampling: Sampling { temperature: 1.0, seed: i as u64, ..Sampling::default() },
        likelihoods: Some(1),
        ..greedy(&prompts[i], 160)
    };
    let alone: Vec<_> = (0..24).map(|i| run(&engine_of(64, 1, Precision::F32), request(i))).collect();
    for (i, answer) in alone.iter().enumerate().filter(|(i, _)| i % 3 != 2) {
        assert_eq!(answer.reason, Some(Finish::Stop), "{answer:?}");
        let value: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
        assert!(value["name"].as_str().unwrap().chars().count() <= 20, "{value}");
        assert!((2..=9).contains(&value["sizes"].as_array().unwrap().len()), "{value}");
        assert_eq!(value.as_object().unwrap().len(), 2, "{value}");
        // The likelihoods are the model's, of the tokens that were taken.
        let said: Vec<u8> = answer.likelihoods.iter().map(|likelihood| likelihood.token as u8).collect();
        assert_eq!(String::from_utf8_lossy(&said), answer.text, "{i}");
    }
    for blocks in [1024, 64] {
        let engine = engine_of(blocks, 100, Precision::F32);
        let together = collect_all(engine.submit((0..24).map(request).collect()).unwrap(), 24);
        for (alone, together) in alone.iter().zip(&together) {
            assert_eq!((&alone.text, alone.reason), (&together.text, together.reason), "{blocks}");
        }
        assert_eq!(engine.metrics().preemptions == 0, blocks == 1024);
    }
}
