//! Calls of a client's functions: how each family of models writes them, and how they are found in what a model says.
//!
//! | format | what a model says | of models whose template has |
//! |---|---|---|
//! | [`Format::Hermes`] | `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of them | `<tool_call>`, or none |
//! | [`Format::Mistral`] | `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]` | `[TOOL_CALLS]` |
//! | [`Format::Llama`] | `{"name": …, "parameters": {…}}` as the whole answer | neither, and `<\|python_tag\|>` or `"parameters"` |
//!
//! What is not whole, or calls a function that was not offered, stays text.

use super::grammar::{Grammar, spaced};
use crate::random::mix;
use serde_json::{Value, json};

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Between two marks, each call by itself.
    Hermes,
    /// A list behind a mark.
    Mistral,
    /// An object that is all of the answer.
    Llama,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const CALLS: &str = "[TOOL_CALLS]";
const PYTHON: &str = "<|python_tag|>";

impl Format {
    /// That of models with this template.
    pub fn of(template: Option<&str>) -> Format {
        let has = |what: &str| template.is_some_and(|template| template.contains(what));
        match () {
            () if has(OPEN) => Format::Hermes,
            () if has(CALLS) => Format::Mistral,
            () if has(PYTHON) || has("\"parameters\"") => Format::Llama,
            () => Format::Hermes,
        }
    }

    /// Special tokens that are read as text where calls are looked for.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Format::Hermes => &[OPEN, CLOSE],
            Format::Mistral => &[CALLS],
            Format::Llama => &[PYTHON],
        }
    }
}

/// A function that a model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The schema of its arguments.
    pub parameters: Value,
}

/// What a request offers.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// How the model writes calls.
    pub format: Format,
    /// What it may call.
    pub functions: Vec<Function>,
    /// Whether it may call more than one at a time.
    pub parallel: bool,
}

impl Offer {
    /// The grammar of an answer that calls one of `functions`, or several. `mark` says how a mark stands in a grammar.
    pub fn grammar(&self, functions: &[Function], mark: impl Fn(&str) -> String) -> Grammar {
        let arguments = if self.format == Format::Llama { "parameters" } else { "arguments" };
        let mut text = String::new();
        for (index, function) in functions.iter().enumerate() {
            let before = format!("{{\"name\": {}, \"{arguments}\": ", json!(function.name));
            let schema = spaced(&function.parameters);
            text.push_str(&format!("call_{index}: {} arguments_{index} \"}}\"\n", json!(before)));
            text.push_str(&format!("arguments_{index}: %json {schema}\n"));
        }
        let calls: Vec<String> = (0..functions.len()).map(|index| format!("call_{index}")).collect();
        text.push_str(&format!("call: {}\n", calls.join(" | ")));
        let (one, more) = match self.format {
            Format::Hermes => {
                let one = format!("{} \"\\n\" call \"\\n\" {}", mark(OPEN), mark(CLOSE));
                (one.clone(), format!("{one} (\"\\n\" {one})*"))
            }
            Format::Mistral => (
                format!("{} \"[\" call \"]\"", mark(CALLS)),
                format!("{} \"[\" call (\", \" call)* \"]\"", mark(CALLS)),
            ),
            Format::Llama => ("call".into(), "call".into()),
        };
        text.push_str(&format!("start: {}\n", if self.parallel { more } else { one }));
        Grammar::Lark(text)
    }

    /// The identity of call `index` of an answer. Mistral's templates want nine letters and digits.
    pub fn id(&self, answer: u64, index: usize) -> String {
        let number = mix(answer ^ mix(index as u64 + 1));
        match self.format {
            Format::Mistral => format!("{:09x}", number & 0xf_ffff_ffff),
            Format::Hermes | Format::Llama => format!("call_{number:016x}"),
        }
    }
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Text.
    Text(String),
    /// A call.
    Call {
        /// The function's name.
        name: String,
        /// Its arguments, as the text of a JSON object.
        arguments: String,
    },
}

/// Finds calls in a text that comes in pieces.
pub struct Calls {
    offer: Offer,
    held: String,
    /// Whether everything is held until it is whole.
    inside: bool,
    /// Whether there was text that is no blank.
    texts: bool,
    found: usize,
}

impl Calls {
    /// Those of one answer.
    pub fn new(offer: Offer) -> Calls {
        Calls { offer, held: String::new(), inside: false, texts: false, found: 0 }
    }

