//! What checkpoints cost a training: steps amid which one is written, and steps amid which none is.
//!
//! Four steps are measured together: without, with, with, without. What gets slower or faster as time goes by then counts for
//! both alike. What is left differs from four steps to the next, so of the median it is said where it is with 95 % certainty.

use super::{Bound, Figure, Spent, spent};
use crate::checkpoint::{Keeping, Place, Settings, Writer};
use crate::data::Dataset;
use crate::elastic::{Computed, Event};
use crate::kernels::{Cpu, Precision};
use crate::model::ModelConfig;
use crate::shards::ShardSum;
use crate::tokenizer::Tokenizer;
use crate::train::engine::{self, Order, Plan};
use crate::train::{Input, WRITER};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Which of the steps that are measured together begin with a checkpoint of the state before.
const SAVES: [bool; 4] = [false, true, true, false];

/// What [`checkpoints`] measures.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckpointsArgs {
    /// Shape of the model: tiny (0.8M parameters), small (6.4M) or medium (25M)
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    pub model: String,

    /// Sequences of 128 tokens in a step
    #[arg(long, default_value_t = 64)]
    pub batch: usize,

    /// Threads
    #[arg(long, default_value_t = 2)]
    pub threads: usize,

    /// Times that two steps without and two with a checkpoint are measured, after one that is not
    #[arg(long, default_value_t = 50)]
    pub rounds: usize,

    /// Where checkpoints are written, and removed again [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// The trainer of one worker, as it is but for members to talk to.
///
/// # Errors
/// Where files cannot be written, or the model is none.
pub fn checkpoints(args: &CheckpointsArgs) -> Result<Vec<Figure>, String> {
    let parent = args.directory.clone().unwrap_or_else(std::env::temp_dir);
    let directory = tempfile::TempDir::with_prefix_in("aquifer-bench-", &parent);
    let directory = directory.map_err(|error| format!("--directory {}: {error}", parent.display()))?;
    let text = directory.path().join("text");
    let words: String = (0..100_000u64).map(|number| format!("{} ", number * number % 9973)).collect();
    std::fs::write(&text, words).map_err(|error| error.to_string())?;
    let config = ModelConfig::preset(&args.model)
        .ok_or_else(|| format!("--model is {}; it is tiny, small or medium", args.model))?;
    let data = Dataset::load(&text, &Tokenizer::bytes()).map_err(|error| error.to_string())?;
    let settings = Settings {
        seed: 1,
        batch: args.batch,
        micro_batch: 1,
        precision: Precision::F32,
        context: 128,
        steps: 1 << 40,
        learning_rate: 1e-3,
        warmup: 100,
        weight_decay: 0.1,
        clip: 1.0,
        inner_steps: 0,
        replicas: 0,
        keeps_moments: false,
    };
    let (inputs, told) = channel();
    let lanes = args.threads.min(args.batch);
    let plan = Plan {
        settings,
        config,
        model: None,
        data: Arc::new(data),
        checkpoints: Some(Keeping {
            place: Place::Directory(directory.path().join("checkpoints")),
            keep: 2,
            writer: Writer { attempt: 1, rank: 0 },
            scratch: directory.path().into(),
        }),
        threads: args.threads,
        offload: false,
        newest: Arc::default(),
    };
    let backends = (0..lanes).map(|_| Cpu::new((args.threads / lanes).max(1))).collect();
    let (orders, engine) = engine::start(plan, Cpu::new(args.threads), backends, inputs);
    let figures = Trainer { orders, told, batch: args.batch, lanes, step: 0, saved: 0 }.measure(args.rounds);
    engine.join().map_err(|_| "the trainer has panicked")?;
    figures
}

struct Trainer {
    orders: Sender<Order>,
    told: Receiver<Input>,
    batch: usize,
    lanes: usize,
    step: u64,
    /// Step of the newest checkpoint.
    saved: u64,
}

