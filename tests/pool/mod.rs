//! A pool of real processes for tests: `aquifer server`, agents, workers and clients, in a directory of its own.
//!
//! What is waited for is looked for again and again, with a deadline; nothing sleeps for the sake of time. When a
//! [`Pool`] goes, it ends its daemons and makes sure that no process of it is left, also when the test has failed.

#![allow(dead_code)] // Every test binary uses a part of it.

mod client;
mod process;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, thread};

use aquifer_proto::tls::ClientTls;
use aquifer_proto::v1;
pub use client::*;
pub use process::*;
use rustix::process::Signal;
use tempfile::TempDir;

/// Processes of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    pub worker: i32,
    pub supervisor: i32,
}

/// A scheduler and agents.
pub struct Pool {
    home: TempDir,
    /// Of each scheduler; only with etcd there are several.
    ports: Vec<u16>,
    server_flags: Vec<String>,
    servers: BTreeMap<usize, Running>,
    agent_flags: HashMap<String, Vec<String>>,
    agents: BTreeMap<String, Running>,
    client: Client,
    token: Option<String>,
    tls: ClientTls,
    /// Variables of whoever is started next.
    env: Vec<(String, String)>,
    /// The program of whoever is started next.
    binary: PathBuf,
    /// Where agents and clients find the scheduler, if not where it listens.
    relay: Option<String>,
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

    /// Several schedulers, of which one leads.
    pub fn of_schedulers(count: u16, flags: &[&str]) -> Pool {
        let mut pool = Pool::prepare(count, flags, None);
        (0..count.into()).for_each(|at| pool.start_server_at(at));
        pool
    }

    fn new(flags: &[&str], token: Option<&str>) -> Pool {
        let mut pool = Pool::prepare(1, flags, token);
        pool.start_server();
        pool
    }

    /// Schedulers that are yet to be started.
    pub fn prepare(count: u16, flags: &[&str], token: Option<&str>) -> Pool {
        let home = TempDir::with_prefix("aquifer-test-").expect("a temporary directory");
        fs::create_dir(home.path().join("home")).expect("a home");
        let first = free_ports(count);
        let ports: Vec<u16> = (first..first + count).collect();
        let client = Client::new(&urls("http", &ports), token);
        let pool = Pool {
            home,
            ports,
            server_flags: flags.iter().map(ToString::to_string).collect(),
            servers: BTreeMap::new(),
            agent_flags: HashMap::new(),
            agents: BTreeMap::new(),
            client,
            token: token.map(Into::into),
            tls: ClientTls::default(),
            env: Vec::new(),
            binary: BINARY.into(),
            relay: None,
        };
        if let Some(token) = token {
            fs::write(pool.file("token"), token).expect("a token file");
        }
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

    /// From now on schedulers are started with these flags as well.
    pub fn give_servers(&mut self, flags: &[&str]) {
        self.server_flags.extend(flags.iter().map(ToString::to_string));
    }

    /// From now on everyone speaks TLS, and trusts the authorities in a file of this name.
    pub fn use_tls(&mut self, ca: &str) {
        self.tls = ClientTls { ca: Some(self.dir().join(ca)), identity: None };
        self.client = self.another_client();
    }

    /// From now on a certificate and its key are shown to the scheduler.
    pub fn show(&mut self, files: &[String; 2]) {
        self.tls.identity = Some((PathBuf::from(&files[0]), PathBuf::from(&files[1])));
        self.client = self.another_client();
    }

    fn scheme(&self) -> &'static str {
        if self.tls.ca.is_some() { "https" } else { "http" }
    }

    /// Where the scheduler is; with several, the URL of each with commas between them.
    pub fn url(&self) -> String {
        self.relay.clone().unwrap_or_else(|| urls(self.scheme(), &self.ports))
    }

    /// From now on agents and clients go through a relay.
    pub fn go_through(&mut self, relay: String) {
        self.relay = Some(relay);
        self.client = self.another_client();
    }

