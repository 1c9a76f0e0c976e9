//! A job that waits although there is room enough, only in pieces: others go on elsewhere, so that it gets one piece.
//!
//! Nobody is stopped who would not run on at once: all that move are placed on what is idle now, and hold that until they have
//! stopped. What they leave is promised to the job that waits, as what victims leave is.

use std::collections::BTreeSet;

use super::search::{Search, nodes};
use super::{Part, Promises, give_to, least_milli};
use crate::jobs::{Job, Phase};
use crate::plan::fit::{Free, Misfit, fits};
use crate::plan::migrate::{Aim, Migration, Mover, movers};
use crate::plan::{Plan, spare};
use crate::types::*;

/// Jobs for which others move in one round, at most.
const MAX_ROOMS: usize = 4;
/// Jobs for which that is looked at in one round, at most.
const MAX_LOOKS: usize = 16;
/// Choices of who moves that are looked at for one job, at most: some may find no other place.
const MAX_CHOICES: usize = 4;

impl<'a> Promises<'a> {
    /// Jobs that move so that others fit which wait.
    ///
    /// Whether that is worth it needs no forecast: a job has others moved when it has waited for as long as that loses,
    /// both times the devices. So at most twice is lost of what would be lost by whoever knew how long it will wait.
    pub fn defragment(&mut self, free: &mut Free<'a>, plan: &Plan) -> Vec<Migration> {
        let cluster = free.cluster;
        let classes = free.room.classes().to_vec();
        let mut movers = movers(free, plan, &classes);
        let mut migrations = Vec::new();
        let mut rooms = 0;
        for (_, job) in spare::waiting(free, plan).into_iter().take(MAX_LOOKS) {
            if movers.is_empty() || rooms == MAX_ROOMS {
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
            let Some((moves, ranks)) = self.gather(free, job, &movers, worth) else { continue };
            let cluster_jobs = cluster.jobs();
            let of =
                |id: JobId| Part { job: cluster_jobs.get(id).expect("a job that moves"), stays: Vec::new() };
            let leave: Vec<Part> = moves.iter().map(|it| of(it.job)).collect();
            for it in &moves {
                give_to(&mut self.started, &it.ranks);
                free.count(of(it.job).job, &it.ranks);
            }
            self.promise(free, job, &leave, ranks);
            movers.retain(|mover| moves.iter().all(|it| it.job != mover.job.id));
            migrations.extend(moves);
            rooms += 1;
        }
        migrations
    }

    /// Who moves where for one job, and where it starts then. The places are taken but not counted.
    ///
    /// * `worth`: what may be lost for it, in thousandths of a device times milliseconds.
    fn gather(
        &self,
        free: &mut Free<'a>,
        job: &'a Job,
        movers: &[Mover<'a>],
        worth: u64,
    ) -> Option<(Vec<Migration>, Vec<Allocation>)> {
        let classes = free.room.classes().to_vec();
        let mut stuck: BTreeSet<JobId> = BTreeSet::new();
        for _ in 0..MAX_CHOICES {
            let may = movers.iter().filter(|mover| !stuck.contains(&mover.job.id));
            let may = may.map(|mover| (mover.job, mover.cost_ms));
            let (chosen, ranks) = Search::new(free, self).make_way(job, may)?;
            let chosen: Vec<&Mover> = movers.iter().filter(|mover| chosen.contains(&mover.job.id)).collect();
            let lost = chosen.iter().map(|it| it.cost_ms.saturating_mul(it.job.charge_milli()));
            if worth < lost.fold(0, u64::saturating_add) {
                return None;
            }
            // What is idle there now is what it waits for, or part of it.
            let room = nodes(&ranks);
            let is_open = |node: &NodeId| {
                let takes_work = free.cluster.nodes().get(*node).takes_work();
                takes_work && !room.contains(node) && !free.kept.is_kept(*node)
            };
            let open: Vec<NodeId> = free.cluster.nodes().iter().map(|node| node.id).filter(is_open).collect();
            let mut moves = Vec::new();
            let mut left = None;
            for mover in chosen {
                let Some(ranks) = mover.place(free, &classes[mover.own], &open) else {
                    left = Some(mover.job.id);
                    break;
                };
                let (job, cost_ms, aim) = (mover.job.id, mover.cost_ms, Aim::RoomFor(job.id));
                moves.push(Migration { job, ranks, cost_ms, aim });
            }
            let Some(left) = left else { return Some((moves, ranks)) };
            let changed: BTreeSet<NodeId> = moves.iter().flat_map(|it| nodes(&it.ranks)).collect();
            let mut search = Search::new(free, self);
            changed.into_iter().for_each(|node| search.refresh_node(node));
            stuck.insert(left);
        }
        None
    }
}
