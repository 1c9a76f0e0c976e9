//! What it takes members of a training to add up a vector each and all have the sum: the protocol and the network of the
//! trainer, with nothing to compute.

use super::{Bound, Figure};
use crate::WorkerError;
use crate::elastic::{
    Action, Computed, Event, Identity, Member, Message, Node, Outcome, PROTOCOL, Rank, Settings, Snapshot,
};
use crate::shards::Partial;
use crate::train::Input;
use crate::train::net::{Net, Outgoing};
use crate::vector::Vector;
use std::collections::VecDeque;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// What [`exchange`] measures.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ExchangeArgs {
    /// Members, each with its own connection to the one that leads, on loopback
    #[arg(long, default_value_t = 4)]
    pub ranks: usize,

    /// Length of the vector, in megabytes of f32
    #[arg(long, value_name = "MB", default_value_t = 100)]
    pub size: usize,

    /// Sums that are measured, after two that are not
    #[arg(long, default_value_t = 10)]
    pub rounds: usize,
}

/// Members that add up vectors.
#[derive(Clone, Debug)]
pub(crate) struct Summing {
    /// Members.
    pub ranks: usize,
    /// Length of a vector.
    pub floats: usize,
    /// Sums.
    pub steps: u64,
    /// How long the first one waits for the others, and all for a silent one.
    pub join: Duration,
    /// Every number of a sum is looked at, and the group is lost with one of its members; else the ends are, and others go on.
    pub whole: bool,
}

/// Adds up vectors as one of several processes, of which the first listens at `master`.
///
/// # Errors
/// A sum is wrong, or somebody was silent; or the address cannot be listened at, which says nothing of anybody.
pub(crate) fn sum_up(plan: &Summing, rank: usize, master: &str) -> Result<(), WorkerError> {
    // Where the others listen nobody asks.
    let members: Vec<Member> =
        (0..plan.ranks).map(|rank| Member { rank: rank as Rank, address: master.into() }).collect();
    let peer = Peer::new(plan, rank, &members, rank == 0).map_err(WorkerError::Unable)?;
    peer.run(members, &channel().0).map_err(WorkerError::Group)
}

/// From the moment at which all have their vectors to that at which all have the sum.
///
/// # Errors
/// Where the members do not find each other, or a sum is wrong.
pub fn exchange(args: &ExchangeArgs) -> Result<Vec<Figure>, String> {
    let listeners: Result<Vec<_>, _> = (0..args.ranks).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let listeners = listeners.map_err(|error| error.to_string())?;
    let addresses: Result<Vec<_>, _> = listeners.iter().map(TcpListener::local_addr).collect();
    let addresses = addresses.map_err(|error| error.to_string())?;
    let members: Vec<Member> =
        (0..).zip(&addresses).map(|(rank, at)| Member { rank, address: at.to_string() }).collect();
    drop(listeners);
    let (done, steps) = channel();
    let plan = Summing {
        ranks: args.ranks,
        floats: args.size * 1_000_000 / 4,
        steps: args.rounds as u64 + 2,
        join: Duration::from_secs(20),
        whole: false,
    };
    let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let run = |rank| {
            let (plan, members, done) = (&plan, members.clone(), done.clone());
            scope.spawn(move || Peer::new(plan, rank, &members, true)?.run(members, &done))
        };
        let threads: Vec<_> = (0..args.ranks).map(run).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    drop(done);
    results.into_iter().collect::<Result<(), String>>()?;
    // A step is done when the last one has its sum.
    let mut ends: Vec<Option<Instant>> = vec![None; args.rounds + 3];
    for (step, at) in steps {
        let end = &mut ends[step as usize];
        *end = (*end).max(Some(at));
    }
    let ends: Vec<Instant> = ends.into_iter().flatten().collect();
    let mut times: Vec<f64> = ends[1..].windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    let (median, best) = (times[times.len() / 2], times[0]);
    let bytes = args.size as f64 * 1e6;
    Ok(vec![
        Figure::new("sum, median", median * 1e3, "ms", Bound::None),
        Figure::new("sum, best", best * 1e3, "ms", Bound::None),
        Figure::new("size / time", bytes / median * 1e-9, "GB/s", Bound::None),
    ])
}

struct Peer {
    rank: Rank,
    plan: Summing,
    node: Node,
    net: Net,
    inputs: Receiver<Input>,
    /// What the engine would tell.
    told: VecDeque<Event>,
    addresses: Vec<String>,
}