    /// From now on daemons and commands are of another program.
    pub fn use_binary(&mut self, binary: &Path) {
        self.binary = binary.into();
    }

    /// Where one of several schedulers is.
    pub fn url_of(&self, at: usize) -> String {
        urls(self.scheme(), &self.ports[at..=at])
    }

    /// Flags that present the token, if one is wanted.
    fn token_flags(&self) -> Vec<String> {
        let file = self.token.as_ref().map(|_| self.file("token"));
        file.into_iter().flat_map(|file| ["--token-file".into(), file]).collect()
    }

    /// Another client.
    pub fn another_client(&self) -> Client {
        Client::with_tls(&self.url(), self.token.as_deref(), &self.tls)
    }

    /// A client of one of several schedulers.
    pub fn another_client_of(&self, at: usize) -> Client {
        Client::with_tls(&self.url_of(at), self.token.as_deref(), &self.tls)
    }

    /// Starts the scheduler, the first time or again, and waits until it listens.
    #[track_caller]
    pub fn start_server(&mut self) {
        self.start_server_at(0);
    }

    /// Starts one of several schedulers.
    #[track_caller]
    pub fn start_server_at(&mut self, at: usize) {
        let data = self.file("server");
        let listen = format!("127.0.0.1:{}", self.ports[at]);
        let mut words = vec!["server", "--listen", &listen, "--data-dir", &data];
        let token = self.token_flags();
        words.extend(self.server_flags.iter().chain(&token).map(String::as_str));
        let mut server = start(self.dir(), &format!("server{at}"), self.program(&words));
        server.until_out("listening on ");
        self.servers.insert(at, server);
    }

    /// More variables for those that are started from now on.
    pub fn set_env(&mut self, env: &[(String, String)]) {
        self.env = env.to_vec();
    }

    fn program(&self, words: &[&str]) -> Command {
        let mut command = program_of(&self.binary, self.dir(), words);
        command.envs(self.env.iter().cloned());
        command
    }

    /// Other flags for the next start of a scheduler.
    pub fn set_server_flags(&mut self, flags: &[&str]) {
        self.server_flags = flags.iter().map(ToString::to_string).collect();
    }

    /// Kills the scheduler.
    pub fn kill_server(&mut self) {
        self.kill_server_at(0);
    }

    /// Kills one of several schedulers.
    pub fn kill_server_at(&mut self, at: usize) {
        drop(self.servers.remove(&at).expect("a scheduler")); // The drop kills.
    }

    /// Sends the scheduler a signal.
    pub fn signal_server(&self, signal: Signal) {
        self.servers[&0].signal(signal);
    }

    /// One of several schedulers.
    pub fn server_at(&self, at: usize) -> &Running {
        &self.servers[&at]
    }

    /// Takes a scheduler whose end is awaited.
    pub fn take_server_at(&mut self, at: usize) -> Running {
        self.servers.remove(&at).expect("a scheduler")
    }

    /// Waits until one of several schedulers leads, and says which.
    #[track_caller]
    pub fn until_leader(&self) -> usize {
        until("a leader", || self.leader())
    }

