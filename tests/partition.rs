//! Networks that fail: the scheduler and every agent have a network namespace of their own, with links between them that
//! are cut, lose packets and come back. One more link is slow.
//!
//! Needs root, `ip` and `iptables`; where namespaces cannot be had, the tests say so and pass. Times are printed with
//! `--nocapture`.

mod partition {
    pub mod net;
    pub mod slow;
}
mod pool;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use aquifer_proto::v1;
use partition::net::{Net, Way, pass};
use partition::slow;
use pool::{Client, Running, is_alive, kill_all_of, shell, start, until};
use tempfile::TempDir;
use v1::JobState;

/// Of nodes; agents are told 4.8 s, and speak every 0.8 s.
const LEASE: &str = "6s";
const GRANTED: Duration = Duration::from_millis(4800);
const HEARTBEAT: Duration = Duration::from_millis(800);
/// What a link that is back costs above a heartbeat, on a machine that does other things as well: a connection and a report.
const CONNECTING: Duration = Duration::from_millis(1500);

const PORT: u16 = 7700;
const TOKEN: &str = "of-a-test";

/// A pool with links that can fail.
struct Parted {
    net: Net,
    home: TempDir,
    client: Client,
    daemons: BTreeMap<String, Running>,
    /// Namespaces of nodes, and the scheduler's address there.
    nodes: BTreeMap<String, (String, String)>,
}

impl Parted {
    /// A scheduler; `None`: there can be no namespaces, which is said.
    fn begin() -> Option<Parted> {
        let net = match Net::new() {
            Ok(net) => net,
            Err(why) => {
                // Not captured, as what is printed would be.
                _ = writeln!(std::io::stderr(), "skipped: no network of namespaces: {why}");
                return None;
            }
        };
        let home = TempDir::with_prefix("aquifer-test-").expect("a temporary directory");
        fs::create_dir(home.path().join("home")).expect("a home");
        fs::write(home.path().join("token"), TOKEN).expect("a token file");
        let client = Client::new(&format!("http://{}:{PORT}", net.to_us()), Some(TOKEN));
        let mut pool = Parted { net, home, client, daemons: BTreeMap::new(), nodes: BTreeMap::new() };
        let (listen, data) = (format!("0.0.0.0:{PORT}"), pool.file("server"));
        let flags = ["server", "--listen", &listen, "--data-dir", &data, "--lease", LEASE];
        let hub = pool.net.hub();
        pool.run("server", Some(&hub), &flags);
        pool.daemons.get_mut("server").expect("it was started").until_out("listening on ");
        Some(pool)
    }

