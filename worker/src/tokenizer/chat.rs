//! The wording of conversations: Jinja templates as `transformers` renders them.
//!
//! Source: `_compile_jinja_template` in
//! <https://github.com/huggingface/transformers/blob/main/src/transformers/utils/chat_template_utils.py>.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, context};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Why a conversation has no wording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// The template refused it, or cannot be read.
    #[error("chat template: {0}")]
    Template(String),
    /// A message of a conversation without a template.
    #[error("messages[{0}] has no text as role and content")]
    Message(usize),
}

/// A template, compiled once.
pub struct Template {
    environment: Environment<'static>,
    /// What words conversations with tools.
    source: String,
    /// Texts of the special tokens, such as `bos_token`.
    marks: BTreeMap<String, String>,
}

impl Template {
    /// A template, with another one for conversations with tools where the model has two.
    ///
    /// # Errors
    /// Where one of them breaks the grammar.
    pub fn new(
        source: String,
        with_tools: Option<String>,
        marks: BTreeMap<String, String>,
    ) -> Result<Template, ChatError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the usual delimiters"));
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::None => out.write_str("None").map_err(Error::from),
            ValueKind::Bool => {
                out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from)
            }
            _ => minijinja::escape_formatter(out, state, value),
        });
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
            strftime(&format, now)
        });
        environment.add_filter("tojson", to_json);
        let wording = with_tools.as_ref().unwrap_or(&source).clone();
        for (name, source) in [("default", Some(source)), ("tools", with_tools)] {
            if let Some(source) = source {
                environment.add_template_owned(name, without_generation(&source)).map_err(said)?;
            }
        }
        Ok(Template { environment, source: wording, marks })
    }

    /// What words conversations with tools.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// What the template says against it.
    pub fn render(
        &self,
        messages: &Value,
        add_generation_prompt: bool,
        tools: Option<&Value>,
    ) -> Result<String, ChatError> {
        let with_tools = tools.and_then(|_| self.environment.get_template("tools").ok());
        let template = match with_tools {
            Some(template) => template,
            None => self.environment.get_template("default").map_err(said)?,
        };
        let fields = context! {
            messages => Serde(messages), add_generation_prompt, tools => Serde(tools), documents => (),
        };
        let marks = minijinja::Value::from_pairs(self.marks.clone());
        template.render(context! { ..fields, ..marks }).map_err(said)
    }
}

/// The plain form, for models that were trained on plain text: it has no marks of its own that such a model would
/// not know. Tools are a line of their own, and calls of them stand behind what was said.
///
/// # Errors
/// Names the first message whose role or content is no string.
pub fn plain(
    messages: &Value,
    add_generation_prompt: bool,
    tools: Option<&Value>,
) -> Result<String, ChatError> {
    let mut text = tools.map(|tools| format!("tools: {tools}\n")).unwrap_or_default();
    for (index, message) in messages.as_array().into_iter().flatten().enumerate() {
        let (Some(role), Some(content)) = (message["role"].as_str(), message["content"].as_str()) else {
            return Err(ChatError::Message(index));
        };
        text.push_str(&format!("{role}: {content}"));
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            text.push_str(&format!("<tool_call>{}</tool_call>", call["function"]));
        }
        text.push('\n');
    }
    if add_generation_prompt {
        text.push_str("assistant:");
    }
    Ok(text)
}

/// What an error of a template says: the innermost reason, which is that of `raise_exception`.
fn said(error: Error) -> ChatError {
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => ChatError::Template(detail.into()),
        (kind, Some(detail)) => ChatError::Template(format!("{kind}: {detail}{line}")),
        (kind, None) => ChatError::Template(format!("{kind}{line}")),
    }
}

/// `{% generation %}` only marks, for training, what an assistant said: the text between is rendered as it is.
fn without_generation(source: &str) -> String {
    let mut parts = source.split("{%");
    let mut text = parts.next().unwrap_or_default().to_string();
    for part in parts {
        text.push_str("{%");
        let (tag, rest) = part.split_once("%}").unwrap_or((part, ""));
        match tag.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace()) {
            "generation" => text.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => text.push_str(&tag.replace("endgeneration", "endif")),
            _ => text.push_str(tag),
        }
        if tag.len() < part.len() {
            text.push_str("%}");
        }
        text.push_str(rest);
    }
    text
}

/// `json.dumps` of Python, with characters beyond ASCII as they are.
fn to_json(value: minijinja::Value, options: Kwargs) -> Result<String, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    // Spelled out by some templates; escapes are never asked for.
    options.get::<Option<bool>>("ensure_ascii")?;
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two strings")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let mut text = String::new();
    Dump { item, key, indent, sort_keys }.write(&mut text, &value, 0)?;
    Ok(text)
}

struct Dump {
    item: String,
    key: String,
    indent: Option<usize>,
    sort_keys: bool,
}

