//! What happens to programs on a pool of real processes.

mod pool;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use aquifer_proto::v1;
use pool::{Checks, Pool, command, has_ended, is_alive, send, shell, until};
use rustix::process::Signal;
use v1::JobState::{Cancelled, Failed, Running, Succeeded, TimedOut};

#[test]
fn a_command_runs_and_its_log_and_exit_arrive() {
    let pool = Pool::of_one(&[]);
    let job = pool.submit(shell("echo out; echo err >&2"));
    let ended = pool.until_succeeded(job);
    assert_eq!((ended.attempt, ended.failures), (1, 0));
    assert_eq!(pool.log(job), "out\nerr\n");
    let exit = fs::read_to_string(pool.run_dir(job, 1, 0).expect("a run directory").join("exit.json"));
    assert!(exit.expect("an exit").contains("\"code\":0"));
}

#[test]
fn a_log_that_grows_too_large_loses_its_beginning_and_says_so() {
    let mut pool = Pool::with(&[]);
    pool.agent("a", &["--log-size", "1MiB"]);
    let go = pool.file("go");
    let script =
        format!("seq -f 'line %07.0f' 1 300000; while ! [ -e {go} ]; do sleep 0.02; done; echo last");
    let job = pool.submit(shell(&script));
    let log = until("a run directory", || pool.run_dir(job, 1, 0)).join("log");
    until("most of it given up", || {
        let meta = fs::metadata(&log).ok()?;
        (3_900_000 <= meta.len() && 512 * meta.blocks() <= 1 << 20).then_some(())
    });
    fs::write(&go, "").expect("a file");
    pool.until_succeeded(job);
    let done = pool.aquifer(&["logs", &format!("job-{job}")]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains("MiB of its log were given up"), "{}", done.err);
    let lines: Vec<&str> = done.out.lines().collect();
    let first: usize = lines[0].strip_prefix("line ").and_then(|at| at.parse().ok()).expect("a whole line");
    let rest = (first..=300_000).map(|at| format!("line {at:07}")).chain(["last".into()]);
    assert!(rest.eq(lines.iter().map(|line| line.to_string())), "what is left is whole");
}

#[test]
fn a_failing_command_is_repeated_and_then_fails_with_the_reason() {
    let pool = Pool::of_one(&["--backoff", "10ms"]);
    let job = pool.submit(v1::JobSpec { retries: 2, ..shell("echo \"$AQUIFER_ATTEMPT\"; exit 3") });
    let ended = pool.until_state(job, Failed);
    assert_eq!((ended.attempt, ended.failures), (3, 3));
    assert_eq!(ended.reason, "failed: rank 0 on a exited with 3");
    for attempt in 1..=3 {
        let request = v1::LogsRequest { job, attempt: Some(attempt), ..Default::default() };
        assert_eq!(pool.logs(request)[&(attempt, 0)], format!("{attempt}\n"));
    }
    let second = pool.submit(v1::JobSpec { retries: 2, ..shell("[ $AQUIFER_ATTEMPT = 2 ]") });
    assert_eq!(pool.until_succeeded(second).failures, 1);
}

#[test]
fn what_cannot_be_started_says_why() {
    let pool = Pool::of_one(&[]);
    let nowhere = v1::JobSpec { working_dir: Some("/no/such/dir".into()), ..shell("true") };
    for (spec, why) in [
        (command(&["no-such-program"]), "program no-such-program: not found in PATH"),
        (command(&["/etc/passwd"]), "program /etc/passwd: permission denied"),
        (nowhere, "working_dir /no/such/dir: no such directory"),
        (shell("kill -SEGV $$"), "ended by signal 11"),
    ] {
        let ended = pool.until_state(pool.submit(spec), Failed);
        assert!(ended.reason.contains(why), "{:?} has no {why:?}", ended.reason);
    }
}

#[test]
fn run_ends_with_1_when_the_program_fails_and_with_0_when_it_succeeds() {
    let pool = Pool::of_one(&[]);
    let done = pool.aquifer(&["run", "--", "sh", "-c", "echo said; exit 3"]);
    assert_eq!((done.code, &done.out[..]), (Some(1), "said\n"), "{}", done.err);
    assert!(done.err.contains("job-1 failed: rank 0 on a exited with 3"), "{}", done.err);
    let done = pool.aquifer(&["run", "--", "echo", "fine"]);
    assert_eq!((done.code, &done.out[..]), (Some(0), "fine\n"), "{}", done.err);
    let done = pool.aquifer(&["run", "--", "no-such-program"]);
    assert_eq!(done.code, Some(1), "{}", done.err);
    assert!(done.err.contains("program no-such-program: not found in PATH"), "{}", done.err);
}

