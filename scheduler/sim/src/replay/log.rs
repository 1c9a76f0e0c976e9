//! What a policy decided, in the order in which it did: all that figures and checks may look at.

use super::workload::Workload;

/// One rank of a job, on its node and devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Node, an index of the workload's nodes.
    pub node: u32,
    /// Devices of the node, as bits.
    pub devices: u16,
}

/// Something that happened to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// Which job, an index of the workload's jobs.
    pub job: u32,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It arrived.
    Arrived,
    /// It holds these ranks from now on, `first..first + count` of [`Log::ranks`].
    Started {
        /// The first of them.
        first: u32,
        /// How many.
        count: u32,
    },
    /// It gives everything back.
    Ended,
    /// It found no room and left.
    Dropped,
}

/// The decisions of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// In order of time.
    pub entries: Vec<Entry>,
    /// Ranks of all starts, one after the other.
    pub ranks: Vec<Rank>,
}

impl Log {
    /// Adds an entry.
    pub fn push(&mut self, at_ms: u64, job: u32, what: What) {
        self.entries.push(Entry { at_ms, job, what });
    }

    /// Adds a start.
    pub fn start(&mut self, at_ms: u64, job: u32, ranks: &[Rank]) {
        let first = self.ranks.len() as u32;
        self.ranks.extend(ranks);
        self.push(at_ms, job, What::Started { first, count: ranks.len() as u32 });
    }

    /// The ranks of a start.
    pub fn ranks_of(&self, first: u32, count: u32) -> &[Rank] {
        &self.ranks[first as usize..(first + count) as usize]
    }
}

impl Log {
    /// The log as a table: time in milliseconds, job, what happened, and of starts the node and devices of each rank,
    /// as `node-1:0+1`.
    pub fn csv(&self, workload: &Workload) -> String {
        let mut text = String::from("time_ms,job,event,ranks\n");
        for entry in &self.entries {
            let (what, ranks) = match entry.what {
                What::Arrived => ("arrived", String::new()),
                What::Started { first, count } => {
                    let ranks = self.ranks_of(first, count).iter().map(|rank| {
                        let devices = (0..16).filter(|device| rank.devices >> device & 1 == 1);
                        let devices: Vec<String> = devices.map(|device| device.to_string()).collect();
                        format!("{}:{}", workload.nodes[rank.node as usize].name, devices.join("+"))
                    });
                    ("started", ranks.collect::<Vec<_>>().join(" "))
                }
                What::Ended => ("ended", String::new()),
                What::Dropped => ("dropped", String::new()),
            };
            let job = &workload.jobs[entry.job as usize].name;
            text += &format!("{},{job},{what},{ranks}\n", entry.at_ms);
        }
        text
    }
}
