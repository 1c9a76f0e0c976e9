//! What a request to OpenAI's interface may ask for.
//!
//! What is asked for and cannot be done is refused by the field's name, what is not known as well: an answer to another
//! question would be worse. Fields that only tell something about the client are passed over.

use super::engine::Request;
use super::form::{self, Form};
use super::grammar::Grammars;
use super::openai::{ApiError, Interface};
use super::sampling::Sampling;
use super::tools::Offer;
use crate::random::mix;
use crate::tokenizer::{ChatError, Tokenizer};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// Tokens that a completion generates where the request does not say, as in OpenAI's interface.
const DEFAULT_COMPLETION_TOKENS: usize = 16;
/// The most stop strings of a request, and the most stop tokens.
const MAX_STOPS: usize = 16;
/// The most answers to a request, over all of its prompts.
const MAX_ANSWERS: usize = 128;
/// The most alternatives that are told for each token.
const MAX_TOP: usize = 20;
/// The longest timeout, in seconds.
const MAX_TIMEOUT_S: f64 = 86_400.0;

/// Fields that change nothing about the answer.
const HARMLESS: [&str; 6] =
    ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"];

/// What a server is asked about.
#[derive(Clone, Copy)]
pub struct Served<'a> {
    /// Name of the model.
    pub name: &'a str,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Compiles grammars for it.
    pub grammars: &'a Grammars,
    /// Tokens that prompt and answer have at most, by the model.
    pub window: usize,
    /// The same, by the memory for keys and values.
    pub capacity: usize,
}

/// A request that can be run.
#[derive(Clone, Debug)]
pub struct Call {
    /// What to generate: `n` answers to the first prompt, then to the next.
    pub requests: Vec<Request>,
    /// Answers to each prompt.
    pub n: usize,
    /// Texts of the prompts, where answers start with them.
    pub echo: Option<Vec<String>>,
    /// Whether the answer comes piece by piece.
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
    /// What answers may call.
    pub offer: Option<Offer>,
}

/// Reads the body of a request. `default_seed` is taken where it has none, and `timeout` likewise.
///
/// # Errors
/// Names the field that is wrong and what it may be.
pub fn parse(
    interface: Interface,
    body: &[u8],
    served: Served<'_>,
    default_seed: u64,
    timeout: Option<Duration>,
) -> Result<Call, ApiError> {
    let fields = Fields::read(body, served.name)?;
    fields.refuse_unsupported(interface)?;
    let Form { grammar, offer, tools } = form::form(&fields.0, served.tokenizer)?;
    let prompts = match interface {
        Interface::Completions => fields.prompts("prompt", served.tokenizer)?,
        Interface::Chat => vec![(fields.conversation(served.tokenizer, tools.as_ref())?, String::new())],
    };
    let n = fields.whole("n", 1, 1, MAX_ANSWERS as u64)? as usize;
    if MAX_ANSWERS < n * prompts.len() {
        let message =
            format!("n is {n} for {} prompts; at most {MAX_ANSWERS} answers are given", prompts.len());
        return Err(ApiError::field("n", message));
    }
    let echo = interface == Interface::Completions && fields.flag("echo")?;
    let likelihoods = fields.likelihoods(interface)?;
    let seed = fields.seed()?.unwrap_or(default_seed);
    let constraint = grammar.map(|(grammar, field)| {
        let wrong = |error| ApiError::field(field, format!("{field}: {error}"));
        served.grammars.constraint(&grammar).map_err(wrong)
    });
    let marks = offer.as_ref().map_or(&[][..], |offer| offer.format.marks());
    let marks = marks.iter().filter_map(|mark| Some((served.tokenizer.special_token(mark)?, *mark)));
    let common = Request {
        constraint: constraint.transpose()?,
        marks: marks.collect(),
        sampling: fields.sampling(served.tokenizer)?,
        stop: fields.stop()?,
        stop_tokens: fields.stop_tokens(served.tokenizer)?,
        ignore_end: fields.flag("ignore_eos")?,
        likelihoods,
        prompt_likelihoods: echo && likelihoods.is_some(),
        deadline: fields.timeout()?.or(timeout).map(|timeout| Instant::now() + timeout),
        ..Request::default()
    };
    let mut requests = Vec::new();
    for (prompt, _) in &prompts {
        let max_tokens = fields.max_tokens(interface, echo, prompt.len(), served)?;
        for answer in 0..n as u64 {
            // Answers to one prompt differ, and each is the same for the same seed.
            let seed = if answer == 0 { seed } else { mix(seed ^ mix(answer)) };
            let sampling = Sampling { seed, ..common.sampling.clone() };
            requests.push(Request { prompt: prompt.clone(), max_tokens, sampling, ..common.clone() });
        }
    }
    let stream = fields.flag("stream")?;
    let echo = echo.then(|| prompts.into_iter().map(|(_, text)| text).collect());
    Ok(Call { requests, n, echo, stream, include_usage: fields.include_usage(stream)?, offer })
}

