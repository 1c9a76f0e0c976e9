//! The border: wire to core. Every field is checked here, so that nothing behind it has to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aquifer_core::*;

use crate::v1;

mod assignments;
mod commands;
mod image;
mod inventory;
mod load;
mod mounts;
mod programs;

pub use assignments::assignment;
pub use commands::{
    LEAST_PIECE, MAX_PIECE, MAX_UNTAKEN, Terminal, Wanted, is_terminal_kind, piece, wanted, weight,
    window_size,
};
use image::image;
pub use inventory::inventory;
use mounts::mounts;
pub use programs::{SERVE_PRECISIONS, TRAIN_PRECISIONS};
use programs::{arguments, serve, train, trains_on};

/// A field of a request that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}: {allowed}")]
pub struct Invalid {
    /// Path of the field: `roles[0].request.devices[1].count`.
    pub field: String,
    /// What was given, shortened.
    pub value: String,
    /// What is allowed.
    pub allowed: String,
}

type Checked<T> = Result<T, Invalid>;

/// Bytes of a program's arguments, at most.
pub const MAX_ARGUMENTS: usize = 1 << 20;
/// Bytes of a job's environment, at most.
pub const MAX_ENV: usize = 1 << 20;

/// Users that a queue may name.
pub const MAX_QUEUE_USERS: usize = 1000;

const DAY_MS: u64 = 86_400_000;
const YEAR_MS: u64 = 366 * DAY_MS;

impl Invalid {
    /// A complaint about a field. Text that came from outside is given quoted and escaped: `format!("{text:?}")`.
    pub fn new(field: impl Into<String>, value: impl ToString, allowed: impl Into<String>) -> Invalid {
        let mut value = value.to_string();
        if let Some((end, _)) = value.char_indices().nth(64) {
            value.truncate(end);
            value.push('…');
        }
        Invalid { field: field.into(), value, allowed: allowed.into() }
    }
}

/// A status of `INVALID_ARGUMENT` with the field as `google.rpc.BadRequest`.
impl From<Invalid> for tonic::Status {
    fn from(invalid: Invalid) -> tonic::Status {
        use tonic_types::{ErrorDetails, StatusExt};
        let description = format!("is {}: {}", invalid.value, invalid.allowed);
        let details = ErrorDetails::with_bad_request_violation(&invalid.field, description);
        let text = invalid.to_string();
        tonic::Status::with_error_details(tonic::Code::InvalidArgument, text, details)
    }
}

