//! The paths of the server, and what goes through them.

use super::engine::{Engine, Event, Finish, Refusal};
use super::grammar::Grammars;
use super::openai::{self, Answer, ApiError, Interface, Shown, Usage};
use super::request::{self, Call, Served};
use super::tools::{Calls, Part};
use crate::random::mix;
use crate::tokenizer::Tokenizer;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::UnboundedReceiver;

/// The largest body of a request, in bytes.
const MAX_BODY: usize = 1 << 20;

/// Seconds that an answer may take: the field `timeout` as a header.
const TIMEOUT: &str = "x-request-timeout";

type Events = UnboundedReceiver<(usize, Event)>;

/// What all paths share.
pub struct App {
    /// Generates.
    pub engine: Engine,
    /// Name of the model for clients.
    pub name: String,
    tokenizer: Tokenizer,
    grammars: Grammars,
    window: usize,
    /// Length of a hidden vector.
    width: usize,
    /// When the worker started, in seconds since 1970.
    created: u64,
    /// Answers so far: numbers them.
    answers: AtomicU64,
}

/// Every path.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/embeddings", post(embeddings))
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

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let (_, waiting) = app.engine.load();
    let text = app.engine.metrics().text(waiting);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [app.model_card()] }))
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    if id == app.name { Ok(Json(app.model_card())) } else { Err(ApiError::no_model(&id)) }
}

type RawBody = Result<Bytes, BytesRejection>;

async fn completions(State(app): State<Arc<App>>, headers: HeaderMap, body: RawBody) -> Response {
    app.counted(answer(&app, Interface::Completions, &headers, body).await)
}

async fn chat_completions(State(app): State<Arc<App>>, headers: HeaderMap, body: RawBody) -> Response {
    app.counted(answer(&app, Interface::Chat, &headers, body).await)
}

async fn embeddings(State(app): State<Arc<App>>, headers: HeaderMap, body: RawBody) -> Response {
    app.counted(embed(&app, &headers, body).await)
}

async fn answer(
    app: &Arc<App>,
    interface: Interface,
    headers: &HeaderMap,
    body: RawBody,
) -> Result<Response, ApiError> {
    let (body, timeout, unique) = (read(body)?, timeout(headers)?, app.unique());
    let asked = Arc::clone(app);
    // A grammar may take a while to compile, and others are to be served meanwhile.
    let parse = move || request::parse(interface, &body, asked.served(), unique, timeout);
    let call = tokio::task::spawn_blocking(parse).await.map_err(|_| ApiError::failed())??;
    let prefix = if interface == Interface::Chat { "chatcmpl" } else { "cmpl" };
    let words = Answer {
        interface,
        id: format!("{prefix}-{unique:016x}"),
        created: now_s(),
        model: app.name.clone(),
        tokenizer: app.tokenizer.clone(),
    };
    let events = app.engine.submit(call.requests.clone()).map_err(refused)?;
    let gathering = Gathering::new(words, call, unique);
    if gathering.call.stream { Ok(stream(gathering, events)) } else { whole(gathering, events).await }
}

async fn embed(app: &App, headers: &HeaderMap, body: RawBody) -> Result<Response, ApiError> {
    let (body, timeout) = (read(body)?, timeout(headers)?);
    let (requests, base64) = request::parse_embeddings(&body, app.served(), app.width, timeout)?;
    let tokens = requests.iter().map(|request| request.prompt.len()).sum();
    let (mut vectors, mut open) = (vec![Vec::new(); requests.len()], requests.len());
    let mut events = app.engine.submit(requests).map_err(refused)?;
    while 0 < open {
        match events.recv().await {
            Some((index, Event::Hidden(vector))) => vectors[index] = unit(vector),
            Some((_, Event::End { reason: Finish::Deadline, .. })) => return Err(ApiError::deadline()),
            Some((_, Event::End { .. })) => open -= 1,
            Some(_) => (),
            None => return Err(ApiError::failed()),
        }
    }
    Ok(Json(openai::embeddings(&app.name, &vectors, base64, tokens)).into_response())
}

/// The same direction with length 1.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if 0.0 < length {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    vector
}

fn read(body: RawBody) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {MAX_BODY} bytes"))
        }
        status => ApiError::new(status, rejection.body_text()),
    })
}

fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let seconds = value.to_str().ok().and_then(|text| text.parse::<f64>().ok());
    match seconds.filter(|seconds| 0.0 < *seconds && *seconds <= 86_400.0) {
        Some(seconds) => Ok(Some(Duration::from_secs_f64(seconds))),
        None => {
            let message = format!("{TIMEOUT} is {value:?}; it is above 0 and at most 86400 seconds");
            Err(ApiError::field(TIMEOUT, message))
        }
    }
}

