//! An etcd of a test: members on loopback, with their data in a directory of their own.

#![allow(dead_code)] // Every test binary uses a part of it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A cluster. It ends with its owner.
pub struct EtcdServer {
    directory: TempDir,
    members: Vec<Member>,
    flags: Vec<String>,
}

struct Member {
    client: u16,
    peer: u16,
    metrics: u16,
    process: Option<Child>,
}

impl EtcdServer {
    /// Starts members; `None`, said aloud, where there is no etcd.
    pub fn start(members: usize) -> Option<EtcdServer> {
        EtcdServer::with(members, &[])
    }

    /// The same with more flags. With `--cert-file` clients speak TLS, but for what tests themselves ask.
    pub fn with(members: usize, flags: &[&str]) -> Option<EtcdServer> {
        let installed =
            Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if installed.is_err() {
            eprintln!("skipped: there is no etcd (apt-get install etcd-server)");
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        // All are held until all are chosen.
        let held: Vec<TcpListener> =
            (0..3 * members).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let ports =
            held.iter().map(|port| port.local_addr().expect("an address").port()).collect::<Vec<u16>>();
        drop(held);
        let members = ports.chunks(3).map(|ports| Member {
            client: ports[0],
            peer: ports[1],
            metrics: ports[2],
            process: None,
        });
        let flags = flags.iter().map(ToString::to_string).collect();
        let mut cluster = EtcdServer { directory, members: members.collect(), flags };
        (0..cluster.members.len()).for_each(|at| cluster.spawn(at));
        cluster.until_healthy();
        Some(cluster)
    }

    /// `etcd://…` with this prefix.
    pub fn url(&self, prefix: &str) -> String {
        let members: Vec<String> =
            self.members.iter().map(|member| format!("127.0.0.1:{}", member.client)).collect();
        format!("etcd://{}/{prefix}", members.join(","))
    }

    /// Where a member is.
    pub fn endpoint(&self, member: usize) -> String {
        format!("http://127.0.0.1:{}", self.members[member].client)
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Starts a member, the first time or again.
    pub fn spawn(&mut self, at: usize) {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let name = |at: usize| format!("m{at}");
        let cluster: Vec<String> = (0..self.members.len())
            .map(|at| format!("{}={}", name(at), url(self.members[at].peer)))
            .collect();
        let (mut client, peer) = (url(self.members[at].client), url(self.members[at].peer));
        if self.flags.iter().any(|flag| flag == "--cert-file") {
            client = client.replace("http", "https");
        }
        let data = self.directory.path().join(name(at));
        let log = File::options().create(true).append(true).open(self.log(at)).expect("a log");
        let mut command = Command::new("etcd");
        command.args(["--name", &name(at), "--data-dir"]).arg(data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &cluster.join(","), "--logger", "zap"]);
        command.args(["--listen-metrics-urls", &url(self.members[at].metrics)]).args(&self.flags);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.members[at].process = Some(command.spawn().expect("etcd starts"));
    }

    fn log(&self, at: usize) -> PathBuf {
        self.directory.path().join(format!("m{at}.log"))
    }

    /// Waits until all members take calls.
    pub fn until_healthy(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        for (at, member) in self.members.iter().enumerate() {
            while !is_healthy(member.metrics) {
                let log = || std::fs::read_to_string(self.log(at)).unwrap_or_default();
                assert!(Instant::now() < deadline, "etcd does not answer: {}", log());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Makes a user who may read and write the keys below `/pool/`, and from then on nobody else may.
    pub fn let_in(&self, user: &str, password: &str) {
        let call = |path: &str, body: String| {
            let request =
                format!("POST /v3/auth/{path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let answer = ask(self.members[0].client, &request).expect("an answer");
            assert!(answer.starts_with("HTTP/1.0 200"), "{path}: {answer}");
        };
        for (role, user, password) in [("root", "root", "toor"), ("pool", user, password)] {
            call("role/add", format!(r#"{{"name":"{role}"}}"#));
            call("user/add", format!(r#"{{"name":"{user}","password":"{password}"}}"#));
            call("user/grant", format!(r#"{{"user":"{user}","role":"{role}"}}"#));
        }
        // From `/pool/` to before `/pool0`, in base64.
        let keys = r#"{"permType":"READWRITE","key":"L3Bvb2wv","range_end":"L3Bvb2ww"}"#;
        call("role/grant", format!(r#"{{"name":"pool","perm":{keys}}}"#));
        call("enable", "{}".into());
    }

    /// The number of the last transaction that wrote anything.
    pub fn revision(&self) -> u64 {
        let body = r#"{"key":"AA=="}"#;
        let request = format!("POST /v3/kv/range HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answer = ask(self.members[0].client, &request).expect("an answer");
        let revision = answer.split("\"revision\":\"").nth(1).and_then(|rest| rest.split('"').next());
        revision.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no revision: {answer}"))
    }

    /// The member that leads the others.
    pub fn leader(&self) -> usize {
        let state = |member: &Member, name: &str| {
            let request = "POST /v3/maintenance/status HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}";
            let answer = ask(member.client, request).expect("an answer");
            let value =
                answer.split(&format!("\"{name}\":\"")).nth(1).and_then(|rest| rest.split('"').next());
            value.map(String::from).unwrap_or_else(|| panic!("no {name}: {answer}"))
        };
        let leader = state(&self.members[0], "leader");
        let is_leader = |member: &Member| state(member, "member_id") == leader;
        self.members.iter().position(is_leader).expect("a leader")
    }

    /// Kills a member as a crash does.
    pub fn kill(&mut self, at: usize) {
        let mut process = self.members[at].process.take().expect("it runs");
        process.kill().expect("a child");
        process.wait().expect("a child");
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        for mut process in self.members.iter_mut().filter_map(|member| member.process.take()) {
            _ = process.kill(); // It has ended by itself.
            _ = process.wait();
        }
    }
}

/// Whether a member answers `/health` with health.
fn is_healthy(port: u16) -> bool {
    ask(port, "GET /health HTTP/1.0\r\n\r\n").is_some_and(|answer| answer.contains("\"true\""))
}

fn ask(port: u16, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Passes bytes on between a client and etcd. When it is told to, it cuts the connection instead of passing on what etcd
/// says next.
pub struct Wire {
    pub port: u16,
    /// The next answer is cut off, with its connection.
    pub cuts_next: Arc<AtomicBool>,
    /// Answers that were cut off.
    pub cuts: Arc<AtomicUsize>,
    /// Nothing is passed on, and nobody is told.
    pub is_frozen: Arc<AtomicBool>,
}

impl Wire {
    /// A wire to a member.
    pub fn to(member: &str) -> Wire {
        let member = member.strip_prefix("http://").expect("a URL").to_string();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (cuts_next, cuts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let is_frozen = Arc::new(AtomicBool::new(false));
        let wire =
            Wire { port, cuts_next: cuts_next.clone(), cuts: cuts.clone(), is_frozen: is_frozen.clone() };
        let accept = move || {
            for client in listener.incoming().flatten() {
                let Ok(etcd) = TcpStream::connect(&member) else { continue };
                let (from, to) = (client.try_clone().expect("a socket"), etcd.try_clone().expect("a socket"));
                let (frozen, frozen_back) = (is_frozen.clone(), is_frozen.clone());
                let never = AtomicBool::new(false);
                thread::spawn(move || pass(from, to, &never, &AtomicUsize::new(0), &frozen));
                let (cuts_next, cuts) = (cuts_next.clone(), cuts.clone());
                thread::spawn(move || pass(etcd, client, &cuts_next, &cuts, &frozen_back));
            }
        };
        thread::spawn(accept);
        wire
    }
}

fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    cuts_next: &AtomicBool,
    cuts: &AtomicUsize,
    is_frozen: &AtomicBool,
) {
    let mut bytes = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if is_frozen.load(Ordering::SeqCst) {
            continue;
        }
        // Answers carry data; what else there is on a connection is shorter.
        if 60 < read && cuts_next.swap(false, Ordering::SeqCst) {
            cuts.fetch_add(1, Ordering::SeqCst);
            break;
        }
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)); // One of them may be gone.
}
