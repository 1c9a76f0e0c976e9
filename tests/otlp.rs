//! Spans of calls, decisions and commits reach a collector, hold no secret, and nobody waits for a collector that is away.

mod pool;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aquifer_proto::v1;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use pool::{Pool, ask, devices, free_ports, shell, until};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// Keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ResourceSpans>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().expect("no holder panics").extend(request.into_inner().resource_spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens from now on; returns its URL.
    fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        listener.set_nonblocking(true).expect("a socket");
        let service = TraceServiceServer::new(self.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
                let incoming = tonic::transport::server::TcpIncoming::from(listener);
                Server::builder()
                    .add_service(service)
                    .serve_with_incoming(incoming)
                    .await
                    .expect("it serves");
            });
        });
        url
    }

    fn spans(&self) -> Vec<Span> {
        let kept = self.0.lock().expect("no holder panics");
        kept.iter().flat_map(|it| &it.scope_spans).flat_map(|it| it.spans.clone()).collect()
    }
}

/// A job that waits, with a secret wherever there may be one.
fn secret() -> v1::JobSpec {
    let env = [("PASSWORD".to_string(), "swordfish-value".to_string())].into();
    devices(v1::JobSpec { env, ..shell("true # swordfish-argument") }, 1, &[(1, "nothing")])
}

#[test]
fn spans_of_calls_decisions_and_commits_arrive_and_hold_no_secret() {
    let collector = Collector::default();
    let url = collector.start();
    let mut pool = Pool::prepare(1, &["--otlp", &url], Some("swordfish-token"));
    pool.start_server();
    pool.submit(secret());
    let (call, decision, commit) = until("the spans of a submission", || {
        let spans = collector.spans();
        let call = spans.iter().find(|span| span.name == "/aquifer.v1.Pool/Submit")?.clone();
        let of_call = |span: &&Span| span.name == "decide" && span.parent_span_id == call.span_id;
        let decision = spans.iter().find(of_call)?.clone();
        let links = |span: &&Span| span.links.iter().any(|link| link.span_id == call.span_id);
        let commit = spans.iter().filter(|span| span.name == "commit").find(links)?.clone();
        Some((call, decision, commit))
    });
    assert!(call.start_time_unix_nano <= decision.start_time_unix_nano);
    assert!(commit.end_time_unix_nano <= call.end_time_unix_nano, "it was answered after the commit");
    let of = |span: &Span| -> BTreeSet<String> { span.attributes.iter().map(|it| it.key.clone()).collect() };
    assert!(of(&call).contains("client") && of(&decision).contains("event"), "{call:?} {decision:?}");
    assert!(of(&commit).contains("records"), "{commit:?}");
    let all = format!("{:?}", collector.0.lock().expect("no holder panics"));
    assert!(all.contains("aquifer-server"), "the process has a name");
    assert!(!all.contains("swordfish"), "a secret was exported");
    assert!(!pool.server_at(0).err().contains("rpc"), "spans are no lines of the log");
}

#[test]
fn nobody_waits_for_a_collector_that_does_not_answer_and_what_is_dropped_is_counted() {
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a port"); // It accepts, in the kernel, and is silent.
    let url = format!("http://{}", deaf.local_addr().expect("an address"));
    let port = free_ports(1);
    let metrics = format!("127.0.0.1:{port}");
    let pool =
        Pool::with(&["--otlp", &url, "--metrics", &metrics, "--log-level", "warn", "--client-rate", "0"]);
    let number = |name: &str| -> f64 {
        let (_, text) = ask(port, "GET /metrics", "");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("a number").parse().expect("a number")
    };
    let mut longest = Duration::ZERO;
    for _ in 0..4000 {
        let begun = Instant::now();
        pool.submit(secret());
        longest = longest.max(begun.elapsed());
    }
    println!("the longest of 4,000 submissions took {longest:?}");
    assert!(longest < Duration::from_secs(3), "{longest:?}");
    let [made, sent, failed] =
        ["", "_sent", "_failed"].map(|what| number(&format!("aquifer_spans{what}_total")));
    assert_eq!(sent, 0.0);
    // A queue of 8,192, and what is under way.
    assert!(8192.0 + 512.0 < made - failed, "{made} spans, of which {failed} failed: none was dropped");
}

#[test]
fn a_collector_has_a_url() {
    let dir = tempfile::tempdir().expect("a directory");
    let done =
        pool::start(dir.path(), "server", pool::program(dir.path(), &["server", "--otlp", "head:4317"]))
            .finish();
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.err.contains("--otlp is \"head:4317\": expected a URL like http://"), "{done:?}");
}