/// Reads the body of a request for embeddings: what to run, and whether vectors are wanted as base64.
///
/// # Errors
/// As [`parse`].
pub fn parse_embeddings(
    body: &[u8],
    served: Served<'_>,
    width: usize,
    timeout: Option<Duration>,
) -> Result<(Vec<Request>, bool), ApiError> {
    let fields = Fields::read(body, served.name)?;
    for name in fields.0.keys() {
        let known = ["model", "input", "encoding_format", "dimensions", "timeout"];
        if !known.contains(&name.as_str()) && !HARMLESS.contains(&name.as_str()) {
            return Err(ApiError::field(name, format!("{name} is not supported")));
        }
    }
    let base64 = match fields.get("encoding_format") {
        None => false,
        Some(format) if format == "float" => false,
        Some(format) if format == "base64" => true,
        Some(value) => {
            let message = format!("encoding_format is {value}; it is float or base64");
            return Err(ApiError::field("encoding_format", message));
        }
    };
    if let Some(value) = fields.get("dimensions").filter(|value| **value != width) {
        return Err(ApiError::field("dimensions", format!("dimensions is {value}; this model has {width}")));
    }
    if fields.get("input").is_none() {
        return Err(ApiError::field("input", "input is missing"));
    }
    let inputs = fields.prompts("input", served.tokenizer)?;
    if MAX_ANSWERS < inputs.len() {
        let message = format!("input has {} texts; at most {MAX_ANSWERS} are taken", inputs.len());
        return Err(ApiError::field("input", message));
    }
    let deadline = fields.timeout()?.or(timeout).map(|timeout| Instant::now() + timeout);
    let mut requests = Vec::new();
    for (prompt, _) in inputs {
        let most = served.window.min(served.capacity);
        if most < prompt.len() {
            return Err(too_long(
                "input",
                format!("input has {} tokens; at most {most} are taken", prompt.len()),
            ));
        }
        requests.push(Request { prompt, hidden: true, deadline, ..Request::default() });
    }
    Ok((requests, base64))
}