/// Checks a job's specification.
///
/// # Errors
/// Names the first field that cannot be accepted.
pub fn job_spec(wire: &v1::JobSpec) -> Checked<JobSpec> {
    let in_range = |field: &str, value: i64, low: i64, high: i64| match (low..=high).contains(&value) {
        true => Ok(value),
        false => Err(Invalid::new(field, value, format!("expected {low} to {high}"))),
    };
    in_range("roles", wire.roles.len() as i64, 1, 16)
        .map_err(|_| Invalid::new("roles", wire.roles.len(), "expected 1 to 16 roles"))?;
    let roles = wire.roles.iter().enumerate().map(|(at, wire)| role(&format!("roles[{at}]"), wire));
    let roles = roles.collect::<Checked<Vec<Role>>>()?;
    let ranks: u64 = roles.iter().map(|role| u64::from(role.ranks)).sum();
    if MAX_RANKS < ranks {
        return Err(Invalid::new("roles", format!("{ranks} ranks"), format!("at most {MAX_RANKS} in all")));
    }
    let mut elastic = roles.iter().enumerate().filter(|(_, role)| role.min_ranks.is_some());
    if let (Some((first, _)), Some((second, role))) = (elastic.next(), elastic.next()) {
        let (field, value) = (format!("roles[{second}].min_ranks"), role.least());
        let allowed = format!("expected at most one role with fewer than its ranks, and roles[{first}] has");
        return Err(Invalid::new(field, value, allowed));
    }
    let default_name = match &roles[0].program {
        Program::Command(arguments) => arguments[0].rsplit('/').next().unwrap_or("command").to_string(),
        Program::Train(_) => "train".into(),
        Program::Serve(_) => "serve".into(),
    };
    let name = text("name", &wire.name, 128)?;
    let queue = if wire.queue.is_empty() { cluster::DEFAULT_QUEUE } else { &wire.queue };
    let after = wire.after.iter().enumerate().map(|(at, id)| job_id(&format!("after[{at}]"), *id));
    if 10_000 < wire.after.len() {
        return Err(Invalid::new("after", wire.after.len(), "at most 10,000 jobs"));
    }
    let time_limit_ms = match wire.time_limit_ms {
        Some(ms) => Some(in_range("time_limit_ms", clamp(ms), 1, YEAR_MS as i64)? as u64),
        None => None,
    };
    let all_train = roles.iter().all(|role| matches!(role.program, Program::Train(_)));
    let mut spec = JobSpec {
        name: if name.is_empty() { text("name", &default_name, usize::MAX)? } else { name },
        user: text("user", &wire.user, 128)?,
        queue: self::name("queue", queue)?,
        client_key: text("client_key", &wire.client_key, 128)?,
        priority: in_range("priority", wire.priority.into(), -1000, 1000)? as i32,
        roles,
        after: after.collect::<Checked<Vec<JobId>>>()?,
        array: wire.array.as_ref().map(array).transpose()?,
        time_limit_ms,
        retries: in_range("retries", wire.retries.into(), 0, 1000)? as u32,
        grace_ms: in_range("grace_ms", clamp(wire.grace_ms.unwrap_or(30_000)), 0, DAY_MS as i64)? as u64,
        env: pairs("env", &wire.env, MAX_ENV)?,
        working_dir: wire.working_dir.as_ref().map(|dir| path("working_dir", dir)).transpose()?,
        checkpoint_dir: wire.checkpoint_dir.as_ref().map(|dir| place("checkpoint_dir", dir)).transpose()?,
        reservation: wire.reservation.as_ref().map(|it| self::name("reservation", it)).transpose()?,
        topology: wire.topology.as_ref().map(topology).transpose()?.unwrap_or_default(),
        restart: match v1::Restart::try_from(wire.restart) {
            Ok(v1::Restart::Unspecified) if all_train => Restart::Rank,
            Ok(v1::Restart::Unspecified | v1::Restart::Gang) => Restart::Gang,
            Ok(v1::Restart::Rank) => Restart::Rank,
            Err(_) => {
                let allowed = "expected RESTART_GANG (1) or RESTART_RANK (2)";
                return Err(Invalid::new("restart", wire.restart, allowed));
            }
        },
        on_partition: match v1::OnPartition::try_from(wire.on_partition) {
            Ok(v1::OnPartition::Unspecified | v1::OnPartition::Stop) => OnPartition::Stop,
            Ok(v1::OnPartition::Keep) => OnPartition::Keep,
            Err(_) => {
                let allowed = "expected ON_PARTITION_STOP (1) or ON_PARTITION_KEEP (2)";
                return Err(Invalid::new("on_partition", wire.on_partition, allowed));
            }
        },
    };
    spec.restart = spec.restarts();
    if let Some((require, role)) = spec.contradiction() {
        let at = spec.roles.iter().position(|other| other == role).expect("a role of the job");
        let apart = role.standing.apart.as_ref().map(|level| format!("{:?}", level.to_string()));
        let ranks = role.ranks;
        let allowed = format!("topology.require is {require}, so that its {ranks} ranks could not be apart");
        return Err(Invalid::new(format!("roles[{at}].apart"), apart.unwrap_or_default(), allowed));
    }
    Ok(spec)
}

fn topology(wire: &v1::Topology) -> Checked<Topology> {
    if 8 < wire.prefer.len() {
        return Err(Invalid::new("topology.prefer", format!("{} levels", wire.prefer.len()), "at most 8"));
    }
    let prefer = wire.prefer.iter().enumerate();
    let prefer = prefer.map(|(at, text)| level(&format!("topology.prefer[{at}]"), text));
    Ok(Topology {
        require: wire.require.as_ref().map(|text| level("topology.require", text)).transpose()?,
        prefer: prefer.collect::<Checked<Vec<Level>>>()?,
    })
}

/// Checks a level: `node`, or what could be the key of a label. Whether nodes have it is not known before they come.
pub fn level(field: &str, text: &str) -> Checked<Level> {
    let is_key = !text.is_empty() && text.len() <= 253 && !text.contains('=');
    match is_key && !text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        true => Ok(text.parse().expect("every text is a level")),
        false => {
            let allowed = "expected node, or the key of a label of nodes, like rack";
            Err(Invalid::new(field, format!("{text:?}"), allowed))
        }
    }
}

