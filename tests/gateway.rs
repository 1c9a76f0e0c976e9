//! The gateway of a pool of real processes.

mod pool;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aquifer_proto::v1;
use pool::{Pool, Running, ask, free_ports, program, send, start, training, until};
use rustix::process::Signal;
use serde_json::Value;
use v1::JobState;

/// A gateway of a pool, once it listens.
struct Gateway {
    process: Running,
    port: u16,
}

fn gateway(pool: &Pool, flags: &[&str]) -> Gateway {
    let (port, url) = (free_ports(1), pool.url());
    let listen = format!("127.0.0.1:{port}");
    let words = [&["gateway", "--server", &url, "--listen", &listen][..], flags].concat();
    let mut process = start(pool.dir(), "gateway", program(pool.dir(), &words));
    process.until_out("listening on ");
    Gateway { process, port }
}

impl Gateway {
    fn end(self) {
        self.process.signal(Signal::TERM);
        let done = self.process.finish();
        assert_eq!(done.code, Some(0), "{done:?}");
    }
}

/// Checkpoints of a model that has learned next to nothing.
fn model(pool: &Pool) -> String {
    let job = pool.submit(training(pool, "gateway", 2));
    pool.until_succeeded(job);
    pool.file("checkpoints-gateway")
}

fn service(model: &str, served_name: &str, ranks: u32) -> v1::JobSpec {
    let (model, served_name) = (model.into(), served_name.into());
    let options = v1::Serve { model, served_name, ..Default::default() };
    let request = Some(v1::Request { cpus_milli: 1000, ..Default::default() });
    let program = Some(v1::role::Program::Serve(options));
    let role = v1::Role { ranks, request, program, ..Default::default() };
    v1::JobSpec { name: "service".into(), roles: vec![role], retries: 10, ..Default::default() }
}

/// Asks a model; the status and all of the answer.
fn complete(port: u16, body: &Value, headers: &str) -> std::io::Result<(u16, String)> {
    let body = body.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    let (status, (_, body)) =
        status.zip(answer.split_once("\r\n\r\n")).ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((status, body.to_string()))
}

fn until_replicas(gateway: &Gateway, model: &str, replicas: usize) {
    let line = format!("aquifer_gateway_replicas{{model=\"{model}\"}} {replicas}");
    until(&line, || ask(gateway.port, "GET /metrics", "").1.lines().any(|it| it == line).then_some(()));
}

#[test]
fn no_request_that_had_not_begun_to_stream_fails_when_a_replica_is_killed() {
    let pool = Pool::of_one(&["--backoff", "10ms"]);
    let model = model(&pool);
    let job = pool.submit(service(&model, "chat", 2));
    pool.until_state(job, JobState::Running);
    let gateway = gateway(&pool, &[]);
    until_replicas(&gateway, "chat", 2);
    let (goes_on, failures) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
    let client = |at: usize| {
        let (goes_on, failures, port) = (goes_on.clone(), failures.clone(), gateway.port);
        std::thread::spawn(move || {
            let (mut whole, mut cut) = (0, 0);
            while goes_on.load(Ordering::Relaxed) {
                let stream = at.is_multiple_of(2);
                let asked = serde_json::json!({
                    "model": "chat", "prompt": format!("client {at} asks {whole}"), "max_tokens": 24, "stream": stream,
                });
                match complete(port, &asked, "") {
                    Ok((200, body)) if stream && body.contains("replica_lost") => cut += 1,
                    Ok((200, body)) if !stream || body.contains("data: [DONE]") => whole += 1,
                    other => failures.lock().unwrap().push(format!("{other:?}")),
                }
            }
            (whole, cut)
        })
    };
    let clients: Vec<_> = (0..6).map(client).collect();
    let answered = |least: f64| {
        until("answers", || {
            let text = ask(gateway.port, "GET /metrics", "").1;
            let line =
                text.lines().find(|line| line.contains("requests_total{model=\"chat\",status=\"200\"}"))?;
            let count: f64 = line.rsplit(' ').next()?.parse().ok()?;
            (least <= count).then_some(count)
        })
    };
    let before = answered(30.0);
    for rank in [0, 1] {
        send(pool.worker(job, 1, rank).worker, Signal::KILL);
        let text = format!("restart {rank}");
        until(&text, || (2 + rank < pool.job(job).ranks.iter().map(|it| it.rank).max()? + 1).then_some(()));
        until_replicas(&gateway, "chat", 2);
    }
    answered(before + 60.0);
    goes_on.store(false, Ordering::Relaxed);
    let ended: Vec<(u32, u32)> = clients.into_iter().map(|client| client.join().expect("a client")).collect();
    let failures = failures.lock().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(ended.iter().all(|(whole, _)| 0 < *whole), "{ended:?}");
    // At each of two kills a stream of each client at most was under way.
    assert!(ended.iter().map(|(_, cut)| cut).sum::<u32>() <= 6, "{ended:?}");
    let text = ask(gateway.port, "GET /metrics", "").1;
    let moved = text.lines().filter(|line| line.starts_with("aquifer_gateway_moved_total"));
    let moved: f64 = moved.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    assert!(0.0 < moved, "some went to another replica: {text}");
    gateway.end();
}

