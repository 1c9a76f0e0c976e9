//! Flags that say what a job should be: of `run`, and over the job file of `submit` and `plan`.

use std::env;
use std::path::PathBuf;

use crate::job_file::*;
use crate::output::Failure;

/// The keys of a job file, as flags.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "The job")]
pub struct JobFlags {
    /// What people call the job: up to 128 characters. Default: the program's name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Queue that the job is charged to. Default: "default"
    #[arg(long, value_name = "NAME")]
    pub queue: Option<String>,
    /// Larger goes first within the queue: -1000 to 1000. Default: 0
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub priority: Option<Whole<-1000, 1000>>,
    /// Number of equal workers, placed together or not at all: 1 to 65,536. Default: 1
    #[arg(long, value_name = "N")]
    pub ranks: Option<Whole<1, 65_536>>,
    /// The fewest of them with which the job starts and goes on: it shrinks for better jobs, and grows on idle
    /// devices. Default: as many as --ranks
    #[arg(long, value_name = "N")]
    pub min_ranks: Option<Whole<1, 65_536>>,
    /// Devices of each rank: 0 to 4,096. Default: 0; with another device flag, and for train and serve: 1
    #[arg(long, value_name = "N")]
    pub devices: Option<Whole<0, 4096>>,
    /// Model of the devices, or its first words: h100 accepts h100-80gb-hbm3. Default: any
    #[arg(long, value_name = "MODEL")]
    pub class: Option<String>,
    /// Maker of the devices: nvidia, amd, ascend, cpu, … as in `aquifer nodes`. Default: any
    #[arg(long, value_name = "VENDOR")]
    pub vendor: Option<Maker>,
    /// Least memory of each device, with its unit: 80GiB. Default: any
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<Size>,
    /// Part of each device's compute: 40%. Default: as large as that of the memory, or the whole device
    #[arg(long, value_name = "PERCENT")]
    pub slice_compute: Option<Percent>,
    /// Part of each device's memory, with its unit: 20GiB. Default: as large as that of the compute
    #[arg(long, value_name = "SIZE")]
    pub slice_memory: Option<Size>,
    /// Part of each device by its maker's name for it, instead of --slice-compute and --slice-memory: 1g.10gb, vir05_1c_16g, qpx
    #[arg(long, value_name = "NAME", conflicts_with_all = ["slice_compute", "slice_memory"])]
    pub slice_profile: Option<Profile>,
    /// How well the part must be kept from others on its device: hard, limited or advisory. Default: advisory, not at all
    #[arg(long, value_name = "LEVEL")]
    pub slice_isolation: Option<Apartness>,
    /// Whether several devices of a rank must be of one island (linked directly): require, prefer. Default: prefer
    #[arg(long, value_name = "NEED")]
    pub island: Option<Need>,
    /// Cores of each rank, in steps of 0.001. Default: 1
    #[arg(long, value_name = "CORES")]
    pub cpus: Option<Cpus>,
    /// Main memory of each rank, with its unit: 20GiB. Default: 0, none is reserved
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// Label that the nodes must have; may be repeated. Default: none
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// Image of the container that each rank runs in, on nodes with podman or docker. Default: none, in no container
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Directory or file of the node that the container sees, at the same path or at another one, read-only with :ro;
    /// may be repeated. Default: its own directories
    #[arg(long = "mount", value_name = "HOST[:CONTAINER][:ro]")]
    pub mounts: Vec<Mount>,
    /// All ranks in one domain of this level: node, or the key of a label of nodes. Default: anywhere
    #[arg(long, value_name = "LEVEL")]
    pub topology_require: Option<Level>,
    /// All ranks in one domain of the first of these levels for which one has room; may be repeated, narrowest first.
    /// Default: anywhere
    #[arg(long, value_name = "LEVEL")]
    pub topology_prefer: Vec<Level>,
    /// No two ranks in one domain of this level: node, or the key of a label of nodes. Default: not apart
    #[arg(long, value_name = "LEVEL")]
    pub apart: Option<Level>,
    /// Each rank in the domain of this level that has fewest of them, of those with room. Default: packed
    #[arg(long, value_name = "LEVEL")]
    pub spread: Option<Level>,
    /// The job ends when it has run for so long: 90s, 30m, 2h, 1d. Default: no limit
    #[arg(long, value_name = "DURATION")]
    pub time_limit: Option<Span<1, 366>>,
    /// Failures of its own after which the job is placed again: 0 to 1,000. Default: 0 (train 3, serve 10)
    #[arg(long, value_name = "N")]
    pub retries: Option<Whole<0, 1000>>,
    /// From the request to stop until the workers are killed: up to 1d. Default: 30s
    #[arg(long, value_name = "DURATION")]
    pub grace: Option<Span<0, 1>>,
    /// What is started anew when a worker fails or is lost: gang or rank. Default: gang
    #[arg(long, value_name = "WHAT")]
    pub restart: Option<Restart>,
    /// What workers do when their node and the scheduler cannot reach each other: stop or keep. Default: stop
    #[arg(long, value_name = "WHAT")]
    pub on_partition: Option<OnPartition>,
    /// Variable of every worker's environment; may be repeated. Default: none
    #[arg(long = "env", value_name = "KEY=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// Variable whose value is taken from this shell; may be repeated. Default: nothing is inherited
    #[arg(long, value_name = "NAME")]
    pub env_from_shell: Vec<String>,
    /// Directory in which the workers run, on their nodes. Default of `run`: the current one; of a file: each
    /// worker's run directory
    #[arg(long, value_name = "DIR")]
    pub working_dir: Option<String>,
    /// Where the job keeps its checkpoints: on storage that all its nodes see, or for the bundled trainer s3://BUCKET/PREFIX,
    /// gs://…, az://… Default: the agent's
    #[arg(long, value_name = "DIR|URL")]
    pub checkpoint_dir: Option<String>,
    /// Reservation on whose nodes, and in whose period, the job runs. Default: anywhere
    #[arg(long, value_name = "NAME")]
    pub reservation: Option<String>,
    /// Job that must have succeeded before this one starts; may be repeated. Default: none
    #[arg(long, value_name = "JOB")]
    pub after: Vec<Job>,
    /// One job for every index FIRST-LAST, or every STEP-th: 0-99, 0-99:2. Default: one job
    #[arg(long, value_name = "RANGE")]
    pub array: Option<Indices>,
    /// Chosen by you: submitting the same key again returns the job that it made. Default: a random one
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

/// Reads `KEY=VALUE`.
///
/// # Errors
/// There is no `=`, or nothing before it.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected KEY=VALUE".into()),
    }
}

