//! The thread that holds the state of a training: it computes shards, applies sums, and hands the state to whoever needs it.
//!
//! Orders are carried out one after the other, so each sees the state that the ones before it have left. Who sends or writes
//! the state has it as it was. Where it is kept and updated is the backend's business ([`Training`]).

use super::rounds::{self, Round};
use super::saver::{PATIENCE, Saver, pauses};
use super::{BETA1, BETA2, EPS, Input, StepReport, learning_rate};
use crate::checkpoint::{
    self, CheckpointError, Checkpoints, Keeping, Record, Settings, TrainingState, load_model,
};
use crate::data::Dataset;
use crate::elastic::{Computed, Event, Link, Snapshot, Spent};
use crate::error::WorkerError;
use crate::kernels::{AdamW, Backend, Cpu, DeviceError, Offloaded, Precision, Training};
use crate::model::training::{Sample, WorkspaceOf};
use crate::model::{Layout, Model, ModelConfig, Trained};
use crate::safetensors::Weights;
use crate::shards::Partial;
use crate::values::Values;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

/// What the engine is to do, in order.
pub enum Order {
    /// Load the newest checkpoint, or begin.
    Load,
    /// Take this state.
    Install(Box<Snapshot>),
    /// Update the state with the sum of all shards.
    Apply(u64, Arc<Values>, Spent),
    /// Compute shards with the state of a step.
    Compute(u64, Range<usize>),
    /// Give the state to a member.
    Share(Link),
    /// Write a checkpoint.
    Save,
}

/// What a training is of.
pub struct Plan {
    /// Of the steps.
    pub settings: Settings,
    /// Of the model.
    pub config: ModelConfig,
    /// Its directory, where it is not a preset.
    pub model: Option<PathBuf>,
    /// What it learns.
    pub data: Arc<Dataset>,
    /// Where checkpoints are kept, if anywhere.
    pub checkpoints: Option<Keeping>,
    /// Threads of this worker.
    pub threads: usize,
    /// The state, and what is summed up, are kept in the host's memory, whatever computes.
    pub offload: bool,
    /// Steps of the newest state that it is to have: what is computed for an earlier one is of no use.
    pub newest: Arc<AtomicU64>,
}

/// Starts the engine, which computes as many shards at the same time as there are backends; it ends when its orders do, and
/// waits for the last checkpoint. `whole` has all threads, for what is left when the shards are summed.
pub fn start<K: Backend>(
    plan: Plan,
    whole: K,
    backends: Vec<K>,
    inputs: Sender<Input>,
) -> (Sender<Order>, std::thread::JoinHandle<()>) {
    let (sender, orders) = channel();
    let handle = std::thread::spawn(move || Engine::new(plan, whole, backends, inputs).run(orders));
    (sender, handle)
}

/// Whoever gives orders knows that there is a state.
const HELD: &str = "a state is loaded or installed before it is used";

struct Engine<K: Backend> {
    plan: Plan,
    kernels: K,
    state: Option<State<K>>,
    /// One shard at a time is computed on each of these.
    desks: Vec<Desk<K>>,
    /// Open since the state was loaded, until the first one is written.
    checkpoints: Option<Checkpoints>,
    saver: Option<Saver>,
    inputs: Sender<Input>,
}

/// The state between two steps, where it is updated.
struct State<K: Backend> {
    training: Box<dyn Training<K>>,
    layout: Layout,
    record: Record,
}

/// Where one shard is computed.
pub(super) struct Desk<K: Backend> {
    pub kernels: K,
    workspace: WorkspaceOf<K>,
}

impl<K: Backend> Desk<K> {
    /// Zeros for a gradient and its loss.
    pub fn zeros(&self, layout: &Layout) -> K::FloatBuffer {
        let mut sum = K::FloatBuffer::default();
        self.kernels.resize(&mut sum, layout.len + 1);
        self.kernels.zero(&mut sum);
        sum
    }

    /// The loss of some sequences, whose gradient is added to the first part of `sum`.
    pub fn learn(&mut self, model: &Model<K::Weights>, sample: Sample<'_>, sum: &mut K::Floats) -> f32 {
        let gradient = &mut sum[0..model.layout.len];
        model.loss_and_gradient(&self.kernels, &mut self.workspace, gradient, sample)
    }
}

