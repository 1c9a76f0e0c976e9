//! A pool of its own for a demonstration or a measurement: a scheduler and agents as processes of this program, on
//! loopback, in a temporary directory, of which nothing is left in the end.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{env, fs, process};

use anyhow::{Context, Result, bail, ensure};
use aquifer_proto::v1;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::client::{Client, Global, Patience, Pool};
use crate::output::aside;

/// A running pool.
pub struct Trial {
    /// All that it writes.
    pub directory: PathBuf,
    /// URL of the scheduler; empty before it runs.
    pub server: String,
    /// The connection to it.
    pub pool: Pool,
    global: Global,
    scheduler: Option<Child>,
    agents: Vec<(String, Child)>,
    /// The first port of every block that its agents give to workers.
    blocks: Vec<TcpListener>,
}

/// Ports of workers, above those of an agent by default and below those that systems choose: blocks, of which a trial holds the first
/// port of each that it uses, so that several at once do not mix.
const PORTS: std::ops::Range<u16> = 29_000..32_500;
const BLOCK: u16 = 250;

impl Trial {
    /// An empty directory, nothing running yet.
    pub fn new(name: &str, global: &Global) -> Result<Trial> {
        let directory = env::temp_dir().join(format!("aquifer-{name}-{}", process::id()));
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        // A secret in the environment is for another pool.
        let global = Global { server: Some("http://127.0.0.1:1".into()), token_file: None, ..global.plain() };
        let pool = Pool::new(&global)?;
        Ok(Trial {
            directory,
            server: String::new(),
            pool,
            global,
            scheduler: None,
            agents: Vec::new(),
            blocks: Vec::new(),
        })
    }

    /// Ports for the workers of one agent, `FIRST-LAST`, which no other trial on this machine uses meanwhile.
    ///
    /// # Errors
    /// When all are in use.
    pub fn ports(&mut self) -> Result<String> {
        let mut blocks = PORTS.step_by(BLOCK.into());
        let (first, held) = blocks
            .find_map(|first| Some((first, TcpListener::bind(("127.0.0.1", first)).ok()?)))
            .with_context(|| format!("all ports for workers are in use: {} to {}", PORTS.start, PORTS.end))?;
        self.blocks.push(held);
        Ok(format!("{}-{}", first + 1, first + BLOCK - 1))
    }

    /// Where its scheduler is.
    pub fn global(&self) -> &Global {
        &self.global
    }

    /// The client.
    pub fn client(&self) -> Client {
        self.pool.client()
    }

    /// Starts the scheduler, or starts it again on its store. `extra`: further flags.
    pub async fn start_scheduler(&mut self, extra: &[&str]) -> Result<()> {
        let data = self.directory.join("server");
        let listen = self.server.strip_prefix("http://").unwrap_or("127.0.0.1:0").to_string();
        let data = data.to_string_lossy();
        let mut arguments = vec!["server", "--listen", &listen, "--data-dir", &data];
        // All agents and clients of a measurement are at one address.
        arguments.extend(["--connections", "1000000", "--client-connections", "1000000"]);
        arguments.extend(["--client-calls", "100000", "--client-rate", "0"]);
        arguments.extend(extra);
        let mut scheduler = self.spawn("server", &arguments)?;
        let stdout = scheduler.stdout.take().expect("it is piped");
        self.scheduler = Some(scheduler);
        let line = BufReader::new(stdout).lines().next_line().await?.unwrap_or_default();
        let Some(address) = line.strip_prefix("listening on ") else {
            bail!("the scheduler did not start: {}", self.log_of("server"))
        };
        self.server = format!("http://{address}");
        self.global.server = Some(self.server.clone());
        self.pool = Pool::new(&self.global)?;
        // With etcd it listens before it leads.
        let first = async |mut client: Client| client.status(v1::StatusRequest {}).await;
        self.pool.call(Patience::Long, first).await?;
        Ok(())
    }

    /// Kills the scheduler as a crash would.
    pub async fn kill_scheduler(&mut self) -> Result<()> {
        if let Some(mut scheduler) = self.scheduler.take() {
            scheduler.kill().await?;
        }
        Ok(())
    }

    /// Kills all of it as a power cut would: scheduler, agents, supervisors and workers.
    pub async fn kill_everything(&mut self) -> Result<()> {
        let processes = self.worker_pids();
        for (_, agent) in &mut self.agents {
            agent.kill().await?;
        }
        for pid in processes.into_iter().filter_map(Pid::from_raw) {
            _ = kill_process(pid, Signal::KILL); // It may have ended by itself.
        }
        self.agents.clear();
        self.kill_scheduler().await
    }

