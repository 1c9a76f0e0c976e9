//! Serving a model over HTTP, in the words that OpenAI's clients speak.
//!
//! [`openai`] reads requests and words answers, [`engine`] generates, and this file connects the two.

pub mod engine;
pub mod openai;
pub mod sampling;
pub mod text;

use crate::args::ServeArgs;
use crate::checkpoint::{load_model, load_tokenizer};
use crate::contract::Contract;
use crate::error::WorkerError;
use crate::kernels::{Cpu, Precision};
use crate::random::mix;
use crate::status::{State as Life, Status, StatusFile};
use crate::tokenizer::Tokenizer;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use engine::{Engine, Event, Refusal};
use openai::{Answer, ApiError, Call, Interface};
use serde_json::{Value, json};
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::UnboundedReceiver;

/// The largest body of a request, in bytes.
const MAX_BODY: usize = 1 << 20;

/// Serves as the environment and the options say, until a signal comes. Starts a runtime of its own, so it must not
/// be called from within one.
///
/// # Errors
/// See [`WorkerError`], which also knows the exit code.
pub fn main(args: ServeArgs) -> Result<(), WorkerError> {
    let contract = Contract::from_env()?;
    let io = |what: &str| {
        let what = what.to_string();
        move |error| WorkerError::Io { what, error }
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io("runtime"))?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).map_err(io("SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io("SIGINT"))?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => (),
                _ = interrupt.recv() => (),
            }
        };
        run(&args, &contract, stop, |_| ()).await
    })
}

/// As [`main`], with the environment and the signal as arguments; calls `on_ready` once requests are answered.
///
/// # Errors
/// As [`main`].
pub async fn run(
    args: &ServeArgs,
    contract: &Contract,
    stop: impl Future<Output = ()> + Send + 'static,
    on_ready: impl FnOnce(SocketAddr),
) -> Result<(), WorkerError> {
    args.validate()?;
    let mut file = StatusFile::new(contract.run_dir.as_deref());
    let mut status = Status { message: "loading the model".into(), ..Status::default() };
    file.update(&status);
    let mut model = load_model(&args.model)?;
    let tokenizer = load_tokenizer(&args.model, &model.config)?;
    if args.precision == Precision::Bf16 {
        model.compact();
    }
    let kernels = Cpu::with_precision(contract.threads, args.precision);
    let name = args.model_name();
    let window = model.config.max_position_embeddings;
    let engine = Engine::start(model, tokenizer.clone(), kernels, args.max_queue);
    let app = Arc::new(App { engine, tokenizer, name, window, created: now_s(), answers: AtomicU64::new(0) });

    let address = format!("{}:{}", args.host, args.port);
    let failed = |error| WorkerError::Io { what: format!("cannot listen at {address}"), error };
    let listener = tokio::net::TcpListener::bind((args.host.as_str(), args.port)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    // A host that means all addresses is no address to call.
    let endpoint = match address.ip().is_unspecified() {
        true => format!("http://127.0.0.1:{}/v1", address.port()),
        false => format!("http://{address}/v1"),
    };
    let (stopped, mut stopping) = tokio::sync::watch::channel(false);
    let server = {
        let app = Arc::clone(&app);
        let mut stopping = stopping.clone();
        let listener = listener.tap_io(|stream| {
            // Only costs latency where it fails.
            let _ = stream.set_nodelay(true);
        });
        let stop = async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        axum::serve(listener, router(app)).with_graceful_shutdown(stop).into_future()
    };
    let mut server = tokio::spawn(server);
    tokio::spawn(async move {
        stop.await;
        let _ = stopped.send(true);
    });

    status.state = Life::Running;
    status.ready = true;
    status.message = format!("serving {}", app.name);
    status.endpoint = Some(endpoint.clone());
    file.update(&status);
    let mut out = std::io::stdout();
    // A closed output is no reason to stop.
    let _ = writeln!(out, "serving {} on {endpoint}", app.name).and_then(|()| out.flush());
    on_ready(address);

    report_until(&app, &mut file, &mut status, stopping.wait_for(|stopping| *stopping)).await;
    app.engine.stop();
    status.state = Life::Stopping;
    status.ready = false;
    status.message = "finishing running requests".into();
    file.update(&status);
    if tokio::time::timeout(Duration::from_secs(args.grace), &mut server).await.is_err() {
        app.engine.abandon();
        server.abort();
        // That it was aborted is no news.
        let _ = server.await;
    }
    status.message = "stopped".into();
    file.flush(&status);
    Ok(())
}

/// Keeps the speed in the status file up to date until `stop`.
async fn report_until<T>(
    app: &App,
    file: &mut StatusFile,
    status: &mut Status,
    stop: impl Future<Output = T>,
) {
    tokio::pin!(stop);
    let (mut since, mut tokens) = (Instant::now(), 0);
    loop {
        tokio::select! {
            _ = &mut stop => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => (),
        }
        let total = app.engine.tokens();
        status.tokens_per_s = Some(((total - tokens) as f64 / since.elapsed().as_secs_f64()).round());
        (since, tokens) = (Instant::now(), total);
        let (running, waiting) = app.engine.load();
        status.message = format!("serving {}, {running} running, {waiting} waiting", app.name);
        file.update(status);
    }
}

struct App {
    engine: Engine,
    tokenizer: Tokenizer,
    name: String,
    window: usize,
    /// When the worker started, in seconds since 1970.
    created: u64,
    /// Answers so far: numbers them.
    answers: AtomicU64,
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not know the method")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(axum::middleware::map_response_with_state(Arc::clone(&app), request_id))
        .with_state(app)
}

/// Every response can be named when people ask about it.
async fn request_id(State(app): State<Arc<App>>, mut response: Response) -> Response {
    let id = format!("req-{:016x}", app.unique());
    response.headers_mut().insert("x-request-id", HeaderValue::from_str(&id).expect("hexadecimal"));
    response
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let (status, text) = match app.engine.is_stopping() {
        false => (StatusCode::OK, "ok"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    };
    let (running, waiting) = app.engine.load();
    (status, Json(json!({ "status": text, "running": running, "waiting": waiting }))).into_response()
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [app.model_card()] }))
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    if id == app.name { Ok(Json(app.model_card())) } else { Err(ApiError::no_model(&id)) }
}

