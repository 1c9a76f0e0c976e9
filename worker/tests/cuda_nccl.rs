//! Trainings whose members' cards send each other their sums through NCCL, which is one that is none (`fake_cuda/nccl.cpp`): the bits of one member
//! alone, whatever becomes of it.

#[path = "support/fake_cuda.rs"]
mod fake_cuda;
mod support;

use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use support::{Ended, TempDir, Worker, free_port};

#[test]
fn worker_process() {
    support::become_worker_if_asked();
}

/// Bytes of a sum: of all parameters of the model, and a loss.
const SUM: usize = 4 * (821_376 + 1);
const STEPS: u64 = 3;
/// What is said once sums go from card to card.
const JOINED: &str = "rank 1: sums go from card to card, through NCCL 2.27.3";
/// Before the reason why they do not.
const HOSTS: &str = "sums go through the memory of the hosts: ";

/// A training by members on a card each of one machine.
struct Training<'a> {
    dir: &'a TempDir,
    data: PathBuf,
    name: String,
    /// None for the machine's own cards.
    libraries: Option<&'a Path>,
    options: Vec<&'a str>,
    environment: Vec<(&'a str, &'a str)>,
    steps: u64,
    port: u16,
}

impl<'a> Training<'a> {
    fn new(dir: &'a TempDir, name: &str, libraries: &'a Path) -> Training<'a> {
        Training::on(dir, name, Some(libraries))
    }

    fn on(dir: &'a TempDir, name: &str, libraries: Option<&'a Path>) -> Training<'a> {
        let (options, environment) = (Vec::new(), Vec::new());
        let (data, name, port) = (dir.text(), name.into(), free_port());
        Training { dir, data, name, libraries, options, environment, steps: STEPS, port }
    }

    fn with(mut self, name: &'a str, value: &'a str) -> Training<'a> {
        self.environment.push((name, value));
        self
    }

    fn option(mut self, options: &[&'a str]) -> Training<'a> {
        self.options.extend(options);
        self
    }

    fn checkpoints(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// What a rank writes of: bytes over the link of its card, operations of its NCCL.
    fn log(&self, what: &str, rank: usize) -> PathBuf {
        self.dir.join(&format!("{}-{what}-{rank}", self.name))
    }

    fn spawn(&self, rank: usize, ranks: usize, more: &[(&str, &str)]) -> Worker {
        let (data, checkpoints, steps) = (&self.data, self.checkpoints(), self.steps.to_string());
        let mut line = vec!["train", "--data", data.to_str().unwrap(), "--device", "cuda", "--steps", &steps];
        line.extend(["--checkpoint-dir", checkpoints.to_str().unwrap(), "--warmup", "1"]);
        line.extend(["--context", "8", "--batch", "3"]);
        line.extend(&self.options);
        let [rank_text, ranks_text, port] = [rank, ranks, self.port.into()].map(|number| number.to_string());
        let [link, nccl] = ["link", "nccl"].map(|what| self.log(what, rank));
        let mut environment = vec![
            ("RANK", rank_text.as_str()),
            ("LOCAL_RANK", &rank_text),
            ("WORLD_SIZE", &ranks_text),
            ("LOCAL_WORLD_SIZE", &ranks_text),
            ("MASTER_PORT", &port),
            ("FAKE_CUDA_LINK", link.to_str().unwrap()),
            ("FAKE_NCCL_LOG", nccl.to_str().unwrap()),
        ];
        environment.extend(match self.libraries {
            Some(libraries) => vec![
                ("LD_LIBRARY_PATH", libraries.to_str().unwrap()),
                ("AQUIFER_KERNEL_CACHE", "off"),
                ("FAKE_CUDA_DEVICES", "3"),
            ],
            None => vec![("CUDA_VISIBLE_DEVICES", "0,1")],
        });
        environment.extend(&self.environment);
        environment.extend(more);
        Worker::spawn(&line, &environment)
    }

    /// What all ranks said; all went well.
    fn run(&self, ranks: usize) -> Vec<String> {
        self.run_with(ranks, &[])
    }

    /// As [`run`](Training::run), with something in the environment of rank 1 alone.
    fn run_with(&self, ranks: usize, second: &[(&str, &str)]) -> Vec<String> {
        let spawn = |rank| self.spawn(rank, ranks, if rank == 1 { second } else { &[] });
        let workers: Vec<Worker> = (0..ranks).map(spawn).collect();
        workers.into_iter().map(|worker| checked(worker.end())).collect()
    }

    /// Parameters and moments at the end.
    fn state(&self) -> [Vec<u8>; 2] {
        let step = self.checkpoints().join(format!("step-{:06}", self.steps));
        ["model", "optimizer"].map(|file| fs::read(step.join(format!("{file}.safetensors"))).unwrap())
    }

    /// Bytes up to the card of a rank and down from it.
    fn link(&self, rank: usize) -> [usize; 2] {
        let text = fs::read_to_string(self.log("link", rank)).unwrap();
        let numbers: Vec<usize> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    }

    /// How many operations of the NCCL of a rank were, or are, these.
    fn operations(&self, rank: usize, what: &str) -> usize {
        let log = fs::read_to_string(self.log("nccl", rank)).unwrap_or_default();
        log.lines().filter(|line| line.split(' ').next() == Some(what)).count()
    }
}

/// What one has said that ended well, and used card and NCCL as they are to be used.
fn checked(ended: Ended) -> String {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("fake"), "{}", ended.stderr);
    ended.stdout
}

/// The state after [`STEPS`] steps of one member alone.
fn alone(libraries: &Path) -> &'static [Vec<u8>; 2] {
    static STATE: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    STATE.get_or_init(|| alone_for(libraries, STEPS))
}