    /// Starts an agent, and waits until it has reported. `extra`: further flags.
    pub async fn start_agent(&mut self, node: &str, extra: &[&str]) -> Result<()> {
        let state = self.directory.join(node);
        let state = state.to_string_lossy();
        let server = self.server.clone();
        let mut arguments = vec!["agent", "--server", &server, "--node", node, "--state-dir", &state];
        arguments.extend(["--measure", "never", "--run-as", "agent"]);
        arguments.extend(extra);
        let agent = self.spawn(node, &arguments)?;
        self.agents.push((node.into(), agent));
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.is_up(node).await? {
            ensure!(Instant::now() < deadline, "agent {node} did not report: {}", self.log_of(node));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn is_up(&self, name: &str) -> Result<bool> {
        let nodes = self.client().list_nodes(v1::ListNodesRequest::default()).await?.into_inner().nodes;
        Ok(nodes.iter().any(|node| node.name == name && node.up))
    }

    /// Starts this program as another one, out of reach of the terminal's Ctrl-C.
    fn spawn(&self, name: &str, arguments: &[&str]) -> Result<Child> {
        let log = self.directory.join(format!("{name}.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(env::current_exe()?);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0);
        // Settings of the surroundings are for other daemons than these.
        for (key, _) in env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("AQUIFER_")) {
            command.env_remove(key);
        }
        command.spawn().with_context(|| format!("cannot start {name}"))
    }

    /// The last lines of a daemon's log.
    pub fn log_of(&self, name: &str) -> String {
        last_lines(&self.directory.join(format!("{name}.log")))
    }

    /// Directory of a worker's files.
    pub fn run_dir(&self, node: &str, job: u64, attempt: u32, rank: u32) -> PathBuf {
        self.directory.join(node).join(format!("runs/job-{job}.{attempt}/{rank}"))
    }

    /// Process ids of the daemons.
    pub fn pids(&self) -> Vec<u32> {
        let agents = self.agents.iter().map(|(_, child)| child);
        self.scheduler.iter().chain(agents).filter_map(Child::id).collect()
    }

    /// Ends everything, and sees to it that nothing is left.
    ///
    /// # Errors
    /// When a process does not end.
    pub async fn tear_down(&mut self) -> Result<()> {
        if self.scheduler.is_some() && !self.server.is_empty() {
            let cancelled = self.cancel_all().await;
            cancelled.unwrap_or_else(|error| aside(format!("jobs could not be cancelled: {error}")));
        }
        let workers = self.worker_pids();
        for child in self.agents.iter_mut().map(|(_, child)| child).chain(&mut self.scheduler) {
            if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
                _ = kill_process(pid, Signal::TERM); // It may have ended by itself.
            }
            if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
                child.kill().await?;
            }
        }
        // What runs nothing ends with its agent, but a moment later.
        let lives = |pid: &i32| Pid::from_raw(*pid).is_some_and(|pid| test_kill_process(pid).is_ok());
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut left = workers;
        loop {
            left.retain(lives);
            if left.is_empty() {
                break;
            }
            let files = self.directory.display();
            ensure!(Instant::now() < deadline, "processes {left:?} are left; files are in {files}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        fs::remove_dir_all(&self.directory)?;
        Ok(())
    }

    async fn cancel_all(&self) -> Result<()> {
        use v1::JobState::{Pending, Running, Starting, Stopping};
        let states = [Pending, Starting, Running, Stopping].map(i32::from).to_vec();
        let request = || v1::ListRequest { states: states.clone(), page_size: 1000, ..Default::default() };
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            let jobs = self.client().list(request()).await?.into_inner().jobs;
            if jobs.is_empty() {
                return Ok(());
            }
            for job in jobs.iter().filter(|job| job.state() != Stopping) {
                let request = v1::CancelRequest { job: job.id, whole_array: job.array_first.is_some() };
                _ = self.client().cancel(request).await; // It may have ended meanwhile.
            }
            ensure!(Instant::now() < deadline, "{} jobs do not end", jobs.len());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Process of a rank's worker, which stands in its run directory.
    pub fn worker_pid(&self, job: u64, attempt: u32, rank: &v1::Rank) -> Option<i32> {
        pid(&self.run_dir(&rank.node, job, attempt, rank.rank), "worker")
    }

    /// Processes of all workers and supervisors whose run directories are still there.
    fn worker_pids(&self) -> BTreeSet<i32> {
        let nodes = self.agents.iter().map(|(node, _)| self.directory.join(node).join("runs"));
        let runs = nodes.flat_map(|runs| subdirectories(&runs));
        let pids = runs
            .flat_map(|run| subdirectories(&run))
            .flat_map(|rank| ["worker", "supervisor"].map(|key| pid(&rank, key)));
        pids.flatten().collect()
    }
}

fn pid(run_dir: &Path, key: &str) -> Option<i32> {
    let text = fs::read_to_string(run_dir.join("pid.json")).ok()?;
    Some(serde_json::from_str::<Value>(&text).ok()?[key].as_i64()? as i32)
}

/// The last lines of a file, in one.
pub fn last_lines(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(6)..].join(" / ")
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}
