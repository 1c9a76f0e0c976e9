//! Training: steps of virtual shards, summed in a fixed tree, so that the result does not depend on who computed.
//!
//! A step has V shards (`--batch / --micro-batch`), each of some sequences. Data and gradient of a shard are pure
//! functions of (seed, step, shard); each rank computes a block of neighbouring shards, rank 0 adds up
//! ([`crate::shards`]), and all ranks apply the same update to the same parameters. One, two or four ranks give the same
//! bits.

use crate::args::{TrainArgs, UsageError};
use crate::checkpoint::{CheckpointDir, CheckpointError, Record, Settings, TrainingState, load_model};
use crate::collective::{Agreement, CollectiveError, Group, Timeouts, bytes_to_floats, floats_to_bytes};
use crate::contract::Contract;
use crate::data::Dataset;
use crate::error::WorkerError;
use crate::kernels::{AdamW, Cpu, Kernels, Precision};
use crate::model::training::{Sample, Workspace};
use crate::model::{Model, ModelConfig};
use crate::safetensors::Weights;
use crate::shards::{Partial, ShardSum, block};
use crate::status::{State, Status, StatusFile};
use crate::tokenizer::Tokenizer;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.95;
const EPS: f32 = 1e-8;
/// The learning rate ends at this share of its highest.
const FINAL_SHARE: f32 = 0.1;

/// One step that is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Mean loss before the update, in nats a token.
    pub loss: f32,
    /// Length of the gradient before it was clipped.
    pub gradient_norm: f32,
    /// The learning rate of the update.
    pub learning_rate: f32,
}

/// Trains as the environment and the options say, until the steps are done or a signal comes. Prints its progress.
///
/// # Errors
/// See [`WorkerError`], which also knows the exit code.
pub fn main(args: TrainArgs) -> Result<(), WorkerError> {
    let contract = Contract::from_env()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| WorkerError::Io { what: format!("signal {signal}"), error })?;
    }
    run(&args, &contract, &stop, &mut |_| ())
}

/// As [`main`], with the environment and the signal as arguments; calls `on_step` after every step.
///
/// # Errors
/// As [`main`].
pub fn run(
    args: &TrainArgs,
    contract: &Contract,
    stop: &AtomicBool,
    on_step: &mut dyn FnMut(&StepReport),
) -> Result<(), WorkerError> {
    let mut report = Report::new(args, contract);
    args.validate(contract.world_size)?;
    let config = configuration(args)?;
    let tokenizer = tokenizer(args, &config)?;
    let data = Dataset::load(&args.data, &tokenizer)?;
    if data.samples(args.context) == 0 {
        let (path, tokens, context) = (args.data.clone(), data.len(), args.context);
        return Err(crate::data::DataError::Short { path, tokens, context }.into());
    }
    report.waiting(contract);
    let timeouts = Timeouts {
        join: Duration::from_secs(args.join_timeout),
        peer: Duration::from_secs(args.peer_timeout),
    };
    let agreement = agreement(args, &config, &data);
    let mut group = match Group::join(contract, &agreement, timeouts, stop) {
        Err(CollectiveError::Stopped) => {
            return Err(WorkerError::Stopped { step: 0, total_steps: args.steps, saved: false });
        }
        joined => joined?,
    };
    let result = Trainer::new(args, contract, data, config, &mut group, &mut report)
        .and_then(|mut trainer| trainer.train(stop, &mut group, &mut report, on_step));
    match &result {
        // The others have stopped at the same step.
        Ok(()) | Err(WorkerError::Stopped { .. }) => (),
        Err(WorkerError::Collective(error)) => group.abort(&error.to_string()),
        Err(error) => group.abort(&format!("rank {} failed: {error}", contract.rank)),
    }
    result
}

fn configuration(args: &TrainArgs) -> Result<ModelConfig, WorkerError> {
    let config = match ModelConfig::preset(&args.model) {
        Some(config) => config,
        None if Path::new(&args.model).is_dir() => ModelConfig::load(Path::new(&args.model))?,
        None => return Err(crate::model::ConfigError::Unknown(args.model.clone()).into()),
    };
    if config.window() < args.context {
        let allowed = format!("it is at most the model's window, {}", config.window());
        return Err(UsageError::new("--context", args.context, allowed).into());
    }
    Ok(config)
}

