//! What is answered: JSON as the commands print it, with its age, or a refusal in the same words.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use tokio::time::timeout;
use tonic::Code;

use super::door::Viewer;
use crate::Session;
use crate::output::Failure;

/// So long a scheduler may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// So long one that leads may take where another one may answer from its copy.
const PATIENCE_OF_SEVERAL: Duration = Duration::from_secs(4);
/// Header with the age of an answer from a copy, in milliseconds.
const AGE: HeaderName = HeaderName::from_static("aquifer-age-ms");

/// A request that is refused.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    failure: Failure,
}

impl Refusal {
    pub fn new(status: StatusCode, sentence: impl Into<String>, next: &str) -> Refusal {
        Refusal { status, failure: Failure::refused(sentence, next) }
    }

    pub fn not_found(sentence: &str) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, sentence, "")
    }

    pub fn bad(sentence: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, sentence, "")
    }

    pub fn busy(sentence: &str) -> Refusal {
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, sentence, "try again in a moment")
    }

    /// What a command says, by the kind of what the scheduler said.
    pub fn of(failure: Failure, said: Option<Code>) -> Refusal {
        let status = match (failure.exit, said) {
            (3, _) => StatusCode::SERVICE_UNAVAILABLE,
            (_, Some(Code::Unauthenticated)) => StatusCode::UNAUTHORIZED,
            (_, Some(Code::PermissionDenied)) => StatusCode::FORBIDDEN,
            (_, Some(Code::InvalidArgument)) => StatusCode::BAD_REQUEST,
            (_, Some(Code::ResourceExhausted)) => StatusCode::TOO_MANY_REQUESTS,
            (_, Some(Code::FailedPrecondition | Code::AlreadyExists)) => StatusCode::CONFLICT,
            // A command refuses by itself what is not there.
            (_, Some(Code::NotFound) | None) => StatusCode::NOT_FOUND,
            _ => StatusCode::BAD_GATEWAY,
        };
        Refusal { status, failure }
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Failure { sentence, next, .. } = self.failure;
        (self.status, Json(json!({ "error": sentence, "next": next }))).into_response()
    }
}

/// What a handler returns.
pub type Answered = Result<Response, Refusal>;

/// What was asked for, and how old it is in milliseconds, if it is not of now.
pub struct Found<T> {
    pub value: T,
    pub age_ms: Option<u64>,
}

impl<T: Serialize> Found<T> {
    pub fn answer(self) -> Response {
        dated(Json(self.value), self.age_ms)
    }
}

/// An answer that tells its age.
pub fn dated(answer: impl IntoResponse, age_ms: Option<u64>) -> Response {
    let mut answer = answer.into_response();
    if let Some(age) = age_ms {
        answer.headers_mut().insert(AGE, HeaderValue::from(age));
    }
    answer
}

/// JSON that was written before.
pub fn written(json: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

/// Asks in the name of the viewer: whoever leads, and if nobody does, one that stands by.
pub async fn ask<T, Asked>(viewer: &Viewer, ask: impl Fn(Session) -> Asked) -> Result<Found<T>, Refusal>
where
    Asked: Future<Output = Result<T, Failure>>,
{
    let busy = |_| Refusal::busy("too many questions of yours are under way");
    let turn = timeout(PATIENCE, viewer.questions.acquire()).await.map_err(busy)?;
    let _turn = turn.expect("it is never closed");
    let is_one = viewer.is_of_one();
    let patience = if is_one { PATIENCE } else { PATIENCE_OF_SEVERAL };
    let refusal = match once(viewer.session(false), patience, &ask).await {
        Err(refusal) if refusal.status == StatusCode::SERVICE_UNAVAILABLE && !is_one => refusal,
        answer => return answer,
    };
    // Why nobody leads says more than why a copy cannot be read.
    once(viewer.session(true), patience, &ask).await.map_err(|_| refusal)
}

async fn once<T, Asked>(
    session: Session,
    patience: Duration,
    ask: impl Fn(Session) -> Asked,
) -> Result<Found<T>, Refusal>
where
    Asked: Future<Output = Result<T, Failure>>,
{
    let pool = session.pool.clone();
    match timeout(patience, ask(session)).await {
        Ok(Ok(value)) => Ok(Found { value, age_ms: pool.heard().age_ms }),
        Ok(Err(failure)) => Err(Refusal::of(failure, pool.heard().refusal)),
        Err(_) => {
            let sentence = format!("the scheduler at {} does not answer in time", pool.server());
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, sentence, ""))
        }
    }
}
