//! What an agent and its scheduler say to each other, and when. The daemon speaks so, and every member of a crowd.

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::agent::{Action, Message, NodeAgent};
use aquifer_core::{Inventory, Time, WorkerState};
use aquifer_proto::v1::agent_message::Message as Up;
use aquifer_proto::v1::scheduler_message::Message as Down;
use aquifer_proto::{border, v1, wire};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::process;
use crate::session::{Incoming, Side};

/// So many workers that come or go at a time put off what is told of them by a millisecond: the busier a node, the more
/// is told at once. A node that is less busy than that tells everything as it happens.
const CHANGES_PER_MS: u32 = 4;
/// Longest that news is put off.
const LONGEST_SILENCE: Duration = Duration::from_millis(5);

/// One side of it.
pub struct Conversation {
    pub agent: NodeAgent,
    hello: watch::Sender<v1::Hello>,
    scheduler: Option<mpsc::Sender<v1::AgentMessage>>,
    /// Told last, so that trying again for hours is one line in the log; empty once there was a session.
    no_session_because: String,
    /// The inventory that this session's scheduler was told last.
    told_inventory: Option<Arc<Inventory>>,
    /// A whole report is under way: what changes meanwhile is told after its answer.
    reporting: bool,
    lease: Duration,
    heartbeat_due: Instant,
    /// News waits until then.
    talk_due: Instant,
}

/// What came of a message of the scheduler.
pub enum Heard {
    /// Nothing to do.
    Nothing,
    /// A session began; checkpoints of jobs that name no place for them go below this directory.
    Began { checkpoint_root: String },
    /// A message was answered: the lease may run on, and this must be done.
    Answered(Vec<Action>),
    /// It wants part of a log.
    Log(v1::LogQuestion),
    /// It wants a command run beside a worker.
    Exec(Box<v1::ExecOrder>, Side),
}

impl Conversation {
    /// Nobody has said anything yet.
    pub fn new(agent: NodeAgent, hello: v1::Hello) -> Conversation {
        Conversation {
            agent,
            hello: watch::Sender::new(hello),
            scheduler: None,
            no_session_because: String::new(),
            told_inventory: None,
            reporting: false,
            lease: Duration::ZERO,
            heartbeat_due: Instant::now(),
            talk_due: Instant::now(),
        }
    }

    /// The same of an agent that has nothing to say of itself but its name.
    pub fn of_node(node: &str, agent: NodeAgent) -> Conversation {
        let hello = v1::Hello { node: node.into(), boot: agent.boot(), ..Default::default() };
        Conversation::new(agent, hello)
    }

    /// How sessions begin.
    pub fn hello(&self) -> &watch::Sender<v1::Hello> {
        &self.hello
    }

    /// To the scheduler, while there is a session.
    pub fn scheduler(&self) -> Option<&mpsc::Sender<v1::AgentMessage>> {
        self.scheduler.as_ref()
    }

    /// Why there is no session, as far as that was told.
    pub fn no_session_because(&self) -> &str {
        &self.no_session_because
    }

    /// Length of the leases that are granted.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Tells news, if it is time to.
    pub fn talk(&mut self) {
        let now = Instant::now();
        if self.has_to_talk() && self.talk_due <= now {
            self.send_message();
            let workers = self.agent.workers().values();
            let changing = workers.filter(|state| **state != WorkerState::Running).count() as u32;
            self.talk_due =
                now + Duration::from_millis((changing / CHANGES_PER_MS).into()).min(LONGEST_SILENCE);
        }
    }

    /// When [`Conversation::talk`] has something to tell; `None`: there is no news, or a report is under way.
    pub fn talk_due(&self) -> Option<Instant> {
        self.has_to_talk().then_some(self.talk_due)
    }

    /// When [`Conversation::send_message`] is due though there is no news; `None`: there is no session.
    pub fn heartbeat_due(&self) -> Option<Instant> {
        self.scheduler.is_some().then_some(self.heartbeat_due)
    }

    /// When the lease ends with which workers do; `None`: there are none.
    pub fn lease_due(&self) -> Option<Instant> {
        self.agent.leased().next()?;
        Some(Instant::now() + Duration::from_millis(self.agent.lease_end().since(now()).max(10)))
    }

