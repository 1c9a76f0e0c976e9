//! A gateway before replicas that do as the test says.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aquifer_gateway::{Gateway, Limits, Service, router};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::channel::mpsc;
use http_body_util::BodyExt;
use prometheus::Registry;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower_service::Service as _;

const LIMITS: Limits = Limits { in_flight: 8, body: 4096, hold: Duration::from_secs(10) };
/// Nobody waits so long but in vain.
const PATIENCE: Duration = Duration::from_secs(20);

type Reply = Box<dyn Fn(usize, &HeaderMap) -> Response + Send + Sync>;

/// A replica that answers its requests, which it counts, in this way.
async fn replica(
    reply: impl Fn(usize, &HeaderMap) -> Response + Send + Sync + 'static,
) -> (String, Arc<AtomicUsize>) {
    let (asked, reply) = (Arc::new(AtomicUsize::new(0)), Arc::new(Box::new(reply) as Reply));
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}/v1", socket.local_addr().expect("it listens"));
    let counted = asked.clone();
    let answer = move |request: Request<Body>| {
        let reply = reply(counted.fetch_add(1, Ordering::SeqCst), request.headers());
        async move { reply }
    };
    tokio::spawn(axum::serve(socket, Router::new().fallback(answer)).into_future());
    (endpoint, asked)
}

/// A replica that takes requests and goes away.
async fn lost() -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}/v1", socket.local_addr().expect("it listens"));
    let counted = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            _ = stream.read(&mut [0; 1024]).await;
        }
    });
    (endpoint, asked)
}

/// A replica that begins an answer and goes away.
async fn lost_soon() -> String {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}/v1", socket.local_addr().expect("it listens"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            _ = stream.read(&mut [0; 1024]).await;
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n").await;
        }
    });
    endpoint
}

/// Where nobody listens.
async fn nobody() -> String {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    format!("http://{}/v1", socket.local_addr().expect("it listens"))
}

fn ok(_: usize, _: &HeaderMap) -> Response {
    "{\"ok\":true}".into_response()
}

fn busy(status: StatusCode) -> impl Fn(usize, &HeaderMap) -> Response {
    move |_, _| (status, [(header::RETRY_AFTER, "7")], "{\"error\":{}}").into_response()
}

/// A stream of events that the test sends.
fn events(pieces: mpsc::UnboundedReceiver<Result<&'static str, std::io::Error>>) -> Response {
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(pieces)).into_response()
}

struct Bench {
    gateway: Arc<Gateway>,
    router: Router,
}

impl Bench {
    fn new(limits: Limits, key: Option<&'static str>) -> Bench {
        let admits = move |given: Option<&[u8]>| key.is_none_or(|key| given == Some(key.as_bytes()));
        let gateway = Gateway::new(limits, Box::new(admits), &Registry::new());
        Bench { router: router(gateway.clone()), gateway }
    }

    fn of(endpoints: &[&str]) -> Bench {
        let bench = Bench::new(LIMITS, None);
        bench.serves(&[("m", endpoints)]);
        bench
    }

    fn serves(&self, models: &[(&str, &[&str])]) {
        let services = models.iter().zip(1..).map(|((model, endpoints), job)| Service {
            job,
            model: model.to_string(),
            created_s: job,
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
        });
        self.gateway.routes.set(services.collect());
    }

    async fn send(&self, request: Request<Body>) -> Response {
        let answered = tokio::time::timeout(PATIENCE, self.router.clone().call(request)).await;
        answered.expect("an answer in time").unwrap_or_else(|never: Infallible| match never {})
    }

    async fn post(&self, body: impl Into<Body>) -> Response {
        self.send(Request::post("/v1/chat/completions").body(body.into()).expect("a request")).await
    }