fn clamp(value: u64) -> i64 {
    value.min(i64::MAX as u64) as i64
}

fn role(field: &str, wire: &v1::Role) -> Checked<Role> {
    let name = if wire.name.is_empty() { "worker" } else { &wire.name };
    let name = self::name(&format!("{field}.name"), name)?;
    if wire.ranks == 0 || MAX_RANKS < u64::from(wire.ranks) {
        return Err(Invalid::new(format!("{field}.ranks"), wire.ranks, format!("expected 1 to {MAX_RANKS}")));
    }
    let min_ranks = wire.min_ranks.unwrap_or(wire.ranks);
    if !(1..=wire.ranks).contains(&min_ranks) {
        let allowed = format!("expected 1 to {}, the ranks of the role", wire.ranks);
        return Err(Invalid::new(format!("{field}.min_ranks"), min_ranks, allowed));
    }
    let min_ranks = Some(min_ranks).filter(|least| *least < wire.ranks);
    let default = v1::Request::default();
    let wire_request = wire.request.as_ref().unwrap_or(&default);
    let request = request(&format!("{field}.request"), wire_request)?;
    let mounts = mounts(&format!("{field}.mounts"), &wire.mounts, request.image.is_some())?;
    let program = match &wire.program {
        Some(v1::role::Program::Command(command)) => {
            Program::Command(arguments(&format!("{field}.command.arguments"), &command.arguments)?)
        }
        Some(v1::role::Program::Train(wire)) => Program::Train(train(&format!("{field}.train"), wire)?),
        Some(v1::role::Program::Serve(wire)) => Program::Serve(serve(&format!("{field}.serve"), wire)?),
        None => return Err(Invalid::new(field, "without a program", "expected command, train or serve")),
    };
    if !matches!(program, Program::Command(_))
        && let Some(image) = &request.image
    {
        let allowed = "only for a command: the bundled programs need no image";
        return Err(Invalid::new(format!("{field}.request.image"), format!("{image:?}"), allowed));
    }
    if let Program::Train(options) = &program {
        trains_on(&format!("{field}.train"), options, wire.ranks)?;
    }
    if let Program::Serve(ServeOptions { autoscale: Some(Promise { sleep_after_ms: None, .. }), .. }) =
        &program
        && min_ranks.is_none()
    {
        let allowed =
            format!("expected less than the ranks, {}, for a service that scales itself", wire.ranks);
        return Err(Invalid::new(format!("{field}.min_ranks"), wire.ranks, allowed));
    }
    let level = |key: &str, text: &Option<String>| {
        text.as_ref().map(|text| self::level(&format!("{field}.{key}"), text)).transpose()
    };
    let standing = Standing { apart: level("apart", &wire.apart)?, spread: level("spread", &wire.spread)? };
    Ok(Role { name, ranks: wire.ranks, min_ranks, request, mounts, standing, program })
}

fn request(field: &str, wire: &v1::Request) -> Checked<Request> {
    if 16 < wire.devices.len() {
        return Err(Invalid::new(format!("{field}.devices"), wire.devices.len(), "at most 16 alternatives"));
    }
    let devices = wire.devices.iter().enumerate();
    let devices = devices.map(|(at, wire)| device_request(&format!("{field}.devices[{at}]"), wire));
    if 10_000_000 < wire.cpus_milli {
        return Err(Invalid::new(format!("{field}.cpus_milli"), wire.cpus_milli, "at most 10,000,000"));
    }
    Ok(Request {
        devices: devices.collect::<Checked<Vec<DeviceRequest>>>()?,
        cpus_milli: wire.cpus_milli,
        memory_bytes: memory(&format!("{field}.memory_bytes"), wire.memory_bytes)?,
        labels: pairs(&format!("{field}.labels"), &wire.labels, 65_536)?,
        image: wire.image.as_ref().map(|text| image(&format!("{field}.image"), text)).transpose()?,
    })
}

