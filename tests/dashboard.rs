//! The dashboard of a pool of real processes: who gets in, what is read, what is told as it happens.

mod dashboard {
    pub mod browser;
    pub mod http;
}
mod pool;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use aquifer_proto::v1;
use dashboard::browser::Browser;
use dashboard::http::{Dashboard, address, dashboard};
use pool::{Pool, command, devices, program, shell, start, training, until};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use v1::JobState;

/// Numbers that are others a moment later.
const GROW: [&str; 6] =
    ["lease_left_ms", "used_device_ms", "device_ms", "cpu_milli_ms", "tokens_per_s", "start_ms"];

fn still(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| {
            if GROW.contains(&&name[..]) && value.is_number() {
                *value = 0.into();
            }
            still(value);
        }),
        Value::Array(values) => values.iter_mut().for_each(still),
        _ => (),
    }
}

fn stilled(text: &str) -> Value {
    let mut value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    still(&mut value);
    value
}

/// A pool with jobs of several kinds on two nodes, one of them with cards, one of which is not well.
fn pool_with_jobs() -> (Pool, u64, u64) {
    let mut pool = Pool::start();
    pool.agent("a", &[]);
    let cards = pool.file("cards.toml");
    let text = "[[device]]\nvendor = \"nvidia\"\nmodel = \"h200\"\nmemory_gib = 141\ncount = 4\n[device.faults]\n3 = \"fell off the bus\"\n";
    fs::write(&cards, text).expect("a file");
    pool.agent("cards", &["--devices", &format!("fake:{cards}")]);
    _ = pool.aquifer(&["queues", "set", "red", "--weight", "3", "--guaranteed", "2", "--limit", "4"]).ok();
    let ended = pool.submit(training(&pool, "seen", 4));
    pool.until_succeeded(ended);
    let failed = pool.submit(command(&["false"]));
    pool.until_state(failed, JobState::Failed);
    let mut holds = devices(shell("echo drip; exec sleep 1000"), 1, &[(2, "h200")]);
    (holds.name, holds.queue) = ("drips <b>&\"'".into(), "red".into());
    let holds = pool.submit(holds);
    pool.until_state(holds, JobState::Running);
    let waits =
        pool.submit(v1::JobSpec { name: "waits".into(), ..devices(command(&["true"]), 2, &[(4, "h200")]) });
    _ = pool.aquifer(&["reserve", "maint", "--nodes", "cards", "--in", "20h", "--for", "1h"]).ok();
    (pool, holds, waits)
}

