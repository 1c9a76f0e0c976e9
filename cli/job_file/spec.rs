//! From a job file to what the scheduler is asked for, and back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use aquifer_proto::border::{self, Invalid};
use aquifer_proto::core::{self, JobId};
use aquifer_proto::v1;

use super::*;

/// What a job file does not say itself.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Absolute directory against which relative paths are meant.
    pub base: PathBuf,
    /// Who submits.
    pub user: String,
    /// Makes repeated submissions one; empty for none.
    pub client_key: String,
}

/// Keys that every role has of its own.
struct Part<'a> {
    /// `roles[1].`, or nothing at the top.
    field: String,
    name: Option<&'a String>,
    kind: Option<Kind>,
    ranks: Option<i64>,
    min_ranks: Option<i64>,
    devices: Option<&'a Devices>,
    cpus: Option<u32>,
    memory: Option<u64>,
    labels: Option<&'a Pairs>,
    image: Option<&'a String>,
    mounts: Option<&'a List<Mount>>,
    apart: Option<&'a Given<Level>>,
    spread: Option<&'a Given<Level>>,
    command: Option<&'a Command>,
    train: Option<&'a Train>,
    serve: Option<&'a Serve>,
}

impl JobFile {
    /// What the scheduler is asked for. A `serve.model` that names a job is left as it is: see [`resolve`].
    ///
    /// # Errors
    /// Names the key.
    pub fn spec(&self, context: &Context) -> Result<v1::JobSpec, FileError> {
        let parts = self.parts()?;
        let mut kinds = Vec::new();
        let mut roles = Vec::new();
        for part in &parts {
            let (kind, role) = part.role(context)?;
            kinds.push(kind);
            roles.push(role);
        }
        let retries = kinds.iter().map(|kind| match kind {
            Kind::Command => 0,
            Kind::Train => 3,
            Kind::Serve => 10,
        });
        let retries = self.retries.map_or(retries.max().unwrap_or(0), |given| given.0.0 as u32);
        let dir = |field: &str, dir: &Option<String>| {
            dir.as_ref().map(|dir| absolute(field, dir, &context.base)).transpose()
        };
        Ok(v1::JobSpec {
            name: self.name.clone().or_else(|| self.shell_name()).unwrap_or_default(),
            user: context.user.clone(),
            queue: self.queue.clone().unwrap_or_default(),
            client_key: context.client_key.clone(),
            priority: self.priority.map_or(0, |given| given.0.0 as i32),
            roles,
            after: self.after.iter().flat_map(|after| &after.0).map(|job| job.0.0).collect(),
            array: self.array.map(|given| {
                let core::ArrayRange { first, last, step } = given.0.0;
                v1::ArrayRange { first, last, step }
            }),
            time_limit_ms: self.time_limit.map(|given| given.0.0),
            retries,
            grace_ms: Some(self.grace.map_or(30_000, |given| given.0.0)),
            env: pairs(self.env.as_ref()),
            working_dir: dir("working_dir", &self.working_dir)?,
            checkpoint_dir: dir("checkpoint_dir", &self.checkpoint_dir)?,
            reservation: self.reservation.clone(),
            topology: self.topology.as_ref().map(topology).transpose()?,
            restart: match self.restart.map(|given| given.0.0) {
                None => v1::Restart::Unspecified.into(),
                Some(core::Restart::Gang) => v1::Restart::Gang.into(),
                Some(core::Restart::Rank) => v1::Restart::Rank.into(),
            },
            on_partition: match self.on_partition.map(|given| given.0.0) {
                None => v1::OnPartition::Unspecified.into(),
                Some(core::OnPartition::Stop) => v1::OnPartition::Stop.into(),
                Some(core::OnPartition::Keep) => v1::OnPartition::Keep.into(),
            },
        })
    }

