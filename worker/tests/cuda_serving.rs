//! What serving asks of a card: work that comes again and again is one call, and never another result; weights
//! take the memory that they should. On the fake card of `tests/fake_cuda`.
#![allow(unsafe_code)] // Libraries are opened.

#[path = "support/fake_cuda.rs"]
mod fake_cuda;

use aquifer_worker::kernels::{Backend, Bf16, Card, Cuda, DeviceError, Element, Precision};
use aquifer_worker::model::inference::{ScratchOf, Segment};
use aquifer_worker::model::{Model, ModelConfig};
use aquifer_worker::random::Random;
use aquifer_worker::serve::engine::{Engine, Event, Limits, Request};
use aquifer_worker::serve::sampling::{Likelihood, Sampling};
use aquifer_worker::tokenizer::{EOS, Tokenizer};
use libloading::{Library, Symbol};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The driver of the fake card; its counts are those of the process, and so is the environment that it reads.
struct Driver {
    library: &'static Library,
    _turn: MutexGuard<'static, ()>,
}

impl Driver {
    /// For one test at a time.
    fn get() -> Option<Driver> {
        static TURN: Mutex<()> = Mutex::new(());
        static LIBRARY: OnceLock<Option<&'static Library>> = OnceLock::new();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let library = *LIBRARY.get_or_init(|| {
            let folder = fake_cuda::libraries()?;
            // SAFETY: no other thread of this process reads the environment now: all wait for their turn.
            unsafe { std::env::set_var("AQUIFER_KERNEL_CACHE", "off") };
            let libraries = ["libcuda.so", "libnvrtc.so", "libcublasLt.so"].map(|name| {
                // SAFETY: their start does nothing. They stay open, so that they are found by their names.
                let library = unsafe { Library::new(folder.join(name)) }.unwrap();
                &*Box::leak(Box::new(library))
            });
            Some(libraries[0])
        });
        let driver = Driver { library: library?, _turn: turn };
        driver.say("");
        Some(driver)
    }

    /// What graphs do from now on: see `driver.cpp`.
    fn say(&self, graphs: &str) {
        // SAFETY: other tests wait for their turn, and the threads of this one have ended.
        unsafe { std::env::set_var("FAKE_CUDA_GRAPHS", graphs) };
    }

    /// Calls so far that queued something, and graphs that there are.
    fn counts(&self) -> [usize; 2] {
        let mut counts = [0; 2];
        let [calls, graphs] = &mut counts;
        // SAFETY: the signature is that of `graphs.h`.
        unsafe {
            let get: Symbol<'_, unsafe extern "C" fn(*mut usize, *mut usize)> =
                self.library.get(b"fake_card_counts").unwrap();
            get(calls, graphs);
        }
        counts
    }

    /// Calls that `work` takes.
    fn calls(&self, work: impl FnOnce()) -> usize {
        let before = self.counts()[0];
        work();
        self.counts()[0] - before
    }

    /// A card of its own, with its graphs.
    fn card<E: Element>(&self, head_dim: usize) -> Cuda<E> {
        Cuda::as_needed(Arc::new(Card::find(0).unwrap()), head_dim)
    }
}

type Floats = <Cuda<f32> as Backend>::FloatBuffer;

fn floats(kernels: &Cuda<f32>, values: &[f32]) -> Floats {
    let mut buffer = Floats::default();
    kernels.resize(&mut buffer, values.len());
    kernels.write(&mut buffer, values);
    buffer
}

fn read(kernels: &Cuda<f32>, x: &Floats) -> Vec<f32> {
    kernels.read(x, &mut Vec::new()).unwrap().to_vec()
}

/// `z = 2 y` by way of `x`: four calls.
fn double(kernels: &Cuda<f32>, z: &mut Floats, x: &mut Floats, y: &Floats) {
    kernels.at_once(|| {
        kernels.zero(x);
        kernels.add(x, y);
        kernels.copy(z, x);
        kernels.add(z, y);
    });
}