    /// Which of several schedulers says that it leads.
    pub fn leader(&self) -> Option<usize> {
        self.servers.keys().copied().find(|at| {
            let log = self.servers[at].err();
            log.contains("restored") && !log.contains(" is over")
        })
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
            for (flag, default) in [
                ("--devices", "none"),
                ("--cpus", "4"),
                ("--memory", "4GiB"),
                ("--measure", "never"),
                ("--engine", "none"),
                ("--run-as", "agent"),
            ] {
                words.extend(if flags.contains(&flag) { vec![] } else { vec![flag, default] });
            }
            words.extend(flags);
            let ca = self.tls.ca.as_ref().map(|ca| ca.display().to_string());
            words.extend(ca.iter().flat_map(|ca| ["--tls-ca", ca]));
            let words = words.iter().map(ToString::to_string).chain(self.token_flags()).collect();
            self.agent_flags.insert(name.into(), words);
        }
        let words: Vec<&str> = self.agent_flags[name].iter().map(String::as_str).collect();
        let agent = start(self.dir(), name, self.program(&words));
        self.agents.insert(name.into(), agent);
        let agent = &self.agents[name];
        until("the agent's session", || {
            agent.err().contains("session with the scheduler began").then_some(())
        });
        until("the node is up", || self.node(name).filter(|node| node.up && !node.version.is_empty()));
    }

    /// Starts an agent that says it is a node which another one is, in a directory of its own by which the pool knows it.
    pub fn second_agent(&mut self, node: &str, name: &str) {
        let (of_first, own) = (self.file(node), self.file(name));
        let words = self.agent_flags[node]
            .iter()
            .map(|word| if *word == of_first { own.clone() } else { word.clone() });
        let words: Vec<String> = words.collect();
        let agent =
            start(self.dir(), name, self.program(&words.iter().map(String::as_str).collect::<Vec<_>>()));
        self.agent_flags.insert(name.into(), words);
        self.agents.insert(name.into(), agent);
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
        self.begin_with(words, "NO_COLOR", "1")
    }

    /// The same with a variable.
    pub fn begin_with(&self, words: &[&str], name: &str, value: &str) -> Running {
        let mut command = program_of(&self.binary, self.dir(), words);
        command.env("AQUIFER_SERVER", self.url()).env(name, value);
        self.tls.ca.iter().for_each(|ca| _ = command.env("AQUIFER_TLS_CA", ca));
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
        if !self.servers.is_empty() {
            for job in self.jobs().iter().filter(|job| !has_ended(job)) {
                let request = v1::CancelRequest { job: job.id, whole_array: false };
                _ = self.call(async |mut stub| stub.cancel(request).await); // It may have ended by now.
            }
        }
        // The process that supervisors are forked from stays for as long as its agent, and so do those that run nothing;
        // those that do are called after it.
        let is_supervisor = |pid: i32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.starts_with("job-")
        };
        if !self.agents.is_empty() {
            let left = || self.processes().into_iter().any(|(pid, _)| is_supervisor(pid));
            until("no supervisor is left", || (!left()).then_some(()));
        }
        let daemons = self.agents.len() + self.servers.len();
        assert!(daemons <= self.processes().len(), "processes of this pool are found at all");
        for (name, agent) in std::mem::take(&mut self.agents) {
            agent.signal(Signal::TERM);
            assert_eq!(agent.finish().code, Some(0), "the agent of {name}");
        }
        for (_, server) in std::mem::take(&mut self.servers) {
            server.signal(Signal::TERM);
            assert_eq!(server.finish().code, Some(0), "the scheduler");
        }
        until_or(PATIENCE, || self.processes().is_empty().then_some(()))
            .unwrap_or_else(|| panic!("processes are left: {:#?}", self.processes()));
    }

    fn tell(&self) {
        let daemons = self.agents.iter().map(|(name, agent)| (name.as_str(), agent));
        let daemons = daemons.chain(self.servers.values().map(|server| ("server", server)));
        for (name, daemon) in daemons {
            let log = daemon.err();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("---- {name} ----\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

fn urls(scheme: &str, ports: &[u16]) -> String {
    ports.iter().map(|port| format!("{scheme}://127.0.0.1:{port}")).collect::<Vec<_>>().join(",")
}

impl Drop for Pool {
    fn drop(&mut self) {
        let failed_before = thread::panicking();
        let ended =
            (!failed_before).then(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.end())));
        if !matches!(ended, Some(Ok(()))) {
            self.tell();
            self.agents.clear();
            self.servers.clear();
            kill_all_of(self.dir());
        }
        if let Some(Err(panic)) = ended {
            std::panic::resume_unwind(panic);
        }
    }
}
