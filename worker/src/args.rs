//! The options of the worker's two commands.

use crate::checkpoint::Place;
use crate::kernels::{Device, Precision};
use clap::Args;
use std::path::PathBuf;

/// What sums of a training go through between ranks on cards.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exchange {
    /// From card to card where that is possible.
    #[default]
    Auto,
    /// The memory of the hosts.
    Host,
}

/// An option with a value that it cannot have.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{option} is {value}; {allowed}")]
pub struct UsageError {
    /// The option.
    pub option: &'static str,
    /// The value it got.
    pub value: String,
    /// What it may be.
    pub allowed: String,
}

impl UsageError {
    /// `option` cannot be `value`: `allowed` says what it can be.
    pub fn new(option: &'static str, value: impl ToString, allowed: impl Into<String>) -> UsageError {
        UsageError { option, value: value.to_string(), allowed: allowed.into() }
    }
}

/// Options of training.
#[derive(Args, Clone, Debug)]
pub struct TrainArgs {
    /// Shape of the model: tiny (0.8M parameters), small (6.4M), medium (25M), or a directory with config.json
    /// and, to start from its weights, model.safetensors
    #[arg(long, value_name = "NAME|DIR", default_value = "tiny")]
    pub model: String,

    /// Text to learn: a file, or a directory whose text files are read recursively
    #[arg(long, value_name = "FILE|DIR")]
    pub data: PathBuf,

    /// Steps in all, those before a restart included
    #[arg(long, default_value_t = 200)]
    pub steps: u64,

    /// Sequences in a step, over all ranks; at least one for each rank
    #[arg(long, default_value_t = 8)]
    pub batch: usize,

    /// Sequences that one rank computes together, a divisor of --batch: more are faster and need more memory, and at most
    /// --batch / --micro-batch ranks can share a step
    #[arg(long, value_name = "SEQUENCES", default_value_t = 1)]
    pub micro_batch: usize,

    /// What the factors of matrix products are rounded to; sums, weights and moments are f32
    #[arg(long, value_name = "NAME", default_value = "f32")]
    pub precision: Precision,

    /// What computes: cpu, or cuda or cuda:N, a card of NVIDIA's by its number among those that this process may see; auto is
    /// the first card if there is one and its libraries are found, else cpu
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto)]
    pub device: Device,

    /// On a card: keep the weights that are updated, their moments and what is summed up in the host's memory. Takes at least 12
    /// bytes a parameter less of the card, and longer: the processor updates them, and they cross the link in every step
    #[arg(long, env = "AQUIFER_OFFLOAD", value_parser = clap::builder::BoolishValueParser::new())]
    pub offload: bool,

    /// What sums go through between ranks on NVIDIA's cards: auto is from card to card where both ends find the same NCCL, else, and
    /// with host, the memory of the hosts
    #[arg(long, value_name = "NAME", env = "AQUIFER_EXCHANGE", value_enum, default_value_t = Exchange::Auto)]
    pub exchange: Exchange,

    /// Tokens in a sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub context: usize,

    /// Highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = 3e-3)]
    pub learning_rate: f32,

    /// Steps in which the learning rate rises to its highest [default: a tenth of the steps, at most 100]
    #[arg(long, value_name = "STEPS")]
    pub warmup: Option<u64>,

    /// Share of every matrix that a step at learning rate 1 takes away
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub weight_decay: f32,

    /// Longest gradient: a longer one is shortened to it
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    pub clip: f32,

    /// Decides the first weights and the order of the data
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Where checkpoints are written and continued from: a directory, or s3://BUCKET/PREFIX, gs://…, az://…, file:///…
    /// [default: no checkpoints]
    #[arg(long, value_name = "DIR|URL", env = "AQUIFER_CHECKPOINT_DIR", hide_env_values = true)]
    pub checkpoint_dir: Option<String>,

    /// Steps between two checkpoints; one is always written at the end
    #[arg(long, value_name = "STEPS", default_value_t = 50)]
    pub checkpoint_every: u64,

    /// Checkpoints that are kept, the newest ones
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    pub keep: usize,

    /// For slow links: a step is a round, in which each of --replicas copies of the model takes so many steps by itself, and the
    /// ranks exchange only how far it went (DiLoCo). Another optimizer than a step's own, with another result
    #[arg(long, value_name = "STEPS", requires = "replicas")]
    pub inner_steps: Option<u64>,

    /// Copies of the model in a round, at least one for each rank; each takes --batch / --replicas sequences a step
    #[arg(long, value_name = "COUNT", requires = "inner_steps")]
    pub replicas: Option<usize>,

    /// Ranks that have every state and compute nothing unless another one is missing
    #[arg(long, value_name = "RANKS", default_value_t = 0)]
    pub spares: usize,

    /// Steps of which one has a shard that two ranks compute, to compare the bits [default: none]
    #[arg(long, value_name = "STEPS")]
    pub audit_every: Option<u64>,

    /// Seconds that a rank waits for the others to start, and for its card to be joined with another one's
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub join_timeout: u64,

    /// Seconds that a rank waits for a silent one in a step before it gives up; more than the slowest step takes
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub peer_timeout: u64,
}

