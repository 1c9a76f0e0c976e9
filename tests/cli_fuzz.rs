//! Whatever is thrown at the parser of job files and at the border: no panics, and every refusal is a sentence that
//! names a line or a key. `SEED=41` repeats a run.

use std::path::Path;
use std::{env, fs};

use aquifer_cli::job_file::{self, Context, JobFile};
use aquifer_proto::{border, v1, wire};
use prost::Message;

/// xorshift64*. Source: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

fn seeds(count: u64) -> Vec<u64> {
    match env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (1..=count).collect(),
    }
}

const KEYS: [&str; 42] = [
    "kind",
    "name",
    "queue",
    "priority",
    "ranks",
    "min_ranks",
    "devices",
    "cpus",
    "memory",
    "labels",
    "time_limit",
    "retries",
    "grace",
    "env",
    "working_dir",
    "checkpoint_dir",
    "reservation",
    "after",
    "array",
    "command",
    "train",
    "serve",
    "roles",
    "model",
    "data",
    "steps",
    "batch",
    "context",
    "learning_rate",
    "seed",
    "checkpoint_every",
    "precision",
    "micro_batch",
    "spares",
    "audit_every",
    "inner_steps",
    "replicas",
    "count",
    "class",
    "vendor",
    "any_of",
    "gpus",
];

const VALUES: [&str; 48] = [
    "",
    "0",
    "1",
    "-1",
    "2",
    "1.5",
    "1e9",
    "1e999",
    "99999999999999999999",
    "0x10",
    "010",
    ".inf",
    ".nan",
    "NaN",
    "~",
    "null",
    "true",
    "no",
    "[]",
    "{}",
    "[1, 2]",
    "{a: b}",
    "[[[]]]",
    "{a: {b: {c: d}}}",
    "20GiB",
    "80 GiB",
    "1.5TiB",
    "90s",
    "1h30m",
    "9999999999999d",
    "job-7",
    "job-0",
    "0-99",
    "0-99:0",
    "99-0",
    "4294967295-4294967295",
    "train",
    "serve",
    "command",
    "/data",
    "./x",
    "\"a\\0b\"",
    "\"\\u001b[31m\"",
    "'日本語 ☃'",
    "*a",
    "&a [*a]",
    "!x y",
    "!!binary aGk=",
];

/// A document from the grammar of job files, mostly of things that do not belong where they stand.
fn invented(rng: &mut Rng) -> String {
    let mut text = String::new();
    for _ in 0..1 + rng.below(5) {
        let key = rng.pick(&KEYS);
        match rng.below(4) {
            0 => {
                text += &format!("{key}:\n");
                for _ in 0..1 + rng.below(3) {
                    let dash = if rng.below(3) == 0 { "- " } else { "" };
                    text += &format!("  {dash}{}: {}\n", rng.pick(&KEYS), rng.pick(&VALUES));
                }
            }
            1 => {
                text += &format!(
                    "{key}: {{{}: {}, {}: {}}}\n",
                    rng.pick(&KEYS),
                    rng.pick(&VALUES),
                    rng.pick(&KEYS),
                    rng.pick(&VALUES)
                )
            }
            2 => {
                text += &format!(
                    "{key}: [{{{}: {}, command: [x]}}, {}]\n",
                    rng.pick(&KEYS),
                    rng.pick(&VALUES),
                    rng.pick(&VALUES)
                )
            }
            _ => text += &format!("{key}: {}\n", rng.pick(&VALUES)),
        }
    }
    if rng.below(2) == 0 && !text.contains("\ncommand") && !text.starts_with("command") {
        text += "command: [x]\n";
    }
    text
}

/// A good file with some of its characters, values and lines replaced, removed or doubled.
fn mutated(rng: &mut Rng, corpus: &[String]) -> String {
    let mut text = corpus[rng.below(corpus.len())].clone();
    for _ in 0..1 + rng.below(4) {
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        let at = rng.below(lines.len());
        match rng.below(7) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at].clone()),
            2 => {
                let key = lines[at].split(':').next().unwrap_or_default().to_string();
                lines[at] = format!("{key}: {}", rng.pick(&VALUES));
            }
            3 => lines[at] = format!("  {}", lines[at]),
            4 => {
                lines[at] = lines[at].replace(
                    rng.pick(&["1", "a", ":", "- ", "{", "}", ","]),
                    rng.pick(&["", "\t", "[", "é", "0", ": "]),
                )
            }
            5 => lines.truncate(at),
            _ => {
                let mut characters: Vec<char> = lines[at].chars().collect();
                let place = rng.below(characters.len() + 1);
                let character = char::from_u32(rng.below(0x300) as u32).unwrap_or('?');
                if place < characters.len() {
                    characters[place] = character
                } else {
                    characters.push(character)
                }
                lines[at] = characters.into_iter().collect();
            }
        }
        text = lines.join("\n");
        if lines.is_empty() {
            break;
        }
    }
    text
}

