//! What each token stands for, in bytes.

use super::{BOS, EOS};
use serde_json::Value;

/// The bytes of every token.
pub struct Pieces {
    bytes: Vec<u8>,
    /// Where the bytes of each token end; those of the next start there.
    ends: Vec<u32>,
    /// Whether a token is text.
    is_text: Vec<bool>,
}

impl Pieces {
    /// One byte each, then the two marks.
    pub fn bytes() -> Pieces {
        let mut pieces = Pieces { bytes: Vec::new(), ends: Vec::new(), is_text: Vec::new() };
        (0..=255u8).for_each(|byte| pieces.push(Some(&[byte])));
        assert_eq!([BOS, EOS], [256, 257]);
        (0..2).for_each(|_| pieces.push(None));
        pieces
    }

    /// The tokens of a `tokenizer.json`, read as `file` and, for its decoder, as `json`; those below `limit`, the
    /// model's tokens.
    ///
    /// # Errors
    /// Where the decoder is of a kind that is not known, or a token of a text is not the model's.
    pub fn new(file: &tokenizers::Tokenizer, json: &Value, limit: usize) -> Result<Pieces, String> {
        let mut steps = Vec::new();
        decoder_steps(&json["decoder"], &mut steps)?;
        let mut all: Vec<(u32, String)> =
            file.get_vocab(true).into_iter().map(|(token, number)| (number, token)).collect();
        all.sort();
        let added = file.get_added_tokens_decoder();
        let mut pieces = Pieces { bytes: Vec::new(), ends: Vec::new(), is_text: Vec::new() };
        for (number, token) in all {
            let mark = added.get(&number);
            if limit <= number as usize {
                if mark.is_some() {
                    continue;
                }
                return Err(format!("token {number} is {token:?}; the model's vocab_size is {limit}"));
            }
            // Numbers may be left out.
            while pieces.len() < number as usize {
                pieces.push(None);
            }
            // Two texts may have the same number.
            if pieces.len() == number as usize {
                match mark {
                    Some(mark) if mark.special => pieces.push(None),
                    Some(_) => pieces.push(Some(token.as_bytes())),
                    None => pieces.push(Some(&decode(token, &steps))),
                }
            }
        }
        Ok(pieces)
    }

    fn push(&mut self, bytes: Option<&[u8]>) {
        self.bytes.extend(bytes.unwrap_or_default());
        self.ends.push(self.bytes.len() as u32);
        self.is_text.push(bytes.is_some());
    }

    /// Tokens.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token that is text.
    pub fn get(&self, token: u32) -> Option<&[u8]> {
        let index = token as usize;
        if !*self.is_text.get(index)? {
            return None;
        }
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start as usize..self.ends[index] as usize])
    }
}

/// One thing that a decoder does to a token by itself. What it does to the whole text, such as dropping the space
/// before the first word, is left to where a text starts.
enum Step {
    /// Characters that stand for bytes.
    ByteLevel,
    /// `<0x0A>` stands for a byte.
    ByteFallback,
    Replace(String, String),
}

fn decoder_steps(decoder: &Value, steps: &mut Vec<Step>) -> Result<(), String> {
    match decoder["type"].as_str() {
        None => (),
        Some("Sequence") => {
            for part in decoder["decoders"].as_array().into_iter().flatten() {
                decoder_steps(part, steps)?;
            }
        }
        Some("ByteLevel") => steps.push(Step::ByteLevel),
        Some("ByteFallback") => steps.push(Step::ByteFallback),
        Some("Metaspace") => {
            steps.push(Step::Replace(decoder["replacement"].as_str().unwrap_or("▁").into(), " ".into()));
        }
        Some("Replace") => match (decoder["pattern"]["String"].as_str(), decoder["content"].as_str()) {
            (Some(from), Some(to)) => steps.push(Step::Replace(from.into(), to.into())),
            _ => return Err(format!("decoder replaces {}; only strings are supported", decoder["pattern"])),
        },
        Some("Fuse" | "Strip") => (),
        Some(other) => {
            let known = "ByteLevel, ByteFallback, Metaspace, Replace, Fuse, Strip and sequences of them";
            return Err(format!("decoder.type is {other}; it is one of {known}"));
        }
    }
    Ok(())
}

fn decode(token: String, steps: &[Step]) -> Vec<u8> {
    let mut text = token;
    for step in steps {
        match step {
            Step::Replace(from, to) => text = text.replace(from, to),
            Step::ByteFallback => {
                let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                if let Some(byte) =
                    digits.filter(|d| d.len() == 2).and_then(|d| u8::from_str_radix(d, 16).ok())
                {
                    return vec![byte];
                }
            }
            Step::ByteLevel => {
                // A token with a character that stands for no byte means itself.
                return text.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or(text.into_bytes());
            }
        }
    }
    text.into_bytes()
}

/// The byte that a character of byte-level BPE stands for: bytes that print stand for themselves, and the others, in
/// order, are the characters from U+0100.
///
/// Source: `bytes_to_unicode` in <https://github.com/openai/gpt-2/blob/master/src/encoder.py>.
fn byte_of(character: char) -> Option<u8> {
    let prints = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(character) {
        code @ 0..=0xff => Some(code as u8).filter(prints),
        code => (0..=255u8).filter(|byte| !prints(byte)).nth((code - 0x100) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_byte_has_one_character() {
        let bytes: Vec<_> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        let mut sorted = bytes.clone();
        sorted.sort();
        assert_eq!(sorted, (0..=255).collect::<Vec<u8>>());
        assert_eq!(['Ġ', 'Ċ', 'A', 'é'].map(byte_of), [Some(b' '), Some(b'\n'), Some(b'A'), Some(0xe9)]);
    }

    #[test]
    fn a_decoder_of_sentencepiece_gives_spaces_and_bytes() {
        let decoder = json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] });
        let mut steps = Vec::new();
        decoder_steps(&decoder, &mut steps).unwrap();
        for (token, bytes) in
            [("▁the", &b" the"[..]), ("<0x0A>", b"\n"), ("<0xfg>", b"<0xfg>"), ("▁▁", b"  ")]
        {
            assert_eq!(decode(token.into(), &steps), bytes, "{token}");
        }
        let error = decoder_steps(&json!({ "type": "WordPiece" }), &mut steps).unwrap_err();
        assert!(error.starts_with("decoder.type is WordPiece; it is one of ByteLevel,"), "{error}");
    }
}
