//! What clients may ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aquifer_core::jobs::{Job, Phase};
use aquifer_core::plan::free_for_all;
use aquifer_core::queues::Overview;
use aquifer_core::*;
use aquifer_proto::store::{Row, encode, ended_key};
use aquifer_proto::{border, reservations, tariff, v1, wire};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{logs, past, view};
use crate::callers::{Caller, User};
use crate::metrics::Metrics;
use crate::runtime::{Ended, Runtime};
use crate::store::{Contents, Past, backup};

/// Jobs of one page, at most.
const MAX_PAGE: u32 = 1000;
/// Bytes of a backup in one message.
const BACKUP_PIECE: usize = 256 << 10;

type Reply<T> = Result<Response<T>, Status>;

/// Answers clients.
pub struct PoolService {
    runtime: Runtime,
    metrics: Metrics,
}

impl PoolService {
    pub fn new(runtime: Runtime, metrics: Metrics) -> PoolService {
        PoolService { runtime, metrics }
    }

    async fn command(&self, command: Command) -> Result<Answer, Status> {
        self.runtime.command(command).await.map_err(unavailable)?.map_err(refused)
    }

    /// The same of a job, which may have retired: then it has ended.
    async fn command_on(&self, job: JobId, command: Command) -> Result<Answer, Status> {
        match self.runtime.command(command).await.map_err(unavailable)? {
            Err(Refusal::UnknownJob(id)) if id == job => match past::job(&self.runtime, id).await? {
                Some(Job { phase: Phase::Done(outcome), .. }) => Err(refused(Refusal::JobDone(id, outcome))),
                _ => Err(refused(Refusal::UnknownJob(id))),
            },
            answer => answer.map_err(refused),
        }
    }

    async fn own(&self, caller: &Caller, job: JobId) -> Result<(), Status> {
        own(&self.runtime, caller, job).await
    }

    async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Cluster) -> T + Send + 'static,
    ) -> Result<T, Status> {
        self.runtime.query(query).await.map_err(unavailable)
    }

    async fn set_node(
        &self,
        request: Request<v1::NodeRequest>,
        availability: Availability,
    ) -> Reply<v1::NodeResponse> {
        Caller::of(&request).administer("cordon and drain nodes")?;
        let v1::NodeRequest { name, device } = request.into_inner();
        let node = border::name("name", &name)?;
        let command = match device {
            None => Command::SetNode { node, availability },
            Some(device) if availability == Availability::Draining => {
                let expected = "expected none: a device cannot be drained alone";
                return Err(border::Invalid::new("device", device, expected).into());
            }
            Some(device) => {
                let wide = |_| border::Invalid::new("device", device, "expected 0 to 65,535");
                let index = u16::try_from(device).map_err(wide)?;
                Command::SetDevice { node, device: index, cordoned: availability == Availability::Cordoned }
            }
        };
        self.command(command).await?;
        Ok(Response::new(v1::NodeResponse {}))
    }
}

/// Lets pass who may change a job, or see what it keeps to itself.
pub async fn own(runtime: &Runtime, caller: &Caller, job: JobId) -> Result<(), Status> {
    let Caller::User(User { is_admin: false, .. }) = caller else { return Ok(()) };
    let user = runtime.query(move |cluster| cluster.jobs().get(job).map(|job| job.spec.user.clone()));
    let user = match user.await.map_err(unavailable)? {
        Some(user) => user,
        None => match past::job(runtime, job).await? {
            Some(job) => job.spec.user.clone(),
            None => return Err(refused(Refusal::UnknownJob(job))),
        },
    };
    caller.own(&user, &job.to_string())
}

/// All that is durable.
fn all_records(cluster: &Cluster) -> Vec<Record> {
    let specs: BTreeMap<JobId, Arc<JobSpec>> = (cluster.jobs().iter())
        .map(|job| (job.array.map_or(job.id, |array| array.first), job.spec.clone()))
        .collect();
    let specs = specs.into_iter().map(|(id, spec)| Record::Spec(id, spec));
    specs.chain(cluster.records()).collect()
}

/// Where a page begins; `start` is where the first one does.
fn from_token<T: FromStr>(token: &str, start: T) -> Result<T, Status> {
    if token.is_empty() {
        return Ok(start);
    }
    let expected = "expected a token of an earlier answer";
    token.parse().map_err(|_| border::Invalid::new("page_token", format!("{token:?}"), expected).into())
}

