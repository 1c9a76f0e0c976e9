//! Answers that keep to a grammar: which tokens may come next. The work is that of
//! [`llguidance`](https://github.com/guidance-ai/llguidance): an Earley parser over lexemes that are derivatives of regular
//! expressions, walked together with the tree of all tokens' bytes.
//!
//! What a request may cost is bounded three times: by the size of its grammar, by what compiling it may take, which happens
//! beside the engine, and by what finding the next tokens may take, for which other requests wait.

use crate::tokenizer::Tokenizer;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What a text may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON that a schema describes, as `json.dumps` of Python writes it: `", "` and `": "`, in the schema's order.
    Json(Value),
    /// What a regular expression matches as a whole.
    Regex(String),
    /// What a grammar in Lark's words, with `%json`, derives from `start`.
    Lark(String),
}

/// The longest grammar, in bytes of its text.
const MAX_TEXT: usize = 256 << 10;
/// The longest string in a schema, and the longest expression, in bytes: what is left of it is copied for each token.
const MAX_STRING: usize = 4 << 10;
/// The most entries of an object in a schema. That of `properties` is felt at each token: any of them may come next.
const MAX_ENTRIES: usize = 1000;
/// The most elements of a list in a schema.
const MAX_ELEMENTS: usize = 10_000;
/// Compiling goes as deep as a grammar is long.
const STACK: usize = 128 << 20;

impl Grammar {
    /// One of these texts.
    pub fn choice(texts: &[String]) -> Grammar {
        let quoted: Vec<String> = texts.iter().map(|text| json!(text).to_string()).collect();
        // A lexeme, not rules: it costs the same for any number of texts.
        Grammar::Lark(format!("start: CHOICE\nCHOICE: {}", quoted.join(" | ")))
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Grammar::Json(schema) => check(schema),
            Grammar::Regex(text) if MAX_STRING < text.len() => {
                Err(format!("the expression has {} bytes; at most {MAX_STRING} are taken", text.len()))
            }
            Grammar::Lark(text) if MAX_TEXT < text.len() => {
                Err(format!("the grammar has {} bytes; at most {MAX_TEXT} are taken", text.len()))
            }
            Grammar::Regex(_) | Grammar::Lark(_) => Ok(()),
        }
    }
}

/// Whether a schema is small enough.
///
/// # Errors
/// What is too large about it.
pub fn check(schema: &Value) -> Result<(), String> {
    fn parts(value: &Value) -> Result<(), String> {
        let (what, len, most) = match value {
            Value::String(text) => ("a string of", text.len(), MAX_STRING),
            Value::Object(entries) => {
                entries.values().try_for_each(parts)?;
                ("an object of", entries.len(), MAX_ENTRIES)
            }
            Value::Array(elements) => {
                elements.iter().try_for_each(parts)?;
                ("a list of", elements.len(), MAX_ELEMENTS)
            }
            _ => return Ok(()),
        };
        if most < len {
            Err(format!("the schema has {what} {len}; at most {most} are taken"))
        } else {
            Ok(())
        }
    }
    let len = schema.to_string().len();
    if MAX_TEXT < len {
        return Err(format!("the schema has {len} bytes; at most {MAX_TEXT} are taken"));
    }
    parts(schema)
}

/// A schema with how its JSON is spaced: no more than models write, or those that never stop would fill an answer with
/// blanks.
pub fn spaced(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        // `true` is a schema as well.
        other => json!({ "allOf": [other] }),
    };
    schema["x-guidance"] =
        json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
    schema
}

/// Compiles grammars for one tokenizer.
pub struct Grammars {
    tokenizer: Tokenizer,
    /// Built when it is first asked for: that takes some tenths of a second for a large vocabulary.
    factory: OnceLock<Result<ParserFactory, String>>,
    /// One at a time, so that they take no more than a core from the engine.
    compiling: Mutex<()>,
}

impl Grammars {
    /// For what this tokenizer says.
    pub fn new(tokenizer: Tokenizer) -> Grammars {
        Grammars { tokenizer, factory: OnceLock::new(), compiling: Mutex::new(()) }
    }

