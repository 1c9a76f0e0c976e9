//! Values of a job file and of flags: each is read from text, and says what it should have looked like.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use aquifer_proto::border::{self, SERVE_PRECISIONS, TRAIN_PRECISIONS};
use aquifer_proto::core::{ArrayRange, JobId, Vendor};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

use crate::units;

/// A value that is written as text, in a file and behind a flag.
pub trait Scalar: FromStr<Err = String> + fmt::Display {
    /// What its text must look like: "expected …".
    fn expected() -> String;
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole<const MIN: i64, const MAX: i64>(pub i64);

/// Cores, in thousandths, at most 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus(pub u32);

/// A part of a device, in thousandths: `40%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub u32);

/// A size in bytes, at most 1 PiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A duration in milliseconds, at most so many days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<const MIN_MS: u64, const MAX_DAYS: u64>(pub u64);

/// A learning rate, above 0 and at most 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate(pub f32);

/// A number that starts a sequence of random ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

/// A job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job(pub JobId);

/// Indices of an array: `0-99`, `0-99:2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indices(pub ArrayRange);

/// The maker of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maker(pub Vendor);

/// What a training job computes in: a name of [`TRAIN_PRECISIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainPrecision(pub &'static str);

/// What a service keeps its weights in: a name of [`SERVE_PRECISIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServePrecision(pub &'static str);

/// A level of the pool's structure: `node`, or the key of a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level(pub aquifer_proto::core::Level);

impl<const MIN: i64, const MAX: i64> Scalar for Whole<MIN, MAX> {
    fn expected() -> String {
        let sign = if MIN < 0 { "-" } else { "" };
        let (low, high) = (units::group(MIN.unsigned_abs()), units::group(MAX.unsigned_abs()));
        format!("expected a whole number from {sign}{low} to {high}")
    }
}
impl<const MIN: i64, const MAX: i64> FromStr for Whole<MIN, MAX> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number| (MIN..=MAX).contains(number));
        number.map(Whole).ok_or_else(Self::expected)
    }
}

impl Scalar for Cpus {
    fn expected() -> String {
        "expected a number of cores from 0 to 10,000 with at most three decimals, like 4 or 1.5".into()
    }
}
impl FromStr for Cpus {
    type Err = String;
    fn from_str(text: &str) -> Result<Cpus, String> {
        let milli = units::parse_milli(text).ok().filter(|milli| *milli <= 10_000_000);
        milli.map(|milli| Cpus(milli as u32)).ok_or_else(Cpus::expected)
    }
}

impl Scalar for Percent {
    fn expected() -> String {
        "expected a percentage above 0% and at most 100% with at most one decimal, like 40% or 12.5%".into()
    }
}
impl FromStr for Percent {
    type Err = String;
    fn from_str(text: &str) -> Result<Percent, String> {
        let milli = text.strip_suffix('%').and_then(|number| units::parse_milli(number.trim_end()).ok());
        let milli = milli.filter(|milli| (1..=100_000).contains(milli) && milli % 100 == 0);
        milli.map(|milli| Percent(milli as u32 / 100)).ok_or_else(Percent::expected)
    }
}

impl Scalar for Size {
    fn expected() -> String {
        format!("{}, at most 1024TiB", units::A_SIZE)
    }
}
impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Size, String> {
        let bytes = units::parse_size(text).ok().filter(|bytes| *bytes <= 1 << 50);
        bytes.map(Size).ok_or_else(Size::expected)
    }
}

impl<const MIN_MS: u64, const MAX_DAYS: u64> Scalar for Span<MIN_MS, MAX_DAYS> {
    fn expected() -> String {
        let least = if MIN_MS == 0 { String::new() } else { format!(", at least {MIN_MS}ms") };
        format!("{}{least}, at most {MAX_DAYS}d", units::A_DURATION)
    }
}
impl<const MIN_MS: u64, const MAX_DAYS: u64> FromStr for Span<MIN_MS, MAX_DAYS> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let ms = units::parse_duration(text).ok();
        let ms = ms.filter(|ms| (MIN_MS..=MAX_DAYS * 86_400_000).contains(ms));
        ms.map(Span).ok_or_else(Self::expected)
    }
}