    /// Of a line for the shell: its first word, which tells more than `sh`.
    fn shell_name(&self) -> Option<String> {
        let first = self.roles.as_ref().and_then(|roles| roles.first());
        let command = first.map_or(self.command.as_ref(), |role| role.command.as_ref())?;
        let Command::Shell(line) = command else { return None };
        let word = line.split_whitespace().next()?.rsplit('/').next()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        (word.len() <= 64 && word.chars().all(plain)).then(|| word.into())
    }

    fn parts(&self) -> Result<Vec<Part<'_>>, FileError> {
        let kind = self.kind.map(|given| given.0);
        let Some(roles) = &self.roles else {
            return Ok(vec![Part {
                field: String::new(),
                name: None,
                kind,
                ranks: self.ranks.map(|given| given.0.0),
                min_ranks: self.min_ranks.map(|given| given.0.0),
                devices: self.devices.as_ref(),
                cpus: self.cpus.map(|given| given.0.0),
                memory: self.memory.map(|given| given.0.0),
                labels: self.labels.as_ref(),
                image: self.image.as_ref(),
                mounts: self.mounts.as_ref(),
                apart: self.apart.as_ref(),
                spread: self.spread.as_ref(),
                command: self.command.as_ref(),
                train: self.train.as_ref(),
                serve: self.serve.as_ref(),
            }]);
        };
        if roles.is_empty() || 16 < roles.len() {
            return Err(FileError::new(format!("roles has {} entries: expected 1 to 16", roles.len())));
        }
        let of_roles = [
            ("ranks", self.ranks.is_some()),
            ("min_ranks", self.min_ranks.is_some()),
            ("devices", self.devices.is_some()),
            ("cpus", self.cpus.is_some()),
            ("memory", self.memory.is_some()),
            ("labels", self.labels.is_some()),
            ("image", self.image.is_some()),
            ("mounts", self.mounts.is_some()),
            ("apart", self.apart.is_some()),
            ("spread", self.spread.is_some()),
            ("command", self.command.is_some()),
            ("train", self.train.is_some()),
            ("serve", self.serve.is_some()),
        ];
        if let Some((key, _)) = of_roles.iter().find(|(_, given)| *given) {
            return Err(FileError::new(format!(
                "{key} is given beside roles: put it into the roles that it is for"
            )));
        }
        Ok(roles.iter().enumerate().map(|(at, role)| part_of(at, role, kind)).collect())
    }
}

fn part_of(at: usize, role: &Role, kind: Option<Kind>) -> Part<'_> {
    Part {
        field: format!("roles[{at}]."),
        name: role.name.as_ref(),
        kind,
        ranks: role.ranks.map(|given| given.0.0),
        min_ranks: role.min_ranks.map(|given| given.0.0),
        devices: role.devices.as_ref(),
        cpus: role.cpus.map(|given| given.0.0),
        memory: role.memory.map(|given| given.0.0),
        labels: role.labels.as_ref(),
        image: role.image.as_ref(),
        mounts: role.mounts.as_ref(),
        apart: role.apart.as_ref(),
        spread: role.spread.as_ref(),
        command: role.command.as_ref(),
        train: role.train.as_ref(),
        serve: role.serve.as_ref(),
    }
}

