//! What checkpoints cost a training: steps with one each and steps without any, in alternation.

use super::{Bound, Figure, Spent, spent};
use crate::checkpoint::{Keeping, Place, Settings, Writer};
use crate::data::Dataset;
use crate::elastic::{Computed, Event};
use crate::kernels::{Cpu, Precision};
use crate::model::ModelConfig;
use crate::shards::ShardSum;
use crate::tokenizer::Tokenizer;
use crate::train::Input;
use crate::train::engine::{self, Order, Plan};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Steps of a block, all with a checkpoint but the last, in which the one before is still being written.
const BLOCK: u64 = 5;

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

    /// Times that five steps without and five with checkpoints are measured, after one that is not
    #[arg(long, default_value_t = 20)]
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
        newest: Arc::default(),
    };
    let backends = (0..lanes).map(|_| Cpu::new((args.threads / lanes).max(1))).collect();
    let (orders, engine) = engine::start(plan, backends, inputs);
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
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for round in 0..=rounds {
            // What comes second may be warmer, or slower.
            for saves in [round % 2 == 0, round % 2 == 1] {
                let took = self.block(saves)?;
                if 0 < round {
                    if saves { &mut with } else { &mut without }.push(took);
                }
            }
        }
        let cost = |of: fn(&Spent) -> f64| -> Vec<f64> {
            let share =
                |(with, without)| 100.0 * (of(with) / of(without) - 1.0) * BLOCK as f64 / (BLOCK - 1) as f64;
            sorted(with.iter().zip(&without).map(share).collect())
        };
        let (wall, cpu) = (cost(|spent| spent.wall), cost(|spent| spent.cpu));
        let at = |values: &[f64], share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        let steps = sorted(without.iter().map(|spent| spent.wall * 1e3 / BLOCK as f64).collect());
        let mut figures =
            vec![Figure::new("a step without a checkpoint, median", at(&steps, 0.5), "ms", Bound::None)];
        for (name, values) in [("time on the wall", &wall), ("time of processors", &cpu)] {
            for (which, share) in [("median", 0.5), ("lower quartile", 0.25), ("upper quartile", 0.75)] {
                let name = format!("a checkpoint each, {name}, {which}");
                figures.push(Figure::new(name, at(values, share), "% of a step", Bound::None));
            }
        }
        Ok(figures)
    }

    /// What some steps take. A checkpoint is written while the next step is computed, so all are written in the end.
    fn block(&mut self, saves: bool) -> Result<Spent, String> {
        let mut result = Ok(());
        let took = spent(|| result = (1..=BLOCK).try_for_each(|number| self.step(saves && number < BLOCK)));
        result?;
        while saves && self.saved + 1 < self.step {
            self.wait(|input| matches!(input, Input::Event(Event::Saved(_))).then_some(()))?;
        }
        Ok(took)
    }

    fn step(&mut self, saves: bool) -> Result<(), String> {
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
        self.step += 1;
        self.order(Order::Apply(self.step, Arc::new(sum.total(self.batch)), Default::default()))?;
        if saves {
            self.order(Order::Save)?;
        }
        self.wait(|input| matches!(input, Input::Step(_)).then_some(()))
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

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_with_and_without_checkpoints_are_compared() {
        let args = CheckpointsArgs { model: "tiny".into(), batch: 1, threads: 1, rounds: 1, directory: None };
        let figures = checkpoints(&args).unwrap();
        assert!(0.0 < figures[0].value, "{figures:?}");
        assert_eq!(figures.len(), 7);
    }
}
