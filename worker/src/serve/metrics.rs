//! What a server counts and measures, as Prometheus reads it and as an autoscaler needs it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Measurements that quantiles are taken of are at most so old.
const WINDOW: Duration = Duration::from_secs(60);

/// The most measurements that quantiles are taken of.
const MOST: usize = 4096;

/// Upper bounds of the times to the first token, in seconds.
const FIRST: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Upper bounds of the times from one token to the next, in seconds.
const NEXT: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5];

/// Measurements by size since the start, and the latest ones.
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is larger.
    counts: Vec<u64>,
    sum: f64,
    latest: VecDeque<(Instant, f64)>,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0, latest: VecDeque::new() }
    }

    /// Adds a measurement, in seconds.
    pub fn observe(&mut self, value: f64) {
        self.counts[self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len())] += 1;
        self.sum += value;
        if self.latest.len() == MOST {
            self.latest.pop_front();
        }
        self.latest.push_back((Instant::now(), value));
    }

    /// What the share `q` of the measurements of the last minute did not exceed, in milliseconds; none without any.
    pub fn quantile_ms(&self, q: f64) -> Option<u64> {
        let recent = self.latest.iter().filter(|(at, _)| at.elapsed() <= WINDOW);
        let mut values: Vec<f64> = recent.map(|(_, value)| *value).collect();
        quantile(&mut values, q).map(|value| (value * 1e3).ceil() as u64)
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        head(text, name, "histogram", help);
        let mut count = 0;
        for (bound, more) in self.bounds.iter().zip(&self.counts) {
            count += more;
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let count: u64 = self.counts.iter().sum();
        let _ = writeln!(
            text,
            "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {}\n{name}_count {count}",
            self.sum
        );
    }
}

/// What the share `q` of the values does not exceed, one of them; none without any. Sorts them.
pub fn quantile(values: &mut [f64], q: f64) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let rank = (q * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied()
}

/// What it has done since its start, as a scheduler compares it with what others do on other devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Work {
    /// Requests of which the first token was said.
    pub requests: u64,
    /// Tokens of prompts that were computed.
    pub prompt_tokens: u64,
    /// Time that went into these, in microseconds.
    pub prompt_us: u64,
    /// Tokens that were said.
    pub said_tokens: u64,
    /// Passes that said tokens and computed nothing of a prompt.
    pub steps: u64,
    /// Time that went into these, in microseconds.
    pub steps_us: u64,
}

impl Work {
    /// Adds a pass. Of one that computed prompts while others said tokens, a step's time is not theirs.
    ///
    /// * `prompt_tokens`: of prompts.
    /// * `saying`: requests that were behind their prompts when it began.
    pub fn add_pass(&mut self, took: Duration, prompt_tokens: u64, saying: u64) {
        let took_us = took.as_micros() as u64;
        if prompt_tokens == 0 {
            (self.steps, self.steps_us) = (self.steps + 1, self.steps_us + took_us);
        } else {
            let step_us = self.steps_us.checked_div(self.steps).unwrap_or(0);
            let beside_us = if saying == 0 { 0 } else { step_us };
            self.prompt_us += took_us.saturating_sub(beside_us);
            self.prompt_tokens += prompt_tokens;
        }
    }
}

/// All of it.
pub struct Metrics {
    /// What it has done.
    pub work: Work,
    /// From a request's arrival to its first token.
    pub first_token: Histogram,
    /// From a token of a request to its next one.
    pub next_token: Histogram,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Those of them that were found in the cache.
    pub cached_tokens: u64,
    /// Tokens that were generated.
    pub said_tokens: u64,
    /// Tokens that went through the model.
    pub computed_tokens: u64,
    /// Times that a request gave its blocks up and was computed again.
    pub preemptions: u64,
    /// Requests that are running.
    pub running: usize,
    /// Blocks of the cache that are in use, and all of them.
    pub blocks: (usize, usize),
    /// Answers that ended, by how.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// When a request last came.
    pub last_request: Option<Instant>,
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new(blocks: usize) -> Metrics {
        let outcomes = ["stop", "length", "cancelled", "deadline", "grammar", "refused", "invalid"];
        Metrics {
            work: Work::default(),
            first_token: Histogram::new(FIRST),
            next_token: Histogram::new(NEXT),
            prompt_tokens: 0,
            cached_tokens: 0,
            said_tokens: 0,
            computed_tokens: 0,
            preemptions: 0,
            running: 0,
            blocks: (0, blocks),
            outcomes: outcomes.map(|outcome| (outcome, 0)).into(),
            last_request: None,
        }
    }