fn refused(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Full { max_queue, retry_after_s } => ApiError {
            code: Some("queue_full"),
            retry_after_s: Some(retry_after_s),
            ..ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("{max_queue} requests may wait, and there is no room for this one"),
            )
        },
        Refusal::TooLong { tokens, capacity } => {
            let message = format!(
                "prompt and answer have {tokens} tokens; the memory for keys and values has room for {capacity}"
            );
            ApiError {
                code: Some("context_length_exceeded"),
                ..ApiError::new(StatusCode::BAD_REQUEST, message)
            }
        }
        Refusal::Stopping => ApiError {
            code: Some("stopping"),
            retry_after_s: Some(1),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "this worker is about to stop")
        },
    }
}

/// One of the answers to a request, as far as it has come.
#[derive(Default)]
struct Choice {
    text: String,
    /// Finds calls in the text, where functions are offered.
    finder: Option<Calls>,
    /// Calls so far; the first `told` of them were streamed.
    calls: Vec<Value>,
    told: usize,
    shown: Vec<Shown>,
    /// Characters of the text whose likelihoods were told.
    offset: usize,
    reason: Option<Finish>,
    generated: usize,
    cached: usize,
}

/// The answers to a request, as far as they have come.
struct Gathering {
    words: Answer,
    call: Call,
    choices: Vec<Choice>,
    unique: u64,
}

impl Gathering {
    /// `unique` numbers the answer.
    fn new(words: Answer, call: Call, unique: u64) -> Gathering {
        let echo =
            |index: usize| call.echo.as_ref().map(|texts| texts[index / call.n].clone()).unwrap_or_default();
        let finder = || call.offer.clone().map(Calls::new);
        let choice = |index| Choice { text: echo(index), finder: finder(), ..Choice::default() };
        let choices = (0..call.requests.len()).map(choice).collect();
        Gathering { words, call, choices, unique }
    }

    /// Takes an event in; the index of its answer, and whether that has ended.
    fn take(&mut self, (index, event): (usize, Event)) -> Result<(usize, bool), ApiError> {
        let choice = &mut self.choices[index];
        match event {
            Event::Hidden(_) => (),
            Event::Prompt(likelihoods) => {
                let first = self.call.requests[index].prompt[0];
                choice.shown.push((first, None));
                choice.shown.extend(likelihoods.into_iter().map(|one| (one.token, Some(one))));
            }
            Event::Text { text, likelihood } => {
                match &mut choice.finder {
                    None => choice.text.push_str(&text),
                    Some(finder) => {
                        let parts = finder.push(&text);
                        self.found(index, parts);
                    }
                }
                let choice = &mut self.choices[index];
                choice.shown.extend(likelihood.map(|one| (one.token, Some(one))));
            }
            Event::End { reason: Finish::Deadline, .. } => return Err(ApiError::deadline()),
            Event::End { reason: Finish::Grammar, .. } => return Err(ApiError::grammar()),
            Event::End { reason, tokens, cached } => {
                let parts = choice.finder.as_mut().map(Calls::finish).unwrap_or_default();
                self.found(index, parts);
                let choice = &mut self.choices[index];
                (choice.reason, choice.generated, choice.cached) = (Some(reason), tokens, cached);
                return Ok((index, true));
            }
        }
        Ok((index, false))
    }

