//! Training: steps of virtual shards, summed in a fixed tree, so that the result does not depend on who computed.
//!
//! A step has V shards (`--batch / --micro-batch`), each of some sequences. Data and gradient of a shard are pure
//! functions of (seed, step, shard); members compute blocks of neighbouring shards, their leader adds up
//! ([`crate::shards`]), and all apply the same update to the same parameters. Any number of members, also one that changes,
//! gives the same bits.
//!
//! Who does what is decided by [`crate::elastic`]; here are the threads that carry it out: one decides, one computes
//! (`engine`), and each connection has two (`net`).

mod carry;
pub(crate) mod engine;
mod factors;
mod frame;
mod members;
pub(crate) mod net;
mod report;
mod rounds;
mod saver;
mod socket;
mod wire;

pub use report::{CURVE, Point};
pub(crate) use saver::WRITER;

use crate::args::{Exchange, TrainArgs, UsageError};
use crate::checkpoint::{CheckpointError, Keeping, Record, Settings, TrainingState, Writer};
use crate::contract::Contract;
use crate::data::Dataset;
use crate::elastic::{
    Action, Agreement, Audit, Event, Identity, Link, Message, Node, Outcome, PROTOCOL, PROTOCOL_OF_ROUNDS,
    Snapshot, Spent,
};
use crate::error::WorkerError;
use crate::kernels::{Chosen, Cpu};
use crate::model::{Layout, ModelConfig};
use crate::tokenizer::Tokenizer;
use engine::{Order, Plan};
use members::Membership;
use net::{Heard, Net, Outgoing};
use report::Report;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use wire::Cards;

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
    /// Where the time has gone, from the first start to this step.
    pub spent: Spent,
}

/// How often the deciding thread looks at the time.
const TICK: Duration = Duration::from_millis(5);
/// How long the last messages may take to be written, and cards to let go of each other.
const FLUSH: Duration = Duration::from_secs(2);

/// What the threads tell the one that decides.
pub(crate) enum Input {
    /// The network.
    Net(Heard),
    /// The engine, for the member.
    Event(Event),
    /// A state is there; its record, and the number of parameters.
    Began(Record, usize),
    /// A step is done.
    Step(StepReport),
    /// The state, to be sent.
    State(Link, TrainingState),
    /// Something to say.
    Line(String),
    /// A store has not taken the checkpoint of a step, for so long; it is tried again.
    NotSaved(u64, CheckpointError, Duration),
    /// The engine cannot go on.
    Failed(WorkerError),
}

