//! The binary against a scheduler that goes away: a peer of which the test decides when it dies, which the real one
//! does not do on request. What commands print against the real one is tested with it.

use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};

use aquifer_proto::v1::pool_server::{Pool, PoolServer};
use aquifer_proto::v1::*;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, async_trait};

type Reply<T> = Result<Response<T>, Status>;
type Stream1<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What was asked, over all lives of the scheduler.
#[derive(Clone, Debug, Default)]
struct Heard {
    submits: Arc<Mutex<Vec<SubmitRequest>>>,
    logs: Arc<Mutex<Vec<LogsRequest>>>,
    watches: Arc<Mutex<Vec<WatchRequest>>>,
    tokens: Arc<Mutex<Vec<String>>>,
}

/// A scheduler in its first or a later life. In the first one it asks to die whenever something was half done.
#[derive(Clone)]
struct Peer {
    life: u32,
    heard: Heard,
    die: mpsc::Sender<()>,
}

/// A scheduler that can be killed with all its connections, as by `kill -9`.
struct Process(Option<tokio::runtime::Runtime>);

impl Process {
    fn start(address: SocketAddr, peer: Peer) -> Process {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(PoolServer::new(peer))
                .serve_with_incoming(incoming),
        );
        Process(Some(runtime))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.take().unwrap().shutdown_timeout(std::time::Duration::from_secs(5));
    }
}

/// Runs the binary against a scheduler that is killed once, when it asks for it, and started again.
fn run(arguments: &[&str]) -> (Output, Heard) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (die, asked_to_die) = mpsc::channel();
    let heard = Heard::default();
    let peer = |life| Peer { life, heard: heard.clone(), die: die.clone() };
    let first = Process::start(address, peer(1));
    let child = Command::new(env!("CARGO_BIN_EXE_aquifer"))
        .args(arguments)
        .env("AQUIFER_SERVER", format!("http://{address}"))
        .env("AQUIFER_TOKEN", "s3cret\n")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    asked_to_die.recv().unwrap();
    drop(first);
    let _second = Process::start(address, peer(2));
    (child.wait_with_output().unwrap(), heard)
}

fn job(state: JobState) -> Job {
    let role = |name: &str| Role { name: name.into(), ranks: 1, ..Role::default() };
    let spec = JobSpec { name: "x".into(), roles: vec![role("a"), role("b")], ..JobSpec::default() };
    Job {
        id: 7,
        spec: Some(spec),
        state: state.into(),
        reason: "failed: rank 0 on n exited with 3".into(),
        ..Job::default()
    }
}

#[async_trait]
impl Pool for Peer {
    async fn submit(&self, request: Request<SubmitRequest>) -> Reply<SubmitResponse> {
        let token = request.metadata().get("authorization").map(|token| token.to_str().unwrap().to_string());
        self.heard.tokens.lock().unwrap().extend(token);
        self.heard.submits.lock().unwrap().push(request.into_inner());
        if self.life == 1 {
            // It was queued, and the answer is lost.
            self.die.send(()).unwrap();
            std::future::pending::<()>().await;
        }
        Ok(Response::new(SubmitResponse { job: 7, count: 1, repeated_request: true }))
    }