#[test]
fn run_prints_while_the_program_runs() {
    let pool = Pool::of_one(&[]);
    let go = pool.file("go");
    let script = format!("echo first; while ! [ -e {go} ]; do sleep 0.02; done; printf last");
    let mut run = pool.begin(&["run", "--", "sh", "-c", &script]);
    run.until_out("first\n");
    fs::write(&go, "").expect("a file");
    let done = run.finish();
    assert_eq!((done.code, &done.out[..]), (Some(0), "first\nlast"), "{}", done.err);
}

#[test]
fn who_follows_a_log_from_the_first_moment_on_reads_all_of_it() {
    let pool = Pool::of_one(&[]);
    for _ in 0..50 {
        let job = pool.submit(shell("echo said"));
        let logs = pool.logs(v1::LogsRequest { job, follow: true, ..Default::default() });
        assert_eq!(logs.get(&(1, 0)).map(String::as_str), Some("said\n"), "job-{job}");
    }
}

#[test]
fn an_interrupted_run_cancels_its_job() {
    let pool = Pool::of_one(&[]);
    let mut run = pool.begin(&["run", "--", "sh", "-c", "echo here; sleep 1000"]);
    run.until_out("here");
    run.signal(Signal::INT);
    let done = run.finish();
    assert_eq!(done.code, Some(1), "{}", done.err);
    pool.job(1).in_state(Cancelled);
}

#[test]
fn arguments_arrive_as_they_were_given() {
    let pool = Pool::of_one(&[]);
    let words = ["a b", "", "it's", "\"q\"", "$HOME", "*", "--", "-x", "ü 水", "tab\tline\nend", "\\"];
    let print = ["printf", "<%s>"];
    let expected: String = words.iter().map(|word| format!("<{word}>")).collect();
    let job = pool.submit(command(&[&print[..], &words[..]].concat()));
    pool.until_succeeded(job);
    assert_eq!(pool.log(job), expected);
    let done = pool.aquifer(&[&["run", "--"][..], &print[..], &words[..]].concat());
    assert_eq!(done.ok(), expected);
}

#[test]
fn the_environment_is_that_of_the_contract() {
    let mut pool = Pool::start();
    pool.agent("a", &["--cpus", "1"]);
    pool.agent("b", &["--cpus", "1"]);
    let mut spec = shell("env");
    spec.roles[0].ranks = 2;
    spec.roles[0].request.get_or_insert_default().cpus_milli = 1000;
    let own = [("COLOUR", "a = b"), ("TORCHELASTIC_RUN_ID", "mine"), ("AQUIFER_JOB", "mine")];
    spec.env = own.map(|(name, value)| (name.to_string(), value.to_string())).into();
    let job = pool.submit(spec);
    let ended = pool.until_succeeded(job);
    let logs = pool.logs(v1::LogsRequest { job, ..Default::default() });
    let mut meeting_points = Vec::new();
    for rank in 0..2 {
        let lines = logs[&(1, rank)].lines().filter_map(|line| line.split_once('='));
        let env: BTreeMap<&str, &str> = lines.collect();
        let number = rank.to_string();
        for (name, expected) in [
            ("RANK", &number[..]),
            ("WORLD_SIZE", "2"),
            ("LOCAL_RANK", "0"),
            ("LOCAL_WORLD_SIZE", "1"),
            ("GROUP_RANK", &number),
            ("MASTER_ADDR", "127.0.0.1"),
            ("TORCHELASTIC_RUN_ID", "mine"),
            ("JAX_NUM_PROCESSES", "2"),
            ("JAX_PROCESS_ID", &number),
            ("MS_WORKER_NUM", "2"),
            ("TORCHELASTIC_RESTART_COUNT", "0"),
            ("AQUIFER_JOB", "job-1"),
            ("AQUIFER_ATTEMPT", "1"),
            ("AQUIFER_ROLE", "worker"),
            ("AQUIFER_CPUS", "1"),
            ("COLOUR", "a = b"),
        ] {
            assert_eq!(env.get(name), Some(&expected), "{name} of rank {rank}");
        }
        let run_dir = pool.run_dir(job, 1, rank).expect("a run directory");
        assert_eq!(env["AQUIFER_RUN_DIR"], run_dir.to_str().expect("text"));
        assert_eq!(env["PWD"], env["AQUIFER_RUN_DIR"]);
        let hosts = fs::read_to_string(env["AQUIFER_HOSTFILE"]).expect("a file");
        assert_eq!(hosts, "127.0.0.1 slots=2\n", "both agents have one address");
        let checkpoints = pool.file("server/checkpoints");
        assert!(env["AQUIFER_CHECKPOINT_DIR"].starts_with(&checkpoints), "{}", env["AQUIFER_CHECKPOINT_DIR"]);
        assert!(!env.contains_key("AQUIFER_ARRAY_INDEX") && !env.contains_key("AQUIFER_SERVER"));
        meeting_points.push((env["MASTER_PORT"].to_string(), env["AQUIFER_PORT"].to_string()));
    }
    assert_eq!(meeting_points[0].0, meeting_points[0].1, "the port of rank 0 is where all meet");
    assert_eq!(meeting_points[1].0, meeting_points[0].0);
    assert_ne!(ended.ranks[0].node, ended.ranks[1].node);
}