    /// Takes in what was found in the text of an answer.
    fn found(&mut self, index: usize, parts: Vec<Part>) {
        let choice = &mut self.choices[index];
        for part in parts {
            match (part, &self.call.offer) {
                (Part::Call { name, arguments }, Some(offer)) => {
                    let id = offer.id(mix(self.unique ^ index as u64), choice.calls.len());
                    choice.calls.push(openai::call(&id, &name, &arguments));
                }
                (Part::Text(text), _) => choice.text.push_str(&text),
                (Part::Call { .. }, None) => unreachable!("only what is offered is found"),
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.choices.iter().all(|choice| choice.reason.is_some())
    }

    fn logprobs(&mut self, index: usize) -> Value {
        let choice = &mut self.choices[index];
        let shown = std::mem::take(&mut choice.shown);
        match self.call.requests[index].likelihoods {
            Some(_) => self.words.logprobs(&shown, &mut choice.offset),
            None => Value::Null,
        }
    }

    fn usage(&self) -> Usage {
        // The answers to one prompt read it once.
        let firsts = self.choices.iter().zip(&self.call.requests).step_by(self.call.n);
        Usage {
            prompt: firsts.clone().map(|(_, request)| request.prompt.len()).sum(),
            cached: firsts.map(|(choice, _)| choice.cached).sum(),
            generated: self.choices.iter().map(|choice| choice.generated).sum(),
        }
    }

    /// The lines of a stream for what has come of an answer since the last ones.
    fn lines(&mut self, index: usize, ended: bool) -> String {
        let mut lines = String::new();
        let told = !self.choices[index].shown.is_empty();
        let text = std::mem::take(&mut self.choices[index].text);
        if told || !text.is_empty() {
            let logprobs = if told { self.logprobs(index) } else { Value::Null };
            lines.push_str(&line(&self.words.piece(index, &text, logprobs)));
        }
        let choice = &mut self.choices[index];
        for (number, call) in choice.calls.iter().enumerate().skip(choice.told) {
            for piece in self.words.call_pieces(index, number, call) {
                lines.push_str(&line(&piece));
            }
        }
        choice.told = choice.calls.len();
        let called = 0 < choice.told;
        if let Some(reason) = self.choices[index].reason.filter(|_| ended) {
            lines.push_str(&line(&self.words.closing(index, reason, called)));
        }
        if ended && self.has_ended() {
            if self.call.include_usage {
                lines.push_str(&line(&self.words.usage_part(self.usage())));
            }
            lines.push_str("data: [DONE]\n\n");
        }
        lines
    }
}

fn line(value: &Value) -> String {
    format!("data: {value}\n\n")
}

async fn whole(mut gathering: Gathering, mut events: Events) -> Result<Response, ApiError> {
    while !gathering.has_ended() {
        gathering.take(events.recv().await.ok_or_else(ApiError::failed)?)?;
    }
    let mut choices = Vec::new();
    for index in 0..gathering.choices.len() {
        let (logprobs, choice) = (gathering.logprobs(index), &gathering.choices[index]);
        let reason = choice.reason.unwrap_or(Finish::Length);
        choices.push(gathering.words.choice(index, &choice.text, &choice.calls, logprobs, reason));
    }
    Ok(Json(gathering.words.whole(choices, gathering.usage())).into_response())
}

/// Server-sent events: one line of JSON for each part, then `[DONE]`. An error is a part of its own, and the last one.
fn stream(gathering: Gathering, events: Events) -> Response {
    let count = gathering.choices.len();
    let opening =
        (0..count).filter_map(|index| gathering.words.opening(index)).map(|part| line(&part)).collect();
    let state = Some((gathering, events, opening));
    // Text that is ready at once shares a write, but every piece keeps its own event.
    let parts =
        futures::stream::unfold(state, move |state: Option<(Gathering, Events, String)>| async move {
            let (mut gathering, mut events, mut text) = state?;
            if !text.is_empty() {
                return Some((
                    Ok::<_, std::convert::Infallible>(text),
                    Some((gathering, events, String::new())),
                ));
            }
            let mut next = events.recv().await;
            loop {
                match next.ok_or_else(ApiError::failed).and_then(|event| gathering.take(event)) {
                    Ok((index, ended)) => text.push_str(&gathering.lines(index, ended)),
                    Err(error) => {
                        text.push_str(&line(&error.body()));
                        return Some((Ok(text), None));
                    }
                }
                if gathering.has_ended() {
                    return Some((Ok(text), None));
                }
                match events.try_recv() {
                    Ok(event) => next = Some(event),
                    Err(_) if text.is_empty() => next = events.recv().await,
                    Err(_) => return Some((Ok(text), Some((gathering, events, String::new())))),
                }
            }
        });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(parts)).into_response()
}

impl App {
    /// The paths of a model that has a window of `window` tokens and hidden vectors of length `width`.
    pub fn new(engine: Engine, tokenizer: Tokenizer, name: String, window: usize, width: usize) -> App {
        let (grammars, answers) = (Grammars::new(tokenizer.clone()), AtomicU64::new(0));
        App { engine, name, tokenizer, grammars, window, width, created: now_s(), answers }
    }

    fn served(&self) -> Served<'_> {
        let capacity = self.engine.capacity();
        let App { name, tokenizer, grammars, window, .. } = self;
        Served { name, tokenizer, grammars, window: *window, capacity }
    }

    /// Counts what was no request; the engine counts all others.
    fn counted(&self, result: Result<Response, ApiError>) -> Response {
        if result.as_ref().is_err_and(|error| error.status.is_client_error() && error.retry_after_s.is_none())
        {
            self.engine.metrics().count("invalid");
        }
        result.unwrap_or_else(IntoResponse::into_response)
    }

    /// A number that no other answer of any worker has, with all likelihood.
    fn unique(&self) -> u64 {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        mix(nanos ^ mix(self.answers.fetch_add(1, Ordering::Relaxed)))
    }

    fn model_card(&self) -> Value {
        json!({
            "id": self.name, "object": "model", "created": self.created, "owned_by": "aquifer",
            "max_model_len": self.window.min(self.engine.capacity()),
        })
    }
}

/// Seconds since 1970.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
