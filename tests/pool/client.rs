//! A gRPC client for tests, and the jobs that they submit.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use aquifer_cli::servers::Servers;
use aquifer_proto::tls::ClientTls;
use aquifer_proto::v1;
use aquifer_proto::v1::pool_client::PoolClient;
use tokio::runtime::Runtime;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::Pool;
use super::process::{PATIENCE, until, until_or};

/// A job of one rank that runs a program.
pub fn command(words: &[&str]) -> v1::JobSpec {
    let arguments = words.iter().map(ToString::to_string).collect();
    let program = Some(v1::role::Program::Command(v1::Command { arguments }));
    let request = Some(v1::Request { cpus_milli: 100, ..Default::default() });
    let role = v1::Role { ranks: 1, request, program, ..Default::default() };
    v1::JobSpec { name: "test".into(), roles: vec![role], ..Default::default() }
}

/// A job of one rank that runs a script.
pub fn shell(script: &str) -> v1::JobSpec {
    command(&["sh", "-c", script])
}

/// A training job on the texts of this project, with checkpoints in a directory of that name.
pub fn training(pool: &Pool, checkpoints: &str, steps: u64) -> v1::JobSpec {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/scheduler/core/src");
    let options = v1::Train {
        data: data.into(),
        steps,
        batch: 4,
        context: 64,
        seed: 7,
        checkpoint_every: 10,
        ..Default::default()
    };
    let mut spec = shell("");
    spec.checkpoint_dir = Some(pool.file(&format!("checkpoints-{checkpoints}")));
    spec.roles[0].program = Some(v1::role::Program::Train(options));
    spec
}

/// A job that is placed on one kind of devices.
pub fn devices(mut spec: v1::JobSpec, ranks: u32, wanted: &[(u32, &str)]) -> v1::JobSpec {
    let wanted = wanted.iter().map(|(count, model)| v1::DeviceRequest {
        count: *count,
        model: model.to_string(),
        ..Default::default()
    });
    spec.roles[0].ranks = ranks;
    spec.roles[0].request.get_or_insert_default().devices = wanted.collect();
    spec
}

