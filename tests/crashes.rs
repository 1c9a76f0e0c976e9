//! What is killed comes back, and nothing is lost, done twice or left over.

mod pool;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aquifer_proto::v1;
use pool::{Checks, Pool, is_alive, send, shell, until};
use rustix::process::Signal;
use v1::JobState::{Running, Succeeded};

/// A program that runs until there is a file, and then ends with a code.
fn until_file(pool: &Pool, name: &str, code: u32) -> v1::JobSpec {
    let go = pool.file(name);
    shell(&format!("while ! [ -e {go} ]; do sleep 0.02; done; exit {code}"))
}

#[test]
fn a_worker_runs_on_when_its_agent_is_killed_and_its_exit_arrives() {
    let mut pool = Pool::of_one(&[]);
    let job = pool.submit(until_file(&pool, "go", 0));
    pool.until_state(job, Running);
    let before = pool.worker(job, 1, 0);
    for _ in 0..3 {
        pool.kill_agent("a");
        assert!(is_alive(before.worker));
        pool.agent("a", &[]);
        let node = pool.node("a").expect("a node");
        assert_eq!(node.workers.len(), 1);
    }
    assert_eq!((pool.worker(job, 1, 0), pool.job(job).in_state(Running).attempt), (before, 1));
    fs::write(pool.file("go"), "").expect("a file");
    assert_eq!(pool.until_succeeded(job).attempt, 1);
}

#[test]
fn the_exit_of_a_worker_that_ended_while_its_agent_was_away_arrives() {
    let mut pool = Pool::of_one(&[]);
    let good = pool.submit(until_file(&pool, "go", 0));
    let bad = pool.submit(until_file(&pool, "go", 3));
    pool.until_state(good, Running);
    pool.until_state(bad, Running);
    let workers = [pool.worker(good, 1, 0), pool.worker(bad, 1, 0)];
    pool.kill_agent("a");
    fs::write(pool.file("go"), "").expect("a file");
    until("the workers' end", || workers.iter().all(|one| !is_alive(one.supervisor)).then_some(()));
    pool.agent("a", &[]);
    assert_eq!(pool.until_succeeded(good).attempt, 1);
    assert_eq!(pool.until_state(bad, v1::JobState::Failed).reason, "failed: rank 0 on a exited with 3");
}

#[test]
fn a_job_is_placed_elsewhere_only_after_the_lease_of_an_agent_that_is_gone() {
    let mut pool = Pool::with(&["--lease", "2s"]);
    pool.agent("a", &[]);
    // Who comes second looks whether who came first is still there: both are on this machine.
    let script = "[ -e $LEDGER ] && kill -0 $(head -1 $LEDGER) 2>/dev/null && echo overlap >> $LEDGER; \
                  echo $$ >> $LEDGER; while ! [ -e $GO ]; do sleep 0.02; done";
    let mut spec = shell(script);
    spec.env = [("LEDGER".to_string(), pool.file("ledger")), ("GO".to_string(), pool.file("go"))].into();
    let job = pool.submit(spec);
    pool.until_state(job, Running);
    let first = pool.worker(job, 1, 0);
    until("the first line", || (pool.read("ledger").lines().count() == 1).then_some(()));
    pool.agent("b", &[]);
    let killed = Instant::now();
    pool.kill_agent("a");
    let again = pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    assert!(Duration::from_millis(1000) < killed.elapsed(), "after {:?}", killed.elapsed());
    assert!(!is_alive(first.worker) && !is_alive(first.supervisor));
    assert_eq!(again.ranks[0].node, "b");
    // The loss of a node is no failure of the job, and what it left behind on its return is no news.
    pool.agent("a", &[]);
    fs::write(pool.file("go"), "").expect("a file");
    let ended = pool.until_succeeded(job);
    assert_eq!((ended.attempt, ended.failures), (2, 0));
    assert!(!pool.read("ledger").contains("overlap"), "{}", pool.read("ledger"));
}