#[test]
fn a_gateway_knows_all_services_and_answers_to_keys_alone() {
    let pool = Pool::of_one(&[]);
    let model = model(&pool);
    let keys = pool.file("keys");
    fs::write(&keys, "one\n\ntwo\n").expect("a file");
    let gateway = gateway(&pool, &["--api-keys", &keys, "--hold", "300ms"]);
    // Without a name of its own a service has that of its directory.
    let job = pool.submit(service(&model, "", 1));
    let waits = pool.submit(v1::JobSpec { after: vec![job], ..service(&model, "later", 1) });
    let key = "authorization: Bearer two\r\n";
    let asked = |model: &str| serde_json::json!({"model": model, "prompt": "a", "max_tokens": 2});
    let name = "checkpoints-gateway";
    until("an answer", || {
        (complete(gateway.port, &asked(name), key).expect("an answer").0 == 200).then_some(())
    });
    let (status, models) = ask(gateway.port, "GET /v1/models", key);
    assert!(status == 200 && models.contains(name) && models.contains("later"), "{models}");
    let (status, body) = complete(gateway.port, &asked("nobody"), key).expect("an answer");
    assert!(status == 404 && body.contains("there are \\\"checkpoints-gateway\\\", \\\"later\\\""), "{body}");
    let (status, body) = complete(gateway.port, &asked("later"), key).expect("an answer");
    assert!(status == 503 && body.contains("no replica of \\\"later\\\" was ready"), "{body}");
    for wrong in ["", "authorization: Bearer three\r\n"] {
        assert_eq!(complete(gateway.port, &asked(name), wrong).expect("an answer").0, 401);
    }
    assert_eq!(ask(gateway.port, "GET /readyz", "").0, 200);
    // What is under way when it is told to stop is answered.
    let body = serde_json::json!({"model": name, "prompt": "a", "max_tokens": 9, "stream": true}).to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).expect("it listens");
    let length = body.len();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n{key}\r\n"
    )
    .expect("it reads");
    let mut goes_on = [0; 25];
    stream.read_exact(&mut goes_on).expect("it wants the body");
    assert_eq!(&goes_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    gateway.process.signal(Signal::TERM);
    until("nobody else is let in", || TcpStream::connect(("127.0.0.1", gateway.port)).err());
    stream.write_all(body.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("[DONE]"), "{answer}");
    assert_eq!(gateway.process.finish().code, Some(0));
    pool.cancel(waits);
}

#[test]
fn a_gateway_beyond_loopback_needs_keys_and_a_token_that_the_pool_takes() {
    let pool = Pool::with_token("s3cret");
    let url = pool.url();
    let run = |words: &[&str]| {
        let words = [&["gateway", "--server", &url][..], words].concat();
        start(pool.dir(), "gateway", program(pool.dir(), &words)).finish()
    };
    let done = run(&["--listen", "0.0.0.0:0"]);
    assert!(done.code == Some(1) && done.err.contains("needs keys"), "{done:?}");
    let done = run(&["--listen", "127.0.0.1:0"]);
    assert!(done.code == Some(1) && done.err.contains("token"), "{done:?}");
    let done = run(&["--hold", "2h"]);
    assert!(
        done.code == Some(2) && done.err.contains("--hold is \"2h\": expected 0 to 3600000 ms"),
        "{done:?}"
    );
    let token = pool.file("token");
    let gateway = gateway(&pool, &["--token-file", &token]);
    assert_eq!(ask(gateway.port, "GET /v1/models", "").0, 401);
    assert_eq!(ask(gateway.port, "GET /v1/models", "authorization: Bearer s3cret\r\n").0, 200);
    gateway.end();
}

#[test]
fn a_service_that_sleeps_is_woken_by_a_request() {
    let pool = Pool::of_one(&[]);
    let mut spec = service(&model(&pool), "chat", 1);
    let Some(v1::role::Program::Serve(options)) = &mut spec.roles[0].program else {
        unreachable!("a service")
    };
    options.autoscale = Some(v1::Autoscale { sleep_after_ms: Some(1_000), ..Default::default() });
    let job = pool.submit(spec);
    let gateway = gateway(&pool, &[]);
    let asked = serde_json::json!({"model": "chat", "prompt": "a", "max_tokens": 2});
    let asleep = || {
        pool.until_job(job, "asleep", |job| {
            job.state() == JobState::Pending && job.reason.starts_with("sleeps")
        });
        until("nothing of it is left", || {
            (pool.node("a").is_some_and(|node| node.cpus_milli_held == 0)).then_some(())
        });
    };
    for _ in 0..2 {
        asleep();
        let (status, models) = ask(gateway.port, "GET /v1/models", "");
        assert!(status == 200 && models.contains("chat"), "what sleeps is there: {models}");
        let (status, body) = complete(gateway.port, &asked, "").expect("an answer");
        assert_eq!(status, 200, "{body}");
    }
    asleep();
    let explained = pool.aquifer(&["explain", &format!("job-{job}")]).ok();
    assert!(explained.contains("a request for \"chat\" at a gateway wakes it"), "{explained}");
    assert_eq!(pool.aquifer(&["job", "wake", &format!("job-{job}")]).ok(), format!("job-{job} is awake\n"));
    let ended = pool.until_state(job, JobState::Running);
    assert_eq!((ended.attempt, ended.failures), (4, 0), "{}", ended.last_failure);
    pool.until_note("is to have 0 replicas instead of 1: nobody asks");
    gateway.end();
}