/// Puts a token into calls, if there is one.
#[derive(Clone)]
pub struct Bearer(Option<String>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value = format!("Bearer {token}").parse().expect("a token that can be sent");
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// The connection of a client.
pub type Connection = InterceptedService<Channel, Bearer>;

/// The generated client, of whichever scheduler leads.
pub type Stub = PoolClient<InterceptedService<Servers, Bearer>>;

/// A gRPC client whose calls return when they are answered.
pub struct Client {
    runtime: Runtime,
    connection: Connection,
    servers: InterceptedService<Servers, Bearer>,
}

impl Client {
    /// `url`: of one scheduler, or of several with commas between them. Nothing is sent before the first call.
    pub fn new(url: &str, token: Option<&str>) -> Client {
        Client::with_tls(url, token, &ClientTls::default())
    }

    /// The same, trusting somebody.
    pub fn with_tls(url: &str, token: Option<&str>, tls: &ClientTls) -> Client {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let first = url.split(',').next().unwrap_or_default();
        let endpoint = tls.endpoint(first).expect("a URL").tcp_nodelay(true);
        let bearer = Bearer(token.map(Into::into));
        let entered = runtime.enter();
        let connection = InterceptedService::new(endpoint.connect_lazy(), bearer.clone());
        let servers = InterceptedService::new(Servers::new(url, tls).expect("URLs"), bearer);
        drop(entered);
        Client { runtime, connection, servers }
    }

    /// One call, once.
    pub fn once<A>(&self, call: impl AsyncFnOnce(Stub) -> Result<Response<A>, Status>) -> Result<A, Status> {
        let call = call(self.stub());
        let answered = self.block_on(async { tokio::time::timeout(PATIENCE, call).await });
        answered.expect("an answer in time").map(Response::into_inner)
    }

    /// One call, once, to the first scheduler alone, whether it leads or not.
    pub fn alone<A>(
        &self,
        call: impl AsyncFnOnce(PoolClient<Connection>) -> Result<Response<A>, Status>,
    ) -> Result<A, Status> {
        let call = call(PoolClient::new(self.connection()));
        let answered = self.block_on(async { tokio::time::timeout(PATIENCE, call).await });
        answered.expect("an answer in time").map(Response::into_inner)
    }

    /// A call that is repeated while no scheduler answers.
    #[track_caller]
    pub fn call<A>(&self, call: impl AsyncFn(Stub) -> Result<Response<A>, Status>) -> Result<A, Status> {
        until("an answer of the scheduler", || match self.once(&call) {
            Err(status) if is_lost(&status) => None,
            answer => Some(answer),
        })
    }

    /// Waits for something else.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// The generated client.
    pub fn stub(&self) -> Stub {
        PoolClient::new(self.servers.clone()).max_decoding_message_size(64 << 20)
    }

    /// To the first scheduler alone, for the generated clients of other services.
    pub fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// Submits a job, and returns the first of what it made.
    #[track_caller]
    pub fn submit(&self, spec: v1::JobSpec) -> u64 {
        let request = v1::SubmitRequest { spec: Some(spec) };
        self.call(async |mut stub| stub.submit(request.clone()).await).expect("a good specification").job
    }

    /// Asks for a job.
    #[track_caller]
    pub fn job(&self, job: u64) -> v1::Job {
        self.call(async |mut stub| stub.get(v1::GetRequest { job }).await).expect("a job")
    }

    /// Waits for something about a job.
    #[track_caller]
    pub fn until_job(&self, job: u64, what: &str, is_so: impl Fn(&v1::Job) -> bool) -> v1::Job {
        let mut last = None;
        let found = until_or(PATIENCE, || {
            let found = self.job(job);
            let so = is_so(&found);
            let over = so || has_ended(&found);
            last = Some(found.clone());
            over.then_some((so, found))
        });
        match (found, last) {
            (Some((true, found)), _) => found,
            (_, last) => {
                let last = last.expect("an answer");
                let (state, reason) = (last.state().as_str_name(), &last.reason);
                panic!("job-{job} is never {what}: {state}, attempt {}, {reason}", last.attempt)
            }
        }
    }

    /// Waits for a job to be in a state.
    #[track_caller]
    pub fn until_state(&self, job: u64, state: v1::JobState) -> v1::Job {
        self.until_job(job, state.as_str_name(), |job| job.state() == state || has_ended(job)).in_state(state)
    }

    /// Waits for a job's success.
    #[track_caller]
    pub fn until_succeeded(&self, job: u64) -> v1::Job {
        self.until_state(job, v1::JobState::Succeeded)
    }

    /// All jobs, newest first.
    #[track_caller]
    pub fn jobs(&self) -> Vec<v1::Job> {
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request =
                v1::ListRequest { page_size: 1000, page_token: page_token.clone(), ..Default::default() };
            let page = self.call(async |mut stub| stub.list(request.clone()).await).expect("a list");
            all.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return all;
            }
        }
    }

    /// Asks for a job's end.
    #[track_caller]
    pub fn cancel(&self, job: u64) {
        let request = v1::CancelRequest { job, whole_array: false };
        self.call(async |mut stub| stub.cancel(request).await).expect("a job that has not ended");
    }

    /// Asks for the end of many jobs at once.
    pub fn cancel_all(&self, jobs: &[u64]) {
        let cancel = |job: &u64| {
            let (mut stub, request) = (self.stub(), v1::CancelRequest { job: *job, whole_array: false });
            async move { stub.cancel(request).await.expect("a job that has not ended") }
        };
        for jobs in jobs.chunks(100) {
            self.block_on(futures::future::join_all(jobs.iter().map(cancel)));
        }
    }

    /// A node.
    #[track_caller]
    pub fn node(&self, name: &str) -> Option<v1::Node> {
        let nodes = self.call(async |mut stub| stub.list_nodes(v1::ListNodesRequest::default()).await);
        nodes.expect("nodes").nodes.into_iter().find(|node| node.name == name)
    }

    /// What the ranks of a job have printed so far.
    #[track_caller]
    pub fn log(&self, job: u64) -> String {
        self.logs(v1::LogsRequest { job, ..Default::default() }).into_values().collect()
    }

    /// What the ranks of a job print, by attempt and rank.
    #[track_caller]
    pub fn logs(&self, request: v1::LogsRequest) -> BTreeMap<(u32, u32), String> {
        let mut bytes: BTreeMap<(u32, u32), Vec<u8>> = BTreeMap::new();
        let read = async {
            let mut stream = self.stub().logs(request).await?.into_inner();
            while let Some(chunk) = stream.message().await? {
                assert_eq!(chunk.unavailable, "", "the log of rank {}", chunk.rank);
                bytes.entry((chunk.attempt, chunk.rank)).or_default().extend(chunk.data);
            }
            Ok::<(), Status>(())
        };
        let read = self.block_on(async { tokio::time::timeout(PATIENCE, read).await });
        read.expect("the log's end in time").expect("a log");
        bytes.into_iter().map(|(rank, bytes)| (rank, String::from_utf8(bytes).expect("text"))).collect()
    }

    /// Waits for a note of this run of the scheduler, also among those that were made before.
    #[track_caller]
    pub fn until_note(&self, text: &str) -> v1::Note {
        let request = v1::WatchRequest { after_seq: Some(0), ..Default::default() };
        let mut seen = Vec::new();
        let found = self.block_on(async {
            let find = async {
                let mut stream = self.stub().watch(request).await.expect("a stream").into_inner();
                while let Some(note) = stream.message().await.expect("a note") {
                    if note.text.contains(text) {
                        return Some(note);
                    }
                    seen.push(note.text);
                }
                None
            };
            tokio::time::timeout(PATIENCE, find).await.ok().flatten()
        });
        found.unwrap_or_else(|| panic!("no note says {text:?}: {seen:#?}"))
    }
}

/// Asks a daemon over HTTP; returns the status and the body.
#[track_caller]
pub fn ask(port: u16, request: &str, headers: &str) -> (u16, String) {
    let (head, body) = ask_for_all(port, request, headers);
    (head[9..12].parse().expect("a status"), body)
}

/// The same; returns the head and the body.
#[track_caller]
pub fn ask_for_all(port: u16, request: &str, headers: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let host = if headers.contains("host: ") { "" } else { "host: x\r\n" };
    let head = format!("{request} HTTP/1.0\r\n{host}{headers}\r\n");
    stream.write_all(head.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_string(), body.to_string())
}

/// Whether nobody answered, as opposed to a refusal.
pub fn is_lost(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

/// Whether nothing more happens to a job.
pub fn has_ended(job: &v1::Job) -> bool {
    use v1::JobState::*;
    matches!(job.state(), Succeeded | Failed | Cancelled | TimedOut)
}

/// Checks that read well at the end of a line.
pub trait Checks {
    /// Fails the test unless the job is in this state.
    fn in_state(self, state: v1::JobState) -> Self;
}

impl Checks for v1::Job {
    #[track_caller]
    fn in_state(self, state: v1::JobState) -> v1::Job {
        assert_eq!(self.state(), state, "job-{}: {} {}", self.id, self.reason, self.last_failure);
        self
    }
}