#[test]
fn work_that_comes_again_is_one_call_that_reads_what_is_there_then() {
    let Some(driver) = Driver::get() else { return };
    let kernels = driver.card::<f32>(32);
    let [mut x, mut y, mut z] = [0.0, 1.0, 2.0].map(|value| floats(&kernels, &[value; 1000]));
    let mut calls = Vec::new();
    for value in [1.0, -3.0, 7.0, 0.5] {
        kernels.write(&mut y, &[value; 1000]);
        calls.push(driver.calls(|| double(&kernels, &mut z, &mut x, &y)));
        assert_eq!(read(&kernels, &z), [2.0 * value; 1000]);
    }
    assert_eq!(calls, [4, 1, 1, 1]);
    // Another operand is other work, though everything else is the same.
    let mut other = floats(&kernels, &[9.0; 1000]);
    assert_eq!(driver.calls(|| double(&kernels, &mut other, &mut x, &y)), 4);
    assert_eq!(read(&kernels, &other), [1.0; 1000]);
    kernels.write(&mut y, &[4.0; 1000]);
    assert_eq!(driver.calls(|| double(&kernels, &mut other, &mut x, &y)), 1);
    assert_eq!((read(&kernels, &other)[0], read(&kernels, &z)[0]), (8.0, 1.0));
}

#[test]
fn an_argument_of_one_kernel_makes_other_work() {
    let Some(driver) = Driver::get() else { return };
    let kernels = driver.card::<f32>(32);
    let [mut x, mut y, z] = [0.0, 1.0, 10.0].map(|value| floats(&kernels, &[value; 100]));
    let calls = |x: &mut Floats, y: &Floats| {
        driver.calls(|| {
            kernels.at_once(|| {
                kernels.add(x, &z);
                kernels.add(x, y);
            })
        })
    };
    assert_eq!([0; 3].map(|_| calls(&mut x, &y)), [2, 1, 1]);
    assert_eq!(read(&kernels, &x), [33.0; 100]);
    // What it names lies elsewhere, and where it lay is no memory any more.
    kernels.resize(&mut y, 100_000);
    kernels.resize(&mut y, 100);
    kernels.card().trim();
    kernels.write(&mut y, &[-33.0; 100]);
    assert_eq!([0; 2].map(|_| calls(&mut x, &y)), [2, 1]);
    assert_eq!(read(&kernels, &x), [-13.0; 100]);
}

/// The fake card never gives out an address again, and complains of one that was given back.
#[test]
fn memory_that_has_moved_is_never_written_by_an_old_graph() {
    let Some(driver) = Driver::get() else { return };
    let kernels = driver.card::<f32>(32);
    let [mut x, y, mut z] = [0.0, 1.0, 2.0].map(|value| floats(&kernels, &[value; 1000]));
    (0..2).for_each(|_| double(&kernels, &mut z, &mut x, &y));
    // The stream's buffer grows, is used otherwise, and shrinks again: it lies elsewhere.
    kernels.resize(&mut x, 1_000_000);
    kernels.card().trim();
    kernels.resize(&mut x, 1000);
    let calls = [0; 3].map(|_| driver.calls(|| double(&kernels, &mut z, &mut x, &y)));
    assert_eq!(calls, [4, 1, 1]);
    assert_eq!(read(&kernels, &z), [2.0; 1000]);
    // Memory that is only needed meanwhile is found where it was, whatever others took.
    let mut width = 0;
    let mut sums = |kernels: &Cuda<f32>| {
        width += 1;
        let other = floats(kernels, &vec![0.0; 100 * width]);
        let calls = driver.calls(|| {
            kernels.at_once(|| {
                for _ in 0..2 {
                    let mut some = Floats::default();
                    kernels.resize(&mut some, 500);
                    kernels.zero(&mut some);
                    kernels.add(&mut z[0..500], &some);
                }
            })
        });
        drop(other);
        calls
    };
    assert_eq!([0; 5].map(|_| sums(&kernels)), [4, 1, 1, 1, 1]);
    assert_eq!(read(&kernels, &z), [2.0; 1000]);
}