/// Trains as the environment and the options say, until the steps are done or a signal comes. Prints its progress.
///
/// # Errors
/// See [`WorkerError`], which also knows the exit code.
pub fn main(args: TrainArgs) -> Result<(), WorkerError> {
    let contract = Contract::from_env()?;
    crate::kernels::pin_threads(crate::contract::pins(|name| std::env::var(name).ok()));
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
    let chosen = args
        .device
        .open(args.precision, config.head_dim)
        .map_err(|error| UsageError::new("--device", args.device, error.to_string()))?;
    report.computes_on(&chosen, contract.threads);
    if let (Some(steps), Some(replicas)) = (args.inner_steps, args.replicas) {
        report.line(&format!(
            "little communication (DiLoCo): a step is a round of {steps} steps on each of {replicas} replicas, and the mean of how far they went"
        ));
    }
    let mut membership = Membership::new(contract)?;
    report.waiting(&membership);
    let (inputs, received) = channel();
    let longest = engine::floats(&settings(args), &Layout::new(&config));
    let has_others = !membership.is_fixed() || 1 < membership.members().len();
    let cards = if has_others { cards(args, &chosen, &mut report) } else { None };
    let greeting = cards.as_ref().map(|cards| cards.nccl.greeting());
    let net = Net::new(inputs.clone(), longest).through(cards);
    if let Some(address) = membership.listens_at() {
        net.listen(&address, Duration::from_secs(args.join_timeout)).map_err(|error| {
            WorkerError::Group(format!("rank {} cannot listen at {address}: {error}", contract.rank))
        })?;
    }
    let shards = settings(args).shards();
    let lanes = match &chosen {
        Chosen::Processor(_) => contract.threads.min(shards / contract.world_size).max(1),
        // A card is one queue.
        _ => 1,
    };
    let node = Node::new(crate::elastic::Settings {
        identity: Identity {
            protocol: if args.inner_steps.is_none() { PROTOCOL } else { PROTOCOL_OF_ROUNDS }.into(),
            job: contract.job.clone(),
            attempt: contract.attempt,
            rank: contract.rank as u32,
            agreement: agreement(args, &config, &data),
            kernels: chosen.class(),
            cards: greeting,
        },
        shards,
        steps: args.steps,
        checkpoint_every: args.checkpoint_dir.is_some().then_some(args.checkpoint_every),
        lanes,
        spares: args.spares,
        audit: args.audit_every.map(|every| Audit { every, seed: args.seed }),
        is_fixed: membership.is_fixed(),
        join: Duration::from_secs(args.join_timeout),
        peer: Duration::from_secs(args.peer_timeout),
    });
    let data = Arc::new(data);
    let plan = Plan {
        settings: settings(args),
        config,
        model: ModelConfig::preset(&args.model).is_none().then(|| args.model.clone().into()),
        data: Arc::clone(&data),
        checkpoints: args.place()?.map(|place| Keeping {
            place,
            keep: args.keep,
            writer: Writer { attempt: contract.attempt, rank: contract.rank },
            scratch: contract.scratch(),
        }),
        threads: contract.threads,
        offload: args.offload && chosen.name().is_some(),
        newest: Arc::default(),
    };
    let newest = Arc::clone(&plan.newest);
    report.learns(&data);
    let (orders, engine) = match chosen {
        Chosen::Processor(_) => {
            let processor = |threads: usize| Cpu::with_precision(threads.max(1), args.precision);
            let desks = (0..lanes).map(|_| processor(contract.threads / lanes)).collect();
            engine::start(plan, processor(contract.threads), desks, inputs.clone())
        }
        Chosen::CudaF32(kernels) => engine::start(plan, kernels.clone(), vec![kernels], inputs.clone()),
        Chosen::CudaBf16(kernels) => engine::start(plan, kernels.clone(), vec![kernels], inputs.clone()),
    };
    let mut member = Driver {
        node,
        net,
        orders,
        newest,
        membership: &mut membership,
        report: &mut report,
        start: Instant::now(),
        failure: None,
        outcome: None,
    };
    let outcome = member.drive(&received, stop, on_step);
    member.net.end(FLUSH);
    // What was decided is carried out to its end, but for what is computed for a step; without a state that is nothing, and a store may not answer.
    member.orders = channel().0;
    member.newest.store(u64::MAX, Ordering::Relaxed);
    if member.node.step().is_some() {
        _ = engine.join();
    }
    while let Ok(input) = received.try_recv() {
        if matches!(input, Input::Step(_) | Input::Failed(_) | Input::Event(Event::Saved(_))) {
            member.take(input, on_step);
        }
    }
    let Driver { node, failure, .. } = member;
    let step = node.step().unwrap_or(0);
    let saved = node.saved() == Some(step) && args.checkpoint_dir.is_some();
    report.end(step, node.saved());
    match outcome {
        Outcome::Done => failure.map_or(Ok(()), Err),
        Outcome::Stopped => Err(WorkerError::Stopped { step, total_steps: args.steps, saved }),
        Outcome::Failed(reason) => Err(failure.unwrap_or(WorkerError::Group(reason))),
    }
}

/// What sums may go through from card to card, if they lie there; says why not.
fn cards(args: &TrainArgs, chosen: &Chosen, report: &mut Report) -> Option<Cards> {
    if args.exchange == Exchange::Host || args.offload || args.inner_steps.is_some() {
        return None;
    }
    match chosen.nccl()? {
        Ok(nccl) => Some(Cards { nccl: Arc::new(nccl), patience: Duration::from_secs(args.join_timeout) }),
        Err(error) => {
            report.line(&format!("sums go through the memory of the hosts: {error}"));
            None
        }
    }
}

/// Carries out what the member decides.
struct Driver<'a> {
    node: Node,
    net: Net,
    orders: Sender<Order>,
    /// Steps of the newest state that was ordered.
    newest: Arc<AtomicU64>,
    membership: &'a mut Membership,
    report: &'a mut Report,
    start: Instant,
    failure: Option<WorkerError>,
    outcome: Option<Outcome>,
}