impl<K: Backend> Engine<K> {
    fn new(plan: Plan, kernels: K, backends: Vec<K>, inputs: Sender<Input>) -> Engine<K> {
        let desk = |kernels| Desk { kernels, workspace: WorkspaceOf::<K>::default() };
        let desks = backends.into_iter().map(desk).collect();
        Engine { plan, kernels, state: None, desks, checkpoints: None, saver: None, inputs }
    }

    fn run(mut self, orders: Receiver<Order>) {
        for order in orders {
            if let Err(error) = self.obey(order) {
                self.tell(Input::Failed(error));
                break;
            }
        }
    }

    /// Nobody may listen any more.
    fn tell(&self, input: Input) {
        _ = self.inputs.send(input);
    }

    fn obey(&mut self, order: Order) -> Result<(), WorkerError> {
        match order {
            Order::Load => {
                let state = self.load()?;
                self.begin(state)?;
            }
            Order::Install(snapshot) => {
                let state = self.state_of(*snapshot)?;
                self.begin(state)?;
            }
            Order::Apply(step, total, spent) => {
                let report = self.apply(step, total, &spent)?;
                self.tell(Input::Step(report));
            }
            Order::Compute(step, shards) => {
                let start = Instant::now();
                let sums = self.compute(step, shards)?;
                self.tell(Input::Event(Event::Computed(step, sums, start.elapsed())));
            }
            Order::Share(link) => {
                let state = self.share()?;
                self.tell(Input::State(link, state));
            }
            Order::Save => {
                let state = self.share()?;
                self.save(state)?;
            }
        }
        Ok(())
    }

    /// The state as it is now, on the host.
    fn share(&self) -> Result<TrainingState, DeviceError> {
        let State { training, record, .. } = self.state.as_ref().expect(HELD);
        Ok(TrainingState { trained: training.share(&self.kernels)?, record: record.clone() })
    }

    fn begin(&mut self, TrainingState { trained, record }: TrainingState) -> Result<(), DeviceError> {
        let step = record.step;
        self.tell(Input::Began(record.clone(), trained.model.layout.len));
        // An earlier one makes room first.
        self.state = None;
        let layout = trained.model.layout.clone();
        let training = self.plan.train(&self.kernels, trained, self.plan.settings.inner_steps != 0)?;
        self.state = Some(State { training, layout, record });
        self.tell(Input::Event(Event::Ready(step)));
        Ok(())
    }

    /// The newest checkpoint, or the state before the first step.
    fn load(&mut self) -> Result<TrainingState, WorkerError> {
        let found = match self.plan.checkpoints.clone() {
            None => None,
            Some(keeping) => {
                let Plan { settings, config, model, .. } = &self.plan;
                let checkpoints = self.patiently(|| Checkpoints::open(&keeping, model.as_deref()))?;
                let (state, skipped) = self.patiently(|| checkpoints.load_newest(settings, config))?;
                skipped.into_iter().for_each(|sentence| self.tell(Input::Line(sentence)));
                if let Some(state) = &state {
                    self.tell(Input::Event(Event::Saved(state.record.step)));
                }
                self.checkpoints = Some(checkpoints);
                state
            }
        };
        let Plan { data, settings, .. } = &self.plan;
        let mut state = match found {
            Some(mut state) => {
                let record = &mut state.record;
                let gone = checkpoint::unix_ms().saturating_sub(record.saved_at_ms);
                record.spent.lost_us += 1000 * if record.saved_at_ms == 0 { 0 } else { gone };
                if (state.record.data_tokens, state.record.data_crc32) != (data.len(), data.digest) {
                    self.tell(Input::Line("the data has changed since the checkpoint was written".into()));
                }
                state
            }
            None => self.fresh()?,
        };
        state.record.settings = settings.clone();
        (state.record.data_tokens, state.record.data_crc32) = (data.len(), data.digest);
        Ok(state)
    }

    /// Tries again for a while what a store has not done.
    fn patiently<T>(&self, attempt: impl Fn() -> Result<T, CheckpointError>) -> Result<T, CheckpointError> {
        let start = Instant::now();
        for pause in pauses() {
            match attempt() {
                Err(error) if error.is_passing() && start.elapsed() < PATIENCE => {
                    self.tell(Input::Line(format!("{error}; tried again in {} s", pause.as_secs())));
                    std::thread::sleep(pause);
                }
                result => return result,
            }
        }
        unreachable!("pauses have no end")
    }

