//! What is read of the pool when somebody asks.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_core::jobs::{Job, Phase};
use aquifer_core::nodes::Node;
use aquifer_core::*;

use super::page::Page;
use crate::grpc::{STATE_WORDS, state_at};
use crate::runtime::Shared;

/// Queues and models of devices that are told apart, at most; the others are summed.
const MOST: usize = 500;
/// What stands for those that are not told apart.
const OTHERS: &str = "(others)";

const DEVICE_STATES: [&str; 5] = ["free", "held", "cordoned", "unhealthy", "lost"];
const NODE_STATES: [&str; 4] = ["up", "cordoned", "draining", "lost"];
const RANK_STATES: [&str; 3] = ["assigned", "starting", "running"];
/// Thousandths of a device times milliseconds, in a device second.
const MILLI_MS: f64 = 1e6;

/// What is known of jobs that have ended, so that nobody looks at them again: a job that has ended stays as it is.
#[derive(Default)]
pub struct Tally {
    /// All jobs up to this one have ended, or are in `open`.
    seen: u64,
    open: BTreeSet<JobId>,
}

/// Of one queue's own jobs.
#[derive(Clone, Default)]
struct OfQueue {
    /// By state.
    jobs: [u64; STATE_WORDS.len()],
    oldest_pending_ms: u64,
    device_ms: u64,
    lost_device_ms: u64,
    reference_milli_ms: u128,
    tokens_per_s: f64,
    /// Of all trainings.
    spent: Spent,
}

/// A queue as it was set, and what it holds with those below it.
struct Share {
    held_milli: u64,
    guaranteed_milli: u64,
    limit_milli: Option<u64>,
    millionths: u32,
}

/// The pool at one moment.
pub struct Snapshot {
    queues: BTreeMap<Name, OfQueue>,
    shares: BTreeMap<Name, Share>,
    devices: BTreeMap<(Vendor, Name), [u64; 5]>,
    /// Devices of nodes that are up, by what is wrong with them.
    unhealthy: BTreeMap<&'static str, u64>,
    nodes: [u64; 4],
    workers: [u64; 3],
    shortest_lease_ms: u64,
}

/// Reads the pool. `O(jobs that have not ended + jobs that are new + devices)`.
pub fn read(cluster: &Cluster, shared: &Shared, tally: &mut Tally) -> Snapshot {
    let mut queues = jobs(cluster, shared, tally);
    for (queue, milli_ms) in shared.reference_milli_ms(cluster.now()) {
        queues.entry(queue).or_default().reference_milli_ms = milli_ms;
    }
    let share = |it: queues::Overview| {
        let share = Share {
            held_milli: it.held_milli,
            guaranteed_milli: it.queue.guaranteed_milli,
            limit_milli: it.queue.limit_milli,
            millionths: it.share_millionths,
        };
        (it.queue.name.clone(), share)
    };
    let mut read = Snapshot {
        queues,
        shares: cluster.queues().overview(cluster.now()).into_iter().map(share).take(MOST).collect(),
        devices: BTreeMap::new(),
        unhealthy: health::Health::ALL.iter().map(|(_, name)| (*name, 0)).collect(),
        nodes: [0; 4],
        workers: [0; 3],
        shortest_lease_ms: u64::MAX,
    };
    cluster.nodes().iter().for_each(|node| read.add_node(cluster, node));
    for rank in cluster.jobs().holding().flat_map(|job| job.in_attempt()) {
        match rank.worker {
            RankState::Assigned => read.workers[0] += 1,
            RankState::Starting => read.workers[1] += 1,
            RankState::Running => read.workers[2] += 1,
            RankState::Gone => (),
        }
    }
    read
}

/// What each queue's jobs are and have used.
fn jobs(cluster: &Cluster, shared: &Shared, tally: &mut Tally) -> BTreeMap<Name, OfQueue> {
    let jobs = cluster.jobs();
    tally.open.extend((tally.seen + 1..=jobs.len()).map(JobId));
    tally.seen = jobs.len();
    let mut open: BTreeMap<Name, OfQueue> = BTreeMap::new();
    // Many in a row are of one queue.
    let mut row: (Name, OfQueue) = (cluster::DEFAULT_QUEUE.into(), OfQueue::default());
    tally.open.retain(|id| {
        let Some(job) = jobs.get(*id).filter(|job| !matches!(job.phase, Phase::Done(_))) else {
            return false;
        };
        if row.0 != job.spec.queue {
            let (queue, part) = std::mem::replace(&mut row, (job.spec.queue.clone(), OfQueue::default()));
            open.entry(queue).or_default().merge(part);
        }
        add(&mut row.1, cluster, shared, job);
        true
    });
    open.entry(row.0).or_default().merge(row.1);
    let mut sum: BTreeMap<Name, OfQueue> = BTreeMap::new();
    // Queues without jobs are there as well, so that their numbers begin at zero.
    let all = cluster.queues().iter().map(|queue| (queue.name.clone(), OfQueue::default()));
    let ended = jobs.ended_totals().map(|(queue, totals)| (queue.clone(), of_ended(totals)));
    for (queue, part) in all.chain(ended).chain(open) {
        sum.entry(queue).or_default().merge(part);
    }
    sum
}

