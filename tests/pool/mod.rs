//! A pool of real processes for tests: `aquifer server`, agents, workers and clients, in a directory of its own.
//!
//! What is waited for is looked for again and again, with a deadline; nothing sleeps for the sake of time. When a
//! [`Pool`] goes, it ends its daemons and makes sure that no process of it is left, also when the test has failed.

#![allow(dead_code)] // Every test binary uses a part of it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aquifer_proto::v1;
use aquifer_proto::v1::pool_client::PoolClient;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

/// How long anything may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

const BINARY: &str = env!("CARGO_BIN_EXE_aquifer");

/// Looks until there is something to see, and fails the test when that takes too long.
#[track_caller]
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look)
}

/// [`until`] with another deadline.
#[track_caller]
pub fn until_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain: {what}");
        thread::sleep(Duration::from_millis(15));
    }
}

/// A first port of so many that nobody else uses: below those that the kernel gives to outgoing connections.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 128) as u16 * 128;
    until("free ports", || {
        let first = 12_000 + (start + NEXT.fetch_add(count, Ordering::Relaxed)) % 16_000;
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        (first..first + count).all(is_free).then_some(first)
    })
}

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

/// The generated client.
pub type Stub = PoolClient<Connection>;

/// A gRPC client whose calls return when they are answered.
pub struct Client {
    runtime: Runtime,
    connection: Connection,
}

impl Client {
    /// Nothing is sent before the first call.
    pub fn new(url: &str, token: Option<&str>) -> Client {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let endpoint = Endpoint::from_shared(url.to_string()).expect("a URL").tcp_nodelay(true);
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        let connection = InterceptedService::new(channel, Bearer(token.map(Into::into)));
        Client { runtime, connection }
    }

    /// One call, once.
    pub fn once<A>(&self, call: impl AsyncFnOnce(Stub) -> Result<Response<A>, Status>) -> Result<A, Status> {
        let call = call(self.stub());
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
        PoolClient::new(self.connection()).max_decoding_message_size(64 << 20)
    }

    /// For the generated clients of other services.
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

fn until_or<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(15)),
            seen => return seen,
        }
    }
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

/// Processes of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    pub worker: i32,
    pub supervisor: i32,
}

/// How a command of the CLI ended.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    /// Standard output of a command that succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }
}