#[test]
fn a_lost_node_gives_its_jobs_to_the_other_one() {
    let mut pool = Pool::with(&["--lease", "2s"]);
    pool.agent("a", &[]);
    let job = pool.submit(until_file(&pool, "go", 0));
    pool.until_state(job, Running);
    pool.agent("b", &[]);
    pool.kill_node("a");
    let again = pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    assert_eq!((&again.ranks[0].node[..], again.failures), ("b", 0));
    pool.until_note("a lost");
    assert!(!pool.node("a").expect("a node").up);
    fs::write(pool.file("go"), "").expect("a file");
    pool.until_succeeded(job);
}

#[test]
fn workers_that_their_lease_ended_while_the_scheduler_was_away_are_placed_again() {
    let mut pool = Pool::of_one(&["--lease", "2s"]);
    let job = pool.submit(until_file(&pool, "go", 0));
    pool.until_state(job, Running);
    let worker = pool.worker(job, 1, 0);
    pool.kill_server();
    until("the end of the lease", || (!is_alive(worker.worker)).then_some(()));
    pool.start_server();
    pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    fs::write(pool.file("go"), "").expect("a file");
    let ended = pool.until_succeeded(job);
    assert_eq!((ended.attempt, ended.failures), (2, 0), "{}", ended.last_failure);
}

#[test]
fn workers_that_their_lease_ended_while_everybody_was_away_are_placed_again() {
    let mut pool = Pool::of_one(&["--lease", "2s"]);
    let job = pool.submit(until_file(&pool, "go", 0));
    pool.until_state(job, Running);
    let worker = pool.worker(job, 1, 0);
    pool.kill_server();
    pool.kill_agent("a");
    until("the end of the lease", || (!is_alive(worker.supervisor)).then_some(()));
    pool.start_server();
    pool.agent("a", &[]);
    pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    fs::write(pool.file("go"), "").expect("a file");
    let ended = pool.until_succeeded(job);
    assert_eq!((ended.attempt, ended.failures), (2, 0), "{}", ended.last_failure);
}

#[test]
fn a_restart_of_the_machine_is_no_failure_of_its_jobs() {
    let mut pool = Pool::of_one(&[]);
    let job = pool.submit(until_file(&pool, "go", 0));
    pool.until_state(job, Running);
    let spec = pool.run_dir(job, 1, 0).expect("a run directory").join("spec.json");
    pool.kill_server();
    pool.kill_node("a");
    // All that a restarted machine knows of the time before is that the boot was another one.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    let earlier = "01234567-89ab-cdef-0123-456789abcdef";
    let text = fs::read_to_string(&spec).expect("a specification");
    assert!(text.contains(boot.trim()));
    fs::write(&spec, text.replace(boot.trim(), earlier)).expect("a specification");
    pool.start_server();
    pool.agent("a", &[]);
    pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    fs::write(pool.file("go"), "").expect("a file");
    let ended = pool.until_succeeded(job);
    assert_eq!((ended.attempt, ended.failures), (2, 0), "{}", ended.last_failure);
}

#[test]
fn what_kills_all_of_a_node_is_no_failure_of_its_jobs() {
    let mut pool = Pool::of_one(&[]);
    let job = pool.submit(until_file(&pool, "go", 0));
    pool.until_state(job, Running);
    pool.worker(job, 1, 0);
    pool.kill_node("a");
    pool.agent("a", &[]);
    pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    fs::write(pool.file("go"), "").expect("a file");
    assert_eq!(pool.until_succeeded(job).failures, 0);
}