#[test]
fn what_cannot_be_a_part_of_a_graph_stays_in_its_order() {
    let Some(driver) = Driver::get() else { return };
    let kernels = driver.card::<f32>(32);
    let [mut x, mut y] = [1.0, 1.0].map(|value| floats(&kernels, &[value; 8]));
    let graphs = driver.counts()[1];
    for round in 1..4 {
        kernels.at_once(|| {
            kernels.add(&mut x, &y);
            // A copy from the host: what was asked for before it goes first.
            kernels.write(&mut y, &[round as f32; 8]);
            kernels.add(&mut x, &y);
            // A pass within a pass is a part of it.
            kernels.at_once(|| kernels.copy(&mut y, &x));
        });
    }
    // 1 + 1 + 1 = 3; 3 + 3 + 2 = 8; 8 + 8 + 3 = 19.
    assert_eq!(read(&kernels, &y), [19.0; 8]);
    assert_eq!(driver.counts()[1], graphs);
}

#[test]
fn no_more_than_32_graphs_are_kept_and_the_oldest_go() {
    let Some(driver) = Driver::get() else { return };
    let kernels = driver.card::<f32>(32);
    let [mut x, y, mut z] = [0.0, 1.0, 2.0].map(|value| floats(&kernels, &[value; 64]));
    let graphs = driver.counts()[1];
    let mut calls = |count: usize| {
        driver.calls(|| {
            kernels.at_once(|| {
                kernels.zero(&mut x);
                (0..count).for_each(|_| kernels.add(&mut x, &y));
                kernels.copy(&mut z, &x);
            })
        })
    };
    for count in 1..=40 {
        assert_eq!([0; 2].map(|_| calls(count)), [count + 2, 1]);
    }
    assert_eq!(driver.counts()[1], graphs + 32);
    assert_eq!([40, 9, 8, 8].map(&mut calls), [1, 1, 10, 1]);
    assert_eq!(driver.counts()[1], graphs + 32);
    assert_eq!(read(&kernels, &z), [8.0; 64]);
}

#[test]
fn a_card_that_fails_with_a_graph_gives_the_error_where_results_are_read() {
    let Some(driver) = Driver::get() else { return };
    for call in ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch"] {
        driver.say("");
        let kernels = driver.card::<f32>(32);
        let [mut x, y, mut z] = [0.0, 1.0, 2.0].map(|value| floats(&kernels, &[value; 10]));
        double(&kernels, &mut z, &mut x, &y);
        assert_eq!(read(&kernels, &z), [2.0; 10]);
        driver.say(call);
        double(&kernels, &mut z, &mut x, &y);
        let error = kernels.read(&z, &mut Vec::new()).unwrap_err();
        assert_eq!(error, DeviceError(format!("the card failed: {call}: CUDA_ERROR_LAUNCH_FAILED")));
    }
}

/// A model with an odd number of layers, whose stream changes places as often.
fn config() -> ModelConfig {
    ModelConfig {
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        max_position_embeddings: 512,
        ..ModelConfig::preset("tiny").unwrap()
    }
}

/// Weights so large that texts differ, and no text that ends by itself.
fn loud(precision: Precision) -> Model {
    let mut model = Model::new(config(), 5);
    model.weights.parameters.iter_mut().for_each(|value| *value *= 6.0);
    let width = model.config.hidden_size;
    model.layout.embedding.of_mut(&mut model.weights.parameters)[EOS as usize * width..][..width].fill(0.0);
    model.compact(precision);
    model
}