/// A command of the CLI that is under way.
pub struct Running {
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    /// What it printed so far.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).expect("its output")).into_owned()
    }

    /// What it said aside so far.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).expect("its output")).into_owned()
    }

    /// Waits for it to print something.
    #[track_caller]
    pub fn until_out(&mut self, text: &str) {
        until_or(PATIENCE, || self.out().contains(text).then_some(()))
            .unwrap_or_else(|| panic!("no {text:?} in {:?} {:?}", self.out(), self.err()));
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        send(self.child.id() as i32, signal);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Done {
        self.finish_within(PATIENCE)
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish_within(&mut self, patience: Duration) -> Done {
        match until_or(patience, || self.child.try_wait().expect("a child")) {
            Some(status) => Done { code: status.code(), out: self.out(), err: self.err() },
            None => {
                self.child.kill().expect("a child");
                panic!("it did not end within {patience:?}: {} {}", self.out(), self.err())
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.child.kill(); // It has ended, or its test has failed.
        _ = self.child.wait();
    }
}

/// Sends a signal; a process that is gone is no error.
pub fn send(pid: i32, signal: Signal) {
    _ = kill_process(Pid::from_raw(pid).expect("a process number"), signal);
}

/// Whether a process is there and not dead.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Processes that have a directory in their command line or environment, with their command lines.
pub fn processes_of(dir: &Path) -> Vec<(i32, String)> {
    let wanted = dir.as_os_str().as_encoded_bytes();
    let names = |text: &[u8]| text.windows(wanted.len()).any(|window| window == wanted);
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let found = pids.filter(|pid| *pid != std::process::id() as i32).filter_map(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_ours = (names(&command) || names(&environment)) && is_alive(pid);
        is_ours.then(|| (pid, String::from_utf8_lossy(&command).replace('\0', " ")))
    });
    found.collect()
}

/// Kills whatever has a directory in its command line or environment.
pub fn kill_all_of(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = processes_of(dir);
        if left.is_empty() || deadline < Instant::now() {
            return;
        }
        left.iter().for_each(|(pid, _)| send(*pid, Signal::KILL));
        thread::sleep(Duration::from_millis(10));
    }
}

/// A command with nothing of our own surroundings but the `PATH`.
pub fn program(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(words).env_clear().env("HOME", dir.join("home")).env("USER", "ada").env("TMPDIR", dir);
    command.env("PATH", std::env::var_os("PATH").expect("a PATH")).current_dir(dir).stdin(Stdio::null());
    command
}

/// Starts a command whose output goes to files.
pub fn start(dir: &Path, name: &str, mut command: Command) -> Running {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let name = format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let (out, err) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
    command.stdout(File::create(&out).expect("a file")).stderr(File::create(&err).expect("a file"));
    Running { child: command.spawn().expect("the binary runs"), out, err }
}

/// A scheduler and agents.
pub struct Pool {
    home: TempDir,
    port: u16,
    server_flags: Vec<String>,
    server: Option<Running>,
    agent_flags: HashMap<String, Vec<String>>,
    agents: BTreeMap<String, Running>,
    client: Client,
    token: Option<String>,
}

/// What clients can do is done through the pool.
impl std::ops::Deref for Pool {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Pool {
    /// A pool with a scheduler and nothing else.
    pub fn start() -> Pool {
        Pool::with(&[])
    }

    /// A pool of a scheduler with these flags, and a node `a`.
    pub fn of_one(flags: &[&str]) -> Pool {
        let mut pool = Pool::with(flags);
        pool.agent("a", &[]);
        pool
    }

    /// A scheduler with these flags.
    pub fn with(flags: &[&str]) -> Pool {
        Pool::new(flags, None)
    }

    /// A scheduler that wants a token.
    pub fn with_token(token: &str) -> Pool {
        Pool::new(&[], Some(token))
    }

    fn new(flags: &[&str], token: Option<&str>) -> Pool {
        let home = TempDir::with_prefix("aquifer-test-").expect("a temporary directory");
        fs::create_dir(home.path().join("home")).expect("a home");
        let port = free_ports(1);
        let mut pool = Pool {
            home,
            port,
            server_flags: flags.iter().map(ToString::to_string).collect(),
            server: None,
            agent_flags: HashMap::new(),
            agents: BTreeMap::new(),
            client: Client::new(&format!("http://127.0.0.1:{port}"), token),
            token: token.map(Into::into),
        };
        if let Some(token) = token {
            fs::write(pool.file("token"), token).expect("a token file");
        }
        pool.start_server();
        pool
    }

    /// Directory of everything.
    pub fn dir(&self) -> &Path {
        self.home.path()
    }

    /// A file in the directory of everything, as text for scripts.
    pub fn file(&self, name: &str) -> String {
        self.dir().join(name).to_str().expect("a path that is text").to_string()
    }

    /// Content of a file; empty if there is none yet.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir().join(name)).unwrap_or_default()
    }

    /// Where the scheduler is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Flags that present the token, if one is wanted.
    fn token_flags(&self) -> Vec<String> {
        let file = self.token.as_ref().map(|_| self.file("token"));
        file.into_iter().flat_map(|file| ["--token-file".into(), file]).collect()
    }

    /// Another client.
    pub fn another_client(&self) -> Client {
        Client::new(&self.url(), self.token.as_deref())
    }

    /// Starts the scheduler, the first time or again, and waits until it listens.
    #[track_caller]
    pub fn start_server(&mut self) {
        let data = self.file("server");
        let listen = format!("127.0.0.1:{}", self.port);
        let mut words = vec!["server", "--listen", &listen, "--data-dir", &data];
        let token = self.token_flags();
        words.extend(self.server_flags.iter().chain(&token).map(String::as_str));
        let mut server = start(self.dir(), "server", program(self.dir(), &words));
        server.until_out("listening on ");
        self.server = Some(server);
    }

    /// Kills the scheduler.
    pub fn kill_server(&mut self) {
        drop(self.server.take().expect("a scheduler")); // The drop kills.
    }

    /// Sends the scheduler a signal.
    pub fn signal_server(&self, signal: Signal) {
        self.server.as_ref().expect("a scheduler").signal(signal);
    }

    /// Starts an agent, the first time or again with the flags of the first time, and waits until its node is up.
    #[track_caller]
    pub fn agent(&mut self, name: &str, flags: &[&str]) {
        if !flags.is_empty() || !self.agent_flags.contains_key(name) {
            let first = free_ports(16);
            let (state, ports) = (self.file(name), format!("{first}-{}", first + 15));
            let url = self.url();
            let mut words = vec!["agent", "--server", &url, "--node", name, "--state-dir", &state];
            words.extend(["--ports", &ports, "--limits", "off"]);
            for (flag, default) in [("--devices", "none"), ("--cpus", "4"), ("--memory", "4GiB")] {
                words.extend(if flags.contains(&flag) { vec![] } else { vec![flag, default] });
            }
            words.extend(flags);
            let words = words.iter().map(ToString::to_string).chain(self.token_flags()).collect();
            self.agent_flags.insert(name.into(), words);
        }
        let words: Vec<&str> = self.agent_flags[name].iter().map(String::as_str).collect();
        let agent = start(self.dir(), name, program(self.dir(), &words));
        self.agents.insert(name.into(), agent);
        let agent = &self.agents[name];
        until("the agent's session", || {
            agent.err().contains("session with the scheduler began").then_some(())
        });
        until("the node is up", || self.node(name).filter(|node| node.up && node.version != ""));
    }

    /// Kills an agent alone.
    pub fn kill_agent(&mut self, name: &str) {
        drop(self.agents.remove(name).expect("an agent")); // The drop kills.
    }

    /// Kills an agent with its supervisors and workers, as the loss of its machine does.
    pub fn kill_node(&mut self, name: &str) {
        self.kill_agent(name);
        kill_all_of(&self.dir().join(name));
    }

    /// What a daemon logged.
    pub fn agent_log(&self, name: &str) -> String {
        self.agents[name].err()
    }

    /// Directory of a rank's run, on whichever node it is.
    pub fn run_dir(&self, job: u64, attempt: u32, rank: u32) -> Option<PathBuf> {
        let run = format!("runs/job-{job}.{attempt}/{rank}");
        self.agent_flags.keys().map(|name| self.dir().join(name).join(&run)).find(|path| path.exists())
    }

    /// The processes of a rank, once they have started.
    #[track_caller]
    pub fn worker(&self, job: u64, attempt: u32, rank: u32) -> Worker {
        until("the worker's processes", || {
            let text = fs::read_to_string(self.run_dir(job, attempt, rank)?.join("pid.json")).ok()?;
            let pids: serde_json::Value = serde_json::from_str(&text).ok()?;
            let pid = |key: &str| pids[key].as_i64().map(|pid| pid as i32);
            Some(Worker { worker: pid("worker")?, supervisor: pid("supervisor")? })
        })
    }

    /// Starts a command of the CLI against this pool.
    pub fn begin(&self, words: &[&str]) -> Running {
        let mut command = program(self.dir(), words);
        command.env("AQUIFER_SERVER", self.url()).env("NO_COLOR", "1");
        start(self.dir(), "cli", command)
    }

    /// Runs a command of the CLI against this pool.
    #[track_caller]
    pub fn aquifer(&self, words: &[&str]) -> Done {
        self.begin(words).finish()
    }

    /// All processes of this pool.
    pub fn processes(&self) -> Vec<(i32, String)> {
        processes_of(self.dir())
    }

    /// Ends everything in order, and checks that nothing is left.
    fn end(&mut self) {
        if self.server.is_some() {
            for job in self.jobs().iter().filter(|job| !has_ended(job)) {
                let request = v1::CancelRequest { job: job.id, whole_array: false };
                _ = self.call(async |mut stub| stub.cancel(request).await); // It may have ended by now.
            }
        }
        let supervised = || self.processes().into_iter().filter(|(_, words)| words.contains("supervise "));
        if !self.agents.is_empty() {
            until("no worker is left", || supervised().next().is_none().then_some(()));
        }
        for (name, agent) in std::mem::take(&mut self.agents) {
            agent.signal(Signal::TERM);
            assert_eq!(agent.finish().code, Some(0), "the agent of {name}");
        }
        if let Some(server) = self.server.take() {
            server.signal(Signal::TERM);
            assert_eq!(server.finish().code, Some(0), "the scheduler");
        }
        until_or(PATIENCE, || self.processes().is_empty().then_some(()))
            .unwrap_or_else(|| panic!("processes are left: {:#?}", self.processes()));
    }

    fn tell(&self) {
        let daemons = self.agents.iter().map(|(name, agent)| (name.as_str(), agent));
        let daemons = daemons.chain(self.server.iter().map(|server| ("server", server)));
        for (name, daemon) in daemons {
            let log = daemon.err();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("---- {name} ----\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let failed_before = thread::panicking();
        let ended =
            (!failed_before).then(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.end())));
        if !matches!(ended, Some(Ok(()))) {
            self.tell();
            self.agents.clear();
            self.server = None;
            kill_all_of(self.dir());
        }
        if let Some(Err(panic)) = ended {
            std::panic::resume_unwind(panic);
        }
    }
}
