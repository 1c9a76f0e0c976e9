//! Several schedulers and an etcd, all real, and what happens when one of them is killed or stands still.

mod pool;

#[cfg(feature = "etcd")]
#[path = "../scheduler/tests/store/etcd_server.rs"]
mod etcd_server;

#[cfg(feature = "etcd")]
#[path = "pool/authority.rs"]
mod authority;

#[cfg(not(feature = "etcd"))]
#[test]
fn a_program_without_etcd_says_how_to_get_one_with_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let words = ["server", "--store", "etcd://127.0.0.1:1/pool"];
    let done = pool::start(dir.path(), "server", pool::program(dir.path(), &words)).finish();
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.err.contains("etcd://127.0.0.1:1/pool: this program was built without etcd"), "{done:?}");
    assert!(done.err.contains("--features etcd"), "{done:?}");
}

#[cfg(feature = "etcd")]
mod with_etcd {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use aquifer_proto::v1::pool_client::PoolClient;
    use aquifer_proto::{AGE, LEADER, STALE, v1};
    use rustix::process::Signal;
    use tonic::{Code, Request, Status};
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use v1::JobState::{Running, Succeeded};

    use crate::authority::Authority;
    use crate::etcd_server::{EtcdServer, Wire};
    use crate::pool::{
        Checks, Client, Pool, ask, ask_for_all, is_alive, is_lost, program, shell, start, until,
    };

    /// After so long without a sign of life another scheduler leads.
    const LEASE: Duration = Duration::from_secs(2);

    fn schedulers(count: u16, etcd: &EtcdServer) -> Pool {
        let pool = Pool::of_schedulers(
            count,
            &["--store", &etcd.url("pool"), "--lease", "2m", "--metrics", "127.0.0.1:0"],
        );
        pool.until_leader();
        pool
    }

    fn until_file(pool: &Pool, name: &str) -> v1::JobSpec {
        shell(&format!("while ! [ -e {} ]; do sleep 0.02; done", pool.file(name)))
    }

