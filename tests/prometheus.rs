//! What `deploy/` has for Prometheus and Grafana, loaded by a real Prometheus that watches a real pool.
//!
//! Grafana only hands the dashboard's questions on to Prometheus and draws its answers, so all of them are asked here as
//! Grafana asks them.

mod pool;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use aquifer_proto::v1;
use pool::{Pool, Running, ask, command, devices, free_ports, program, start, training, until};
use serde_json::Value;

const TOKEN: &str = "pearl";
const DEVICES: &str =
    "[[device]]\nvendor = \"nvidia\"\nmodel = \"h200-141gb\"\nmemory_gib = 141\ncount = 2\n";
/// What has nothing to show in a small pool in which all is well.
const QUIET: [&str; 3] = [
    // Nobody has a guarantee, or a limit.
    "aquifer_queue_guaranteed_devices{job=\"aquifer\"} > 0",
    "aquifer_queue_limit_devices{job=\"aquifer\"}",
    // Nothing is ill.
    "sum by (health) (aquifer_devices_unhealthy{job=\"aquifer\"})",
];

/// A question of a dashboard.
struct Question {
    panel: String,
    expression: String,
}

fn deploy(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All questions of the dashboard's panels, with its variables as Grafana would fill them in.
fn questions() -> Vec<Question> {
    let dashboard: Value = serde_json::from_str(&deploy("grafana/aquifer.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let of = |panel: &Value| {
        let title = panel["title"].as_str().expect("a title").to_string();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let expression = |target: Value| target["expr"].as_str().expect("an expression").to_string();
        targets
            .into_iter()
            .map(move |target| Question { panel: title.clone(), expression: expression(target) })
    };
    let filled = |question: Question| {
        let text = question.expression.replace("$__rate_interval", "4s");
        Question {
            expression: text.replace("$job", "aquifer").replace("$agents", "aquifer-agents"),
            ..question
        }
    };
    panels.iter().flat_map(of).map(filled).collect()
}

/// What Prometheus answers.
fn api(port: u16, path: &str, parameters: &[(&str, &str)]) -> Value {
    let mut request = format!("GET /api/v1/{path}?");
    for (name, value) in parameters {
        write!(request, "{name}=").expect("room");
        value.bytes().for_each(|byte| write!(request, "%{byte:02x}").expect("room"));
        request.push('&');
    }
    let (status, body) = ask(port, &request, "");
    let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{request}: {body}"));
    assert_eq!((status, body["status"].as_str()), (200, Some("success")), "{parameters:?}: {body}");
    body["data"].clone()
}

/// The job as a service.
fn serving(mut spec: v1::JobSpec) -> v1::JobSpec {
    let options = v1::Serve { model: "/m".into(), ..Default::default() };
    spec.roles[0].program = Some(v1::role::Program::Serve(options));
    spec
}

/// Prometheus with the project's own configuration: other addresses, a shorter interval.
fn prometheus(pool: &Pool, addresses: &BTreeMap<&str, String>) -> (Running, u16) {
    let port = free_ports(1);
    let mut settings = deploy("prometheus.yml");
    let token = pool.file("token");
    let others = [("/etc/aquifer/token", token.as_str()), ("scrape_interval: 15s", "scrape_interval: 1s")];
    for (from, to) in others.into_iter().chain(addresses.iter().map(|(from, to)| (*from, to.as_str()))) {
        assert!(settings.contains(from), "no {from} in {settings}");
        settings = settings.replace(from, to);
    }
    fs::write(pool.file("prometheus.yml"), settings).expect("a file");
    fs::write(pool.file("prometheus-rules.yml"), deploy("prometheus-rules.yml")).expect("a file");
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", pool.file("prometheus.yml")));
    command.arg(format!("--storage.tsdb.path={}", pool.file("prometheus")));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}")).current_dir(pool.dir());
    (start(pool.dir(), "prometheus", command), port)
}

#[test]
fn prometheus_takes_what_is_deployed_and_answers_every_question_of_the_dashboard() {
    if let Err(error) = Command::new("prometheus").arg("--version").output() {
        _ = writeln!(std::io::stderr(), "skipped: no Prometheus: {error}");
        return;
    }
    let gateway = free_ports(3);
    let [serves, head, node] = [gateway, gateway + 1, gateway + 2].map(|port| format!("127.0.0.1:{port}"));
    let mut pool = Pool::prepare(1, &["--metrics", &head], Some(TOKEN));
    pool.start_server();
    let file = pool.file("devices.toml");
    fs::write(&file, DEVICES).expect("a file of devices");
    pool.agent("a", &["--devices", &format!("fake:{file}"), "--metrics", &node]);
    let url = pool.url();
    let words =
        ["gateway", "--server", &url, "--token-file", "token", "--hold", "100ms", "--listen", &serves];
    let mut running = start(pool.dir(), "gateway", program(pool.dir(), &words));
    running.until_out("listening on ");
    let addresses =
        BTreeMap::from([("head:9700", head), ("node1:9701, node2:9701", node), ("head:8000", serves)]);
    let (mut prometheus, port) = prometheus(&pool, &addresses);

    until("every daemon is read", || {
        let ended = prometheus.child.try_wait().expect("a process");
        assert!(ended.is_none(), "Prometheus does not take it: {}", prometheus.err());
        let targets = api_when_up(port)?;
        let targets = targets["activeTargets"].as_array().expect("targets").clone();
        let up: BTreeSet<_> =
            targets.iter().filter(|it| it["health"] == "up").map(|it| it["scrapePool"].as_str()).collect();
        (up.len() == 3).then_some(())
    });
    let rules = api(port, "rules", &[]);
    let rules = rules["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .flat_map(|it| it["rules"].as_array().expect("rules"));
    assert!(5 < rules.count(), "the alerts are there");
    for (wanted, number) in [("aquifer", "aquifer_leader"), ("aquifer-agents", "aquifer_node_info")] {
        let found = api(port, "label/job/values", &[("match[]", number)]);
        assert_eq!(found, serde_json::json!([wanted]), "the dashboard's variable of {number}");
    }

    let trains = pool.submit(training(&pool, "seen", 30));
    pool.submit(serving(devices(command(&["true"]), 1, &[(9, "h200")])));
    pool.submit(devices(command(&["sleep", "1000"]), 1, &[(1, "h200")]));
    pool.until_succeeded(trains);
    let mut questions = questions();
    assert!(50 < questions.len(), "{} questions", questions.len());
    let quiet = questions.iter().filter(|it| QUIET.contains(&it.expression.as_str())).count();
    assert_eq!(quiet, QUIET.len(), "the dashboard asks for all that is quiet");
    until("every panel shows something", || {
        pool.until_succeeded(pool.submit(command(&["true"])));
        let body = format!(
            "content-type: application/json\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 13\r\n\r\n{{\"model\":\"m\"}}"
        );
        assert_eq!(ask(gateway, "POST /v1/completions", &body).0, 503, "its service waits");
        let end = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let (start, end) = ((end - 60).to_string(), end.to_string());
        let range = [("start", start.as_str()), ("end", &end), ("step", "1")];
        questions.retain(|it| {
            let parameters: Vec<_> = range.into_iter().chain([("query", it.expression.as_str())]).collect();
            !shows(&api(port, "query_range", &parameters)) && !QUIET.contains(&it.expression.as_str())
        });
        for it in &questions {
            println!("nothing to show yet: {}: {}", it.panel, it.expression);
        }
        questions.is_empty().then_some(())
    });
}

/// Whether Prometheus has listed its targets; `None` before it listens.
fn api_when_up(port: u16) -> Option<Value> {
    std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    let (status, _) = ask(port, "GET /-/ready", "");
    (status == 200).then(|| api(port, "targets", &[]))
}

/// Whether there is something to draw: a number that is one.
fn shows(data: &Value) -> bool {
    let series = data["result"].as_array().expect("series");
    let values = series.iter().flat_map(|it| it["values"].as_array().expect("values"));
    values.into_iter().any(|value| value[1].as_str().is_some_and(|it| it != "NaN"))
}
