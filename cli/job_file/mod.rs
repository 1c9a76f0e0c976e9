//! The job file: what a user writes down to ask for a job. Its reference is `docs/job-file.md`.
//!
//! Reading happens in three steps, each of which names what it refuses: [`JobFile::parse`] (the text; errors
//! name line and field), [`JobFile::spec`] (what the keys mean together), and the border of the protocol
//! (`aquifer_proto::border::job_spec`), which the scheduler passes a job through as well.

mod apartness;
mod mount;
mod profile;
mod scalars;
mod set;
mod spec;
mod words;

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

pub use apartness::Apartness;
pub use mount::Mount;
pub use profile::Profile;
pub use scalars::*;
pub use spec::*;
pub use words::*;

/// Bytes of a job file, at most.
pub const MAX_FILE: usize = 4 << 20;

/// A job file. The same keys are flags of `aquifer run`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct JobFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Given<Kind>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Given<Whole<-1000, 1000>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<Given<Whole<1, 65_536>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_ranks: Option<Given<Whole<1, 65_536>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Devices>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Given<Cpus>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Given<Size>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Pairs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<List<Mount>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart: Option<Given<Level>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<Given<Level>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_limit: Option<Given<Span<1, 366>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<Given<Whole<0, 1000>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<Given<Restart>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_partition: Option<Given<OnPartition>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<Given<Span<0, 1>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Pairs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<List<Job>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array: Option<Given<Indices>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<Train>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<Role>>,
}

/// A group of equal ranks of a job file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Role {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<Given<Whole<1, 65_536>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_ranks: Option<Given<Whole<1, 65_536>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Devices>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Given<Cpus>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Given<Size>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Pairs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<List<Mount>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart: Option<Given<Level>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<Given<Level>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<Train>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
}

/// Options of the bundled trainer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Train {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Given<Whole<1, 1_000_000_000>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<Given<Whole<1, 1_000_000>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<Given<Whole<1, 1_048_576>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<Given<Rate>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<Given<Seed>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<Given<Whole<1, 1_000_000_000>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Given<TrainPrecision>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<Given<Whole<1, 1_000_000>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spares: Option<Given<Whole<0, 1_000_000>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit_every: Option<Given<Whole<0, 1_000_000_000>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inner_steps: Option<Given<Whole<0, 1_048_576>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<Given<Whole<0, 1_000_000>>>,
}

/// Options of the bundled inference server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Serve {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue: Option<Given<Whole<1, 100_000>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Given<ServePrecision>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_memory: Option<Given<Size>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscale: Option<Autoscale>,
}

/// What a service that scales itself promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Autoscale {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Given<Whole<1, 10_000>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft: Option<Given<Span<1, 1>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpot: Option<Given<Span<1, 1>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleep_after: Option<Given<Span<1000, 7>>>,
}

/// Devices of a rank: `1`, `{count: 2, class: h200}`, or `{any_of: [{…}, {…}]}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Devices {
    /// In order of preference; none: no devices.
    pub any_of: Vec<Device>,
}

/// A number of equal devices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Device {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<Given<Whole<1, 4096>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<Given<Maker>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Given<Size>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice: Option<DevicePart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub island: Option<Given<Need>>,
}

/// Where all ranks stand together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Topology {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require: Option<Given<Level>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer: Option<List<Level>>,
}

/// A part of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "profile::Named")]
#[allow(missing_docs)]
pub struct DevicePart {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute: Option<Given<Percent>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Given<Size>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Given<Apartness>>,
}

/// Why a job file cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// Where, counted from 1; `None` if the error is of no one line.
    pub line: Option<usize>,
    /// What is wrong; names the field.
    pub text: String,
}

impl FileError {
    fn new(text: impl Into<String>) -> FileError {
        FileError { line: None, text: text.into() }
    }
}

impl std::error::Error for FileError {}
impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

impl JobFile {
    /// Reads the text of a job file, after which `sets` (`key.key=value`) replace values in it.
    ///
    /// # Errors
    /// Names the line and the field, or the setting.
    pub fn parse(text: &str, sets: &[String]) -> Result<JobFile, FileError> {
        if MAX_FILE < text.len() {
            return Err(FileError::new(format!("the file has {} bytes: at most {MAX_FILE}", text.len())));
        }
        let empty = || text.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#'));
        if sets.is_empty() && empty() {
            return Err(FileError::new("the file is empty: expected at least `command`, `train` or `serve`"));
        }
        let mut file: JobFile = match empty() {
            true => JobFile::default(),
            false => yaml_serde::from_str(text).map_err(|error| told(&error))?,
        };
        for set in sets {
            set::apply(&mut file, set)?;
        }
        Ok(file)
    }

    /// The text of a job file that asks for the same.
    pub fn text(&self) -> String {
        yaml_serde::to_string(self).expect("a job file is YAML")
    }
}

