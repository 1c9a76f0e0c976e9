//! A pool that speaks TLS: real processes, certificates of a test's own authorities, and all that can be wrong with them.

mod pool;

#[path = "pool/authority.rs"]
mod authority;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::thread;

use authority::Authority;
use pool::{Done, Pool, free_ports, program, shell, start, until};

const TOKEN: &str = "a-token-that-nobody-may-read";
const OWN: [&str; 4] = ["--tls-cert", "head.pem", "--tls-key", "head.key"];

/// A scheduler with a certificate for 127.0.0.1, signed by `ca.pem`; `extra`: further flags.
fn secured(authority: &Authority, extra: &[&str]) -> Pool {
    let flags: Vec<&str> = OWN.iter().chain(extra).copied().collect();
    let mut pool = Pool::prepare(1, &flags, Some(TOKEN));
    authority.write(&pool.dir().join("ca.pem"));
    authority.issue(pool.dir(), "head", "127.0.0.1");
    pool.use_tls("ca.pem");
    pool.start_server();
    pool
}

/// `aquifer nodes` against an address, with the pool's token.
fn nodes(pool: &Pool, server: &str, flags: &[&str]) -> Done {
    let token = pool.file("token");
    let mut words = vec!["nodes", "--server", server, "--token-file", &token];
    words.extend(flags);
    start(pool.dir(), "nodes", program(pool.dir(), &words)).finish()
}

#[track_caller]
fn says(done: &Done, code: i32, sentence: &str) {
    assert_eq!(done.code, Some(code), "{done:?}");
    assert!(done.err.contains(sentence), "no {sentence:?} in {done:?}");
}

/// Hands everything on to a scheduler, and keeps a copy of what clients say.
fn tapped(to: String) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
    let tap = heard.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(&to).expect("a scheduler");
            let ends = |stream: &TcpStream| stream.try_clone().expect("the same stream");
            let (back, forth) = ((ends(&server), ends(&client)), (client, server));
            for ((mut from, mut to), taps) in [(forth, true), (back, false)] {
                let tap = tap.clone();
                thread::spawn(move || {
                    let mut piece = [0; 4096];
                    while let Ok(read @ 1..) = from.read(&mut piece) {
                        if taps {
                            tap.lock().expect("no panic").extend(&piece[..read]);
                        }
                        if to.write_all(&piece[..read]).is_err() {
                            break;
                        }
                    }
                    _ = to.shutdown(Shutdown::Write); // It may have gone.
                });
            }
        }
    });
    (port, heard)
}

#[test]
fn jobs_run_on_nodes_that_speak_tls() {
    let mut pool = secured(&Authority::new(), &["--metrics", "127.0.0.1:0"]);
    pool.agent("a", &[]);
    let job = pool.submit(shell("echo through TLS"));
    pool.until_succeeded(job);
    assert_eq!(pool.log(job).trim(), "through TLS");
    let told = nodes(&pool, &pool.url(), &["--tls-ca", "ca.pem"]).ok();
    assert!(told.contains('a'), "{told}");
    let without_scheme = pool.url().replace("https://", "");
    nodes(&pool, &without_scheme, &["--tls-ca", "ca.pem"]).ok();

    let out = pool.server_at(0).out();
    let metrics = out.lines().find_map(|line| line.strip_prefix("metrics on ")).expect("an address");
    refuses_clear_text(metrics, "/metrics");
    let not_grpc = nodes(&pool, &format!("https://{metrics}"), &["--tls-ca", "ca.pem"]);
    says(&not_grpc, 1, "speaks TLS, but not gRPC: is it the address of --metrics");
}

/// HTTP in clear text is answered with what to do.
fn refuses_clear_text(address: &str, path: &str) {
    let mut plain = TcpStream::connect(address).expect("a connection");
    plain.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("a request");
    let mut answer = String::new();
    plain.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.0 400") && answer.contains("this speaks TLS"), "{answer}");
}

