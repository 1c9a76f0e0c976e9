//! Clients that ask too much, send too much, say nothing or do not listen: others notice little of them.
//!
//! They come from another address of loopback, as clients are told apart by it.

#[path = "pool/authority.rs"]
mod authority;
mod pool;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aquifer_proto::v1;
use aquifer_proto::v1::pool_client::PoolClient;
use authority::Authority;
use pool::{Pool, ask, command, free_ports, shell, until};
use tokio::net::TcpSocket;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Where those come from who do not behave.
const THEM: &str = "127.0.0.2";
/// Calls by which others are measured.
const MEASURED: usize = 400;

/// One at a time is measured.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A scheduler with an agent, and where its numbers are.
fn pool(flags: &[&str]) -> (Pool, u16) {
    let port = free_ports(1);
    let metrics = format!("127.0.0.1:{port}");
    let mut all = vec!["--metrics", &metrics, "--lease", "2s"];
    all.extend(flags);
    (Pool::of_one(&all), port)
}

/// A runtime of its own, so that what is measured waits for nobody else of the test.
fn them() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// A connection from another address.
fn from(pool: &Pool, address: &str) -> PoolClient<Channel> {
    let endpoint = Endpoint::from_shared(pool.url()).expect("a URL").tcp_nodelay(true);
    let local: IpAddr = address.parse().expect("an address");
    // Little is taken that nobody reads.
    let endpoint = endpoint.local_address(Some(local)).initial_stream_window_size(4 << 10);
    let channel = endpoint.connect_lazy();
    PoolClient::new(channel).max_encoding_message_size(64 << 20)
}

/// A number of the scheduler.
fn number(port: u16, name: &str) -> f64 {
    let (_, text) = ask(port, "GET /metrics", "");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
}

/// Memory of the scheduler, in MiB: at present, and at most.
fn memory_mib(pool: &Pool) -> (u64, u64) {
    let pid = pool.server_at(0).child.id();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.trim_end_matches(" kB").trim().parse::<u64>().expect("a number") >> 10
    };
    (line("VmRSS:"), line("VmHWM:"))
}

/// How long calls of an orderly client take: its questions and its durable submissions, p99.
fn p99(pool: &Pool) -> Duration {
    let mut times: Vec<Duration> = (0..MEASURED)
        .map(|at| {
            let begun = Instant::now();
            match at % 2 {
                0 => _ = pool.submit(devices_that_nobody_has()),
                _ => _ = pool.job(1),
            }
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[MEASURED * 99 / 100]
}

/// A job that waits, so that what is measured is not how fast this machine starts processes.
fn devices_that_nobody_has() -> v1::JobSpec {
    pool::devices(command(&["true"]), 1, &[(1, "nothing")])
}

/// Fails if others were held up; machines of tests are busy, so that the bound is wide. What was measured is printed.
#[track_caller]
fn assert_undisturbed(what: &str, before: Duration, under: Duration) {
    println!("{what}: p99 of others {before:?} before, {under:?} under it");
    assert!(
        under <= 5 * before + Duration::from_millis(100),
        "{what}: {before:?} before, {under:?} under it"
    );
}

#[test]
fn a_client_that_floods_waits_for_its_turn_and_others_do_not() {
    let _alone = alone();
    let (pool, port) = pool(&[]);
    let before = p99(&pool);
    let (them, stop, answered) = (them(), AtomicBool::new(false), AtomicU64::new(0));
    let begun = Instant::now();
    let (under, refusals) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let flood = async |number: usize| {
                let mut refusals = Vec::new();
                let mut stub = from(&pool, THEM);
                while !stop.load(Ordering::Relaxed) {
                    let answer = match number % 2 {
                        0 => stub.list(v1::ListRequest::default()).await.map(|_| ()),
                        _ => stub.get(v1::GetRequest { job: 1 }).await.map(|_| ()),
                    };
                    match answer {
                        Ok(()) => _ = answered.fetch_add(1, Ordering::Relaxed),
                        Err(status) => refusals.push(status),
                    }
                }
                refusals
            };
            let floods: Vec<Vec<Status>> = them.block_on(futures::future::join_all((0..600).map(flood)));
            floods.concat()
        });
        until("the flood is there", || (300 < answered.load(Ordering::Relaxed)).then_some(()));
        let under = p99(&pool);
        stop.store(true, Ordering::Relaxed);
        (under, flood.join().expect("a flood"))
    });
    let (answered, most) = (answered.into_inner(), 1000.0 * (begun.elapsed().as_secs_f64() + 1.0));
    println!("{answered} calls of the flood were answered, {} refused", refusals.len());
    assert_undisturbed("a flood of 600 calls at a time", before, under);
    assert!((answered as f64) < most, "{answered} of at most {most}");
    assert!(!refusals.is_empty(), "600 are more than may be under way");
    for status in &refusals {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let said = status.message();
        assert!(
            said.starts_with(THEM) && said.contains("(--client-") && said.contains("try again in"),
            "{said}"
        );
        assert!(status.metadata().contains_key("grpc-retry-pushback-ms"), "{status:?}");
    }
    let refused = "aquifer_refusals_total{limit=\"client-calls\"}";
    until("they are counted", || (0.0 < number(port, refused)).then_some(()));
    assert!(pool.node("a").expect("a node").up);
    assert!(!pool.agent_log("a").contains("lease ran out"), "agents are not held up");
}

