//! The words of OpenAI's HTTP interface: what a request may ask for, and what the answers look like.
//!
//! Source: <https://platform.openai.com/docs/api-reference>, sections "Completions" and "Chat".

use super::engine::{Finish, Request};
use super::sampling::Sampling;
use crate::tokenizer::{ChatError, Tokenizer};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// Tokens that a completion generates where the request does not say, as in OpenAI's interface.
const DEFAULT_COMPLETION_TOKENS: usize = 16;
/// The most stop strings of a request.
const MAX_STOPS: usize = 16;

/// An error in OpenAI's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// One sentence for people.
    pub message: String,
    /// Class of the error.
    pub kind: &'static str,
    /// The field of the request that is wrong.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
    /// When to try again, in seconds.
    pub retry_after_s: Option<u64>,
}

impl ApiError {
    /// An error with this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        ApiError { status, message: message.into(), kind, param: None, code: None, retry_after_s: None }
    }

    /// Status 400 for the field `param`.
    pub fn field(param: &str, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..ApiError::new(StatusCode::BAD_REQUEST, message) }
    }

    /// Status 404 for a model that is not served here.
    pub fn no_model(name: &str) -> ApiError {
        let message = format!("the model {name:?} does not exist");
        let code = Some("model_not_found");
        ApiError { param: Some("model".into()), code, ..ApiError::new(StatusCode::NOT_FOUND, message) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let ApiError { status, message, kind, param, code, retry_after_s } = self;
        let error = json!({ "message": message, "type": kind, "param": param, "code": code });
        let mut response = (status, Json(json!({ "error": error }))).into_response();
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Which of the two interfaces a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// `/v1/completions`.
    Completions,
    /// `/v1/chat/completions`.
    Chat,
}

/// A request that can be run.
#[derive(Clone, Debug)]
pub struct Call {
    /// Where it came through.
    pub interface: Interface,
    /// What to generate.
    pub request: Request,
    /// Whether the answer comes piece by piece.
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
}

/// Reads the body of a request to the model `name` with a window of `window` tokens. `default_seed` is taken where
/// the request has none.
///
/// # Errors
/// Names the field that is wrong and what it may be.
pub fn parse(
    interface: Interface,
    body: &[u8],
    name: &str,
    tokenizer: &Tokenizer,
    window: usize,
    default_seed: u64,
) -> Result<Call, ApiError> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))?;
    let Value::Object(fields) = body else {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "the body is not a JSON object"));
    };
    let fields = Fields(fields);
    match fields.get("model") {
        Some(Value::String(model)) if model == name => (),
        Some(Value::String(model)) => return Err(ApiError::no_model(model)),
        Some(_) => return Err(ApiError::field("model", "model is not a string")),
        None => return Err(ApiError::field("model", "model is missing")),
    }
    fields.refuse_unsupported()?;
    let prompt = match interface {
        Interface::Completions => completion_prompt(&fields, tokenizer)?,
        Interface::Chat => chat_prompt(&fields, tokenizer)?,
    };
    let prompt_field = if interface == Interface::Chat { "messages" } else { "prompt" };
    let max_tokens = fields.max_tokens(interface, prompt_field, prompt.len(), window)?;
    let sampling = Sampling {
        temperature: fields.number("temperature", 1.0, 0.0, 2.0)?,
        top_p: fields.top_p()?,
        seed: fields.seed()?.unwrap_or(default_seed),
    };
    let stream = fields.flag("stream")?;
    let request = Request { prompt, max_tokens, sampling, stop: fields.stop()? };
    Ok(Call { interface, request, stream, include_usage: fields.include_usage(stream)? })
}

/// A prompt as text or as tokens; a list must have one of them.
fn completion_prompt(fields: &Fields, tokenizer: &Tokenizer) -> Result<Vec<u32>, ApiError> {
    let wrong = || ApiError::field("prompt", "prompt is not a string, or a list of one, or a list of tokens");
    match fields.get("prompt") {
        None => Ok(tokenizer.encode("", true)),
        Some(Value::String(text)) => Ok(tokenizer.encode(text, true)),
        Some(Value::Array(items)) => match items.as_slice() {
            [Value::String(text)] => Ok(tokenizer.encode(text, true)),
            [Value::Array(tokens)] => tokens_of(tokens, tokenizer),
            [Value::Number(_), ..] => tokens_of(items, tokenizer),
            [] => Err(wrong()),
            [Value::String(_) | Value::Array(_), ..] => Err(ApiError::field(
                "prompt",
                format!("prompt has {} entries; one is supported", items.len()),
            )),
            _ => Err(wrong()),
        },
        Some(_) => Err(wrong()),
    }
}