#[test]
fn a_cancelled_worker_has_its_grace() {
    let pool = Pool::of_one(&[]);
    let saved = pool.file("saved");
    let script = format!("trap 'echo step > {saved}; exit 0' TERM; echo ready; while :; do sleep 0.02; done");
    let job = pool.submit(shell(&script));
    until("the trap is set", || (pool.log(job) == "ready\n").then_some(()));
    assert_eq!(pool.aquifer(&["cancel", "--wait", "job-1"]).ok(), "job-1 is told to end\njob-1 cancelled\n");
    assert_eq!(pool.read("saved"), "step\n");
    pool.job(job).in_state(Cancelled);
}

#[test]
fn a_worker_that_ignores_the_request_to_stop_is_killed_after_its_grace() {
    let pool = Pool::of_one(&[]);
    let script = "trap '' TERM; setsid sleep 1000 & echo ready; while :; do sleep 0.02; done";
    let job = pool.submit(v1::JobSpec { grace_ms: Some(300), ..shell(script) });
    until("the trap is set", || (pool.log(job) == "ready\n").then_some(()));
    let worker = pool.worker(job, 1, 0);
    pool.cancel(job);
    pool.until_state(job, Cancelled);
    assert!(!is_alive(worker.worker));
    let exit = fs::read_to_string(pool.run_dir(job, 1, 0).expect("a run directory").join("exit.json"));
    assert!(exit.expect("an exit").contains("did not stop within 300 ms"));
    let left = pool.processes().into_iter().filter(|(_, words)| words.contains("sleep")).count();
    assert_eq!(left, 0, "what left the session is killed as well");
}

#[test]
fn a_job_ends_at_its_time_limit() {
    let pool = Pool::of_one(&[]);
    let job = pool.submit(v1::JobSpec { time_limit_ms: Some(300), ..shell("exec sleep 1000") });
    let ended = pool.until_state(job, TimedOut);
    let took = ended.ended_ms.expect("an end") - ended.placed_ms.expect("a start");
    assert!(300 <= took, "{took} ms");
}

#[test]
fn a_killed_worker_is_a_failure_that_is_repeated() {
    let pool = Pool::of_one(&["--backoff", "10ms"]);
    let job = pool.submit(v1::JobSpec { retries: 1, ..shell("exec sleep 1000") });
    pool.until_state(job, Running);
    send(pool.worker(job, 1, 0).worker, Signal::KILL);
    let again = pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    assert!(again.last_failure.contains("ended by signal 9"), "{}", again.last_failure);
    send(pool.worker(job, 2, 0).worker, Signal::KILL);
    pool.until_state(job, Failed);
}

#[test]
fn the_worker_of_a_killed_supervisor_ends_with_all_that_it_started() {
    let pool = Pool::of_one(&["--backoff", "10ms"]);
    let script = "setsid sleep 1000 & echo $!; sleep 1000";
    let job = pool.submit(v1::JobSpec { retries: 1, ..shell(script) });
    let child = until("the worker's child", || pool.log(job).trim().parse::<i32>().ok());
    let worker = pool.worker(job, 1, 0);
    send(worker.supervisor, Signal::KILL);
    let again = pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    assert!(again.last_failure.contains("its supervisor was killed"), "{}", again.last_failure);
    assert!(!is_alive(worker.worker) && !is_alive(child));
}

