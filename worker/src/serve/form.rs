//! What a request says about the form of its answer: a grammar that it keeps to, functions that it may call; and the
//! messages of a conversation, in which functions were called before.

use super::grammar::{self, Grammar};
use super::openai::ApiError;
use super::tools::{Format, Function, Offer};
use crate::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

/// The most functions of a request.
const MAX_FUNCTIONS: usize = 128;
/// The longest name of one.
const MAX_NAME: usize = 64;

/// The form of an answer.
#[derive(Debug, Default)]
pub struct Form {
    /// What it keeps to, and the field that says so.
    pub grammar: Option<(Grammar, &'static str)>,
    /// What it may call.
    pub offer: Option<Offer>,
    /// The functions as the template words them.
    pub tools: Option<Value>,
}

/// Reads the form from the fields of a request.
///
/// # Errors
/// Names the field that is wrong and what it may be.
pub fn form(fields: &Map<String, Value>, tokenizer: &Tokenizer) -> Result<Form, ApiError> {
    let get = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let mut form = Form::default();
    let grammars = [
        get("response_format").map(response_format).transpose()?.flatten().map(|it| (it, "response_format")),
        get("guided_json").map(guided_json).transpose()?.map(|it| (it, "guided_json")),
        get("guided_regex").map(guided_regex).transpose()?.map(|it| (it, "guided_regex")),
        get("guided_choice").map(guided_choice).transpose()?.map(|it| (it, "guided_choice")),
    ];
    for (grammar, field) in grammars.into_iter().flatten() {
        if let Some((_, other)) = form.grammar {
            return Err(ApiError::field(field, format!("{field} and {other} exclude each other")));
        }
        form.grammar = Some((grammar, field));
    }
    let functions = get("tools").map_or(Ok(Vec::new()), functions)?;
    let choice = Choice::read(get("tool_choice"), &functions)?;
    let parallel = match get("parallel_tool_calls") {
        None | Some(Value::Bool(true)) => true,
        Some(Value::Bool(false)) => false,
        Some(value) => {
            let message = format!("parallel_tool_calls is {value}; it is true or false");
            return Err(ApiError::field("parallel_tool_calls", message));
        }
    };
    if functions.is_empty() || choice == Choice::None {
        return Ok(form);
    }
    if let Some((_, field)) = form.grammar {
        let message = format!("{field} and tools exclude each other, unless tool_choice is none");
        return Err(ApiError::field(field, message));
    }
    if !tokenizer.words_tools() {
        return Err(ApiError::field("tools", "this model's chat template words no tools"));
    }
    let offer = Offer { format: Format::of(tokenizer.template_source()), functions, parallel };
    let chosen = match choice {
        Choice::None | Choice::Auto => None,
        Choice::Required => Some((&offer.functions[..], offer.parallel)),
        Choice::Named(index) => Some((&offer.functions[index..=index], false)),
    };
    if let Some((functions, parallel)) = chosen {
        let mark = |text: &str| match tokenizer.special_token(text) {
            Some(token) => format!("<[{token}]>"),
            None => json!(text).to_string(),
        };
        let grammar = Offer { parallel, ..offer.clone() }.grammar(functions, mark);
        form.grammar = Some((grammar, "tools"));
    }
    form.tools = get("tools").cloned();
    form.offer = Some(offer);
    Ok(form)
}

/// Which functions the model has to call.
#[derive(PartialEq)]
enum Choice {
    None,
    Auto,
    Required,
    Named(usize),
}

impl Choice {
    fn read(value: Option<&Value>, functions: &[Function]) -> Result<Choice, ApiError> {
        let wrong = |message: String| Err(ApiError::field("tool_choice", message));
        let choice = match value {
            None => return Ok(Choice::Auto),
            Some(value) if value == "none" => return Ok(Choice::None),
            Some(value) if value == "auto" => return Ok(Choice::Auto),
            Some(value) if value == "required" => Choice::Required,
            Some(value) => match value["function"]["name"].as_str() {
                Some(name) => match functions.iter().position(|function| function.name == name) {
                    Some(index) => Choice::Named(index),
                    None => return wrong(format!("tool_choice names {name:?}, which is none of tools")),
                },
                None => {
                    let allowed =
                        "none, auto, required, or {\"type\": \"function\", \"function\": {\"name\": …}}";
                    return wrong(format!("tool_choice is {value}; it is {allowed}"));
                }
            },
        };
        if functions.is_empty() {
            wrong("tool_choice asks for a call, and there are no tools".into())
        } else {
            Ok(choice)
        }
    }
}

/// The grammar of a `response_format`; none where it is text.
fn response_format(value: &Value) -> Result<Option<Grammar>, ApiError> {
    let wrong = |message: &str| Err(ApiError::field("response_format", message));
    match value["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::Json(json!({ "type": "object" })))),
        Some("json_schema") => match &value["json_schema"]["schema"] {
            schema @ (Value::Object(_) | Value::Bool(_)) => Ok(Some(Grammar::Json(schema.clone()))),
            _ => wrong("response_format.json_schema.schema is no JSON schema"),
        },
        _ => wrong("response_format.type is not text, json_object or json_schema"),
    }
}

fn guided_json(value: &Value) -> Result<Grammar, ApiError> {
    // Some clients send the schema's text.
    let parsed = value.as_str().and_then(|text| serde_json::from_str(text).ok());
    match parsed.unwrap_or_else(|| value.clone()) {
        schema @ (Value::Object(_) | Value::Bool(_)) => Ok(Grammar::Json(schema)),
        _ => Err(ApiError::field("guided_json", "guided_json is no JSON schema")),
    }
}

fn guided_regex(value: &Value) -> Result<Grammar, ApiError> {
    match value.as_str() {
        Some(regex) => Ok(Grammar::Regex(regex.into())),
        None => Err(ApiError::field("guided_regex", "guided_regex is not a string")),
    }
}

fn guided_choice(value: &Value) -> Result<Grammar, ApiError> {
    let texts = value.as_array().into_iter().flatten();
    let texts: Option<Vec<String>> =
        texts.map(|text| text.as_str().filter(|text| !text.is_empty()).map(String::from)).collect();
    match texts.filter(|texts| !texts.is_empty()) {
        Some(texts) => Ok(Grammar::choice(&texts)),
        None => Err(ApiError::field("guided_choice", "guided_choice is not a list of strings")),
    }
}

fn functions(tools: &Value) -> Result<Vec<Function>, ApiError> {
    let Value::Array(tools) = tools else { return Err(ApiError::field("tools", "tools is not a list")) };
    if MAX_FUNCTIONS < tools.len() {
        let message = format!("tools has {}; at most {MAX_FUNCTIONS} are taken", tools.len());
        return Err(ApiError::field("tools", message));
    }
    let mut all: Vec<Function> = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        let wrong = |field: &str, what: &str| {
            let field = format!("tools[{index}].{field}");
            Err(ApiError::field(&field, format!("{field} {what}")))
        };
        if tool["type"] != "function" {
            return wrong("type", "is not function");
        }
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        let name = match tool["function"]["name"].as_str() {
            Some(name) if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(letter) => name,
            _ => return wrong("function.name", &format!("is not 1 to {MAX_NAME} of a-z, A-Z, 0-9, _ and -")),
        };
        if all.iter().any(|function| function.name == name) {
            return wrong("function.name", &format!("is {name:?}, as of another"));
        }
        let parameters = match &tool["function"]["parameters"] {
            Value::Null => json!({ "type": "object", "properties": {}, "additionalProperties": false }),
            schema @ Value::Object(_) => schema.clone(),
            _ => return wrong("function.parameters", "is no JSON schema"),
        };
        if let Err(error) = grammar::check(&parameters) {
            return wrong("function.parameters", &format!("is too large: {error}"));
        }
        all.push(Function { name: name.into(), parameters });
    }
    Ok(all)
}