/// Bytes for a preset, and what belongs to the model of a directory.
fn tokenizer(args: &TrainArgs, config: &ModelConfig) -> Result<Tokenizer, WorkerError> {
    match ModelConfig::preset(&args.model) {
        Some(_) => Ok(Tokenizer::bytes()),
        None => Ok(Tokenizer::load(Path::new(&args.model), config).map_err(CheckpointError::from)?),
    }
}

/// What has to be the same on all ranks.
fn agreement(args: &TrainArgs, config: &ModelConfig, data: &Dataset) -> Agreement {
    let mut agreement = vec![(
        "--model".to_string(),
        format!("{} of shape {:08x}", args.model, crc32fast::hash(config.to_json().as_bytes())),
    )];
    let settings = serde_json::to_value(settings(args)).expect("plain fields");
    for (name, value) in settings.as_object().expect("a struct") {
        agreement.push((format!("--{}", name.replace('_', "-")), value.to_string()));
    }
    let text = format!("{} tokens with checksum {:08x}", data.len(), data.digest);
    agreement.push(("--data".into(), text));
    agreement
}

fn settings(args: &TrainArgs) -> Settings {
    Settings {
        seed: args.seed,
        batch: args.batch,
        micro_batch: args.micro_batch,
        precision: args.precision,
        context: args.context,
        steps: args.steps,
        learning_rate: args.learning_rate,
        warmup: args.warmup_steps(),
        weight_decay: args.weight_decay,
        clip: args.clip,
    }
}

/// Learning rate of step `step`, from 0: a straight rise over the warm-up, then half a cosine down to a tenth.
///
/// Source: Loshchilov and Hutter, "SGDR", arXiv 1608.03983, equation 5.
fn learning_rate(settings: &Settings, step: u64) -> f32 {
    if step < settings.warmup {
        return settings.learning_rate * (step + 1) as f32 / settings.warmup as f32;
    }
    let length = (settings.steps - settings.warmup).max(1);
    let progress = ((step - settings.warmup) as f64 / length as f64).min(1.0);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()) as f32;
    settings.learning_rate * (FINAL_SHARE + (1.0 - FINAL_SHARE) * cosine)
}

struct Trainer {
    state: TrainingState,
    data: Dataset,
    checkpoints: Option<CheckpointDir>,
    /// Step of the newest checkpoint on disk, as rank 0 knows it.
    saved: Option<u64>,
    /// This rank's shards of every step.
    shards: std::ops::Range<usize>,
    /// Shards are computed at the same time, one on each of these.
    desks: Vec<Desk>,
    /// All threads, for what is left when the shards are summed.
    kernels: Cpu,
    sum: ShardSum,
}

/// Where one shard is computed.
struct Desk {
    workspace: Workspace,
    kernels: Cpu,
}

