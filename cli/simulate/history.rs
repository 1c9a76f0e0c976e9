//! The workload that a pool has had: its nodes and the jobs that ran on them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use aquifer_proto::core::{DeviceClass, DeviceRequest, JobSpec, Request, Vendor};
use aquifer_proto::{border, v1};
use aquifer_sim::replay::workload::{Job, MAX_DEVICES, Node, Spec, SpecTable, WHOLE, Want, Workload};

use crate::client::{Client, Global, Patience, Pool};
use crate::output::{Failure, aside};

const PAGE: u32 = 1000;

/// Asks the scheduler for its nodes and jobs. Says what of them a simulation cannot tell.
///
/// # Errors
/// The scheduler does not answer, or nothing ever ran there.
pub fn read(global: &Global, since_ms: u64) -> Result<Workload> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (nodes, jobs) = runtime.context("no runtime can be started")?.block_on(ask(global, since_ms))?;
    let (workload, left_out) = workload(&nodes, &jobs, crate::time_now());
    for (why, count) in left_out {
        aside(format!("left out: {why} ({count})"));
    }
    if workload.jobs.is_empty() || workload.nodes.is_empty() {
        let sentence = "the pool has no history to replay: no job has run on a node that is up";
        return Err(Failure::refused(sentence, "`aquifer jobs --all` tells what it knows").into());
    }
    Ok(workload)
}

async fn ask(global: &Global, since_ms: u64) -> Result<(Vec<v1::Node>, Vec<v1::Job>), Failure> {
    let pool = Pool::new(global)?;
    let nodes = pool.nodes("", Patience::Short).await?;
    let (mut jobs, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListRequest { page_size: PAGE, page_token, ..Default::default() };
        let list = async |mut client: Client| client.list(request.clone()).await;
        let answer = pool.call(Patience::Short, list).await?;
        let is_old = answer.jobs.last().is_some_and(|oldest| oldest.submitted_ms < since_ms);
        jobs.extend(answer.jobs.into_iter().filter(|job| since_ms <= job.submitted_ms));
        page_token = answer.next_page_token;
        if is_old || page_token.is_empty() {
            return Ok((nodes, jobs));
        }
    }
}

/// What is left out, with how often.
type LeftOut = BTreeMap<&'static str, usize>;

/// The workload that nodes and jobs make at `now`.
fn workload(nodes: &[v1::Node], jobs: &[v1::Job], now_ms: u64) -> (Workload, LeftOut) {
    let mut left_out = LeftOut::new();
    let mut workload = Workload::default();
    workload.queue("default");
    for node in nodes {
        match node.inventory.as_ref().filter(|_| node.up).map(border::inventory) {
            Some(Ok(inventory)) => {
                let devices = inventory.devices.iter().filter(|device| device.fault.is_none());
                let (devices, class) = main_class(devices.map(|device| &*device.class), &mut left_out);
                let class =
                    if devices == 0 { Some(0) } else { class.and_then(|class| workload.class(class)) };
                let Some(class) = class else {
                    *left_out
                        .entry("nodes with kinds of devices beyond the 64 that a simulation knows")
                        .or_default() += 1;
                    continue;
                };
                workload.nodes.push(Node {
                    name: node.name.as_str().into(),
                    cpus_milli: inventory.cpus_milli,
                    memory_bytes: inventory.memory_bytes,
                    devices,
                    class,
                });
            }
            _ => *left_out.entry("nodes that are down").or_default() += 1,
        }
    }
    let first_ms = jobs.iter().map(|job| job.submitted_ms).min().unwrap_or(0);
    let mut specs = SpecTable::default();
    // Oldest first, as they came.
    for job in jobs.iter().rev() {
        match read_job(job, &mut workload, &mut specs, now_ms) {
            Ok(read) => workload.jobs.push(Job { at_ms: job.submitted_ms - first_ms, ..read }),
            Err(why) => *left_out.entry(why).or_default() += 1,
        }
    }
    workload.jobs.sort_by_key(|job| job.at_ms);
    workload.refresh_allowed();
    workload.history = workload.count_specs();
    (workload, left_out)
}

/// The class of accelerators that a node has most of, and how many; processors are no devices here.
fn main_class<'a>(
    classes: impl Iterator<Item = &'a DeviceClass>,
    left_out: &mut LeftOut,
) -> (u8, Option<DeviceClass>) {
    let mut counts: BTreeMap<&DeviceClass, usize> = BTreeMap::new();
    classes
        .filter(|class| class.vendor != Vendor::Cpu)
        .for_each(|class| *counts.entry(class).or_default() += 1);
    let most = counts.iter().max_by_key(|(_, count)| **count).map(|(class, count)| (*class, *count));
    let (class, count) = most.map_or((None, 0), |(class, count)| (Some(class.clone()), count));
    let devices = count.min(MAX_DEVICES);
    let others = counts.values().sum::<usize>() - devices;
    if others != 0 {
        let why = "devices of a second kind on their node, or beyond the 16 that a simulation knows";
        *left_out.entry(why).or_default() += others;
    }
    (devices as u8, class)
}