/// Steps of a changing number of sequences, of which one goes beyond 256 positions: all logits, and calls of each step.
fn steps<E: Element>(driver: &Driver, precision: Precision) -> (Vec<Vec<f32>>, Vec<usize>) {
    let kernels = driver.card::<E>(config().head_dim);
    let model = kernels.adopt(loud(precision)).unwrap();
    let (mut cache, mut scratch) = (model.cache(&kernels, 100).unwrap(), ScratchOf::<Cuda<E>>::default());
    // A prompt of 244 tokens and some of 2, in one pass; blocks are scattered.
    let tables: Vec<Vec<u32>> =
        (0..6).map(|i| (0..if i == 0 { 18 } else { 3 }).map(|j| 37 * (18 * i + j) % 100).collect()).collect();
    let mut done = [244, 2, 2, 2, 2, 2_usize];
    let mut random = Random::new(7);
    let tokens: Vec<u32> = (0..244).map(|_| (random.bits() % 256) as u32).collect();
    let prompt = |i: usize| Segment {
        table: &tables[i],
        start: 0,
        tokens: &tokens[..done[i]],
        prompt: done[i],
        wanted: 1,
        hidden: false,
    };
    let prompts: Vec<Segment<'_>> = (0..6).map(prompt).collect();
    model.extend(&kernels, &mut cache, &mut scratch, &prompts).unwrap();
    let (mut logits, mut calls) = (Vec::new(), Vec::new());
    for running in [1, 1, 1, 2, 2, 2, 3, 4, 3, 4, 5, 6, 6, 1, 1, 4, 1, 4] {
        let token = [(random.bits() % 256) as u32];
        let segment = |i: usize| Segment {
            table: &tables[i],
            start: done[i],
            tokens: &token,
            prompt: 0,
            wanted: 1,
            hidden: false,
        };
        let segments: Vec<Segment<'_>> = (0..running).map(segment).collect();
        calls.push(driver.calls(|| {
            let outputs = model.extend(&kernels, &mut cache, &mut scratch, &segments).unwrap();
            assert_eq!(outputs.logits.len(), running * model.config.vocab_size);
            logits.push(outputs.logits.to_vec());
        }));
        done[..running].iter_mut().for_each(|done| *done += 1);
    }
    (logits, calls)
}

#[test]
fn a_step_is_one_launch_once_its_shape_has_come_before_and_has_the_same_bits() {
    let Some(driver) = Driver::get() else { return };
    let check = |(logits, calls): (Vec<Vec<f32>>, Vec<usize>),
                 (others, without): (Vec<Vec<f32>>, Vec<usize>)| {
        assert!(logits == others);
        let all = without[0];
        assert!(30 < all && without.iter().all(|calls| *calls == all), "{without:?}");
        // Rows are filled up to a power of two: 3 and 4 are one shape, and so are 5 and 6. What is of another shape is new, and so is
        // all where there are more rows than ever before, for which buffers grow, or more than 256 positions, from the 13th on.
        let is_one: Vec<bool> = calls.iter().map(|calls| *calls == 1).collect();
        let expected = [0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1].map(|one| one == 1);
        assert_eq!(is_one, expected, "{calls:?}");
        assert!(calls.iter().all(|calls| *calls == 1 || *calls == all), "{calls:?}");
    };
    let of_f32 = steps::<f32>(&driver, Precision::F32);
    let of_bf16 = steps::<Bf16>(&driver, Precision::Bf16);
    let of_int8 = steps::<Bf16>(&driver, Precision::Int8);
    driver.say("none");
    check(of_f32, steps::<f32>(&driver, Precision::F32));
    check(of_bf16, steps::<Bf16>(&driver, Precision::Bf16));
    check(of_int8, steps::<Bf16>(&driver, Precision::Int8));
}

/// What a request has come to: its text, and the likelihoods of its tokens.
type Answer = (String, Vec<Likelihood>);

