//! From text to tokens and back: the tokenizer of a Hugging Face directory, or bytes where it has none.
//!
//! * `tokenizer.json` cuts texts, through the crate of Hugging Face; `pieces` maps each token back to its bytes.
//! * `config.json`, `generation_config.json` and `tokenizer_config.json` say which tokens end a text.
//! * `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`, words conversations (`chat`).
//!
//! Models that this worker trains from a preset have none of them: every byte is a token, and two more mark where a
//! text starts and ends.

mod chat;
mod pieces;

pub use chat::ChatError;

use crate::model::ModelConfig;
use chat::Template;
use pieces::Pieces;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Token that starts a text of bytes.
pub const BOS: u32 = 256;

/// Token that ends a text of bytes.
pub const EOS: u32 = 257;

/// Tokens of the presets: 256 bytes and two marks, padded to a multiple of 8.
pub const VOCABULARY: usize = 264;

/// The files of a directory that belong to its tokenizer: a copy of the model takes them along.
pub const FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// Why there is no tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file breaks its format, or asks for what this worker does not do.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what is allowed.
        reason: String,
    },
}

/// A tokenizer. Clones share everything.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    /// Cuts texts; bytes where there is none.
    file: Option<tokenizers::Tokenizer>,
    pieces: Pieces,
    /// Tokens that end a text.
    ends: Vec<u32>,
    bos: Option<u32>,
    /// Whether BOS starts a text; what `file` does where not said.
    adds_bos: Option<bool>,
    template: Option<Template>,
}

impl Tokenizer {
    /// Every byte is a token; [`BOS`] starts a text and [`EOS`] ends it.
    pub fn bytes() -> Tokenizer {
        Tokenizer(Arc::new(Inner {
            file: None,
            pieces: Pieces::bytes(),
            ends: vec![EOS],
            bos: Some(BOS),
            adds_bos: Some(true),
            template: None,
        }))
    }

    /// The tokenizer of a model's directory: that of `tokenizer.json`, or bytes where there is no such file.
    ///
    /// # Errors
    /// Where a file cannot be read or is damaged, where the tokenizer has more tokens than the model, or where it is
    /// in another file than `tokenizer.json`.
    pub fn load(directory: &Path, config: &ModelConfig) -> Result<Tokenizer, TokenizerError> {
        let path = directory.join("tokenizer.json");
        let damaged = |reason: String| TokenizerError::Damaged { path: path.clone(), reason };
        let Some(json) = read_json(&path)? else {
            if let Some(other) =
                ["tokenizer.model", "vocab.json"].iter().find(|name| directory.join(name).exists())
            {
                let path = directory.join(other);
                let reason = "only tokenizer.json is read; transformers writes it: \
                    AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)";
                return Err(TokenizerError::Damaged { path, reason: reason.into() });
            }
            if config.vocab_size <= EOS as usize {
                let (path, least) = (directory.join("config.json"), EOS + 1);
                let reason = format!(
                    "vocab_size is {}; without a tokenizer.json tokens are bytes, and it is at least {least}",
                    config.vocab_size
                );
                return Err(TokenizerError::Damaged { path, reason });
            }
            return Ok(Tokenizer::bytes());
        };
        let mut file = tokenizers::Tokenizer::from_bytes(serde_json::to_vec(&json).expect("it was JSON"))
            .map_err(|error| damaged(error.to_string()))?;
        // What a training once padded and cut to is not what a text is.
        file.with_padding(None);
        file.with_truncation(None).map_err(|error| damaged(error.to_string()))?;
        let pieces = Pieces::new(&file, &json, config.vocab_size).map_err(damaged)?;

        let settings = read_json(&directory.join("tokenizer_config.json"))?.unwrap_or_default();
        let generation = read_json(&directory.join("generation_config.json"))?.unwrap_or_default();
        let special = |name: &str| file.token_to_id(content(&settings[name])?);
        let mut ends = config.eos_token_id.clone();
        ends.extend(numbers(&generation["eos_token_id"]));
        ends.extend(special("eos_token"));
        let template = template(directory, &settings)?;
        Ok(Tokenizer(Arc::new(Inner {
            pieces,
            ends,
            bos: special("bos_token").or(config.bos_token_id),
            adds_bos: settings["add_bos_token"].as_bool(),
            template,
            file: Some(file),
        })))
    }