#[test]
fn a_worker_that_its_agent_had_no_time_to_start_is_no_failure_of_its_job() {
    let mut pool = Pool::of_one(&[]);
    let job = pool.submit(until_file(&pool, "go", 0));
    pool.until_state(job, Running);
    let run_dir = pool.run_dir(job, 1, 0).expect("a run directory");
    pool.worker(job, 1, 0);
    pool.kill_node("a");
    // As an agent leaves it that was killed between the specification and the supervisor.
    fs::remove_file(run_dir.join("pid.json")).expect("it was there");
    pool.agent("a", &[]);
    pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    fs::write(pool.file("go"), "").expect("a file");
    assert_eq!(pool.until_succeeded(job).failures, 0);
}

#[test]
fn an_agent_that_dies_while_it_ends_workers_for_its_lease_leaves_no_failure() {
    let mut pool = Pool::of_one(&["--lease", "2s"]);
    let job = pool.submit(until_file(&pool, "go", 0));
    pool.until_state(job, Running);
    let worker = pool.worker(job, 1, 0);
    // The agent's order to end comes before the supervisor has looked at the lease itself.
    send(worker.supervisor, Signal::STOP);
    pool.kill_server();
    until("the end of the lease", || pool.agent_log("a").contains("lease ran out").then_some(()));
    pool.kill_agent("a");
    send(worker.supervisor, Signal::CONT);
    until("the worker's end", || (!is_alive(worker.supervisor)).then_some(()));
    pool.start_server();
    pool.agent("a", &[]);
    pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    fs::write(pool.file("go"), "").expect("a file");
    assert_eq!(pool.until_succeeded(job).failures, 0);
}

#[test]
fn a_node_whose_state_was_lost_starts_anew() {
    let mut pool = Pool::of_one(&["--lease", "2s"]);
    let job = pool.submit(until_file(&pool, "go", 0));
    pool.until_state(job, Running);
    pool.kill_node("a");
    fs::remove_dir_all(pool.file("a")).expect("its state");
    pool.agent("a", &[]);
    pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    fs::write(pool.file("go"), "").expect("a file");
    assert_eq!(pool.until_succeeded(job).failures, 0);
}

/// What the agent of a state directory calls itself.
fn own_name(pool: &Pool, dir: &str) -> String {
    pool.read(&format!("{dir}/agent-name")).trim().to_string()
}

#[test]
fn of_two_agents_with_one_name_the_second_is_refused_and_both_are_named() {
    let mut pool = Pool::with(&["--lease", "2s"]);
    pool.agent("a", &[]);
    let job = pool.submit(until_file(&pool, "go", 0));
    pool.until_state(job, Running);
    let first = pool.worker(job, 1, 0);
    pool.second_agent("a", "b");
    let said = until("the second one is refused", || {
        let log = pool.agent_log("b");
        log.lines().find(|line| line.contains("no session")).map(ToString::to_string)
    });
    for name in [
        own_name(&pool, "a"),
        own_name(&pool, "b"),
        "node a is that of".into(),
        "127.0.0.1".into(),
        "--node".into(),
    ] {
        assert!(said.contains(&name), "{name} in {said}");
    }
    // Everybody can read it, until the second one is gone.
    let nodes = pool.aquifer(&["nodes"]).ok();
    assert!(nodes.contains(&own_name(&pool, "b")), "{nodes}");
    let warned = format!("refused an agent: node a is that of the agent {}", own_name(&pool, "a"));
    let refused = Instant::now();
    until("it has tried for two leases", || (Duration::from_secs(4) < refused.elapsed()).then_some(()));
    let log = pool.server_at(0).err();
    assert_eq!(log.matches(&warned).count(), 1, "told once: {log}");
    assert!(!log.contains("a lost") && !log.contains("agent restarted"), "{log}");
    assert_eq!((pool.worker(job, 1, 0), pool.job(job).in_state(Running).attempt), (first, 1));
    // The first one is started anew at once, as it was; when it is gone for good, the second one is let in.
    pool.kill_agent("a");
    pool.agent("a", &[]);
    assert_eq!(pool.worker(job, 1, 0), first);
    pool.kill_node("a");
    let again = pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    assert_eq!((&again.ranks[0].node[..], again.failures), ("a", 0));
    assert!(!is_alive(first.worker));
    let nodes = pool.aquifer(&["nodes"]).ok();
    assert!(!nodes.contains("is that of the agent"), "nobody is refused any more: {nodes}");
    fs::write(pool.file("go"), "").expect("a file");
    pool.until_succeeded(job);
}