fn alone_for(libraries: &Path, steps: u64) -> [Vec<u8>; 2] {
    let dir = TempDir::new();
    let mut training = Training::new(&dir, "alone", libraries);
    training.steps = steps;
    training.run(1);
    training.state()
}

#[test]
fn cards_that_send_each_other_their_sums_give_the_bits_of_one_and_of_sums_through_hosts() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    for ranks in [2, 3] {
        let cards = Training::new(&dir, &format!("cards-{ranks}"), &libraries);
        // What is read too early has no value yet, what is written too early another one.
        let cards = if ranks == 2 { cards } else { cards.with("FAKE_NCCL_PAUSE", "300") };
        let said = cards.run(ranks);
        assert!(said[0].contains(JOINED), "{}", said[0]);
        assert!(cards.state() == *alone(&libraries), "{ranks} ranks");
        for rank in 1..ranks {
            // The state of the start comes over the connection; no sum leaves the card, and none is brought to it.
            let [up, down] = cards.link(rank);
            println!("{ranks} ranks, rank {rank}: {up} bytes up, {down} down, in all {STEPS} steps");
            assert!(up < 3 * SUM + SUM / 2 && down < SUM / 8, "{up} up, {down} down");
            let (sent, received) = (cards.operations(rank, "sent"), cards.operations(rank, "received"));
            println!("{sent} sums sent, {received} received");
            // On a busy machine another member may have computed its shards.
            assert!(0 < sent && received == STEPS as usize, "{sent} sent, {received} received");
        }
        // Three vectors for each who joins, and a checkpoint of as many.
        let [up, down] = cards.link(0);
        assert!(up < 3 * SUM + SUM / 2 && down < 3 * ranks * SUM + SUM / 2, "{up} up, {down} down");
    }
    let hosts = Training::new(&dir, "hosts", &libraries).option(&["--exchange", "host"]);
    let said = hosts.run(2);
    assert!(!said[0].contains("sums go"), "{}", said[0]);
    assert!(hosts.state() == *alone(&libraries));
    let [up, down] = hosts.link(1);
    println!("through the hosts, rank 1: {up} bytes up, {down} down");
    assert!(STEPS as usize * SUM < down && (3 + STEPS as usize) * SUM < up, "{up} up, {down} down");
    assert_eq!(hosts.operations(1, "send"), 0);
}

