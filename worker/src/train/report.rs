//! What people and the agent are told of a training.

use super::StepReport;
use super::members::Membership;
use crate::args::TrainArgs;
use crate::checkpoint::{Place, Record, unix_ms};
use crate::contract::Contract;
use crate::data::Dataset;
use crate::kernels::Chosen;
use crate::status::{State, Status, StatusFile};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Name of the file beside the checkpoints that has a line for every step, a [`Point`] as JSON.
pub const CURVE: &str = "steps.jsonl";

/// `status.json`, the curve of the loss, and lines for people.
pub struct Report {
    file: StatusFile,
    status: Status,
    has_checkpoints: bool,
    /// Where the curve is to stand, and what has become of it.
    curve: Option<(PathBuf, Option<File>)>,
    /// Tokens of a step.
    step_tokens: u64,
    /// Tokens and files of the data.
    data: (usize, usize),
    /// Start of the stretch over which the speed is measured, and the steps done by then.
    since: (Instant, u64),
    /// It led when the last line was printed.
    led: bool,
    said: bool,
    /// Said of a training that goes on.
    doing: String,
}

/// A step of the curve.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Point {
    /// As [`StepReport`] has it.
    pub step: u64,
    /// Likewise.
    pub loss: f32,
    /// Likewise.
    pub gradient_norm: f32,
    /// Likewise.
    pub learning_rate: f32,
    /// When it was done, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

impl Report {
    pub fn new(args: &TrainArgs, contract: &Contract) -> Report {
        let mut report = Report {
            file: StatusFile::new(contract.run_dir.as_deref()),
            status: Status {
                total_steps: Some(args.steps),
                message: "reading data".into(),
                ..Status::default()
            },
            has_checkpoints: args.checkpoint_dir.is_some(),
            curve: match args.place() {
                Ok(Some(Place::Directory(directory))) => Some((directory.join(CURVE), None)),
                _ => None,
            },
            step_tokens: super::settings(args).step_tokens(),
            data: (0, 0),
            since: (Instant::now(), 0),
            led: false,
            said: false,
            doing: String::new(),
        };
        report.file.update(&report.status);
        report
    }

    pub fn learns(&mut self, data: &Dataset) {
        self.data = (data.len(), data.files);
    }

    /// A card is named in the status, too.
    pub fn computes_on(&mut self, chosen: &Chosen, threads: usize) {
        self.line(&chosen.describe(threads));
        self.doing = chosen.name().map_or("training".into(), |card| format!("training on {card}"));
    }

    pub fn waiting(&mut self, membership: &Membership) {
        let (rank, all) = (membership.rank(), membership.members().len());
        self.status.message = format!("rank {rank} of {all} waits for the group");
        self.file.update(&self.status);
    }

    /// It waits for something that may take long.
    pub fn waits(&mut self, sentence: &str) {
        self.status.message = sentence.into();
        // Nothing may change for long.
        self.file.flush(&self.status);
        self.line(sentence);
    }

    /// A state is there: loaded, or from another member.
    pub fn begin(&mut self, record: &Record, parameters: usize, leads: bool) {
        if leads && !self.said {
            self.said = true;
            let from = if record.step == 0 { String::new() } else { format!(", from step {}", record.step) };
            let place = if self.has_checkpoints { "" } else { ", no checkpoints" };
            let (tokens, files) = self.data;
            self.line(&format!(
                "training {} parameters on {} tokens of {files} files{from}{place}",
                grouped(parameters as u64),
                grouped(tokens as u64),
            ));
            if self.status.total_steps.is_some_and(|total| total <= record.step) {
                self.line(&format!("all {} steps are done already", record.settings.steps));
            }
        }
        self.since = (Instant::now(), record.step);
        self.status.state = State::Running;
        self.status.ready = true;
        self.status.message = self.doing.clone();
        self.status.step = Some(record.step);
        self.file.update(&self.status);
    }

    /// A line about once a second, after the first step and after the last one, from whoever leads.
    pub fn step(&mut self, step: &StepReport, leads: bool, saved: Option<u64>) {
        self.status.loss = Some((f64::from(step.loss) * 1e6).round() / 1e6);
        let (elapsed, total) = (self.since.0.elapsed(), self.status.total_steps.unwrap_or(0));
        let first = self.status.tokens_per_s.is_none();
        if leads && !self.led && !first {
            self.line(&format!("leads from step {} on", step.step));
        }
        self.led = leads;
        if leads {
            self.draw(step);
        }
        if first || step.step == total || Duration::from_secs(1) <= elapsed {
            let tokens = step.step.saturating_sub(self.since.1) * self.step_tokens;
            let speed = tokens as f64 / elapsed.as_secs_f64().max(1e-9);
            self.since = (Instant::now(), step.step);
            self.status.tokens_per_s = Some(speed.round());
            if leads {
                self.line(&format!(
                    "step {}/{total}  loss {:.3}  {} tokens/s  lr {:.1e}",
                    step.step,
                    step.loss,
                    grouped(speed as u64),
                    step.learning_rate,
                ));
            }
        }
        self.status.step = Some(step.step);
        self.status.spent = Some(step.spent);
        self.status.checkpoint_step = saved;
        self.file.update(&self.status);
    }

    /// Adds a step to the curve. Where that cannot be written the training goes on without it.
    fn draw(&mut self, step: &StepReport) {
        let &StepReport { step, loss, gradient_norm, learning_rate, .. } = step;
        let Some((path, file)) = &mut self.curve else { return };
        let point = Point { step, loss, gradient_norm, learning_rate, at_ms: unix_ms() };
        let line = serde_json::to_string(&point).expect("plain fields") + "\n";
        let written = match file {
            Some(file) => file.write_all(line.as_bytes()),
            None => OpenOptions::new().create(true).append(true).open(&*path).and_then(|mut opened| {
                opened.write_all(line.as_bytes())?;
                *file = Some(opened);
                Ok(())
            }),
        };
        if let Err(error) = written {
            let path = path.display().to_string();
            self.curve = None;
            self.line(&format!("the curve of the loss ends at step {}: {path}: {error}", step - 1));
        }
    }

    /// The newest checkpoint may be another one by now.
    pub fn saved(&mut self, leads: bool, saved: Option<u64>) {
        if self.status.checkpoint_step != saved {
            self.status.checkpoint_step = saved;
            if let Some(step) = saved.filter(|_| leads && self.said) {
                self.line(&format!("checkpoint at step {step}"));
            }
            self.file.update(&self.status);
        }
    }

    pub fn stopping(&mut self) {
        self.status.state = State::Stopping;
        self.status.message = "ending".into();
        self.file.update(&self.status);
    }

    pub fn end(&mut self, step: u64, saved: Option<u64>) {
        let total = self.status.total_steps.unwrap_or(0);
        self.status.state = State::Stopping;
        self.status.message =
            format!("{} at step {step} of {total}", if step < total { "stopped" } else { "done" });
        self.status.step = Some(step);
        self.status.checkpoint_step = saved;
        // The last word is never left to the interval.
        self.file.flush(&self.status);
    }

    /// Prints a line for people; a closed output is no reason to end the training.
    pub fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}

/// `12345` as `12,345`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if 0 < index && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