async fn completions(State(app): State<Arc<App>>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(app, Interface::Completions, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn chat_completions(State(app): State<Arc<App>>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(app, Interface::Chat, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(
    app: Arc<App>,
    interface: Interface,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {MAX_BODY} bytes"))
        }
        status => ApiError::new(status, rejection.body_text()),
    })?;
    let unique = app.unique();
    let call = openai::parse(interface, &body, &app.name, &app.tokenizer, app.window, unique)?;
    let prefix = if interface == Interface::Chat { "chatcmpl" } else { "cmpl" };
    let words = Answer {
        interface,
        id: format!("{prefix}-{unique:016x}"),
        created: now_s(),
        model: app.name.clone(),
        prompt_tokens: call.request.prompt.len(),
    };
    let events = app.engine.submit(call.request.clone()).map_err(refused)?;
    if call.stream { Ok(stream(words, &call, events)) } else { whole(words, events).await }
}

fn refused(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Full { max_queue, retry_after_s } => ApiError {
            code: Some("queue_full"),
            retry_after_s: Some(retry_after_s),
            ..ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("{max_queue} requests are waiting already"),
            )
        },
        Refusal::Stopping => ApiError {
            code: Some("stopping"),
            retry_after_s: Some(1),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "this worker is about to stop")
        },
    }
}

async fn whole(words: Answer, mut events: UnboundedReceiver<Event>) -> Result<Response, ApiError> {
    let mut text = String::new();
    loop {
        match events.recv().await {
            Some(Event::Text(piece)) => text.push_str(&piece),
            Some(Event::End { reason, tokens }) => {
                return Ok(Json(words.whole(&text, reason, tokens)).into_response());
            }
            None => return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the engine has failed")),
        }
    }
}

/// Server-sent events: one line of JSON for each part, then `[DONE]`.
fn stream(words: Answer, call: &Call, events: UnboundedReceiver<Event>) -> Response {
    let include_usage = call.include_usage;
    let line = |value: &Value| format!("data: {value}\n\n");
    let opening = words.opening().map(|part| line(&part)).unwrap_or_default();
    // Text that is ready at once shares a write, but every piece keeps its own event.
    let parts = futures::stream::unfold(Some((events, opening)), move |state| {
        let words = words.clone();
        async move {
            let (mut events, mut text) = state?;
            if !text.is_empty() {
                return Some((Ok::<_, std::convert::Infallible>(text), Some((events, String::new()))));
            }
            let mut next = events.recv().await;
            loop {
                match next {
                    Some(Event::Text(piece)) => text.push_str(&line(&words.piece(&piece))),
                    Some(Event::End { reason, tokens }) => {
                        text.push_str(&line(&words.closing(reason)));
                        if include_usage {
                            text.push_str(&line(&words.usage_part(tokens)));
                        }
                        text.push_str("data: [DONE]\n\n");
                        return Some((Ok(text), None));
                    }
                    None => {
                        let error = json!({ "message": "the engine has failed", "type": "server_error" });
                        text.push_str(&line(&json!({ "error": error })));
                        return Some((Ok(text), None));
                    }
                }
                match events.try_recv() {
                    Ok(event) => next = Some(event),
                    Err(_) => return Some((Ok(text), Some((events, String::new())))),
                }
            }
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(parts)).into_response()
}

impl App {
    /// A number that no other answer of any worker has, with all likelihood.
    fn unique(&self) -> u64 {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        mix(nanos ^ mix(self.answers.fetch_add(1, Ordering::Relaxed)))
    }

    fn model_card(&self) -> Value {
        json!({
            "id": self.name, "object": "model", "created": self.created, "owned_by": "aquifer",
            "max_model_len": self.window,
        })
    }
}

/// Seconds since 1970.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
