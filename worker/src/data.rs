//! Training data: the text files below a path as one sequence of tokens, and which part of it a shard reads.

use crate::random::{mix, permute};
use crate::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};

/// The most text that is loaded, in bytes: it is held in memory.
const MAX_BYTES: u64 = 4 << 30;

/// All texts, one after another, each between its marks.
pub struct Dataset {
    tokens: Tokens,
    /// Text files that were read.
    pub files: usize,
    /// Identifies the content: ranks with other data do not join.
    pub digest: u32,
}

/// Tokens in as few bytes as the vocabulary allows.
enum Tokens {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

impl Tokens {
    fn extend(&mut self, tokens: impl IntoIterator<Item = u32>) {
        match self {
            Tokens::Narrow(all) => all.extend(tokens.into_iter().map(|token| token as u16)),
            Tokens::Wide(all) => all.extend(tokens),
        }
    }

    fn len(&self) -> usize {
        match self {
            Tokens::Narrow(all) => all.len(),
            Tokens::Wide(all) => all.len(),
        }
    }

    fn part(&self, part: std::ops::Range<usize>) -> Vec<u32> {
        match self {
            Tokens::Narrow(all) => all[part].iter().map(|&token| u32::from(token)).collect(),
            Tokens::Wide(all) => all[part].to_vec(),
        }
    }
}

/// Why there is no data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or directory cannot be read.
    #[error("--data {}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// There is no text below the path.
    #[error(
        "--data {} holds no text: no file that is UTF-8 and not empty, outside hidden directories and target/",
        path.display()
    )]
    Empty {
        /// The path.
        path: PathBuf,
    },
    /// Not one sample fits.
    #[error("--data {} holds {tokens} tokens; a sample of --context {context} needs {}", path.display(), context + 1)]
    Short {
        /// The path.
        path: PathBuf,
        /// Tokens found.
        tokens: usize,
        /// Tokens of a sample.
        context: usize,
    },
    /// There is more than fits in memory.
    #[error("--data {} holds more than {} GiB of text; name a smaller part of it", path.display(), MAX_BYTES >> 30)]
    TooLarge {
        /// The path.
        path: PathBuf,
    },
}

impl Dataset {
    /// Reads a file, or all text files below a directory in the order of their paths. Skips binary files, hidden
    /// files and directories, and directories named `target`. Links are not followed below `path`. Each text is followed by
    /// the token that ends one.
    ///
    /// # Errors
    /// Where something cannot be read, there is no text, or too much of it.
    pub fn load(path: &Path, tokenizer: &Tokenizer) -> Result<Dataset, DataError> {
        let narrow = tokenizer.vocab_size() <= 1 << 16;
        let mut tokens = if narrow { Tokens::Narrow(Vec::new()) } else { Tokens::Wide(Vec::new()) };
        let (mut files, mut bytes) = (0, 0);
        let mut hasher = crc32fast::Hasher::new();
        for file in list(path)? {
            let content =
                std::fs::read(&file).map_err(|error| DataError::Io { path: file.clone(), error })?;
            let Some(text) = text(&content) else { continue };
            bytes += content.len() as u64;
            if MAX_BYTES < bytes {
                return Err(DataError::TooLarge { path: path.to_path_buf() });
            }
            files += 1;
            hasher.update(&(content.len() as u64).to_le_bytes());
            hasher.update(&content);
            tokens.extend(tokenizer.encode(text, true).into_iter().chain(tokenizer.end()));
        }
        if files == 0 {
            return Err(DataError::Empty { path: path.to_path_buf() });
        }
        Ok(Dataset { tokens, files, digest: hasher.finalize() })
    }

    /// Tokens in all.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token: never after [`Dataset::load`].
    pub fn is_empty(&self) -> bool {
        self.tokens.len() == 0
    }

    /// Samples of `context` tokens, each with its successor: they do not overlap.
    pub fn samples(&self, context: usize) -> usize {
        self.tokens.len().saturating_sub(1) / context
    }