#[test]
fn the_command_line_waits_when_it_is_told_to() {
    let mut pool = Pool::with(&["--client-calls", "1"]);
    let watch = pool.begin(&["watch"]);
    until("the watch is under way", || {
        let refused = pool.once(async |mut stub| stub.status(v1::StatusRequest {}).await).err()?;
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        assert_eq!(
            refused.message(),
            "127.0.0.1 has 1 calls under way, as many as one address may have (--client-calls); try again in \
             1000 ms"
        );
        Some(())
    });
    let nodes = pool.begin(&["nodes"]);
    until("it is told to wait", || nodes.err().contains("try again in 1000 ms; it waits").then_some(()));
    drop(watch);
    nodes.finish().ok();
    pool.kill_server();
    pool.set_server_flags(&[]);
    pool.start_server();
}

/// Opens connections and says nothing on them.
async fn connections(pool: &Pool, count: usize) -> Vec<tokio::net::TcpStream> {
    let to: SocketAddr = pool.url().rsplit("//").next().expect("an address").parse().expect("an address");
    let mut opened = Vec::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(format!("{THEM}:0").parse().expect("an address")).expect("an address of loopback");
        opened.push(socket.connect(to).await.expect("it listens"));
    }
    opened
}

/// Of connections, those that the scheduler has ended.
fn ended(connections: &[tokio::net::TcpStream]) -> usize {
    let has_ended = |stream: &&tokio::net::TcpStream| loop {
        match stream.try_read(&mut [0; 4096]) {
            Ok(1..) => (), // It introduces itself.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
            Ok(0) | Err(_) => return true,
        }
    };
    connections.iter().filter(has_ended).count()
}

#[test]
fn a_thousand_idle_connections_cost_little_more_are_refused_and_none_stays_that_never_calls() {
    let _alone = alone();
    let (pool, port) = pool(&[]);
    let (before, them, (memory, _)) = (p99(&pool), them(), memory_mib(&pool));
    let _entered = them.enter();
    let opened = them.block_on(connections(&pool, 1000));
    let own = until("all are there", || {
        let all = number(port, "aquifer_connections");
        (1000.0 <= all).then_some(all - 1000.0)
    });
    assert!(own <= 3.0, "the agent's and ours: {own}");
    assert_undisturbed("1,000 idle connections", before, p99(&pool));
    let (after, _) = memory_mib(&pool);
    println!("1,000 idle connections: {memory} MiB before, {after} MiB with them");
    assert!(after < memory + 100, "{memory} MiB before, {after} MiB with them");
    let more = them.block_on(connections(&pool, 100));
    until("those beyond the limit are ended", || (ended(&more) == 100 - 24).then_some(()));
    assert_eq!(ended(&opened), 0);
    let refused = "aquifer_refusals_total{limit=\"client-connections\"}";
    until("they are counted", || (number(port, refused) == 76.0).then_some(()));
    until("who never calls is left", || (ended(&opened) == 1000 && ended(&more) == 100).then_some(()));
    until("their places are free", || (number(port, "aquifer_connections") == own).then_some(()));
}

#[test]
fn handshakes_that_never_end_hold_up_nobody_else() {
    let _alone = alone();
    let mut pool = Pool::prepare(1, &["--tls-cert", "head.pem", "--tls-key", "head.key"], None);
    let authority = Authority::new();
    authority.write(&pool.dir().join("ca.pem"));
    authority.issue(pool.dir(), "head", "127.0.0.1");
    pool.use_tls("ca.pem");
    pool.start_server();
    let them = them();
    let silent = them.block_on(connections(&pool, 1000));
    let begun = Instant::now();
    pool.call(async |mut stub| stub.status(v1::StatusRequest {}).await).expect("an answer");
    let took = begun.elapsed();
    println!("beside {} handshakes that never end, one took {took:?}", silent.len());
    assert!(took < Duration::from_secs(5), "{took:?}, and not after the others were given up");
}

