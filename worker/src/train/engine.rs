//! The thread that holds the state of a training: it computes shards, applies sums, and hands the state to whoever needs it.
//!
//! Orders are carried out one after the other, so each sees the state that the ones before it have left. The state is shared:
//! who sends or writes it has it as it was, and the next update copies it only then.

use super::rounds::{self, Round};
use super::saver::{PATIENCE, Saver, pauses};
use super::{BETA1, BETA2, EPS, Input, StepReport, learning_rate};
use crate::checkpoint::{
    self, CheckpointError, Checkpoints, Keeping, Record, Settings, TrainingState, load_model,
};
use crate::data::Dataset;
use crate::elastic::{Computed, Event, Link, Snapshot, Spent};
use crate::error::WorkerError;
use crate::kernels::{AdamW, Backend, Cpu, DeviceError, Kernels, Precision};
use crate::model::training::{Sample, WorkspaceOf};
use crate::model::{Layout, Model, ModelConfig};
use crate::safetensors::Weights;
use crate::vector::Vector;
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
    Apply(u64, Arc<Vector>, Spent),
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
    /// Steps of the newest state that it is to have: what is computed for an earlier one is of no use.
    pub newest: Arc<AtomicU64>,
}

/// Starts the engine, which computes as many shards at the same time as there are backends; it ends when its orders do, and
/// waits for the last checkpoint.
pub fn start<K: Backend + 'static>(
    plan: Plan,
    backends: Vec<K>,
    inputs: Sender<Input>,
) -> (Sender<Order>, std::thread::JoinHandle<()>) {
    let (sender, orders) = channel();
    let handle = std::thread::spawn(move || Engine::new(plan, backends, inputs).run(orders));
    (sender, handle)
}

/// Floats that are updated while they are in a cache from being copied.
const PIECE: usize = 1 << 14;

struct Engine<K: Backend> {
    plan: Plan,
    state: Option<Arc<TrainingState>>,
    /// One shard at a time is computed on each of these.
    desks: Vec<Desk<K>>,
    /// The processor with all threads, for what is left when the shards are summed.
    kernels: Cpu,
    gradient: Vec<f32>,
    /// Open since the state was loaded, until the first one is written.
    checkpoints: Option<Checkpoints>,
    saver: Option<Saver>,
    inputs: Sender<Input>,
}

/// Where one shard is computed.
pub(super) struct Desk<K: Backend> {
    kernels: K,
    /// The processor with its share of the threads, for updates of a replica.
    pub host: Cpu,
    /// The parameters, if the backend has memory of its own, and of which step they are.
    held: (Option<Model<K::Weights>>, Option<u64>),
    workspace: WorkspaceOf<K>,
    gradient: K::FloatBuffer,
}

impl<K: Backend> Desk<K> {
    /// The loss of some sequences, and their gradient in `gradient`, which is zeros. `step`: of the parameters, where those of
    /// another call with it are the same.
    pub fn learn(
        &mut self,
        model: &Model,
        step: Option<u64>,
        sample: &Sample<'_>,
        gradient: &mut [f32],
    ) -> Result<f32, DeviceError> {
        let Desk { kernels, held: (held, at), workspace, gradient: room, .. } = self;
        let is_new = step.is_none() || *at != step;
        *at = step;
        let model = kernels.place(held, model, is_new)?;
        kernels.collect(room, gradient, |gradient| {
            model.loss_and_gradient(kernels, workspace, gradient, *sample)
        })
    }
}

