//! What the scheduler tells an agent to run.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_core::*;

use super::{Checked, Invalid, allocation, job_id, job_spec, vendor, worker_id};
use crate::v1;

/// Checks a node's assignment: the message that it answers, and what should run.
pub fn assignment(wire: &v1::Assignment) -> Checked<Assignment> {
    let mut specs: Vec<(&v1::JobSpec, Arc<JobSpec>)> = Vec::new();
    let gangs = wire.gangs.iter().map(gang).collect::<Checked<BTreeMap<JobId, Arc<[Host]>>>>()?;
    let workers = wire.workers.iter().map(|wire| {
        let id = worker_id("assignment.workers", wire.worker.as_ref())?;
        let launch = match &wire.launch {
            None => None,
            Some(wire) => {
                let given = wire.spec.as_ref();
                let given = given.ok_or_else(|| Invalid::new("launch.spec", "absent", "expected a job"))?;
                let known = specs.iter().find(|(known, _)| *known == given).map(|(_, spec)| spec.clone());
                let spec = match known {
                    Some(spec) => spec,
                    None => {
                        let spec = Arc::new(job_spec(given)?);
                        specs.push((given, spec.clone()));
                        spec
                    }
                };
                let hosts = gangs.get(&id.job).cloned().unwrap_or_else(|| Vec::new().into());
                Some(Arc::new(launch(wire, spec, hosts)?))
            }
        };
        Ok(WorkerOrder {
            id,
            goal: if wire.stop { Goal::Stop } else { Goal::Run },
            grace_ms: wire.grace_ms,
            why: wire.stop.then(|| wire.why.parse().unwrap_or(StopReason::Unknown)),
            launch,
        })
    });
    let workers = workers.collect::<Checked<Vec<WorkerOrder>>>()?;
    let revision = Revision { term: wire.revision_term, count: wire.revision_count };
    let members = wire.members.iter().map(|wire| Ok(Arc::new(members(wire)?)));
    let members = members.collect::<Checked<Vec<Arc<Members>>>>()?;
    let probe = wire.probe.as_ref().map(probe_order).transpose()?;
    Ok(Assignment { revision, workers, members, probe })
}

fn probe_order(wire: &v1::ProbeOrder) -> Checked<ProbeOrder> {
    let port = u16::try_from(wire.master_port);
    let port = port.map_err(|_| Invalid::new("probe.master_port", wire.master_port, "at most 65,535"))?;
    if !(2..=3).contains(&wire.ranks) || wire.ranks <= wire.rank {
        let ranks = format!("{} of {}", wire.rank, wire.ranks);
        return Err(Invalid::new("probe.rank", ranks, "expected one of 2 or 3, from 0"));
    }
    Ok(ProbeOrder {
        id: Revision { term: wire.term, count: wire.count },
        rank: wire.rank,
        ranks: wire.ranks,
        master: (wire.master_address.as_str().into(), port),
    })
}

/// Characters of why a probe failed.
const MOST_OF_WHY: usize = 300;

/// Checks what a node says of a probe.
pub(super) fn probe_report(wire: &v1::ProbeReport) -> Checked<ProbeReport> {
    use v1::probe_report::State;
    let state = match &wire.state {
        Some(State::Running(_)) => ProbeState::Running,
        Some(State::Passed(_)) => ProbeState::Passed,
        // What a program complained of: refusing a whole report for that would cost a node.
        Some(State::Failed(why)) => {
            let why: String = why.chars().filter(|it| !it.is_control()).take(MOST_OF_WHY).collect();
            ProbeState::Failed(why.into())
        }
        Some(State::Yielded(_)) => ProbeState::Yielded,
        None => return Err(Invalid::new("report.probe.state", "absent", "expected a state")),
    };
    Ok(ProbeReport { id: Revision { term: wire.term, count: wire.count }, state })
}

fn members(wire: &v1::Members) -> Checked<Members> {
    let member = |wire: &v1::Member| {
        let port = u16::try_from(wire.port);
        let port = port.map_err(|_| Invalid::new("members.port", wire.port, "at most 65,535"))?;
        Ok(Member { rank: wire.rank, address: (wire.address.as_str().into(), port) })
    };
    let members = wire.members.iter().map(member).collect::<Checked<Vec<Member>>>()?;
    if !members.is_sorted_by_key(|member| member.rank) {
        return Err(Invalid::new("members.rank", members.len(), "expected them in ascending order"));
    }
    Ok(Members { job: job_id("members.job", wire.job)?, attempt: wire.attempt, epoch: wire.epoch, members })
}

fn launch(wire: &v1::Launch, spec: Arc<JobSpec>, hosts: Arc<[Host]>) -> Checked<Launch> {
    let role = wire.role as usize;
    if spec.roles.len() <= role {
        return Err(Invalid::new("launch.role", role, format!("expected less than {}", spec.roles.len())));
    }
    let default = v1::Allocation::default();
    let allocation = allocation(0, wire.allocation.as_ref().unwrap_or(&default))?;
    let port = u16::try_from(wire.master_port);
    let port = port.map_err(|_| Invalid::new("launch.master_port", wire.master_port, "at most 65,535"))?;
    Ok(Launch {
        spec,
        role,
        world_size: wire.world_size,
        local_rank: wire.local_rank,
        local_world_size: wire.local_world_size,
        node_rank: wire.node_rank,
        master: (wire.master_address.as_str().into(), port),
        array_index: wire.array_index,
        allocation,
        hosts,
    })
}