/// A frame of HTTP/2. Source: RFC 9113, 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// What a client says that watches. Source: RFC 9113, 3.4, 6.1, 6.2 and 6.5; RFC 7541, 6.2.2.
fn watching() -> Vec<u8> {
    let mut headers = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "x"),
        (":path", "/aquifer.v1.Pool/Watch"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        headers.push(0);
        for text in [name, value] {
            headers.push(text.len() as u8);
            headers.extend(text.bytes());
        }
    }
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    all.extend(frame(4, 0, 0, &[]));
    all.extend(frame(1, 4, 1, &headers));
    all.extend(frame(0, 1, 1, &[0; 5]));
    all
}

#[test]
fn who_began_and_is_gone_without_a_word_is_noticed() {
    let _alone = alone();
    let (pool, port) = pool(&[]);
    let to = pool.url().replace("http://", "");
    let own = number(port, "aquifer_connections");
    let mut silent = TcpStream::connect(to).expect("it listens");
    silent.write_all(&watching()).expect("it reads");
    until("it has a place", || (number(port, "aquifer_connections") == own + 1.0).then_some(()));
    // From now on it answers no ping, as a machine that was switched off.
    silent.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    silent.read_to_end(&mut Vec::new()).expect("it is ended");
    until("its place is free", || (number(port, "aquifer_connections") <= own).then_some(()));
}

/// Of which the scheduler keeps more.
const NOTES: u32 = 10_000;

#[test]
fn a_slow_reader_holds_up_nobody_and_misses_nothing() {
    let _alone = alone();
    let (pool, _) = pool(&["--log-level", "warn"]);
    let array = Some(v1::ArrayRange { first: 1, last: NOTES, step: 1 });
    let job = pool.submit(v1::JobSpec { name: "many".into(), array, ..devices_that_nobody_has() });
    let cancel = v1::CancelRequest { job, whole_array: true };
    pool.call(async |mut stub| stub.cancel(cancel).await).expect("all of them");
    let (before, them, (memory, _)) = (p99(&pool), them(), memory_mib(&pool));
    let mut readers = them.block_on(async {
        let mut readers = Vec::new();
        for _ in 0..200 {
            let mut stub = from(&pool, THEM);
            let watch = v1::WatchRequest { after_seq: Some(0), ..Default::default() };
            readers.push(stub.watch(watch).await.expect("a stream").into_inner());
        }
        readers
    });
    assert_undisturbed("200 readers that do not read", before, p99(&pool));
    let (after, _) = memory_mib(&pool);
    println!("200 readers that do not read: {memory} MiB before, {after} MiB with them");
    assert!(after < memory + 48, "{memory} MiB before, {after} MiB with them");
    let reader = &mut readers[0];
    let read = async {
        let (mut seen, mut last) = (0, None);
        while seen < NOTES {
            let note = reader.message().await.expect("a note").expect("no end");
            assert!(last.is_none_or(|last| note.seq == last + 1), "{} after {last:?}", note.seq);
            last = Some(note.seq);
            seen += u32::from(note.text.ends_with(" cancelled"));
        }
    };
    them.block_on(async { tokio::time::timeout(Duration::from_secs(60), read).await }).expect("all notes");
}

#[test]
fn large_messages_are_refused_and_hold_no_memory() {
    let _alone = alone();
    let (pool, _) = pool(&[]);
    let (before, them, (_, memory)) = (p99(&pool), them(), memory_mib(&pool));
    let of = |bytes: usize| {
        let env = [("DATA".to_string(), "x".repeat(bytes))].into();
        v1::SubmitRequest { spec: Some(v1::JobSpec { env, ..shell("true") }) }
    };
    let refused = them.block_on(async { from(&pool, THEM).submit(of(10 << 20)).await }).expect_err("10 MiB");
    assert!([Code::OutOfRange, Code::ResourceExhausted].contains(&refused.code()), "{refused:?}");
    let stop = AtomicBool::new(false);
    let (under, answers) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            // Below the limit of a message, and too many at a time.
            let large = async |_| {
                let (mut stub, mut answers) = (from(&pool, THEM), Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    answers.push(stub.submit(of((4 << 20) - 1000)).await.expect_err("too large"));
                }
                answers
            };
            them.block_on(futures::future::join_all((0..64).map(large))).concat()
        });
        let under = p99(&pool);
        stop.store(true, Ordering::Relaxed);
        (under, flood.join().expect("a flood"))
    });
    let (_, after) = memory_mib(&pool);
    println!("64 clients with 4 MiB each: {memory} MiB before, {after} MiB at most; {} calls", answers.len());
    assert_undisturbed("64 clients with 4 MiB each", before, under);
    assert!(answers.iter().all(|it| [Code::InvalidArgument, Code::ResourceExhausted].contains(&it.code())));
    let full = answers.iter().filter(|it| it.message().contains("no more at a time")).count();
    assert!(0 < full, "{} answers, none of which says that there is no room", answers.len());
    // Less than all of the messages at once, each of which would be held twice: as bytes and as a message.
    assert!(after < memory + 64 * 4, "{memory} MiB before, {after} MiB at most");
}