impl Part<'_> {
    fn role(&self, context: &Context) -> Result<(Kind, v1::Role), FileError> {
        let (kind, program) = self.program(context)?;
        let devices = match (self.devices, kind) {
            (Some(devices), _) => devices.any_of.iter().map(device).collect(),
            (None, Kind::Command) => Vec::new(),
            (None, Kind::Train | Kind::Serve) => vec![device(&Device::default())],
        };
        let request = v1::Request {
            devices,
            cpus_milli: self.cpus.unwrap_or(1000),
            memory_bytes: self.memory.unwrap_or(0),
            labels: pairs(self.labels),
            image: self.image.cloned(),
        };
        let role = v1::Role {
            name: self.name.cloned().unwrap_or_default(),
            ranks: self.ranks.unwrap_or(1) as u32,
            min_ranks: self.min_ranks.map(|least| least as u32),
            request: Some(request),
            program: Some(program),
            apart: self.apart.map(|level| level.0.to_string()),
            spread: self.spread.map(|level| level.0.to_string()),
            mounts: self.mounts.iter().flat_map(|mounts| &mounts.0).map(mount).collect(),
        };
        Ok((kind, role))
    }

    fn program(&self, context: &Context) -> Result<(Kind, v1::role::Program), FileError> {
        let field = &self.field;
        let given = [
            (Kind::Command, self.command.is_some()),
            (Kind::Train, self.train.is_some()),
            (Kind::Serve, self.serve.is_some()),
        ];
        let given: Vec<Kind> = given.iter().filter(|(_, given)| *given).map(|(kind, _)| *kind).collect();
        let kind = match (self.kind, &given[..]) {
            (Some(kind), []) => kind,
            (None, [kind]) => *kind,
            (Some(kind), [one]) if kind == *one => kind,
            (Some(kind), [one]) => {
                return Err(FileError::new(format!(
                    "{field}{one} is given, but kind is {kind}: leave one out"
                )));
            }
            (None, []) => {
                let whose = if field.is_empty() { "the file" } else { field.trim_end_matches('.') };
                return Err(FileError::new(format!(
                    "{whose} says not what to run: give command, train or serve"
                )));
            }
            (_, [first, second, ..]) => {
                return Err(FileError::new(format!(
                    "{field}{first} and {field}{second} are both given: leave one out"
                )));
            }
        };
        let program = match kind {
            Kind::Command => {
                let missing = || FileError::new(format!("{field}command is missing: kind is command"));
                let arguments = self.command.ok_or_else(missing)?.arguments();
                v1::role::Program::Command(v1::Command { arguments })
            }
            Kind::Train => v1::role::Program::Train(self.train(context)?),
            Kind::Serve => v1::role::Program::Serve(self.serve(context)?),
        };
        Ok((kind, program))
    }

    fn train(&self, context: &Context) -> Result<v1::Train, FileError> {
        let field = &self.field;
        let (default, ranks) = (Train::default(), self.ranks.unwrap_or(1));
        let given = self.train.unwrap_or(&default);
        let data = given.data.as_ref();
        let data = data.ok_or_else(|| {
            FileError::new(format!("{field}train.data is missing: name a file or directory of text"))
        })?;
        let model = match &given.model {
            Some(model) if model.contains('/') || model.starts_with('.') => {
                absolute(&format!("{field}train.model"), model, &context.base)?
            }
            model => model.clone().unwrap_or_default(),
        };
        let inner_steps = given.inner_steps.map_or(0, |given| given.0.0 as u64);
        let replicas = given.replicas.map_or(if inner_steps == 0 { 0 } else { ranks }, |given| given.0.0);
        let batch = (8.max(ranks) as u64).next_multiple_of(replicas.max(1) as u64);
        Ok(v1::Train {
            model,
            data: absolute(&format!("{field}train.data"), data, &context.base)?,
            steps: given.steps.map_or(200, |given| given.0.0 as u64),
            // The batch is over all ranks and replicas: the default grows with them, so that it always fits.
            batch: given.batch.map_or(batch as u32, |given| given.0.0 as u32),
            context: given.context.map_or(128, |given| given.0.0 as u32),
            learning_rate: given.learning_rate.map_or(3e-3, |given| given.0.0),
            seed: given.seed.map_or(0, |given| given.0.0),
            checkpoint_every: given.checkpoint_every.map_or(50, |given| given.0.0 as u64),
            precision: given.precision.unwrap_or_default().0.to_string(),
            micro_batch: given.micro_batch.map_or(1, |given| given.0.0 as u32),
            spares: given.spares.map_or(0, |given| given.0.0 as u32),
            audit_every: given.audit_every.map_or(0, |given| given.0.0 as u64),
            inner_steps,
            replicas: replicas as u32,
        })
    }

    fn serve(&self, context: &Context) -> Result<v1::Serve, FileError> {
        let field = format!("{}serve.model", self.field);
        let missing =
            || FileError::new(format!("{field} is missing: name a job that trains one, or a directory"));
        let given = self.serve.ok_or_else(missing)?;
        let model = given.model.as_ref().ok_or_else(missing)?;
        let model = if names_job(model) { model.clone() } else { absolute(&field, model, &context.base)? };
        Ok(v1::Serve {
            model,
            served_name: given.served_name.clone().unwrap_or_default(),
            max_queue: given.max_queue.map_or(64, |given| given.0.0 as u32),
            precision: given.precision.unwrap_or_default().0.to_string(),
            kv_memory_bytes: given.kv_memory.map(|given| given.0.0),
            autoscale: given.autoscale.map(|given| v1::Autoscale {
                concurrency: given.concurrency.map_or(8, |given| given.0.0 as u32),
                ttft_ms: given.ttft.map(|given| given.0.0),
                tpot_ms: given.tpot.map(|given| given.0.0),
                sleep_after_ms: given.sleep_after.map(|given| given.0.0),
            }),
        })
    }
}