impl JobFlags {
    /// Puts the flags over what a file says. Labels, mounts and variables are added to those of the file.
    ///
    /// # Errors
    /// A flag that does not go with the file, or a variable that is not there.
    pub fn apply(&self, file: &mut JobFile) -> Result<(), Failure> {
        self.apply_to_roles(file)?;
        fn put<T: Clone>(to: &mut Option<T>, flag: &Option<T>) {
            if flag.is_some() {
                to.clone_from(flag);
            }
        }
        fn give<T>(to: &mut Option<Given<T>>, flag: Option<T>) {
            *to = flag.map(Given).or(to.take());
        }
        put(&mut file.name, &self.name);
        put(&mut file.queue, &self.queue);
        put(&mut file.image, &self.image);
        put(&mut file.reservation, &self.reservation);
        put(&mut file.checkpoint_dir, &here(&self.checkpoint_dir)?);
        put(&mut file.working_dir, &here(&self.working_dir)?);
        give(&mut file.priority, self.priority);
        give(&mut file.ranks, self.ranks);
        give(&mut file.min_ranks, self.min_ranks);
        give(&mut file.cpus, self.cpus);
        give(&mut file.memory, self.memory);
        give(&mut file.time_limit, self.time_limit);
        give(&mut file.retries, self.retries);
        give(&mut file.restart, self.restart);
        give(&mut file.on_partition, self.on_partition);
        give(&mut file.grace, self.grace);
        give(&mut file.array, self.array);
        give(&mut file.apart, self.apart.clone());
        give(&mut file.spread, self.spread.clone());
        if let Some(level) = &self.topology_require {
            file.topology.get_or_insert_default().require = Some(Given(level.clone()));
        }
        if !self.topology_prefer.is_empty() {
            file.topology.get_or_insert_default().prefer = Some(List(self.topology_prefer.clone()));
        }
        if !self.after.is_empty() {
            file.after = Some(List(self.after.clone()));
        }
        if !self.mounts.is_empty() {
            let mounts = file.mounts.get_or_insert_with(|| List(Vec::new()));
            mounts.0.extend(self.mounts.iter().cloned());
        }
        if !self.labels.is_empty() {
            file.labels.get_or_insert_default().0.extend(self.labels.iter().cloned());
        }
        let mut inherited = Vec::new();
        for name in &self.env_from_shell {
            let value = env::var(name).map_err(|error| {
                let next = "set it, or give its value with --env";
                Failure::usage(format!("--env-from-shell {name}: {error}"), next)
            })?;
            inherited.push((name.clone(), value));
        }
        let variables = || inherited.iter().chain(&self.env).cloned();
        if variables().next().is_some() {
            file.env.get_or_insert_default().0.extend(variables());
        }
        Ok(())
    }

