//! Explanations as text, for people.

use std::fmt::{self, Write};

use super::*;

impl Explanation {
    /// The whole explanation: a sentence, then what nodes say, who holds what is wanted, when it will start
    /// and what would let it start now. Lines end with a line feed.
    pub fn text(&self, job: JobId, now: Time) -> String {
        let mut text = format!("{job} {}.\n", self.reason);
        self.write_tables(&mut text, now).expect("a string takes all that is written");
        let start = self.start.sentence(now);
        let change = self.change.as_ref().map(|change| format!("It would start now with {change}."));
        let gave_way = self.gave_way_to.map(|by| format!("Its last attempt gave way to {by}."));
        if gave_way.is_some() || start.is_some() || change.is_some() {
            text.push('\n');
        }
        for line in [gave_way, start, change].into_iter().flatten() {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    fn write_tables(&self, f: &mut String, now: Time) -> fmt::Result {
        let wide = self.roles.iter().map(|role| role.role.len()).max().unwrap_or(0).max("role".len());
        let several = 1 < self.roles.len();
        for (number, role) in self.roles.iter().filter(|role| !role.nodes.is_empty()).enumerate() {
            match (number, several) {
                (0, false) => f.write_str("\n  nodes  why\n")?,
                (0, true) => writeln!(f, "\n  nodes  {:wide$}  why", "role")?,
                _ => (),
            }
            for (verdict, nodes) in &role.nodes {
                match several {
                    false => writeln!(f, "  {nodes:>5}  {verdict}")?,
                    true => writeln!(f, "  {nodes:>5}  {:wide$}  {verdict}", role.role)?,
                }
            }
        }
        if !self.blockers.is_empty() {
            f.write_str("\n  devices  cores  ends within  held by\n")?;
        }
        for Blocker { job, devices, cpus_milli, ends_by } in &self.blockers {
            let end = ends_by.map_or("-".into(), |end| duration(end.since(now)));
            writeln!(f, "  {devices:>7}  {:>5}  {end:>11}  {job}", milli(*cpus_milli))?;
        }
        Ok(())
    }
}

impl Start {
    /// When it starts, as a sentence; `None` where there is nothing to say.
    pub fn sentence(&self, now: Time) -> Option<String> {
        match self {
            Start::Past => None,
            Start::Now => None,
            Start::By { at, after } => {
                let wait = duration(at.since(now));
                Some(format!("Expected to start within {wait}, when {after} ends."))
            }
            Start::About { at, after, like } => {
                let wait = duration(at.since(now));
                let by = match like {
                    Some(jobs) => format!("median of {jobs} like jobs"),
                    None => "others before it as like jobs did".into(),
                };
                Some(format!("Expected to start in about {wait}, when {after} ends ({by})."))
            }
            Start::AfterPause(until) => {
                Some(format!("It is tried again in {}, if there is room then.", duration(until.since(now))))
            }
            Start::AtReservation { at, reservation, begins } => {
                let what = if *begins { "begins" } else { "is over" };
                let wait = duration(at.since(now));
                Some(format!("It is tried when reservation {reservation} {what}, in {wait}."))
            }
            Start::Unknown(why) => Some(format!("When it starts is not known: {why}.")),
            Start::Never => {
                Some("It never starts, unless the pool gets other nodes or the request changes.".into())
            }
        }
    }
}

/// Thousandths of a thing, for people: `2`, `0.5`.
pub fn milli(value: u64) -> String {
    let text = format!("{}.{:03}", value / 1000, value % 1000);
    text.trim_end_matches('0').trim_end_matches('.').into()
}

/// Bytes, for people: `80 GiB`, `512 MiB`.
pub fn bytes(value: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        let tenths = (u128::from(value) * 10) >> shift;
        if 10 <= tenths {
            let (whole, tenth) = (tenths / 10, tenths % 10);
            return if tenth == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenth} {unit}") };
        }
    }
    format!("{value} B")
}