fn names_job(model: &str) -> bool {
    model.starts_with("job-") && model.parse::<JobId>().is_ok()
}

/// Jobs that a specification names where the scheduler wants a directory: `serve.model`.
pub fn unresolved(spec: &v1::JobSpec) -> Vec<JobId> {
    let serves = spec.roles.iter().filter_map(|role| match &role.program {
        Some(v1::role::Program::Serve(serve)) if names_job(&serve.model) => serve.model.parse().ok(),
        _ => None,
    });
    serves.collect()
}

/// Puts the directory of a job's checkpoints where the job is named.
pub fn resolve(spec: &mut v1::JobSpec, job: JobId, checkpoint_dir: &str) {
    for role in &mut spec.roles {
        if let Some(v1::role::Program::Serve(serve)) = &mut role.program
            && serve.model.parse() == Ok(job)
        {
            serve.model = checkpoint_dir.into();
        }
    }
}

/// Passes a specification through the border of the protocol, as the scheduler will.
///
/// # Errors
/// Names the key of the job file.
pub fn check(spec: &v1::JobSpec) -> Result<core::JobSpec, FileError> {
    border::job_spec(spec).map_err(|invalid| {
        let Invalid { field, value, allowed } = invalid;
        let unnamed = matches!(&spec.roles[..], [role] if role.name.is_empty());
        FileError::new(format!("{} is {value}: {allowed}", key(&field, unnamed)))
    })
}

/// The key of the job file that a field of the wire comes from.
///
/// `at_top`: whether the only role is written at the top of the file.
fn key(field: &str, at_top: bool) -> String {
    let field = if at_top { field.strip_prefix("roles[0].").unwrap_or(field) } else { field };
    let devices = field.contains(".devices[") || field.starts_with("request.devices[");
    let mut key = field.replace("request.", "").replace(".arguments", "");
    for (wire, file) in [
        ("compute_milli", "compute"),
        ("cpus_milli", "cpus"),
        ("memory_bytes", "memory"),
        ("time_limit_ms", "time_limit"),
    ] {
        key = key.replace(wire, file);
    }
    key = key.replace("grace_ms", "grace").replace("client_key", "--key").replace("devices[0]", "devices");
    if devices { key.replace(".model", ".class") } else { key }
}

fn topology(topology: &Topology) -> Result<v1::Topology, FileError> {
    let prefer = topology.prefer.iter().flat_map(|levels| &levels.0).map(ToString::to_string);
    let topology = v1::Topology {
        require: topology.require.as_ref().map(|level| level.0.to_string()),
        prefer: prefer.collect(),
    };
    match topology == v1::Topology::default() {
        true => Err(FileError::new("topology says nothing: give require, prefer or both")),
        false => Ok(topology),
    }
}