impl Trainer {
    fn measure(mut self, rounds: usize) -> Result<Vec<Figure>, String> {
        self.order(Order::Load)?;
        self.wait(|input| matches!(input, Input::Event(Event::Ready(_))).then_some(()))?;
        let (mut without, mut with, mut writing) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=rounds {
            let before = seconds_of(WRITER);
            let mut took = [Spent::default(); 2];
            for saves in SAVES {
                let one = self.step(saves)?;
                let sum = &mut took[usize::from(saves)];
                (sum.wall, sum.cpu) = (sum.wall + one.wall, sum.cpu + one.cpu);
            }
            if 0 < round {
                without.push(took[0]);
                with.push(took[1]);
                writing.push(100.0 * (seconds_of(WRITER) - before) / took[0].cpu);
            }
        }
        let cost = |of: fn(&Spent) -> f64| -> Vec<f64> {
            let share = |(with, without)| 100.0 * (of(with) / of(without) - 1.0);
            with.iter().zip(&without).map(share).collect()
        };
        let steps = without.iter().map(|spent| spent.wall * 1e3 / 2.0).collect();
        let step = Figure::new("a step without a checkpoint", median(steps)[0], "ms", Bound::None);
        let mut figures = vec![step];
        for (name, values) in [
            ("time on the wall", cost(|spent| spent.wall)),
            ("time of processors", cost(|spent| spent.cpu)),
            ("that of the writing thread alone", writing),
        ] {
            for (which, value) in ["median", "at least", "at most"].into_iter().zip(median(values)) {
                let name = format!("a checkpoint each, {name}, {which}");
                figures.push(Figure::new(name, value, "% of a step", Bound::None));
            }
        }
        Ok(figures)
    }

    /// What a step takes. `saves`: until the state before it is written as well.
    fn step(&mut self, saves: bool) -> Result<Spent, String> {
        let mut result = Ok(());
        let took = spent(|| result = self.compute(saves));
        result.map(|()| took)
    }

    fn compute(&mut self, saves: bool) -> Result<(), String> {
        if saves {
            self.order(Order::Save)?;
        }
        let mut sum = ShardSum::default();
        for start in (0..self.batch).step_by(self.lanes) {
            let shards = start..self.batch.min(start + self.lanes);
            self.order(Order::Compute(self.step, shards))?;
            for Computed { sum: shard, .. } in self.wait(|input| match input {
                Input::Event(Event::Computed(_, sums, _)) => Some(std::mem::take(sums)),
                _ => None,
            })? {
                sum.insert(shard);
            }
        }
        let (before, next) = (self.step, self.step + 1);
        self.step = next;
        self.order(Order::Apply(next, sum.total(self.batch), Default::default()))?;
        self.wait(|input| matches!(input, Input::Step(_)).then_some(()))?;
        while saves && self.saved < before {
            self.wait(|input| matches!(input, Input::Event(Event::Saved(_))).then_some(()))?;
        }
        Ok(())
    }

    fn order(&self, order: Order) -> Result<(), String> {
        self.orders.send(order).map_err(|_| "the trainer has ended".to_string())
    }

    /// Waits for what the trainer says; other things are passed over.
    fn wait<T>(&mut self, mut found: impl FnMut(&mut Input) -> Option<T>) -> Result<T, String> {
        loop {
            let mut input = self.told.recv().map_err(|_| "the trainer has ended".to_string())?;
            if let Input::Failed(error) = &input {
                return Err(error.to_string());
            }
            if let Input::Event(Event::Saved(step)) = &input {
                self.saved = *step;
            }
            if let Some(value) = found(&mut input) {
                return Ok(value);
            }
        }
    }
}

/// The median of some values, and what it is at least and at most, with 95 % certainty, if they do not depend on each other: it
/// is then between two of the sorted values that are `1.96 sqrt(n)` places apart.
fn median(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let (last, around) = (values.len() - 1, 0.98 * (values.len() as f64).sqrt());
    let at = |place: f64| values[place.round().clamp(0.0, last as f64) as usize];
    let middle = last as f64 / 2.0;
    [at(middle), at(middle - around), at(middle + around)]
}

/// Processor time of the threads with this name, in seconds.
fn seconds_of(name: &str) -> f64 {
    let of = |task: std::fs::DirEntry| {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).ok();
        let is_one = read("comm")?.trim() == name;
        let nanoseconds = read("schedstat")?.split(' ').next()?.parse::<f64>().ok()?;
        is_one.then_some(nanoseconds * 1e-9)
    };
    std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten().filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_with_and_without_checkpoints_are_compared() {
        let args = CheckpointsArgs { model: "tiny".into(), batch: 1, threads: 1, rounds: 1, directory: None };
        let figures = checkpoints(&args).unwrap();
        assert!(0.0 < figures[0].value && 0.0 < figures[7].value, "{figures:?}");
        assert_eq!(figures.len(), 10);
    }

    #[test]
    fn a_median_comes_with_what_it_may_be_else() {
        let values = (0..=100).map(f64::from).rev().collect();
        assert_eq!(median(values), [50.0, 40.0, 60.0]);
        assert_eq!(median(vec![7.0]), [7.0; 3]);
    }
}
