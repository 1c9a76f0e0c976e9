//! From the bytes that a model says to the text that a client gets.

/// Cuts a stream of bytes into pieces of text: characters stay whole, and nothing that may be the start of a stop
/// string is given away before that is known.
pub struct TextStream {
    /// Bytes that were not given away yet.
    held: Vec<u8>,
    stops: Vec<Vec<u8>>,
}

/// What a byte led to.
#[derive(Debug, PartialEq)]
pub struct Piece {
    /// Text that is certain now; may be empty.
    pub text: String,
    /// Whether a stop string is complete. It is not part of the text, and nothing follows.
    pub stopped: bool,
}

impl TextStream {
    /// A stream that ends before the first of `stops`.
    pub fn new(stops: &[String]) -> TextStream {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).map(|stop| stop.clone().into_bytes());
        TextStream { held: Vec::new(), stops: stops.collect() }
    }

    /// Adds a byte.
    pub fn push(&mut self, byte: u8) -> Piece {
        self.held.push(byte);
        // The byte completes a stop string if any: all earlier ends were looked at. Of several the longest, as it
        // starts first.
        let complete = self.stops.iter().filter(|stop| self.held.ends_with(stop)).map(Vec::len).max();
        if let Some(length) = complete {
            self.held.truncate(self.held.len() - length);
            return Piece { text: self.finish(), stopped: true };
        }
        let certain = self.held.len() - self.stop_start();
        let (text, used) = complete_characters(&self.held[..certain]);
        self.held.drain(..used);
        Piece { text, stopped: false }
    }

    /// Adds the bytes of a token, up to the first that completes a stop string.
    pub fn push_all(&mut self, bytes: &[u8]) -> Piece {
        let mut text = String::new();
        for &byte in bytes {
            let piece = self.push(byte);
            text.push_str(&piece.text);
            if piece.stopped {
                return Piece { text, stopped: true };
            }
        }
        Piece { text, stopped: false }
    }

    /// What is left at the end; bytes that are no character become U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }

    /// Length of the longest end of the held bytes that starts a stop string.
    fn stop_start(&self) -> usize {
        let starts = |stop: &Vec<u8>| {
            (1..stop.len()).rev().find(|&length| self.held.ends_with(&stop[..length])).unwrap_or(0)
        };
        self.stops.iter().map(starts).max().unwrap_or(0)
    }
}

/// The characters of `bytes`, and how many bytes they took: all but a character that may still be completed.
fn complete_characters(bytes: &[u8]) -> (String, usize) {
    let (mut text, mut used) = (String::new(), 0);
    loop {
        match std::str::from_utf8(&bytes[used..]) {
            Ok(rest) => {
                text.push_str(rest);
                return (text, bytes.len());
            }
            Err(error) => {
                let valid = used + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[used..valid]));
                let Some(wrong) = error.error_len() else { return (text, valid) };
                text.push(char::REPLACEMENT_CHARACTER);
                used = valid + wrong;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// The pieces, and whether a stop string ended them.
    fn pieces(bytes: &[u8], stops: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<_> = stops.iter().map(|stop| stop.to_string()).collect();
        let (mut stream, mut pieces) = (TextStream::new(&stops), Vec::new());
        for &byte in bytes {
            let piece = stream.push(byte);
            pieces.push(piece.text);
            if piece.stopped {
                return (pieces, true);
            }
        }
        pieces.push(stream.finish());
        (pieces, false)
    }

    #[test]
    fn a_character_is_given_away_whole() {
        let (pieces, _) = pieces("aé€😀".as_bytes(), &[]);
        assert_eq!(pieces, ["a", "", "é", "", "", "€", "", "", "", "😀", ""]);
    }

    #[test]
    fn bytes_that_are_no_character_are_replaced_as_in_the_whole_text() {
        let mut random = Random::new(1);
        for _ in 0..500 {
            let bytes: Vec<u8> = (0..20).map(|_| (random.bits() % 256) as u8 | 0x80).collect();
            assert_eq!(pieces(&bytes, &[]).0.concat(), String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn the_text_ends_before_the_first_stop_string_however_it_is_cut() {
        for (text, stops, expected, stopped) in [
            ("one two", &["two"][..], "one ", true),
            ("aab", &["ab"][..], "a", true),
            ("abac", &["abab"][..], "abac", false),
            ("abababc", &["ababc"][..], "ab", true),
            ("x\nuser: y", &["\nuser:", "zz"][..], "x", true),
            ("abc", &["bc", "c"][..], "a", true),
            ("é!", &["!"][..], "é", true),
            ("nothing", &[""][..], "nothing", false),
        ] {
            let (pieces, was_stopped) = pieces(text.as_bytes(), stops);
            assert_eq!((pieces.concat().as_str(), was_stopped), (expected, stopped), "{text:?} {stops:?}");
        }
    }
}
