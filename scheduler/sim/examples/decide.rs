//! The rounds of the core for another simulator: a round a paragraph on standard input, a line on standard output.
//!
//! ```text
//! classes DEVICES ...
//! job WAITED_MS RESTART_MS CURRENT_MODE_OR_- [CLASS:DEVICES:LEFT_MS ...]
//! plan
//! ```
//!
//! The answer has for every job, in their order, the index of its mode, or `-`.

use std::io::BufRead;

use aquifer_core::rounds::{Class, Goal, Job, Mode, plan};

fn main() {
    let (mut classes, mut jobs) = (Vec::new(), Vec::new());
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("text");
        let mut words = line.split_whitespace();
        match words.next() {
            Some("classes") => {
                classes = words.map(|word| Class { devices: number(word) as u32 }).collect();
                jobs.clear();
            }
            Some("job") => jobs.push(job(jobs.len() as u64, &words.collect::<Vec<_>>())),
            Some("plan") => {
                let chosen = plan(&classes, &jobs, Goal::Stream);
                let words = chosen.iter().map(|mode| mode.map_or("-".to_string(), |mode| mode.to_string()));
                println!("{}", words.collect::<Vec<_>>().join(" "));
            }
            _ => panic!("neither classes, job nor plan: {line:?}"),
        }
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("not a whole number: {word:?}"))
}

fn job(id: u64, words: &[&str]) -> Job {
    let [waited, restart, current, modes @ ..] = words else { panic!("a job of {} words", words.len()) };
    let mode = |word: &&str| match word.split(':').map(number).collect::<Vec<_>>()[..] {
        [class, devices, left_ms] => Mode { class: class as usize, devices: devices as u32, left_ms },
        _ => panic!("not a mode: {word:?}"),
    };
    Job {
        id,
        modes: modes.iter().map(mode).collect(),
        weight_permille: 1000,
        waited_ms: number(waited),
        due_in_ms: None,
        current: (*current != "-").then(|| number(current) as usize),
        restart_ms: number(restart),
    }
}