    /// The state before the first step.
    fn fresh(&self) -> Result<TrainingState, WorkerError> {
        let Plan { settings, config, data, .. } = &self.plan;
        let model = match self.plan.model.as_deref().filter(|path| Weights::are_in(path)) {
            Some(path) => load_model(path, Precision::F32)?,
            None => Model::new(config.clone(), settings.seed),
        };
        let record = Record {
            step: 0,
            tokens_seen: 0,
            loss: 0.0,
            settings: settings.clone(),
            data_tokens: data.len(),
            data_crc32: data.digest,
            files: Default::default(),
            spent: Spent::default(),
            saved_at_ms: 0,
        };
        Ok(TrainingState { trained: Arc::new(Trained::new(model)), record })
    }

    /// The state that another member has sent.
    fn state_of(&self, snapshot: Snapshot) -> Result<TrainingState, WorkerError> {
        let bad = |reason: &str| WorkerError::Group(format!("the state that came is not one: {reason}"));
        let record = serde_json::from_str(&snapshot.record).map_err(|error| bad(&error.to_string()))?;
        let config = self.plan.config.clone();
        let len = Layout::new(&config).len;
        match <[Vec<f32>; 3]>::try_from(snapshot.values) {
            Ok([parameters, first, second])
                if [&parameters, &first, &second].iter().all(|values| values.len() == len) =>
            {
                let model = Model::with_parameters(config, parameters);
                Ok(TrainingState { trained: Arc::new(Trained { model, first, second }), record })
            }
            _ => Err(bad("its vectors have another length")),
        }
    }

    /// The sums of single shards, each with its loss behind it.
    fn compute(&mut self, step: u64, shards: Range<usize>) -> Result<Vec<Computed>, DeviceError> {
        let Engine { plan, kernels, state, desks, .. } = self;
        let State { training, layout, record } = state.as_mut().expect(HELD);
        if record.step != step {
            // Overtaken: nobody needs it.
            return Ok(Vec::new());
        }
        let (settings, data) = (&plan.settings, &*plan.data);
        if settings.inner_steps != 0 {
            let round = Round { plan, start: &training.share(kernels)?, number: step };
            let sums: Vec<_> = on_desks(desks, shards, |shard, desk| round.replica(shard, desk))?;
            // Of replicas that were overtaken there is nothing.
            return Ok(sums.into_iter().collect::<Option<_>>().unwrap_or_default());
        }
        let model = training.model(kernels)?;
        on_desks(desks, shards, |shard, desk| {
            let first = step * settings.batch as u64 + (shard * settings.micro_batch) as u64;
            let (tokens, targets) = samples(data, settings, first);
            let sample = Sample { tokens: &tokens, targets: &targets, length: settings.context };
            let mut sum = desk.zeros(layout);
            let loss = desk.learn(model, sample, &mut sum);
            desk.kernels.write(&mut sum[layout.len..layout.len + 1], &[loss]);
            let is_finite = desk.kernels.are_finite(&sum)?;
            let values = plan.keep(&desk.kernels, sum)?;
            Ok(Computed { sum: Partial { start: shard, size: 1, values: Arc::new(values) }, is_finite })
        })
    }