    /// Submits jobs one after the other until it is told to stop, each with its key until it is answered.
    fn submit_all(client: &Client, ledger: &str, stop: &AtomicBool) -> BTreeMap<String, u64> {
        let mut acknowledged = BTreeMap::new();
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

    /// Each key made one job, and each job did its work once.
    fn check_ledger(pool: &Pool, acknowledged: &BTreeMap<String, u64>) {
        let jobs = pool.jobs();
        let by_name: BTreeMap<&str, u64> =
            jobs.iter().map(|job| (&job.spec.as_ref().expect("a specification").name[..], job.id)).collect();
        for (key, job) in acknowledged {
            assert_eq!(by_name.get(&key[..]), Some(job), "{key}");
            assert_eq!(pool.until_succeeded(*job).attempt, 1, "{key}");
        }
        let made =
            jobs.iter().filter(|job| job.spec.as_ref().is_some_and(|spec| spec.name.starts_with("key-")));
        assert_eq!(made.count(), acknowledged.len(), "each key made one job");
        let lines: Vec<String> = pool.read("ledger").lines().map(str::to_string).collect();
        let once: BTreeSet<String> = acknowledged.values().map(|job| format!("job-{job} 1")).collect();
        assert_eq!(lines.len(), once.len(), "each job did its work once");
        assert_eq!(lines.into_iter().collect::<BTreeSet<String>>(), once);
    }

    /// Bytes that have arrived at a port of this machine and that nobody has read.
    fn unread(url: &str) -> u64 {
        let port: u16 = url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        let end = format!(":{port:04X}");
        let connections = fs::read_to_string("/proc/net/tcp").expect("connections");
        let unread = connections.lines().filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_there = words.get(1)?.ends_with(&end) && *words.get(3)? == "01";
            let queued = words.get(4)?.split(':').nth(1)?;
            is_there.then(|| u64::from_str_radix(queued, 16).ok()).flatten()
        });
        unread.sum()
    }

    /// A question whose answer may be old.
    fn that_may_be_old<T>(question: T) -> Request<T> {
        let mut request = Request::new(question);
        request.metadata_mut().insert(STALE, "yes".parse().expect("a word"));
        request
    }

    #[test]
    fn one_that_stands_by_answers_who_asks_for_no_more_and_says_how_old_that_is() {
        let Some(mut etcd) = EtcdServer::start(1) else { return };
        let mut pool = schedulers(2, &etcd);
        let leader = pool.until_leader();
        let standby = pool.another_client_of(1 - leader);
        let ask = |job| {
            let request = that_may_be_old(v1::GetRequest { job });
            let answer = standby.block_on(PoolClient::new(standby.connection()).get(request))?;
            let age: Option<u64> = answer.metadata().get(AGE).and_then(|age| age.to_str().ok()?.parse().ok());
            Ok::<_, Status>((answer.into_inner(), age.map(Duration::from_millis)))
        };
        let stale = |job| ask(job).map(|(found, age)| (found, age.expect("an age")));
        let job = pool.submit(until_file(&pool, "go"));
        // What was acknowledged before an answer's moment is in it.
        let submitted = Instant::now();
        until("an answer as of after the submission", || match stale(job) {
            Ok((found, _)) => (found.id == job).then_some(()),
            Err(status) => {
                assert!([Code::NotFound, Code::Unavailable].contains(&status.code()), "{status:?}");
                assert!(submitted.elapsed() < Duration::from_secs(10), "{status:?}");
                None
            }
        });
        let (_, age) = stale(job).expect("an answer");
        assert!(age < Duration::from_secs(5), "{age:?}");
        // Who does not ask for it is led to the one that leads, and so is what changes something.
        let fresh = standby.alone(async |mut stub| stub.get(v1::GetRequest { job }).await);
        assert_eq!(fresh.expect_err("it does not lead").code(), Code::Unavailable);
        let cancel = that_may_be_old(v1::CancelRequest { job, whole_array: false });
        let cancelled = standby.block_on(PoolClient::new(standby.connection()).cancel(cancel));
        let status = cancelled.expect_err("it does not lead");
        assert!(status.metadata().get(LEADER).is_some(), "{status:?}");

        let words = ["dashboard", "--server", &pool.url(), "--listen", "127.0.0.1:0"];
        let mut dashboard = start(pool.dir(), "dashboard", program(pool.dir(), &words));
        dashboard.until_out("/?key=");

        // Without etcd nobody leads. What was known is still told, and how old it is.
        etcd.kill(0);
        pool.kill_server_at(leader);
        until("an old answer", || {
            let (found, age) = stale(job).expect("an answer");
            assert_eq!(found.id, job);
            (Duration::from_secs(2) <= age).then_some(())
        });
        // So is it to browsers, as long as nobody leads.
        let port = dashboard.out().split("http://127.0.0.1:").nth(1).expect("a port").to_string();
        let (port, key) = port.trim().split_once("/?key=").expect("a key");
        let ask_dashboard = |path: &str, cookie: &str| {
            let headers = format!("host: localhost\r\ncookie: {cookie}\r\n");
            ask_for_all(port.parse().expect("a port"), &format!("GET {path}"), &headers)
        };
        let (head, _) = ask_dashboard(&format!("/?key={key}"), "");
        let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next());
        let cookie = cookie.expect("a cookie");
        until("an old answer with its age", || {
            let (head, body) = ask_dashboard("/api/jobs", cookie);
            let age =
                head.lines().find_map(|line| line.strip_prefix("aquifer-age-ms: ")?.parse::<u64>().ok());
            (body.contains("\"job-1\"") && age.is_some_and(|age| 2000 <= age)).then_some(())
        });
        // What happens is told by one that leads alone.
        let (head, body) = ask_dashboard("/api/notes", cookie);
        assert!(head.starts_with("HTTP/1.0 503") && body.contains("no scheduler"), "{head} {body}");
        let list = ["jobs", "--server", &pool.url_of(1 - leader)];
        until("a hint", || {
            let done = pool.aquifer(&list);
            assert_eq!(done.code, Some(3), "{done:?}");
            done.err.contains("--stale").then_some(())
        });
        let done = pool.aquifer(&[&list[..], &["--stale"]].concat());
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(
            done.out.contains("job-1") && done.err.contains("stands by: this is the pool as it was"),
            "{done:?}"
        );

        // Whoever comes to lead answers as of now.
        etcd.spawn(0);
        etcd.until_healthy();
        pool.until_leader();
        until("an answer as of now", || {
            let (_, age) = ask(job).expect("an answer");
            age.is_none().then_some(())
        });
        until("browsers see the same", || {
            let (head, _) = ask_dashboard("/api/jobs", cookie);
            (head.starts_with("HTTP/1.0 200") && !head.contains("aquifer-age-ms")).then_some(())
        });
        pool.cancel(job);
    }

    #[test]
    fn schedulers_that_speak_tls_lead_clients_and_agents_to_each_other() {
        let Some(etcd) = EtcdServer::start(1) else { return };
        let store = etcd.url("pool");
        let flags = ["--store", &store, "--lease", "2m", "--tls-cert", "head.pem", "--tls-key", "head.key"];
        let mut pool = Pool::prepare(2, &flags, None);
        let authority = Authority::new();
        authority.write(&pool.dir().join("ca.pem"));
        authority.issue(pool.dir(), "head", "127.0.0.1");
        pool.use_tls("ca.pem");
        (0..2).for_each(|at| pool.start_server_at(at));
        pool.agent("a", &[]);
        for _ in 0..2 {
            let leader = pool.until_leader();
            let asked = pool.another_client_of(1 - leader);
            let job = asked.submit(shell("true"));
            pool.until_succeeded(job);
            pool.kill_server_at(leader);
            pool.until_leader();
            pool.start_server_at(leader);
        }
    }

    #[test]
    fn schedulers_speak_tls_to_an_etcd_that_wants_to_see_a_certificate() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new();
        authority.write(&directory.path().join("ca.pem"));
        authority.issue(directory.path(), "etcd", "127.0.0.1");
        authority.issue(directory.path(), "head", "127.0.0.1");
        let file = |name: &str| directory.path().join(name).display().to_string();
        let (ca, certificate, key) = (file("ca.pem"), file("etcd.pem"), file("etcd.key"));
        let secure =
            ["--cert-file", &certificate, "--key-file", &key, "--trusted-ca-file", &ca, "--client-cert-auth"];
        let Some(etcd) = EtcdServer::with(1, &secure) else { return };
        let store = etcd.url("pool");
        let refused = |flags: &[&str], sentence: &str| {
            let pool = Pool::prepare(1, &[], None);
            let done = pool.aquifer(&[&["store", "backup", "copy", "--from", &store], flags].concat());
            assert_ne!(done.code, Some(0), "{done:?}");
            assert!(done.err.contains(sentence), "{sentence}: {done:?}");
        };
        let (head, head_key) = (file("head.pem"), file("head.key"));
        let full = ["--etcd-ca", &ca, "--etcd-cert", &head, "--etcd-key", &head_key];
        refused(&full[..4], "of --etcd-cert and --etcd-key only one is given");
        refused(&full[2..], "--etcd-cert is given without --etcd-ca");
        refused(&full[..2], "tried for 10 s");

        let pool = Pool::of_schedulers(2, &[&["--store", &store, "--lease", "2m"], &full[..]].concat());
        pool.until_leader();
        let job = pool.submit(shell("true"));
        pool.aquifer(&[&["store", "backup", "copy", "--from", &store], &full[..]].concat()).ok();
        assert!(pool.aquifer(&["store", "check", "copy"]).ok().contains("1 jobs"));
        assert_eq!(pool.job(job).id, job);
    }

    #[test]
    fn schedulers_are_users_of_an_etcd_that_lets_only_those_in() {
        let Some(mut etcd) = EtcdServer::start(1) else { return };
        etcd.let_in("aquifer", "sesame");
        let mut pool = Pool::prepare(1, &[], None);
        fs::write(pool.dir().join("password"), "sesame\n").expect("a file");
        fs::write(pool.dir().join("wrong"), "open\n").expect("a file");
        let (password, wrong) = (pool.file("password"), pool.file("wrong"));
        let store = etcd.url("pool");
        let backup = ["store", "backup", "copy", "--from", &store];
        let denied = pool.aquifer(&backup);
        assert_eq!(denied.code, Some(1), "{denied:?}");
        assert!(denied.err.contains("user name is empty"), "{denied:?}");
        let denied = pool
            .aquifer(&[&backup[..], &["--etcd-user", "aquifer", "--etcd-password-file", &wrong]].concat());
        assert_eq!(denied.code, Some(1), "{denied:?}");
        assert!(denied.err.contains("authentication failed, invalid user ID or password"), "{denied:?}");
        pool.give_servers(&[
            "--store",
            &store,
            "--lease",
            "2m",
            "--etcd-user",
            "aquifer",
            "--etcd-password-file",
            &password,
        ]);
        pool.start_server_at(0);
        pool.until_leader();
        pool.agent("a", &[]);
        pool.until_succeeded(pool.submit(shell("true")));
        // What it knows of who is let in is gone with it.
        etcd.kill(0);
        etcd.spawn(0);
        etcd.until_healthy();
        pool.until_leader();
        pool.until_succeeded(pool.submit(shell("true")));
    }

    #[test]
    fn when_the_leader_is_killed_another_one_leads_and_nothing_is_lost_or_done_twice() {
        let Some(etcd) = EtcdServer::start(1) else { return };
        let mut pool = schedulers(3, &etcd);
        pool.agent("a", &[]);
        let long = pool.submit(until_file(&pool, "go"));
        pool.until_state(long, Running);
        let worker = pool.worker(long, 1, 0);
        let (stop, client, ledger) = (AtomicBool::new(false), pool.another_client(), pool.file("ledger"));
        let rounds = std::env::var("ROUNDS").map_or(5, |rounds| rounds.parse().expect("ROUNDS is a number"));
        let (acknowledged, mut took) = thread::scope(|scope| {
            let submitter = scope.spawn(|| submit_all(&client, &ledger, &stop));
            let mut took = Vec::new();
            for round in 0..rounds {
                let leader = pool.until_leader();
                pool.until_succeeded(pool.submit(shell("true")));
                pool.kill_server_at(leader);
                let killed = Instant::now();
                pool.until_leader();
                let elected = killed.elapsed();
                pool.until_succeeded(pool.submit(shell("true")));
                took.push(killed.elapsed());
                eprintln!(
                    "round {round}: another leads after {elected:?}, a job has ended after {:?}",
                    took[round]
                );
                pool.start_server_at(leader);
            }
            stop.store(true, Ordering::Relaxed);
            (submitter.join().expect("the submitter"), took)
        });
        took.sort();
        eprintln!(
            "{} jobs; failover p50 {:?}, longest {:?}",
            acknowledged.len(),
            took[rounds / 2],
            took[rounds - 1]
        );
        // It was killed somewhere in its lease; two cores that others use take their time.
        assert!(took[rounds / 2] < LEASE + Duration::from_secs(3), "placed again after {took:?}");
        assert!(10 < acknowledged.len(), "only {} jobs were submitted", acknowledged.len());
        check_ledger(&pool, &acknowledged);
        assert_eq!((pool.worker(long, 1, 0), pool.job(long).in_state(Running).attempt), (worker, 1));
        assert!(is_alive(worker.worker));
        fs::write(pool.file("go"), "").expect("a file");
        pool.until_state(long, Succeeded);
    }

    #[test]
    fn a_leader_that_stood_still_is_fenced_and_has_changed_nothing() {
        let Some(etcd) = EtcdServer::start(1) else { return };
        let mut pool = schedulers(2, &etcd);
        pool.agent("a", &[]);
        let long = pool.submit(until_file(&pool, "go"));
        pool.until_state(long, Running);
        let first = pool.until_leader();
        pool.server_at(first).signal(Signal::STOP);
        let stopped = Instant::now();
        let second = 1 - first;
        until("another leader", || pool.server_at(second).err().contains("restored").then_some(()));
        until("the agent has found it", || {
            let job = pool.another_client_of(second).job(long);
            (pool.agent_log("a").matches("session with the scheduler began").count() == 2
                && job.state() == Running)
                .then_some(())
        });
        let pause = std::env::var("PAUSE").map_or(0, |seconds| seconds.parse().expect("PAUSE is a number"));
        while stopped.elapsed() < Duration::from_secs(pause) {
            pool.another_client_of(second).until_succeeded(pool.submit(shell("sleep 1")));
        }
        // Somebody asks the one that stands still for what it must not do any more.
        let (direct, spec) = (pool.another_client_of(first), shell("true"));
        let (revision, before) = (etcd.revision(), unread(&pool.url_of(first)));
        let answer = thread::scope(|scope| {
            let request = v1::SubmitRequest { spec: Some(spec) };
            let asked = scope.spawn(|| direct.alone(async |mut stub| stub.submit(request).await));
            // The request is with the kernel of the one that cannot read it.
            until("the request", || (before + 200 < unread(&pool.url_of(first))).then_some(()));
            pool.server_at(first).signal(Signal::CONT);
            asked.join().expect("the client")
        });
        let refused = answer.expect_err("it must not be acknowledged");
        assert!(is_lost(&refused), "{refused:?}");
        let ended = pool.take_server_at(first).finish();
        assert_eq!(ended.code, Some(4), "{ended:?}");
        let said = format!("term 1 is over: the scheduler at {} leads", pool.url_of(second));
        assert!(ended.err.contains(&said), "{said} in {}", ended.err);
        assert_eq!(etcd.revision(), revision, "nothing was written");
        assert_eq!(pool.job(long).in_state(Running).attempt, 1);
        pool.start_server_at(first);
        fs::write(pool.file("go"), "").expect("a file");
        pool.until_succeeded(long);
    }

    #[test]
    fn a_scheduler_that_stands_by_names_the_leader_and_one_that_goes_leaves_at_once() {
        let Some(etcd) = EtcdServer::start(1) else { return };
        let mut pool = schedulers(2, &etcd);
        let (leader, other) = (pool.until_leader(), 1 - pool.until_leader());
        until("the other one stands by", || {
            pool.server_at(other).err().contains("standing by").then_some(())
        });
        let standby = pool.another_client_of(other);
        let status = standby.alone(async |mut stub| stub.list_nodes(v1::ListNodesRequest::default()).await);
        let status = status.expect_err("it does not lead");
        let url = pool.url_of(leader);
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(status.message(), format!("this scheduler stands by: the one at {url} leads"));
        assert_eq!(status.metadata().get("aquifer-leader").expect("a leader"), &url[..]);
        // A command beside a worker goes to the one that leads, also of who takes old answers.
        pool.agent("a", &[]);
        let job = pool.submit(shell("exec sleep 100000"));
        pool.until_state(job, Running);
        for stale in ["false", "true"] {
            let words = ["exec", "--server", &pool.url_of(other), &format!("job-{job}"), "echo", "hello"];
            assert_eq!(pool.begin_with(&words, "AQUIFER_STALE", stale).finish().ok(), "hello\n");
        }
        pool.cancel(job);
        let health = |at: usize, service: &str| {
            let client = pool.another_client_of(at);
            let request = HealthCheckRequest { service: service.into() };
            let answer = client.block_on(HealthClient::new(client.connection()).check(request));
            answer.expect("an answer").into_inner().status().as_str_name()
        };
        assert_eq!(health(leader, "aquifer.v1.Pool"), "SERVING");
        assert_eq!(health(other, "aquifer.v1.Pool"), "NOT_SERVING");
        assert_eq!(health(other, ""), "SERVING", "the process itself is well");
        for (at, leads) in [(leader, true), (other, false)] {
            let port = until("its numbers", || {
                let out = pool.server_at(at).out();
                out.lines().find_map(|line| line.strip_prefix("metrics on 127.0.0.1:")?.parse().ok())
            });
            let (status, said) = ask(port, "GET /readyz", "");
            assert_eq!(status, if leads { 200 } else { 503 }, "{said}");
            assert!(leads || said.contains("stands by"), "{said}");
            let (_, numbers) = ask(port, "GET /metrics", "");
            assert!(numbers.contains(&format!("\naquifer_leader {}\n", u8::from(leads))), "{numbers}");
            assert_eq!(numbers.contains("\naquifer_jobs{"), leads, "the pool's numbers are the leader's");
        }
        // Commands find the leader whichever is named first, and from one that stands by alone.
        let (first, second) = (pool.url_of(other), pool.url_of(leader));
        for list in [format!("{first},{second}"), format!("{second},{first}"), first.clone()] {
            let done = pool.aquifer(&["nodes", "--server", &list]);
            assert_eq!(done.code, Some(0), "{done:?}");
        }
        let gone = Instant::now();
        pool.server_at(leader).signal(Signal::TERM);
        assert_eq!(pool.take_server_at(leader).finish().code, Some(0));
        until("the other one leads", || pool.server_at(other).err().contains("restored").then_some(()));
        eprintln!("after an orderly end another one leads after {:?}", gone.elapsed());
        assert!(gone.elapsed() < LEASE, "{:?}", gone.elapsed());
        let done = pool.aquifer(&["nodes", "--server", &format!("{second},{first}")]);
        assert_eq!(done.code, Some(0), "one is away, the other leads: {done:?}");
        pool.start_server_at(leader);
    }

    #[test]
    fn etcd_may_be_killed_and_started_again() {
        let Some(mut etcd) = EtcdServer::start(1) else { return };
        let mut pool = schedulers(2, &etcd);
        pool.agent("a", &[]);
        let long = pool.submit(until_file(&pool, "go"));
        pool.until_state(long, Running);
        let worker = pool.worker(long, 1, 0);
        let (stop, client, ledger) = (AtomicBool::new(false), pool.another_client(), pool.file("ledger"));
        let acknowledged = thread::scope(|scope| {
            let submitter = scope.spawn(|| submit_all(&client, &ledger, &stop));
            for _ in 0..3 {
                pool.until_succeeded(pool.submit(shell("true")));
                etcd.kill(0);
                etcd.spawn(0);
                etcd.until_healthy();
            }
            pool.until_succeeded(pool.submit(shell("true")));
            stop.store(true, Ordering::Relaxed);
            submitter.join().expect("the submitter")
        });
        check_ledger(&pool, &acknowledged);
        let log = pool.server_at(pool.until_leader()).err();
        assert_eq!(log.matches("restored").count(), 1, "the same one leads all the time: {log}");

        // Away for too long: the leader gives up, and is started again as systemd would.
        let leader = pool.until_leader();
        etcd.kill(0);
        let unheard = pool.begin(&["run", "--key", "unheard", "--", "true"]);
        let ended = pool.take_server_at(leader).finish();
        assert_eq!(ended.code, Some(3), "{ended:?}");
        assert!(ended.err.contains("does not answer"), "{}", ended.err);
        pool.start_server_at(leader);
        let nobody = pool.aquifer(&["nodes"]);
        assert_eq!(nobody.code, Some(3), "{nobody:?}");
        assert!(nobody.err.contains("no scheduler leads at"), "{nobody:?}");
        etcd.spawn(0);
        etcd.until_healthy();
        pool.until_leader();
        let done = unheard.finish();
        assert!(matches!(done.code, Some(0 | 3)), "{done:?}");
        let again = pool.aquifer(&["run", "--key", "unheard", "--", "true"]).ok();
        let made = pool
            .jobs()
            .into_iter()
            .filter(|job| job.spec.as_ref().is_some_and(|it| it.client_key == "unheard"));
        assert_eq!(made.count(), 1, "{again}");
        assert_eq!((pool.worker(long, 1, 0), pool.job(long).in_state(Running).attempt), (worker, 1));
        fs::write(pool.file("go"), "").expect("a file");
        pool.until_succeeded(long);
    }

    #[test]
    fn the_loss_of_etcds_own_leader_costs_an_election_and_nothing_else() {
        let Some(mut etcd) = EtcdServer::start(3) else { return };
        let mut pool = schedulers(2, &etcd);
        pool.agent("a", &[]);
        let long = pool.submit(until_file(&pool, "go"));
        pool.until_state(long, Running);
        let worker = pool.worker(long, 1, 0);
        let (stop, client, ledger) = (AtomicBool::new(false), pool.another_client(), pool.file("ledger"));
        let acknowledged = thread::scope(|scope| {
            let submitter = scope.spawn(|| submit_all(&client, &ledger, &stop));
            for _ in 0..3 {
                pool.until_succeeded(pool.submit(shell("true")));
                let leader = etcd.leader();
                etcd.kill(leader);
                let killed = Instant::now();
                pool.until_succeeded(pool.submit(shell("true")));
                eprintln!("etcd's leader killed: a job has ended after {:?}", killed.elapsed());
                etcd.spawn(leader);
                etcd.until_healthy();
            }
            stop.store(true, Ordering::Relaxed);
            submitter.join().expect("the submitter")
        });
        check_ledger(&pool, &acknowledged);
        assert_eq!((pool.worker(long, 1, 0), pool.job(long).in_state(Running).attempt), (worker, 1));
        fs::write(pool.file("go"), "").expect("a file");
        pool.until_succeeded(long);
    }

    #[test]
    fn a_leader_that_is_cut_off_from_etcd_renews_no_lease_of_a_node_once_another_one_leads() {
        let Some(etcd) = EtcdServer::start(1) else { return };
        let wire = Wire::to(&etcd.endpoint(0));
        let mut pool = Pool::prepare(2, &["--store", &format!("etcd://127.0.0.1:{}/pool", wire.port)], None);
        pool.start_server_at(0);
        pool.until_leader();
        pool.set_server_flags(&["--store", &etcd.url("pool")]);
        pool.start_server_at(1);
        pool.agent("a", &[]);
        let long = pool.submit(until_file(&pool, "go"));
        pool.until_state(long, Running);
        let worker = pool.worker(long, 1, 0);
        wire.is_frozen.store(true, Ordering::SeqCst);
        until("another leader", || pool.server_at(1).err().contains("restored").then_some(()));
        // The agent speaks with the first one as ever, and gets no answer any more: its lease would end.
        let led = Instant::now();
        until("what was under way has arrived", || (Duration::from_secs(1) < led.elapsed()).then_some(()));
        assert_eq!(pool.agent_log("a").matches("session with the scheduler began").count(), 1);
        let renewed = fs::read_to_string(pool.dir().join("a/lease")).expect("a lease");
        let ended = pool.take_server_at(0).finish();
        assert_eq!(ended.code, Some(3), "{ended:?}");
        assert!(ended.err.contains("does not answer"), "{}", ended.err);
        // Until it ended, the agent's lease was not made longer; then the other one did it.
        until("the lease is renewed", || {
            let now = fs::read_to_string(pool.dir().join("a/lease")).expect("a lease");
            let sessions = pool.agent_log("a").matches("session with the scheduler began").count();
            assert!(now == renewed || sessions == 2, "{renewed} became {now}");
            (now != renewed).then_some(())
        });
        assert_eq!((pool.worker(long, 1, 0), pool.job(long).in_state(Running).attempt), (worker, 1));
        fs::write(pool.file("go"), "").expect("a file");
        pool.until_succeeded(long);
    }
}