    /// Sample `number` of an endless sequence that meets every sample once in each pass over the data, in an
    /// order of its own for each pass. A pure function of its arguments: a shard needs no state to find its data.
    ///
    /// Returns the inputs and the targets, `[context]` each; targets are the inputs' successors.
    pub fn sample(&self, seed: u64, number: u64, context: usize) -> (Vec<u32>, Vec<u32>) {
        let count = self.samples(context) as u64;
        let (pass, index) = (number / count, number % count);
        let key = mix(mix(seed) ^ mix(pass));
        // Each pass cuts the text at other places, as far as the last incomplete sample allows.
        let slack = (self.tokens.len() - 1) as u64 - count * context as u64;
        let shift = mix(key) % (slack + 1);
        let start = (permute(index, count, key) * context as u64 + shift) as usize;
        let window = self.tokens.part(start..start + context + 1);
        (window[..context].to_vec(), window[1..].to_vec())
    }
}

/// The content of a file that is text, and not empty.
fn text(content: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(content).ok()?;
    (!text.is_empty() && !text.contains('\0')).then_some(text)
}

/// The files below `path`, in the order of their paths; `path` itself where it is a file.
fn list(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let fail = |path: &Path| {
        let path = path.to_path_buf();
        move |error| DataError::Io { path, error }
    };
    if !std::fs::metadata(path).map_err(fail(path))?.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let (mut files, mut directories) = (Vec::new(), vec![path.to_path_buf()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).map_err(fail(&directory))? {
            let entry = entry.map_err(fail(&directory))?;
            let kind = entry.file_type().map_err(fail(&entry.path()))?;
            let name = entry.file_name();
            let hidden = name.as_encoded_bytes().starts_with(b".");
            if kind.is_dir() && !hidden && name != "target" {
                directories.push(entry.path());
            } else if kind.is_file() && !hidden {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use std::fs;

    #[test]
    fn text_files_are_read_in_order_and_everything_else_is_skipped() {
        let dir = TempDir::new();
        for (path, content) in [
            ("b.txt", &b"bee"[..]),
            ("a/z.md", b"zed"),
            ("binary", b"\0\x01"),
            ("latin1", b"\xe9"),
            ("empty", b""),
            (".hidden/x", b"no"),
            ("target/x", b"no"),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let data = Dataset::load(dir.path(), &Tokenizer::bytes()).unwrap();
        let expected = [256, 122, 101, 100, 257, 256, 98, 101, 101, 257];
        assert_eq!((data.files, data.tokens.part(0..data.len()).as_slice()), (2, &expected[..]));
    }

    #[test]
    fn a_path_without_text_is_an_error_that_names_it() {
        let dir = TempDir::new();
        let error = Dataset::load(dir.path(), &Tokenizer::bytes()).err().unwrap().to_string();
        assert!(error.contains("holds no text") && error.contains(dir.path().to_str().unwrap()), "{error}");
        let error =
            Dataset::load(&dir.path().join("missing"), &Tokenizer::bytes()).err().unwrap().to_string();
        assert!(error.contains("missing: No such file"), "{error}");
    }

    #[test]
    fn a_pass_meets_every_sample_once_and_the_next_in_another_order() {
        let dir = TempDir::new();
        // Nothing is left over, so that passes differ in their order only.
        let text: String = (0..999).map(|i| char::from(b'a' + (i % 26) as u8)).collect();
        fs::write(dir.path().join("text"), text).unwrap();
        let data = Dataset::load(dir.path(), &Tokenizer::bytes()).unwrap();
        let samples = data.samples(10) as u64;
        assert_eq!(samples, 100);
        let pass =
            |pass: u64| (0..samples).map(|i| data.sample(1, pass * samples + i, 10).0).collect::<Vec<_>>();
        let (first, second) = (pass(0), pass(1));
        assert_ne!(first, second);
        assert_eq!(first.iter().flatten().filter(|&&token| token == 256).count(), 1);
        assert_eq!(first, pass(0));
        let (inputs, targets) = data.sample(1, 5, 10);
        assert_eq!(inputs[1..], targets[..9]);
    }
}