fn tokens_of(items: &[Value], tokenizer: &Tokenizer) -> Result<Vec<u32>, ApiError> {
    let most = tokenizer.vocab_size() - 1;
    let known = |token: &u32| *token as usize <= most;
    let token = |value: &Value| u32::try_from(value.as_u64()?).ok().filter(known);
    let tokens: Option<Vec<u32>> = items.iter().map(token).collect();
    tokens.filter(|tokens| !tokens.is_empty()).ok_or_else(|| {
        ApiError::field("prompt", format!("prompt has a token that is not 0 to {most}, or has none"))
    })
}

/// The prompt of a conversation, so that the model goes on as the assistant.
fn chat_prompt(fields: &Fields, tokenizer: &Tokenizer) -> Result<Vec<u32>, ApiError> {
    let Some(Value::Array(messages)) = fields.get("messages") else {
        return Err(ApiError::field("messages", "messages is missing, or not a list"));
    };
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages is empty"));
    }
    let mut plain = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let at = |field: &str| format!("messages[{index}].{field}");
        let role = match message["role"].as_str() {
            Some(role @ ("system" | "developer" | "user" | "assistant")) => role,
            _ => {
                let message = format!("{} is not system, developer, user or assistant", at("role"));
                return Err(ApiError::field(&at("role"), message));
            }
        };
        let content = content_of(&message["content"]).ok_or_else(|| {
            ApiError::field(&at("content"), format!("{} is not a string, or a list of texts", at("content")))
        })?;
        plain.push(json!({ "role": role, "content": content }));
    }
    let refused = |error: ChatError| ApiError::field("messages", error.to_string());
    tokenizer.chat_tokens(&Value::Array(plain), true, None).map_err(refused)
}