    /// A grammar, ready to be kept to.
    ///
    /// # Errors
    /// What is wrong with it, or that it is too large.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, String> {
        let _alone = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        grammar.check()?;
        let factory =
            self.factory.get_or_init(|| factory(&self.tokenizer)).as_ref().map_err(String::clone)?;
        let compile = || {
            let grammar = match grammar {
                Grammar::Json(schema) => TopLevelGrammar::from_json_schema(spaced(schema)),
                Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
                Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            };
            let mut constraint = Constraint(Matcher::new(factory.create_parser(grammar)));
            // What no text satisfies, and what is too large at its very start, is known now.
            constraint.allowed()?;
            Ok(constraint)
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK);
            let thread = thread.spawn_scoped(scope, compile).map_err(|error| error.to_string())?;
            thread.join().map_err(|_| "it cannot be compiled".to_string())?
        })
    }
}

fn factory(tokenizer: &Tokenizer) -> Result<ParserFactory, String> {
    let tokens = tokenizer.vocab_size() as u32;
    let mut ends: Vec<u32> = (0..tokens).filter(|token| tokenizer.is_end(*token)).collect();
    let mark = |token: u32| [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("<|{token}|>").as_bytes()].concat();
    let word = |token: u32| match tokenizer.token_bytes(token) {
        Some(bytes) if !tokenizer.is_end(token) => bytes.to_vec(),
        _ => mark(token),
    };
    let mut words: Vec<Vec<u8>> = (0..tokens).map(word).collect();
    if ends.is_empty() {
        // Nobody says it: the text ends where nothing may follow.
        ends.push(tokens);
        words.push(mark(tokens));
    }
    let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, ends[0]), &words).with_eos_tokens(&ends);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
        .map_err(|error| error.to_string())?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        // What a token may cost is what others wait for: a few milliseconds.
        step_lexer_fuel: 50_000,
        max_items_in_row: 5_000,
        step_max_items: 20_000,
        max_lexer_states: 50_000,
        // Some thousand properties: half a second.
        max_grammar_size: 50_000,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Ok(factory)
}

/// A text that keeps to a grammar, as far as it has come. A copy goes its own way.
#[derive(Clone)]
pub struct Constraint(Matcher);

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Constraint")
    }
}

/// Tokens that may come next.
pub struct Allowed(SimpleVob);

impl Allowed {
    /// Whether this one may.
    pub fn has(&self, token: u32) -> bool {
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }
}

impl Constraint {
    /// What may come next; where the text may be over, tokens that end it are among them.
    ///
    /// # Errors
    /// Where finding out would take too long.
    pub fn allowed(&mut self) -> Result<Allowed, String> {
        self.0.compute_mask().map(Allowed).map_err(first_line)
    }

    /// Goes on with `token`. Whether the text is complete, so that nothing may follow.
    ///
    /// # Errors
    /// Where it may not come next.
    pub fn take(&mut self, token: u32) -> Result<bool, String> {
        self.0.consume_token(token).map_err(first_line)?;
        Ok(self.0.is_stopped())
    }
}

/// What is said first, without what it is about where that is long.
fn first_line(error: impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().chars().take(300).collect()
}