/// A training of two ranks says why sums go through the hosts.
fn says_why(training: &Training, second: &[(&str, &str)], reason: &str) {
    let said = training.run_with(2, second).concat();
    let line = format!("{HOSTS}{reason}");
    assert!(said.contains(&line), "{}: {line} is not in {said}", training.name);
}

/// A library of one's own in the place of NCCL.
fn instead(dir: &TempDir, libraries: &Path, name: &str, source: Option<&str>) -> PathBuf {
    let own = dir.join(name);
    fs::create_dir_all(&own).unwrap();
    for library in ["libcuda.so.1", "libcuda.so", "libnvrtc.so", "libcublasLt.so"] {
        std::os::unix::fs::symlink(libraries.join(library), own.join(library)).unwrap();
    }
    if let Some(source) = source {
        fs::write(own.join("nccl.cpp"), source).unwrap();
        let compiler = Command::new("c++")
            .args(["-shared", "-fPIC", "-o"])
            .args([own.join("libnccl.so.2"), own.join("nccl.cpp")])
            .status();
        assert!(compiler.unwrap().success());
    }
    own
}

#[test]
fn where_no_nccl_is_of_use_sums_go_through_the_hosts_and_it_is_said_why() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let (dir, expected) = (TempDir::new(), alone_for(&libraries, 1));
    let without = instead(&dir, &libraries, "without", None);
    let source = "extern \"C\" int ncclGetVersion(int* version) { return *version = 22703, 0; }\n\
                  extern \"C\" int ncclGetUniqueId(void*) { return 0; }\n";
    let part = instead(&dir, &libraries, "part", Some(source));
    let fails = "NCCL: unhandled system error (run with NCCL_DEBUG=INFO for details)";
    // Libraries, something in the environment of both ranks, of the second one alone, and what is said.
    let cases = [
        (
            &libraries,
            ("FAKE_NCCL_VERSION", "21304"),
            &[][..],
            "NCCL 2.13.4 is too old: it must be 2.14.0 at least",
        ),
        (
            &libraries,
            ("A", "1"),
            &[("FAKE_NCCL_VERSION", "22809")],
            "it has NCCL 2.28.9, this rank NCCL 2.27.3",
        ),
        (&libraries, ("A", "1"), &[("LOCAL_RANK", "0")], "both ranks are on one card"),
        (&libraries, ("FAKE_NCCL_FAIL", "start"), &[], fails),
        (&part, ("A", "1"), &[], "libnccl.so.2 has no ncclCommInitRankConfig: this NCCL is too old"),
        (&without, ("A", "1"), &[], "no NCCL: libnccl.so.2 was not found"),
    ];
    // The machine may have one of its own.
    let is_there = Path::new("/usr/lib/x86_64-linux-gnu/libnccl.so.2").exists();
    for (libraries, (name, value), second, reason) in cases.into_iter().take(if is_there { 5 } else { 6 }) {
        let mut training = Training::new(&dir, reason, libraries).with(name, value);
        training.steps = 1;
        says_why(&training, second, &format!("{reason}\n"));
        assert!(training.state() == expected, "{reason}");
    }
}

#[test]
fn sums_that_do_not_come_through_nccl_come_through_the_hosts() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    for (name, variable, reason) in [
        ("hanging", "FAKE_NCCL_HANG", "nothing has moved for 2 s\n"),
        ("lost", "FAKE_NCCL_FAIL", "NCCL: remote process exited or there was a network error\n"),
    ] {
        let training = Training::new(&dir, name, &libraries).with(variable, "3");
        says_why(&training, &[], reason);
        assert!(training.state() == *alone(&libraries), "{name}");
        let (sent, received) = (training.operations(1, "sent"), training.operations(1, "received"));
        assert!(0 < sent && 0 < received, "{name}: {sent} sums sent and {received} received before");
        assert!(received < STEPS as usize, "{name}: {received} received");
    }
}

#[test]
fn a_card_without_room_for_the_sums_of_others_has_them_come_through_its_host() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    // A sixteenth of 1 GiB is to be left.
    let training = Training::new(&dir, "full", &libraries);
    let said = training.run_with(2, &[("FAKE_CUDA_FREE", &(64 << 20).to_string())]);
    assert!(said[0].contains(JOINED), "{}", said[0]);
    assert!(training.state() == *alone(&libraries));
    assert_eq!(training.operations(1, "receive"), 0);
    assert!(0 < training.operations(1, "sent"), "it has its own on its card");
}