/// Requests that are greedy and that are sampled, of many lengths, on an engine that has room for some of them.
fn served(driver: &Driver) -> (Vec<Answer>, usize) {
    let kernels = driver.card::<Bf16>(config().head_dim);
    let model = kernels.adopt(loud(Precision::Bf16)).unwrap();
    let limits = Limits { max_queue: 100, blocks: 9 };
    let engine = Engine::start(model, Tokenizer::bytes(), kernels, limits).unwrap();
    let request = |i: usize| Request {
        prompt: Tokenizer::bytes().encode(&"water finds its way"[2 * i..], true),
        max_tokens: 24 + 5 * i % 17,
        sampling: Sampling {
            temperature: if i.is_multiple_of(2) { 0.0 } else { 0.9 },
            seed: i as u64,
            ..Sampling::default()
        },
        likelihoods: Some(1),
        ..Request::default()
    };
    let mut answers: Vec<Answer> = vec![Default::default(); 6];
    let mut receiver = engine.submit((0..answers.len()).map(request).collect()).unwrap();
    let mut running = answers.len();
    while 0 < running {
        match receiver.blocking_recv().expect("all of them end") {
            (index, Event::Text { text, likelihood }) => {
                answers[index].0.push_str(&text);
                answers[index].1.extend(likelihood);
            }
            (_, Event::End { .. }) => running -= 1,
            _ => (),
        }
    }
    let preemptions = engine.metrics().preemptions as usize;
    (answers, preemptions)
}

#[test]
fn answers_greedy_and_sampled_have_the_same_bits_with_graphs_and_without() {
    let Some(driver) = Driver::get() else { return };
    let (mut with, mut without) = (Default::default(), Default::default());
    let calls = driver.calls(|| with = served(&driver));
    driver.say("none");
    let more = driver.calls(|| without = served(&driver));
    assert!(with == without, "{:?}\n{:?}", with.0[0], without.0[0]);
    let (answers, preemptions) = with;
    assert!(answers.iter().all(|(_, likelihoods)| 10 <= likelihoods.len()));
    assert!(0 < preemptions, "the cache was too small for all");
    println!("{calls} and {more} calls, {preemptions} preemptions");
    assert!(calls < more * 2 / 3, "{calls} calls, {more} without graphs");
}

/// Bytes that a model of many small matrices takes of the card, and bytes that keys and values may take then.
fn taken(driver: &Driver, precision: Precision) -> (f64, u64) {
    let kernels = driver.card::<Bf16>(16);
    let model = Model::new(many_matrices(), 1);
    let mut compact = Model::new(many_matrices(), 1);
    compact.compact(precision);
    let before = kernels.card().memory().0;
    let placed = kernels.adopt(compact).unwrap();
    let taken = before - kernels.card().memory().0;
    let (cache, element_bytes) = kernels.cache_bytes();
    assert_eq!((cache, element_bytes), (kernels.card().memory().0 as u64 / 4 * 3, 2));
    drop(placed);
    kernels.card().trim();
    (taken as f64 / model.layout.len as f64, cache)
}

fn many_matrices() -> ModelConfig {
    ModelConfig { hidden_size: 128, intermediate_size: 256, num_hidden_layers: 24, head_dim: 16, ..config() }
}

/// One for each weight and four for every 64; the largest of 170 matrices in bf16, where prompts find it, vectors and the angles of 512
/// positions are a few hundredths more.
#[test]
fn weights_of_8_bits_take_a_byte_each_and_leave_the_rest_to_keys_and_values() {
    let Some(driver) = Driver::get() else { return };
    let (int8, more) = taken(&driver, Precision::Int8);
    let (bf16, less) = taken(&driver, Precision::Bf16);
    println!("{int8} and {bf16} bytes a weight");
    assert!((1.0625..1.13).contains(&int8), "{int8} bytes a weight");
    assert!((2.0..2.1).contains(&bf16), "{bf16} bytes a weight");
    let saved = (bf16 - int8) * Model::new(many_matrices(), 1).layout.len as f64;
    assert!(
        ((more - less) as f64 - 0.75 * saved).abs() < 0.05 * saved,
        "{more} bytes for keys and values, not {less}"
    );
}
