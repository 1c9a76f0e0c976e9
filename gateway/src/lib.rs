//! One OpenAI-compatible address for all services of a pool.
//!
//! [`Routes`] knows which replicas answer for which model and how much each has to do, [`proxy`] sends a request to one
//! of them and, as long as nothing of an answer has come, to another one; [`error`] words refusals, [`meters`] counts.
//! Who knows the services, a scheduler's client, tells [`Routes::set`]; who listens gives requests to [`router`].

pub mod answer;
pub mod error;
pub mod meters;
pub mod proxy;
pub mod routes;
pub mod serve;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Json;
pub use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prometheus::Registry;
use serde_json::json;
use tokio::sync::Semaphore;

pub use error::ApiError;
use meters::Meters;
pub use routes::{Routes, Service};

/// Of the requests that may be under way, one in so many may wait for a replica of one model: a model without replicas
/// does not lock out the others.
const HELD_SHARE: usize = 4;
/// So long a replica may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// So long a connection to a replica may be silent before it is asked whether it is there; and between such questions.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// So many of these questions may go unanswered.
const UNANSWERED: u32 = 3;
/// Connections to replicas are kept for so long without a request.
const IDLE: Duration = Duration::from_secs(30);

/// What a gateway takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests under way, at most; at least 1.
    pub in_flight: usize,
    /// Bytes of a request's body, at most.
    pub body: usize,
    /// For so long a request waits for a replica.
    pub hold: Duration,
}

/// Who may ask: whether the value of the header `authorization` is good.
pub type Admits = Box<dyn Fn(Option<&[u8]>) -> bool + Send + Sync>;

/// A gateway.
pub struct Gateway {
    /// Which replicas there are.
    pub routes: Routes,
    limits: Limits,
    admits: Admits,
    places: Arc<Semaphore>,
    client: Client<HttpConnector, Full<Bytes>>,
    meters: Meters,
    draining: AtomicBool,
}

impl Gateway {
    /// A gateway that knows of no service yet, and enters what it counts into `registry`.
    pub fn new(limits: Limits, admits: Admits, registry: &Registry) -> Arc<Gateway> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE));
        connector.set_keepalive_retries(Some(UNANSWERED));
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE);
        Arc::new(Gateway {
            routes: Routes::new((limits.in_flight / HELD_SHARE).max(1)),
            limits,
            admits,
            places: Arc::new(Semaphore::new(limits.in_flight)),
            client: client.build(connector),
            meters: Meters::new(registry),
            draining: AtomicBool::new(false),
        })
    }

    /// From now on it says that it is not ready: it is about to end.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether it can be used.
    ///
    /// # Errors
    /// One sentence why not.
    fn readiness(&self) -> Result<(), &'static str> {
        match (self.draining.load(Ordering::Relaxed), self.routes.are_known()) {
            (true, _) => Err("it is about to end"),
            (false, false) => Err("the scheduler has not told of any services yet"),
            (false, true) => Ok(()),
        }
    }
}

/// Every path.
pub fn router(gateway: Arc<Gateway>) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/{*path}", any(proxy::forward))
        .layer(from_fn_with_state(gateway.clone(), guard));
    Router::new()
        .route("/healthz", get("ok\n"))
        .route("/readyz", get(ready))
        .merge(guarded)
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .with_state(gateway)
}

/// What those are told who speak plain text where TLS is spoken.
pub fn plain() -> Router {
    Router::new().fallback(async || ApiError::new(StatusCode::BAD_REQUEST, "this speaks TLS: write https://"))
}

async fn guard(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    match (gateway.admits)(given) {
        true => next.run(request).await,
        false => ApiError::unauthorized().into_response(),
    }
}

async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    match gateway.readiness() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let text = gateway.meters.text(&gateway.routes.overview());
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

async fn models(State(gateway): State<Arc<Gateway>>) -> Response {
    let cards: Vec<_> = gateway.routes.overview().iter().map(card).collect();
    Json(json!({ "object": "list", "data": cards })).into_response()
}

async fn model(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Response {
    let all = gateway.routes.overview();
    match all.iter().find(|it| it.model == id) {
        Some(it) => Json(card(it)).into_response(),
        None => ApiError::no_model(&id, all.iter().map(|it| &it.model[..])).into_response(),
    }
}

fn card(it: &routes::Overview) -> serde_json::Value {
    json!({ "id": it.model, "object": "model", "created": it.created_s, "owned_by": "aquifer" })
}