/// The messages of a conversation as templates read them.
///
/// # Errors
/// Names the field of the first message that is wrong.
pub fn messages(messages: Option<&Value>) -> Result<Value, ApiError> {
    let Some(Value::Array(messages)) = messages else {
        return Err(ApiError::field("messages", "messages is missing, or not a list"));
    };
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages is empty"));
    }
    messages
        .iter()
        .enumerate()
        .map(|(index, one)| message(index, one))
        .collect::<Result<Vec<_>, _>>()
        .map(Value::Array)
}

fn message(index: usize, message: &Value) -> Result<Value, ApiError> {
    let wrong = |field: &str, what: &str| {
        let field = format!("messages[{index}].{field}");
        Err(ApiError::field(&field, format!("{field} {what}")))
    };
    let role = match message["role"].as_str() {
        Some(role @ ("system" | "developer" | "user" | "assistant" | "tool")) => role,
        _ => return wrong("role", "is not system, developer, user, assistant or tool"),
    };
    let calls = match &message["tool_calls"] {
        Value::Null => Vec::new(),
        Value::Array(calls) if role == "assistant" => calls.clone(),
        _ => return wrong("tool_calls", "is not a list, or not of the assistant"),
    };
    let content = match content_of(&message["content"]) {
        Some(content) => content,
        // Who calls need not say anything.
        None if message["content"].is_null() && !calls.is_empty() => String::new(),
        None => return wrong("content", "is not a string, or a list of texts"),
    };
    let mut plain = json!({ "role": role, "content": content });
    if role == "tool" {
        match message["tool_call_id"].as_str() {
            Some(id) => plain["tool_call_id"] = id.into(),
            None => return wrong("tool_call_id", "is not a string"),
        }
        if let Some(name) = message["name"].as_str() {
            plain["name"] = name.into();
        }
    }
    let mut plain_calls = Vec::new();
    for (number, call) in calls.iter().enumerate() {
        let (name, id) = (call["function"]["name"].as_str(), call["id"].as_str());
        let (Some(name), Some(id)) = (name, id) else {
            return wrong(&format!("tool_calls[{number}]"), "has no id or no function.name");
        };
        // Templates write arguments as JSON by themselves.
        let arguments =
            call["function"]["arguments"].as_str().and_then(|text| serde_json::from_str(text).ok());
        let Some(arguments @ Value::Object(_)) = arguments else {
            return wrong(
                &format!("tool_calls[{number}].function.arguments"),
                "is not a string with a JSON object",
            );
        };
        let function = json!({ "name": name, "arguments": arguments });
        plain_calls.push(json!({ "type": "function", "id": id, "function": function }));
    }
    if !plain_calls.is_empty() {
        plain["tool_calls"] = plain_calls.into();
    }
    Ok(plain)
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
