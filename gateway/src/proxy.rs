//! Requests on their way to a replica.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header, request};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Frame, Incoming};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout, timeout_at};

use crate::Gateway;
use crate::answer::Answer;
use crate::error::ApiError;
use crate::routes::{Pick, Place};

/// So long the body of a request may take.
const BODY: Duration = Duration::from_secs(30);
/// Replicas that may be lost while they have a request before it is given up: it may be why.
const MOST_LOST: u32 = 3;
/// Between two tries of all replicas, unless one comes to be ready.
const PAUSE: Duration = Duration::from_millis(250);
/// Of a body, the bytes by which conversations with a common beginning know each other.
const BEGINNING: usize = 512;

/// Headers that are of one connection, or for the gateway alone. Source: RFC 9110, 7.6.1.
const NOT_PASSED_ON: [HeaderName; 11] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::EXPECT,
    header::AUTHORIZATION,
];

/// What the gateway needs to know of a request.
#[derive(Deserialize)]
struct Asked {
    model: Option<String>,
}

/// What came of a try.
enum Tried {
    /// An answer, with what came of its body, so that it is sure to come.
    Answered(Box<(hyper::http::response::Parts, Option<Frame<Bytes>>, Incoming)>),
    /// Nobody accepted the connection.
    Refused,
    /// The connection was lost before anything of an answer came.
    Lost,
    /// It takes no requests now: it is about to stop, or full.
    Busy(Response),
}

/// Sends a request to a replica of its model, and its answer back.
pub async fn forward(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let begun = Instant::now();
    match prepare(&gateway, request).await {
        Err(error) => {
            gateway.meters.refused(error.status.as_u16());
            error.into_response()
        }
        Ok(call) => {
            let model = call.model.clone();
            let response = call.send(&gateway).await.unwrap_or_else(IntoResponse::into_response);
            let seconds = begun.elapsed().as_secs_f64();
            gateway.meters.answered(&model, response.status().as_u16(), seconds);
            response
        }
    }
}

/// A request of a model that there is, or may be.
struct Call {
    head: request::Parts,
    path: PathAndQuery,
    body: Bytes,
    model: String,
    permit: OwnedSemaphorePermit,
}

/// Checks what can be checked before a replica is asked.
async fn prepare(gateway: &Gateway, request: Request) -> Result<Call, ApiError> {
    let (mut head, body) = request.into_parts();
    if head.method != Method::POST {
        let why = "this path does not know the method";
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, why));
    }
    let permit = gateway.places.clone().try_acquire_owned().map_err(|_| {
        let most = gateway.limits.in_flight;
        ApiError::full(format!("{most} requests are under way, and there is no room for this one"))
    })?;
    let most = gateway.limits.body;
    let late = |_| {
        let why = format!("the body did not come within {} s", BODY.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, why)
    };
    let read = timeout(BODY, Limited::new(body, most).collect()).await.map_err(late)?;
    let body = read.map(|body| body.to_bytes()).map_err(|error| match error.is::<LengthLimitError>() {
        true => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {most} bytes")),
        false => ApiError::new(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}")),
    })?;
    let asked: Asked = serde_json::from_slice(&body).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, format!("the body is no such JSON: {error}"))
    })?;
    let model = asked.model.ok_or_else(|| {
        let why = "model is absent; expected the name of a model, as /v1/models lists them";
        ApiError { param: Some("model"), ..ApiError::new(StatusCode::BAD_REQUEST, why) }
    })?;
    if let Pick::NoSuchModel = gateway.routes.pick(&model, &BTreeSet::new(), &[]) {
        return Err(no_such(gateway, &model));
    }
    clean(&mut head.headers);
    head.headers.remove(header::CONTENT_LENGTH);
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Ok(Call { head, path, body, model, permit })
}

fn no_such(gateway: &Gateway, model: &str) -> ApiError {
    let known = gateway.routes.overview();
    ApiError::no_model(model, known.iter().map(|it| &it.model[..]))
}

/// Takes out what is not passed on.
fn clean(headers: &mut HeaderMap) {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<HeaderName> =
        named.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    for name in NOT_PASSED_ON.iter().chain(&named) {
        headers.remove(name);
    }
}