fn gang(wire: &v1::Gang) -> Checked<(JobId, Arc<[Host]>)> {
    let seat = |wire: &v1::Seat| {
        let vendor = match &wire.vendor[..] {
            "" => None,
            name => Some(vendor("gangs.vendor", name)?),
        };
        Ok(Seat { rank: wire.rank, vendor, devices: wire.devices.clone() })
    };
    let host = |wire: &v1::Host| {
        let seats = wire.seats.iter().map(seat).collect::<Checked<Vec<Seat>>>()?;
        Ok(Host { address: wire.address.as_str().into(), seats })
    };
    let hosts = wire.hosts.iter().map(host).collect::<Checked<Vec<Host>>>()?;
    Ok((job_id("gangs.job", wire.job)?, hosts.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;

    fn spec(ranks: u32) -> Arc<JobSpec> {
        let command = v1::Command { arguments: vec!["work".into()] };
        let program = Some(v1::role::Program::Command(command));
        let roles = vec![v1::Role { ranks, program, ..Default::default() }];
        Arc::new(job_spec(&v1::JobSpec { roles, ..Default::default() }).expect("a good specification"))
    }

    fn order(rank: u32, spec: &Arc<JobSpec>, hosts: &Arc<[Host]>) -> WorkerOrder {
        let wire =
            v1::Allocation { rank: Some(rank), state: v1::RankState::Assigned.into(), ..Default::default() };
        let launch = Launch {
            spec: spec.clone(),
            role: 0,
            world_size: 2,
            local_rank: 0,
            local_world_size: 2,
            node_rank: 0,
            master: ("a".into(), 1),
            array_index: None,
            allocation: allocation(0, &wire).expect("a good allocation"),
            hosts: hosts.clone(),
        };
        let id = WorkerId { job: JobId(7), attempt: 1, rank };
        WorkerOrder { id, goal: Goal::Run, grace_ms: 5, why: None, launch: Some(Arc::new(launch)) }
    }

    #[test]
    fn an_assignment_arrives_as_it_was_sent_and_lists_the_hosts_of_a_gang_once() {
        let spec = spec(2);
        let seat = |rank, vendor, devices: &[u32]| Seat { rank, vendor, devices: devices.to_vec() };
        let hosts: Arc<[Host]> = vec![
            Host { address: "a".into(), seats: vec![seat(0, Some(Vendor::Ascend), &[0, 7])] },
            Host { address: "b".into(), seats: vec![seat(1, None, &[])] },
        ]
        .into();
        let mut workers = vec![order(0, &spec, &hosts), order(1, &spec, &hosts)];
        workers.extend(StopReason::ALL.iter().zip(2..).map(|((reason, _), rank)| WorkerOrder {
            id: WorkerId { job: JobId(8), attempt: 1, rank },
            goal: Goal::Stop,
            grace_ms: 0,
            why: Some(*reason),
            launch: None,
        }));
        let sent = Assignment { workers, ..Assignment::default() };
        let wire = wire::assignment(1, &sent);
        assert_eq!(wire.gangs.len(), 1);
        assert_eq!(assignment(&wire), Ok(sent));
    }

    #[test]
    fn probes_arrive_as_they_were_sent_and_one_that_makes_no_sense_is_named() {
        let id = Revision { term: 3, count: 9 };
        let order = ProbeOrder { id, rank: 1, ranks: 3, master: ("10.0.0.7".into(), 20_000) };
        let sent = Assignment { probe: Some(order), ..Assignment::default() };
        let mut wire = wire::assignment(1, &sent);
        assert_eq!(assignment(&wire), Ok(sent));
        for (rank, ranks) in [(0, 1), (2, 2), (0, 4)] {
            let probe = v1::ProbeOrder { rank, ranks, ..wire.probe.clone().unwrap_or_default() };
            wire.probe = Some(probe);
            let error = assignment(&wire).expect_err("no such probe").to_string();
            assert_eq!(error, format!("probe.rank is {rank} of {ranks}: expected one of 2 or 3, from 0"));
        }
        let states = [ProbeState::Running, ProbeState::Passed, ProbeState::Yielded];
        for state in states.into_iter().chain([ProbeState::Failed("a sum is wrong".into())]) {
            let report = ProbeReport { id, state };
            assert_eq!(probe_report(&wire::probe_report(&report)), Ok(report));
        }
        let long = ProbeReport { id, state: ProbeState::Failed("a\n".repeat(1000).into()) };
        let read =
            probe_report(&wire::probe_report(&long)).expect("a report, whatever a program complained of");
        assert_eq!(read.state, ProbeState::Failed("a".repeat(MOST_OF_WHY).into()));
    }
}