impl Dump {
    fn write(&self, text: &mut String, value: &minijinja::Value, depth: usize) -> Result<(), Error> {
        let quoted = |value: &minijinja::Value| {
            serde_json::to_string(value)
                .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
        };
        match value.kind() {
            ValueKind::Map => {
                let mut keys: Vec<_> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list(text, '{', '}', keys.iter(), depth, |text, key| {
                    text.push_str(&quoted(&minijinja::Value::from(key.to_string()))?);
                    text.push_str(&self.key);
                    self.write(text, &value.get_item(key)?, depth + 1)
                })
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<_> = value.try_iter()?.collect();
                self.list(text, '[', ']', items.iter(), depth, |text, item| self.write(text, item, depth + 1))
            }
            ValueKind::Undefined => {
                Err(Error::new(ErrorKind::UndefinedError, "tojson of an undefined value"))
            }
            _ => {
                text.push_str(&quoted(value)?);
                Ok(())
            }
        }
    }

    fn list<'a>(
        &self,
        text: &mut String,
        open: char,
        close: char,
        items: impl ExactSizeIterator<Item = &'a minijinja::Value>,
        depth: usize,
        mut write: impl FnMut(&mut String, &'a minijinja::Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |text: &mut String, depth: usize| {
            if let Some(indent) = self.indent {
                text.push('\n');
                text.push_str(&" ".repeat(indent * depth));
            }
        };
        text.push(open);
        let last = items.len();
        for (index, item) in items.enumerate() {
            if 0 < index {
                text.push_str(&self.item);
            }
            line(text, depth + 1);
            write(text, item)?;
            if index + 1 == last {
                line(text, depth);
            }
        }
        text.push(close);
        Ok(())
    }
}

/// The time `seconds` after 1970 in UTC, by the letters that templates use: `%Y %m %d %e %j %H %M %S %y %b %B %a %A`.
/// Others stay as they are.
fn strftime(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = |year: u64| if leap(year) { 366 } else { 365 };
    let (mut year, mut day) = (1970, days);
    while length(year) <= day {
        day -= length(year);
        year += 1;
    }
    let (day_of_year, mut month) = (day + 1, 0);
    let lengths = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while lengths[month] <= day {
        day -= lengths[month];
        month += 1;
    }
    let (month_name, day_name) = (MONTHS[month], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => text.push_str(&year.to_string()),
            Some('y') => text.push_str(&format!("{:02}", year % 100)),
            Some('m') => text.push_str(&format!("{:02}", month + 1)),
            Some('d') => text.push_str(&format!("{:02}", day + 1)),
            Some('e') => text.push_str(&format!("{:2}", day + 1)),
            Some('j') => text.push_str(&format!("{day_of_year:03}")),
            Some('H') => text.push_str(&format!("{:02}", second / 3600)),
            Some('M') => text.push_str(&format!("{:02}", second / 60 % 60)),
            Some('S') => text.push_str(&format!("{:02}", second % 60)),
            Some('B') => text.push_str(month_name),
            Some('b') => text.push_str(&month_name[..3]),
            Some('A') => text.push_str(day_name),
            Some('a') => text.push_str(&day_name[..3]),
            Some('%') => text.push('%'),
            other => {
                text.push('%');
                text.extend(other);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, messages: Value) -> Result<String, ChatError> {
        let marks = [("bos_token".to_string(), "<s>".to_string())].into();
        Template::new(source.into(), None, marks)?.render(&messages, true, None)
    }

    #[test]
    fn templates_know_what_those_of_transformers_know() {
        let messages =
            json!([{ "role": "user", "content": " Hi " }, { "role": "assistant", "content": "Yes" }]);
        for (source, expected) in [
            (
                "{{ bos_token }}{% for m in messages %}{{ m.role.upper() }}:{{ m['content'].strip() }};{% endfor %}",
                "<s>USER:Hi;ASSISTANT:Yes;",
            ),
            ("  {% if add_generation_prompt %}\nA\n  {% endif %}\nB\n", "A\nB"),
            (
                "{% for m in messages[::-1] %}{% if loop.first %}{% continue %}{% endif %}{{ m.content | trim }}{% endfor %}",
                "Hi",
            ),
            ("{%- generation -%} {{ messages[1].content }} {%- endgeneration -%} x", "Yesx"),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": " Hi "}"#),
            ("{{ messages[0].content.split(' ') | tojson(indent=2) }}", "[\n  \"\",\n  \"Hi\",\n  \"\"\n]"),
            ("{{ messages[0].missing is defined }} {{ tools is none }} {{ none }}", "False True None"),
            (
                "{% set n = namespace(x=1) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}",
                "3",
            ),
        ] {
            assert_eq!(render(source, messages.clone()).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn what_a_template_raises_is_said_as_it_is() {
        let error = render("{{ raise_exception('roles must alternate') }}", json!([])).unwrap_err();
        assert_eq!(error.to_string(), "chat template: roles must alternate");
        let error = render("{% if %}", json!([])).unwrap_err().to_string();
        assert!(error.starts_with("chat template: syntax error: ") && error.ends_with("line 1"), "{error}");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime("%d %b %Y", 0), "01 Jan 1970");
        assert_eq!(
            strftime("%A, %B %e %Y %H:%M:%S %j %y %a %m %% %q", 1_709_210_096),
            "Thursday, February 29 2024 12:34:56 060 24 Thu 02 % %q"
        );
        assert_eq!(strftime("%Y-%m-%d", 4_102_444_799), "2099-12-31");
    }
}
