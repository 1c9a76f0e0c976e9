//! Commands beside workers, as users run them: what they see, how they end, who may.

mod pool;

#[path = "pool/authority.rs"]
mod authority;

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use aquifer_proto::v1::{self, JobState};
use authority::Authority;
use pool::{BINARY, Done, Pool, Running, command, is_alive, program, send, shell, until, until_within};
use rustix::process::Signal;
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// How soon a command is gone that nobody wants any more, on a machine that has much else to do.
const SOON: Duration = Duration::from_secs(15);

/// `aquifer exec` with pipes of the test's own.
fn piped(pool: &Pool, words: &[&str]) -> Child {
    let words = [&["exec"], words].concat();
    let mut command = program(pool.dir(), &words);
    command.env("AQUIFER_SERVER", pool.url()).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.stderr(Stdio::piped()).spawn().expect("the binary runs")
}

/// Gives it an input to its end, and returns how it ended.
fn fed(mut child: Child, input: Vec<u8>) -> (Option<i32>, Vec<u8>, String) {
    let mut stdin = child.stdin.take().expect("a pipe");
    let feeder = thread::spawn(move || stdin.write_all(&input));
    let done = child.wait_with_output().expect("it ends");
    _ = feeder.join().expect("no panic"); // It need not be read.
    (done.status.code(), done.stdout, String::from_utf8_lossy(&done.stderr).into_owned())
}

/// A job that runs until it is told to stop, and then ends at once.
fn lasting(pool: &Pool) -> u64 {
    let job = pool.submit(shell("echo $$ > pid; exec sleep 100000"));
    pool.until_state(job, JobState::Running);
    job
}

fn exec(pool: &Pool, words: &[&str]) -> Done {
    pool.aquifer(&[&["exec"], words].concat())
}

/// The number that a command has written into a file.
#[track_caller]
fn pid_in(pool: &Pool, file: &str) -> i32 {
    until("a process has said who it is", || pool.read(file).trim().parse().ok())
}

/// A number that has not changed for so many looks that it will not.
#[track_caller]
fn stands_still(mut look: impl FnMut() -> Option<u64>) -> u64 {
    let (mut last, mut times) = (None, 0);
    until("it stands still", || {
        let now = look();
        times = if now == last { times + 1 } else { 0 };
        last = now;
        now.filter(|_| 50 < times)
    })
}

#[track_caller]
fn refused(done: Done, sentence: &str) {
    assert_eq!((done.code, &done.out[..]), (Some(1), ""), "{done:?}");
    assert!(done.err.contains(sentence), "no {sentence:?} in {done:?}");
}