/// An error of the YAML library, in the words of this house.
fn told(error: &yaml_serde::Error) -> FileError {
    let line = error.location().map(|location| location.line());
    let mut text = error.to_string();
    if let Some(at) = text.rfind(" at line ")
        && !text[at..].contains(", ")
    {
        text.truncate(at);
    }
    let (path, message) = match text.split_once(": ") {
        Some((path, message)) if is_path(path) => (path.to_string(), message.to_string()),
        _ => (String::new(), text),
    };
    let here = if path.is_empty() { "the file".to_string() } else { path.clone() };
    let dotted = |field: &str| if path.is_empty() { field.to_string() } else { format!("{path}.{field}") };
    let text = if let Some(rest) = message.strip_prefix("unknown field `") {
        let (field, known) = rest.split_once('`').unwrap_or((rest, ""));
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        let field: String = crate::output::shorten(field, 64);
        let meant = MEANT.iter().find(|(wrong, _)| field.eq_ignore_ascii_case(wrong)).map(|(_, key)| *key);
        let meant = meant.filter(|key| known.contains(key));
        let close = meant.or_else(|| known.iter().copied().find(|key| alike(key, &field)));
        let hint = close.map(|key| format!("did you mean {key}? ")).unwrap_or_default();
        format!("{} is no key: {hint}known are {}", dotted(&field), known.join(", "))
    } else if let Some(rest) = message.strip_prefix("duplicate field `") {
        format!("{} is given twice", dotted(rest.trim_end_matches('`')))
    } else if let Some(rest) =
        message.strip_prefix("invalid type: ").or(message.strip_prefix("invalid value: "))
    {
        let (found, expected) = rest.rsplit_once(", expected ").unwrap_or((rest, "another value"));
        let found = match found {
            "sequence" => "a list".into(),
            "map" => "a mapping".into(),
            "unit value" => "without a value".into(),
            "enum" => "a tagged value".into(),
            found => match found.split_once(' ') {
                Some(("string", text)) => format!("the text {text}"),
                Some(("boolean", value)) => value.replace('`', ""),
                _ => format!("the number {}", found.rsplit(' ').next().unwrap_or(found).replace('`', "")),
            },
        };
        let expected = match expected {
            "a string" => "a text",
            "a sequence" => "a list",
            mapping if mapping.starts_with("struct ") => "a mapping",
            expected => expected,
        };
        format!("{here} is {}: expected {expected}", crate::output::shorten(&found, 72))
    } else if message.contains("more than one document") {
        "the file has several documents: expected one, a job a file".into()
    } else if path.is_empty() {
        format!("the file is not the YAML that it should be: {message}")
    } else if message.starts_with("is ") || message.starts_with("has ") {
        format!("{path} {message}")
    } else {
        format!("{path}: {message}")
    };
    FileError { line, text: crate::output::printable(&text) }
}

/// What keys are called elsewhere.
const MEANT: [(&str, &str); 21] = [
    ("gpus", "devices"),
    ("gpu", "devices"),
    ("accelerators", "devices"),
    ("model", "class"),
    ("type", "class"),
    ("cpu", "cpus"),
    ("cores", "cpus"),
    ("mem", "memory"),
    ("timeout", "time_limit"),
    ("time", "time_limit"),
    ("depends_on", "after"),
    ("environment", "env"),
    ("workdir", "working_dir"),
    ("nodes", "ranks"),
    ("replicas", "ranks"),
    ("lr", "learning_rate"),
    ("anti_affinity", "apart"),
    ("nvlink", "island"),
    ("container", "image"),
    ("volumes", "mounts"),
    ("binds", "mounts"),
];

fn is_path(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.[]?\\".contains(c);
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(allowed)
}

/// Whether a key may have been meant by another: the same but for case and hyphens, or one edit away.
fn alike(key: &str, given: &str) -> bool {
    let given: Vec<char> = given.to_lowercase().replace('-', "_").chars().collect();
    let key: Vec<char> = key.chars().collect();
    let same = key.iter().zip(&given).take_while(|(a, b)| a == b).count();
    let (key, given) = (&key[same..], &given[same..]);
    let tail = |slice: &[char]| slice.get(1..).unwrap_or_default().to_vec();
    tail(key) == tail(given) || tail(key) == given || key == tail(given)
}

impl<'de> Deserialize<'de> for Devices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Devices, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Map {
            count: Option<Given<Whole<1, 4096>>>,
            class: Option<String>,
            vendor: Option<Given<Maker>>,
            memory: Option<Given<Size>>,
            slice: Option<DevicePart>,
            island: Option<Given<Need>>,
            any_of: Option<Vec<Device>>,
        }
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Devices;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of devices, or a mapping like {count: 2, class: h200}")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Devices, E> {
                let expected = Whole::<0, 4096>::expected();
                let count = text.parse::<Whole<0, 4096>>();
                let count = count.map_err(|_| {
                    let shown = crate::output::shorten(&format!("{text:?}"), 66);
                    E::custom(format!("is {shown}: {expected}, or a mapping like {{count: 2, class: h200}}"))
                })?;
                Ok(Devices::count(count.0))
            }
            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Devices, E> {
                self.visit_str(&count.to_string())
            }
            fn visit_i64<E: de::Error>(self, count: i64) -> Result<Devices, E> {
                self.visit_str(&count.to_string())
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Devices, A::Error> {
                let Map { count, class, vendor, memory, slice, island, any_of } =
                    Map::deserialize(MapAccessDeserializer::new(map))?;
                let one = Device { count, class, vendor, memory, slice, island };
                match any_of {
                    None => Ok(Devices { any_of: vec![one] }),
                    Some(_) if one != Device::default() => Err(de::Error::custom(
                        "has any_of beside other keys: put those into its alternatives",
                    )),
                    Some(any_of) if any_of.is_empty() || 16 < any_of.len() => {
                        let number = any_of.len();
                        Err(de::Error::custom(format!(
                            "has {number} alternatives in any_of: expected 1 to 16"
                        )))
                    }
                    Some(any_of) => Ok(Devices { any_of }),
                }
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl Devices {
    /// So many devices of any class.
    pub fn count(count: i64) -> Devices {
        let device = || Device { count: Some(Given(Whole(count))), ..Device::default() };
        Devices { any_of: if count == 0 { Vec::new() } else { vec![device()] } }
    }
}

impl Serialize for Devices {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.any_of[..] {
            [] => serializer.serialize_u64(0),
            [one] => one.serialize(serializer),
            all => serializer.collect_map([("any_of", all)]),
        }
    }
}
