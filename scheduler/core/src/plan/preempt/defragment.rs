//! A job that waits although there is room enough, only in pieces: others go on elsewhere, so that it gets one piece.
//!
//! Nobody is stopped who would not run on at once: all that move are placed on what is idle now, and hold that until they have
//! stopped. What they leave is promised to the job that waits, as what victims leave is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::search::{Search, nodes};
use super::{Part, Round, give_to, least_milli};
use crate::jobs::{Job, Phase};
use crate::plan::fit::{Free, Misfit, fits};
use crate::plan::migrate::{Aim, Migration, Mover, cost_ms, may_move};
use crate::plan::{Plan, spare};
use crate::types::*;

/// Jobs for which others move in one round, at most.
const MAX_ROOMS: usize = 4;
/// Jobs for which that is looked at in one round, at most.
const MAX_LOOKS: usize = 16;
/// Choices of who moves that are looked at for one job, at most: some may find no other place.
const MAX_CHOICES: usize = 4;
/// Jobs that are looked at for one choice, at most: all of a node, those nodes first where least is lost.
const MAX_CANDIDATES: usize = 256;

/// A node with jobs that may move.
struct Site<'a> {
    /// What their moves lose, in thousandths of a device times milliseconds; of a gang all of it.
    lost: u64,
    node: NodeId,
    /// Devices that they hold there.
    devices: usize,
    jobs: Vec<&'a Job>,
}

/// Nodes with jobs that may move, those first where least is lost. `O(jobs that run)`.
fn sites<'a>(free: &Free<'a>, plan: &Plan) -> Vec<Site<'a>> {
    let mut sites: BTreeMap<NodeId, Site> = BTreeMap::new();
    for job in may_move(free, plan) {
        let lost = cost_ms(free.cluster, job).saturating_mul(job.charge_milli());
        for rank in &job.ranks {
            let node = rank.node;
            let site =
                sites.entry(node).or_insert_with(|| Site { lost: 0, node, devices: 0, jobs: Vec::new() });
            site.devices += rank.devices.len();
            if site.jobs.last().is_none_or(|last| last.id != job.id) {
                site.lost = site.lost.saturating_add(lost);
                site.jobs.push(job);
            }
        }
    }
    let mut sites: Vec<Site> = sites.into_values().collect();
    sites.sort_by_key(|site| (site.lost, site.node));
    sites
}

/// Whole devices of a node that are idle.
fn idle(free: &Free, node: NodeId) -> usize {
    free.room.on(node).devices.iter().filter(|device| device.compute_milli == 1000).count()
}

/// Jobs on nodes that could take a rank of the job if they left, as many as are looked at.
fn candidates<'a>(
    free: &Free<'a>,
    classes: &[Arc<DeviceClass>],
    job: &Job,
    sites: &[Site<'a>],
    stays: &BTreeSet<JobId>,
) -> Vec<Mover<'a>> {
    let least = |role: &Role| role.request.devices.iter().map(|want| usize::from(want.count)).min();
    let wants = job.spec.roles.iter().filter_map(least).min().unwrap_or(0);
    let (mut movers, mut seen) = (Vec::new(), stays.clone());
    for site in sites.iter().filter(|site| wants <= site.devices + idle(free, site.node)) {
        let new = site.jobs.iter().filter(|job| seen.insert(job.id));
        movers.extend(new.filter_map(|job| Mover::of(free.cluster, classes, job)));
        if MAX_CANDIDATES <= movers.len() {
            break;
        }
    }
    movers
}