impl Trainer {
    /// The state that rank 0 has, on every rank: from the newest checkpoint, or from the start.
    fn new(
        args: &TrainArgs,
        contract: &Contract,
        data: Dataset,
        config: ModelConfig,
        group: &mut Group,
        report: &mut Report,
    ) -> Result<Trainer, WorkerError> {
        let (mut checkpoints, mut saved, mut found) = (None, None, None);
        if contract.rank == 0
            && let Some(path) = &args.checkpoint_dir
        {
            let mut directory = CheckpointDir::open(path, args.keep)?;
            if ModelConfig::preset(&args.model).is_none() {
                directory.take_along(Path::new(&args.model))?;
            }
            let (state, skipped) = directory.load_newest(&settings(args), &config)?;
            skipped.iter().for_each(|sentence| report.line(sentence));
            saved = state.as_ref().map(|state| state.record.step);
            (checkpoints, found) = (Some(directory), state);
        }
        let mut state = match found {
            Some(state) => state,
            None => fresh(args, contract, &data, config)?,
        };
        if contract.rank == 0
            && (state.record.data_tokens, state.record.data_crc32) != (data.len(), data.digest)
        {
            report.line("the data has changed since the checkpoint was written");
        }
        state.record.settings = settings(args);
        (state.record.data_tokens, state.record.data_crc32) = (data.len(), data.digest);

        let record = serde_json::to_vec(&(&state.record, saved)).expect("plain fields");
        let record = group.broadcast(record)?;
        (state.record, saved) = serde_json::from_slice(&record).map_err(|error| CollectiveError::Left {
            rank: 0,
            reason: format!("its state is not readable: {error}"),
        })?;
        for values in [&mut state.model.parameters, &mut state.first, &mut state.second] {
            group.broadcast_floats(values)?;
        }
        let shards = block(contract.rank, contract.world_size, args.batch / args.micro_batch);
        let at_once = contract.threads.min(shards.len());
        let sum = ShardSum::new(state.model.layout.len + 1);
        let kernels = |threads| Cpu::with_precision(threads, args.precision);
        let desk = |_| Desk { workspace: Workspace::default(), kernels: kernels(contract.threads / at_once) };
        let (desks, kernels) = ((0..at_once).map(desk).collect(), kernels(contract.threads));
        Ok(Trainer { state, data, checkpoints, saved, shards, desks, kernels, sum })
    }

    fn train(
        &mut self,
        stop: &AtomicBool,
        group: &mut Group,
        report: &mut Report,
        on_step: &mut dyn FnMut(&StepReport),
    ) -> Result<(), WorkerError> {
        let total_steps = self.state.record.settings.steps;
        report.begin(self);
        if total_steps <= self.state.record.step {
            report.line(&format!("all {total_steps} steps are done already"));
        }
        let every = report.checkpoint_every;
        let mut stopping = false;
        while self.state.record.step < total_steps && !stopping {
            let step = self.step(stop.load(Ordering::Relaxed), group)?;
            (stopping, self.saved) = (step.stop, step.saved);
            on_step(&step.report);
            report.step(self, &step.report);
            let step = step.report.step;
            if step.is_multiple_of(every) || step == total_steps || stopping {
                self.save(report)?;
            }
        }
        report.stopping(self);
        // Behind it, the last checkpoint is on disk and every rank may say so.
        group.barrier()?;
        let step = self.state.record.step;
        if report.has_checkpoints {
            self.saved = Some(step);
        }
        report.end(self);
        if step < total_steps {
            return Err(WorkerError::Stopped { step, total_steps, saved: report.has_checkpoints });
        }
        Ok(())
    }

    /// One step: gradients of the own shards, their sum over all ranks, and the update.
    fn step(&mut self, stop: bool, group: &mut Group) -> Result<Step, WorkerError> {
        self.compute_shards(group)?;
        let settings = self.state.record.settings.clone();
        let Reduced { values: mut gradient, stop, saved } = self.reduce(stop, group)?;
        let shards = (settings.batch / settings.micro_batch) as f32;
        let loss = gradient.pop().expect("the loss stands last") / shards;
        let number = self.state.record.step + 1;
        if !loss.is_finite() {
            return Err(WorkerError::Diverged { step: number, loss });
        }
        // The sum over shards becomes their mean, and then as long as allowed.
        let gradient_norm = self.kernels.sum_of_squares(&gradient).sqrt() as f32 / shards;
        let shorten = if settings.clip < gradient_norm { settings.clip / gradient_norm } else { 1.0 };
        for value in &mut gradient {
            *value *= shorten / shards;
        }
        let learning_rate = learning_rate(&settings, number - 1);
        self.update(&gradient, learning_rate, number);
        self.sum.recycle(gradient);

        let record = &mut self.state.record;
        (record.step, record.loss) = (number, loss);
        record.tokens_seen += (settings.batch * settings.context) as u64;
        let report = StepReport { step: number, loss, gradient_norm, learning_rate };
        Ok(Step { report, stop, saved })
    }