impl TrainArgs {
    /// Steps in which the learning rate rises.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup.unwrap_or((self.steps / 10).min(100))
    }

    /// Where checkpoints are.
    ///
    /// # Errors
    /// It is no place.
    pub fn place(&self) -> Result<Option<Place>, UsageError> {
        self.checkpoint_dir.as_deref().map(|text| Place::parse("--checkpoint-dir", text)).transpose()
    }

    /// Checks what can be checked without reading a file.
    ///
    /// # Errors
    /// Names the first option whose value cannot be, and what it can be.
    pub fn validate(&self, world_size: usize) -> Result<(), UsageError> {
        self.place()?;
        let counts = [
            ("--steps", self.steps, 1, 1 << 40),
            ("--context", self.context as u64, 1, 1 << 20),
            ("--checkpoint-every", self.checkpoint_every, 1, 1 << 40),
            ("--audit-every", self.audit_every.unwrap_or(1), 1, 1 << 40),
            ("--inner-steps", self.inner_steps.unwrap_or(1), 1, 1 << 20),
            ("--keep", self.keep as u64, 1, 1 << 20),
            ("--join-timeout", self.join_timeout, 1, 86_400),
            ("--peer-timeout", self.peer_timeout, 1, 86_400),
        ];
        for (option, value, least, most) in counts {
            if !(least..=most).contains(&value) {
                return Err(UsageError::new(option, value, format!("it is {least} to {most}")));
            }
        }
        if !(world_size..=1 << 20).contains(&self.batch) {
            let allowed = format!("it is {world_size}, one sequence for each rank, to {}", 1 << 20);
            return Err(UsageError::new("--batch", self.batch, allowed));
        }
        if self.micro_batch == 0 || !self.batch.is_multiple_of(self.micro_batch) {
            let allowed = format!("it divides --batch, {}", self.batch);
            return Err(UsageError::new("--micro-batch", self.micro_batch, allowed));
        }
        if let Some(replicas) = self.replicas {
            if !(world_size..=self.batch).contains(&replicas) {
                let allowed = format!("it is {world_size}, one for each rank, to --batch, {}", self.batch);
                return Err(UsageError::new("--replicas", replicas, allowed));
            }
            if !self.batch.is_multiple_of(replicas * self.micro_batch) {
                let allowed =
                    format!("times --micro-batch, {}, it divides --batch, {}", self.micro_batch, self.batch);
                return Err(UsageError::new("--replicas", replicas, allowed));
            }
        } else if self.batch / self.micro_batch < world_size {
            let allowed = format!("it is at most --batch / ranks, {} / {world_size}", self.batch);
            return Err(UsageError::new("--micro-batch", self.micro_batch, allowed));
        }
        if self.steps < self.warmup_steps() {
            let allowed = format!("it is at most --steps, {}", self.steps);
            return Err(UsageError::new("--warmup", self.warmup_steps(), allowed));
        }
        if self.precision == Precision::Int8 {
            return Err(UsageError::new("--precision", "int8", "it is f32 or bf16: int8 is for serving"));
        }
        let positive = |value: f32| 0.0 < value && value.is_finite();
        if !(positive(self.learning_rate) && self.learning_rate <= 10.0) {
            return Err(UsageError::new(
                "--learning-rate",
                self.learning_rate,
                "it is above 0 and at most 10",
            ));
        }
        if !positive(self.clip) {
            return Err(UsageError::new("--clip", self.clip, "it is above 0"));
        }
        if !(0.0..=10.0).contains(&self.weight_decay) {
            return Err(UsageError::new("--weight-decay", self.weight_decay, "it is 0 to 10"));
        }
        Ok(())
    }
}