fn device(device: &Device) -> v1::DeviceRequest {
    let isolation = device.slice.and_then(|slice| slice.isolation);
    v1::DeviceRequest {
        count: device.count.map_or(1, |given| given.0.0 as u32),
        vendor: device.vendor.map(|given| given.0.to_string()).unwrap_or_default(),
        model: device.class.clone().unwrap_or_default(),
        memory_bytes: device.memory.map_or(0, |given| given.0.0),
        slice: device.slice.map(|slice| v1::Slice {
            compute_milli: slice.compute.map_or(0, |given| given.0.0),
            memory_bytes: slice.memory.map_or(0, |given| given.0.0),
        }),
        one_island: device.island == Some(Given(Need::Require)),
        isolation: isolation.map(|given| given.0.to_string()).unwrap_or_default(),
    }
}

fn mount(mount: &Mount) -> v1::Mount {
    let core::Mount { source, target, read_only } = &mount.0;
    v1::Mount { source: source.to_string(), target: target.to_string(), read_only: *read_only }
}

fn pairs(pairs: Option<&Pairs>) -> HashMap<String, String> {
    pairs.map(|pairs| pairs.0.clone().into_iter().collect()).unwrap_or_default()
}

/// Whether a place is one of an object store; the border knows which there are.
pub fn is_url(place: &str) -> bool {
    place.contains("://")
}

/// The path, against the base if it is relative; without `.` and double slashes.
fn absolute(field: &str, path: &str, base: &Path) -> Result<String, FileError> {
    if path.is_empty() {
        return Err(FileError::new(format!("{field} is empty: expected a path")));
    }
    if is_url(path) {
        return Ok(path.into());
    }
    let joined: PathBuf = base.join(path).components().collect();
    let text = joined.into_os_string().into_string();
    text.map_err(|path| FileError::new(format!("{field} is {path:?}: the path is not UTF-8")))
}

/// A job file that asks for this job, with all defaults written out.
pub fn file_of(spec: &core::JobSpec) -> JobFile {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_string());
    let some_pairs = |pairs: &[(core::Name, core::Name)]| {
        let pairs = || pairs.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        (!pairs().collect::<Vec<_>>().is_empty()).then(|| Pairs(pairs().collect()))
    };
    let mut file = JobFile {
        name: text(&spec.name),
        queue: text(&spec.queue),
        priority: Some(Given(Whole(spec.priority.into()))),
        time_limit: spec.time_limit_ms.map(|ms| Given(Span(ms))),
        retries: Some(Given(Whole(spec.retries.into()))),
        restart: Some(Given(Restart(spec.restart))),
        on_partition: Some(Given(OnPartition(spec.on_partition))),
        grace: Some(Given(Span(spec.grace_ms))),
        env: some_pairs(&spec.env),
        working_dir: spec.working_dir.as_deref().map(String::from),
        checkpoint_dir: spec.checkpoint_dir.as_deref().map(String::from),
        reservation: spec.reservation.as_deref().map(String::from),
        after: (!spec.after.is_empty()).then(|| List(spec.after.iter().map(|job| Job(*job)).collect())),
        array: spec.array.map(|range| Given(Indices(range))),
        topology: topology_of(&spec.topology),
        ..JobFile::default()
    };
    let mut roles: Vec<Role> = spec.roles.iter().map(role_of).collect();
    if let [role] = &mut roles[..]
        && role.name.as_deref() == Some("worker")
    {
        let Role {
            name: _,
            ranks,
            min_ranks,
            devices,
            cpus,
            memory,
            labels,
            image,
            mounts,
            apart,
            spread,
            command,
            train,
            serve,
        } = std::mem::take(role);
        file.kind = Some(Given(match (&train, &serve) {
            (Some(_), _) => Kind::Train,
            (_, Some(_)) => Kind::Serve,
            _ => Kind::Command,
        }));
        file.min_ranks = min_ranks;
        (file.ranks, file.devices, file.cpus, file.memory, file.labels) =
            (ranks, devices, cpus, memory, labels);
        (file.image, file.mounts) = (image, mounts);
        (file.apart, file.spread) = (apart, spread);
        (file.command, file.train, file.serve) = (command, train, serve);
    } else {
        file.roles = Some(roles);
    }
    file
}