#[test]
fn a_browser_with_the_key_reads_what_commands_print() {
    let (pool, holds, waits) = pool_with_jobs();
    let dashboard = dashboard(&pool, &[]);
    let cookie = dashboard.enter();
    let same = |path: &str, words: &[&str]| {
        let mut last = (Value::Null, Value::Null);
        let found = pool::until_or(Duration::from_secs(20), || {
            let printed = pool.aquifer(&[&["--json"], words].concat()).ok();
            let answer = dashboard.get(path, &cookie);
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            last = (stilled(&answer.body), stilled(&printed));
            (last.0 == last.1).then(|| last.0.clone())
        });
        found.unwrap_or_else(|| panic!("{path} is not {words:?}: {last:#?}"))
    };
    let (job, waiting) = (format!("job-{holds}"), format!("job-{waits}"));
    let overview = same("/api/overview", &["overview"]);
    let card = overview["devices"].as_array().expect("kinds").iter().find(|it| it["model"] == "h200");
    let card = card.expect("cards");
    assert_eq!([&card["devices"], &card["used"], &card["idle"], &card["unwell"]], [4, 2, 1, 1]);
    assert_eq!(overview["jobs"]["running"], 1);
    assert_eq!(same("/api/nodes", &["nodes"]).as_array().map(Vec::len), Some(2));
    same("/api/nodes/cards", &["node", "cards"]);
    same("/api/nodes/cards/devices/3", &["explain", "cards", "--device", "3"]);
    assert_eq!(same("/api/jobs", &["jobs", "--all"]).as_array().map(Vec::len), Some(4));
    same(
        "/api/jobs?state=pending,failed&limit=1",
        &["jobs", "--state", "pending", "--state", "failed", "--limit", "1"],
    );
    same("/api/jobs?queue=red&name=drip", &["jobs", "--all", "--queue", "red", "--name", "drip"]);
    assert!(same(&format!("/api/jobs/{job}"), &["job", &job])["spec"].is_object());
    let spent = &same("/api/jobs/1", &["job", "job-1"])["spent"];
    assert!(spent["steps_ms"].is_u64(), "{spent}");
    same(&format!("/api/jobs/{waiting}/explain"), &["explain", &waiting]);
    assert!(
        same("/api/queues", &["queues"]).as_array().expect("queues").iter().any(|it| it["name"] == "red")
    );
    same("/api/usage?since=0", &["usage", "--since", "0"]);
    same("/api/services", &["services"]);
    assert_eq!(same("/api/reservations", &["reservations"])[0]["name"], "maint");
    // Pages go on where they ended.
    let first = dashboard.get("/api/jobs?limit=3", &cookie);
    let next = first.header("aquifer-next-page").expect("another page").to_string();
    let second = dashboard.get(&format!("/api/jobs?limit=3&page={next}"), &cookie);
    assert_eq!(
        (first.json().as_array().map(Vec::len), second.json()[0]["id"].as_str()),
        (Some(3), Some("job-1"))
    );
    assert_eq!(second.header("aquifer-next-page"), None);
    let counts = second.header("aquifer-jobs").expect("numbers");
    assert!(counts.contains("pending=1") && counts.contains("succeeded=1"), "{counts}");
    // The picture has a letter for each device, and who holds it.
    let picture = dashboard.get("/api/devices", &cookie).json();
    let node =
        picture["nodes"].as_array().expect("nodes").iter().find(|it| it["name"] == "cards").expect("it");
    assert_eq!(
        (node["does"].as_str(), &node["jobs"]),
        (Some("uuix"), &serde_json::json!([holds, holds, 0, 0]))
    );
    assert_eq!(node["why"], serde_json::json!({ "3": "faulty: fell off the bus" }));
    assert_eq!(picture["jobs"][holds.to_string()][0], "drips <b>&\"'");
    for (path, status, why) in [
        ("/api/jobs/job-99", 404, "job-99"),
        ("/api/jobs/none", 400, "job is"),
        ("/api/nodes/none", 404, "none"),
        ("/api/nodes/cards/devices/9", 404, "has no device 9"),
        ("/api/jobs?limit=1001", 400, "limit is \\\"1001\\\": expected 1 to 1000"),
        ("/api/jobs?state=lazy", 400, "state is \\\"lazy\\\""),
        ("/api/jobs?colour=red", 400, "there is no \\\"colour\\\""),
        ("/api/usage?since=long", 400, "since is"),
        ("/api/nothing", 404, "no such path"),
        ("/ui/..%2fmod.rs", 404, "no such file"),
    ] {
        dashboard.get(path, &cookie).refused(status, why);
    }
    dashboard.end();
}