fn device_request(field: &str, wire: &v1::DeviceRequest) -> Checked<DeviceRequest> {
    let count = u16::try_from(wire.count).ok().filter(|count| (1..=4096).contains(count));
    let model = text(&format!("{field}.model"), &wire.model.to_lowercase(), 128)?;
    if !model.is_empty() && model.split('|').any(str::is_empty) {
        let shown = format!("{model:?}");
        return Err(Invalid::new(format!("{field}.model"), shown, "expected models joined by |, none empty"));
    }
    Ok(DeviceRequest {
        count: count.ok_or_else(|| {
            Invalid::new(format!("{field}.count"), wire.count, "expected 1 to 4,096 devices a rank")
        })?,
        vendor: match &wire.vendor[..] {
            "" => None,
            vendor => Some(self::vendor(&format!("{field}.vendor"), vendor)?),
        },
        model: (!model.is_empty()).then_some(model),
        memory_bytes: memory(&format!("{field}.memory_bytes"), wire.memory_bytes)?,
        slice: wire.slice.as_ref().map(|wire| slice(&format!("{field}.slice"), wire)).transpose()?,
        one_island: wire.one_island,
        isolation: isolation(&format!("{field}.slice.isolation"), &wire.isolation)?,
    })
}

fn slice(field: &str, wire: &v1::Slice) -> Checked<Slice> {
    if 1000 < wire.compute_milli {
        let allowed = "expected 1 to 1,000 thousandths of a device";
        return Err(Invalid::new(format!("{field}.compute_milli"), wire.compute_milli, allowed));
    }
    let memory_bytes = memory(&format!("{field}.memory_bytes"), wire.memory_bytes)?;
    if wire.compute_milli == 0 && memory_bytes == 0 {
        return Err(Invalid::new(field, "empty", "expected compute_milli, memory_bytes or both"));
    }
    Ok(Slice { compute_milli: wire.compute_milli, memory_bytes })
}

fn isolation(field: &str, text: &str) -> Checked<Isolation> {
    match text {
        "" => Ok(Isolation::Advisory),
        text => text.parse().map_err(|allowed: String| Invalid::new(field, format!("{text:?}"), allowed)),
    }
}

fn vendor(field: &str, text: &str) -> Checked<Vendor> {
    text.parse()
        .map_err(|unknown: UnknownVendor| Invalid::new(field, format!("{text:?}"), unknown.to_string()))
}

fn memory(field: &str, bytes: u64) -> Checked<u64> {
    match bytes <= 1 << 50 {
        true => Ok(bytes),
        false => Err(Invalid::new(field, bytes, "at most 1 PiB")),
    }
}

fn array(wire: &v1::ArrayRange) -> Checked<ArrayRange> {
    let range = ArrayRange { first: wire.first, last: wire.last, step: wire.step.max(1) };
    match range.count() {
        1..=MAX_ARRAY => Ok(range),
        count => {
            let value = format!("{}-{}:{} ({count} indices)", range.first, range.last, range.step);
            Err(Invalid::new("array", value, format!("expected 1 to {MAX_ARRAY} indices")))
        }
    }
}

/// Checks the identity of a job.
pub fn job_id(field: &str, id: u64) -> Checked<JobId> {
    if id == 0 { Err(Invalid::new(field, id, "expected a job's number, from 1")) } else { Ok(JobId(id)) }
}

/// Checks a name that other things refer to: of a node, a queue, a role.
pub fn name(field: &str, value: &str) -> Checked<Name> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    match (1..=253).contains(&value.len()) && value.chars().all(allowed) {
        true => Ok(value.into()),
        false => {
            Err(Invalid::new(field, format!("{value:?}"), "expected 1 to 253 letters, digits, '.', '_', '-'"))
        }
    }
}

/// Checks a text for people.
pub(crate) fn text(field: &str, value: &str, most: usize) -> Checked<Name> {
    match value.chars().count() <= most && !value.chars().any(char::is_control) {
        true => Ok(value.into()),
        false => {
            let allowed = format!("expected at most {most} characters and no control characters");
            Err(Invalid::new(field, format!("{value:?}"), allowed))
        }
    }
}

/// Checks a path on a node.
fn path(field: &str, value: &str) -> Checked<Name> {
    match value.starts_with('/') && value.len() <= 4096 && !value.contains('\0') {
        true => Ok(value.into()),
        false => {
            Err(Invalid::new(field, format!("{value:?}"), "expected an absolute path of at most 4,096 bytes"))
        }
    }
}