    /// The tokens of `text`. Marks in the text, such as `<|im_end|>`, become their tokens.
    ///
    /// * `special`: whether the token that starts a text comes first, where the model's files say so. A text of
    ///   [`chat`](Tokenizer::chat) has it already where there is a template.
    pub fn encode(&self, text: &str, special: bool) -> Vec<u32> {
        let Inner { file, bos, adds_bos, pieces, .. } = &*self.0;
        let mut tokens: Vec<u32> = match file {
            None => text.bytes().map(u32::from).collect(),
            // No file that was loaded fails: it would lack a token for a character and one for the unknown.
            Some(file) => file.encode_fast(text, special).map(|e| e.get_ids().to_vec()).unwrap_or_default(),
        };
        // Tokens that the model does not have are padding that was never trained.
        tokens.retain(|token| (*token as usize) < pieces.len());
        if let Some(bos) = bos.filter(|_| special) {
            match (adds_bos, tokens.first() == Some(&bos)) {
                (Some(true), false) => tokens.insert(0, bos),
                (Some(false), true) => drop(tokens.remove(0)),
                _ => (),
            }
        }
        tokens
    }

    /// The bytes that `token` stands for in a text; none for special tokens and padding, which are no text.
    pub fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        self.0.pieces.get(token)
    }

    /// Whether `token` ends a text.
    pub fn is_end(&self, token: u32) -> bool {
        self.0.ends.contains(&token)
    }

    /// The token that is put behind a text to learn that it ends, where the model has one.
    pub fn end(&self) -> Option<u32> {
        self.0.ends.first().copied()
    }

    /// Whether a model may say `token`: not padding, which no training has taught it.
    pub fn is_sayable(&self, token: u32) -> bool {
        (token as usize) < self.vocab_size() && (self.0.file.is_some() || token != BOS)
    }

    /// Tokens: the numbers below it are known. At most the model's `vocab_size`, which is often padded.
    pub fn vocab_size(&self) -> usize {
        self.0.pieces.len()
    }

    /// Whether the model's files say how a conversation is worded.
    pub fn has_template(&self) -> bool {
        self.0.template.is_some()
    }

    /// The template that words conversations with tools, where the model's files have one.
    pub fn template_source(&self) -> Option<&str> {
        self.0.template.as_ref().map(Template::source)
    }

    /// Whether tools are worded in a conversation.
    pub fn words_tools(&self) -> bool {
        self.template_source().is_none_or(|source| source.contains("tools"))
    }

    /// The special token that `text` names: it is no text of what a model says.
    pub fn special_token(&self, text: &str) -> Option<u32> {
        let token = self.0.file.as_ref()?.token_to_id(text)?;
        self.token_bytes(token).is_none().then_some(token)
    }

    /// The text of a conversation: worded by the model's template, or else `<role>: <content>` and a line break for
    /// every message, then `assistant:` where the model is to go on.
    ///
    /// * `messages`: a list of objects with `role` and `content`. `tools`: a list of functions, as OpenAI has them.
    ///
    /// # Errors
    /// What the template says against the messages; without a template, the first message that has no text.
    pub fn chat(
        &self,
        messages: &Value,
        add_generation_prompt: bool,
        tools: Option<&Value>,
    ) -> Result<String, ChatError> {
        match &self.0.template {
            Some(template) => template.render(messages, add_generation_prompt, tools),
            None => chat::plain(messages, add_generation_prompt, tools),
        }
    }

    /// The tokens of a conversation, the one that starts a text included. See [`chat`](Tokenizer::chat).
    ///
    /// # Errors
    /// As [`chat`](Tokenizer::chat).
    pub fn chat_tokens(
        &self,
        messages: &Value,
        add_generation_prompt: bool,
        tools: Option<&Value>,
    ) -> Result<Vec<u32>, ChatError> {
        let text = self.chat(messages, add_generation_prompt, tools)?;
        Ok(self.encode(&text, !self.has_template()))
    }
}