fn job_of(record: &Record) -> Option<JobId> {
    match record {
        Record::Job(job) => Some(job.id),
        _ => None,
    }
}

pub fn unavailable(ended: Ended) -> Status {
    Status::unavailable(ended.to_string())
}

fn refused(refusal: Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Malformed(_) => border::Invalid::new("spec", "malformed", text).into(),
        Refusal::UnknownJob(_)
        | Refusal::UnknownNode(_)
        | Refusal::UnknownDevice { .. }
        | Refusal::UnknownQueue(_) => Status::not_found(text),
        Refusal::NotOfQueue { .. } => Status::permission_denied(text),
        Refusal::Queue(error) => {
            let field = format!("queue.{}", error.field());
            border::Invalid::new(field, error.value(), error.allowed()).into()
        }
        Refusal::Reservation(ReservationError::Unknown(_)) => Status::not_found(text),
        Refusal::Reservation(ReservationError::Taken(_)) => Status::already_exists(text),
        Refusal::Reservation(error) => {
            border::Invalid::new(error.field(), error.value(), error.allowed()).into()
        }
        Refusal::Scale { ranks, least, most } => {
            border::Invalid::new("ranks", ranks, format!("expected {least} to {most}")).into()
        }
        Refusal::JobDone(..) | Refusal::Rigid(_) | Refusal::ScalesItself(_) | Refusal::ServesNothing(_) => {
            Status::failed_precondition(text)
        }
        Refusal::KeyTaken(..) => Status::already_exists(text),
    }
}

/// What is asked for, in the name of who asks.
fn spec_of(caller: &Caller, spec: Option<v1::JobSpec>) -> Result<Arc<JobSpec>, Status> {
    let mut spec = spec.ok_or_else(|| border::Invalid::new("spec", "absent", "expected a job"))?;
    if let Caller::User(user) = caller {
        spec.user = user.name.to_string();
    }
    Ok(Arc::new(border::job_spec(&spec)?))
}

/// A job as others see it: without the values of its environment, which may be secret.
fn seen_by(caller: &Caller, mut job: v1::Job) -> v1::Job {
    if let Some(spec) = &mut job.spec
        && !caller.owns(&spec.user)
    {
        spec.env.values_mut().for_each(String::clear);
    }
    job
}

/// Checks a name that may be left out.
fn name_if_given(field: &str, name: &str) -> Result<(), border::Invalid> {
    if name.is_empty() { Ok(()) } else { border::name(field, name).map(|_| ()) }
}

