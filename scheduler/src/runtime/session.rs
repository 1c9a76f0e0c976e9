//! A connected agent, as the rest of the scheduler sees it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use aquifer_core::{Name, NodeId};
use aquifer_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// A connected agent.
pub struct Session {
    /// The node's name.
    pub node: Name,
    /// The agent, as it calls itself over all its starts; empty: it does not.
    pub agent: Name,
    /// This start of its machine; empty: not known.
    pub machine_boot: String,
    /// Version of the agent.
    pub version: String,
    /// What the agent found missing or broken.
    findings: Mutex<Vec<String>>,
    /// To the agent. Full: the message is lost, and the agent's next one asks again.
    pub to_agent: mpsc::Sender<Result<v1::SchedulerMessage, Status>>,
    /// The node's identity, once a report was handled; before, `u32::MAX`.
    pub(super) id: AtomicU32,
    questions: Mutex<BTreeMap<u64, oneshot::Sender<v1::LogAnswer>>>,
    next_question: AtomicU64,
}

impl Session {
    /// A session that has said who it is.
    pub fn new(hello: &v1::Hello, to_agent: mpsc::Sender<Result<v1::SchedulerMessage, Status>>) -> Session {
        Session {
            node: hello.node.as_str().into(),
            agent: hello.agent.as_str().into(),
            machine_boot: hello.machine_boot.clone(),
            version: hello.version.clone(),
            findings: Mutex::new(hello.findings.clone()),
            to_agent,
            id: AtomicU32::new(u32::MAX),
            questions: Mutex::default(),
            next_question: AtomicU64::new(1),
        }
    }

    /// One of which nothing else is known.
    #[cfg(test)]
    pub(crate) fn of_test(node: &str, agent: &str, machine_boot: &str) -> Session {
        let (node, agent, machine_boot) = (node.into(), agent.into(), machine_boot.into());
        let hello = v1::Hello { node, agent, machine_boot, ..Default::default() };
        Session::new(&hello, mpsc::channel(1).0)
    }

    /// The node's identity, once a report was handled.
    pub fn id(&self) -> Option<NodeId> {
        Some(self.id.load(Ordering::Relaxed)).filter(|id| *id != u32::MAX).map(NodeId)
    }

    /// What the agent finds missing or broken.
    pub fn findings(&self) -> Vec<String> {
        self.findings.lock().expect("no holder panics").clone()
    }

    /// It finds something else now.
    pub fn set_findings(&self, findings: Vec<String>) {
        *self.findings.lock().expect("no holder panics") = findings;
    }

    /// Sends a message, if there is room.
    pub fn tell(&self, message: v1::scheduler_message::Message) {
        _ = self.to_agent.try_send(Ok(v1::SchedulerMessage { message: Some(message) }));
    }

    /// Ends it, with a reason.
    pub(super) fn end(&self, why: Status) {
        _ = self.to_agent.try_send(Err(why));
    }

    /// Asks the agent for part of a log. `None`: the agent has gone, or does not answer in time.
    pub async fn ask_log(&self, mut question: v1::LogQuestion) -> Option<v1::LogAnswer> {
        question.id = self.next_question.fetch_add(1, Ordering::Relaxed);
        let patience = Duration::from_millis(u64::from(question.wait_ms) + 10_000);
        let id = question.id;
        let (sender, answer) = oneshot::channel();
        self.questions.lock().expect("no holder panics").insert(id, sender);
        let message = Some(v1::scheduler_message::Message::Log(question));
        let sent = self.to_agent.send(Ok(v1::SchedulerMessage { message })).await;
        let answer = match sent {
            Ok(()) => tokio::time::timeout(patience, answer).await.ok().and_then(Result::ok),
            Err(_) => None,
        };
        self.questions.lock().expect("no holder panics").remove(&id);
        answer
    }

    /// Passes on an answer.
    pub fn on_log(&self, answer: v1::LogAnswer) {
        if let Some(sender) = self.questions.lock().expect("no holder panics").remove(&answer.id) {
            _ = sender.send(answer); // The reader may have left.
        }
    }
}