#[test]
fn only_browsers_that_have_the_key_get_in_and_only_by_names_that_are_ours() {
    let pool = Pool::of_one(&[]);
    let dashboard = dashboard(&pool, &[]);
    dashboard.get("/api/jobs", "").refused(401, "has not signed in");
    let wrong = format!("/?key={}", "0".repeat(64));
    dashboard.get(&wrong, "").refused(403, "not the key");
    dashboard.get(&format!("/?key={}", &dashboard.key[..63]), "").refused(403, "not the key");
    let answer = dashboard.get(&format!("/?key={}", dashboard.key), "");
    let set = answer.header("set-cookie").expect("a cookie");
    assert!(set.contains("httponly") && set.contains("samesite=strict") && set.contains("path=/"), "{set}");
    assert!(!set.contains(&dashboard.key), "the cookie is a secret of its own");
    let cookie = answer.cookie();
    assert_eq!(dashboard.get("/api/jobs", cookie).status, 200);
    let name = cookie.split('=').next().expect("a name");
    dashboard.get("/api/jobs", &format!("{name}={}", dashboard.key)).refused(401, "has not signed in");
    // A name that points here is not ours for that.
    let port = dashboard.port;
    for host in ["evil.example", "192.0.2.7", "localhost.evil.example"] {
        let headers = format!("host: {host}:{port}\r\ncookie: {cookie}\r\n");
        dashboard.raw("GET /api/jobs", &headers, "").refused(421, "not known by that name");
        dashboard.raw(&format!("GET /?key={}", dashboard.key), &headers, "").refused(421, "not known");
    }
    // What changes something comes from the page.
    let job = pool.submit(shell("exec sleep 1000"));
    let path = format!("/api/jobs/job-{job}/cancel");
    let host = format!("host: 127.0.0.1:{port}\r\ncookie: {cookie}\r\n");
    let json = "content-type: application/json\r\n";
    for headers in [
        format!("{host}content-type: text/plain\r\n"),
        format!("{host}{json}origin: http://evil.example\r\n"),
        format!("{host}{json}origin: null\r\n"),
        format!("{host}{json}origin: http://127.0.0.1:1\r\n"),
    ] {
        dashboard.raw(&format!("POST {path}"), &headers, "{}").refused(403, "from the page itself");
    }
    dashboard.post(&path, "", "{}").refused(401, "has not signed in");
    assert_eq!(dashboard.post(&path, cookie, "{}").status, 204);
    pool.until_state(job, JobState::Cancelled);
    dashboard.post(&path, cookie, "{}").refused(409, "cancelled");
    let node = &pool.aquifer(&["--json", "nodes"]).ok();
    let node: Value = serde_json::from_str(node).expect("JSON");
    let node = node[0]["name"].as_str().expect("a name");
    assert_eq!(dashboard.post(&format!("/api/nodes/{node}/cordon"), cookie, "{}").status, 204);
    assert_eq!(dashboard.get(&format!("/api/nodes/{node}"), cookie).json()["state"], "cordoned");
    assert_eq!(dashboard.post(&format!("/api/nodes/{node}/uncordon"), cookie, "{}").status, 204);
    dashboard.post(&format!("/api/nodes/{node}/explode"), cookie, "{}").refused(400, "expected cordon");
    // What is too large is not read.
    dashboard.get(&format!("/api/jobs?name={}", "x".repeat(5000)), cookie).refused(414, "at most 4096");
    // Every answer says what browsers may do with it.
    for answer in [
        dashboard.get("/", ""),
        dashboard.get("/ui/app.js", ""),
        dashboard.get("/api/jobs", cookie),
        dashboard.get("/none", ""),
    ] {
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
        let expected = [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ];
        for (name, value) in expected {
            assert_eq!(answer.header(name), Some(value), "{answer:?}");
        }
    }
    assert_eq!(dashboard.post("/api/sign-out", cookie, "{}").status, 204);
    dashboard.get("/api/jobs", cookie).refused(401, "has not signed in");
    let said = dashboard.process.err();
    assert!(!said.contains(&dashboard.key), "{said}");
    dashboard.end();
}

#[test]
fn the_page_takes_nothing_from_elsewhere_and_data_as_text_alone() {
    let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/cli/dashboard/ui")).expect("a folder");
    let mut lines = 0;
    for file in files.map(|entry| entry.expect("a file").path()) {
        let text = fs::read_to_string(&file).expect("text");
        lines += text.lines().count();
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "<style",
            " style=\"",
            "onclick=\"",
            "https://",
        ] {
            assert!(!text.contains(word), "{} holds {word:?}", file.display());
        }
        let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!elsewhere.contains("http://"), "{} names another host", file.display());
    }
    assert!((1000..2000).contains(&lines), "{lines} lines");
}