    async fn get(&self, _: Request<GetRequest>) -> Reply<Job> {
        Ok(Response::new(job(if self.life == 1 { JobState::Running } else { JobState::Failed })))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Reply<StatusResponse> {
        Err(Status::unimplemented(""))
    }

    async fn demand(&self, _: Request<DemandRequest>) -> Reply<DemandResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_services(&self, _: Request<ListServicesRequest>) -> Reply<ListServicesResponse> {
        Err(Status::unimplemented(""))
    }

    type BackupStream = Stream1<BackupPiece>;
    async fn backup(&self, _: Request<BackupRequest>) -> Reply<Self::BackupStream> {
        Err(Status::unimplemented(""))
    }

    type LogsStream = Stream1<LogChunk>;
    async fn logs(&self, request: Request<LogsRequest>) -> Reply<Self::LogsStream> {
        let chunk = |rank, offset, data: &str| {
            Ok(LogChunk { attempt: 1, rank, offset, data: data.into(), unavailable: String::new() })
        };
        self.heard.logs.lock().unwrap().push(request.into_inner());
        if self.life == 1 {
            let die = self.die.clone();
            let chunks = vec![chunk(0, 0, "one\ntw"), chunk(1, 0, "half")];
            let rest = futures::stream::once(async move {
                die.send(()).unwrap();
                std::future::pending().await
            });
            return Ok(Response::new(Box::pin(tokio_stream::iter(chunks).chain(rest))));
        }
        // It sends more than was asked for.
        let chunks = vec![chunk(0, 4, "two\n"), chunk(1, 4, " and half\n"), chunk(0, 8, "three")];
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    type WatchStream = Stream1<Note>;
    async fn watch(&self, request: Request<WatchRequest>) -> Reply<Self::WatchStream> {
        let note = |seq: u64| {
            Ok(Note { seq, time_ms: 1000 * seq, text: format!("job-{seq} queued"), ..Note::default() })
        };
        self.heard.watches.lock().unwrap().push(request.into_inner());
        if self.life == 1 {
            let die = self.die.clone();
            let rest = futures::stream::once(async move {
                die.send(()).unwrap();
                std::future::pending().await
            });
            return Ok(Response::new(Box::pin(tokio_stream::iter(vec![note(4), note(5)]).chain(rest))));
        }
        let refusal = Err(Status::permission_denied("that is enough"));
        Ok(Response::new(Box::pin(tokio_stream::iter(vec![note(6), refusal]))))
    }

    async fn list(&self, _: Request<ListRequest>) -> Reply<ListResponse> {
        Err(Status::unimplemented(""))
    }
    async fn cancel(&self, _: Request<CancelRequest>) -> Reply<CancelResponse> {
        Err(Status::unimplemented(""))
    }
    async fn scale(&self, _: Request<ScaleRequest>) -> Reply<ScaleResponse> {
        Err(Status::unimplemented(""))
    }
    async fn explain(&self, _: Request<ExplainRequest>) -> Reply<Explanation> {
        Err(Status::unimplemented(""))
    }
    async fn plan(&self, _: Request<PlanRequest>) -> Reply<PlanResponse> {
        Err(Status::unimplemented(""))
    }
    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Reply<ListNodesResponse> {
        Err(Status::unimplemented(""))
    }
    async fn cordon(&self, _: Request<NodeRequest>) -> Reply<NodeResponse> {
        Err(Status::unimplemented(""))
    }
    async fn drain(&self, _: Request<NodeRequest>) -> Reply<NodeResponse> {
        Err(Status::unimplemented(""))
    }
    async fn uncordon(&self, _: Request<NodeRequest>) -> Reply<NodeResponse> {
        Err(Status::unimplemented(""))
    }
    async fn set_queue(&self, _: Request<SetQueueRequest>) -> Reply<SetQueueResponse> {
        Err(Status::unimplemented(""))
    }
    async fn set_price(&self, _: Request<SetPriceRequest>) -> Reply<SetPriceResponse> {
        Err(Status::unimplemented(""))
    }
    async fn list_prices(&self, _: Request<ListPricesRequest>) -> Reply<ListPricesResponse> {
        Err(Status::unimplemented(""))
    }
    async fn reserve(&self, _: Request<ReserveRequest>) -> Reply<ReserveResponse> {
        Err(Status::unimplemented(""))
    }

    async fn unreserve(&self, _: Request<UnreserveRequest>) -> Reply<UnreserveResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_reservations(
        &self,
        _: Request<ListReservationsRequest>,
    ) -> Reply<ListReservationsResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_queues(&self, _: Request<ListQueuesRequest>) -> Reply<ListQueuesResponse> {
        Err(Status::unimplemented(""))
    }
    async fn usage(&self, _: Request<UsageRequest>) -> Reply<UsageResponse> {
        Err(Status::unimplemented(""))
    }
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn a_submission_whose_answer_was_lost_is_sent_again_with_the_same_key() {
    let (output, heard) = run(&["run", "--detach", "--", "true"]);
    assert_eq!(
        stdout(&output),
        "job-7 was queued by an earlier request with this key\n",
        "{}",
        stderr(&output)
    );
    assert_eq!(output.status.code(), Some(0));
    let submits = heard.submits.lock().unwrap();
    assert_eq!(submits.len(), 2);
    assert_eq!(submits[0], submits[1]);
    assert_eq!(submits[0].spec.as_ref().unwrap().client_key.len(), 32);
    assert_eq!(*heard.tokens.lock().unwrap(), ["Bearer s3cret", "Bearer s3cret"]);
}

#[test]
fn followed_logs_go_on_where_they_were_when_the_scheduler_died() {
    let (output, heard) = run(&["logs", "-f", "job-7"]);
    assert_eq!(stdout(&output), "[0] one\n[0] two\n[1] half and half\n[0] three\n", "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("connection"), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(0));
    let logs = heard.logs.lock().unwrap();
    let position = |rank, offset| LogPosition { attempt: 1, rank, offset };
    assert_eq!((&logs[0].from[..], &logs[1].from[..]), (&[][..], &[position(0, 6), position(1, 4)][..]));
}

#[test]
fn a_watch_goes_on_after_the_last_note() {
    let (output, heard) = run(&["watch"]);
    assert_eq!(
        stdout(&output),
        "1970-01-01 00:00:04Z  job-4 queued\n1970-01-01 00:00:05Z  job-5 queued\n1970-01-01 00:00:06Z  job-6 queued\n"
    );
    assert!(
        stderr(&output)
            .ends_with("aquifer: that is enough\n  ask an administrator of the pool, or the user it is of\n"),
        "{}",
        stderr(&output)
    );
    assert_eq!(output.status.code(), Some(1));
    let watches = heard.watches.lock().unwrap();
    let after: Vec<Option<u64>> = watches.iter().map(|watch| watch.after_seq).collect();
    assert_eq!((after[0], after.last().copied()), (None, Some(Some(5))));
}