#[test]
fn a_gateway_with_a_certificate_speaks_tls_to_all() {
    let pool = secured(&Authority::new(), &[]);
    let (url, token) = (pool.url(), pool.file("token"));
    let words = ["gateway", "--listen", "127.0.0.1:0", "--server", &url, "--token-file", &token];
    let words = [&words[..], &["--tls-ca", "ca.pem"], &OWN].concat();
    let mut gateway = start(pool.dir(), "gateway", program(pool.dir(), &words));
    gateway.until_out("listening on ");
    let out = gateway.out();
    let address = out.lines().find_map(|line| line.strip_prefix("listening on ")).expect("an address");
    refuses_clear_text(address, "/v1/models");
    // Whose certificate is good, and who is no scheduler.
    let not_grpc = nodes(&pool, &format!("https://{address}"), &["--tls-ca", "ca.pem"]);
    says(&not_grpc, 1, "speaks TLS, but not gRPC");
    gateway.signal(rustix::process::Signal::TERM);
    assert_eq!(gateway.finish().code, Some(0));
}

#[test]
fn a_dashboard_beyond_loopback_speaks_tls_to_all() {
    let pool = secured(&Authority::new(), &[]);
    let url = pool.url();
    let words = ["dashboard", "--listen", "0.0.0.0:0", "--sign-in", "token", "--host", "pool.example.org"];
    let words = [&words[..], &["--server", &url, "--tls-ca", "ca.pem"], &OWN].concat();
    let mut dashboard = start(pool.dir(), "dashboard", program(pool.dir(), &words));
    dashboard.until_out("The dashboard is at https://pool.example.org:");
    let out = dashboard.out();
    let port = out.trim().trim_end_matches('/').rsplit(':').next().expect("a port");
    let address = format!("127.0.0.1:{port}");
    refuses_clear_text(&address, "/");
    let not_grpc = nodes(&pool, &format!("https://{address}"), &["--tls-ca", "ca.pem"]);
    says(&not_grpc, 1, "speaks TLS, but not gRPC");
    dashboard.signal(rustix::process::Signal::TERM);
    assert_eq!(dashboard.finish().code, Some(0));
}

#[test]
fn what_is_said_travels_in_clear_text_without_tls_and_not_with_it() {
    // Of a message: words of a head, as the token is, are packed.
    let secret = "a-name-that-nobody-may-read";
    let hears = |pool: &Pool, scheme: &str, flags: &[&str]| {
        let (port, heard) = tapped(pool.url().split_once("://").expect("a URL").1.to_string());
        let (server, token) = (format!("{scheme}://127.0.0.1:{port}"), pool.file("token"));
        let mut words = vec!["queues", "set", secret, "--server", &server, "--token-file", &token];
        words.extend(flags);
        start(pool.dir(), "queues", program(pool.dir(), &words)).finish().ok();
        let heard = heard.lock().expect("no panic");
        heard.windows(secret.len()).any(|bytes| bytes == secret.as_bytes())
    };
    assert!(hears(&Pool::with_token(TOKEN), "http", &[]));
    assert!(!hears(&secured(&Authority::new(), &[]), "https", &["--tls-ca", "ca.pem"]));
}

#[test]
fn whoever_cannot_connect_is_told_why() {
    let authority = Authority::new();
    let pool = secured(&authority, &[]);
    Authority::new().write(&pool.dir().join("other.pem"));
    let address = pool.url().replace("https://", "");
    let ca = ["--tls-ca", "ca.pem"];
    let plain = nodes(&pool, &format!("http://{address}"), &[]);
    says(&plain, 1, "this scheduler speaks TLS, and was called in clear text: write https:// in --server");
    let other = nodes(&pool, &pool.url(), &["--tls-ca", "other.pem"]);
    says(
        &other,
        1,
        "the authority in --tls-ca \"other.pem\" has not signed the certificate of https://127.0.0.1:",
    );
    let nobody = nodes(&pool, &pool.url(), &[]);
    says(&nobody, 1, "name the pool's with --tls-ca FILE");
    let named = nodes(&pool, &pool.url().replace("127.0.0.1", "localhost"), &ca);
    says(&named, 1, "is for 127.0.0.1, not for localhost: use that name in --server");
    let clear = nodes(&pool, "http://head:7700", &ca);
    says(&clear, 2, "--tls-ca is given, but http://head:7700 sends everything in clear text");
    let missing = nodes(&pool, &pool.url(), &["--tls-ca", "missing.pem"]);
    says(&missing, 2, "--tls-ca is \"missing.pem\": No such file");
    let no_certificate = nodes(&pool, &pool.url(), &["--tls-ca", "head.key"]);
    says(&no_certificate, 2, "--tls-ca is \"head.key\": no certificate is in it");

    let plain = Pool::start();
    let secret = format!("{}/ca.pem", pool.dir().display());
    let server = plain.url().replace("http://", "https://");
    let words = ["nodes", "--server", &server, "--tls-ca", &secret];
    let no_tls = start(plain.dir(), "nodes", program(plain.dir(), &words)).finish();
    says(&no_tls, 1, "does not speak TLS: give its scheduler --tls-cert and --tls-key, or write http://");
}