impl Peer {
    fn new(plan: &Summing, rank: usize, members: &[Member], listens: bool) -> Result<Peer, String> {
        let (sender, inputs) = channel();
        let net = Net::new(sender, plan.floats);
        let address = &members[rank].address;
        if listens {
            net.listen(address, Duration::from_secs(5)).map_err(|error| format!("{address}: {error}"))?;
        }
        let rank = rank as Rank;
        let node = Node::new(Settings {
            identity: Identity {
                protocol: PROTOCOL.into(),
                job: "exchange".into(),
                attempt: 1,
                rank,
                agreement: Vec::new(),
                kernels: String::new(),
                cards: None,
            },
            shards: plan.ranks,
            steps: plan.steps,
            checkpoint_every: None,
            lanes: 1,
            spares: 0,
            audit: None,
            is_fixed: plan.whole,
            join: plan.join,
            peer: plan.join,
        });
        let addresses = members.iter().map(|member| member.address.clone()).collect();
        Ok(Peer { rank, plan: plan.clone(), node, net, inputs, told: VecDeque::new(), addresses })
    }

    fn run(mut self, members: Vec<Member>, done: &Sender<(u64, Instant)>) -> Result<(), String> {
        let start = Instant::now();
        self.told.push_back(Event::Members(members));
        loop {
            let event = match self.told.pop_front() {
                Some(event) => event,
                None => match self.inputs.recv_timeout(Duration::from_millis(5)) {
                    Ok(Input::Net(heard)) => match self.net.event(heard) {
                        Some(event) => event,
                        None => continue,
                    },
                    _ => Event::Tick,
                },
            };
            for action in self.node.handle(start.elapsed(), event) {
                if let Some(outcome) = self.act(action, done)? {
                    self.net.end(Duration::from_secs(2));
                    return match outcome {
                        Outcome::Failed(reason) => Err(reason),
                        Outcome::Done | Outcome::Stopped => Ok(()),
                    };
                }
            }
        }
    }

    fn act(&mut self, action: Action, done: &Sender<(u64, Instant)>) -> Result<Option<Outcome>, String> {
        match action {
            Action::Dial(rank) => self.net.dial(self.addresses[rank as usize].clone()),
            Action::Close(link) => self.net.close(link),
            Action::Send(link, message) => self.net.send(link, Outgoing::Message(message)),
            Action::SendState(link) => {
                let step = self.node.step().unwrap_or(0);
                let state = Snapshot { step, ..Snapshot::default() };
                self.net.send(link, Outgoing::Message(Message::State(Box::new(state))));
            }
            Action::Load => self.told.push_back(Event::Ready(0)),
            Action::Install(state) => self.told.push_back(Event::Ready(state.step)),
            Action::Apply { step, total, .. } => {
                self.check(step, total.host().map_err(|error| error.to_string())?)?;
                _ = done.send((step, Instant::now()));
            }
            Action::Compute { step, shards } => {
                let own = self.rank as usize;
                if shards != (own..own + 1) {
                    return Err(format!("rank {own} is given shards {shards:?} of step {step}, not its own"));
                }
                let sums = shards.map(|shard| self.vector(step, shard)).collect();
                // As if it had taken long: nobody is late.
                self.told.push_back(Event::Computed(step, sums, Duration::from_secs(1)));
            }
            Action::Save(_) | Action::Say(_) | Action::Wait(_) => (),
            Action::Exit(outcome) => return Ok(Some(outcome)),
        }
        Ok(None)
    }

    /// Looks whether a sum is what it must be.
    fn check(&self, step: u64, total: &[f32]) -> Result<(), String> {
        let ends = [0, self.plan.floats - 1];
        let ends = ends.into_iter().take(if self.plan.whole { 0 } else { 2 });
        let whole = 0..if self.plan.whole { self.plan.floats } else { 0 };
        for at in ends.chain(whole) {
            let expected: f32 = (0..self.plan.ranks).map(|shard| self.number(step, shard, at)).sum();
            if total[at] != expected {
                return Err(format!("rank {} has {} for {expected} in a sum", self.rank, total[at]));
            }
        }
        Ok(())
    }

    /// A number of the vector of a shard: whole ones, whose sums are exact.
    fn number(&self, step: u64, shard: usize, at: usize) -> f32 {
        match self.plan.whole {
            true => ((at + 31 * shard + 7 * step as usize) % 1021) as f32,
            false => shard as f32 + 1.0,
        }
    }

    /// The vector of a shard; where only its ends are looked at, only they are written.
    fn vector(&self, step: u64, start: usize) -> Computed {
        // The sum that is computed from the state of a step is the next one's.
        let (floats, step) = (self.plan.floats, step + 1);
        let mut values = Vector::any(floats);
        match self.plan.whole {
            true => values.iter_mut().enumerate().for_each(|(at, it)| *it = self.number(step, start, at)),
            false => {
                let number = self.number(step, start, 0);
                (values[0], values[floats - 1]) = (number, number);
            }
        }
        Computed { sum: Partial { start, size: 1, values: Arc::new(values.into()) }, is_finite: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_have_the_sum() {
        let figures = exchange(&ExchangeArgs { ranks: 3, size: 1, rounds: 4 }).unwrap();
        assert!(figures.iter().all(|figure| 0.0 < figure.value), "{figures:?}");
    }
}