    /// Fills `sum` with the own shards' gradients, each followed by its loss.
    fn compute_shards(&mut self, group: &Group) -> Result<(), WorkerError> {
        let Trainer { state, data, desks, sum, shards, .. } = self;
        let Settings { seed, batch, micro_batch, context, .. } = state.record.settings;
        let (model, data, step) = (&state.model, &*data, state.record.step);
        let mut next = shards.start;
        while next < shards.end {
            group.check()?;
            let count = desks.len().min(shards.end - next);
            let mut buffers: Vec<_> = (0..count).map(|_| sum.zeros()).collect();
            let compute = |index: usize, desk: &mut Desk, buffer: &mut Vec<f32>| {
                let first = step * batch as u64 + ((next + index) * micro_batch) as u64;
                let (mut tokens, mut targets) = (Vec::new(), Vec::new());
                for number in first..first + micro_batch as u64 {
                    let (more, next) = data.sample(seed, number, context);
                    tokens.extend(more);
                    targets.extend(next);
                }
                let sample = Sample { tokens: &tokens, targets: &targets, length: context };
                let (loss, gradient) = buffer.split_last_mut().expect("the loss stands last");
                *loss = model.loss_and_gradient(&desk.kernels, &mut desk.workspace, gradient, sample);
            };
            std::thread::scope(|scope| {
                let mut work = desks.iter_mut().zip(&mut buffers).enumerate();
                let own = work.next();
                for (index, (desk, buffer)) in work {
                    let compute = &compute;
                    scope.spawn(move || compute(index, desk, buffer));
                }
                if let Some((index, (desk, buffer))) = own {
                    compute(index, desk, buffer);
                }
            });
            for (index, values) in buffers.into_iter().enumerate() {
                sum.push(Partial { start: next + index, size: 1, values });
            }
            next += count;
        }
        Ok(())
    }

    /// The sum of all ranks' shards, on all ranks, and whether any of them was told to stop.
    fn reduce(&mut self, stop: bool, group: &mut Group) -> Result<Reduced, WorkerError> {
        let message = if group.rank() == 0 { Vec::new() } else { encode(stop, &self.sum.take()) };
        let mut stop = stop;
        for (index, message) in group.gather(&message)?.iter().enumerate() {
            let rank = index + 1;
            let bad = |reason| CollectiveError::Left { rank, reason };
            stop |= decode(message, &mut self.sum).map_err(bad)?;
        }
        if group.rank() != 0 {
            let message = group.broadcast(Vec::new())?;
            let mut values = self.sum.zeros();
            let (stop, saved) = decode_total(&message, &mut values)
                .map_err(|reason| CollectiveError::Left { rank: 0, reason })?;
            return Ok(Reduced { values, stop, saved });
        }
        let Settings { batch, micro_batch, .. } = self.state.record.settings;
        let values = self.sum.total(batch / micro_batch);
        if group.has_others() {
            group.broadcast(encode_total(stop, self.saved, &values))?;
        }
        Ok(Reduced { values, stop, saved: self.saved })
    }

    fn update(&mut self, gradient: &[f32], learning_rate: f32, update: u64) {
        let TrainingState { model, first, second, record } = &mut self.state;
        for tensor in &model.layout.tensors {
            // Norms are not matrices: pulling them to zero would only fight the layer behind them.
            let weight_decay = if tensor.shape.len() == 1 { 0.0 } else { record.settings.weight_decay };
            let step = AdamW { learning_rate, beta1: BETA1, beta2: BETA2, eps: EPS, weight_decay, update };
            let (first, second) = (tensor.span.of_mut(first), tensor.span.of_mut(second));
            let parameters = tensor.span.of_mut(&mut model.parameters);
            self.kernels.adamw(parameters, first, second, tensor.span.of(gradient), &step);
        }
    }

    fn save(&mut self, report: &mut Report) -> Result<(), WorkerError> {
        let step = self.state.record.step;
        if let Some(checkpoints) = &self.checkpoints
            && self.saved != Some(step)
        {
            checkpoints.save(&self.state)?;
            self.saved = Some(step);
            report.saved(self);
        }
        Ok(())
    }
}