#[test]
fn a_command_sees_what_the_worker_sees_and_its_ends_are_apart() {
    let pool = Pool::of_one(&[]);
    let mut spec = shell("echo $$ > pid; exec sleep 100000");
    spec.env.insert("WORD".into(), "of the job".into());
    let job = pool.submit(spec);
    pool.until_state(job, JobState::Running);
    let id = format!("job-{job}");
    let script = r#"echo "$PWD"; echo "$WORD $RANK"; test -d "$TMPDIR" && echo "wrong: $1" >&2; cat /proc/self/oom_score_adj; exit 7"#;
    let done = exec(&pool, &[&id, "sh", "-c", script, "-", "--tty"]);
    let dir = pool.run_dir(job, 1, 0).expect("a run directory");
    assert_eq!(done.out, format!("{}\nof the job 0\n1000\n", dir.display()));
    assert_eq!((done.code, &done.err[..]), (Some(7), "wrong: --tty\n"));
    // It is a child of the worker's supervisor, and no worker.
    let supervisor = pool.worker(job, 1, 0).supervisor;
    assert_eq!(exec(&pool, &[&id, "--", "sh", "-c", "echo $PPID"]).ok(), format!("{supervisor}\n"));
    assert_eq!(pool.job(job).ranks.len(), 1);
    // As shells have it.
    assert_eq!(exec(&pool, &[&id, "sh", "-c", "kill -TERM $$"]).code, Some(128 + 15));
    let missing = exec(&pool, &[&id, "no-such-program"]);
    assert_eq!(
        (missing.code, &missing.err[..]),
        (Some(127), "aquifer: program no-such-program: not found in PATH\n")
    );
    assert_eq!(exec(&pool, &[&id, "/etc/passwd"]).code, Some(126));
    let mut pair = shell("exec sleep 100000");
    pair.roles[0].ranks = 2;
    let pair = pool.submit(pair);
    pool.until_state(pair, JobState::Running);
    let both = format!("job-{pair}");
    let rank = |flags: &[&str]| {
        let words = [flags, &[&both[..], "sh", "-c", "echo $RANK"]].concat();
        exec(&pool, &words).ok()
    };
    assert_eq!([rank(&[]), rank(&["--rank", "1"])], ["0\n", "1\n"]);
    pool.cancel(pair);
    // What it leaves running holds nobody up, and lives as long as the worker.
    let left = exec(&pool, &[&id, "sh", "-c", "sleep 100000 & echo $! > left; echo done"]);
    assert_eq!(left.ok(), "done\n");
    let left = pid_in(&pool, &format!("a/runs/job-{job}.1/0/left"));
    assert!(is_alive(left));
    // Who runs what is in the logs, but no argument.
    for log in [pool.server_at(0).err(), pool.agent_log("a")] {
        assert!(log.contains("a command begins beside a worker"), "{log}");
        assert!(log.contains("the pool's token") && log.contains("\"no-such-program\""), "{log}");
        assert!(!log.contains("kill -TERM"), "{log}");
    }
    pool.cancel(job);
    pool.until_state(job, JobState::Cancelled);
    assert!(!is_alive(left), "the worker's end is its end");
}