#[test]
fn viewers_of_a_pool_with_tokens_see_and_do_what_theirs_may() {
    let mut pool = Pool::prepare(1, &[], Some("pearl"));
    let file = pool.file("users");
    let token = |pool: &Pool, words: &[&str]| {
        pool.aquifer(&[&["token"], words, &["--users", &file]].concat()).ok().trim().to_string()
    };
    let (ada, bob) = (token(&pool, &["ada", "--admin"]), token(&pool, &["bob"]));
    pool.set_server_flags(&["--users", &file]);
    pool.start_server();
    pool.agent("a", &[]);
    // The token of who starts it is nobody's.
    let secret = pool.file("token");
    let beyond = ["--listen", "0.0.0.0:0", "--clear-text", "--sign-in", "token"];
    let dashboard = dashboard(&pool, &[&beyond[..], &["--token-file", &secret]].concat());
    assert_eq!(dashboard.key, "");
    dashboard.get("/api/jobs", "").refused(401, "sign in with your token");
    dashboard.post("/api/sign-in", "", "{\"token\": \"guess\"}").refused(403, "does not know this token");
    dashboard.post("/api/sign-in", "", "{\"token\": \"\"}").refused(400, "token is no token");
    dashboard.post("/api/sign-in", "", "pearl").refused(400, "expected");
    let large = format!("{{\"token\": \"{}\"}}", "x".repeat(20_000));
    dashboard.post("/api/sign-in", "", &large).refused(413, "larger than 16384 bytes");
    let (of_ada, of_bob) = (dashboard.sign_in(&ada), dashboard.sign_in(&bob));
    let ada_client = pool::Client::new(&pool.url(), Some(&ada));
    let job = ada_client.submit(shell("echo pearls; exec sleep 1000"));
    pool.until_state(job, JobState::Running);
    let path = format!("/api/jobs/job-{job}");
    let user = |cookie: &str| dashboard.get(&path, cookie).json()["user"].clone();
    assert_eq!([user(&of_ada), user(&of_bob)], ["ada", "ada"]);
    dashboard.get(&format!("{path}/logs"), &of_bob).refused(403, "is of ada, and this token of bob");
    dashboard.post(&format!("{path}/cancel"), &of_bob, "{}").refused(403, "is of ada");
    dashboard.post("/api/nodes/a/drain", &of_bob, "{}").refused(403, "bob is no administrator");
    let line = dashboard.until_event(&format!("{path}/logs"), &of_ada, "pearls", || ());
    assert_eq!((line["rank"].as_u64(), line["text"].as_str()), (Some(0), Some("pearls")));
    assert_eq!(dashboard.post(&format!("{path}/cancel"), &of_ada, "{}").status, 204);
    pool.until_state(job, JobState::Cancelled);
    // Whose token is taken away is out, and stays out.
    let users = pool.read("users");
    let left: Vec<&str> = users.lines().filter(|line| !line.starts_with("bob")).collect();
    fs::write(&file, left.join("\n") + "\n").expect("a file");
    until("bob is nobody", || (dashboard.get("/api/jobs", &of_bob).status == 401).then_some(()));
    dashboard.get("/api/me", &of_bob).refused(401, "has not signed in");
    assert_eq!(dashboard.get("/api/jobs", &of_ada).status, 200);
    let said = dashboard.process.err();
    assert!(!said.contains(&ada) && !said.contains(&bob) && !said.contains("guess"), "{said}");
    dashboard.end();
}