impl Call {
    /// Tries replicas until one answers, for as long as a request is held.
    async fn send(self, gateway: &Gateway) -> Result<Response, ApiError> {
        let (routes, deadline) = (&gateway.routes, tokio::time::Instant::now() + gateway.limits.hold);
        let beginning = &self.body[..self.body.len().min(BEGINNING)];
        let (mut tried, mut lost, mut busy, mut held) = (BTreeSet::new(), 0, None, None);
        let mut changes = routes.changes();
        loop {
            changes.borrow_and_update();
            let (endpoint, place) = match routes.pick(&self.model, &tried, beginning) {
                Pick::NoSuchModel => return Err(no_such(gateway, &self.model)),
                Pick::Replica(endpoint, place) => (endpoint, place),
                Pick::NoneReady => {
                    // All that there are have said that they are full: that is an answer.
                    if let Some(response) =
                        busy.take_if(|it: &mut Response| it.status() == StatusCode::TOO_MANY_REQUESTS)
                    {
                        return Ok(response);
                    }
                    held = Some(routes.hold(&self.model, held.take()).ok_or_else(|| {
                        ApiError::full(format!("too many requests wait for a replica of {:?}", self.model))
                    })?);
                    let wait = async {
                        tokio::select! { _ = changes.changed() => (), () = sleep(PAUSE) => () }
                    };
                    if timeout_at(deadline, wait).await.is_err() {
                        let waited = gateway.limits.hold.as_secs();
                        return Err(ApiError::no_replica(&self.model, waited));
                    }
                    tried.clear();
                    continue;
                }
            };
            held = None;
            let why = match self.attempt(gateway, &endpoint).await {
                Tried::Answered(answer) => {
                    let (head, first, rest) = *answer;
                    return Ok(self.pass_on(gateway, head, first, rest, place));
                }
                Tried::Refused => {
                    routes.shun(&self.model, &endpoint);
                    "refused"
                }
                Tried::Busy(response) => {
                    let full = response.status() == StatusCode::TOO_MANY_REQUESTS;
                    busy = Some(response);
                    if full { "full" } else { "stopping" }
                }
                Tried::Lost => {
                    lost += 1;
                    if lost == MOST_LOST {
                        let why = format!(
                            "{lost} replicas were lost, one after the other, while they had this request"
                        );
                        let code = Some("replica_lost");
                        return Err(ApiError { code, ..ApiError::new(StatusCode::BAD_GATEWAY, why) });
                    }
                    "lost"
                }
            };
            tracing::debug!(%endpoint, model = self.model, "a request goes to another replica: {why}");
            gateway.meters.moved(&self.model, why);
            tried.insert(endpoint);
        }
    }

    /// Asks one replica, up to the first part of its answer.
    async fn attempt(&self, gateway: &Gateway, endpoint: &str) -> Tried {
        let Some(uri) = at(endpoint, &self.path) else { return Tried::Refused };
        let mut request = hyper::Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.head.headers.clone();
        let response = match gateway.client.request(request).await {
            Err(error) if error.is_connect() => return Tried::Refused,
            Err(_) => return Tried::Lost,
            Ok(response) => response,
        };
        let (mut head, mut body) = response.into_parts();
        clean(&mut head.headers);
        let first = match body.frame().await {
            Some(Err(_)) => return Tried::Lost,
            Some(Ok(frame)) => Some(frame),
            None => None,
        };
        if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&head.status) {
            let whole = first.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
            head.headers.remove(header::CONTENT_LENGTH);
            return Tried::Busy(Response::from_parts(head, Body::from(whole)));
        }
        Tried::Answered(Box::new((head, first, body)))
    }

    /// The answer to the client: nothing of it waits for the rest.
    fn pass_on(
        self,
        gateway: &Gateway,
        head: hyper::http::response::Parts,
        first: Option<Frame<Bytes>>,
        rest: Incoming,
        place: Place,
    ) -> Response {
        let kind = head.headers.get(header::CONTENT_TYPE);
        let is_events = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let cut = gateway.meters.cut(&self.model);
        let (place, permit) = (Some(place), Some(self.permit));
        let answer = Answer { first, rest, is_events, cut, place, permit };
        Response::from_parts(head, Body::new(answer))
    }
}

/// The same path at a replica; `None`: the replica tells no such address.
fn at(endpoint: &str, path: &PathAndQuery) -> Option<Uri> {
    let endpoint: Uri = endpoint.parse().ok()?;
    let is_http = endpoint.scheme_str() == Some("http");
    let uri = Uri::builder().scheme("http").authority(endpoint.authority()?.clone());
    uri.path_and_query(path.clone()).build().ok().filter(|_| is_http)
}
