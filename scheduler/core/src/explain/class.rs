//! Why a job is on the class of devices that it is on.

use std::fmt;

use super::serving_choice;
use crate::cluster::Cluster;
use crate::jobs::Job;
use crate::speed::Kind;
use crate::types::*;

/// How fast a job is on its class of devices, against others of the pool that it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassChoice {
    /// Model of the devices of its first rank that has any.
    pub model: Name,
    /// The fastest for it first; at most [`MAX_OTHERS`], at least one.
    pub others: Vec<OtherClass>,
}

/// A class that a job could have been given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherClass {
    /// Its model.
    pub model: Name,
    /// Speed of the job on its class over that on this one, in thousandths.
    pub times_milli: u64,
    /// Price of this class over that of the job's, in thousandths: as the operator says, or else mean speeds over what is
    /// asked for.
    pub worth_milli: u64,
    /// Whether the operator says what one of them costs.
    pub is_priced: bool,
    /// Whether both speeds were measured; else one is that of the devices alone.
    pub is_measured: bool,
}

/// Other classes in a [`ClassChoice`], at most.
pub const MAX_OTHERS: usize = 3;

/// Why a job is on the class of devices that it is on, in one sentence; `None`: nothing is known that tells classes apart.
pub fn class_text(cluster: &Cluster, job: &Job) -> Option<String> {
    let by_request = serving_choice(cluster, job).map(|choice| choice.to_string());
    by_request.or_else(|| class_choice(cluster, job).map(|choice| choice.to_string()))
}

/// Says how fast a job that holds devices is on them, against others. `None`: it accepts no other that is in the pool, or
/// nothing is known that tells them apart.
pub fn class_choice(cluster: &Cluster, job: &Job) -> Option<ClassChoice> {
    let (at, rank) = job.ranks.iter().enumerate().find(|(_, rank)| !rank.devices.is_empty())?;
    let role = &job.spec.roles[job.spec.role_of(at as u32, job.in_attempt().len() as u32)];
    let device = cluster.nodes().get(rank.node).inventory.devices.get(usize::from(rank.devices[0]))?;
    let (kind, speeds) = (Kind::of(&job.spec, role), cluster.speeds());
    let classes = cluster.room().class_speeds(speeds, &kind);
    let own = classes.iter().find(|it| *it.class == *device.class)?;
    let accepts = |class: &DeviceClass| role.request.devices.iter().any(|want| want.accepts(class));
    let mut others: Vec<_> =
        classes.iter().filter(|it| it.class != own.class && accepts(&it.class)).collect();
    others.sort_by_key(|it| (std::cmp::Reverse(it.speed), &it.class));
    let other = |it: &&crate::plan::ClassSpeed| OtherClass {
        model: it.class.model.clone(),
        times_milli: own.speed * 1000 / it.speed,
        worth_milli: it.price * 1000 / own.price,
        is_priced: [own, it].iter().any(|it| cluster.tariff().of(&it.class).is_some()),
        is_measured: [own, it].iter().all(|it| speeds.is_measured(&kind, &it.class)),
    };
    let is_known = |other: &OtherClass| other.is_measured || other.is_priced || other.times_milli != 1000;
    let others: Vec<OtherClass> = others.iter().map(other).filter(is_known).take(MAX_OTHERS).collect();
    (!others.is_empty()).then(|| ClassChoice { model: device.class.model.clone(), others })
}

/// `h200: 3.1 times as fast for it as t4`.
impl fmt::Display for ClassChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.model)?;
        for (at, other) in self.others.iter().enumerate() {
            if at != 0 {
                f.write_str(", ")?;
            }
            let times = |milli: u64| format!("{}.{}", (milli + 50) / 1000, (milli + 50) % 1000 / 100);
            let OtherClass { model, times_milli, worth_milli, is_priced, is_measured } = other;
            let by = if *is_measured { "" } else { " by the devices' figures" };
            write!(f, "{} times as fast for it as {model}{by}", times(*times_milli))?;
            if *is_priced {
                write!(f, ", an hour of which costs {} times as much", times(*worth_milli))?;
            } else if *times_milli < 1000 && 1000 < *worth_milli {
                write!(f, ", which is worth {} times as much", times(*worth_milli))?;
            }
        }
        Ok(())
    }
}