#[test]
fn followers_go_on_after_a_restart_of_the_scheduler() {
    let mut pool = Pool::of_one(&[]);
    let go = pool.file("go");
    let script = format!("echo one; while ! [ -e {go} ]; do sleep 0.02; done; echo two; echo three");
    let job = pool.submit(shell(&script));
    let mut logs = pool.begin(&["logs", "-f", "job-1"]);
    logs.until_out("one\n");
    let mut run = pool.begin(&["run", "--", "sh", "-c", &script]);
    run.until_out("one\n");
    let mut watch = pool.begin(&["watch"]);
    until("the watch is heard", || {
        _ = pool.aquifer(&["queues", "set", "red", "--weight", "2"]).ok();
        watch.out().contains("queue red").then_some(())
    });
    assert_eq!(pool.submit(shell("exec sleep 1000")), 3);
    pool.kill_server();
    // A call in the meantime waits for the scheduler.
    let call = pool.begin(&["cancel", "--wait", "job-3"]);
    pool.start_server();
    assert!(call.finish().ok().contains("job-3 cancelled"));
    fs::write(&go, "").expect("a file");
    let done = logs.finish();
    assert_eq!((done.code, &done.out[..]), (Some(0), "one\ntwo\nthree\n"), "{}", done.err);
    let done = run.finish();
    assert_eq!((done.code, &done.out[..]), (Some(0), "one\ntwo\nthree\n"), "{}", done.err);
    pool.until_succeeded(job);
    watch.until_out("job-1 succeeded");
    watch.signal(Signal::INT);
}

/// Jobs that a client has an answer about: by key, the job.
type Acknowledged = BTreeMap<String, u64>;

/// Submits jobs as fast as it can until it is told to stop, each again with the same key until it is answered.
fn submit_all(client: &pool::Client, ledger: &str, stop: &AtomicBool) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("key-{number}");
        let script = format!("echo $AQUIFER_JOB $AQUIFER_ATTEMPT >> {ledger}");
        let spec = v1::JobSpec { client_key: key.clone(), name: key.clone(), ..shell(&script) };
        acknowledged.insert(key, client.submit(spec));
    }
    acknowledged
}

