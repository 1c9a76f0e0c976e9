//! Rounds of fixed length, as Gavel's simulator counts them.

use super::trace::Job;

/// What runs in a round: a job, by its place in the trace, and the class it gets its devices from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index into the trace.
    pub job: usize,
    /// Index into the classes.
    pub class: usize,
}

/// A job that has arrived and not finished.
#[derive(Clone, Debug)]
pub struct Active {
    /// Index into the trace.
    pub job: usize,
    /// Steps that are left, at least 1.
    pub steps_left: u64,
    /// The class it ran on in the last round.
    pub class: Option<usize>,
    /// Seconds that it ran in the last round.
    pub ran_s: f64,
    /// Seconds that it has run on each class.
    pub held_s: [f64; 3],
    /// Rounds in which it began to run, or ran on another class than before.
    pub starts: u32,
}

/// What a policy sees at the beginning of a round.
pub struct View<'a> {
    /// Seconds from the start of the trace.
    pub now_s: f64,
    /// Devices of each class.
    pub devices: [u32; 3],
    /// The whole trace; an online policy looks at those in `active` alone.
    pub trace: &'a [Job],
    /// Jobs that are there, by index.
    pub active: &'a [Active],
    /// Nothing ran in the last round and nobody will arrive any more.
    pub stuck: bool,
}

/// Decides what runs in the next round.
pub trait Policy {
    /// Jobs to run, each on one class; together they fit.
    fn round(&mut self, view: &View) -> Vec<Run>;
}

/// How the jobs of a trace fared.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Hours from arrival to end, by job.
    pub jct_h: Vec<f64>,
    /// Hours from the start of the trace to the last end.
    pub makespan_h: f64,
    /// Starts and moves of all jobs.
    pub starts: u32,
}

/// Runs a trace to its end.
///
/// In a round of `round_s` a job makes `floor(rate * round_s)` steps, or as many as are left; the round ends with
/// its last job. A job that starts or moves first loses `restart_s`; Gavel's simulator charges nothing.
///
/// # Panics
/// If a policy overbooks a class, runs a job twice or where it cannot run, or lets everything wait for ever.
pub fn simulate(
    trace: &[Job],
    devices: [u32; 3],
    round_s: f64,
    restart_s: f64,
    policy: &mut dyn Policy,
) -> Outcome {
    let mut outcome = Outcome { jct_h: vec![f64::NAN; trace.len()], ..Outcome::default() };
    let mut active: Vec<Active> = Vec::new();
    let (mut now_s, mut arrived, mut ran, mut idle_rounds) = (0.0f64, 0, false, 0);
    while arrived < trace.len() || !active.is_empty() {
        if !ran && arrived < trace.len() {
            now_s = now_s.max(trace[arrived].arrival_s);
        }
        while arrived < trace.len() && trace[arrived].arrival_s <= now_s {
            let steps_left = trace[arrived].steps;
            active.push(Active {
                job: arrived,
                steps_left,
                class: None,
                ran_s: 0.0,
                held_s: [0.0; 3],
                starts: 0,
            });
            arrived += 1;
        }
        let stuck = !ran && arrived == trace.len();
        let runs = policy.round(&View { now_s, devices, trace, active: &active, stuck });
        check(&runs, trace, devices, &active);
        idle_rounds = if runs.is_empty() { idle_rounds + 1 } else { 0 };
        assert!(
            idle_rounds < 3 || arrived < trace.len(),
            "nothing runs at {now_s} s, and {} wait",
            active.len()
        );
        ran = !runs.is_empty();
        let mut end_s = now_s;
        for at in &mut active {
            let class = runs.iter().find(|run| run.job == at.job).map(|run| run.class);
            let starts = class.is_some() && class != at.class;
            at.class = class;
            at.ran_s = 0.0;
            let Some(class) = class else { continue };
            let rate = trace[at.job].rates[class];
            let lost_s = if starts { restart_s } else { 0.0 };
            let steps = at.steps_left.min((rate * (round_s - lost_s)) as u64);
            at.ran_s = lost_s + steps as f64 / rate;
            at.steps_left -= steps;
            at.held_s[class] += at.ran_s;
            at.starts += u32::from(starts);
            outcome.starts += u32::from(starts);
            end_s = end_s.max(now_s + at.ran_s);
            if at.steps_left == 0 {
                let end_s = now_s + at.ran_s;
                outcome.jct_h[at.job] = (end_s - trace[at.job].arrival_s) / 3600.0;
                outcome.makespan_h = outcome.makespan_h.max(end_s / 3600.0);
            }
        }
        active.retain(|at| 0 < at.steps_left);
        now_s = end_s;
    }
    outcome
}

/// Gangs are whole, on one class where they run, once, and fit.
fn check(runs: &[Run], trace: &[Job], devices: [u32; 3], active: &[Active]) {
    let mut used = [0; 3];
    for (index, run) in runs.iter().enumerate() {
        assert!(active.iter().any(|at| at.job == run.job), "{run:?} is not there");
        assert!(runs[..index].iter().all(|other| other.job != run.job), "{run:?} runs twice");
        assert!(0.0 < trace[run.job].rates[run.class], "{run:?} cannot run there");
        used[run.class] += trace[run.job].devices;
    }
    assert!((0..3).all(|class| used[class] <= devices[class]), "{used:?} of {devices:?} devices are used");
}