#[test]
fn every_malformed_file_is_refused_with_a_sentence_that_names_line_or_key() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples");
    let files = fs::read_dir(dir).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let corpus: Vec<String> = files.collect();
    let context = Context { base: "/base".into(), user: "ada".into(), client_key: String::new() };
    let (mut accepted, mut by_line, mut by_key) = (0, 0, 0);
    for seed in seeds(12_000) {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let text = if seed % 3 == 0 { invented(&mut rng) } else { mutated(&mut rng, &corpus) };
        let set = format!("{}.{}={}", rng.pick(&KEYS), rng.pick(&KEYS), rng.pick(&VALUES));
        let sets: Vec<String> = if seed % 5 == 0 { vec![set] } else { Vec::new() };
        let spec = JobFile::parse(&text, &sets).and_then(|file| file.spec(&context)).map(|mut wire| {
            for job in job_file::unresolved(&wire) {
                job_file::resolve(&mut wire, job, "/ckpt");
            }
            wire
        });
        let error = match spec.and_then(|wire| job_file::check(&wire)) {
            Ok(spec) => {
                // What was accepted says the same when it is written out and read again.
                let printed = job_file::file_of(&spec).text();
                let again = JobFile::parse(&printed, &[]).and_then(|file| file.spec(&context));
                let again =
                    again.unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}\n--\n{printed}"));
                assert_eq!(job_file::check(&again).as_ref(), Ok(&spec), "seed {seed}\n{text}\n--\n{printed}");
                accepted += 1;
                continue;
            }
            Err(error) => error,
        };
        let names_key = KEYS.iter().any(|key| error.text.contains(key)) || error.text.starts_with("the file");
        assert!(error.line.is_some() || names_key, "seed {seed}: {error}\n{text}");
        assert!(error.text.len() < 500 && 12 < error.text.len(), "seed {seed}: {error}\n{text}");
        assert!(!error.text.contains(char::is_control), "seed {seed}: {error:?}\n{text}");
        assert!(
            !error.text.contains("invalid type") && !error.text.contains("struct "),
            "seed {seed}: {error}"
        );
        by_line += usize::from(error.line.is_some());
        by_key += usize::from(error.line.is_none());
    }
    if env::var_os("SEED").is_none() {
        assert!(500 < accepted && 2000 < by_line && 300 < by_key, "{accepted} {by_line} {by_key}");
    }
}

#[test]
fn no_bytes_make_the_border_panic() {
    let corpus: Vec<Vec<u8>> = [
        "kind: train\nname: x\nranks: 3\ntrain: {data: /d}\nlabels: {a: b}\narray: 0-9\nafter: [3]\ntime_limit: 1h",
        "serve: {model: /m, served_name: n}\ndevices: {any_of: [{class: h200}, {vendor: cpu, memory: 1GiB}]}\nenv: {A: b}",
        "roles: [{name: a, command: x}, {name: b, ranks: 4, command: [y, z]}]\nworking_dir: /w\ncheckpoint_dir: /c",
    ]
    .iter()
    .map(|text| JobFile::parse(text, &[]).unwrap().spec(&Context::default()).unwrap().encode_to_vec())
    .collect();
    let (mut decoded, mut accepted, mut refused) = (0, 0, 0);
    for seed in seeds(80_000) {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut bytes = corpus[rng.below(corpus.len())].clone();
        if seed % 4 == 0 {
            bytes = (0..rng.below(60)).map(|_| rng.next() as u8).collect();
        }
        for _ in 0..rng.below(6) {
            let at = rng.below(bytes.len());
            match rng.below(3) {
                _ if bytes.is_empty() => (),
                0 => bytes[at] = rng.next() as u8,
                1 => bytes[at] ^= 1 << rng.below(8),
                _ => drop(bytes.remove(at)),
            }
        }
        let Ok(spec) = v1::JobSpec::decode(&bytes[..]) else { continue };
        decoded += 1;
        match border::job_spec(&spec) {
            Ok(core) => {
                let again = border::job_spec(&wire::job_spec(&core));
                assert_eq!(again.as_ref(), Ok(&core), "seed {seed}");
                accepted += 1;
            }
            Err(invalid) => {
                assert!(!invalid.field.is_empty() && !invalid.allowed.is_empty(), "seed {seed}: {invalid}");
                assert!(!invalid.to_string().contains(char::is_control), "seed {seed}: {invalid:?}");
                refused += 1;
            }
        }
    }
    if env::var_os("SEED").is_none() {
        assert!(10_000 < decoded && 1000 < accepted && 1000 < refused, "{decoded} {accepted} {refused}");
    }
}