#[test]
fn nothing_is_lost_or_done_twice_however_often_the_scheduler_is_killed() {
    // Nobody gives way to what is measured.
    let mut pool = Pool::of_one(&["--preemption", "off"]);
    let ledger = pool.file("ledger");
    let long = pool.submit(until_file(&pool, "go", 0));
    pool.until_state(long, Running);
    let worker = pool.worker(long, 1, 0);
    let stop = AtomicBool::new(false);
    let client = pool.another_client();
    let kills = std::env::var("KILLS").map_or(12, |kills| kills.parse().expect("KILLS is a number"));
    let (acknowledged, probes) = thread::scope(|scope| {
        let submitter = scope.spawn(|| submit_all(&client, &ledger, &stop));
        let mut probes = BTreeMap::new();
        for kill in 0..kills {
            // From the middle of the start to well into the work, at moments that are never the same.
            let delay_us = 250_000 * ((kill * 7919 + 13) % 1009) / 1009 * (kill % 3) / 2;
            let next = Instant::now() + Duration::from_micros(delay_us);
            until("the next moment", || (next <= Instant::now()).then_some(()));
            pool.kill_server();
            let killed = Instant::now();
            pool.start_server();
            if kill % 4 == 3 {
                let probe = pool.submit(v1::JobSpec { priority: 9, ..shell("true") });
                pool.until_succeeded(probe);
                probes.insert(killed.elapsed(), probe);
            }
        }
        stop.store(true, Ordering::Relaxed);
        (submitter.join().expect("the submitter"), probes)
    });
    let took: Vec<&Duration> = probes.keys().collect();
    println!(
        "{kills} kills, {} jobs; from a kill to the end of a job that was submitted after it: p50 {:?}, longest {:?}",
        acknowledged.len(),
        took[took.len() / 2],
        took[took.len() - 1]
    );
    assert!(10 < acknowledged.len(), "only {} jobs were submitted", acknowledged.len());
    let jobs = pool.jobs();
    let by_name: BTreeMap<&str, &v1::Job> =
        jobs.iter().map(|job| (&job.spec.as_ref().expect("a specification").name[..], job)).collect();
    assert_eq!(jobs.len(), acknowledged.len() + probes.len() + 1, "each key made one job");
    for (key, job) in &acknowledged {
        assert_eq!(by_name[&key[..]].id, *job, "{key}");
        assert_eq!(pool.until_succeeded(*job).attempt, 1, "{key}");
    }
    let lines: Vec<String> = pool.read("ledger").lines().map(str::to_string).collect();
    let once: BTreeSet<String> = acknowledged.values().map(|job| format!("job-{job} 1")).collect();
    assert_eq!(lines.len(), once.len(), "each job did its work once");
    assert_eq!(lines.into_iter().collect::<BTreeSet<String>>(), once);
    assert_eq!((pool.worker(long, 1, 0), pool.job(long).in_state(Running).attempt), (worker, 1));
    fs::write(pool.file("go"), "").expect("a file");
    pool.until_state(long, Succeeded);
}

#[test]
fn jobs_end_though_scheduler_and_agents_are_killed_in_turn() {
    let mut pool = Pool::with(&["--lease", "5s", "--backoff", "10ms"]);
    pool.agent("a", &[]);
    pool.agent("b", &[]);
    let ledger = pool.file("ledger");
    let script = format!("sleep 0.$(($AQUIFER_ARRAY_INDEX % 7)); echo $AQUIFER_JOB >> {ledger}");
    let array = Some(v1::ArrayRange { first: 0, last: 119, step: 1 });
    let first = pool.submit(v1::JobSpec { array, ..shell(&script) });
    for round in 0..6 {
        match round % 3 {
            0 => pool.kill_agent("a"),
            1 => pool.kill_server(),
            _ => pool.kill_agent("b"),
        }
        match round % 3 {
            0 => pool.agent("a", &[]),
            1 => pool.start_server(),
            _ => pool.agent("b", &[]),
        }
    }
    for job in first..first + 120 {
        // What was assigned to an agent that was killed before it began is assigned again; nothing is begun twice.
        let ended = pool.until_succeeded(job);
        assert_eq!(ended.failures, 0, "{}", ended.last_failure);
    }
    let lines: Vec<String> = pool.read("ledger").lines().map(str::to_string).collect();
    assert_eq!((lines.len(), lines.iter().collect::<BTreeSet<_>>().len()), (120, 120));
}

#[test]
fn a_stopped_scheduler_process_that_wakes_up_changes_nothing() {
    let pool = Pool::of_one(&["--lease", "2s"]);
    let job = pool.submit(until_file(&pool, "go", 0));
    pool.until_state(job, Running);
    let worker = pool.worker(job, 1, 0);
    // As after a suspend: everything is late, and the lease may be over for the agent but not for the scheduler.
    pool.signal_server(Signal::STOP);
    until("the end of the lease", || (!is_alive(worker.worker)).then_some(()));
    pool.signal_server(Signal::CONT);
    fs::write(pool.file("go"), "").expect("a file");
    let ended = pool.until_succeeded(job);
    assert_eq!(ended.failures, 0, "{}", ended.last_failure);
}