/// The template of a directory; its own file goes before the setting.
fn template(directory: &Path, settings: &Value) -> Result<Option<Template>, TokenizerError> {
    let path = directory.join("chat_template.jinja");
    let own = read(&path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let (path, source, with_tools) = match (own, &settings["chat_template"]) {
        (Some(own), _) => (path, own, None),
        (None, Value::String(source)) => (directory.join("tokenizer_config.json"), source.clone(), None),
        (None, Value::Array(named)) => {
            let of = |name: &str| {
                let entry = named.iter().find(|entry| entry["name"] == name)?;
                Some(entry["template"].as_str()?.to_string())
            };
            let Some(source) = of("default") else { return Ok(None) };
            (directory.join("tokenizer_config.json"), source, of("tool_use"))
        }
        (None, _) => return Ok(None),
    };
    let marks = settings.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token"));
    let marks = marks.filter_map(|(name, value)| Some((name.clone(), content(value)?.to_string()))).collect();
    let damaged = |error: ChatError| TokenizerError::Damaged { path, reason: error.to_string() };
    Template::new(source, with_tools, marks).map(Some).map_err(damaged)
}

/// A mark is written as its text or as an object with it.
fn content(mark: &Value) -> Option<&str> {
    mark.as_str().or_else(|| mark["content"].as_str())
}

/// One number or a list of them.
fn numbers(value: &Value) -> Vec<u32> {
    let number = |value: &Value| u32::try_from(value.as_u64()?).ok();
    match value {
        Value::Array(items) => items.iter().filter_map(number).collect(),
        value => number(value).into_iter().collect(),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TokenizerError::Io { path: path.to_path_buf(), error }),
    }
}

fn read_json(path: &Path) -> Result<Option<Value>, TokenizerError> {
    let damaged = |error: serde_json::Error| TokenizerError::Damaged {
        path: path.to_path_buf(),
        reason: error.to_string(),
    };
    read(path)?.map(|bytes| serde_json::from_slice(&bytes).map_err(damaged)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_survives_its_bytes() {
        let tokenizer = Tokenizer::bytes();
        let tokens = tokenizer.encode("né\n", true);
        assert_eq!(tokens, [BOS, 110, 195, 169, 10]);
        assert_eq!(tokenizer.encode("n", false), [110]);
        let bytes: Vec<u8> =
            tokens[1..].iter().flat_map(|token| tokenizer.token_bytes(*token).unwrap()).copied().collect();
        assert_eq!(bytes, "né\n".as_bytes());
        assert!([BOS, EOS, 263].iter().all(|token| tokenizer.token_bytes(*token).is_none()));
        assert!(tokenizer.is_end(EOS) && !tokenizer.is_end(BOS));
        assert_eq!([255, BOS, EOS, 258].map(|token| tokenizer.is_sayable(token)), [true, false, true, false]);
    }

    #[test]
    fn a_conversation_without_a_template_becomes_lines_of_role_and_content() {
        let messages =
            json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "Hi!" }]);
        let tokenizer = Tokenizer::bytes();
        let text = tokenizer.chat(&messages, true, None).unwrap();
        assert_eq!(text, "system: Be brief.\nuser: Hi!\nassistant:");
        assert_eq!(tokenizer.chat_tokens(&messages, true, None).unwrap(), tokenizer.encode(&text, true));
        let error = tokenizer.chat(&json!([{ "role": "user" }]), true, None).unwrap_err().to_string();
        assert_eq!(error, "messages[0] has no text as role and content");
    }
}
