//! What goes wrong, and how long things take.

use crate::rng::Rng;

/// How much goes wrong until the faults heal. Frequencies are in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Of messages, requests and replies that are lost.
    pub drop: u64,
    /// Of messages and repeatable requests that arrive twice.
    pub duplicate: u64,
    /// Of messages that take up to 15 s.
    pub delay: u64,
    /// Of agent ticks at which one direction of its link fails, for up to 30 s.
    pub partition: u64,
    /// Of agent ticks at which its session breaks and begins anew.
    pub reconnect: u64,
    /// Of agent ticks at which the agent crashes, to be started again up to 30 s later.
    pub agent_crash: u64,
    /// Of assignments that are half carried out when the agent crashes.
    pub agent_crash_amid: u64,
    /// Of agent ticks at which the machine stops, to come back up to 60 s later.
    pub node_crash: u64,
    /// Of commits before which the scheduler crashes, and again of those after which it does.
    pub scheduler_crash: u64,
    /// Of workers that fail: by exit code, by signal, or at their launch.
    pub worker_fail: u64,
    /// Of agent ticks at which devices break, are no longer found, or are healthy again.
    pub device_fault: u64,
}

/// How long things take, in milliseconds: the least and the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A message, a request or a reply on its way.
    pub message_ms: (u64, u64),
    /// From the launch of a worker until it works.
    pub start_ms: (u64, u64),
    /// From the request to stop until a worker that is granted the time has exited.
    pub stop_ms: (u64, u64),
    /// From the signal to the death of a killed worker. At most a fifth of the lease.
    pub kill_ms: (u64, u64),
    /// Between two messages of an agent with nothing to tell.
    pub tick_ms: u64,
    /// Of a scheduler that crashed, until the next one leads.
    pub downtime_ms: (u64, u64),
    /// From a step until its commit; all steps until then are committed together. 0: at once, and alone.
    pub commit_ms: (u64, u64),
}

impl Faults {
    /// A mix that belongs to the seed: each fault is off in about a third of all mixes.
    pub fn mix(rng: &mut Rng) -> Faults {
        let mut up_to = |most: u64| if rng.below(3) == 0 { 0 } else { 1 + rng.below(most) };
        Faults {
            drop: up_to(250),
            duplicate: up_to(250),
            delay: up_to(100),
            partition: up_to(25),
            reconnect: up_to(30),
            agent_crash: up_to(20),
            agent_crash_amid: up_to(100),
            node_crash: up_to(10),
            scheduler_crash: up_to(15),
            worker_fail: up_to(150),
            device_fault: up_to(30),
        }
    }
}

impl Timing {
    /// Everything takes a fixed time: for scripts.
    pub fn fixed() -> Timing {
        Timing {
            message_ms: (5, 5),
            start_ms: (1_000, 1_000),
            stop_ms: (500, 500),
            kill_ms: (100, 100),
            tick_ms: 1_000,
            downtime_ms: (3_000, 3_000),
            commit_ms: (0, 0),
        }
    }

    /// Times that belong to the seed.
    pub fn mix(rng: &mut Rng) -> Timing {
        Timing {
            message_ms: (1, rng.within((1, 200))),
            start_ms: (0, rng.within((1, 4_000))),
            stop_ms: (0, rng.within((1, 6_000))),
            kill_ms: (0, rng.within((0, 900))),
            tick_ms: rng.within((800, 3_000)),
            downtime_ms: (0, rng.within((1, 15_000))),
            commit_ms: if rng.below(2) == 0 { (0, 0) } else { (0, rng.within((1, 50))) },
        }
    }
}
