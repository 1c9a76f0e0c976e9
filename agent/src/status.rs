//! What a worker says about itself.

use std::str::FromStr;

use aquifer_core::serving::Work;
use aquifer_core::{ReplicaLoad, Spent};
use serde_json::Value;

/// Longest text taken from a `status.json`, in characters.
pub(crate) const MAX_STATUS_TEXT: usize = 1024;

/// What a worker says about itself, in `status.json`. Every field is optional, unknown ones are ignored, and a field
/// of the wrong type counts as absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// What it is doing, in its own word: `loading`, `training`, `saving`, …
    pub state: Option<String>,
    /// Whether it has begun its work, or can answer requests.
    pub ready: Option<bool>,
    /// Optimizer steps done.
    pub step: Option<u64>,
    /// Optimizer steps in all.
    pub total_steps: Option<u64>,
    /// Training loss of the last step.
    pub loss: Option<f64>,
    /// Speed of this rank.
    pub tokens_per_s: Option<f64>,
    /// Step of the last complete checkpoint.
    pub checkpoint_step: Option<u64>,
    /// Of a training: where its time has gone.
    pub spent: Option<Spent>,
    /// Where it can be reached: `10.0.0.3:20001`.
    pub endpoint: Option<String>,
    /// Of a replica of a service: what it has to do.
    pub load: Option<ReplicaLoad>,
    /// Anything for people.
    pub message: Option<String>,
}

/// Where the time of a training has gone; what is not said is nothing.
fn spent(value: &Value) -> Option<Spent> {
    let us = |key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
    value.is_object().then(|| Spent {
        steps_us: us("steps_us"),
        start_us: us("start_us"),
        recovery_us: us("recovery_us"),
        slow_us: us("slow_us"),
        lost_us: us("lost_us"),
        work_us: us("work_us"),
    })
}

/// What a replica has done; what is not said is nothing.
fn work(value: &Value) -> Work {
    let count = |key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
    Work {
        requests: count("requests"),
        prompt_tokens: count("prompt_tokens"),
        prompt_us: count("prompt_us"),
        said_tokens: count("said_tokens"),
        steps: count("steps"),
        steps_us: count("steps_us"),
    }
}

/// Text that is no status: not JSON, or no JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoStatus;

impl TryFrom<&[u8]> for Status {
    type Error = NoStatus;
    fn try_from(bytes: &[u8]) -> Result<Status, NoStatus> {
        let value: Value = serde_json::from_slice(bytes).map_err(|_| NoStatus)?;
        let object = value.as_object().ok_or(NoStatus)?;
        let text = |key: &str| {
            object.get(key)?.as_str().map(|text| text.chars().take(MAX_STATUS_TEXT).collect::<String>())
        };
        let count = |key: &str| object.get(key)?.as_u64();
        let number = |key: &str| object.get(key)?.as_f64();
        let few = |key: &str| count(key).map(|count| count.min(u32::MAX.into()) as u32);
        let load = few("running").map(|running| ReplicaLoad {
            running,
            waiting: few("waiting").unwrap_or(0),
            ttft_ms: count("ttft_ms"),
            tpot_ms: count("tpot_ms"),
            idle_ms: count("idle_s").map(|s| s.saturating_mul(1000)),
            work: object.get("work").map(work).unwrap_or_default(),
        });
        let spent = object.get("spent").and_then(spent);
        Ok(Status {
            load,
            spent,
            state: text("state"),
            ready: object.get("ready").and_then(|ready| ready.as_bool()),
            step: count("step"),
            total_steps: count("total_steps"),
            loss: number("loss"),
            tokens_per_s: number("tokens_per_s"),
            checkpoint_step: count("checkpoint_step"),
            endpoint: text("endpoint"),
            message: text("message"),
        })
    }
}

impl FromStr for Status {
    type Err = NoStatus;
    fn from_str(text: &str) -> Result<Status, NoStatus> {
        text.as_bytes().try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_keeps_what_it_understands() {
        let full = r#"{"state":"training","ready":true,"step":12,"total_steps":100,"loss":2.5,"tokens_per_s":1e4,
            "checkpoint_step":10,"endpoint":"10.0.0.3:20001","message":"well","running":3,"ttft_ms":40,"idle_s":2,"work":{"requests":5,"prompt_us":-1},"spent":{"steps_us":7,"lost_us":9},"unknown":{"a":[1]}}"#;
        let status: Status = full.parse().unwrap();
        let expected = Status {
            state: Some("training".to_string()),
            ready: Some(true),
            step: Some(12),
            total_steps: Some(100),
            loss: Some(2.5),
            tokens_per_s: Some(10_000.0),
            checkpoint_step: Some(10),
            spent: Some(Spent { steps_us: 7, lost_us: 9, ..Spent::default() }),
            endpoint: Some("10.0.0.3:20001".to_string()),
            load: Some(ReplicaLoad {
                running: 3,
                ttft_ms: Some(40),
                idle_ms: Some(2_000),
                work: Work { requests: 5, ..Work::default() },
                ..ReplicaLoad::default()
            }),
            message: Some("well".to_string()),
        };
        assert_eq!(status, expected);
        let odd: Status =
            r#"{"state":7,"ready":"yes","step":-1,"loss":null,"message":"kept"}"#.parse().unwrap();
        assert_eq!(odd, Status { message: Some("kept".to_string()), ..Status::default() });
        assert_eq!("{}".parse(), Ok(Status::default()));
    }

    #[test]
    fn rubbish_is_no_status() {
        for rubbish in ["", "[]", "7", "null", "{\"step\":", "\u{0}", "{\"a\":1}{"] {
            assert_eq!(rubbish.parse::<Status>(), Err(NoStatus), "{rubbish:?}");
        }
        assert_eq!(Status::try_from(&[0xff, 0xfe][..]), Err(NoStatus));
        let nested = "[".repeat(100_000);
        assert_eq!(nested.parse::<Status>(), Err(NoStatus));
    }
}