#[cfg(test)]
/// A text of tokens that are drawn from those that may come.
pub fn drawn(constraint: &Constraint, seed: u64) -> String {
    let (tokenizer, mut constraint, mut random) =
        (Tokenizer::bytes(), constraint.clone(), crate::random::Random::new(seed));
    let mut bytes = Vec::new();
    loop {
        let allowed = constraint.allowed().unwrap();
        let all: Vec<u32> = (0..258).filter(|token| allowed.has(*token)).collect();
        let token = all[random.bits() as usize % all.len()];
        let complete = constraint.take(token).unwrap();
        bytes.extend(tokenizer.token_bytes(token).unwrap_or_default());
        if complete {
            return String::from_utf8(bytes).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constraint(grammar: &Grammar) -> Result<Constraint, String> {
        Grammars::new(Tokenizer::bytes()).constraint(grammar)
    }

    #[test]
    fn whatever_is_drawn_is_what_the_schema_says() {
        let schema = json!({
            "type": "object", "required": ["name", "kind", "sizes"], "additionalProperties": false,
            "properties": {
                "name": { "type": "string", "maxLength": 6 },
                "kind": { "enum": ["lake", "river"] },
                "sizes": { "type": "array", "items": { "$ref": "#/$defs/size" }, "minItems": 1, "maxItems": 3 },
            },
            "$defs": { "size": { "type": "integer", "minimum": 0, "maximum": 300 } },
        });
        let constraint = constraint(&Grammar::Json(schema)).unwrap();
        for seed in 0..200 {
            let text = drawn(&constraint, seed);
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), ["name", "kind", "sizes"]);
            assert!(value["name"].as_str().unwrap().chars().count() <= 6, "{text}");
            assert!(value["kind"] == "lake" || value["kind"] == "river", "{text}");
            let sizes = value["sizes"].as_array().unwrap();
            assert!((1..=3).contains(&sizes.len()), "{text}");
            assert!(sizes.iter().all(|size| size.as_u64().unwrap() <= 300), "{text}");
            assert!(text.starts_with(r#"{"name": ""#), "{text}");
        }
    }

    #[test]
    fn expressions_and_choices_are_met_as_a_whole() {
        let regex = constraint(&Grammar::Regex("[a-c]{2}(-[0-9])?".into())).unwrap();
        let choice = constraint(&Grammar::choice(&["a \"b\"".into(), "ä\n".into(), "a".into()])).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let text = drawn(&regex, seed);
            assert!(text.len() == 2 || (text.len() == 4 && text.as_bytes()[2] == b'-'), "{text}");
            seen.insert(drawn(&choice, seed));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["a", "a \"b\"", "ä\n"]);
    }

    fn properties(count: usize) -> Value {
        let all = (0..count).map(|i| (format!("property{i}"), json!({ "type": "integer" })));
        json!({ "type": "object", "properties": all.collect::<serde_json::Map<_, _>>() })
    }

    /// What is taken is not too large later on, in a thread with the usual stack.
    #[test]
    fn what_is_nearly_too_large_can_be_kept_to() {
        let texts: Vec<String> = (0..10_000).map(|i| format!("text {i}")).collect();
        for grammar in [
            Grammar::Json(properties(1_000)),
            Grammar::Json(json!({ "enum": texts })),
            Grammar::Json(json!({ "const": "x".repeat(4000) })),
            Grammar::Regex("ab[0-9]".repeat(500)),
            Grammar::choice(&texts),
        ] {
            let mut constraint = constraint(&grammar).unwrap();
            let mut random = crate::random::Random::new(7);
            for _ in 0..60 {
                let allowed = constraint.allowed().unwrap();
                let all: Vec<u32> = (0..258).filter(|token| allowed.has(*token)).collect();
                if constraint.take(all[random.bits() as usize % all.len()]).unwrap() {
                    break;
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_unsatisfiable_or_too_large_is_an_error_that_says_so() {
        for (grammar, said) in [
            (Grammar::Json(json!({ "type": "colour" })), "colour"),
            (Grammar::Json(json!({ "type": "object", "dependencies": { "a": ["b"] } })), "dependencies"),
            (Grammar::Json(json!({ "$ref": "https://example.org/schema" })), "https://example.org/schema"),
            (Grammar::Regex("a(".into()), "a("),
            (Grammar::Json(properties(1_001)), "an object of 1001; at most 1000 are taken"),
            (Grammar::Json(json!({ "const": "x".repeat(5000) })), "a string of 5000; at most 4096 are taken"),
            (Grammar::Json(json!({ "enum": vec!["x".repeat(4000); 70] })), "bytes; at most 262144 are taken"),
            (Grammar::Json(json!({ "enum": vec![1; 10_001] })), "a list of 10001; at most 10000 are taken"),
            (Grammar::Regex("x".repeat(5000)), "5000 bytes; at most 4096 are taken"),
        ] {
            let error = constraint(&grammar).err().unwrap_or_else(|| panic!("{grammar:?} is taken"));
            assert!(error.contains(said), "{grammar:?}: {error}");
        }
    }
}
