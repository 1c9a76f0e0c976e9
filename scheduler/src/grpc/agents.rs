//! Sessions of agents.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use aquifer_proto::{border, v1};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::exec::Desk;
use crate::callers::{Caller, User};
use crate::limits::Place;
use crate::rivals::Known;
use crate::runtime::{Input, Runtime, Session};

/// So long a session may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages to one agent that may wait to be sent, at most.
const OUTBOX: usize = 32;

type Outbox = Pin<Box<dyn Stream<Item = Result<v1::SchedulerMessage, Status>> + Send>>;

/// Carries reports up, assignments down.
pub struct AgentsService {
    runtime: Runtime,
    desk: Arc<Desk>,
}

impl AgentsService {
    pub fn new(runtime: Runtime, desk: Arc<Desk>) -> AgentsService {
        AgentsService { runtime, desk }
    }
}

#[tonic::async_trait]
impl v1::agents_server::Agents for AgentsService {
    type SessionStream = Outbox;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Outbox>, Status> {
        only_agents(&request)?;
        let place = request.extensions().get::<Arc<Place>>();
        let from = place.map_or("somewhere".into(), |place| place.client().to_string());
        let mut inbox = request.into_inner();
        let first = timeout(PATIENCE, inbox.next()).await;
        let late = |_| Status::deadline_exceeded(format!("no hello within {} s", PATIENCE.as_secs()));
        let first = first.map_err(late)?.transpose()?.and_then(|message| message.message);
        let Some(v1::agent_message::Message::Hello(hello)) = first else {
            return Err(border::Invalid::new("message", "no hello", "a session begins with hello").into());
        };
        let node = border::name("hello.node", &hello.node)?;
        if !hello.agent.is_empty() {
            border::name("hello.agent", &hello.agent)?;
        }
        if self.runtime.term < hello.term {
            let (ours, theirs) = (self.runtime.term, hello.term);
            return Err(Status::failed_precondition(format!(
                "term {ours} is over: the pool is at term {theirs}"
            )));
        }
        let (to_agent, outbox) = mpsc::channel(OUTBOX);
        let session = Arc::new(Session::new(&hello, to_agent));
        let known = self.known(&session).await?;
        let open = self.runtime.shared.session(&node);
        if let Some(why) = known.refusal(&session, &from, open.as_deref()) {
            self.runtime.shared.rivals.on_refused(&session, &why);
            return Err(Status::already_exists(why));
        }
        let known_boot = known.boot;
        let lease_ms = self.runtime.policy.granted_lease().as_millis() as u64;
        let checkpoint_root = self.runtime.shared.checkpoint_root.clone();
        let welcome = v1::Welcome { term: self.runtime.term, lease_ms, known_boot, checkpoint_root };
        session.tell(v1::scheduler_message::Message::Welcome(welcome));
        if known_boot <= hello.boot {
            let runtime = self.runtime.clone();
            tokio::spawn(async move {
                runtime.shared.add_session(session.clone());
                runtime.shared.rivals.on_let_in(&session);
                runtime.shared.meters.on_session(known_boot == 0);
                let ended = carry(&runtime, &session, hello.boot, &mut inbox).await;
                runtime.shared.remove_session(&session);
                if let Err(status) = ended {
                    tracing::debug!(node = %session.node, "session ended: {}", status.message());
                    _ = session.to_agent.send(Err(status)).await;
                }
            });
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox))))
    }

    type ExecStream = ReceiverStream<Result<v1::ExecInput, Status>>;

    async fn exec(
        &self,
        request: Request<Streaming<v1::ExecAnswer>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        only_agents(&request)?;
        Ok(Response::new(self.desk.connect(request.into_inner()).await?))
    }
}

/// Lets pass who has the pool's token.
fn only_agents<T>(request: &Request<T>) -> Result<(), Status> {
    match Caller::of(request) {
        Caller::Pool => Ok(()),
        Caller::User(User { name, .. }) => Err(Status::permission_denied(format!(
            "this token is of {name}: an agent needs the pool's, in the file that --token-file names"
        ))),
    }
}

impl AgentsService {
    async fn known(&self, session: &Session) -> Result<Known, Status> {
        let (node, agent) = (session.node.clone(), session.agent.clone());
        let query = move |cluster: &aquifer_core::Cluster| Known::of(cluster, &node, &agent);
        self.runtime.read(query).await.map_err(|ended| Status::unavailable(ended.to_string()))
    }
}

async fn carry(
    runtime: &Runtime,
    session: &Arc<Session>,
    boot: u64,
    inbox: &mut Streaming<v1::AgentMessage>,
) -> Result<(), Status> {
    use v1::agent_message::Message;
    let unavailable = |ended: crate::runtime::Ended| Status::unavailable(ended.to_string());
    let mut inventory = None;
    while let Some(message) = inbox.next().await {
        match message?.message {
            Some(Message::Report(report)) => {
                let report = border::report(
                    session.node.clone(),
                    session.agent.clone(),
                    boot,
                    inventory.as_ref(),
                    &report,
                )?;
                inventory = Some(report.inventory.clone());
                runtime.send(Input::Report(session.clone(), report)).await.map_err(unavailable)?;
            }
            Some(Message::Heartbeat(v1::Heartbeat { seq, same_as })) => match session.id() {
                Some(node) => {
                    let input = Input::Heartbeat { node, boot, seq, same_as };
                    runtime.send(input).await.map_err(unavailable)?;
                }
                None => session.tell(v1::scheduler_message::Message::AskReport(v1::Empty {})),
            },
            Some(Message::Progress(progress)) => {
                let worker = border::worker_id("progress.worker", progress.worker.as_ref())?;
                runtime.shared.set_progress(worker, progress);
            }
            Some(Message::Log(answer)) => session.on_log(answer),
            Some(Message::Findings(found)) => session.set_findings(found.findings),
            Some(Message::Hello(_)) => {
                return Err(border::Invalid::new("message", "hello", "a session has one hello").into());
            }
            None => return Err(border::Invalid::new("message", "absent", "expected content").into()),
        }
    }
    Ok(())
}