fn content_of(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            parts.iter().map(|part| part["text"].as_str().filter(|_| part["type"] == "text")).collect()
        }
        _ => None,
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    /// A field that is there and not null.
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Refuses what would otherwise be ignored and change the meaning of the answer.
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let neutral = |name: &str, value: &Value| match name {
            "n" | "best_of" => value == 1,
            "presence_penalty" | "frequency_penalty" | "top_logprobs" => value.as_f64() == Some(0.0),
            "echo" | "logprobs" => value == false,
            "tools" | "functions" => value.as_array().is_some_and(Vec::is_empty),
            "logit_bias" => value.as_object().is_some_and(Map::is_empty),
            "response_format" => value["type"] == "text",
            "suffix" => value == "",
            _ => true,
        };
        for (name, value) in &self.0 {
            if !value.is_null() && !neutral(name, value) {
                let only = match name.as_str() {
                    "n" | "best_of" => format!("{name} is {value}; only 1 is supported"),
                    _ => format!("{name} is not supported"),
                };
                return Err(ApiError::field(name, only));
            }
        }
        Ok(())
    }

    fn number(&self, name: &str, default: f64, least: f64, most: f64) -> Result<f64, ApiError> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(number) if (least..=most).contains(&number) => Ok(number),
                _ => Err(ApiError::field(name, format!("{name} is {value}; it is {least} to {most}"))),
            },
        }
    }

    fn top_p(&self) -> Result<f64, ApiError> {
        match self.number("top_p", 1.0, 0.0, 1.0)? {
            0.0 => Err(ApiError::field("top_p", "top_p is 0; it is above 0 and at most 1")),
            top_p => Ok(top_p),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(ApiError::field(name, format!("{name} is {value}; it is true or false"))),
        }
    }

    /// Any integer of 64 bits.
    fn seed(&self) -> Result<Option<u64>, ApiError> {
        match self.get("seed") {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .or_else(|| value.as_i64().map(|seed| seed as u64))
                .map(Some)
                .ok_or_else(|| ApiError::field("seed", format!("seed is {value}; it is a whole number"))),
        }
    }

    fn stop(&self) -> Result<Vec<String>, ApiError> {
        let wrong =
            || ApiError::field("stop", format!("stop is not a string, or a list of at most {MAX_STOPS}"));
        match self.get("stop") {
            None => Ok(Vec::new()),
            Some(Value::String(stop)) => Ok(vec![stop.clone()]),
            Some(Value::Array(stops)) if stops.len() <= MAX_STOPS => {
                stops.iter().map(|stop| stop.as_str().map(str::to_string).ok_or_else(wrong)).collect()
            }
            Some(_) => Err(wrong()),
        }
    }

    fn include_usage(&self, stream: bool) -> Result<bool, ApiError> {
        match self.get("stream_options") {
            None => Ok(false),
            Some(Value::Object(options)) if stream => Fields(options.clone()).flag("include_usage"),
            Some(_) if !stream => {
                Err(ApiError::field("stream_options", "stream_options needs stream to be true"))
            }
            Some(_) => Err(ApiError::field("stream_options", "stream_options is not an object")),
        }
    }

    /// Tokens to generate. Prompt and answer have to fit in the window.
    fn max_tokens(
        &self,
        interface: Interface,
        prompt_field: &str,
        prompt: usize,
        window: usize,
    ) -> Result<usize, ApiError> {
        let too_long = |message: String, param: &str| {
            let code = Some("context_length_exceeded");
            ApiError { code, ..ApiError::field(param, message) }
        };
        if window <= prompt {
            let message =
                format!("the prompt has {prompt} tokens; the model's window has {window}, answer included");
            return Err(too_long(message, prompt_field));
        }
        let room = window - prompt;
        let asked = ["max_completion_tokens", "max_tokens"]
            .into_iter()
            .find_map(|name| Some((name, self.get(name)?)));
        let Some((name, value)) = asked else {
            let chat = interface == Interface::Chat;
            return Ok(if chat { room } else { DEFAULT_COMPLETION_TOKENS.min(room) });
        };
        match value.as_u64() {
            Some(tokens) if (1..=room as u64).contains(&tokens) => Ok(tokens as usize),
            Some(tokens) if 0 < tokens => {
                let sum = format!("{name} is {tokens} and the prompt has {prompt} tokens");
                Err(too_long(format!("{sum}; the model's window has {window}"), name))
            }
            _ => Err(ApiError::field(name, format!("{name} is {value}; it is a whole number above 0"))),
        }
    }
}

/// What all parts of an answer have in common.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Where the request came through.
    pub interface: Interface,
    /// Identifies the answer.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

impl Answer {
    /// The whole answer at once.
    pub fn whole(&self, text: &str, reason: Finish, tokens: usize) -> Value {
        let (object, choice) = match self.interface {
            Interface::Completions => ("text_completion", json!({ "text": text })),
            Interface::Chat => (
                "chat.completion",
                json!({ "message": { "role": "assistant", "content": text, "refusal": null } }),
            ),
        };
        let mut answer = self.part(object, Some((choice, Some(reason))));
        answer["usage"] = self.usage(tokens);
        answer
    }

    /// The first part of a stream, where there is one before the text.
    pub fn opening(&self) -> Option<Value> {
        let delta = json!({ "delta": { "role": "assistant", "content": "" } });
        (self.interface == Interface::Chat).then(|| self.part("chat.completion.chunk", Some((delta, None))))
    }

    /// A part of a stream with text.
    pub fn piece(&self, text: &str) -> Value {
        match self.interface {
            Interface::Completions => self.part("text_completion", Some((json!({ "text": text }), None))),
            Interface::Chat => {
                let delta = json!({ "delta": { "content": text } });
                self.part("chat.completion.chunk", Some((delta, None)))
            }
        }
    }

    /// The part of a stream that says why it ends.
    pub fn closing(&self, reason: Finish) -> Value {
        match self.interface {
            Interface::Completions => {
                self.part("text_completion", Some((json!({ "text": "" }), Some(reason))))
            }
            Interface::Chat => {
                self.part("chat.completion.chunk", Some((json!({ "delta": {} }), Some(reason))))
            }
        }
    }