/// Schemes of object stores.
const STORES: [&str; 4] = ["s3", "gs", "az", "file"];

/// Where a training keeps what it has learned: a directory, or a URL of an object store. What may be a secret in one that is
/// refused is not repeated.
fn place(field: &str, value: &str) -> Checked<Name> {
    let Some((scheme, rest)) = value.split_once("://") else { return path(field, value) };
    let (bucket, _) = rest.split_once('/').unwrap_or((rest, ""));
    let has_bucket = (scheme == "file") == bucket.is_empty();
    let is_plain = !rest.is_empty() && !rest.contains(['@', '?', '#']) && !rest.contains(char::is_control);
    if STORES.contains(&scheme) && has_bucket && is_plain && value.len() <= 4096 {
        return Ok(value.into());
    }
    let shown = match rest.rsplit_once('@') {
        Some((_, rest)) => format!("{scheme}://…@{rest}"),
        None => value.to_string(),
    };
    let shown = shown.split(['?', '#']).next().unwrap_or_default();
    let allowed = "expected an absolute path, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or \
                   file:///DIRECTORY, without credentials, query or fragment, of at most 4,096 bytes";
    Err(Invalid::new(field, format!("{shown:?}"), allowed))
}

/// Checks a map of texts, and puts it in the order of its keys.
pub(crate) fn pairs(
    field: &str,
    map: &std::collections::HashMap<String, String>,
    most_bytes: usize,
) -> Checked<Vec<(Name, Name)>> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if 1000 < map.len() || most_bytes < bytes {
        let value = format!("{} entries, {bytes} bytes", map.len());
        return Err(Invalid::new(field, value, format!("at most 1,000 entries and {most_bytes} bytes")));
    }
    let map: BTreeMap<&String, &String> = map.iter().collect();
    for (key, value) in &map {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            let value = format!("{key:?}: {value:?}");
            return Err(Invalid::new(field, value, "keys are not empty, without '='; no zero bytes"));
        }
    }
    Ok(map.into_iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect())
}

/// Checks a queue.
pub fn queue(wire: &v1::Queue) -> Checked<Queue> {
    let weight = wire.weight.max(1);
    if 1_000_000 < weight {
        return Err(Invalid::new("queue.weight", weight, "expected 1 to 1,000,000"));
    }
    let parent = match &wire.parent[..] {
        "" => None,
        parent => Some(name("queue.parent", parent)?),
    };
    let named: BTreeSet<Name> = users("queue.users", &wire.users, MAX_QUEUE_USERS)?.into_iter().collect();
    if let Some(at) = wire.users.iter().position(String::is_empty) {
        return Err(Invalid::new(format!("queue.users[{at}]"), "\"\"", "expected the name of a user"));
    }
    Ok(Queue {
        name: name("queue.name", &wire.name)?,
        parent,
        weight,
        guaranteed_milli: wire.guaranteed_milli,
        limit_milli: wire.limit_milli,
        users: named.into_iter().collect(),
    })
}

/// Names of users, `most` of them.
pub(crate) fn users(field: &str, users: &[String], most: usize) -> Checked<Vec<Name>> {
    if most < users.len() {
        return Err(Invalid::new(field, users.len(), format!("at most {most}")));
    }
    users.iter().enumerate().map(|(at, user)| text(&format!("{field}[{at}]"), user, 128)).collect()
}

/// Other nodes' workers read it in files, where it must be one word.
fn address(field: &str, address: &str) -> Checked<Name> {
    if address.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Invalid::new(field, format!("{address:?}"), "expected a host name or an IP address"));
    }
    text(field, address, 253)
}

/// Checks the identity of a worker.
pub fn worker_id(field: &str, wire: Option<&v1::Worker>) -> Checked<WorkerId> {
    let wire = wire.ok_or_else(|| Invalid::new(field, "absent", "expected a worker"))?;
    Ok(WorkerId { job: job_id(field, wire.job)?, attempt: wire.attempt, rank: wire.rank })
}

/// Thousandths of a token a second that a rank may tell, at most.
pub const MAX_RATE_MILLI: u64 = 1_000_000_000_000_000;