fn of_ended(totals: &history::Totals) -> OfQueue {
    let history::Totals { succeeded, failed, unreachable, cancelled, timed_out, .. } = *totals;
    let jobs = [0, 0, 0, 0, succeeded, failed + unreachable, cancelled, timed_out];
    let history::Totals { device_ms, lost_device_ms, spent, .. } = *totals;
    OfQueue { jobs, device_ms, lost_device_ms, spent, ..OfQueue::default() }
}

fn add(queue: &mut OfQueue, cluster: &Cluster, shared: &Shared, job: &Job) {
    queue.jobs[state_at(job)] += 1;
    let held_ms = job.placed.filter(|_| !job.ranks.is_empty()).map_or(0, |at| cluster.now().since(at));
    queue.device_ms += job.usage.device_ms + job.devices_held_milli() * held_ms / 1000;
    queue.lost_device_ms += job.usage.lost_device_ms;
    queue.spent.add(&cluster.spent(job));
    match job.phase {
        Phase::Pending(_) if job.sleeps() => (),
        Phase::Pending(_) => {
            let waits_ms = cluster.now().since(job.submitted);
            queue.oldest_pending_ms = queue.oldest_pending_ms.max(waits_ms);
        }
        Phase::Active => queue.tokens_per_s += shared.tokens_per_s(job),
        Phase::Stopping(_) | Phase::Done(_) => (),
    }
}

impl OfQueue {
    fn merge(&mut self, other: OfQueue) {
        for (state, jobs) in self.jobs.iter_mut().zip(other.jobs) {
            *state += jobs;
        }
        self.oldest_pending_ms = self.oldest_pending_ms.max(other.oldest_pending_ms);
        self.device_ms += other.device_ms;
        self.lost_device_ms += other.lost_device_ms;
        self.reference_milli_ms += other.reference_milli_ms;
        self.tokens_per_s += other.tokens_per_s;
        self.spent.add(&other.spent);
    }
}

impl Snapshot {
    fn add_node(&mut self, cluster: &Cluster, node: &Node) {
        let state = match (node.up, node.availability) {
            (false, _) => 3,
            (true, Availability::Open) => 0,
            (true, Availability::Cordoned) => 1,
            (true, Availability::Draining) => 2,
        };
        self.nodes[state] += 1;
        if let Some(lease) = cluster.nodes().lease(node.id) {
            self.shortest_lease_ms = self.shortest_lease_ms.min(lease.end.since(cluster.now()));
        }
        let held = &cluster.nodes().held(node.id).devices;
        for (index, device) in (0u16..).zip(&node.inventory.devices) {
            let state = match &device.fault {
                _ if !node.up => 4,
                Some(_) => 3,
                None if held.get(&index).is_some() => 1,
                None if !node.takes_work() || node.cordoned.contains(&device.uuid) => 2,
                None => 0,
            };
            let fault = device.fault.as_ref().filter(|_| node.up);
            if let Some((_, name)) =
                fault.and_then(|it| health::Health::ALL.iter().find(|h| h.0 == it.health))
            {
                *self.unhealthy.entry(name).or_default() += 1;
            }
            let class = (device.class.vendor, device.class.model.clone());
            let full = MOST <= self.devices.len() && !self.devices.contains_key(&class);
            let class = if full { (Vendor::Cpu, OTHERS.into()) } else { class };
            self.devices.entry(class).or_default()[state] += 1;
        }
    }