fn too_long(field: &str, message: String) -> ApiError {
    ApiError { code: Some("context_length_exceeded"), ..ApiError::field(field, message) }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn read(body: &[u8], name: &str) -> Result<Fields, ApiError> {
        let bad = |message: String| ApiError::new(StatusCode::BAD_REQUEST, message);
        let body: Value =
            serde_json::from_slice(body).map_err(|error| bad(format!("the body is not JSON: {error}")))?;
        let Value::Object(fields) = body else { return Err(bad("the body is not a JSON object".into())) };
        let fields = Fields(fields);
        match fields.get("model") {
            Some(Value::String(model)) if model == name => Ok(fields),
            Some(Value::String(model)) => Err(ApiError::no_model(model)),
            Some(_) => Err(ApiError::field("model", "model is not a string")),
            None => Err(ApiError::field("model", "model is missing")),
        }
    }

    /// A field that is there and not null.
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Refuses what would otherwise be ignored and change the meaning of the answer.
    fn refuse_unsupported(&self, interface: Interface) -> Result<(), ApiError> {
        const BOTH: [&str; 25] = [
            "model",
            "n",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "logit_bias",
            "seed",
            "stop",
            "stop_token_ids",
            "ignore_eos",
            "max_tokens",
            "stream",
            "stream_options",
            "logprobs",
            "timeout",
            "max_completion_tokens",
            "best_of",
            "response_format",
            "guided_json",
            "guided_regex",
            "guided_choice",
        ];
        let own: &[&str] = match interface {
            Interface::Completions => &["prompt", "echo"],
            Interface::Chat => &["messages", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls"],
        };
        for (name, value) in &self.0 {
            let known = [&BOTH[..], own, &HARMLESS].iter().any(|names| names.contains(&name.as_str()));
            let neutral = match name.as_str() {
                "best_of" => *value == 1 || Some(value) == self.get("n"),
                "functions" => value.as_array().is_some_and(Vec::is_empty),
                "function_call" => value == "none" || value == "auto",
                "modalities" => *value == json!(["text"]),
                "echo" => value == false,
                "suffix" => value == "",
                _ => false,
            };
            let supported = known && name != "best_of";
            if !value.is_null() && !supported && !neutral {
                return Err(ApiError::field(name, format!("{name} is not supported")));
            }
        }
        Ok(())
    }

    /// Prompts with their texts: a text, tokens, or a list of either.
    fn prompts(&self, field: &str, tokenizer: &Tokenizer) -> Result<Vec<(Vec<u32>, String)>, ApiError> {
        let wrong =
            || ApiError::field(field, format!("{field} is not a string, tokens, or a list of either"));
        let text = |text: &str| (tokenizer.encode(text, true), text.to_string());
        let tokens = |items: &[Value]| -> Result<(Vec<u32>, String), ApiError> {
            let most = tokenizer.vocab_size() - 1;
            let known = |token: &u32| *token as usize <= most;
            let token = |value: &Value| u32::try_from(value.as_u64()?).ok().filter(known);
            let tokens: Option<Vec<u32>> = items.iter().map(token).collect();
            let tokens = tokens.filter(|tokens| !tokens.is_empty()).ok_or_else(|| {
                ApiError::field(field, format!("{field} has a token that is not 0 to {most}, or has none"))
            })?;
            let bytes = tokens.iter().flat_map(|token| tokenizer.token_bytes(*token).unwrap_or_default());
            let text = String::from_utf8_lossy(&bytes.copied().collect::<Vec<u8>>()).into_owned();
            Ok((tokens, text))
        };
        let prompts = match self.get(field) {
            None => vec![text("")],
            Some(Value::String(one)) => vec![text(one)],
            Some(Value::Array(items)) => match items.as_slice() {
                [] => return Err(wrong()),
                [Value::Number(_), ..] => vec![tokens(items)?],
                _ => items
                    .iter()
                    .map(|item| match item {
                        Value::String(one) => Ok(text(one)),
                        Value::Array(items) => tokens(items),
                        _ => Err(wrong()),
                    })
                    .collect::<Result<_, _>>()?,
            },
            Some(_) => return Err(wrong()),
        };
        match prompts.iter().all(|(tokens, _)| !tokens.is_empty()) {
            true => Ok(prompts),
            false => Err(ApiError::field(field, format!("{field} has no tokens"))),
        }
    }

    /// The prompt of a conversation, so that the model goes on as the assistant.
    fn conversation(&self, tokenizer: &Tokenizer, tools: Option<&Value>) -> Result<Vec<u32>, ApiError> {
        let messages = form::messages(self.get("messages"))?;
        let refused = |error: ChatError| ApiError::field("messages", error.to_string());
        tokenizer.chat_tokens(&messages, true, tools).map_err(refused)
    }

    fn sampling(&self, tokenizer: &Tokenizer) -> Result<Sampling, ApiError> {
        // Some clients say -1 for none.
        let top_k = match self.get("top_k") {
            Some(value) if *value == -1 => 0,
            _ => self.whole("top_k", 0, 0, u32::MAX.into())?,
        };
        Ok(Sampling {
            temperature: self.number("temperature", 1.0, 0.0, 2.0)?,
            top_p: self.above_zero("top_p", 1.0, 1.0)?,
            top_k: top_k as usize,
            min_p: self.number("min_p", 0.0, 0.0, 1.0)?,
            repetition_penalty: self.above_zero("repetition_penalty", 1.0, 10.0)?,
            presence_penalty: self.number("presence_penalty", 0.0, -2.0, 2.0)?,
            frequency_penalty: self.number("frequency_penalty", 0.0, -2.0, 2.0)?,
            bias: self.bias(tokenizer)?,
            seed: 0,
        })
    }

    fn bias(&self, tokenizer: &Tokenizer) -> Result<Vec<(u32, f32)>, ApiError> {
        let (field, most) = ("logit_bias", tokenizer.vocab_size() - 1);
        let entry = |(token, bias): (&String, &Value)| {
            let token = token.parse().ok().filter(|token: &u32| *token as usize <= most);
            let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            let message = || format!("logit_bias is not from tokens, 0 to {most}, to numbers, -100 to 100");
            token.zip(bias.map(|bias| bias as f32)).ok_or_else(|| ApiError::field(field, message()))
        };
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Object(entries)) => entries.iter().map(entry).collect(),
            Some(_) => Err(ApiError::field(field, "logit_bias is not an object")),
        }
    }

    /// With how many of the likeliest tokens likelihoods are told, if they are.
    fn likelihoods(&self, interface: Interface) -> Result<Option<usize>, ApiError> {
        match (interface, self.get("logprobs")) {
            (Interface::Completions, None) => Ok(None),
            // Zero stands for none in the chat interface alone.
            (Interface::Completions, Some(Value::Bool(false))) => Ok(None),
            (Interface::Completions, Some(_)) => {
                Ok(Some(self.whole("logprobs", 0, 0, MAX_TOP as u64)? as usize))
            }
            (Interface::Chat, _) => {
                let (told, top) = (self.flag("logprobs")?, self.whole("top_logprobs", 0, 0, MAX_TOP as u64)?);
                match told {
                    false if 0 < top => {
                        Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs to be true"))
                    }
                    told => Ok(told.then_some(top as usize)),
                }
            }
        }
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

    fn above_zero(&self, name: &str, default: f64, most: f64) -> Result<f64, ApiError> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(number) if 0.0 < number && number <= most => Ok(number),
                _ => {
                    let message = format!("{name} is {value}; it is above 0 and at most {most}");
                    Err(ApiError::field(name, message))
                }
            },
        }
    }

    fn whole(&self, name: &str, default: u64, least: u64, most: u64) -> Result<u64, ApiError> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => match value.as_u64() {
                Some(number) if (least..=most).contains(&number) => Ok(number),
                _ => {
                    let message = format!("{name} is {value}; it is a whole number, {least} to {most}");
                    Err(ApiError::field(name, message))
                }
            },
        }
    }

    fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(ApiError::field(name, format!("{name} is {value}; it is true or false"))),
        }
    }

    fn timeout(&self) -> Result<Option<Duration>, ApiError> {
        match self.get("timeout") {
            None => Ok(None),
            Some(_) => {
                self.above_zero("timeout", 1.0, MAX_TIMEOUT_S).map(|s| Some(Duration::from_secs_f64(s)))
            }
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

    fn stop_tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, ApiError> {
        let (field, most) = ("stop_token_ids", tokenizer.vocab_size() - 1);
        let wrong = || {
            let message = format!("{field} is not a list of at most {MAX_STOPS} tokens, 0 to {most}");
            ApiError::field(field, message)
        };
        let token =
            |value: &Value| value.as_u64().filter(|token| *token <= most as u64).map(|token| token as u32);
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(tokens)) if tokens.len() <= MAX_STOPS => {
                tokens.iter().map(|value| token(value).ok_or_else(wrong)).collect()
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

    /// Tokens to generate. Prompt and answer have to fit in the window and in the memory for keys and values.
    fn max_tokens(
        &self,
        interface: Interface,
        echo: bool,
        prompt: usize,
        served: Served<'_>,
    ) -> Result<usize, ApiError> {
        let Served { window, capacity, .. } = served;
        let limit = match capacity < window {
            true => format!("the memory for keys and values has room for {capacity}"),
            false => format!("the model's window has {window}"),
        };
        let most = window.min(capacity);
        let field = if interface == Interface::Chat { "messages" } else { "prompt" };
        if most < prompt || (most == prompt && !echo) {
            return Err(too_long(field, format!("the prompt has {prompt} tokens; {limit}, answer included")));
        }
        let room = most - prompt;
        let asked = ["max_completion_tokens", "max_tokens"]
            .into_iter()
            .find_map(|name| Some((name, self.get(name)?)));
        let Some((name, value)) = asked else {
            let chat = interface == Interface::Chat;
            return Ok(if chat { room } else { DEFAULT_COMPLETION_TOKENS.min(room) });
        };
        // Without an answer, an echo tells how likely the prompt is.
        let least = u64::from(!echo);
        match value.as_u64() {
            Some(tokens) if (least..=room as u64).contains(&tokens) => Ok(tokens as usize),
            Some(tokens) if least <= tokens => {
                let sum = format!("{name} is {tokens} and the prompt has {prompt} tokens");
                Err(too_long(name, format!("{sum}; {limit}")))
            }
            _ => Err(ApiError::field(name, format!("{name} is {value}; it is a whole number above 0"))),
        }
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