#[test]
fn a_gang_ends_as_a_whole_when_one_rank_fails() {
    let mut pool = Pool::with(&["--backoff", "10ms"]);
    pool.agent("a", &["--cpus", "1"]);
    pool.agent("b", &["--cpus", "1"]);
    let script = "[ $RANK-$AQUIFER_ATTEMPT = 1-1 ] && { while ! [ -e $GO ]; do sleep 0.02; done; exit 7; }; \
                  [ $AQUIFER_ATTEMPT = 2 ] || exec sleep 1000";
    let mut spec = shell(script);
    spec.roles[0].ranks = 2;
    spec.roles[0].request.get_or_insert_default().cpus_milli = 1000;
    spec.env = [("GO".to_string(), pool.file("go"))].into();
    spec.retries = 1;
    let job = pool.submit(spec);
    pool.until_state(job, Running);
    let other = pool.worker(job, 1, 0);
    fs::write(pool.file("go"), "").expect("a file");
    let ended = pool.until_succeeded(job);
    assert_eq!((ended.attempt, ended.failures), (2, 1));
    assert!(ended.last_failure.contains("rank 1 on"), "{}", ended.last_failure);
    assert!(!is_alive(other.worker));
}

#[test]
fn an_array_that_is_waited_for_tells_each_end_once_and_in_order() {
    let pool = Pool::of_one(&[]);
    let script = "[ $AQUIFER_ARRAY_INDEX != 41 ]";
    let done = pool.aquifer(&["run", "--array", "1-300", "--", "sh", "-c", script]);
    let expected = (1..=300).map(|job| match job {
        41 => "job-41 failed: rank 0 on a exited with 1".to_string(),
        _ => format!("job-{job} succeeded"),
    });
    assert_eq!(done.out.lines().collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert_eq!(done.code, Some(1));
    assert!(done.err.contains("1 of 300 jobs did not succeed"), "{}", done.err);
}

#[test]
fn an_array_runs_every_index_once_and_what_follows_waits_for_all() {
    let pool = Pool::of_one(&[]);
    let ledger = pool.file("ledger");
    let mut spec = shell(&format!("echo $AQUIFER_ARRAY_INDEX >> {ledger}"));
    spec.array = Some(v1::ArrayRange { first: 2, last: 20, step: 3 });
    let first = pool.submit(spec);
    let after = v1::JobSpec { after: vec![first], ..shell(&format!("wc -l < {ledger}")) };
    let after = pool.submit(after);
    pool.until_succeeded(after);
    assert_eq!(pool.log(after).trim(), "7");
    let mut indices: Vec<u32> =
        pool.read("ledger").lines().map(|line| line.parse().expect("an index")).collect();
    indices.sort();
    assert_eq!(indices, [2, 5, 8, 11, 14, 17, 20]);
}

#[test]
fn what_follows_a_failed_job_ends_without_running() {
    let pool = Pool::of_one(&[]);
    let (go, ran) = (pool.file("go"), pool.file("ran"));
    let first = pool.submit(shell(&format!("while ! [ -e {go} ]; do sleep 0.02; done; exit 1")));
    let second = pool.submit(v1::JobSpec { after: vec![first], ..shell(&format!("touch {ran}")) });
    let third = pool.submit(v1::JobSpec { after: vec![second], ..shell("true") });
    assert!(pool.job(second).reason.contains("job-1"), "{}", pool.job(second).reason);
    fs::write(&go, "").expect("a file");
    for job in [second, third] {
        pool.until_state(job, Failed);
        assert_eq!(pool.job(job).attempt, 0);
    }
    assert!(!fs::exists(&ran).expect("a look"));
}

#[test]
fn a_hundred_short_jobs_all_end() {
    let pool = Pool::of_one(&[]);
    let jobs: Vec<u64> = (0..100).map(|_| pool.submit(command(&["true"]))).collect();
    jobs.iter().for_each(|job| _ = pool.until_succeeded(*job));
    let node = pool.node("a").expect("a node");
    assert_eq!((node.cpus_milli_held, node.workers.len()), (0, 0));
    assert!(pool.jobs().iter().all(|job| has_ended(job) && job.state() == Succeeded && job.attempt == 1));
}