    /// Writes it all down.
    pub fn write(self, page: &Page) {
        self.write_queues(page);
        let vendors: Vec<(String, &Name, &[u64; 5])> = self
            .devices
            .iter()
            .map(|((vendor, model), counts)| (vendor.to_string(), model, counts))
            .collect();
        let of_class = |(vendor, model, counts): &'_ (String, &'_ Name, &'_ [u64; 5])| {
            let (vendor, model, counts) = (vendor.clone(), model.to_string(), **counts);
            DEVICE_STATES
                .into_iter()
                .zip(counts)
                .map(move |(state, count)| (vendor.clone(), model.clone(), state, count))
        };
        let devices: Vec<(String, String, &str, u64)> = vendors.iter().flat_map(of_class).collect();
        page.gauges(
            ("devices", "Devices, by class and state", ["vendor", "model", "state"]),
            devices.iter().map(|(vendor, model, state, count)| ([&vendor[..], model, state], *count as f64)),
        );
        let unhealthy = self.unhealthy.iter().map(|(health, count)| ([*health], *count as f64));
        page.gauges(
            ("devices_unhealthy", "Devices of nodes that are up which are not well", ["health"]),
            unhealthy,
        );
        let by_state = |states: &'static [&'static str], counts: Vec<u64>| {
            states.iter().zip(counts).map(|(state, count)| ([*state], count as f64))
        };
        page.gauges(("nodes", "Nodes, by state", ["state"]), by_state(&NODE_STATES, self.nodes.to_vec()));
        let help = "Workers of jobs that hold resources, by state";
        page.gauges(("workers", help, ["state"]), by_state(&RANK_STATES, self.workers.to_vec()));
        if self.shortest_lease_ms != u64::MAX {
            let left = self.shortest_lease_ms as f64 / 1000.0;
            page.gauge("shortest_lease_seconds", "What is left of the lease that runs out first", left);
        }
    }

    fn write_queues(&self, page: &Page) {
        let mut queues: BTreeMap<&str, OfQueue> = BTreeMap::new();
        for (name, of_queue) in &self.queues {
            let told_apart = self.shares.contains_key(name);
            let name = if told_apart { &name[..] } else { OTHERS };
            queues.entry(name).or_default().merge(of_queue.clone());
        }
        let states = queues.iter().flat_map(|(queue, it)| {
            STATE_WORDS.into_iter().zip(it.jobs).map(|(state, jobs)| ([*queue, state], jobs as f64))
        });
        page.gauges(
            ("jobs", "Jobs, by queue and state; also those that have ended", ["queue", "state"]),
            states,
        );
        let of_jobs =
            |value: fn(&OfQueue) -> f64| queues.iter().map(move |(queue, it)| ([*queue], value(it)));
        let gauge = |name, help, value| page.gauges((name, help, ["queue"]), of_jobs(value));
        gauge("queue_oldest_pending_seconds", "Age of the queue's oldest job that waits", |it| {
            it.oldest_pending_ms as f64 / 1000.0
        });
        gauge("queue_tokens_per_second", "What running jobs tell that they do", |it| it.tokens_per_s);
        let counter = |name, help, value| page.counters((name, help, ["queue"]), of_jobs(value));
        counter("queue_device_seconds_total", "Devices times the time that jobs have held them", |it| {
            it.device_ms as f64 / 1000.0
        });
        let help =
            "Device seconds that were lost: since the last checkpoint, when an attempt ended before its time";
        counter("queue_lost_device_seconds_total", help, |it| it.lost_device_ms as f64 / 1000.0);
        let spent = queues.iter().flat_map(|(queue, it)| {
            let Spent { steps_us, start_us, recovery_us, slow_us, lost_us, .. } = it.spent;
            let causes = [
                ("steps", steps_us),
                ("start", start_us),
                ("recovery", recovery_us),
                ("slow", slow_us),
                ("lost", lost_us),
            ];
            causes.map(|(cause, us)| ([&queue[..], cause], us as f64 / 1e6))
        });
        let help = "Time of trainings, each counted once, by what it was spent on; all but steps is badput";
        page.counters(("queue_training_seconds_total", help, ["queue", "cause"]), spent);
        let help = "Device seconds, each device by its price or speed in reference devices, since this scheduler began to lead";
        counter("queue_reference_device_seconds_total", help, |it| it.reference_milli_ms as f64 / MILLI_MS);

        let of_share = |value: fn(&Share) -> Option<f64>| {
            self.shares.iter().filter_map(move |(queue, it)| Some(([&queue[..]], value(it)?)))
        };
        let gauge = |name, help, value| page.gauges((name, help, ["queue"]), of_share(value));
        gauge("queue_held_devices", "Devices that the queue and those below it hold", |it| {
            Some(it.held_milli as f64 / 1000.0)
        });
        gauge("queue_guaranteed_devices", "Devices up to which the queue goes first", |it| {
            Some(it.guaranteed_milli as f64 / 1000.0)
        });
        gauge("queue_limit_devices", "Devices that the queue never holds more of, if it has a limit", |it| {
            it.limit_milli.map(|milli| milli as f64 / 1000.0)
        });
        gauge("queue_share_ratio", "Part of the pool that the queue gets when all want more", |it| {
            Some(f64::from(it.millionths) / 1e6)
        });
    }
}