/// Where the time of a training has gone.
pub fn spent(wire: &v1::Spent) -> Spent {
    let v1::Spent { steps_us, start_us, recovery_us, slow_us, lost_us, work_us } = *wire;
    Spent { steps_us, start_us, recovery_us, slow_us, lost_us, work_us }
}

fn pace(wire: v1::Pace) -> Checked<Progress> {
    let v1::Pace { step, total_steps, rate_milli, spent } = wire;
    if MAX_RATE_MILLI < rate_milli {
        return Err(Invalid::new("report.workers.progress.rate_milli", rate_milli, "at most 10^15"));
    }
    Ok(Progress { step, total_steps, rate_milli, spent: spent.as_ref().map(self::spent) })
}

/// Checks a node's report. `node`, `agent` and `boot` are those of its session, `known` the inventory that it reported last.
pub fn report(
    node: Name,
    agent: Name,
    boot: u64,
    known: Option<&Arc<Inventory>>,
    wire: &v1::NodeReport,
) -> Checked<NodeReport> {
    let inventory = match (&wire.inventory, known) {
        (Some(wire), _) => Arc::new(inventory(wire)?),
        (None, Some(known)) => known.clone(),
        (None, None) => {
            return Err(Invalid::new(
                "report.inventory",
                "absent",
                "expected in the first report of a session",
            ));
        }
    };
    let workers = wire.workers.iter().map(|wire| {
        let id = worker_id("report.workers", wire.worker.as_ref())?;
        let state = match &wire.state {
            Some(v1::worker_report::State::Starting(_)) => WorkerState::Starting,
            Some(v1::worker_report::State::Running(_)) => WorkerState::Running,
            Some(v1::worker_report::State::Exited(wire)) => WorkerState::Exited(exit(wire)?),
            None => return Err(Invalid::new("report.workers.state", "absent", "expected a state")),
        };
        let progress = wire.progress.map(pace).transpose()?;
        let load = wire.load.map(load::load);
        Ok(WorkerReport { id, state, checkpoint_age_ms: wire.checkpoint_age_ms, progress, load })
    });
    Ok(NodeReport {
        node,
        agent,
        boot,
        seq: wire.seq,
        inventory,
        revision: Revision { term: wire.revision_term, count: wire.revision_count },
        workers: workers.collect::<Checked<Vec<WorkerReport>>>()?,
        probe: wire.probe.as_ref().map(assignments::probe_report).transpose()?,
    })
}

/// Checks how a worker ended.
pub fn exit(wire: &v1::Exit) -> Checked<Exit> {
    match &wire.how {
        Some(v1::exit::How::Code(code)) => Ok(Exit::Code(*code)),
        Some(v1::exit::How::Signal(signal)) => Ok(Exit::Signal(*signal)),
        Some(v1::exit::How::Failed(why)) => Ok(Exit::Failed(why.as_str().into())),
        None => Err(Invalid::new("exit", "absent", "expected code, signal or failed")),
    }
}

/// Checks what the rank at a position of its job holds.
pub fn allocation(at: u32, wire: &v1::Allocation) -> Checked<Allocation> {
    let index = |index: &u32| {
        u16::try_from(*index).map_err(|_| Invalid::new("allocation.devices", index, "at most 65,535"))
    };
    let worker = match wire.state() {
        v1::RankState::Assigned => RankState::Assigned,
        v1::RankState::Starting => RankState::Starting,
        v1::RankState::Running => RankState::Running,
        v1::RankState::Gone => RankState::Gone,
        v1::RankState::Unspecified => {
            return Err(Invalid::new("allocation.state", wire.state, "expected a state of a rank"));
        }
    };
    let port = u16::try_from(wire.port);
    Ok(Allocation {
        rank: wire.rank.unwrap_or(at),
        node: NodeId(wire.node),
        devices: wire.devices.iter().map(index).collect::<Checked<Vec<u16>>>()?,
        slice: wire
            .slice
            .map(|wire| Slice { compute_milli: wire.compute_milli, memory_bytes: wire.memory_bytes }),
        charge_milli: wire.charge_milli,
        cpus_milli: wire.cpus_milli,
        memory_bytes: wire.memory_bytes,
        port: port.map_err(|_| Invalid::new("allocation.port", wire.port, "at most 65,535"))?,
        worker,
        since: Time(wire.since_ms),
        restart_at: wire.restart_at_ms.map(Time),
        hasty: wire.hasty,
    })
}
