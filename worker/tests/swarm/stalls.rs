//! How much longer a step takes in which a member is lost.

use super::{END, Happens, Rank, Seen, World, reference, settings};
use aquifer_worker::random::Random;
use std::time::Duration;

/// What happens to a member.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Harm {
    /// It is killed.
    Kill,
    /// It is stopped for three seconds.
    Stop,
}

/// Shards of a step.
pub const SHARDS: usize = 64;
const STEPS: u64 = 12;

/// Four members alike, one of which leads, and a spare, which take a little more than 13 ms for a shard and look at the time every 5 ms:
/// how much longer the longest step takes than the one in the middle, and that one, in which `harm` comes to the leader
/// or to another one.
pub fn stall(seed: u64, harm: Harm, to_leader: bool, tells: bool) -> (Duration, Duration) {
    let (states, mut seen) = (reference(SHARDS, STEPS), Seen::new());
    let mut world = World::new(Random::new(seed), settings(seed, SHARDS, STEPS), 5);
    (world.tick, world.speed, world.tells) = (Duration::from_millis(5), Some(1.5), tells);
    (0..5).for_each(|rank| world.within(20, Happens::Start(rank)));
    world.within(0, Happens::Tick);
    let mut due = None;
    while let Some(((at, _), happens)) = world.queue.pop_first() {
        world.now = at;
        assert!(at < END, "seed {seed}: it has not ended; {}", world.describe());
        if due.is_none() && world.applied.contains_key(&5) {
            // Some time in the next two steps.
            due = Some(at + Duration::from_micros(world.random.bits() % 400_000));
        }
        if due.is_some_and(|due| due <= at) {
            due = Some(Duration::MAX);
            let members = (0..4).filter(|rank| world.processes[rank].node.leads() == to_leader);
            let members: Vec<Rank> = members.collect();
            let victim = members[world.random.bits() as usize % members.len()];
            match harm {
                Harm::Kill => world.kill(victim),
                Harm::Stop => world.hang(victim, Duration::from_secs(3)),
            }
        }
        world.happen(happens, &states, &mut seen, seed);
        if world.applied.contains_key(&STEPS) {
            break;
        }
    }
    let at: Vec<Duration> = world.applied.into_values().collect();
    let mut times: Vec<Duration> = at[1..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    times.sort();
    let usual = times[times.len() / 2];
    (times[times.len() - 1] - usual, usual)
}
