//! Values that are one of a few words.

use std::fmt;
use std::str::FromStr;

use aquifer_proto::core;

use super::Scalar;

/// How much something is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Need {
    Require,
    Prefer,
}

/// What is started anew when a worker fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart(pub core::Restart);

/// What workers do when the lease of their node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnPartition(pub core::OnPartition);

/// What a job's workers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Command,
    Train,
    Serve,
}

/// Makes a [`Scalar`] of a type whose values each have their word.
macro_rules! words {
    ($type:ident: $($word:literal => $value:expr),+) => {
        impl Scalar for $type {
            fn expected() -> String {
                let words = [$($word),+];
                let (last, others) = words.split_last().expect("there are words");
                format!("expected {} or {last}", others.join(", "))
            }
        }
        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<$type, String> {
                match text {
                    $($word => Ok($value),)+
                    _ => Err($type::expected()),
                }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut words = [$(($word, $value)),+].into_iter();
                f.write_str(words.find(|(_, value)| value == self).expect("all values have words").0)
            }
        }
    };
}

words!(Need: "require" => Need::Require, "prefer" => Need::Prefer);
words!(Restart: "gang" => Restart(core::Restart::Gang), "rank" => Restart(core::Restart::Rank));
words!(OnPartition:
    "stop" => OnPartition(core::OnPartition::Stop),
    "keep" => OnPartition(core::OnPartition::Keep)
);
words!(Kind: "train" => Kind::Train, "serve" => Kind::Serve, "command" => Kind::Command);