#[tonic::async_trait]
impl v1::pool_server::Pool for PoolService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::Note, Status>> + Send>>;
    type LogsStream = Pin<Box<dyn Stream<Item = Result<v1::LogChunk, Status>> + Send>>;

    type BackupStream = Pin<Box<dyn Stream<Item = Result<v1::BackupPiece, Status>> + Send>>;

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Reply<Self::BackupStream> {
        Caller::of(&request).administer("take backups")?;
        let records = self.query(all_records).await?;
        let term = self.runtime.term;
        let write = move |past: &Past| {
            let kept: BTreeSet<[u8; 8]> = records.iter().filter_map(job_of).map(ended_key).collect();
            let mut rows: Vec<Row> = records.iter().map(encode).collect();
            // What has retired since then is still among the records.
            let is_kept = |row: &Row| <[u8; 8]>::try_from(&row.key[..]).is_ok_and(|key| kept.contains(&key));
            past::each(past, |row| rows.extend((!is_kept(&row)).then_some(row)))?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Ok(backup::write(&Contents { term, rows }, now.as_millis() as u64))
        };
        let bytes = self.runtime.shared.past(write).await.map_err(past::unreadable)?;
        let starts = (0..bytes.len()).step_by(BACKUP_PIECE);
        let piece = move |start| {
            Ok(v1::BackupPiece { data: bytes[start..bytes.len().min(start + BACKUP_PIECE)].into() })
        };
        Ok(Response::new(Box::pin(tokio_stream::iter(starts.map(piece)))))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Reply<v1::SubmitResponse> {
        let caller = Caller::of(&request);
        let mut spec = spec_of(&caller, request.into_inner().spec)?;
        if !spec.after.is_empty() {
            past::settle_dependencies(&self.runtime, Arc::make_mut(&mut spec)).await?;
        }
        match self.command(Command::Submit(spec)).await? {
            Answer::Submitted { first, count, repeated } => {
                Ok(Response::new(v1::SubmitResponse { job: first.0, count, repeated_request: repeated }))
            }
            other => Err(Status::internal(format!("unexpected answer {other:?}"))),
        }
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Reply<v1::Job> {
        let caller = Caller::of(&request);
        let id = border::job_id("job", request.into_inner().job)?;
        let shared = self.runtime.shared.clone();
        let job = self.query(move |cluster| {
            let job = cluster.jobs().get(id)?;
            let waits = matches!(job.phase, Phase::Pending(_));
            let reason = waits.then(|| explain::reason(&mut free_for_all(cluster), job));
            Some(view::job(cluster, &shared, job, reason.as_ref()))
        });
        if let Some(job) = job.await? {
            return Ok(Response::new(seen_by(&caller, job)));
        }
        let (job, shared) = (past::job(&self.runtime, id).await?, self.runtime.shared.clone());
        let job = job.ok_or_else(|| refused(Refusal::UnknownJob(id)))?;
        let job = self.query(move |cluster| view::job(cluster, &shared, &job, None)).await?;
        Ok(Response::new(seen_by(&caller, job)))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Reply<v1::ListResponse> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let page_size = match request.page_size {
            0 => 100,
            size @ 1..=MAX_PAGE => size,
            size => return Err(border::Invalid::new("page_size", size, "at most 1,000").into()),
        };
        for (at, state) in request.states.iter().enumerate() {
            if v1::JobState::try_from(*state).unwrap_or_default() == v1::JobState::Unspecified {
                let field = format!("states[{at}]");
                return Err(border::Invalid::new(field, state, "expected a state of a job").into());
            }
        }
        name_if_given("queue", &request.queue)?;
        let before = JobId(from_token(&request.page_token, u64::MAX)?);
        let mut page = past::list(&self.runtime, request, page_size as usize, before).await?;
        page.jobs = page.jobs.into_iter().map(|job| seen_by(&caller, job)).collect();
        Ok(Response::new(page))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Reply<v1::CancelResponse> {
        let caller = Caller::of(&request);
        let v1::CancelRequest { job, whole_array } = request.into_inner();
        let job = border::job_id("job", job)?;
        self.own(&caller, job).await?;
        match self.command_on(job, Command::Cancel { job, whole_array }).await? {
            Answer::Cancelled(cancelled) => Ok(Response::new(v1::CancelResponse { cancelled })),
            other => Err(Status::internal(format!("unexpected answer {other:?}"))),
        }
    }

    async fn scale(&self, request: Request<v1::ScaleRequest>) -> Reply<v1::ScaleResponse> {
        let caller = Caller::of(&request);
        let v1::ScaleRequest { job, ranks } = request.into_inner();
        let job = border::job_id("job", job)?;
        self.own(&caller, job).await?;
        if ranks == Some(0) {
            return Err(border::Invalid::new("ranks", 0, "expected at least 1, or none given").into());
        }
        self.command_on(job, Command::Scale { job, ranks }).await?;
        Ok(Response::new(v1::ScaleResponse {}))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Reply<Self::WatchStream> {
        let request = request.into_inner();
        request.job.map(|job| border::job_id("job", job)).transpose()?;
        name_if_given("node", &request.node)?;
        let (sink, notes) = mpsc::channel(64);
        let shared = self.runtime.shared.clone();
        tokio::spawn(async move {
            let mut latest = shared.notes.subscribe();
            let mut seq = shared.notes.position(request.after_seq.unwrap_or(shared.notes.latest()));
            loop {
                for note in shared.notes.after(seq, 256) {
                    seq = note.seq;
                    let wanted = request.job.is_none_or(|job| note.note.job() == Some(JobId(job)))
                        && (request.node.is_empty()
                            || note.note.node().is_some_and(|n| **n == *request.node));
                    if wanted && sink.send(Ok(view::note(&note))).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = sink.closed() => return,
                    changed = latest.wait_for(|latest| seq < *latest) => {
                        if changed.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(notes))))
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Reply<Self::LogsStream> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let job = border::job_id("job", request.job)?;
        if request.attempt == Some(0) {
            return Err(border::Invalid::new("attempt", 0, "expected an attempt's number, from 1").into());
        }
        self.own(&caller, job).await?;
        let (sink, chunks) = mpsc::channel(16);
        tokio::spawn(logs::stream(self.runtime.clone(), request, sink));
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Reply<v1::Explanation> {
        let id = border::job_id("job", request.into_inner().job)?;
        let of = |cluster: &Cluster, job: &Job| {
            view::explanation(cluster.now(), job.id, &explain::explain(cluster, job))
        };
        let explanation = self.query(move |cluster| Some(of(cluster, cluster.jobs().get(id)?)));
        if let Some(explanation) = explanation.await? {
            return Ok(Response::new(explanation));
        }
        let job = past::job(&self.runtime, id).await?.ok_or_else(|| refused(Refusal::UnknownJob(id)))?;
        Ok(Response::new(self.query(move |cluster| of(cluster, &job)).await?))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Reply<v1::PlanResponse> {
        let caller = Caller::of(&request);
        let mut spec = (*spec_of(&caller, request.into_inner().spec)?).clone();
        // Neither the key of an earlier submission nor the length of an array matters to the question.
        (spec.client_key, spec.array) = ("".into(), None);
        let shared = self.runtime.shared.clone();
        let plan = self.query(move |cluster| {
            let mut what_if = cluster.clone();
            let mut effects = Vec::new();
            let event = Event::Request { id: 0, command: Command::Submit(spec.into()) };
            what_if.step(cluster.now(), event, &mut effects);
            let answer = effects.iter().find_map(|effect| match effect {
                Effect::Reply(_, result) => Some(result.clone()),
                _ => None,
            });
            let Answer::Submitted { first, .. } = answer.expect("one reply a request")? else {
                unreachable!("a submission is answered as one")
            };
            let job = what_if.jobs().get(first).expect("a new job");
            let explanation = explain::explain(&what_if, job);
            Ok(v1::PlanResponse {
                starts_now: job.phase == Phase::Active,
                domain: view::domain(&what_if, job),
                class: view::class(&what_if, job),
                ranks: view::ranks(&what_if, &shared, job),
                explanation: Some(view::explanation(what_if.now(), first, &explanation)),
                victims: effects.iter().filter_map(|effect| view::victim(&what_if, first, effect)).collect(),
            })
        });
        plan.await?.map(Response::new).map_err(refused)
    }

    async fn list_nodes(&self, request: Request<v1::ListNodesRequest>) -> Reply<v1::ListNodesResponse> {
        let v1::ListNodesRequest { name, page_size, page_token } = request.into_inner();
        name_if_given("name", &name)?;
        let page_size = match page_size {
            0 => MAX_PAGE,
            size @ 1..=MAX_PAGE => size,
            size => return Err(border::Invalid::new("page_size", size, "at most 1,000").into()),
        };
        let first = from_token(&page_token, 0)?;
        let shared = self.runtime.shared.clone();
        let wanted = name.clone();
        let page = self.query(move |cluster| {
            if let Some(id) = cluster.nodes().by_name(&wanted) {
                return (vec![view::node(cluster, &shared, cluster.nodes().get(id))], 0);
            }
            let all = if wanted.is_empty() { cluster.nodes().len() } else { 0 };
            let nodes = cluster.nodes().iter().take(all).skip(first).take(page_size as usize);
            let nodes: Vec<v1::Node> = nodes.map(|node| view::node(cluster, &shared, node)).collect();
            let left = all.saturating_sub(first.saturating_add(nodes.len()));
            (nodes, left)
        });
        let (nodes, left) = page.await?;
        if nodes.is_empty() && !name.is_empty() {
            return Err(refused(Refusal::UnknownNode(name.into())));
        }
        let next_page_token = if left == 0 { String::new() } else { (first + nodes.len()).to_string() };
        Ok(Response::new(v1::ListNodesResponse { nodes, next_page_token }))
    }

    async fn cordon(&self, request: Request<v1::NodeRequest>) -> Reply<v1::NodeResponse> {
        self.set_node(request, Availability::Cordoned).await
    }

    async fn drain(&self, request: Request<v1::NodeRequest>) -> Reply<v1::NodeResponse> {
        self.set_node(request, Availability::Draining).await
    }

    async fn uncordon(&self, request: Request<v1::NodeRequest>) -> Reply<v1::NodeResponse> {
        self.set_node(request, Availability::Open).await
    }

    async fn set_queue(&self, request: Request<v1::SetQueueRequest>) -> Reply<v1::SetQueueResponse> {
        Caller::of(&request).administer("change queues")?;
        let queue = request.into_inner().queue;
        let queue = queue.ok_or_else(|| border::Invalid::new("queue", "absent", "expected a queue"))?;
        self.command(Command::SetQueue(border::queue(&queue)?)).await?;
        Ok(Response::new(v1::SetQueueResponse {}))
    }

    async fn list_queues(&self, _: Request<v1::ListQueuesRequest>) -> Reply<v1::ListQueuesResponse> {
        let queues = self.query(|cluster| {
            let mut running: BTreeMap<&str, u64> = BTreeMap::new();
            cluster.jobs().holding().for_each(|job| *running.entry(&job.spec.queue).or_default() += 1);
            let state = |row: &Overview| {
                let running_jobs = running.get(&*row.queue.name).copied().unwrap_or_default();
                let pending_jobs = cluster.jobs().open_in(&row.queue.name) - running_jobs;
                v1::QueueState {
                    queue: Some(wire::queue(row.queue)),
                    held_milli: row.held_milli,
                    pending_jobs,
                    running_jobs,
                    used_device_ms: row.spent / 1000,
                    share_millionths: row.share_millionths,
                }
            };
            let queues = cluster.queues().overview(cluster.now()).iter().map(state).collect();
            (queues, !cluster.tariff().is_empty())
        });
        let (queues, has_prices) = queues.await?;
        Ok(Response::new(v1::ListQueuesResponse { queues, has_prices }))
    }

    async fn set_price(&self, request: Request<v1::SetPriceRequest>) -> Reply<v1::SetPriceResponse> {
        Caller::of(&request).administer("set prices")?;
        let (model, milli) = tariff::price(&request.into_inner())?;
        self.command(Command::SetPrice { model, milli }).await?;
        Ok(Response::new(v1::SetPriceResponse {}))
    }

    async fn list_prices(&self, _: Request<v1::ListPricesRequest>) -> Reply<v1::ListPricesResponse> {
        Ok(Response::new(self.query(view::prices).await?))
    }

    async fn reserve(&self, request: Request<v1::ReserveRequest>) -> Reply<v1::ReserveResponse> {
        Caller::of(&request).administer("book nodes")?;
        let booking = reservations::booking(&request.into_inner())?;
        let Answer::Reserved(it) = self.command(Command::Reserve(booking)).await? else {
            return Err(Status::internal("a booking is answered as one"));
        };
        let view = self.query(move |cluster| reservations::reservation(cluster, &it));
        Ok(Response::new(v1::ReserveResponse { reservation: Some(view.await?) }))
    }

    async fn unreserve(&self, request: Request<v1::UnreserveRequest>) -> Reply<v1::UnreserveResponse> {
        Caller::of(&request).administer("give reservations up")?;
        let name = border::name("name", &request.into_inner().name)?;
        self.command(Command::Unreserve(name)).await?;
        Ok(Response::new(v1::UnreserveResponse {}))
    }

    async fn list_reservations(
        &self,
        _: Request<v1::ListReservationsRequest>,
    ) -> Reply<v1::ListReservationsResponse> {
        let list = self.query(|cluster| {
            cluster.reservations().iter().map(|it| view::reservation(cluster, it)).collect()
        });
        Ok(Response::new(v1::ListReservationsResponse { reservations: list.await? }))
    }

    async fn demand(&self, request: Request<v1::DemandRequest>) -> Reply<v1::DemandResponse> {
        let caller = Caller::of(&request);
        let v1::DemandRequest { job, waiting } = request.into_inner();
        let job = border::job_id("job", job)?;
        self.own(&caller, job).await?;
        self.command_on(job, Command::Demand { job, waiting }).await?;
        Ok(Response::new(v1::DemandResponse {}))
    }

    async fn list_services(&self, _: Request<v1::ListServicesRequest>) -> Reply<v1::ListServicesResponse> {
        let shared = self.runtime.shared.clone();
        let services = self.query(move |cluster| {
            cluster.jobs().services().filter_map(|job| view::service(&shared, job)).collect()
        });
        Ok(Response::new(v1::ListServicesResponse { services: services.await? }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Reply<v1::StatusResponse> {
        let now = self.query(Cluster::now).await?;
        Ok(Response::new(v1::StatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            term: self.runtime.term,
            now_ms: now.0,
            latest_note: self.runtime.shared.notes.latest(),
            metrics: self.metrics.text().await.to_string(),
        }))
    }

    async fn usage(&self, request: Request<v1::UsageRequest>) -> Reply<v1::UsageResponse> {
        Ok(Response::new(past::usage(&self.runtime, Time(request.into_inner().since_ms)).await?))
    }
}
