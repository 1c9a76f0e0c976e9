//! Refusals in OpenAI's shape.
//!
//! Source: <https://platform.openai.com/docs/guides/error-codes>.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Names that a refusal tells, at most.
const TOLD: usize = 20;

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// One sentence for people.
    pub message: String,
    /// The field of the request that is wrong.
    pub param: Option<&'static str>,
    /// For programs.
    pub code: Option<&'static str>,
    /// When to try again, in seconds.
    pub retry_after_s: Option<u64>,
}

impl ApiError {
    /// A refusal with this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None, retry_after_s: None }
    }

    /// Status 401.
    pub fn unauthorized() -> ApiError {
        let message = "this gateway needs a key: authorization: Bearer …";
        ApiError { code: Some("invalid_api_key"), ..ApiError::new(StatusCode::UNAUTHORIZED, message) }
    }

    /// Status 404 for a model that no service has; says which there are.
    pub fn no_model<'a>(model: &str, known: impl ExactSizeIterator<Item = &'a str>) -> ApiError {
        let (count, names) = (known.len(), known.take(TOLD).map(|name| format!("{name:?}")));
        let names = names.collect::<Vec<_>>().join(", ");
        let there = match count {
            0 => "the pool serves none".to_string(),
            1..=TOLD => format!("there are {names}"),
            _ => format!("of {count} there are {names}, …"),
        };
        let message = format!("the model {model:?} does not exist; {there}");
        let code = Some("model_not_found");
        ApiError { param: Some("model"), code, ..ApiError::new(StatusCode::NOT_FOUND, message) }
    }

    /// Status 429 for more than is taken on at a time.
    pub fn full(message: String) -> ApiError {
        let (code, retry_after_s) = (Some("gateway_full"), Some(1));
        ApiError { code, retry_after_s, ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// Status 503 for a model of which no replica became ready while the request waited.
    pub fn no_replica(model: &str, waited_s: u64) -> ApiError {
        let message = format!("no replica of {model:?} was ready within {waited_s} s");
        let (code, retry_after_s) = (Some("no_replica_ready"), Some(5));
        ApiError { code, retry_after_s, ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// What the body says.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let ApiError { message, param, code, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