#[test]
fn input_is_passed_on_to_its_end_and_a_slow_reader_slows_the_command() {
    let pool = Pool::of_one(&[]);
    let job = lasting(&pool);
    let id = format!("job-{job}");
    let input: Vec<u8> = (0..40_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (code, out, err) = fed(piped(&pool, &[&id, "cat"]), input.clone());
    assert_eq!((code, &err[..]), (Some(0), ""));
    assert!(out == input, "{} bytes came back of {}", out.len(), input.len());
    let (code, out, _) = fed(piped(&pool, &[&id, "head", "-c", "3"]), input);
    assert_eq!((code, &out[..]), (Some(0), &[0, 158, 60][..]), "one that reads no more ends all the same");
    let (code, out, _) = fed(piped(&pool, &[&id]), b"echo a shell; exit 4".to_vec());
    assert_eq!((code, &out[..]), (Some(4), &b"a shell\n"[..]));
    // 64 MiB for somebody who reads nothing.
    let script = "echo $$ > slow; exec head -c 67108864 /dev/zero";
    let mut slow = piped(&pool, &[&id, "sh", "-c", script]);
    let pid = pid_in(&pool, &format!("a/runs/job-{job}.1/0/slow"));
    let written = || {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let written = io.lines().find_map(|line| line.strip_prefix("wchar: "))?;
        written.parse::<u64>().ok()
    };
    let on_the_way = stands_still(written);
    assert!(0 < on_the_way && on_the_way < 8 << 20, "{on_the_way} bytes are on the way");
    assert_eq!(exec(&pool, &[&id, "echo", "others"]).ok(), "others\n");
    let mut out = Vec::new();
    slow.stdout.take().expect("a pipe").read_to_end(&mut out).expect("output");
    assert_eq!((slow.wait().expect("it ends").code(), out.len()), (Some(0), 64 << 20));
}

#[test]
fn a_client_that_leaves_takes_its_command_with_it_and_not_the_worker() {
    let pool = Pool::of_one(&[]);
    let job = lasting(&pool);
    let id = format!("job-{job}");
    let worker = pool.worker(job, 1, 0).worker;
    // One that does not hear of it, and one that has left its session; neither reads its input.
    let script =
        "trap '' HUP; setsid sh -c 'echo $$ > far; exec sleep 100000' & echo $$ > near; sleep 100000";
    for signal in [Signal::KILL, Signal::TERM] {
        let mut client = piped(&pool, &[&id, "sh", "-c", script]);
        let mut stdin = client.stdin.take().expect("a pipe");
        let fed: Arc<AtomicU64> = Arc::default();
        let counts = fed.clone();
        let feeder = thread::spawn(move || {
            while stdin.write_all(&[0; 4096]).is_ok() {
                counts.fetch_add(4096, Ordering::Relaxed);
            }
        });
        let run = format!("a/runs/job-{job}.1/0");
        let [near, far] = ["near", "far"].map(|file| pid_in(&pool, &format!("{run}/{file}")));
        let on_the_way = stands_still(|| Some(fed.load(Ordering::Relaxed)));
        assert!(0 < on_the_way && on_the_way < 8 << 20, "{on_the_way} bytes are on the way");
        send(client.id() as i32, signal);
        client.wait().expect("it ends");
        feeder.join().expect("no panic");
        until_within(SOON, "the command is gone", || (!is_alive(near) && !is_alive(far)).then_some(()));
        assert!(is_alive(worker));
        for file in ["near", "far"] {
            fs::remove_file(pool.dir().join(&run).join(file)).expect("a file");
        }
    }
}

#[test]
fn the_workers_end_is_the_commands_and_is_not_put_off_by_it() {
    let pool = Pool::of_one(&[]);
    let mut spec = shell("exec sleep 100000");
    spec.grace_ms = Some(600_000);
    let job = pool.submit(spec);
    pool.until_state(job, JobState::Running);
    let id = format!("job-{job}");
    let script = "trap '' TERM HUP; echo $$ > pid; while :; do sleep 100000; done";
    let client = pool.begin(&["exec", &id, "sh", "-c", script]);
    let pid = pid_in(&pool, &format!("a/runs/job-{job}.1/0/pid"));
    pool.cancel(job);
    pool.until_state(job, JobState::Cancelled);
    assert!(!is_alive(pid));
    refused(client.finish(), "its worker has ended, and all beside it");
    refused(exec(&pool, &[&id, "ls"]), &format!("{id} has ended (cancelled)"));
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let mut pool = Pool::of_one(&[]);
    let job = lasting(&pool);
    let id = format!("job-{job}");
    refused(
        exec(&pool, &[&id, "--rank", "3", "ls"]),
        &format!("{id} has no rank 3 that runs: those that do are 0"),
    );
    refused(exec(&pool, &["job-77", "ls"]), "there is no job-77");
    let mut waits = command(&["true"]);
    waits.roles[0].request.get_or_insert_default().cpus_milli = 400_000;
    let waits = pool.submit(waits);
    refused(exec(&pool, &[&format!("job-{waits}"), "ls"]), &format!("job-{waits} waits: nothing of it runs"));
    let long = "x".repeat(66_000);
    refused(
        exec(&pool, &[&id, "echo", &long]),
        "command is 2 words of 66006 bytes: expected at most 1024 words of 65536",
    );
    let no_terminal = exec(&pool, &["-t", &id, "ls"]);
    assert_eq!(no_terminal.code, Some(2), "{no_terminal:?}");
    // Sixteen run beside it, and no more.
    let run = format!("a/runs/job-{job}.1/0");
    let many: Vec<Running> = (0..16)
        .map(|number| {
            let client =
                pool.begin(&["exec", &id, "sh", "-c", &format!("echo $$ > of-{number}; exec sleep 100000")]);
            pid_in(&pool, &format!("{run}/of-{number}"));
            client
        })
        .collect();
    refused(exec(&pool, &[&id, "ls"]), "16 commands run beside it, and no more may");
    drop(many);
    until("there is room again", || (exec(&pool, &[&id, "true"]).code == Some(0)).then_some(()));
    // Without an agent its supervisor ends a command, also one that does not hear. The agent that comes next finds the same supervisor.
    let ears = [("last", "trap '' PIPE; trap 'echo heard > heard; exit' HUP"), ("deaf", "trap '' HUP")];
    let clients = ears.map(|(name, trap)| {
        let script = format!("{trap}; echo $$ > {name}; while :; do sleep 100000; done");
        (pool.begin(&["exec", &id, "sh", "-c", &script]), pid_in(&pool, &format!("{run}/{name}")))
    });
    pool.kill_agent("a");
    for (client, pid) in clients {
        refused(client.finish(), "the agent of a was lost, and the command with it");
        until_within(SOON, "the command is gone", || (!is_alive(pid)).then_some(()));
    }
    assert_eq!(pool.read(&format!("{run}/heard")), "heard\n");
    refused(exec(&pool, &[&id, "ls"]), "runs on a, which is not connected");
    pool.agent("a", &[]);
    assert_eq!(exec(&pool, &[&id, "echo", "again"]).ok(), "again\n");
    // The operator has a word.
    pool.kill_server();
    pool.give_servers(&["--exec", "off"]);
    pool.start_server();
    refused(exec(&pool, &[&id, "ls"]), "commands beside workers are switched off in this pool");
    pool.cancel(waits);
}

#[test]
fn a_job_is_its_users_and_their_administrators() {
    let mut pool = Pool::prepare(1, &[], Some("pearl"));
    let file = pool.file("users");
    let token = |name: &str, flags: &[&str]| {
        let words = [&["token", name, "--users", &file], flags].concat();
        pool.aquifer(&words).ok().trim().to_string()
    };
    let tokens = [token("bob", &[]), token("carol", &[]), token("ada", &["--admin"])];
    let authority = Authority::new();
    authority.write(&pool.dir().join("ca.pem"));
    authority.issue(pool.dir(), "head", "127.0.0.1");
    pool.use_tls("ca.pem");
    pool.give_servers(&["--users", &file, "--tls-cert", "head.pem", "--tls-key", "head.key"]);
    pool.start_server();
    pool.agent("a", &[]);
    let spec = v1::JobSpec { user: "bob".into(), ..shell("exec sleep 100000") };
    let job = pool.submit(spec);
    pool.until_state(job, JobState::Running);
    let id = format!("job-{job}");
    let by = |token: &str| pool.begin_with(&["exec", &id, "echo", "hello"], "AQUIFER_TOKEN", token).finish();
    let [bob, carol, ada] = tokens.map(|token| by(&token));
    assert_eq!([bob.ok(), ada.ok()], ["hello\n", "hello\n"]);
    refused(carol, &format!("{id} is of bob, and this token of carol"));
    assert_eq!(by("pearl").ok(), "hello\n");
    let stranger = by("shell");
    assert!(stranger.code == Some(1) && stranger.err.contains("token"), "{stranger:?}");
    let log = pool.server_at(0).err();
    let who = |who: &str| log.contains(&format!("who=\"{who}\""));
    assert!(who("bob") && who("ada") && who("the pool's token") && !who("carol"), "{log}");
}

/// Both ends of a terminal.
fn terminal() -> (File, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags).expect("a terminal");
    rustix::pty::grantpt(&ours).expect("a terminal");
    rustix::pty::unlockpt(&ours).expect("a terminal");
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags).expect("its other end");
    (ours.into(), theirs)
}