/// Two members that may come and go.
fn two_members(training: &Training) -> [Worker; 2] {
    let ports = [free_port(), free_port()];
    let member = |rank: usize| json!({"rank": rank, "address": format!("127.0.0.1:{}", ports[rank])});
    let list = json!({"epoch": 1, "members": [member(0), member(1)]}).to_string();
    [0, 1].map(|rank| {
        let run_dir = training.dir.join(&format!("{}-run-{rank}", training.name));
        fs::create_dir_all(&run_dir).unwrap();
        fs::write(run_dir.join("members.json"), &list).unwrap();
        training.spawn(rank, 2, &[("AQUIFER_RUN_DIR", run_dir.to_str().unwrap())])
    })
}

#[test]
fn cards_that_never_join_are_given_up_and_no_step_waits_for_them() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    let training = Training::new(&dir, "never", &libraries).with("FAKE_NCCL_HANG", "start");
    let training = training.option(&["--join-timeout", "1"]);
    let [mut first, second] = two_members(&training);
    first.wait_for(&format!("rank 1: {HOSTS}nothing has moved for 1 s"));
    for ended in [first.end(), second.end()] {
        checked(ended);
    }
    assert_eq!(training.operations(1, "send"), 0);
    assert!(training.state() == *alone(&libraries));
}

#[test]
fn a_member_that_is_lost_amid_a_transfer_leaves_the_bits_of_one_alone() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    for (name, victim, signal) in
        [("leader-dies", 0, "KILL"), ("follower-dies", 1, "KILL"), ("follower-stops", 1, "STOP")]
    {
        let training = Training::new(&dir, name, &libraries).with("FAKE_NCCL_PAUSE", "400");
        let [first, second] = two_members(&training);
        let (survivor, lost) = if victim == 0 { (second, first) } else { (first, second) };
        // Something has come before, and something is on its way.
        let start = Instant::now();
        let is_amid = || {
            let of = |what| training.operations(victim, what);
            0 < of("sent") && 0 < of("received") && of("sent") + of("received") < of("send") + of("receive")
        };
        while !is_amid() {
            assert!(start.elapsed() < Duration::from_secs(60), "{name}: nothing was moved");
            std::thread::sleep(Duration::from_millis(5));
        }
        lost.signal(signal);
        let said = checked(survivor.end_within(Duration::from_secs(100)));
        assert!(training.state() == *alone(&libraries), "{name}: {said}");
        let of = |what| training.operations(1 - victim, what);
        assert!(
            of("sent") + of("received") < of("send") + of("receive"),
            "{name}: it was not amid a transfer"
        );
    }
}

/// With `AQUIFER_CARD=1`, on a machine with two of NVIDIA's cards, its driver and its NCCL.
#[test]
fn two_cards_of_this_machine_give_the_bits_of_one_and_of_sums_through_hosts() {
    if std::env::var("AQUIFER_CARD").as_deref() != Ok("1") {
        return;
    }
    let dir = TempDir::new();
    let training = |name| Training::on(&dir, name, None);
    let (one, hosts) = (training("one"), training("hosts").option(&["--exchange", "host"]));
    one.run(1);
    hosts.run(2);
    assert!(one.state() == hosts.state(), "through the hosts");
    let two = training("two");
    let said = two.run(2);
    assert!(said[0].contains("rank 1: sums go from card to card, through NCCL "), "{}", said[0]);
    assert!(one.state() == two.state(), "from card to card");
    for victim in [0, 1] {
        let training = training(if victim == 0 { "leader-dies" } else { "follower-dies" });
        let [mut first, second] = two_members(&training);
        first.wait_for("sums go from card to card");
        let (survivor, lost) = if victim == 0 { (second, first) } else { (first, second) };
        lost.signal("KILL");
        checked(survivor.end());
        assert!(one.state() == training.state(), "rank {victim} died");
    }
}
