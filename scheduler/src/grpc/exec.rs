//! Commands beside workers: what a client says is passed to the agent, which connects for that, and what the agent says back. Nothing
//! is kept but a few pieces on the way, so that a slow reader slows the command.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aquifer_core::jobs::{Job, Phase};
use aquifer_core::{Cluster, JobId, RankState, WorkerId};
use aquifer_proto::{border, v1, wire};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use v1::exec_answer::Message as Answer;
use v1::exec_input::Message as Input;
use v1::exec_output::Message as Output;

use super::{past, pool, view};
use crate::callers::{Caller, User};
use crate::limits::Place;
use crate::runtime::Runtime;

/// So long the first message may take, and the agent to connect.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages that wait to be sent, at most, in either direction.
const ON_THE_WAY: usize = 2;

/// Agents that are to connect, by what they were told.
#[derive(Default)]
pub struct Desk {
    awaited: Mutex<BTreeMap<u64, oneshot::Sender<Connected>>>,
}

/// An agent that has connected: what it says, and where it is told more.
pub struct Connected {
    answers: Streaming<v1::ExecAnswer>,
    told: mpsc::Sender<Result<v1::ExecInput, Status>>,
}

impl Desk {
    /// Waits for an agent, which is told a number that nobody guesses.
    fn expect(&self) -> Expected<'_> {
        let mut bytes = [0; 8];
        SystemRandom::new().fill(&mut bytes).expect("the system has random bytes");
        let (id, (sender, connected)) = (u64::from_le_bytes(bytes), oneshot::channel());
        self.awaited().insert(id, sender);
        Expected { desk: self, id, connected }
    }

    fn awaited(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Connected>>> {
        self.awaited.lock().expect("no holder panics")
    }

    /// Takes in an agent that has connected, and returns what it is told.
    ///
    /// # Errors
    /// It names nothing that is waited for.
    pub async fn connect(
        &self,
        mut answers: Streaming<v1::ExecAnswer>,
    ) -> Result<ReceiverStream<Result<v1::ExecInput, Status>>, Status> {
        let late = |_| Status::deadline_exceeded(format!("no word within {} s", PATIENCE.as_secs()));
        let first = timeout(PATIENCE, answers.message()).await.map_err(late)??;
        let Some(Answer::Id(id)) = first.and_then(|first| first.message) else {
            return Err(border::Invalid::new("message", "no id", "it begins with one").into());
        };
        let awaited = self.awaited().remove(&id);
        let (told, outbox) = mpsc::channel(ON_THE_WAY);
        let left = || Status::cancelled("nobody waits for it any more");
        awaited.ok_or_else(left)?.send(Connected { answers, told }).map_err(|_| left())?;
        Ok(ReceiverStream::new(outbox))
    }
}

/// An agent that is to connect, until this is dropped.
struct Expected<'a> {
    desk: &'a Desk,
    id: u64,
    connected: oneshot::Receiver<Connected>,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.desk.awaited().remove(&self.id);
    }
}

/// Runs commands beside workers.
pub struct ExecService {
    runtime: Runtime,
    desk: Arc<Desk>,
    /// Whether the operator allows it.
    is_on: bool,
}

impl ExecService {
    pub fn new(runtime: Runtime, desk: Arc<Desk>, is_on: bool) -> ExecService {
        ExecService { runtime, desk, is_on }
    }
}

#[tonic::async_trait]
impl v1::exec_server::Exec for ExecService {
    type RunStream = ReceiverStream<Result<v1::ExecOutput, Status>>;

    async fn run(
        &self,
        request: Request<Streaming<v1::ExecInput>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let caller = Caller::of(&request);
        let from = request.extensions().get::<Arc<Place>>().map(|place| place.client().to_string());
        let mut inputs = request.into_inner();
        let late = |_| Status::deadline_exceeded(format!("no command within {} s", PATIENCE.as_secs()));
        let first = timeout(PATIENCE, inputs.message()).await.map_err(late)??;
        let Some(Input::Begin(begin)) = first.and_then(|first| first.message) else {
            return Err(border::Invalid::new("message", "no begin", "it begins with that").into());
        };
        let job = border::job_id("job", begin.job)?;
        border::wanted(&begin)?;
        if !self.is_on {
            return Err(Status::failed_precondition("commands beside workers are switched off in this pool"));
        }
        pool::own(&self.runtime, &caller, job).await?;
        let (worker, node) = self.find(job, begin.rank).await?;
        let away = || Status::failed_precondition(format!("{worker} runs on {node}, which is not connected"));
        let session = self.runtime.shared.session(&node).ok_or_else(away)?;
        let who = match caller {
            Caller::Pool => "the pool's token".to_string(),
            Caller::User(User { name, .. }) => name.to_string(),
        };
        // Arguments may hold secrets, so that they are in no log.
        let (program, words) = (begin.command.first().cloned().unwrap_or_default(), begin.command.len());
        let mut expected = self.desk.expect();
        let id = expected.id;
        let order =
            v1::ExecOrder { id, worker: Some(wire::worker(worker)), begin: Some(begin), who: who.clone() };
        session.tell(v1::scheduler_message::Message::Exec(order));
        let Ok(Ok(connected)) = timeout(PATIENCE, &mut expected.connected).await else {
            let version = &session.version;
            return Err(Status::failed_precondition(format!(
                "the agent of {node}, of version {version}, did not connect within {} s to run it",
                PATIENCE.as_secs()
            )));
        };
        let from = from.unwrap_or_else(|| "somewhere".into());
        tracing::info!(%worker, %node, who, from, program, words, "a command begins beside a worker");
        let (to_client, outputs) = mpsc::channel(ON_THE_WAY);
        tokio::spawn(relay(inputs, connected, to_client, node));
        Ok(Response::new(ReceiverStream::new(outputs)))
    }
}

