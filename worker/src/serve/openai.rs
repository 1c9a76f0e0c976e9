//! The words of OpenAI's HTTP interface: what answers look like.
//!
//! Source: <https://platform.openai.com/docs/api-reference>, sections "Completions", "Chat" and "Embeddings".

use super::engine::Finish;
use super::sampling::Likelihood;
use crate::tokenizer::Tokenizer;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

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
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
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

    /// Status 504 for a request that took longer than it may.
    pub fn deadline() -> ApiError {
        let message = "the answer was not complete at the request's timeout";
        ApiError { code: Some("deadline_exceeded"), ..ApiError::new(StatusCode::GATEWAY_TIMEOUT, message) }
    }

    /// Status 422 for an answer whose grammar became too costly.
    pub fn grammar() -> ApiError {
        let message =
            "what may come next in the answer takes too long to find out: the grammar or schema is too large";
        let code = Some("grammar_too_complex");
        ApiError { code, ..ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, message) }
    }

    /// Status 500.
    pub fn failed() -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the engine has failed")
    }

    /// What the body says.
    pub fn body(&self) -> Value {
        let ApiError { message, kind, param, code, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::GATEWAY_TIMEOUT {
            // OpenAI's clients would ask again for what nobody waits for.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
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

/// A token of an answer, or of a prompt that starts it; the first token of a text has no likelihood.
pub type Shown = (u32, Option<Likelihood>);

/// Tokens that were read and generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt: usize,
    /// Those of them that were found in the cache.
    pub cached: usize,
    /// Tokens that were generated.
    pub generated: usize,
}

/// What all parts of an answer have in common.
#[derive(Clone)]
pub struct Answer {
    /// Where the request came through.
    pub interface: Interface,
    /// Identifies the answer.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl Answer {
    /// The whole answer at once.
    pub fn whole(&self, choices: Vec<Value>, usage: Usage) -> Value {
        let object = match self.interface {
            Interface::Completions => "text_completion",
            Interface::Chat => "chat.completion",
        };
        let mut answer = self.part(object, choices);
        answer["usage"] = usage_of(usage);
        answer
    }

    /// One of the answers to a request.
    pub fn choice(
        &self,
        index: usize,
        text: &str,
        calls: &[Value],
        logprobs: Value,
        reason: Finish,
    ) -> Value {
        let mut choice = match self.interface {
            Interface::Completions => json!({ "text": text }),
            Interface::Chat if calls.is_empty() => {
                json!({ "message": { "role": "assistant", "content": text, "refusal": null } })
            }
            Interface::Chat => {
                let content = Some(text).filter(|text| !text.is_empty());
                let message =
                    json!({ "role": "assistant", "content": content, "refusal": null, "tool_calls": calls });
                json!({ "message": message })
            }
        };
        complete(&mut choice, index, logprobs, Some(reason), !calls.is_empty());
        choice
    }

    /// The first part of a stream, where there is one before the text.
    pub fn opening(&self, index: usize) -> Option<Value> {
        let delta = json!({ "role": "assistant", "content": "" });
        (self.interface == Interface::Chat).then(|| self.chunk(index, delta, Value::Null))
    }

    /// A part of a stream with text.
    pub fn piece(&self, index: usize, text: &str, logprobs: Value) -> Value {
        self.chunk(index, json!({ "content": text }), logprobs)
    }

    /// The parts of a stream with call `number` of an answer: what is called, then with what.
    pub fn call_pieces(&self, index: usize, number: usize, call: &Value) -> [Value; 2] {
        let mut named = call.clone();
        named["index"] = number.into();
        let arguments = std::mem::replace(&mut named["function"]["arguments"], json!(""));
        let with = json!({ "index": number, "function": { "arguments": arguments } });
        [named, with].map(|call| self.chunk(index, json!({ "tool_calls": [call] }), Value::Null))
    }

    /// The part of a stream that says why it ends.
    pub fn closing(&self, index: usize, reason: Finish, called: bool) -> Value {
        let mut choice = json!({ "text": "" });
        if self.interface == Interface::Chat {
            choice = json!({ "delta": {} });
        }
        complete(&mut choice, index, Value::Null, Some(reason), called);
        self.part(self.chunk_object(), vec![choice])
    }

    /// The part of a stream with the usage.
    pub fn usage_part(&self, usage: Usage) -> Value {
        let mut part = self.part(self.chunk_object(), Vec::new());
        part["usage"] = usage_of(usage);
        part
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Value) -> Value {
        let mut choice = match self.interface {
            Interface::Chat => json!({ "delta": delta }),
            Interface::Completions => json!({ "text": delta["content"].as_str().unwrap_or_default() }),
        };
        complete(&mut choice, index, logprobs, None, false);
        self.part(self.chunk_object(), vec![choice])
    }

    /// What a part of a stream is called.
    fn chunk_object(&self) -> &'static str {
        match self.interface {
            Interface::Chat => "chat.completion.chunk",
            Interface::Completions => "text_completion",
        }
    }

    fn part(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }

    /// How likely tokens are, in the interface's words; `offset` counts the characters of the text before and after.
    pub fn logprobs(&self, tokens: &[Shown], offset: &mut usize) -> Value {
        match self.interface {
            Interface::Completions => {
                let top = |likelihood: &Likelihood| -> Map<String, Value> {
                    likelihood
                        .top
                        .iter()
                        .map(|(token, logprob)| (self.word(*token), json!(logprob)))
                        .collect()
                };
                let of = |what: &dyn Fn(&Likelihood) -> Value| -> Vec<Value> {
                    tokens
                        .iter()
                        .map(|(_, likelihood)| likelihood.as_ref().map_or(Value::Null, what))
                        .collect()
                };
                let offsets: Vec<usize> = tokens
                    .iter()
                    .map(|(token, _)| {
                        let bytes = self.tokenizer.token_bytes(*token).unwrap_or_default();
                        // Every character has one byte that does not continue another.
                        let characters = bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
                        std::mem::replace(offset, *offset + characters)
                    })
                    .collect();
                json!({
                    "tokens": tokens.iter().map(|(token, _)| self.word(*token)).collect::<Vec<_>>(),
                    "token_logprobs": of(&|likelihood| json!(likelihood.logprob)),
                    "top_logprobs": of(&|likelihood| json!(top(likelihood))),
                    "text_offset": offsets,
                })
            }
            Interface::Chat => {
                let entry = |token: u32, logprob: f64| {
                    let bytes = self.tokenizer.token_bytes(token);
                    json!({ "token": self.word(token), "logprob": logprob, "bytes": bytes })
                };
                let content = tokens.iter().filter_map(|(token, likelihood)| {
                    let likelihood = likelihood.as_ref()?;
                    let mut value = entry(*token, likelihood.logprob);
                    let top = likelihood.top.iter().map(|(token, logprob)| entry(*token, *logprob));
                    value["top_logprobs"] = top.collect::<Vec<_>>().into();
                    Some(value)
                });
                json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
            }
        }
    }

    /// A token for people: its text, its bytes where they are no text, or its number where it has none.
    fn word(&self, token: u32) -> String {
        match self.tokenizer.token_bytes(token) {
            None => format!("<|{token}|>"),
            Some(bytes) => std::str::from_utf8(bytes).map_or_else(
                |_| bytes.iter().fold("bytes:".into(), |text, byte| format!("{text}\\x{byte:02x}")),
                str::to_string,
            ),
        }
    }
}

/// Why an answer ends that calls functions.
const CALLED: &str = "tool_calls";

/// A call in an answer.
pub fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
}