impl Scalar for Rate {
    fn expected() -> String {
        "expected a number above 0 and at most 1, like 0.003 or 3e-3".into()
    }
}
impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Rate, String> {
        let rate = text.parse().ok().filter(|rate| 0.0 < *rate && *rate <= 1.0);
        rate.map(Rate).ok_or_else(Rate::expected)
    }
}

impl Scalar for Seed {
    fn expected() -> String {
        "expected a whole number from 0 to 18,446,744,073,709,551,615".into()
    }
}
impl FromStr for Seed {
    type Err = String;
    fn from_str(text: &str) -> Result<Seed, String> {
        text.parse().map(Seed).map_err(|_| Seed::expected())
    }
}

impl Scalar for Job {
    fn expected() -> String {
        "expected a job, like job-7".into()
    }
}
impl FromStr for Job {
    type Err = String;
    fn from_str(text: &str) -> Result<Job, String> {
        text.parse().map(Job).map_err(|_| Job::expected())
    }
}

impl Scalar for Indices {
    fn expected() -> String {
        "expected FIRST-LAST or FIRST-LAST:STEP with at most 100,000 indices, like 0-99 or 0-99:2".into()
    }
}
impl FromStr for Indices {
    type Err = String;
    fn from_str(text: &str) -> Result<Indices, String> {
        let number = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
            true => digits.parse::<u32>().ok(),
            false => None,
        };
        let read = || {
            let (first, rest) = text.split_once('-')?;
            let (last, step) = rest.split_once(':').unwrap_or((rest, "1"));
            let range = ArrayRange { first: number(first)?, last: number(last)?, step: number(step)? };
            (1..=aquifer_proto::core::MAX_ARRAY).contains(&range.count()).then_some(Indices(range))
        };
        read().ok_or_else(Indices::expected)
    }
}

impl Scalar for Maker {
    fn expected() -> String {
        let names: Vec<&str> = Vendor::ALL.iter().map(|(_, name)| *name).collect();
        format!("expected one of {}", names.join(", "))
    }
}
impl FromStr for Maker {
    type Err = String;
    fn from_str(text: &str) -> Result<Maker, String> {
        text.parse().map(Maker).map_err(|_| Maker::expected())
    }
}

macro_rules! precision {
    ($name:ident, $known:ident) => {
        impl Default for $name {
            fn default() -> $name {
                $name($known[0])
            }
        }
        impl Scalar for $name {
            fn expected() -> String {
                format!("expected one of {}", $known.join(", "))
            }
        }
        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<$name, String> {
                $known.iter().find(|name| **name == text).copied().map($name).ok_or_else($name::expected)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.0)
            }
        }
    };
}
precision!(TrainPrecision, TRAIN_PRECISIONS);
precision!(ServePrecision, SERVE_PRECISIONS);

impl Scalar for Level {
    fn expected() -> String {
        "expected node, or the key of a label of nodes, like rack".into()
    }
}
impl FromStr for Level {
    type Err = String;
    fn from_str(text: &str) -> Result<Level, String> {
        border::level("", text).map(Level).map_err(|_| Level::expected())
    }
}

impl<const MIN: i64, const MAX: i64> fmt::Display for Whole<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", units::milli(u64::from(self.0) * 100))
    }
}
impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::milli(self.0.into()))
    }
}
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::exact_size(self.0))
    }
}
impl<const MIN_MS: u64, const MAX_DAYS: u64> fmt::Display for Span<MIN_MS, MAX_DAYS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::exact_duration(self.0))
    }
}
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Display for Indices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ArrayRange { first, last, step } = self.0;
        write!(f, "{first}-{last}")?;
        if step == 1 { Ok(()) } else { write!(f, ":{step}") }
    }
}
impl fmt::Display for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
/// A value of a job file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Given<T>(pub T);

impl<'de, T: Scalar> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Given<T>, D::Error> {
        struct Read<T>(std::marker::PhantomData<T>);
        impl<T: Scalar> Visitor<'_> for Read<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::expected().trim_start_matches("expected "))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
                read(text)
            }
        }
        deserializer.deserialize_str(Read(std::marker::PhantomData)).map(Given)
    }
}