#[test]
fn nobody_is_let_in_where_nobody_can_be_told_apart() {
    let pool = Pool::of_one(&[]);
    let url = pool.url();
    let run = |words: &[&str]| {
        let words = [&["dashboard", "--server", &url][..], words].concat();
        start(pool.dir(), "dashboard", program(pool.dir(), &words)).finish()
    };
    for (words, why) in [
        (&["--listen", "0.0.0.0:0"][..], "needs --sign-in token"),
        (&["--listen", "0.0.0.0:0", "--clear-text"], "needs --sign-in token"),
        (&["--listen", "0.0.0.0:0", "--sign-in", "token"], "needs TLS"),
    ] {
        let done = run(words);
        assert!(done.code == Some(1) && done.err.contains(why), "{words:?}: {done:?}");
    }
    for (words, why) in [
        (&["--sign-in", "smile"][..], "--sign-in is \"smile\": expected key or token"),
        (&["--host", "a b"], "--host is \"a b\": expected names of hosts"),
        (&["--max-connections", "0"], "expected 1 to 100000"),
        (&["--listen", "here"], "expected an address and a port"),
    ] {
        let done = run(words);
        assert!(done.code == Some(2) && done.err.contains(why), "{words:?}: {done:?}");
    }
    let config = pool.file("config.toml");
    for (table, code, why) in [
        ("listen = \"0.0.0.0:0\"", 1, "needs --sign-in token"),
        ("clear-text = \"often\"", 2, "clear-text is \"often\": expected \"yes\" or \"no\""),
        ("lissen = 1", 2, "there is no setting \"lissen\""),
    ] {
        fs::write(&config, format!("[dashboard]\n{table}\n")).expect("a file");
        let done = run(&["--config", &config]);
        assert!(done.code == Some(code) && done.err.contains(why), "{table}: {done:?}");
    }
    let dashboard = dashboard(&pool, &["--sign-in", "token"]);
    dashboard.post("/api/sign-in", "", "{\"token\": \"any\"}").refused(409, "takes calls without a token");
    dashboard.end();
}

#[test]
fn what_happens_is_told_as_it_happens_and_a_scheduler_that_is_gone_is_said_to_be() {
    let mut pool = Pool::of_one(&[]);
    let dashboard = dashboard(&pool, &[]);
    let cookie = dashboard.enter();
    let job = std::cell::Cell::new(0);
    let note = dashboard.until_event("/api/notes", &cookie, " queued", || {
        job.set(pool.submit(shell("i=0; while true; do i=$((i+1)); echo line $i; sleep 0.1; done")));
    });
    assert_eq!(
        (note["kind"].as_str(), note["job"].as_str()),
        (Some("queued"), Some(&format!("job-{}", job.get())[..]))
    );
    pool.until_state(job.get(), JobState::Running);
    // Those before are told to who asks for them, and those after one to who has seen it.
    let again = dashboard.until_event("/api/notes?recent=100", &cookie, " queued", || ());
    assert_eq!(again["seq"], note["seq"]);
    let path = format!("/api/notes?job=job-{}&recent=10", job.get());
    assert_eq!(dashboard.until_event(&path, &cookie, " running", || ())["kind"], "running");
    let log = format!("/api/jobs/{}/logs?tail=1", job.get());
    dashboard.until_event(&log, &cookie, "line 12", || ());
    // Streams have as many places, which are free again when browsers leave.
    let streams: Vec<TcpStream> = (0..32).map(|_| dashboard.begin("/api/notes", &cookie, 200)).collect();
    dashboard.begin("/api/notes", &cookie, 429);
    drop(streams);
    until("a place", || (dashboard.get("/api/jobs/0/logs", &cookie).status != 429).then_some(()));
    pool.kill_server();
    for path in ["/api/jobs", "/api/overview", "/api/notes", &log] {
        let answer = dashboard.get(path, &cookie);
        answer.refused(503, "no scheduler answers at");
        assert!(
            answer.json()["next"].as_str().is_some_and(|next| next.contains("is it running?")),
            "{answer:?}"
        );
    }
    assert_eq!(dashboard.get("/", &cookie).status, 200);
    pool.start_server();
    until("it answers again", || (dashboard.get("/api/jobs", &cookie).status == 200).then_some(()));
    dashboard.end();
}

#[test]
fn no_more_connections_are_taken_than_there_are_places() {
    let pool = Pool::of_one(&[]);
    let dashboard = dashboard(&pool, &["--max-connections", "2"]);
    let cookie = dashboard.enter();
    let streams = [0, 1].map(|_| dashboard.begin("/api/notes", &cookie, 200));
    let mut third = dashboard.connect();
    third.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("a backlog");
    third.set_read_timeout(Some(Duration::from_millis(300))).expect("a time");
    let mut begun = [0; 15];
    third.read_exact(&mut begun).expect_err("there is no place for it");
    drop(streams);
    third.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
    third.read_exact(&mut begun).expect("a place");
    assert_eq!(&begun, b"HTTP/1.1 200 OK");
    drop(third);
    dashboard.end();
}