/// The state before the first step.
fn fresh(
    args: &TrainArgs,
    contract: &Contract,
    data: &Dataset,
    config: ModelConfig,
) -> Result<TrainingState, WorkerError> {
    let directory = Path::new(&args.model);
    let has_weights = ModelConfig::preset(&args.model).is_none() && Weights::are_in(directory);
    let model = match has_weights && contract.rank == 0 {
        true => load_model(directory, Precision::F32)?,
        false => Model::new(config, args.seed),
    };
    let (first, second) = (vec![0.0; model.layout.len], vec![0.0; model.layout.len]);
    let record = Record {
        step: 0,
        tokens_seen: 0,
        loss: 0.0,
        settings: settings(args),
        data_tokens: data.len(),
        data_crc32: data.digest,
        files: Default::default(),
    };
    Ok(TrainingState { model, first, second, record })
}

struct Step {
    report: StepReport,
    stop: bool,
    saved: Option<u64>,
}

struct Reduced {
    values: Vec<f32>,
    stop: bool,
    saved: Option<u64>,
}

/// A rank's message to rank 0: whether it was told to stop, then its partial sums.
fn encode(stop: bool, partials: &[Partial]) -> Vec<u8> {
    let mut message = vec![u8::from(stop)];
    for partial in partials {
        message.extend((partial.start as u64).to_le_bytes());
        message.extend((partial.size as u64).to_le_bytes());
        message.extend(floats_to_bytes(&partial.values));
    }
    message
}

fn decode(message: &[u8], sum: &mut ShardSum) -> Result<bool, String> {
    let (stop, mut rest) = message.split_first().ok_or("sent nothing")?;
    while !rest.is_empty() {
        let mut values = sum.zeros();
        let length = 16 + 4 * values.len();
        let (head, tail) = rest.split_at_checked(length).ok_or("sent a part of a sum")?;
        let number =
            |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes")) as usize;
        bytes_to_floats(&head[16..], &mut values)?;
        sum.push(Partial { start: number(0), size: number(8), values });
        rest = tail;
    }
    Ok(*stop != 0)
}

/// Rank 0's message to the others: whether to stop, the newest checkpoint's step and 1, then the sum.
fn encode_total(stop: bool, saved: Option<u64>, values: &[f32]) -> Vec<u8> {
    let mut message = vec![u8::from(stop)];
    message.extend(saved.map_or(0, |step| step + 1).to_le_bytes());
    message.extend(floats_to_bytes(values));
    message
}

fn decode_total(message: &[u8], values: &mut [f32]) -> Result<(bool, Option<u64>), String> {
    let (head, rest) = message.split_at_checked(9).ok_or("sent a part of a sum")?;
    bytes_to_floats(rest, values)?;
    let saved = u64::from_le_bytes(head[1..].try_into().expect("eight bytes"));
    Ok((head[0] != 0, saved.checked_sub(1)))
}

/// What people and the agent are told.
struct Report {
    rank: usize,
    file: StatusFile,
    status: Status,
    has_checkpoints: bool,
    checkpoint_every: u64,
    /// Start of the stretch over which the speed is measured, and the tokens seen by then.
    since: (Instant, u64),
}

impl Report {
    fn new(args: &TrainArgs, contract: &Contract) -> Report {
        let mut report = Report {
            rank: contract.rank,
            file: StatusFile::new(contract.run_dir.as_deref()),
            status: Status {
                total_steps: Some(args.steps),
                message: "reading data".into(),
                ..Status::default()
            },
            has_checkpoints: args.checkpoint_dir.is_some(),
            checkpoint_every: args.checkpoint_every,
            since: (Instant::now(), 0),
        };
        report.file.update(&report.status);
        report
    }

    fn waiting(&mut self, contract: &Contract) {
        self.status.message =
            format!("rank {} of {} waits for the group", contract.rank, contract.world_size);
        self.file.update(&self.status);
    }