fn read<T: Scalar, E: de::Error>(text: &str) -> Result<T, E> {
    text.parse().map_err(|expected| {
        let shown = crate::output::shorten(&format!("{text:?}"), 66);
        E::custom(format!("is {shown}: {expected}"))
    })
}

/// Numbers are written as such, everything else as text.
impl<T: Scalar> Serialize for Given<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.0.to_string();
        match (text.parse::<u64>(), text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(number), ..) => serializer.serialize_u64(number),
            (_, Ok(number), _) => serializer.serialize_i64(number),
            (.., Ok(number)) if number.to_string() == text => serializer.serialize_f64(number),
            _ => serializer.serialize_str(&text),
        }
    }
}

/// One value, or a list of them.
#[derive(Clone, Debug, PartialEq)]
pub struct List<T>(pub Vec<T>);

impl<'de, T: Scalar> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<List<T>, D::Error> {
        struct Read<T>(std::marker::PhantomData<T>);
        impl<'de, T: Scalar> Visitor<'de> for Read<T> {
            type Value = List<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list; in it, {}", T::expected().trim_start_matches("expected "))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<List<T>, E> {
                Ok(List(vec![read(text)?]))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<List<T>, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(Given(value)) = list.next_element()? {
                    all.push(value);
                }
                Ok(List(all))
            }
        }
        deserializer.deserialize_any(Read(std::marker::PhantomData))
    }
}

impl<T: Scalar> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ToString::to_string))
    }
}

/// A mapping of texts to texts, without repetitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pairs, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of names to texts, like {KEY: value}")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if pairs.contains_key(&key) {
                        return Err(de::Error::custom(format!("duplicate field `{key}`")));
                    }
                    if key.is_empty() || key.contains(['=', '\0']) {
                        return Err(de::Error::custom(format!(
                            "has the key {key:?}: expected a name without '='"
                        )));
                    }
                    pairs.insert(key, map.next_value::<String>()?);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

impl Serialize for Pairs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(&self.0)
    }
}

/// A program with its arguments, or a line for the shell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Command {
    /// Run through `sh -c`.
    Shell(String),
    /// Program and arguments.
    Arguments(Vec<String>),
}

impl Command {
    /// Program and arguments.
    pub fn arguments(&self) -> Vec<String> {
        match self {
            Command::Shell(line) => vec!["sh".into(), "-c".into(), line.clone()],
            Command::Arguments(arguments) => arguments.clone(),
        }
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Command, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Command;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a program with its arguments, like [python, train.py], or a line for the shell")
            }
            fn visit_str<E: de::Error>(self, line: &str) -> Result<Command, E> {
                match line.trim().is_empty() {
                    true => Err(E::custom("is empty: expected a program with its arguments")),
                    false => Ok(Command::Shell(line.into())),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Command, A::Error> {
                let mut arguments = Vec::new();
                while let Some(argument) = list.next_element::<String>()? {
                    arguments.push(argument);
                }
                match arguments.first().is_none_or(String::is_empty) {
                    true => Err(de::Error::custom("is empty: expected a program with its arguments")),
                    false => Ok(Command::Arguments(arguments)),
                }
            }
        }
        deserializer.deserialize_any(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquifer_worker::kernels::Precision;
    use clap::ValueEnum;

    /// The worker knows nothing of the rest of Aquifer, so its names are its own.
    #[test]
    fn every_precision_is_one_of_the_worker() {
        let worker: Vec<&str> =
            Precision::value_variants().iter().map(|precision| precision.name()).collect();
        assert_eq!(worker, SERVE_PRECISIONS);
        assert!(TRAIN_PRECISIONS.iter().all(|name| SERVE_PRECISIONS.contains(name)));
        assert_eq!("int8".parse::<TrainPrecision>().unwrap_err(), "expected one of f32, bf16");
        assert_eq!("int8".parse::<ServePrecision>().unwrap().to_string(), "int8");
    }
}