impl ExecService {
    /// The worker that is meant, and its node's name.
    async fn find(&self, id: JobId, rank: Option<u32>) -> Result<(WorkerId, String), Status> {
        let at_hand = move |cluster: &Cluster| Some(find(cluster, cluster.jobs().get(id)?, rank));
        if let Some(found) = self.runtime.query(at_hand).await.map_err(pool::unavailable)? {
            return found;
        }
        let job = past::job(&self.runtime, id).await?;
        let job = job.ok_or_else(|| Status::not_found(format!("there is no {id}")))?;
        self.runtime.query(move |cluster| find(cluster, &job, rank)).await.map_err(pool::unavailable)?
    }
}

fn find(cluster: &Cluster, job: &Job, rank: Option<u32>) -> Result<(WorkerId, String), Status> {
    let id = job.id;
    let refused = |why: String| Err(Status::failed_precondition(why));
    match &job.phase {
        Phase::Pending(_) => {
            return refused(format!("{id} waits: nothing of it runs; `aquifer explain {id}` tells why"));
        }
        Phase::Done(outcome) => {
            return refused(format!(
                "{id} has ended ({}): {outcome}",
                view::STATE_WORDS[view::state_at(job)]
            ));
        }
        Phase::Active | Phase::Stopping(_) => (),
    }
    let runs: Vec<_> = job.ranks.iter().filter(|it| it.worker != RankState::Gone).collect();
    let found = match rank {
        None => runs.first(),
        Some(rank) => runs.iter().find(|it| it.rank == rank),
    };
    let Some(found) = found else {
        let there: Vec<String> = runs.iter().take(16).map(|it| it.rank.to_string()).collect();
        let more = if there.len() < runs.len() { ", …" } else { "" };
        return refused(match rank {
            Some(rank) => {
                format!("{id} has no rank {rank} that runs: those that do are {}{more}", there.join(", "))
            }
            None => format!("{id} has no rank that runs"),
        });
    };
    let (worker, node) =
        (WorkerId { job: id, attempt: job.attempt, rank: found.rank }, cluster.nodes().get(found.node));
    if found.worker == RankState::Assigned {
        return refused(format!("rank {} of {id} is just being started on {}", found.rank, node.name));
    }
    Ok((worker, node.name.to_string()))
}

/// Passes on what is said until the command has ended, or its client or its agent has left.
async fn relay(
    mut inputs: Streaming<v1::ExecInput>,
    agent: Connected,
    to_client: mpsc::Sender<Result<v1::ExecOutput, Status>>,
    node: String,
) {
    let Connected { mut answers, told } = agent;
    let untaken = Semaphore::new(border::MAX_UNTAKEN);
    let up = async {
        while let Ok(Some(input)) = inputs.message().await {
            let checked = match &input.message {
                Some(Input::Data(data)) => border::piece(data),
                Some(Input::Size(size)) => border::window_size(size).map(drop),
                Some(Input::End(_)) => Ok(()),
                Some(Input::Begin(_)) => {
                    Err(border::Invalid::new("message", "begin", "a command begins once"))
                }
                None => Err(border::Invalid::new("message", "absent", "expected content")),
            };
            if let Err(invalid) = checked {
                _ = to_client.send(Err(invalid.into())).await;
                return;
            }
            if let Some(Input::Data(data)) = &input.message {
                untaken.acquire_many(border::weight(data)).await.expect("it is never closed").forget();
            }
            if told.send(Ok(input)).await.is_err() {
                // What the agent has said before it left is still on its way.
                return std::future::pending().await;
            }
        }
    };
    let down = async {
        while let Ok(Some(answer)) = answers.message().await {
            let output = match answer.message {
                Some(Answer::Output(output)) => output,
                Some(Answer::Taken(bytes)) => {
                    let room = border::MAX_UNTAKEN.saturating_sub(untaken.available_permits());
                    untaken.add_permits(room.min(bytes as usize));
                    continue;
                }
                Some(Answer::Id(_)) | None => break,
            };
            let is_last = matches!(output.message, Some(Output::End(_)));
            if to_client.send(Ok(output)).await.is_err() || is_last {
                return;
            }
        }
        let lost = format!("the agent of {node} was lost, and the command with it");
        _ = to_client.send(Err(Status::aborted(lost))).await;
    };
    tokio::select! {
        () = up => (),
        () = down => (),
        // A client that has left may have said so behind what nobody takes.
        () = to_client.closed() => (),
    }
}