    fn has_to_talk(&self) -> bool {
        self.scheduler.is_some() && !self.reporting && self.agent.has_news()
    }

    /// Says everything that is new, or that nothing is.
    pub fn send_message(&mut self) {
        self.heartbeat_due = Instant::now() + self.lease / 6;
        let message = match self.agent.message(now()) {
            Message::Heartbeat { boot: _, seq, same_as } => Up::Heartbeat(v1::Heartbeat { seq, same_as }),
            Message::Report(report) => {
                self.reporting = true;
                let known = self.told_inventory.as_ref() == Some(&report.inventory);
                self.told_inventory = Some(report.inventory.clone());
                Up::Report(wire::report(&report, known))
            }
        };
        let Some(scheduler) = &self.scheduler else { return };
        if scheduler.try_send(v1::AgentMessage { message: Some(message) }).is_err() {
            // The session is ending, or so slow that it should: a new one begins with everything.
            self.end_session("the scheduler does not take messages");
        }
    }

    /// Takes in what the connection tells.
    pub fn on_incoming(&mut self, incoming: Incoming) -> Heard {
        match incoming {
            Incoming::Welcome(welcome, _) if self.agent.boot() < welcome.known_boot => {
                // The state directory was lost, or the clock set back: what is reported must be newer.
                self.agent.set_boot(welcome.known_boot + 1);
                self.hello.send_modify(|hello| hello.boot = welcome.known_boot + 1);
                Heard::Nothing
            }
            Incoming::Welcome(welcome, _) if welcome.term < self.agent.term() => {
                tracing::warn!(term = welcome.term, "ignored a scheduler of an earlier term");
                Heard::Nothing
            }
            Incoming::Welcome(welcome, scheduler) => {
                self.lease = Duration::from_millis(welcome.lease_ms);
                self.agent.on_session(self.lease);
                self.no_session_because.clear();
                (self.scheduler, self.told_inventory, self.reporting) = (Some(scheduler), None, false);
                tracing::info!(term = welcome.term, "session with the scheduler began");
                Heard::Began { checkpoint_root: welcome.checkpoint_root }
            }
            Incoming::Ended(why) => {
                self.end_session(&why);
                Heard::Nothing
            }
            Incoming::Message(_) if self.scheduler.is_none() => Heard::Nothing,
            Incoming::Message(Down::Renew(renew)) => {
                self.agent.on_renew(renew.acked);
                self.answered(Vec::new())
            }
            Incoming::Message(Down::AskReport(_)) => {
                self.agent.on_ask_report();
                self.reporting = false;
                Heard::Nothing
            }
            Incoming::Message(Down::Assignment(assignment)) => match border::assignment(&assignment) {
                Ok(read) => {
                    let actions = self.agent.on_assignment(now(), assignment.acked, read);
                    self.answered(actions)
                }
                Err(invalid) => {
                    tracing::error!("assignment refused: {invalid}");
                    Heard::Nothing
                }
            },
            Incoming::Message(Down::Log(question)) => Heard::Log(question),
            Incoming::Exec(..) if self.scheduler.is_none() => Heard::Nothing,
            Incoming::Exec(order, side) => Heard::Exec(order, side),
            Incoming::Message(Down::Welcome(_) | Down::Exec(_)) => {
                unreachable!("the session sets them apart")
            }
        }
    }

    /// The scheduler has handled something: news may be told.
    fn answered(&mut self, actions: Vec<Action>) -> Heard {
        self.reporting = self.reporting && self.agent.awaits_report();
        Heard::Answered(actions)
    }

    fn end_session(&mut self, why: &str) {
        if self.scheduler.take().is_some() {
            tracing::warn!("session with the scheduler ended: {why}");
        } else if self.no_session_because != why {
            tracing::warn!("no session with the scheduler: {why}");
            self.no_session_because = why.into();
        }
    }
}

/// At that time; `None`: never.
pub async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The boot clock: it runs on while the machine sleeps, and nobody can set it.
pub fn now() -> Time {
    Time(process::boot_time_ms())
}