impl Driver<'_> {
    fn drive(
        &mut self,
        inputs: &Receiver<Input>,
        stop: &AtomicBool,
        on_step: &mut dyn FnMut(&StepReport),
    ) -> Outcome {
        let mut is_stopping = false;
        self.tell(Event::Members(self.membership.members().to_vec()));
        loop {
            if let Some(outcome) = self.outcome.take() {
                return outcome;
            }
            if self.membership.has_changed() {
                self.tell(Event::Members(self.membership.members().to_vec()));
            }
            if !is_stopping && stop.load(Ordering::Relaxed) {
                is_stopping = true;
                self.membership.read();
                self.report.stopping();
                let alone = !self.membership.takes_part();
                self.tell(Event::Stop { alone });
            }
            match inputs.recv_timeout(TICK) {
                Ok(input) => self.take(input, on_step),
                Err(_) => self.tell(Event::Tick),
            }
        }
    }

    fn take(&mut self, input: Input, on_step: &mut dyn FnMut(&StepReport)) {
        match input {
            Input::Net(heard) => {
                if let Some(event) = self.net.event(heard) {
                    self.tell(event);
                }
            }
            Input::Event(event) => {
                self.tell(event);
                self.report.saved(self.node.leads(), self.node.saved());
            }
            Input::Began(record, parameters) => self.report.begin(&record, parameters, self.node.leads()),
            Input::Step(step) => {
                on_step(&step);
                self.report.step(&step, self.node.leads(), self.node.saved());
            }
            Input::State(link, state) => {
                let record = serde_json::to_string(&state.record).expect("plain fields");
                let snapshot = Snapshot { step: state.record.step, record, values: Vec::new() };
                self.net.send(link, Outgoing::State(Message::State(Box::new(snapshot)), state));
            }
            Input::Line(line) => self.report.line(&line),
            // The steps are done, so nothing else would ever end it.
            Input::NotSaved(_, error, tried) if saver::PATIENCE <= tried && self.node.is_ending() => {
                self.take(Input::Failed(error.into()), on_step);
            }
            Input::NotSaved(step, error, _) => {
                self.report.line(&format!("checkpoint at step {step} is not written yet: {error}"));
            }
            Input::Failed(error) => {
                let reason = error.to_string();
                self.failure.get_or_insert(error);
                self.tell(Event::Failed(reason));
            }
        }
    }

    fn tell(&mut self, event: Event) {
        for action in self.node.handle(self.start.elapsed(), event) {
            match action {
                Action::Dial(rank) => match self.membership.address(rank) {
                    Some(address) => self.net.dial(address),
                    None => self.tell(Event::NotDialed(format!("rank {rank} takes no part"))),
                },
                Action::Close(link) => self.net.close(link),
                Action::Send(link, message) => self.net.send(link, Outgoing::Message(message)),
                Action::SendState(link) => self.order(Order::Share(link)),
                Action::Load => self.order(Order::Load),
                Action::Install(snapshot) => {
                    self.newest.store(snapshot.step, Ordering::Relaxed);
                    self.order(Order::Install(snapshot));
                }
                Action::Apply { step, total, spent } => {
                    self.newest.store(step, Ordering::Relaxed);
                    self.order(Order::Apply(step, total, spent));
                }
                Action::Compute { step, shards } => self.order(Order::Compute(step, shards)),
                Action::Save(_) => self.order(Order::Save),
                Action::Say(text) => self.report.line(&text),
                Action::Wait(text) => self.report.waits(&text),
                Action::Exit(outcome) => self.outcome = Some(outcome),
            }
        }
    }

    /// An engine that has failed has said so.
    fn order(&mut self, order: Order) {
        _ = self.orders.send(order);
    }
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
    let audits = args.audit_every.map_or("not given".into(), |every| every.to_string());
    agreement.push(("--audit-every".into(), audits));
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
        inner_steps: args.inner_steps.unwrap_or(0),
        replicas: args.replicas.unwrap_or(0),
        keeps_moments: args.inner_steps.is_some(),
    }
}

/// Learning rate of step `step`, from 0, where rounds count all steps of a replica: a straight rise over the warm-up, then half a cosine down to a tenth.
///
/// Source: Loshchilov and Hutter, "SGDR", arXiv 1608.03983, equation 5.
fn learning_rate(settings: &Settings, step: u64) -> f32 {
    let [warmup, steps] = [settings.warmup, settings.steps].map(|steps| steps * settings.inner_steps.max(1));
    if step < warmup {
        return settings.learning_rate * (step + 1) as f32 / warmup as f32;
    }
    let length = (steps - warmup).max(1);
    let progress = ((step - warmup) as f64 / length as f64).min(1.0);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()) as f32;
    settings.learning_rate * (FINAL_SHARE + (1.0 - FINAL_SHARE) * cosine)
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
            inner_steps: 0,
            replicas: 0,
            keeps_moments: false,
        };
        let at = |step| learning_rate(&settings, step);
        assert_eq!((at(0), at(9), at(10)), (0.1, 1.0, 1.0));
        assert!((at(60) - 0.55).abs() < 1e-6);
        assert!((at(110) - 0.1).abs() < 1e-6 && at(500) == at(110));
    }
}