    fn apply_to_roles(&self, file: &mut JobFile) -> Result<(), Failure> {
        let slice = self.slice_compute.is_some()
            || self.slice_memory.is_some()
            || self.slice_profile.is_some()
            || self.slice_isolation.is_some();
        let device_flags = self.class.is_some()
            || self.vendor.is_some()
            || self.device_memory.is_some()
            || self.island.is_some()
            || slice;
        let of_one_role = [
            ("--ranks", self.ranks.is_some()),
            ("--min-ranks", self.min_ranks.is_some()),
            ("--devices", self.devices.is_some()),
            ("--class, --vendor, --device-memory, --island and --slice-...", device_flags),
            ("--cpus", self.cpus.is_some()),
            ("--memory", self.memory.is_some()),
            ("--label", !self.labels.is_empty()),
            ("--image", self.image.is_some()),
            ("--mount", !self.mounts.is_empty()),
            ("--apart", self.apart.is_some()),
            ("--spread", self.spread.is_some()),
        ];
        if file.roles.is_some() {
            return match of_one_role.iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(Failure::usage(
                    format!("{flag}: the file has roles, and the flag does not say which is meant"),
                    "name the role's key with --set, counting roles from 0: --set roles.0.ranks=4",
                )),
                None => Ok(()),
            };
        }
        match self.devices {
            Some(Whole(0)) if device_flags => {
                let next = "leave out --devices 0, or the flags that describe devices";
                return Err(Failure::usage("--devices 0 asks for none, other flags say which", next));
            }
            Some(Whole(0)) => file.devices = Some(Devices::default()),
            Some(_) | None if self.devices.is_some() || device_flags => {
                let devices = file.devices.get_or_insert_default();
                if devices.any_of.is_empty() {
                    devices.any_of.push(Device::default());
                }
                for device in &mut devices.any_of {
                    if let Some(Whole(count)) = self.devices {
                        device.count = Some(Given(Whole(count)));
                    }
                    device.class = self.class.clone().or(device.class.take());
                    device.vendor = self.vendor.map(Given).or(device.vendor);
                    device.memory = self.device_memory.map(Given).or(device.memory);
                    device.island = self.island.map(Given).or(device.island);
                    if slice {
                        let part = device.slice.get_or_insert_default();
                        if let Some(profile) = &self.slice_profile {
                            *part = DevicePart { isolation: part.isolation, ..profile.part() };
                        }
                        part.compute = self.slice_compute.map(Given).or(part.compute);
                        part.memory = self.slice_memory.map(Given).or(part.memory);
                        part.isolation = self.slice_isolation.map(Given).or(part.isolation);
                    }
                }
            }
            _ => (),
        }
        Ok(())
    }
}

/// A path of a flag is meant against the current directory, wherever the file is.
fn here(path: &Option<String>) -> Result<Option<String>, Failure> {
    let Some(path) = path else { return Ok(None) };
    if path.is_empty() {
        return Err(Failure::usage("the path is empty", "give a directory"));
    }
    if is_url(path) {
        return Ok(Some(path.clone()));
    }
    Ok(Some(current_dir()?.join(path).to_string_lossy().into_owned()))
}

/// The current directory.
///
/// # Errors
/// It was removed, or cannot be seen.
pub fn current_dir() -> Result<PathBuf, Failure> {
    let dir = env::current_dir();
    dir.map_err(|error| Failure::refused(format!("the current directory: {error}"), "change to another one"))
}