/// A job of the pool as one of the workload.
fn read_job(
    job: &v1::Job,
    workload: &mut Workload,
    specs: &mut SpecTable,
    now_ms: u64,
) -> Result<Job, &'static str> {
    let wire = job.spec.as_ref().ok_or("jobs without a specification")?;
    let known = border::job_spec(wire).map_err(|_| "jobs with a specification that is not understood")?;
    let placed_ms = job.placed_ms.ok_or("jobs that have not run")?;
    let spec = request(&known, workload)?;
    if 0 < spec.devices && workload.allowed(&spec.wants) == 0 {
        return Err("jobs for devices that no node has now");
    }
    let run_ms = run_ms(job, &spec, placed_ms, now_ms);
    let name = match job.array_index {
        Some(index) => format!("{}[{index}]", known.name).into(),
        None => known.name.clone(),
    };
    Ok(Job {
        name,
        at_ms: 0,
        run_ms,
        spec: specs.index(&mut workload.specs, spec),
        queue: workload.queue(&known.queue),
        priority: known.priority,
        time_limit_ms: known.time_limit_ms,
    })
}

/// What each rank asks for.
fn request(spec: &JobSpec, workload: &Workload) -> Result<Spec, &'static str> {
    let distinct: BTreeSet<&Request> = spec.roles.iter().map(|role| &role.request).collect();
    let [request] = distinct.into_iter().collect::<Vec<_>>()[..] else {
        return Err("jobs of roles with different requests");
    };
    if !request.labels.is_empty() {
        return Err("jobs that want labels, which a simulation does not know");
    }
    let mut read = Spec {
        ranks: spec.ranks(),
        cpus_milli: request.cpus_milli,
        memory_bytes: request.memory_bytes,
        ..Spec::default()
    };
    let accelerates = |want: &&DeviceRequest| workload.classes.iter().any(|class| want.accepts(class));
    let (Some(first), wanted) = (request.devices.first(), request.devices.iter().find(accelerates)) else {
        return Ok(read);
    };
    let Some(wanted) = wanted else {
        // Cores of processors are devices as well; each brings itself.
        read.cpus_milli = read.cpus_milli.max(u32::from(first.count) * 1000);
        let is_core = first.vendor.is_none_or(|vendor| vendor == Vendor::Cpu);
        return if is_core { Ok(read) } else { Err("jobs for devices that no node has now") };
    };
    if MAX_DEVICES < wanted.count.into() || (wanted.slice.is_some() && wanted.count != 1) {
        return Err("jobs for more than 16 devices of a node, or slices of several");
    }
    read.devices = wanted.count as u8;
    read.share_milli = WHOLE;
    if let Some(slice) = wanted.slice {
        let class = workload.classes.iter().find(|class| wanted.accepts(class)).expect("one that it accepts");
        let slice = slice.granted(class);
        read.share_milli = slice.share_milli(class).clamp(1, WHOLE.into()) as u16;
        read.slice_memory_bytes = slice.memory_bytes;
    }
    let alike =
        request.devices.iter().filter(|other| other.count == wanted.count && other.slice == wanted.slice);
    for other in alike {
        let models =
            other.model.as_deref().map_or(vec![None], |models| models.split('|').map(Some).collect());
        let wants =
            models.into_iter().map(|model| Want { vendor: other.vendor, model: model.map(Into::into) });
        read.wants.extend(wants.filter(|want| want.vendor.is_some() || want.model.is_some()));
    }
    Ok(read)
}

/// For how long a job ran, over all of its attempts but for what it had to do again; one that runs still, so far.
fn run_ms(job: &v1::Job, spec: &Spec, placed_ms: u64, now_ms: u64) -> u64 {
    let last_ms = job.ended_ms.unwrap_or(now_ms).saturating_sub(placed_ms);
    let devices = u64::from(spec.ranks) * u64::from(spec.devices);
    let cpus_milli = u64::from(spec.ranks) * u64::from(spec.cpus_milli);
    let all_ms = match (job.attempt, devices, cpus_milli) {
        (..=1, _, _) | (_, 0, 0) => last_ms,
        (_, 0, cpus_milli) => job.cpu_milli_ms / cpus_milli,
        (_, devices, _) => {
            job.device_ms.saturating_sub(job.lost_device_ms) * u64::from(WHOLE)
                / (devices * u64::from(spec.share_milli))
        }
    };
    all_ms.max(1)
}