    async fn ask(&self) -> Response {
        self.post(r#"{"model":"m"}"#).await
    }

    async fn get(&self, path: &str) -> Response {
        self.send(Request::get(path).body(Body::empty()).expect("a request")).await
    }

    /// Requests that went to another replica, by why.
    async fn moved(&self) -> BTreeMap<String, f64> {
        let text = text(self.get("/metrics").await).await;
        let moved = text.lines().filter_map(|line| line.strip_prefix("aquifer_gateway_moved_total{"));
        let why =
            |line: &str| line.split("why=\"").nth(1).and_then(|rest| rest.split('"').next()).map(Into::into);
        let moved = moved.filter_map(|line| Some((why(line)?, line.rsplit(' ').next()?.parse().ok()?)));
        moved.filter(|(_, count)| 0.0 < *count).collect()
    }
}

async fn text(response: Response) -> String {
    let bytes = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Status, code and message of a refusal.
async fn refusal(response: Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    let body: Value = serde_json::from_str(&text(response).await).expect("JSON");
    let error = &body["error"];
    assert!(error["type"].is_string() && error.get("param").is_some(), "OpenAI's shape: {body}");
    let word = |name: &str| error[name].as_str().unwrap_or_default().to_string();
    (status, word("code"), word("message"))
}

#[tokio::test]
async fn a_request_that_nobody_began_to_answer_goes_to_another_replica() {
    let (good, asked) = replica(ok).await;
    for (bad, why) in [
        (nobody().await, "refused"),
        (lost().await.0, "lost"),
        (lost_soon().await, "lost"),
        (replica(busy(StatusCode::SERVICE_UNAVAILABLE)).await.0, "stopping"),
        (replica(busy(StatusCode::TOO_MANY_REQUESTS)).await.0, "full"),
    ] {
        let bench = Bench::of(&[&good, &bad]);
        // Of equal ones the body's beginning chooses: of so many some go to each first.
        for at in 0..20 {
            let response = bench.post(format!(r#"{{"model":"m","user":"{at}"}}"#)).await;
            assert_eq!(response.status(), StatusCode::OK, "{why}");
            assert_eq!(text(response).await, "{\"ok\":true}");
        }
        let moved = bench.moved().await;
        assert_eq!(moved.keys().collect::<Vec<_>>(), [why], "{moved:?}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 100);
}

#[tokio::test]
async fn pieces_come_as_they_are_sent_and_a_cut_stream_says_so() {
    let (sender, pieces) = mpsc::unbounded();
    let pieces = Mutex::new(Some(pieces));
    let (first, asked) =
        replica(move |_, _| events(pieces.lock().unwrap().take().expect("one request"))).await;
    let bench = Bench::of(&[&first]);
    sender.unbounded_send(Ok("data: 1\n\n")).unwrap();
    let mut body = bench.ask().await.into_body();
    let mut next = async || {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("a piece in time");
        frame.map(|frame| frame.expect("a piece").into_data().expect("data"))
    };
    assert_eq!(next().await.unwrap(), "data: 1\n\n");
    sender.unbounded_send(Ok("data: 2\n\n")).unwrap();
    assert_eq!(next().await.unwrap(), "data: 2\n\n", "before the stream has ended");
    assert_eq!(bench.gateway.routes.overview()[0].in_flight, 1);
    sender.unbounded_send(Err(std::io::ErrorKind::BrokenPipe.into())).unwrap();
    let last = next().await.unwrap();
    assert!(
        last.starts_with(b"data: {\"error\":") && last.windows(12).any(|it| it == b"replica_lost"),
        "{last:?}"
    );
    assert_eq!(next().await, None);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "what has begun is not asked again");
    assert_eq!(bench.gateway.routes.overview()[0].in_flight, 0);
    assert!(text(bench.get("/metrics").await).await.contains("aquifer_gateway_cut_total{model=\"m\"} 1\n"));
}

#[tokio::test]
async fn a_client_that_goes_takes_its_request_along() {
    let (sender, pieces) = mpsc::unbounded();
    let pieces = Mutex::new(Some(pieces));
    let (first, _) = replica(move |_, _| events(pieces.lock().unwrap().take().expect("one request"))).await;
    let bench = Bench::of(&[&first]);
    sender.unbounded_send(Ok("data: 1\n\n")).unwrap();
    drop(bench.ask().await);
    assert_eq!(bench.gateway.routes.overview()[0].in_flight, 0);
    let deadline = Instant::now() + PATIENCE;
    while sender.unbounded_send(Ok("data: 2\n\n")).is_ok() {
        assert!(Instant::now() < deadline, "the replica goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn requests_are_held_until_a_replica_is_ready_and_not_for_ever() {
    let bench = Bench::new(Limits { hold: Duration::from_millis(600), ..LIMITS }, None);
    assert_eq!(bench.get("/readyz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let (good, _) = replica(ok).await;
    let (response, ()) = tokio::join!(bench.ask(), async {
        bench.serves(&[("m", &[])]);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(bench.gateway.routes.overview()[0].held, 1);
        bench.serves(&[("m", &[&good])]);
    });
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(bench.get("/readyz").await.status(), StatusCode::OK);
    bench.serves(&[("m", &[])]);
    let begun = Instant::now();
    let response = bench.ask().await;
    assert_eq!(response.headers()[header::RETRY_AFTER], "5");
    let (status, code, _) = refusal(response).await;
    assert_eq!((status, &code[..]), (503, "no_replica_ready"));
    assert!(Duration::from_millis(600) <= begun.elapsed());
    bench.gateway.drain();
    assert_eq!(bench.get("/readyz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_openais_shape() {
    let (good, asked) = replica(ok).await;
    let bench = Bench::of(&[&good]);
    bench.serves(&[("m", &[&good]), ("other", &[])]);
    let (status, code, message) = refusal(bench.post(r#"{"model":"x"}"#).await).await;
    assert_eq!((status, &code[..]), (404, "model_not_found"));
    assert_eq!(message, r#"the model "x" does not exist; there are "m", "other""#);
    for (body, status) in [("{", 400), ("{}", 400), (r#"{"model":7}"#, 400), (&*"x".repeat(5000), 413)] {
        assert_eq!(refusal(bench.post(body.to_string()).await).await.0, status, "{body:.20}");
    }
    assert_eq!(refusal(bench.get("/v1/completions").await).await.0, 405);
    assert_eq!(refusal(bench.get("/v2").await).await.0, 404);
    assert_eq!(refusal(bench.get("/v1/models/x").await).await.0, 404);
    let models: Value = serde_json::from_str(&text(bench.get("/v1/models").await).await).expect("JSON");
    let names: Vec<_> = models["data"].as_array().expect("a list").iter().map(|it| &it["id"]).collect();
    assert_eq!(names, ["m", "other"]);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn no_more_is_taken_on_than_there_is_room_for() {
    let (sender, mut receiver) = mpsc::unbounded::<mpsc::UnboundedSender<_>>();
    let (first, _) = replica(move |_, _| {
        let (piece, pieces) = mpsc::unbounded();
        piece.unbounded_send(Ok("data: 1\n\n")).unwrap();
        sender.unbounded_send(piece).unwrap();
        events(pieces)
    })
    .await;
    let bench = Bench::of(&[&first]);
    bench.serves(&[("m", &[&first]), ("asleep", &[])]);
    let asleep = || bench.post(r#"{"model":"asleep"}"#);
    // A quarter may wait for one model; the rest is for others.
    let mut held: Vec<_> = (0..2).map(|_| Box::pin(asleep())).collect();
    for one in &mut held {
        assert!(tokio::time::timeout(Duration::from_millis(50), one).await.is_err(), "it waits");
    }
    let response = asleep().await;
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    assert_eq!(refusal(response).await.0, 429);
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(bench.ask().await);
        assert_eq!(answers.last().map(Response::status), Some(StatusCode::OK));
    }
    let (status, code, _) = refusal(bench.ask().await).await;
    assert_eq!((status, &code[..]), (429, "gateway_full"));
    drop(receiver.next().await); // One answer ends.
    answers.remove(0);
    assert_eq!(bench.ask().await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_request_that_takes_replicas_down_is_given_up() {
    let replicas = [lost().await, lost().await, lost().await, lost().await];
    let bench = Bench::of(&replicas.each_ref().map(|(endpoint, _)| &endpoint[..]));
    let (status, code, _) = refusal(bench.ask().await).await;
    assert_eq!((status, &code[..]), (502, "replica_lost"));
    let asked: usize = replicas.iter().map(|(_, asked)| asked.load(Ordering::SeqCst)).sum();
    assert_eq!(asked, 3);
}

#[tokio::test]
async fn that_all_replicas_are_full_is_an_answer() {
    let (one, _) = replica(busy(StatusCode::TOO_MANY_REQUESTS)).await;
    let (two, _) = replica(busy(StatusCode::TOO_MANY_REQUESTS)).await;
    let bench = Bench::of(&[&one, &two]);
    let response = bench.ask().await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()[header::RETRY_AFTER]),
        (429, &"7".parse().unwrap())
    );
    assert_eq!(bench.moved().await["full"], 2.0);
}

#[tokio::test]
async fn keys_open_the_gateway_and_go_no_further() {
    let (good, asked) = replica(|_, headers| {
        let told: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
        (StatusCode::OK, told.join(" ")).into_response()
    })
    .await;
    let bench = Bench::new(LIMITS, Some("Bearer s3cret"));
    bench.serves(&[("m", &[&good])]);
    for path in ["/v1/models", "/v1/chat/completions", "/metrics"] {
        let (status, code, _) = refusal(bench.get(path).await).await;
        assert_eq!((status, &code[..]), (401, "invalid_api_key"), "{path}");
    }
    assert_eq!(bench.get("/healthz").await.status(), StatusCode::OK);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    let request = Request::post("/v1/completions")
        .header("authorization", "Bearer s3cret")
        .header("connection", "x-mine")
        .header("x-mine", "1")
        .header("x-request-timeout", "9")
        .body(Body::from(r#"{"model":"m"}"#));
    let seen = text(bench.send(request.expect("a request")).await).await;
    assert!(
        seen.contains("x-request-timeout") && !seen.contains("authorization") && !seen.contains("x-mine"),
        "{seen}"
    );
}