fn complete(choice: &mut Value, index: usize, logprobs: Value, reason: Option<Finish>, called: bool) {
    choice["index"] = index.into();
    choice["logprobs"] = logprobs;
    choice["finish_reason"] = match reason {
        Some(Finish::Stop) if called => CALLED.into(),
        Some(Finish::Stop) => "stop".into(),
        Some(Finish::Grammar) => "grammar".into(),
        Some(Finish::Length) => "length".into(),
        Some(Finish::Deadline) => "deadline".into(),
        None => Value::Null,
    };
}

fn usage_of(Usage { prompt, cached, generated }: Usage) -> Value {
    json!({
        "prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
        "prompt_tokens_details": { "cached_tokens": cached },
    })
}

/// The answer to a request for embeddings: each vector has length 1.
pub fn embeddings(model: &str, vectors: &[Vec<f32>], base64: bool, prompt_tokens: usize) -> Value {
    let entry = |(index, vector): (usize, &Vec<f32>)| {
        let embedding = match base64 {
            true => encode_base64(&vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).into(),
            false => json!(vector),
        };
        json!({ "object": "embedding", "index": index, "embedding": embedding })
    };
    json!({
        "object": "list", "model": model, "data": vectors.iter().enumerate().map(entry).collect::<Vec<_>>(),
        "usage": { "prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens },
    })
}

/// Source: RFC 4648, section 4.
fn encode_base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().enumerate().fold(0u32, |bits, (i, byte)| bits | u32::from(*byte) << (16 - 8 * i));
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { letter.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ] {
            assert_eq!(encode_base64(bytes.as_bytes()), text);
        }
        assert_eq!(encode_base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn offsets_count_characters_and_bytes_that_are_no_text_are_named() {
        let answer = Answer {
            interface: Interface::Completions,
            id: "i".into(),
            created: 0,
            model: "m".into(),
            tokenizer: Tokenizer::bytes(),
        };
        let told = |token: u32| (token, Some(Likelihood { token, logprob: -1.0, top: vec![(257, -0.5)] }));
        let (mut offset, bytes) = (3, "é!".bytes().map(u32::from));
        let tokens: Vec<Shown> = [(256, None)].into_iter().chain(bytes.map(told)).collect();
        let logprobs = answer.logprobs(&tokens, &mut offset);
        assert_eq!(logprobs["tokens"], json!(["<|256|>", "bytes:\\xc3", "bytes:\\xa9", "!"]));
        assert_eq!(logprobs["text_offset"], json!([3, 3, 4, 4]));
        assert_eq!(logprobs["token_logprobs"], json!([null, -1.0, -1.0, -1.0]));
        assert_eq!(logprobs["top_logprobs"][1], json!({ "<|257|>": -0.5 }));
        assert_eq!(offset, 5);
    }
}