    fn file(&self, name: &str) -> String {
        self.home.path().join(name).to_str().expect("text").into()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    fn run(&mut self, name: &str, namespace: Option<&str>, words: &[&str]) {
        let plain = pool::program(self.home.path(), words);
        let mut command = match namespace {
            None => plain,
            Some(namespace) => {
                let mut inside = Command::new("ip");
                inside.args(["netns", "exec", namespace]).arg(plain.get_program()).args(plain.get_args());
                inside.env_clear().current_dir(self.home.path());
                inside.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
                inside
            }
        };
        command.args(["--token-file", &self.file("token")]);
        self.daemons.insert(name.into(), start(self.home.path(), name, command));
    }

    /// A node behind a link of its own.
    fn agent(&mut self, name: &str) {
        let place = self.net.join(name).expect("another namespace");
        self.nodes.insert(name.into(), place);
        self.agent_again(name);
    }

    /// The next agent of a node that is there.
    fn agent_again(&mut self, name: &str) {
        let (namespace, scheduler) = self.nodes[name].clone();
        self.agent_at(name, Some(&namespace), &format!("http://{scheduler}:{PORT}"));
    }

    fn agent_at(&mut self, name: &str, namespace: Option<&str>, url: &str) {
        let state = self.file(name);
        let mut words = vec!["agent", "--server", url, "--node", name, "--state-dir", &state];
        words.extend(["--limits", "off", "--devices", "none", "--cpus", "4", "--memory", "4GiB"]);
        words.extend(["--measure", "never", "--run-as", "agent"]);
        self.run(name, namespace, &words);
        self.until_connected(name);
    }

    fn is_connected(&self, name: &str) -> bool {
        self.client.node(name).is_some_and(|node| node.up && !node.version.is_empty())
    }

    fn until_connected(&self, name: &str) {
        until("the node is up", || self.is_connected(name).then_some(()));
    }

    /// A job that runs until it may end, and finds out whether another worker of it lives.
    fn exclusive(&self) -> v1::JobSpec {
        let script = "[ -e $LEDGER ] && kill -0 $(tail -1 $LEDGER) 2>/dev/null && echo overlap >> $LEDGER; \
                      echo $$ >> $LEDGER; while ! [ -e $GO ]; do sleep 0.02; done";
        let mut spec = shell(script);
        spec.env = [("LEDGER".into(), self.file("ledger")), ("GO".into(), self.file("go"))].into();
        spec
    }

    /// Process of the job's only worker so far.
    fn first_worker(&self) -> i32 {
        until("the first line", || self.read("ledger").lines().next()?.parse().ok())
    }

    /// Lets the job end, and looks at what it found.
    fn end(&self, job: u64, attempt: u32) {
        fs::write(self.file("go"), "").expect("a file");
        let ended = self.client.until_succeeded(job);
        assert_eq!((ended.attempt, ended.failures), (attempt, 0), "{}", ended.last_failure);
        let ledger = self.read("ledger");
        assert!(!ledger.contains("overlap"), "two workers at a time: {ledger}");
        assert_eq!(ledger.lines().count() as u32, attempt, "one worker an attempt: {ledger}");
    }
}

impl Drop for Parted {
    fn drop(&mut self) {
        if thread::panicking() {
            for (name, daemon) in &self.daemons {
                eprintln!("---- {name} ----\n{}", daemon.err());
            }
        }
        self.daemons.clear();
        kill_all_of(self.home.path());
    }
}

/// The link of a node is cut for longer than its lease.
fn a_cut_moves_the_job_and_heals(way: Way) {
    let Some(mut pool) = Parted::begin() else { return };
    pool.agent("a");
    let job = pool.client.submit(pool.exclusive());
    pool.client.until_state(job, JobState::Running);
    let worker = pool.first_worker();
    pool.agent("b");

    let cut = Instant::now();
    pool.net.cut("a", way);
    until("the worker ends", || (!is_alive(worker)).then_some(()));
    let ended = cut.elapsed();
    let again = pool
        .client
        .until_job(job, "placed again", |job| job.attempt == 2 && job.state() == JobState::Running);
    let replaced = cut.elapsed();
    assert_eq!(again.ranks[0].node, "b");
    assert!(ended < replaced, "the worker ended after {ended:?}, its successor ran after {replaced:?}");
    // The last message before the cut may be as old as a heartbeat.
    assert!(GRANTED - HEARTBEAT <= replaced + HEARTBEAT, "it was replaced after {replaced:?}");

    // By now the kernel tries to get through an old connection every 13 s.
    pass(Duration::from_secs(15).saturating_sub(cut.elapsed()));
    let healed = Instant::now();
    pool.net.heal("a");
    pool.until_connected("a");
    let back = healed.elapsed();
    println!(
        "{way:?}: worker ended after {ended:.1?}, replaced after {replaced:.1?}, back {back:.2?} after the link"
    );
    assert!(back < HEARTBEAT + CONNECTING, "{back:?}");
    pool.end(job, 2);
}

#[test]
fn a_link_that_is_cut_both_ways() {
    a_cut_moves_the_job_and_heals(Way::Both);
}

#[test]
fn a_link_on_which_the_scheduler_hears_nothing() {
    a_cut_moves_the_job_and_heals(Way::Up);
}

#[test]
fn a_link_on_which_the_agent_hears_nothing() {
    a_cut_moves_the_job_and_heals(Way::Down);
}

#[test]
fn a_job_that_keeps_runs_on_behind_a_cut_also_without_its_agent() {
    let Some(mut pool) = Parted::begin() else { return };
    pool.agent("a");
    let kept = v1::JobSpec { on_partition: v1::OnPartition::Keep.into(), ..pool.exclusive() };
    let (job, other) = (pool.client.submit(kept), pool.client.submit(shell("sleep 1000")));
    pool.client.until_state(job, JobState::Running);
    pool.client.until_state(other, JobState::Running);
    let worker = pool.first_worker();
    pool.agent("b");

    pool.net.cut("a", Way::Both);
    pool.client.until_job(other, "placed again", |it| it.attempt == 2 && it.state() == JobState::Running);
    let explained = pool.client.call(async |mut stub| stub.explain(v1::ExplainRequest { job }).await);
    let explained = explained.expect("an answer");
    assert_eq!(explained.reason, "out-of-reach", "{}", explained.sentence);
    pool.daemons.remove("a");
    pass(GRANTED);
    assert!(is_alive(worker), "it was ended");
    pool.net.heal("a");
    pool.agent_again("a");
    pass(2 * HEARTBEAT);
    assert!(is_alive(worker), "it was ended");
    assert_eq!(pool.client.job(job).attempt, 1);
    pool.end(job, 1);
}

#[test]
fn what_was_given_up_ends_when_its_link_is_back() {
    let Some(mut pool) = Parted::begin() else { return };
    pool.agent("a");
    let job =
        pool.client.submit(v1::JobSpec { on_partition: v1::OnPartition::Keep.into(), ..pool.exclusive() });
    let worker = pool.first_worker();
    pool.agent("b");
    pool.net.cut("a", Way::Both);
    until("the node is lost", || pool.client.node("a").filter(|node| !node.up));
    pass(Duration::from_secs(1));
    assert_eq!(pool.client.job(job).attempt, 1, "nobody gave it up");
    pool.client
        .call(async |mut stub| stub.drain(v1::NodeRequest { name: "a".into(), device: None }).await)
        .expect("drained");
    let again = pool.client.until_job(job, "placed again", |it| it.attempt == 2);
    assert_eq!(again.ranks[0].node, "b");
    assert!(is_alive(worker), "nothing reaches it");
    pool.net.heal("a");
    until("the one that was given up ends", || (!is_alive(worker)).then_some(()));
}

#[test]
fn a_link_that_flaps_moves_nothing() {
    let Some(mut pool) = Parted::begin() else { return };
    pool.agent("a");
    let job = pool.client.submit(pool.exclusive());
    pool.client.until_state(job, JobState::Running);
    pool.agent("b");
    for _ in 0..6 {
        pool.net.cut("a", Way::Both);
        pass(Duration::from_millis(1000));
        pool.net.heal("a");
        pass(Duration::from_millis(1500));
    }
    assert!(is_alive(pool.first_worker()), "it was ended");
    pool.end(job, 1);
}

#[test]
fn a_link_that_loses_every_tenth_packet_moves_nothing() {
    let Some(mut pool) = Parted::begin() else { return };
    pool.agent("a");
    pool.net.lose("a", "0.1");
    let job = pool.client.submit(pool.exclusive());
    pool.client.until_state(job, JobState::Running);
    pool.first_worker();
    pool.agent("b");
    let begun = Instant::now();
    let mut jobs = 0;
    while begun.elapsed() < Duration::from_secs(12) {
        let job = pool.client.submit(shell("true"));
        pool.client.until_succeeded(job);
        jobs += 1;
    }
    let lost = pool.net.lost("a");
    println!("10 % loss: {jobs} jobs came and went, {lost} packets were lost");
    assert!(10 < lost, "{lost} packets were lost");
    pool.end(job, 1);
}

#[test]
fn a_link_of_256_kbit_a_second_moves_nothing_though_a_log_fills_it() {
    let Some(mut pool) = Parted::begin() else { return };
    pool.agent("a");
    if let Err(why) = pool.net.narrow("a", "256kbit") {
        _ = writeln!(std::io::stderr(), "skipped: no link with little bandwidth: {why}");
        return;
    }
    let job = pool.client.submit(pool.exclusive());
    pool.client.until_state(job, JobState::Running);
    pool.first_worker();
    let long = pool.client.submit(shell("head -c 700000 /dev/zero | tr '\\0' x"));
    pool.client.until_succeeded(long);
    let begun = Instant::now();
    let length = pool.client.log(long).len();
    let took = begun.elapsed();
    println!("256 kbit/s: a log of 700 kB took {took:.1?}");
    assert_eq!(length, 700_000);
    assert!(2 * GRANTED < took, "the link is narrow: {took:?}");
    assert!(pool.is_connected("a") && is_alive(pool.first_worker()));
    let log = pool.daemons["a"].err();
    assert_eq!(log.matches("session with the scheduler ended").count(), 0, "{log}");
    pool.end(job, 1);
}

#[test]
fn a_link_with_a_delay_of_200_ms_moves_nothing() {
    let Some(mut pool) = Parted::begin() else { return };
    let to = format!("{}:{PORT}", pool.net.to_us());
    let port = slow::proxy(to, Duration::from_millis(200));
    pool.agent_at("a", None, &format!("http://127.0.0.1:{port}"));
    let job = pool.client.submit(pool.exclusive());
    pool.client.until_state(job, JobState::Running);
    let begun = Instant::now();
    let short = pool.client.submit(shell("true"));
    pool.client.until_succeeded(short);
    let took = begun.elapsed();
    println!("200 ms each way: `true` took {took:.2?}");
    assert!(Duration::from_millis(400) <= took, "the link is slow: {took:?}");
    pass(2 * GRANTED);
    assert!(pool.is_connected("a") && is_alive(pool.first_worker()));
    pool.end(job, 1);
}