    /// What is certain with another piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        match self.offer.format {
            Format::Hermes => while self.step_hermes(&mut parts) {},
            Format::Mistral => self.hold_behind(CALLS, &mut parts),
            Format::Llama => {
                let start = self.held.trim_start();
                let may_be = start.is_empty() || start.starts_with(['{', '[']) || PYTHON.starts_with(start);
                self.inside |= !self.texts && (start.starts_with('{') || start.starts_with(PYTHON));
                if !self.inside && (self.texts || !may_be) {
                    let held = std::mem::take(&mut self.held);
                    self.text(held, &mut parts);
                }
            }
        }
        parts
    }

    /// What is left at the end.
    pub fn finish(&mut self) -> Vec<Part> {
        let (mut parts, held) = (Vec::new(), std::mem::take(&mut self.held));
        let inner = held.trim();
        let inner = [OPEN, CALLS, PYTHON].iter().find_map(|mark| inner.strip_prefix(mark)).unwrap_or(inner);
        let calls = match self.offer.format {
            _ if !self.inside => None,
            Format::Hermes | Format::Mistral => self.read(inner),
            // Some say several, between semicolons.
            Format::Llama => self.read(inner).or_else(|| {
                let each: Option<Vec<_>> = inner.split("; ").map(|one| self.read(one)).collect();
                Some(each?.concat())
            }),
        };
        match calls {
            Some(calls) => self.calls(calls, &mut parts),
            None => self.text(held, &mut parts),
        }
        parts
    }

    /// Goes past the next mark. Whether there was one.
    fn step_hermes(&mut self, parts: &mut Vec<Part>) -> bool {
        if !self.inside {
            self.hold_behind(OPEN, parts);
            return self.inside && self.held.contains(CLOSE);
        }
        let Some(end) = self.held.find(CLOSE) else { return false };
        let rest = self.held.split_off(end + CLOSE.len());
        let whole = std::mem::replace(&mut self.held, rest);
        self.inside = false;
        match self.read(&whole[OPEN.len()..end]) {
            Some(calls) => self.calls(calls, parts),
            None => self.text(whole, parts),
        }
        true
    }

    /// Gives text away up to `mark`, or to what may be the start of it.
    fn hold_behind(&mut self, mark: &str, parts: &mut Vec<Part>) {
        if self.inside {
            return;
        }
        let start = self.held.find(mark);
        self.inside = start.is_some();
        let certain = start.unwrap_or_else(|| {
            let begun = (1..mark.len()).rev().find(|length| self.held.ends_with(&mark[..*length]));
            self.held.len() - begun.unwrap_or(0)
        });
        let rest = self.held.split_off(certain);
        let text = std::mem::replace(&mut self.held, rest);
        self.text(text, parts);
    }

    /// Blanks around calls are no text.
    fn text(&mut self, text: String, parts: &mut Vec<Part>) {
        let blank = text.trim().is_empty();
        self.texts |= !blank;
        if !text.is_empty() && !(blank && (self.inside || 0 < self.found)) {
            parts.push(Part::Text(text));
        }
    }

    fn calls(&mut self, calls: Vec<(String, String)>, parts: &mut Vec<Part>) {
        for (name, arguments) in calls {
            if self.offer.parallel || self.found == 0 {
                self.found += 1;
                parts.push(Part::Call { name, arguments });
            }
        }
    }

    /// The calls of a JSON text: an object, or a list of them.
    fn read(&self, text: &str) -> Option<Vec<(String, String)>> {
        let list = match serde_json::from_str(text.trim()).ok()? {
            Value::Array(list) if !list.is_empty() => list,
            one @ Value::Object(_) => vec![one],
            _ => return None,
        };
        let call = |call: &Value| {
            let name = call["name"].as_str()?;
            let known = self.offer.functions.iter().any(|function| function.name == name);
            let arguments =
                match [&call["arguments"], &call["parameters"]].into_iter().find(|it| !it.is_null()) {
                    Some(Value::String(text)) => serde_json::from_str(text).ok()?,
                    Some(value) => value.clone(),
                    None => json!({}),
                };
            (known && arguments.is_object()).then(|| (name.to_string(), arguments.to_string()))
        };
        list.iter().map(call).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::grammar::Grammars;
    use crate::tokenizer::Tokenizer;

    fn offer(format: Format, parallel: bool) -> Offer {
        let function = |name: &str| Function {
            name: name.into(),
            parameters: json!({
                "type": "object", "properties": { "city": { "$ref": "#/$defs/city" } }, "required": ["city"],
                "additionalProperties": false, "$defs": { "city": { "enum": ["Rome", "Oslo"] } },
            }),
        };
        Offer { format, functions: vec![function("weather"), function("time")], parallel }
    }

    /// What is found in a text, however it is cut.
    fn parts(offer: &Offer, text: &str) -> Vec<Part> {
        let cut = |size: usize| {
            let (mut calls, mut parts) = (Calls::new(offer.clone()), Vec::new());
            let characters: Vec<char> = text.chars().collect();
            for piece in characters.chunks(size) {
                parts.extend(calls.push(&piece.iter().collect::<String>()));
            }
            parts.extend(calls.finish());
            let mut joined: Vec<Part> = Vec::new();
            for part in parts {
                match (joined.last_mut(), part) {
                    (Some(Part::Text(before)), Part::Text(more)) => before.push_str(&more),
                    (_, part) => joined.push(part),
                }
            }
            joined
        };
        let whole = cut(usize::MAX);
        for size in [1, 2, 3, 7, 20] {
            assert_eq!(cut(size), whole, "{text:?} in pieces of {size}");
        }
        whole
    }

    fn call(name: &str, city: &str) -> Part {
        Part::Call { name: name.into(), arguments: json!({ "city": city }).to_string() }
    }

    fn text(text: &str) -> Part {
        Part::Text(text.into())
    }

    #[test]
    fn calls_are_found_in_every_format_and_what_is_none_stays_text() {
        let rome = r#"{"name": "weather", "arguments": {"city": "Rome"}}"#;
        let oslo = r#"{"name": "time", "parameters": {"city": "Oslo"}}"#;
        let unknown = r#"{"name": "dance", "arguments": {}}"#;
        for (format, said, expected) in [
            (Format::Hermes, format!("<tool_call>\n{rome}\n</tool_call>"), vec![call("weather", "Rome")]),
            (
                Format::Hermes,
                format!("I see. <tool_call>{rome}</tool_call>\n<tool_call>\n{oslo}</tool_call>\n"),
                vec![text("I see. "), call("weather", "Rome"), call("time", "Oslo")],
            ),
            (Format::Hermes, format!("<tool_call>{rome}"), vec![call("weather", "Rome")]),
            (
                Format::Hermes,
                format!("<tool_call>{unknown}</tool_call> <tool"),
                vec![text(&format!("<tool_call>{unknown}</tool_call> <tool"))],
            ),
            (Format::Hermes, "<tool_call>{\"name".into(), vec![text("<tool_call>{\"name")]),
            (Format::Hermes, rome.into(), vec![text(rome)]),
            (
                Format::Mistral,
                format!("[TOOL_CALLS][{rome}, {oslo}]"),
                vec![call("weather", "Rome"), call("time", "Oslo")],
            ),
            (Format::Mistral, "[TOOL_CALLS] none".into(), vec![text("[TOOL_CALLS] none")]),
            (Format::Mistral, "[TOOL".into(), vec![text("[TOOL")]),
            (Format::Llama, oslo.into(), vec![call("time", "Oslo")]),
            (
                Format::Llama,
                format!("<|python_tag|>{rome}; {oslo}"),
                vec![call("weather", "Rome"), call("time", "Oslo")],
            ),
            (Format::Llama, format!("So: {oslo}"), vec![text(&format!("So: {oslo}"))]),
            (Format::Llama, "{\"a\": 1}".into(), vec![text("{\"a\": 1}")]),
        ] {
            assert_eq!(parts(&offer(format, true), &said), expected, "{said}");
        }
        let two = format!("<tool_call>{rome}</tool_call><tool_call>{oslo}</tool_call>");
        assert_eq!(parts(&offer(Format::Hermes, false), &two), [call("weather", "Rome")]);
    }

    #[test]
    fn formats_follow_from_templates() {
        for (template, format) in [
            (None, Format::Hermes),
            (Some("{{ '<tool_call>' }} \"parameters\""), Format::Hermes),
            (Some("{{ '[TOOL_CALLS]' }}"), Format::Mistral),
            (Some("{{ '{\"name\": ' }} \"parameters\": "), Format::Llama),
            (Some("{{ tools }}"), Format::Hermes),
        ] {
            assert_eq!(Format::of(template), format, "{template:?}");
        }
    }

    #[test]
    fn what_the_grammar_of_calls_lets_through_is_found_again() {
        let grammars = Grammars::new(Tokenizer::bytes());
        for format in [Format::Hermes, Format::Mistral, Format::Llama] {
            for parallel in [false, true] {
                let offer = offer(format, parallel);
                let grammar = offer.grammar(&offer.functions, |mark| json!(mark).to_string());
                let constraint = grammars.constraint(&grammar).unwrap();
                for seed in 0..40 {
                    let said = crate::serve::grammar::drawn(&constraint, seed);
                    let parts = parts(&offer, &said);
                    assert!(parts.iter().all(|part| matches!(part, Part::Call { .. })), "{said}");
                    assert!(parallel || parts.len() == 1, "{said}");
                }
            }
        }
    }
}