/// Milliseconds, for people: `90 s`, `12 min`, `3.5 h`.
pub fn duration(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        10_000..120_000 => format!("{} s", ms / 1000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{}.{} h", ms / 3_600_000, ms % 3_600_000 / 360_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// When a reservation has its nodes: ` in 2 h for 4 h`, ` for another 3 h`.
fn period(in_ms: u64, for_ms: u64) -> String {
    match in_ms {
        0 => format!(" for another {}", duration(for_ms)),
        _ => format!(" in {} for {}", duration(in_ms), duration(for_ms)),
    }
}

fn plural(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// One sentence, without the name of the job: "waits: …".
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::OutOfReach { nodes, stops } => {
                let what = if *stops { "is stopping" } else { "runs on, as far as is known" };
                write!(f, "{what}: {} cannot be reached; by on_partition: keep ", nodes.join(", "))?;
                f.write_str("nothing takes the place of what runs there, until `aquifer drain` gives it up")
            }
            Reason::NotWaiting(Phase::Active) => f.write_str("does not wait: it holds its resources"),
            Reason::NotWaiting(Phase::Done(outcome)) => write!(f, "has ended: {outcome}"),
            Reason::NotWaiting(_) => f.write_str("is stopping"),
            Reason::Sleeps { job, model } => write!(
                f,
                "sleeps, as nobody asks it: a request for {model:?} at a gateway wakes it, and so does \
                 `aquifer job wake {job}`"
            ),
            Reason::Follows(job) => write!(f, "waits for {job} to succeed"),
            Reason::Pauses { failures, .. } => write!(f, "pauses after failure {failures}"),
            Reason::QueueLimit { queue, held, wants, limit } => {
                let (held, wants, limit) = (milli(*held), milli(*wants), milli(*limit));
                write!(
                    f,
                    "waits: queue {queue} holds {held} of at most {limit} devices, it wants {wants} more"
                )
            }
            Reason::NoSuchNode { nodes: 0 } => f.write_str("waits: the pool has no nodes"),
            Reason::NoSuchNode { nodes: 1 } => {
                f.write_str("waits: the pool's one node could not take a rank, even when idle")
            }
            Reason::NoSuchNode { nodes } => {
                write!(f, "waits: none of {nodes} nodes could take a rank, even when idle")
            }
            Reason::Kept(Owner::Job(job)) => {
                write!(f, "waits: the room is kept for {job}, which goes first")
            }
            Reason::Kept(Owner::Wide) => {
                f.write_str("waits: the room is kept for wide jobs, which come and go here")
            }
            Reason::Booked { reservation, nodes, in_ms, for_ms } => {
                let (nodes, are) = (plural(*nodes, "node"), if *nodes == 1 { "is" } else { "are" });
                let period = period(*in_ms, *for_ms);
                write!(f, "waits: {nodes} {are} booked by reservation {reservation}{period}")
            }
            Reason::Awaits { reservation, in_ms } => {
                write!(f, "waits for its reservation {reservation}, which begins in {}", duration(*in_ms))
            }
            Reason::RoomFor { ranks: 0, .. } => f.write_str("waits: no node can take a rank now"),
            Reason::RoomFor { ranks, of, within: Some(Within { level, domain: Some(domain) }) } => {
                write!(
                    f,
                    "waits: no {level} has room for all {of} ranks: the best, {domain}, has room for {ranks}"
                )
            }
            Reason::RoomFor { ranks, of, .. } => write!(f, "waits: room for {ranks} of {of} ranks"),
            Reason::FewDomains { role, level, domains, ranks } => {
                write!(f, "waits: no two of the {ranks} ranks of {role} may be in one {level}, ")?;
                match domains {
                    1 => f.write_str("and only one could ever take any"),
                    _ => write!(f, "and only {domains} could ever take one each"),
                }
            }
            Reason::Preempts(victims) => {
                f.write_str("waits for those that give way to it: it starts when ")?;
                for (number, victim) in victims.iter().enumerate() {
                    match number {
                        0 => write!(f, "{victim}")?,
                        _ if number + 1 == victims.len() => write!(f, " and {victim}")?,
                        _ => write!(f, ", {victim}")?,
                    }
                }
                f.write_str(if victims.len() == 1 { " has stopped" } else { " have stopped" })
            }
            Reason::Next => f.write_str("is placed in the next round"),
            Reason::NextWith { ranks, of } => {
                write!(f, "fits with {ranks} of {of} ranks, and is placed in the next round")
            }
            Reason::RunsWith { ranks, of } => {
                write!(f, "does not wait: it runs with {ranks} of {of} ranks")
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Takes => f.write_str("can take a rank now"),
            Verdict::Lost => f.write_str("lost: its agent is silent"),
            Verdict::Closed(how) => f.write_str(how),
            Verdict::Outside(reservation) => write!(f, "is not booked by reservation {reservation}"),
            Verdict::Booked { reservation, in_ms, for_ms } => {
                write!(f, "is booked by reservation {reservation}{}", period(*in_ms, *for_ms))
            }
            Verdict::Label { key, value } => write!(f, "lacks the label {key}={value}"),
            Verdict::NoDomain(level) => write!(f, "lacks the label {level}"),
            Verdict::NoEngine => f.write_str("has no container engine"),
            Verdict::NoDevice => f.write_str("has no such device"),
            Verdict::FewLinked { has, wants } => {
                write!(f, "has {has} such devices in one island, a rank wants {wants}")
            }
            Verdict::LinkedBusy { free, wants } => {
                write!(f, "{free} such devices are free in one island, a rank wants {wants}")
            }
            Verdict::Isolation { has, wants } => {
                write!(f, "has slices of such devices with {has} isolation, a rank wants {wants}")
            }
            Verdict::FewDevices { has, wants } => write!(f, "has {has} such devices, a rank wants {wants}"),
            Verdict::Faults { out, of, wants, why } => {
                let takes = if *out == 1 { "takes" } else { "take" };
                write!(f, "{out} of {of} such devices {takes} no new work ({why}), a rank wants {wants}")
            }
            Verdict::Busy { free, of, wants } => {
                write!(f, "{free} of {of} such devices are free, a rank wants {wants}")
            }
            Verdict::FewCpus { has, wants } => {
                write!(f, "has {} cores, a rank wants {}", milli(*has), milli(*wants))
            }
            Verdict::CpusBusy { free, of, wants } => {
                write!(f, "{} of {} cores are free, a rank wants {}", milli(*free), milli(*of), milli(*wants))
            }
            Verdict::FewMemory { has, wants } => {
                write!(f, "has {} of memory, a rank wants {}", bytes(*has), bytes(*wants))
            }
            Verdict::PortsBusy { of } => write!(f, "none of its {of} ports for workers is free"),
            Verdict::MemoryBusy { free, of, wants } => {
                let (free, of, wants) = (bytes(*free), bytes(*of), bytes(*wants));
                write!(f, "{free} of {of} of memory is free, a rank wants {wants}")
            }
        }
    }
}

/// What the user would have to ask for: "… would start now".
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::CpusMilli { from, to } => {
                let unit = if *to == 1000 { "core" } else { "cores" };
                write!(f, "{} {unit} a rank instead of {}", milli((*to).into()), milli((*from).into()))
            }
            Change::MemoryBytes { from, to } => {
                write!(f, "{} of memory a rank instead of {}", bytes(*to), bytes(*from))
            }
            Change::DeviceMemoryBytes { from, to } => {
                write!(f, "devices with {} of memory instead of {}", bytes(*to), bytes(*from))
            }
            Change::Devices { from, to } => {
                write!(f, "{to} {} a rank instead of {from}", if *to == 1 { "device" } else { "devices" })
            }
            Change::Ranks { from, to } => {
                write!(f, "{to} {} instead of {from}", if *to == 1 { "rank" } else { "ranks" })
            }
            Change::MinRanks { from, to } => {
                write!(f, "at least {to} {} instead of {from}", if *to == 1 { "rank" } else { "ranks" })
            }
            Change::Model { from } => write!(f, "another model than {from}"),
            Change::Vendor { from } => write!(f, "another vendor than {from}"),
            Change::Labels => f.write_str("no required labels"),
            Change::Image => f.write_str("no image"),
            Change::Topology { from } => write!(f, "ranks in more than one {from}"),
            Change::Apart { from } => write!(f, "several ranks in one {from}"),
            Change::Isolation { from, to } => write!(f, "{to} isolation instead of {from}"),
            Change::Island => f.write_str("devices of several islands"),
            Change::TimeLimit { from, to } => {
                write!(f, "a time limit of {}", duration(*to))?;
                from.map_or(Ok(()), |from| write!(f, " instead of {}", duration(from)))
            }
        }
    }
}
