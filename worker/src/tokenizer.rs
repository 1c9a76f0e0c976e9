//! The tokenizer: every byte is a token, and two more mark where a text starts and ends.

/// Token that starts a text.
pub const BOS: u32 = 256;

/// Token that ends a text.
pub const EOS: u32 = 257;

/// Tokens of the presets: 256 bytes and two marks, padded to a multiple of 8.
pub const VOCABULARY: usize = 264;

/// What a model can say next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symbol {
    /// A byte of the text.
    Byte(u8),
    /// The end of the text.
    End,
}

/// The bytes of `text` as tokens, after [`BOS`].
pub fn encode(text: &str) -> Vec<u32> {
    std::iter::once(BOS).chain(text.bytes().map(u32::from)).collect()
}

/// What `token` stands for; nothing for [`BOS`] and the padding, which a model must not say.
pub fn decode(token: u32) -> Option<Symbol> {
    match token {
        EOS => Some(Symbol::End),
        _ => u8::try_from(token).ok().map(Symbol::Byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_its_tokens() {
        let tokens = encode("né\n");
        assert_eq!(tokens, [BOS, 110, 195, 169, 10]);
        let bytes: Vec<u8> = tokens[1..]
            .iter()
            .map(|&token| match decode(token) {
                Some(Symbol::Byte(byte)) => byte,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(bytes, "né\n".as_bytes());
        assert_eq!([decode(BOS), decode(EOS), decode(263)], [None, Some(Symbol::End), None]);
    }
}