#[test]
fn a_certificate_that_ended_is_told_with_how_long_ago() {
    let authority = Authority::new();
    let mut pool = secured(&authority, &[]);
    pool.kill_server();
    authority.issue_until(pool.dir(), "head", "127.0.0.1", 2020);
    pool.start_server();
    let ended = nodes(&pool, &pool.url(), &["--tls-ca", "ca.pem"]);
    says(&ended, 1, " days ago: give the scheduler a new one");
    authority.issue(pool.dir(), "head", "127.0.0.1");
    until("the new certificate", || {
        (nodes(&pool, &pool.url(), &["--tls-ca", "ca.pem"]).code == Some(0)).then_some(())
    });
}

#[test]
fn a_scheduler_does_not_start_with_files_that_cannot_be_used() {
    let dir = tempfile::tempdir().expect("a directory");
    let (dir, authority) = (dir.path(), Authority::new());
    authority.write(&dir.join("ca.pem"));
    authority.issue(dir, "head", "127.0.0.1");
    authority.issue(dir, "node", "127.0.0.1");
    let open = |name: &str, mode| {
        fs::copy(dir.join("head.key"), dir.join(name)).expect("a copy");
        fs::set_permissions(dir.join(name), Permissions::from_mode(mode)).expect("a mode");
    };
    open("everyones.key", 0o604);
    open("writable.key", 0o620);
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n";
    fs::write(dir.join("locked.key"), locked).expect("a file");
    fs::set_permissions(dir.join("locked.key"), Permissions::from_mode(0o600)).expect("a mode");
    let server = |flags: &[&str]| {
        let mut words = vec!["server", "--listen", "127.0.0.1:0", "--data-dir", "data"];
        words.extend(flags);
        start(dir, "server", program(dir, &words)).finish()
    };
    let with = |certificate: &str, key: &str| server(&["--tls-cert", certificate, "--tls-key", key]);
    says(&with("head.pem", "node.key"), 2, "--tls-key is \"node.key\": the key does not fit the certificate");
    says(&with("head.pem", "everyones.key"), 2, "others can read the key (mode 604): chmod 600 it");
    says(&with("head.pem", "writable.key"), 2, "others can read the key (mode 620): chmod 600 it");
    says(&with("head.pem", "locked.key"), 2, "its key is encrypted");
    says(&with("head.pem", "missing.key"), 2, "--tls-key is \"missing.key\": No such file");
    says(&with("head.pem", "."), 2, "--tls-key is \".\": Is a directory");
    says(&with("head.key", "head.key"), 2, "--tls-cert is \"head.key\": no certificate is in it");
    says(&server(&["--tls-cert", "head.pem"]), 2, "--tls-cert is given without --tls-key");
    says(&server(&["--tls-client-ca", "ca.pem"]), 2, "--tls-client-ca is given without --tls-cert");
    let flags: Vec<&str> = OWN.iter().chain(&["--advertise", "http://head:7700"]).copied().collect();
    says(&server(&flags), 2, "--advertise is \"http://head:7700\": expected a URL like https://head-1:7700");
    let flags: Vec<&str> = OWN.iter().chain(&["--tls-client-ca", "head.key"]).copied().collect();
    says(&server(&flags), 2, "--tls-client-ca is \"head.key\": no certificate is in it");
}