/// Options of serving.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The model: a directory with config.json and model.safetensors, or one with checkpoints or a URL of checkpoints
    /// (s3://BUCKET/PREFIX, gs://…, az://…, file:///…), of which the latest is taken
    #[arg(long, value_name = "DIR|URL")]
    pub model: PathBuf,

    /// Name of the model for clients [default: the directory's name]
    #[arg(long)]
    pub name: Option<String>,

    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,

    /// Port to listen on; 0 takes any free one
    #[arg(long, env = "AQUIFER_PORT", default_value_t = 8000)]
    pub port: u16,

    /// What weights are kept in, on processors and on cards: 4 bytes, 2, or with int8 1 and a scale for every 64; factors of
    /// long matrix products are rounded to it, with int8 to bf16
    #[arg(long, value_name = "NAME", default_value = "f32")]
    pub precision: Precision,

    /// What computes: cpu, or cuda or cuda:N, a card of NVIDIA's by its number among those that this process may see; auto is
    /// the first card if there is one and its libraries are found, else cpu
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto)]
    pub device: Device,

    /// Requests that may wait for their turn; more are told to come back later
    #[arg(long, value_name = "REQUESTS", default_value_t = 64)]
    pub max_queue: usize,

    /// Memory for cached keys and values, in MiB [default: a quarter of what this process may use, on a card three quarters of
    /// what the model leaves, and no more than 64 requests of the model's window take]
    #[arg(long, value_name = "MIB")]
    pub kv_memory: Option<u64>,

    /// Seconds that running requests get to finish after a signal to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub grace: u64,
}

impl ServeArgs {
    /// The name of the model for clients.
    pub fn model_name(&self) -> String {
        let directory = || {
            let path = self.model.canonicalize().unwrap_or_else(|_| self.model.clone());
            path.file_name().map(|name| name.to_string_lossy().into_owned())
        };
        self.name.clone().or_else(directory).unwrap_or_else(|| "model".into())
    }

    /// Checks what can be checked without reading a file.
    ///
    /// # Errors
    /// Names the first option whose value cannot be, and what it can be.
    pub fn validate(&self) -> Result<(), UsageError> {
        if !(1..=1 << 20).contains(&self.max_queue) {
            return Err(UsageError::new("--max-queue", self.max_queue, format!("it is 1 to {}", 1 << 20)));
        }
        if self.kv_memory.is_some_and(|mib| !(1..=1 << 24).contains(&mib)) {
            let value = self.kv_memory.unwrap_or(0);
            return Err(UsageError::new("--kv-memory", value, format!("it is 1 to {} MiB", 1 << 24)));
        }
        if self.grace > 86_400 {
            return Err(UsageError::new("--grace", self.grace, "it is 0 to 86400"));
        }
        if self.name.as_ref().is_some_and(String::is_empty) {
            return Err(UsageError::new("--name", "empty", "it has at least one character"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Train {
        #[command(flatten)]
        args: TrainArgs,
    }

    fn refusal(options: &[&str], world_size: usize) -> String {
        let fixed = ["train", "--data", "text"];
        let args = Train::try_parse_from(fixed.iter().chain(options)).ok().unwrap().args;
        args.validate(world_size).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_valid() {
        let args = Train::try_parse_from(["train", "--data", "text"]).ok().unwrap().args;
        args.validate(1).unwrap();
        assert_eq!(args.warmup_steps(), 20);
    }

    #[test]
    fn a_value_that_cannot_be_is_named_with_what_it_can_be() {
        assert_eq!(refusal(&["--steps", "0"], 1), "--steps is 0; it is 1 to 1099511627776");
        assert_eq!(
            refusal(&["--batch", "2"], 4),
            "--batch is 2; it is 4, one sequence for each rank, to 1048576"
        );
        assert_eq!(refusal(&["--micro-batch", "3"], 1), "--micro-batch is 3; it divides --batch, 8");
        let allowed = "--micro-batch is 8; it is at most --batch / ranks, 8 / 2";
        assert_eq!(refusal(&["--micro-batch", "8"], 2), allowed);
        assert_eq!(refusal(&["--warmup", "300"], 1), "--warmup is 300; it is at most --steps, 200");
        assert_eq!(
            refusal(&["--learning-rate", "NaN"], 1),
            "--learning-rate is NaN; it is above 0 and at most 10"
        );
        assert_eq!(refusal(&["--clip=-1"], 1), "--clip is -1; it is above 0");
        assert_eq!(refusal(&["--audit-every", "0"], 1), "--audit-every is 0; it is 1 to 1099511627776");
        let rounds = |replicas| refusal(&["--inner-steps", "5", "--replicas", replicas], 2);
        assert_eq!(rounds("1"), "--replicas is 1; it is 2, one for each rank, to --batch, 8");
        assert_eq!(rounds("3"), "--replicas is 3; times --micro-batch, 1, it divides --batch, 8");
        assert_eq!(refusal(&["--keep", "0"], 1), "--keep is 0; it is 1 to 1048576");
    }
}
