//! Where the ranks of a job may stand, relative to each other and to the structure of the pool.

use std::convert::Infallible;
use std::{fmt, str::FromStr};

use crate::nodes::Node;
use crate::types::*;

/// A level of the pool's structure, which parts nodes into domains.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every node is a domain of its own. Goes before a label of that name.
    Node,
    /// Nodes with the same value of this label are one domain; a node without it is in none.
    Label(Name),
}

/// Where all ranks of a job, of all roles, stand together.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Topology {
    /// In one domain of this level, or nowhere.
    pub require: Option<Level>,
    /// In one domain of the first of these levels for which there is one with room, else wherever there is room.
    pub prefer: Vec<Level>,
}

/// How the ranks of one role keep away from each other. Other jobs, also of the same array, do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// No two of them in one domain of this level; none on a node that is in no domain.
    pub apart: Option<Level>,
    /// Each in the domain of this level that has fewest of them so far, of those with room; on a node that is in no
    /// domain only where no other has room.
    pub spread: Option<Level>,
}

impl Level {
    /// The domain that a node is in.
    pub fn domain_of<'n>(&self, node: &'n Node) -> Option<&'n Name> {
        match self {
            Level::Node => Some(&node.name),
            Level::Label(key) => node.inventory.labels.get(key),
        }
    }
}

impl Topology {
    /// The level, the first preferred one first, of which all nodes are in one domain, and that domain.
    pub fn domain<'n>(&self, nodes: &[&'n Node]) -> Option<(&Level, &'n Name)> {
        let (first, others) = nodes.split_first()?;
        self.prefer.iter().chain(&self.require).find_map(|level| {
            let domain = level.domain_of(first)?;
            others.iter().all(|node| level.domain_of(node) == Some(domain)).then_some((level, domain))
        })
    }
}

impl Standing {
    /// Whether nothing is wished.
    pub fn is_free(&self) -> bool {
        *self == Standing::default()
    }
}

impl JobSpec {
    /// The level at which two ranks of a role would have to be both together and apart, with that role.
    ///
    /// On one node, ranks are in one domain of every level.
    pub fn contradiction(&self) -> Option<(&Level, &Role)> {
        let require = self.topology.require.as_ref()?;
        let clashes = |role: &&Role| match &role.standing.apart {
            Some(apart) => 1 < role.ranks && (*require == Level::Node || require == apart),
            None => false,
        };
        self.roles.iter().find(clashes).map(|role| (require, role))
    }
}

impl FromStr for Level {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Level, Infallible> {
        Ok(if text == "node" { Level::Node } else { Level::Label(text.into()) })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Node => "node",
            Level::Label(key) => key,
        })
    }
}