    /// One answer more that ended so.
    pub fn count(&mut self, outcome: &'static str) {
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    /// Prometheus' text. Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4.
    pub fn text(&self, waiting: usize) -> String {
        let mut text = String::new();
        let help = "From a request's arrival to its first token.";
        self.first_token.write(&mut text, "aquifer_time_to_first_token_seconds", help);
        let help = "From a token of a request to its next one.";
        self.next_token.write(&mut text, "aquifer_time_per_output_token_seconds", help);
        let gauges = [
            ("requests_running", self.running, "Requests that are running."),
            ("requests_waiting", waiting, "Requests that wait for their turn."),
            ("kv_blocks_used", self.blocks.0, "Blocks of keys and values that requests use."),
            ("kv_blocks_total", self.blocks.1, "Blocks of keys and values."),
        ];
        for (name, value, help) in gauges {
            plain(&mut text, name, "gauge", help, value as u64);
        }
        let counters = [
            ("prompt_tokens_total", self.prompt_tokens, "Tokens of prompts."),
            (
                "prefix_hit_tokens_total",
                self.cached_tokens,
                "Tokens of prompts that were found in the cache.",
            ),
            ("generated_tokens_total", self.said_tokens, "Tokens that were generated."),
            ("computed_tokens_total", self.computed_tokens, "Tokens that went through the model."),
            ("preemptions_total", self.preemptions, "Times that a request gave its blocks up."),
        ];
        for (name, value, help) in counters {
            plain(&mut text, name, "counter", help, value);
        }
        head(&mut text, "aquifer_requests_total", "counter", "Answers that ended, by how.");
        for (outcome, count) in &self.outcomes {
            let _ = writeln!(text, "aquifer_requests_total{{outcome=\"{outcome}\"}} {count}");
        }
        text
    }
}

fn plain(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    let name = format!("aquifer_{name}");
    head(text, &name, kind, help);
    let _ = writeln!(text, "{name} {value}");
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_with_prompts_is_theirs_but_for_a_step_of_those_that_say_tokens() {
        let (mut work, ms) = (Work::default(), Duration::from_millis);
        work.add_pass(ms(30), 256, 0);
        work.add_pass(ms(10), 0, 4);
        work.add_pass(ms(12), 0, 4);
        work.add_pass(ms(41), 256, 4);
        work.add_pass(ms(5), 8, 4);
        let expected =
            Work { prompt_tokens: 520, prompt_us: 60_000, steps: 2, steps_us: 22_000, ..Work::default() };
        assert_eq!(work, expected);
    }

    #[test]
    fn buckets_add_up_and_quantiles_are_measurements() {
        let mut metrics = Metrics::new(8);
        assert_eq!(metrics.first_token.quantile_ms(0.5), None);
        for ms in 1..=10 {
            metrics.first_token.observe(f64::from(ms) / 1e3);
        }
        metrics.first_token.observe(1e9);
        let quantile = |q| metrics.first_token.quantile_ms(q).unwrap();
        assert_eq!((quantile(0.0), quantile(0.5), quantile(0.9)), (1, 6, 10));
        let text = metrics.text(3);
        for line in [
            "aquifer_time_to_first_token_seconds_bucket{le=\"0.005\"} 5",
            "aquifer_time_to_first_token_seconds_bucket{le=\"0.01\"} 10",
            "aquifer_time_to_first_token_seconds_bucket{le=\"60\"} 10",
            "aquifer_time_to_first_token_seconds_bucket{le=\"+Inf\"} 11",
            "aquifer_time_to_first_token_seconds_count 11",
            "aquifer_requests_waiting 3",
            "aquifer_kv_blocks_total 8",
            "aquifer_requests_total{outcome=\"stop\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