    /// The part of a stream with the usage.
    pub fn usage_part(&self, tokens: usize) -> Value {
        let object =
            if self.interface == Interface::Chat { "chat.completion.chunk" } else { "text_completion" };
        let mut part = self.part(object, None);
        part["usage"] = self.usage(tokens);
        part
    }

    fn usage(&self, tokens: usize) -> Value {
        let prompt = self.prompt_tokens;
        json!({ "prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens })
    }

    fn part(&self, object: &str, choice: Option<(Value, Option<Finish>)>) -> Value {
        let choices: Vec<Value> = choice
            .into_iter()
            .map(|(mut choice, reason)| {
                choice["index"] = 0.into();
                choice["logprobs"] = Value::Null;
                choice["finish_reason"] = match reason {
                    Some(Finish::Stop) => "stop".into(),
                    Some(Finish::Length) => "length".into(),
                    None => Value::Null,
                };
                choice
            })
            .collect();
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_json(interface: Interface, body: Value) -> Result<Call, ApiError> {
        parse(interface, body.to_string().as_bytes(), "m", &Tokenizer::bytes(), 100, 7)
    }

    fn refusal(interface: Interface, body: Value) -> (u16, String, Option<String>) {
        let error = parse_json(interface, body).unwrap_err();
        (error.status.as_u16(), error.message, error.param)
    }

    #[test]
    fn a_conversation_becomes_lines_of_role_and_content() {
        let messages = json!([
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": [{ "type": "text", "text": "Hi" }, { "type": "text", "text": "!" }] },
        ]);
        let call = parse_json(Interface::Chat, json!({ "model": "m", "messages": messages })).unwrap();
        let expected = "system: Be brief.\nuser: Hi!\nassistant:";
        assert_eq!(call.request.prompt, Tokenizer::bytes().encode(expected, true));
        assert_eq!(call.request.max_tokens, 100 - call.request.prompt.len());
        assert_eq!(call.request.sampling, Sampling { temperature: 1.0, top_p: 1.0, seed: 7 });
    }

    #[test]
    fn every_field_that_cannot_be_is_named() {
        let with = |field: &str, value: Value| {
            let mut body = json!({ "model": "m", "prompt": "p" });
            body[field] = value;
            refusal(Interface::Completions, body)
        };
        for (field, value, message) in [
            ("n", json!(2), "n is 2; only 1 is supported"),
            ("temperature", json!(3), "temperature is 3; it is 0 to 2"),
            ("temperature", json!("hot"), "temperature is \"hot\"; it is 0 to 2"),
            ("top_p", json!(0), "top_p is 0; it is above 0 and at most 1"),
            ("max_tokens", json!(0), "max_tokens is 0; it is a whole number above 0"),
            (
                "max_tokens",
                json!(99),
                "max_tokens is 99 and the prompt has 2 tokens; the model's window has 100",
            ),
            ("seed", json!(1.5), "seed is 1.5; it is a whole number"),
            ("stop", json!([1]), "stop is not a string, or a list of at most 16"),
            ("stream", json!(1), "stream is 1; it is true or false"),
            ("stream_options", json!({}), "stream_options needs stream to be true"),
            ("prompt", json!(["a", "b"]), "prompt has 2 entries; one is supported"),
            ("prompt", json!([999]), "prompt has a token that is not 0 to 257, or has none"),
            ("logit_bias", json!({ "1": 2 }), "logit_bias is not supported"),
        ] {
            assert_eq!(with(field, value), (400, message.into(), Some(field.into())));
        }
        let long = with("prompt", json!("x".repeat(100)));
        assert_eq!(long.1, "the prompt has 101 tokens; the model's window has 100, answer included");
    }

    #[test]
    fn a_model_that_is_not_served_is_not_found() {
        let error = parse_json(Interface::Completions, json!({ "model": "gpt" })).unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (404, Some("model_not_found")));
    }

    #[test]
    fn a_message_that_cannot_be_is_named_with_its_place() {
        let body =
            json!({ "model": "m", "messages": [{ "role": "user", "content": "" }, { "role": "tool" }] });
        let (_, message, param) = refusal(Interface::Chat, body);
        assert_eq!(message, "messages[1].role is not system, developer, user or assistant");
        assert_eq!(param.unwrap(), "messages[1].role");
    }
}
