//! Why the replicas of a service are on the classes of devices that they are on.

use std::collections::BTreeMap;
use std::fmt;

use crate::cluster::Cluster;
use crate::jobs::Job;
use crate::serving::{Mix, Offer};
use crate::types::*;

/// What a request costs where the replicas of a service are, against the best of the other classes that it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingChoice {
    /// Classes with replicas, the best first; at least one.
    pub classes: Vec<ServingClass>,
    /// What is promised to the first token, in milliseconds.
    pub ttft_ms: Option<u64>,
    /// What is promised from one token to the next, in milliseconds.
    pub tpot_ms: Option<u64>,
    /// What requests are like.
    pub mix: Mix,
    /// Whether replicas told how fast they are, on one class at least; else it is what the devices' figures say.
    pub is_learned: bool,
}

/// Replicas on one class, and the best of the other classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingClass {
    /// Its model.
    pub model: Name,
    /// How many.
    pub replicas: u32,
    /// Model of the other class.
    pub other: Name,
    /// What a request costs there, over what it costs here, in thousandths.
    pub times_milli: u64,
    /// Whether it cannot keep the promise here.
    pub misses: bool,
    /// Whether it cannot there.
    pub other_misses: bool,
}

/// Says what a request to a service costs where its replicas are. `None`: it does not scale itself by a promise, accepts no
/// other class that is in the pool, or all are alike to it.
pub fn serving_choice(cluster: &Cluster, job: &Job) -> Option<ServingChoice> {
    let (at, promise) = job.spec.promise()?;
    let (role, room) = (&job.spec.roles[at], cluster.room());
    let mut held: BTreeMap<u16, u32> = BTreeMap::new();
    for rank in job.ranks_of(at) {
        let number = cluster.nodes().get(rank.node).class_of(rank).and_then(|class| room.number_of(class));
        *held.entry(number?).or_default() += 1;
    }
    let first = held.keys().next()?;
    let want = role.request.devices.iter().find(|want| want.accepts(room.class(*first)))?;
    let mut offers = room.offers(cluster, job, role, want)?;
    offers.sort_by_key(|(number, offer)| (offer.rank(), *number));
    if offers.first()?.1.rank() == offers.last()?.1.rank() {
        return None;
    }
    let class = |(number, offer): &(u16, Offer)| {
        let replicas = *held.get(number)?;
        let (other, than) = offers.iter().find(|(other, _)| other != number)?;
        Some(ServingClass {
            model: room.class(*number).model.clone(),
            replicas,
            other: room.class(*other).model.clone(),
            times_milli: (u128::from(than.cost) * 1000 / u128::from(offer.cost)).min(1 << 40) as u64,
            misses: offer.misses,
            other_misses: than.misses,
        })
    };
    let classes: Vec<ServingClass> = offers.iter().filter_map(class).collect();
    let learned = cluster.learned(job.id);
    (!classes.is_empty()).then(|| ServingChoice {
        classes,
        ttft_ms: promise.ttft_ms,
        tpot_ms: promise.tpot_ms,
        mix: learned.map(|learned| learned.mix()).unwrap_or_default(),
        is_learned: offers.iter().any(|(_, offer)| offer.is_learned),
    })
}

/// `2 on a100: 1.4 times cheaper a request than t4`.
impl fmt::Display for ServingClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServingClass { model, replicas, other, times_milli, misses, other_misses } = self;
        write!(f, "{replicas} on {model}: ")?;
        let times = |milli: u64| format!("{}.{}", (milli + 50) / 1000, (milli + 50) % 1000 / 100);
        match (misses, other_misses) {
            (false, true) => write!(f, "keeps the promise, which {other} cannot"),
            (true, false) => write!(f, "cannot keep the promise, which {other} can"),
            _ if 1050 <= *times_milli => {
                write!(f, "{} times cheaper a request than {other}", times(*times_milli))
            }
            _ if *times_milli <= 952 => {
                write!(f, "{} times dearer a request than {other}", times(1_000_000 / times_milli.max(&1)))
            }
            _ => write!(f, "as cheap a request as {other}"),
        }
    }
}

impl fmt::Display for ServingChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, class) in self.classes.iter().enumerate() {
            write!(f, "{}{class}", if at == 0 { "" } else { "; " })?;
        }
        match (self.ttft_ms, self.tpot_ms) {
            (Some(ttft), Some(tpot)) => {
                write!(f, ", at {ttft} ms to the first token and {tpot} ms to the next")?
            }
            (Some(ttft), None) => write!(f, ", at {ttft} ms to the first token")?,
            (None, Some(tpot)) => write!(f, ", at {tpot} ms from token to token")?,
            (None, None) => (),
        }
        let Mix { prompt_tokens, said_tokens } = self.mix;
        write!(f, ", with prompts of {prompt_tokens} and answers of {said_tokens} tokens")?;
        f.write_str(if self.is_learned { "" } else { ", by the devices' figures" })
    }
}
