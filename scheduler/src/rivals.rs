//! Agents that say that they are a node which is another agent's.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use aquifer_core::{Cluster, Name};

use crate::runtime::Session;

/// An agent that was refused tries again within seconds. Longer ago, it has left.
const RECENTLY: Duration = Duration::from_secs(60);

/// Those that were refused lately, by their node.
#[derive(Default)]
pub struct Rivals(Mutex<BTreeMap<Name, Refused>>);

struct Refused {
    at: Instant,
    agent: Name,
    why: String,
}

impl Rivals {
    /// The agent of a session was refused. It is told once, for as long as it goes on trying.
    pub fn on_refused(&self, session: &Session, why: &str) {
        let mut all = self.0.lock().expect("no holder panics");
        all.retain(|_, refused| refused.at.elapsed() < RECENTLY);
        let refused = Refused { at: Instant::now(), agent: session.agent.clone(), why: why.into() };
        let told = all.insert(session.node.clone(), refused);
        if told.is_none_or(|told| told.why != why) {
            tracing::warn!("refused an agent: {why}");
        }
    }

    /// It was let in.
    pub fn on_let_in(&self, session: &Session) {
        let mut all = self.0.lock().expect("no holder panics");
        if all.get(&session.node).is_some_and(|refused| refused.agent == session.agent) {
            all.remove(&session.node);
        }
    }

    /// What people should know of a node.
    pub fn of(&self, node: &str) -> Option<String> {
        let all = self.0.lock().expect("no holder panics");
        all.get(node).filter(|refused| refused.at.elapsed() < RECENTLY).map(|refused| refused.why.clone())
    }
}

/// What is known of a node that an agent says it is.
#[derive(Default)]
pub struct Known {
    /// Its highest boot; 0: the node is new.
    pub boot: u64,
    up: bool,
    /// Whether it must not be this agent's.
    taken: bool,
    agent: Name,
    address: Name,
}

impl Known {
    /// Looks it up.
    pub fn of(cluster: &Cluster, node: &str, agent: &str) -> Known {
        let nodes = cluster.nodes();
        let Some(id) = nodes.by_name(node) else { return Known::default() };
        let known = nodes.get(id);
        Known {
            boot: known.boot,
            up: known.up,
            taken: nodes.is_taken(id, agent),
            agent: known.agent.clone(),
            address: known.inventory.address.clone(),
        }
    }

    /// Why the agent of a session cannot be the node, in a sentence that names both; `None`: it can.
    ///
    /// * `from`: where it comes from. `open`: the session that the node has.
    pub fn refusal(&self, session: &Session, from: &str, open: Option<&Session>) -> Option<String> {
        let (node, agent) = (&session.node, &session.agent);
        let holder = format!("node {node} is that of the agent {} at {}", self.agent, self.address);
        if self.taken && self.up {
            return Some(format!(
                "{holder}: the agent {agent} from {from} needs another name (--node), or waits until that one is gone"
            ));
        }
        if self.taken {
            return Some(format!(
                "{holder}, whose workers may run on: before the agent {agent} from {from} takes its place, \
                 `aquifer drain {node}` gives them up"
            ));
        }
        // Of one that was restarted the session is over, or will be once it does not answer.
        let elsewhere = |open: &&Session| {
            !agent.is_empty()
                && open.agent == *agent
                && !open.machine_boot.is_empty()
                && !session.machine_boot.is_empty()
                && open.machine_boot != session.machine_boot
        };
        open.filter(|_| self.up).filter(elsewhere).map(|_| {
            format!(
                "{holder}: another machine, from {from}, has a copy of its state directory, and needs one of its own and \
                 another name (--state-dir, --node)"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use aquifer_core::plan::Order;
    use aquifer_core::{Event, Inventory, NodeReport, Policy, Revision, Time};

    use super::*;

    fn session(agent: &str, machine_boot: &str) -> Session {
        Session::of_test("a", agent, machine_boot)
    }

    #[test]
    fn a_copy_of_an_agent_on_another_machine_is_refused_while_the_first_one_is_connected() {
        let mut cluster = Cluster::restore(Policy::new(Order::FairShare), 1, [], Time(0));
        let known = |cluster: &Cluster| Known::of(cluster, "a", "host-1");
        assert_eq!(known(&cluster).refusal(&session("host-1", "x"), "10.0.0.2", None), None, "it is new");
        let inventory = Inventory { address: "10.0.0.1".into(), ..Inventory::default() };
        let report = NodeReport {
            node: "a".into(),
            agent: "host-1".into(),
            boot: 1,
            seq: 1,
            inventory: inventory.into(),
            revision: Revision::default(),
            workers: Vec::new(),
            probe: None,
        };
        cluster.step(Time(0), Event::Report(report), &mut Vec::new());
        let (first, open) = (session("host-1", "x"), session("host-1", "x"));
        let refusal = |it: &Session, open: Option<&Session>| known(&cluster).refusal(it, "10.0.0.2", open);
        assert_eq!(refusal(&first, Some(&open)), None, "it was started anew");
        let copy = session("host-1", "y");
        let why = refusal(&copy, Some(&open)).expect("it is refused");
        let expected = "node a is that of the agent host-1 at 10.0.0.1: another machine, from 10.0.0.2, has a copy of its state \
                        directory, and needs one of its own and another name (--state-dir, --node)";
        assert_eq!(why, expected);
        assert_eq!(refusal(&copy, None), None, "its machine was started anew");
        assert_eq!(refusal(&session("", ""), Some(&open)), None, "one of an earlier version");
        // Once it is lost nobody need wait for its connection.
        let lost = cluster.deadline().expect("the end of its lease");
        cluster.step(lost, Event::Tick, &mut Vec::new());
        assert_eq!(known(&cluster).refusal(&copy, "10.0.0.2", Some(&open)), None);
    }

    #[test]
    fn a_rival_is_told_of_until_it_is_let_in() {
        let rivals = Rivals::default();
        rivals.on_refused(&session("host-2", "y"), "node a is that of another");
        assert_eq!((rivals.of("a").as_deref(), rivals.of("b")), (Some("node a is that of another"), None));
        rivals.on_let_in(&session("host-1", "x"));
        assert!(rivals.of("a").is_some(), "that is the one whose node it is");
        rivals.on_let_in(&session("host-2", "y"));
        assert_eq!(rivals.of("a"), None);
    }
}