    fn begin(&mut self, trainer: &Trainer) {
        let (record, model) = (&trainer.state.record, &trainer.state.model);
        let from = if record.step == 0 { String::new() } else { format!(", from step {}", record.step) };
        let place = if self.has_checkpoints { "" } else { ", no checkpoints" };
        self.line(&format!(
            "training {} parameters on {} tokens of {} files{from}{place}",
            grouped(model.layout.len as u64),
            grouped(trainer.data.len() as u64),
            trainer.data.files,
        ));
        self.since = (Instant::now(), record.tokens_seen);
        self.status.state = State::Running;
        self.status.ready = true;
        self.status.message = "training".into();
        self.update(trainer);
    }

    /// A line about once a second, after the first step and after the last one.
    fn step(&mut self, trainer: &Trainer, step: &StepReport) {
        self.status.loss = Some((f64::from(step.loss) * 1e6).round() / 1e6);
        let (elapsed, total) = (self.since.0.elapsed(), trainer.state.record.settings.steps);
        let first = self.status.tokens_per_s.is_none();
        if first || step.step == total || Duration::from_secs(1) <= elapsed {
            let tokens = trainer.state.record.tokens_seen - self.since.1;
            let speed = tokens as f64 / elapsed.as_secs_f64().max(1e-9);
            self.since = (Instant::now(), trainer.state.record.tokens_seen);
            self.status.tokens_per_s = Some(speed.round());
            if self.rank == 0 {
                self.line(&format!(
                    "step {}/{total}  loss {:.3}  {} tokens/s  lr {:.1e}",
                    step.step,
                    step.loss,
                    grouped(speed as u64),
                    step.learning_rate,
                ));
            }
        }
        self.update(trainer);
    }

    fn saved(&mut self, trainer: &Trainer) {
        self.line(&format!("checkpoint at step {}", trainer.state.record.step));
        self.update(trainer);
    }

    fn stopping(&mut self, trainer: &Trainer) {
        self.status.state = State::Stopping;
        self.status.message = "ending".into();
        self.update(trainer);
    }

    fn end(&mut self, trainer: &Trainer) {
        let (step, total) = (trainer.state.record.step, trainer.state.record.settings.steps);
        self.status.message =
            format!("{} at step {step} of {total}", if step < total { "stopped" } else { "done" });
        self.update(trainer);
        // The last word is never left to the interval.
        self.file.flush(&self.status);
    }

    fn update(&mut self, trainer: &Trainer) {
        self.status.step = Some(trainer.state.record.step);
        self.status.checkpoint_step = trainer.saved;
        self.file.update(&self.status);
    }

    /// Prints a line for people; a closed output is no reason to end the training.
    fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}

/// `12345` as `12,345`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if 0 < index && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_then_falls_to_a_tenth() {
        let settings = Settings {
            seed: 1,
            batch: 1,
            micro_batch: 1,
            precision: Default::default(),
            context: 1,
            steps: 110,
            learning_rate: 1.0,
            warmup: 10,
            weight_decay: 0.0,
            clip: 1.0,
        };
        let at = |step| learning_rate(&settings, step);
        assert_eq!((at(0), at(9), at(10)), (0.1, 1.0, 1.0));
        assert!((at(60) - 0.55).abs() < 1e-6);
        assert!((at(110) - 0.1).abs() < 1e-6 && at(500) == at(110));
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn messages_of_a_reduction_survive_and_parts_of_them_are_refused() {
        let partial = |start| Partial { start, size: 1, values: vec![1.5, -2.0] };
        let message = encode(true, &[partial(4), partial(5)]);
        let mut sum = ShardSum::new(2);
        assert_eq!(decode(&message, &mut sum), Ok(true));
        assert_eq!(sum.take(), [Partial { start: 4, size: 2, values: vec![3.0, -4.0] }]);
        assert!(decode(&message[..20], &mut sum).is_err());
        let message = encode_total(false, Some(0), &[7.0]);
        let mut values = [0.0];
        assert_eq!(decode_total(&message, &mut values), Ok((false, Some(0))));
        assert_eq!(values, [7.0]);
        assert!(decode_total(&message[..10], &mut values).is_err());
    }
}