#[test]
fn a_pool_of_one_machine_has_its_dashboard_wherever_there_is_room() {
    let home = TempDir::with_prefix("aquifer-test-").expect("a temporary directory");
    fs::create_dir(home.path().join("home")).expect("a home");
    let _taken = TcpListener::bind(aquifer_cli::dashboard::ADDRESS); // By this, or by somebody else.
    let up = |flags: &[&str]| {
        let words =
            [&["up", "--listen", "127.0.0.1:0", "--cpus", "1", "--devices", "none"][..], flags].concat();
        start(home.path(), "up", program(home.path(), &words))
    };
    let mut process = up(&[]);
    process.until_out("Try, in another terminal");
    let (port, key) = address(&process.out());
    let dashboard = Dashboard { process, port, key };
    let cookie = dashboard.enter();
    assert_eq!(dashboard.get("/api/overview", &cookie).json()["nodes"]["up"], 1);
    dashboard.end();
    let mut process = up(&["--dashboard", "off"]);
    process.until_out("Try, in another terminal");
    assert!(!process.out().contains("dashboard"), "{}", process.out());
    process.signal(Signal::TERM);
    assert_eq!(process.finish().code, Some(0));
    let done = up(&["--dashboard", "0.0.0.0:0"]).finish();
    assert!(done.code == Some(1) && done.err.contains("needs --sign-in token"), "{done:?}");
}

#[test]
fn every_page_shows_in_a_browser_what_must_stand_there() {
    let Some(mut browser) = Browser::start() else {
        println!("skipped: there is no browser (apt-get install chromium)");
        return;
    };
    let (pool, holds, waits) = pool_with_jobs();
    let dashboard = dashboard(&pool, &[]);
    let page = |hash: &str| format!("http://127.0.0.1:{}/#/{hash}", dashboard.port);
    // A stranger is told how to get in, and nothing else.
    let dom = browser.until(&page(""), &["Sign in", "it has a key"]);
    assert!(!dom.contains("h200"), "{dom}");
    browser.said();
    browser.until(&format!("http://127.0.0.1:{}/?key={}#/", dashboard.port, dashboard.key), &["live"]);
    for (hash, wanted) in [
        ("", &["2<small> of 4", "1 idle, 1 unwell", "h200", "red", "running"][..]),
        ("nodes", &["<canvas", "2 up"]),
        ("nodes/cards", &["fell off the bus", &format!("job-{holds}"), "maint", "Drain"]),
        ("jobs", &["drips &lt;b&gt;&amp;\"'", "waits", "failed", "4 jobs"]),
        ("jobs?state=failed", &["exited with 1", "1 job<"]),
        (&format!("jobs/job-{holds}"), &["drip</div>", "echo drip", "placed attempt=1", "Cancel"]),
        (&format!("jobs/job-{waits}"), &["Why it waits", "Held by", &format!("job-{holds}")]),
        ("jobs/job-1", &["Where its time went", "in steps", "succeeded"]),
        ("queues", &["red", "75.0 %"]),
        ("services", &["No services", "deploy/examples/serve.yaml"]),
        ("reservations", &["maint", "to-come", "nobody"]),
        ("usage?since=0", &["Device hours", "default"]),
        ("notes", &["queued", "succeeded"]),
    ] {
        browser.until(&page(hash), wanted);
        assert_eq!(browser.said(), [""; 0], "#/{hash}");
    }
    // The browser itself tells of answers that are refusals.
    browser.until(&page("jobs/job-99"), &["Nothing can be shown", "job-99"]);
    browser.said();
    browser.until(&page(""), &["live"]);
    pool.signal_server(Signal::STOP);
    browser.until(&page("queues"), &["does not answer in time", "It is tried again"]);
    pool.signal_server(Signal::CONT);
    browser.until(&page("queues"), &["75.0 %", "live"]);
    dashboard.end();
}