impl<K: Backend> Engine<K> {
    fn new(plan: Plan, backends: Vec<K>, inputs: Sender<Input>) -> Engine<K> {
        let threads = (plan.threads / backends.len().max(1)).max(1);
        let desk = |kernels| Desk {
            kernels,
            host: Cpu::with_precision(threads, plan.settings.precision),
            held: (None, None),
            workspace: WorkspaceOf::<K>::default(),
            gradient: K::FloatBuffer::default(),
        };
        let desks = backends.into_iter().map(desk).collect();
        let kernels = Cpu::with_precision(plan.threads, plan.settings.precision);
        let (state, checkpoints, saver) = (None, None, None);
        Engine { plan, state, desks, kernels, gradient: Vec::new(), checkpoints, saver, inputs }
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
                let state = Arc::new(self.load()?);
                self.begin(state);
            }
            Order::Install(snapshot) => {
                let state = Arc::new(self.state_of(*snapshot)?);
                self.begin(state);
            }
            Order::Apply(step, total, spent) => {
                let report = self.apply(step, &total, &spent)?;
                self.tell(Input::Step(report));
            }
            Order::Compute(step, shards) => {
                let start = Instant::now();
                let sums = self.compute(step, shards)?;
                self.tell(Input::Event(Event::Computed(step, sums, start.elapsed())));
            }
            Order::Share(link) => self.tell(Input::State(link, Arc::clone(self.state()))),
            Order::Save => {
                let state = Arc::clone(self.state());
                self.save(state)?;
            }
        }
        Ok(())
    }

    fn state(&self) -> &Arc<TrainingState> {
        self.state.as_ref().expect("loaded or installed before it is used")
    }

    fn begin(&mut self, state: Arc<TrainingState>) {
        let step = state.record.step;
        self.desks.iter_mut().for_each(|desk| desk.held.1 = None);
        self.tell(Input::Began(state.record.clone(), state.model.layout.len));
        self.state = Some(state);
        self.tell(Input::Event(Event::Ready(step)));
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
        let [first, second] = [(); 2].map(|()| Vector::zeros(model.layout.len).into());
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
        Ok(TrainingState { model, first, second, record })
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
                Ok(TrainingState { model, first, second, record })
            }
            _ => Err(bad("its vectors have another length")),
        }
    }

    /// The sums of single shards, each with its loss behind it.
    fn compute(&mut self, step: u64, shards: Range<usize>) -> Result<Vec<Computed>, DeviceError> {
        let state = self.state.as_deref().expect("loaded or installed before it is used");
        if state.record.step != step {
            // Overtaken: nobody needs it.
            return Ok(Vec::new());
        }
        let settings = &self.plan.settings;
        let (model, data) = (&state.model, &*self.plan.data);
        let len = model.layout.len + 1;
        let round = Round { state, settings, data, newest: &self.plan.newest };
        let mut sums: Vec<Option<Result<Option<Computed>, DeviceError>>> =
            shards.clone().map(|_| None).collect();
        let compute = |shard: usize, desk: &mut Desk<K>| {
            if settings.inner_steps != 0 {
                return Ok(round.replica(shard, desk)?.map(|sum| Computed::new(shard, sum)));
            }
            let mut sum = Vector::zeros(len);
            let first = step * settings.batch as u64 + (shard * settings.micro_batch) as u64;
            let (tokens, targets) = samples(data, settings, first);
            let (loss, gradient) = sum.split_last_mut().expect("the loss stands last");
            let sample = Sample { tokens: &tokens, targets: &targets, length: settings.context };
            *loss = desk.learn(model, Some(step), &sample, gradient)?;
            Ok(Some(Computed::new(shard, sum)))
        };
        std::thread::scope(|scope| {
            let mut work = shards.zip(&mut self.desks).zip(&mut sums);
            let own = work.next();
            for ((shard, desk), sum) in work {
                let compute = &compute;
                scope.spawn(move || *sum = Some(compute(shard, desk)));
            }
            if let Some(((shard, desk), sum)) = own {
                *sum = Some(compute(shard, desk));
            }
        });
        // Of replicas that were overtaken there is nothing.
        let sums: Option<Vec<Computed>> = sums.into_iter().flatten().collect::<Result<_, _>>()?;
        Ok(sums.unwrap_or_default())
    }

    /// The update of a step: its gradient is the mean of those of the shards, as long as allowed.
    fn apply(&mut self, step: u64, total: &[f32], spent: &Spent) -> Result<StepReport, WorkerError> {
        let Plan { settings, .. } = &self.plan;
        let shards = settings.shards() as f32;
        let layout = &self.state().model.layout;
        let (len, floats) = (layout.len, floats(settings, layout));
        let (Some((loss, sum)), true) = (total.split_last(), total.len() == floats) else {
            return Err(WorkerError::Group("the sum of a step has another length".into()));
        };
        assert_eq!(self.state().record.step + 1, step, "updates come in order");
        let loss = loss / shards;
        let gradient_norm = self.kernels.sum_of_squares(&sum[..len]).sqrt() as f32 / shards;
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(WorkerError::Diverged { step, loss, gradient_norm });
        }
        let learning_rate = learning_rate(settings, step * settings.inner_steps.max(1) - 1);
        let mut state = self.state.take().expect("loaded or installed before it is used");
        // Who writes or sends the state has it as it was: then the next one is made beside it.
        let is_shared = Arc::get_mut(&mut state).is_none();
        let old = is_shared.then(|| {
            let next = if settings.inner_steps == 0 { state.like() } else { TrainingState::clone(&state) };
            std::mem::replace(&mut state, Arc::new(next))
        });
        let next = Arc::get_mut(&mut state).expect("nobody else has it");
        match settings.inner_steps {
            0 => {
                let TrainingState { model, first, second, .. } = next;
                let scale = shorten(settings, gradient_norm) / shards;
                self.gradient.clear();
                self.gradient.extend(sum.iter().map(|value| value * scale));
                let from = old.as_deref().map(TrainingState::vectors);
                let update = update(settings, learning_rate, step);
                adamw(&self.kernels, model, [first, second], from, &self.gradient, update);
            }
            _ => rounds::end(next, settings, sum),
        }
        let record = &mut next.record;
        (record.step, record.loss) = (step, loss);
        record.spent.add(spent);
        record.tokens_seen += settings.step_tokens();
        let spent = record.spent;
        self.state = Some(state);
        Ok(StepReport { step, loss, gradient_norm, learning_rate, spent })
    }

    /// Hands the state to the thread that writes checkpoints.
    fn save(&mut self, state: Arc<TrainingState>) -> Result<(), WorkerError> {
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

/// The update with this number, from 1.
pub(super) fn update(settings: &Settings, learning_rate: f32, update: u64) -> AdamW {
    let weight_decay = settings.weight_decay;
    AdamW { learning_rate, beta1: BETA1, beta2: BETA2, eps: EPS, weight_decay, update }
}

/// An update of all parameters. Before it they and their moments are as in `from`, if that is given.
pub(super) fn adamw(
    kernels: &Cpu,
    model: &mut Model,
    [first, second]: [&mut [f32]; 2],
    from: Option<[&[f32]; 3]>,
    gradient: &[f32],
    update: AdamW,
) {
    for tensor in &model.layout.tensors {
        // Norms are not matrices: pulling them to zero would only fight the layer behind them.
        let weight_decay = if tensor.shape.len() == 1 { 0.0 } else { update.weight_decay };
        let update = AdamW { weight_decay, ..update };
        let mut own = [&mut model.weights.parameters[..], &mut first[..], &mut second[..]]
            .map(|values| tensor.span.of_mut(values).chunks_mut(PIECE));
        let mut old = from.map(|from| from.map(|values| tensor.span.of(values).chunks(PIECE)));
        for gradient in tensor.span.of(gradient).chunks(PIECE) {
            let mut own = own.each_mut().map(|pieces| pieces.next().expect("as long as the gradient"));
            if let Some(old) = &mut old {
                own.iter_mut().zip(old).for_each(|(own, old)| {
                    own.copy_from_slice(old.next().expect("as long as the gradient"));
                });
            }
            let [parameters, first, second] = own;
            kernels.adamw(parameters, first, second, gradient, &update);
        }
    }
}