impl Round {
    /// Jobs that move so that others fit which wait.
    ///
    /// Whether that is worth it needs no forecast: a job has others moved when it has waited for as long as that loses,
    /// both times the devices. So at most twice is lost of what would be lost by whoever knew how long it will wait.
    pub fn defragment<'a>(&mut self, free: &mut Free<'a>, plan: &Plan) -> Vec<Migration> {
        let cluster = free.cluster;
        self.catch_up(&plan.starts, &plan.growths);
        let mut found: Option<Vec<Site>> = None;
        let (mut migrations, mut moved, mut rooms) = (Vec::new(), BTreeSet::new(), 0);
        for job in spare::waiting(free, plan).into_iter().take(MAX_LOOKS) {
            if rooms == MAX_ROOMS {
                break;
            }
            let Phase::Pending(since) = job.phase else { continue };
            let waited_ms = cluster.now().since(job.submitted.max(since));
            let worth = waited_ms.saturating_mul(least_milli(job));
            if !matches!(fits(free, job), Err(Misfit::RoomFor { .. }))
                || Search::new(free, self).fits_soon(job)
            {
                continue;
            }
            // All jobs that run are looked at once, and only if somebody could use it.
            let sites = found.get_or_insert_with(|| sites(free, plan));
            let Some((moves, ranks)) = self.gather(free, job, (sites, &moved), worth) else { continue };
            let mut leave = Vec::new();
            for it in &moves {
                let job = cluster.jobs().get(it.job).expect("a job that moves");
                give_to(&mut self.started, &it.ranks);
                leave.push(Part { job, stays: Vec::new() });
            }
            self.promise(free, (job, cluster.now()), &leave, ranks);
            moved.extend(moves.iter().map(|it| it.job));
            migrations.extend(moves);
            rooms += 1;
        }
        migrations
    }

    /// Who moves where for one job, and where it starts then. The places of those that move are taken.
    ///
    /// * `moved`: who moves already.
    /// * `worth`: what may be lost for it, in thousandths of a device times milliseconds.
    fn gather<'a>(
        &self,
        free: &mut Free<'a>,
        job: &'a Job,
        (sites, moved): (&[Site<'a>], &BTreeSet<JobId>),
        worth: u64,
    ) -> Option<(Vec<Migration>, Vec<Allocation>)> {
        let classes = free.room.classes().to_vec();
        let mut stays = moved.clone();
        for _ in 0..MAX_CHOICES {
            let movers = candidates(free, &classes, job, sites, &stays);
            let may = movers.iter().map(|mover| (mover.job, mover.cost_ms));
            let (chosen, ranks) = Search::new(free, self).make_way(job, may)?;
            let chosen: Vec<&Mover> = movers.iter().filter(|mover| chosen.contains(&mover.job.id)).collect();
            let lost = chosen.iter().map(|it| it.cost_ms.saturating_mul(it.job.charge_milli()));
            if worth < lost.fold(0, u64::saturating_add) {
                return None;
            }
            // What is idle there now is part of what the job waits for.
            let room = nodes(&ranks);
            let is_open = |node: &NodeId| {
                let takes_work = free.cluster.nodes().get(*node).takes_work();
                takes_work && !room.contains(node) && !free.kept.is_kept(*node) && 0 < idle(free, *node)
            };
            let open: Vec<NodeId> = free.cluster.nodes().iter().map(|node| node.id).filter(is_open).collect();
            let (mut moves, mut stuck) = (Vec::new(), None);
            for mover in chosen {
                let Some(ranks) = mover.place(free, &classes[mover.own], &open) else {
                    stuck = Some(mover.job.id);
                    break;
                };
                // Those that move together hold both places together.
                free.count(mover.job, &ranks);
                let (job, cost_ms, aim) = (mover.job.id, mover.cost_ms, Aim::RoomFor(job.id));
                moves.push(Migration { job, ranks, cost_ms, aim });
            }
            let Some(stuck) = stuck else { return Some((moves, ranks)) };
            for it in &moves {
                free.count_back(free.cluster.jobs().get(it.job).expect("a job that moves"), &it.ranks);
            }
            let changed: BTreeSet<NodeId> = moves.iter().flat_map(|it| nodes(&it.ranks)).collect();
            let mut search = Search::new(free, self);
            changed.into_iter().for_each(|node| search.refresh_node(node));
            stays.insert(stuck);
        }
        None
    }
}