    /// The update of a step: its gradient is the mean of those of the shards, as long as allowed.
    fn apply(&mut self, step: u64, total: Arc<Values>, spent: &Spent) -> Result<StepReport, WorkerError> {
        let Engine { plan, kernels, state, .. } = self;
        let settings = &plan.settings;
        let State { training, layout, record } = state.as_mut().expect(HELD);
        if total.len() != floats(settings, layout) {
            return Err(WorkerError::Group("the sum of a step has another length".into()));
        }
        assert_eq!(record.step + 1, step, "updates come in order");
        let shards = settings.shards() as f32;
        let (squares, loss) = training.take(kernels, Arc::clone(&total))?;
        let (loss, gradient_norm) = (loss / shards, squares.sqrt() as f32 / shards);
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(WorkerError::Diverged { step, loss, gradient_norm });
        }
        let learning_rate = learning_rate(settings, step * settings.inner_steps.max(1) - 1);
        match settings.inner_steps {
            0 => {
                let scale = shorten(settings, gradient_norm) / shards;
                training.update(kernels, update(settings, learning_rate, step, scale))?;
            }
            _ => {
                let mut next = Trained::clone(&*training.share(kernels)?);
                rounds::end(&mut next, settings, step - 1, total.host()?);
                *training = plan.train(kernels, Arc::new(next), true)?;
            }
        }
        (record.step, record.loss) = (step, loss);
        record.spent.add(spent);
        record.tokens_seen += settings.step_tokens();
        let spent = record.spent;
        Ok(StepReport { step, loss, gradient_norm, learning_rate, spent })
    }

    /// Hands the state to the thread that writes checkpoints.
    fn save(&mut self, state: TrainingState) -> Result<(), WorkerError> {
        let Some(keeping) = &self.plan.checkpoints else { return Ok(()) };
        let start = || {
            let (checkpoints, model) = (self.checkpoints.take(), self.plan.model.clone());
            Saver::start(checkpoints, keeping.clone(), model, self.inputs.clone())
        };
        if let Some(step) = self.saver.get_or_insert_with(start).save(state)? {
            let sentence = format!("checkpoint at step {step} is left out: the one before takes until now");
            self.tell(Input::Line(sentence));
        }
        Ok(())
    }
}

/// Floats of what is summed up of a step: a gradient, or what replicas give, and the loss.
pub(super) fn floats(settings: &Settings, layout: &Layout) -> usize {
    1 + if settings.inner_steps == 0 { layout.len } else { rounds::floats(layout) }
}

/// The sequences of a pass, from number `first` on.
pub(super) fn samples(data: &Dataset, settings: &Settings, first: u64) -> (Vec<u32>, Vec<u32>) {
    let (mut tokens, mut targets) = (Vec::new(), Vec::new());
    for number in first..first + settings.micro_batch as u64 {
        let (more, next) = data.sample(settings.seed, number, settings.context);
        tokens.extend(more);
        targets.extend(next);
    }
    (tokens, targets)
}

/// What a gradient is multiplied by to be as long as allowed.
pub(super) fn shorten(settings: &Settings, norm: f32) -> f32 {
    if settings.clip < norm { settings.clip / norm } else { 1.0 }
}

/// The update with this number, from 1, of a gradient `scale` times as long as it is.
pub(super) fn update(settings: &Settings, learning_rate: f32, update: u64, scale: f32) -> AdamW {
    let weight_decay = settings.weight_decay;
    AdamW { learning_rate, beta1: BETA1, beta2: BETA2, eps: EPS, weight_decay, update, scale }
}

impl Plan {
    /// Begins with a state: in the backend's memory, or in the host's where that is asked for, or `is_idle` because no pass reads it.
    pub(super) fn train<K: Backend>(
        &self,
        kernels: &K,
        trained: Arc<Trained>,
        is_idle: bool,
    ) -> Result<Box<dyn Training<K>>, DeviceError> {
        match self.offload || is_idle {
            true => Ok(Box::new(Offloaded::new(trained, Cpu::new(self.threads)))),
            false => kernels.train(trained).map_err(|DeviceError(reason)| {
                DeviceError(format!("{reason}; --offload keeps the state of the training on the host"))
            }),
        }
    }

    /// What is to be summed up, where the state is.
    pub(super) fn keep<K: Backend>(
        &self,
        kernels: &K,
        floats: K::FloatBuffer,
    ) -> Result<Values, DeviceError> {
        let values = kernels.keep(floats);
        match self.offload {
            true => values.into_host().map(Values::from),
            false => Ok(values),
        }
    }
}

/// Computes shards, each at a desk of its own; the first failure, if there is one.
fn on_desks<K: Backend, T: Send>(
    desks: &mut [Desk<K>],
    shards: Range<usize>,
    compute: impl Fn(usize, &mut Desk<K>) -> Result<T, DeviceError> + Sync,
) -> Result<Vec<T>, DeviceError> {
    let mut results: Vec<Option<Result<T, DeviceError>>> = shards.clone().map(|_| None).collect();
    std::thread::scope(|scope| {
        let mut work = shards.zip(desks).zip(&mut results);
        let own = work.next();
        for ((shard, desk), result) in work {
            let compute = &compute;
            scope.spawn(move || *result = Some(compute(shard, desk)));
        }
        if let Some(((shard, desk), result)) = own {
            *result = Some(compute(shard, desk));
        }
    });
    results.into_iter().flatten().collect()
}
