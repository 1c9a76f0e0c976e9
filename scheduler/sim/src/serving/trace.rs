//! Requests of public traces: when each came, how long its prompt was and how long its answer.

use std::path::Path;

use serde_json::Value;

use crate::replay::input::{InputError, Table, read_text};

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it comes, in microseconds since the first one.
    pub at_us: u64,
    /// Tokens of its prompt, at least 1.
    pub prompt: u64,
    /// Tokens of its answer, at least 1.
    pub said: u64,
}

/// No request has more tokens.
const MOST: u64 = 1 << 20;

/// Reads a trace, plain or compressed, in the order in which its requests came: a table of
/// `TIMESTAMP,ContextTokens,GeneratedTokens` within one day (Azure's), or lines of JSON with `timestamp` in milliseconds,
/// `input_length` and `output_length` (Mooncake's; what it says of common beginnings is not used).
///
/// Source: Azure/AzurePublicDataset, Patel et al., "Splitwise: Efficient generative LLM inference using phase splitting",
/// ISCA 2024; kvcache-ai/Mooncake, Qin et al., "Mooncake: A KVCache-centric disaggregated architecture for LLM serving",
/// FAST 2025.
///
/// # Errors
/// When the file cannot be read, or lacks or says what it should not.
pub fn read(path: &Path) -> Result<Vec<Request>, InputError> {
    let text = read_text(path)?;
    let mut requests = if text.starts_with('{') { lines(path, &text)? } else { table(path, &text)? };
    requests.sort_by_key(|request| request.at_us);
    let first = requests.first().map_or(0, |request| request.at_us);
    requests.iter_mut().for_each(|request| request.at_us -= first);
    Ok(requests)
}

fn table(path: &Path, text: &str) -> Result<Vec<Request>, InputError> {
    let table = Table::parse(path, text, &["TIMESTAMP", "ContextTokens", "GeneratedTokens"], &[])?;
    let request = |row: crate::replay::input::Row<'_>| {
        Ok(Request {
            at_us: row.read("TIMESTAMP", |text| {
                time_of_day_us(text).ok_or("expected YYYY-MM-DD hh:mm:ss".into())
            })?,
            prompt: row.number("ContextTokens", 1, MOST)?,
            said: row.number("GeneratedTokens", 1, MOST)?,
        })
    };
    table.rows().map(request).collect()
}

fn time_of_day_us(text: &str) -> Option<u64> {
    let (_, time) = text.split_once(' ')?;
    let mut parts = time.split(':');
    let [hours, minutes, seconds] = [parts.next()?, parts.next()?, parts.next()?];
    let seconds: f64 = seconds.parse().ok().filter(|seconds| (0.0..61.0).contains(seconds))?;
    let minutes = hours.parse::<u64>().ok()? * 60 + minutes.parse::<u64>().ok()?;
    (minutes < 24 * 60).then_some(minutes * 60_000_000 + (seconds * 1e6) as u64)
}

fn lines(path: &Path, text: &str) -> Result<Vec<Request>, InputError> {
    let request = |(line, text): (usize, &str)| {
        let error = |column: &str, value: String| InputError {
            line,
            column: column.into(),
            value,
            ..InputError::file(path, format!("expected a number from 0 to {MOST}, of time any"))
        };
        let object: Value = serde_json::from_str(text).map_err(|_| error("", text.into()))?;
        let number = |key: &str, most: u64| {
            let number = object.get(key).and_then(Value::as_u64).filter(|number| *number <= most);
            number.ok_or_else(|| error(key, object.get(key).map(Value::to_string).unwrap_or_default()))
        };
        Ok(Request {
            at_us: number("timestamp", u64::MAX / 1000)? * 1000,
            prompt: number("input_length", MOST)?.max(1),
            said: number("output_length", MOST)?.max(1),
        })
    };
    text.lines().enumerate().map(|(at, text)| request((at + 1, text))).collect()
}

/// The trace so many times at once, each copy shifted by another part of its span and wrapped around: as many times the
/// load, with fewer requests that come together.
pub fn times(requests: &[Request], copies: u64) -> Vec<Request> {
    let span = requests.last().map_or(0, |last| last.at_us) + 1;
    let shifted = |copy: u64| {
        let shift = span / copies * copy;
        requests.iter().map(move |it| Request { at_us: (it.at_us + shift) % span, ..*it })
    };
    let mut all: Vec<Request> = (0..copies).flat_map(shifted).collect();
    all.sort_by_key(|request| request.at_us);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read_and_what_is_wrong_is_named() {
        let dir = std::env::temp_dir().join(format!("aquifer-serving-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let read = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            read(&path).map_err(|error| error.to_string())
        };
        let csv = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:48.18,5,1\n";
        let expected =
            [Request { at_us: 0, prompt: 374, said: 44 }, Request { at_us: 1_500_000, prompt: 5, said: 1 }];
        assert_eq!(read("a.csv", csv).unwrap(), expected);
        let json = "{\"timestamp\":7,\"input_length\":374,\"output_length\":44,\"hash_ids\":[1]}\n\
                    {\"timestamp\":1507,\"input_length\":5,\"output_length\":0}\n";
        assert_eq!(read("m.jsonl", json).unwrap(), expected);
        let wrong = read("a.csv", &csv.replace("374", "many")).unwrap_err();
        assert!(wrong.contains("ContextTokens") && wrong.contains("many"), "{wrong}");
        let wrong = read("m.jsonl", &json.replace("374", "-1")).unwrap_err();
        assert!(wrong.contains("input_length") && wrong.contains("-1"), "{wrong}");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn copies_are_as_many_times_the_load() {
        let one = [Request { at_us: 0, prompt: 1, said: 1 }, Request { at_us: 9, prompt: 2, said: 2 }];
        let at: Vec<u64> = times(&one, 2).iter().map(|request| request.at_us).collect();
        assert_eq!(at, [0, 4, 5, 9]);
    }
}