fn topology_of(topology: &core::Topology) -> Option<Topology> {
    let core::Topology { require, prefer } = topology;
    let given = require.is_some() || !prefer.is_empty();
    given.then(|| Topology {
        require: require.clone().map(|level| Given(Level(level))),
        prefer: (!prefer.is_empty()).then(|| List(prefer.iter().cloned().map(Level).collect())),
    })
}

fn role_of(role: &core::Role) -> Role {
    let request = &role.request;
    let labels = || request.labels.iter().map(|(key, value)| (key.to_string(), value.to_string()));
    let device = |device: &core::DeviceRequest| Device {
        count: Some(Given(Whole(device.count.into()))),
        class: device.model.as_deref().map(String::from),
        vendor: device.vendor.map(|vendor| Given(Maker(vendor))),
        memory: (device.memory_bytes != 0).then_some(Given(Size(device.memory_bytes))),
        slice: device.slice.map(|slice| DevicePart {
            compute: (slice.compute_milli != 0).then_some(Given(Percent(slice.compute_milli))),
            memory: (slice.memory_bytes != 0).then_some(Given(Size(slice.memory_bytes))),
            isolation: (device.isolation != core::Isolation::Advisory)
                .then_some(Given(Apartness(device.isolation))),
        }),
        island: device.one_island.then_some(Given(Need::Require)),
    };
    let mut file = Role {
        name: Some(role.name.to_string()),
        ranks: Some(Given(Whole(role.ranks.into()))),
        min_ranks: role.min_ranks.map(|least| Given(Whole(least.into()))),
        devices: Some(Devices { any_of: request.devices.iter().map(device).collect() }),
        cpus: Some(Given(Cpus(request.cpus_milli))),
        memory: Some(Given(Size(request.memory_bytes))),
        labels: (!request.labels.is_empty()).then(|| Pairs(labels().collect())),
        image: request.image.as_deref().map(String::from),
        mounts: (!role.mounts.is_empty()).then(|| List(role.mounts.iter().cloned().map(Mount).collect())),
        apart: role.standing.apart.clone().map(|level| Given(Level(level))),
        spread: role.standing.spread.clone().map(|level| Given(Level(level))),
        ..Role::default()
    };
    match &role.program {
        core::Program::Command(arguments) => {
            file.command = Some(Command::Arguments(arguments.iter().map(|a| a.to_string()).collect()));
        }
        core::Program::Train(options) => {
            file.train = Some(Train {
                model: Some(options.model.to_string()),
                data: Some(options.data.to_string()),
                steps: Some(Given(Whole(options.steps as i64))),
                batch: Some(Given(Whole(options.batch.into()))),
                context: Some(Given(Whole(options.context.into()))),
                learning_rate: Some(Given(Rate(options.learning_rate))),
                seed: Some(Given(Seed(options.seed))),
                checkpoint_every: Some(Given(Whole(options.checkpoint_every as i64))),
                precision: options.precision.parse().ok().map(Given),
                micro_batch: Some(Given(Whole(options.micro_batch.into()))),
                spares: Some(Given(Whole(options.spares.into()))),
                audit_every: Some(Given(Whole(options.audit_every as i64))),
                inner_steps: Some(Given(Whole(options.inner_steps as i64))),
                replicas: Some(Given(Whole(options.replicas.into()))),
            });
        }
        core::Program::Serve(options) => {
            file.serve = Some(Serve {
                model: Some(options.model.to_string()),
                served_name: (!options.served_name.is_empty()).then(|| options.served_name.to_string()),
                max_queue: Some(Given(Whole(options.max_queue.into()))),
                precision: options.precision.parse().ok().map(Given),
                kv_memory: options.kv_memory_bytes.map(|bytes| Given(Size(bytes))),
                autoscale: options.autoscale.map(|promise| Autoscale {
                    concurrency: Some(Given(Whole(promise.concurrency.into()))),
                    ttft: promise.ttft_ms.map(|ms| Given(Span(ms))),
                    tpot: promise.tpot_ms.map(|ms| Given(Span(ms))),
                    sleep_after: promise.sleep_after_ms.map(|ms| Given(Span(ms))),
                }),
            });
        }
    }
    file
}