fn sized(terminal: &File, ws_row: u16, ws_col: u16) {
    let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("a size");
}

#[test]
fn a_shell_has_the_terminal_that_it_is_called_from() {
    let pool = Pool::of_one(&[]);
    let job = lasting(&pool);
    let (mut keys, theirs) = terminal();
    sized(&keys, 33, 99);
    let before = tcgetattr(&theirs).expect("a terminal").local_modes;
    let mut client = Command::new("setsid");
    client.args(["--ctty", "--wait", BINARY, "exec", &format!("job-{job}")]).env_clear();
    client.env("TERM", "vt220").env("AQUIFER_SERVER", pool.url()).env("PATH", "/usr/bin:/bin");
    let end = || Stdio::from(theirs.try_clone().expect("another handle"));
    client.stdin(end()).stdout(end()).stderr(end());
    let mut client = client.spawn().expect("setsid runs");
    let mut screen = keys.try_clone().expect("another handle");
    let (said, hears) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = screen.read(&mut piece) {
            if said.send(piece[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut all = String::new();
    let mut sees = |what: &str| {
        until(what, || {
            while let Ok(piece) = hears.try_recv() {
                all.push_str(&String::from_utf8_lossy(&piece));
            }
            let at = all.find(what)?;
            all.drain(..at + what.len());
            Some(())
        })
    };
    let keys_of_size = keys.try_clone().expect("another handle");
    let mut types = |text: &str| keys.write_all(text.as_bytes()).expect("keys");
    types("tty >/dev/null && echo kind=$TERM; stty size\n");
    sees("kind=vt220");
    sees("33 99");
    let raw = tcgetattr(&theirs).expect("a terminal").local_modes;
    assert!(!raw.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG));
    // ^C is the command's, and so is the size.
    types("echo slee''ps; sleep 100000\n");
    sees("sleeps");
    types("\x03");
    types("echo code=$?\n");
    sees("code=130");
    types("until stty size | grep -q '44 111'; do :; done; echo siz''ed\n");
    sized(&keys_of_size, 44, 111);
    sees("sized");
    types("exit 5\n");
    let status = until("it ends", || client.try_wait().expect("a child"));
    assert_eq!(status.code(), Some(5));
    assert_eq!(tcgetattr(&theirs).expect("a terminal").local_modes, before, "it is as it was");
}

#[test]
fn a_command_runs_in_the_container_of_the_worker_and_leaves_nothing_there() {
    let mut pool = Pool::start();
    let engine = pool.file("engine");
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/agent/tests/containers/engine.sh");
    fs::copy(program, &engine).expect("an engine");
    fs::set_permissions(&engine, Permissions::from_mode(0o755)).expect("an engine");
    fs::create_dir(pool.file("containers")).expect("a directory");
    pool.agent("a", &["--engine", &engine]);
    let mut spec = shell("exec sleep 100000");
    spec.roles[0].request.get_or_insert_default().image = Some("localhost/app".into());
    spec.env.insert("WORD".into(), "within".into());
    let job = pool.submit(spec);
    pool.until_state(job, JobState::Running);
    until("its container runs", || pool.read("calls").contains("run ").then_some(()));
    let id = format!("job-{job}");
    let (code, out, _) = fed(piped(&pool, &[&id, "sh", "-c", "cat; echo $WORD; exit 9"]), b"in ".to_vec());
    assert_eq!((code, &out[..]), (Some(9), &b"in within\n"[..]));
    let calls = pool.read("calls");
    let call = calls.lines().find(|call| call.starts_with("exec ")).expect("a call");
    assert!(
        call.contains("--interactive") && !call.contains("--tty") && call.contains(" aquifer-job-"),
        "{call}"
    );
    // An engine's client that is killed leaves the program running.
    let marker = pool.file("inside");
    let client = pool.begin(&["exec", &id, "sh", "-c", &format!("echo $$ > {marker}; exec sleep 100000")]);
    let inside = pid_in(&pool, "inside");
    client.signal(Signal::KILL);
    until_within(SOON, "the program is gone", || (!is_alive(inside)).then_some(()));
    assert_eq!(pool.job(job).state(), JobState::Running);
}