#[test]
fn new_certificates_are_taken_up_without_a_restart() {
    let (old, new) = (Authority::new(), Authority::new());
    let mut pool = secured(&old, &[]);
    pool.agent("a", &[]);
    let works = |ca: &str| nodes(&pool, &pool.url(), &["--tls-ca", ca]).code == Some(0);
    new.write(&pool.dir().join("new.pem"));
    assert!(!works("new.pem"));
    fs::write(pool.dir().join("head.pem"), "half of").expect("a file");
    until("the scheduler has seen it", || {
        assert!(works("ca.pem"), "the certificate of before stays in use");
        pool.server_at(0).err().contains("no certificate is in it").then_some(())
    });
    new.issue(pool.dir(), "head", "127.0.0.1");
    until("the new certificate", || works("new.pem").then_some(()));
    assert!(!works("ca.pem"));

    // The agent's connection goes on; the next one is made with the authority that its file has then.
    pool.kill_server();
    pool.start_server();
    until("the agent has met the new certificate", || {
        pool.agent_log("a").contains("has not signed the certificate of").then_some(())
    });
    new.write(&pool.dir().join("ca.pem"));
    until("a session again", || {
        (pool.agent_log("a").matches("session with the scheduler began").count() == 2).then_some(())
    });
    pool.use_tls("ca.pem");
}

#[test]
fn clients_need_a_certificate_where_their_authority_is_named() {
    let (authority, of_nodes) = (Authority::new(), Authority::new());
    let mut pool = Pool::prepare(1, &[&OWN[..], &["--tls-client-ca", "nodes.pem"]].concat(), Some(TOKEN));
    authority.write(&pool.dir().join("ca.pem"));
    of_nodes.write(&pool.dir().join("nodes.pem"));
    authority.issue(pool.dir(), "head", "127.0.0.1");
    of_nodes.issue(pool.dir(), "node", "node-1");
    let own = [pool.file("node.pem"), pool.file("node.key")];
    pool.use_tls("ca.pem");
    pool.show(&own);
    pool.start_server();
    pool.agent("a", &["--tls-cert", &own[0], "--tls-key", &own[1]]);
    let job = pool.submit(shell("true"));
    pool.until_succeeded(job);
    let ask = |flags: &[&str]| nodes(&pool, &pool.url(), &[&["--tls-ca", "ca.pem"], flags].concat());
    ask(&["--tls-cert", "node.pem", "--tls-key", "node.key"]).ok();
    for _ in 0..5 {
        says(&ask(&[]), 1, "wants a certificate of its clients: name one with --tls-cert");
        says(&ask(&OWN), 1, "does not take the certificate in --tls-cert");
    }
}

#[test]
fn a_scheduler_says_that_the_token_travels_in_clear_text_beyond_this_machine() {
    let dir = tempfile::tempdir().expect("a directory");
    let (dir, authority) = (dir.path(), Authority::new());
    authority.issue(dir, "head", "127.0.0.1");
    let log_of = |address: &str, flags: &[&str]| {
        let listen = format!("{address}:{}", free_ports(1));
        let mut words = vec!["server", "--listen", &listen, "--data-dir", "data"];
        words.extend(flags);
        let mut command = program(dir, &words);
        command.env("AQUIFER_TOKEN", TOKEN);
        let mut server = start(dir, "server", command);
        server.until_out("listening on");
        server.signal(rustix::process::Signal::TERM);
        server.finish().err
    };
    let warns = |log: &str| log.matches("the token and all else travel in clear text").count();
    assert_eq!(warns(&log_of("0.0.0.0", &[])), 1);
    assert_eq!(warns(&log_of("127.0.0.1", &[])), 0);
    assert_eq!(warns(&log_of("0.0.0.0", &OWN)), 0);
    assert!(!log_of("0.0.0.0", &OWN).contains(TOKEN));
}

#[test]
fn a_file_of_settings_names_certificates_too() {
    let authority = Authority::new();
    let mut pool = Pool::prepare(1, &["--config", "pool.toml"], None);
    authority.write(&pool.dir().join("ca.pem"));
    authority.issue(pool.dir(), "head", "127.0.0.1");
    let settings = "[server]\ntls-cert = \"head.pem\"\ntls-key = \"head.key\"\n\n[agent]\ntls-ca = \"ca.pem\"\nserver = \"https://127.0.0.1:1\"\n";
    fs::write(pool.dir().join("pool.toml"), settings).expect("a file");
    pool.use_tls("ca.pem");
    pool.start_server();
    let url = pool.url();
    let words = [
        "agent",
        "--config",
        "pool.toml",
        "--server",
        &url,
        "--devices",
        "none",
        "--run-as",
        "agent",
        "--state-dir",
        "b",
    ];
    let agent = start(pool.dir(), "agent", program(pool.dir(), &words));
    until("a session", || agent.err().contains("session with the scheduler began").then_some(()));
}
