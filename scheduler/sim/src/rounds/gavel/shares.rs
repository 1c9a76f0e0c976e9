//! Gavel's policies: shares of time on each class from a linear program, and rounds that follow them.
//!
//! Source: the paper's sections 4 (policies) and 5 (rounds), and its simulator's rules of accounting: shares are
//! computed anew when jobs came or went, at most every 1,920 s, and a job that came in between waits until then.

use std::collections::BTreeMap;

use microlp::{ComparisonOp, OptimizationDirection, Problem, Variable};

use super::sim::{Policy, Run, View};
use crate::Rng;

/// What the shares maximise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Equal parts of every class for every job.
    Isolated,
    /// The least share of time, whatever the class is worth (least attained service).
    LeastShare,
    /// The least normalised throughput.
    LeastThroughput,
    /// The same, then the next to least, and so on.
    WaterFilling,
    /// The worst finish time against that under equal parts.
    FinishTime,
    /// The makespan.
    Makespan,
    /// The sum of throughputs, each against the fastest class.
    SumThroughput,
    /// First come, first served, each on its fastest class with room.
    Fifo,
}

/// A policy of shares.
pub struct Shares {
    objective: Objective,
    shuffle: Option<Rng>,
    round_s: f64,
    /// Share of time by job and class; absent: not counted on yet.
    share: BTreeMap<usize, [f64; 3]>,
    deficit: BTreeMap<usize, [f64; 3]>,
    held_s: BTreeMap<usize, [f64; 3]>,
    class_s: [f64; 3],
    reset_s: f64,
    stale: bool,
    /// Seconds under equal parts for the work done so far, and the state at the last look (finish time fairness).
    isolated_s: BTreeMap<usize, (f64, u64, f64)>,
}

/// Least seconds between two computations of the shares.
const RESET_S: f64 = 1920.0;

impl Shares {
    /// A policy for rounds of `round_s`; `seed` orders the classes where the original shuffles them.
    pub fn new(objective: Objective, round_s: f64, seed: u64) -> Shares {
        let blind = matches!(objective, Objective::Isolated | Objective::LeastShare);
        Shares {
            objective,
            shuffle: blind.then_some(Rng(seed)),
            round_s,
            share: BTreeMap::new(),
            deficit: BTreeMap::new(),
            held_s: BTreeMap::new(),
            class_s: [0.0; 3],
            reset_s: 0.0,
            stale: false,
            isolated_s: BTreeMap::new(),
        }
    }

    /// Takes in what the last round brought.
    fn account(&mut self, view: &View) {
        let start = [self.round_s / 2.0; 3];
        for at in view.active {
            self.stale |= !self.held_s.contains_key(&at.job);
            let held = self.held_s.entry(at.job).or_insert(start);
            if let Some(class) = at.class {
                held[class] += at.ran_s;
                self.class_s[class] += at.ran_s;
            }
        }
        let there = |job: &usize| view.active.iter().any(|at| at.job == *job);
        let before = self.held_s.len();
        // The class's time of a job that finished is lost here by one round at most.
        self.held_s.retain(|job, _| there(job));
        self.deficit.retain(|job, _| there(job));
        self.stale |= self.held_s.len() < before;
    }

    fn reset(&mut self, view: &View) {
        let elapsed_s = view.now_s - self.reset_s;
        self.class_s = [0.0; 3];
        for (job, held) in &mut self.held_s {
            let share = self.share.get(job).copied().unwrap_or_default();
            let deficit = self.deficit.entry(*job).or_default();
            for class in 0..3 {
                deficit[class] += share[class] * elapsed_s - (held[class] - self.round_s / 2.0);
                held[class] = self.round_s / 2.0;
                self.class_s[class] += held[class];
            }
        }
        self.reset_s = view.now_s;
        self.share = self.compute(view);
        self.stale = false;
    }

    fn compute(&mut self, view: &View) -> BTreeMap<usize, [f64; 3]> {
        let program = Program::of(view);
        let rows = program.jobs.len();
        let shares = match self.objective {
            Objective::Isolated => (0..rows).map(|row| program.isolated(row)).collect(),
            Objective::LeastShare => program.least(&vec![[1.0; 3]; rows], &[]),
            Objective::LeastThroughput => program.least(&program.normalised(), &[]),
            Objective::WaterFilling => program.water_filling(),
            Objective::FinishTime => self.finish_time(view, &program),
            Objective::Makespan => {
                let per_left = |job: &Row| job.rates.map(|rate| rate / job.steps_left);
                program.least(&program.jobs.iter().map(per_left).collect::<Vec<_>>(), &[])
            }
            Objective::SumThroughput => program.sum(),
            Objective::Fifo => program.fifo(),
        };
        program.jobs.iter().map(|job| job.index).zip(shares).collect()
    }

    fn finish_time(&mut self, view: &View, program: &Program) -> Vec<[f64; 3]> {
        let mut wants = Vec::new();
        for (row, job) in program.jobs.iter().enumerate() {
            let rate = dot(job.rates, program.isolated(row));
            let left = job.steps_left as u64;
            let entry = self.isolated_s.entry(job.index).or_insert((0.0, left, rate));
            entry.0 += (entry.1 - left) as f64 / entry.2;
            (entry.1, entry.2) = (left, rate);
            wants.push((view.now_s - view.trace[job.index].arrival_s, entry.0 + job.steps_left / rate));
        }
        let (mut low, mut high, mut best) = (0.0, 64.0, vec![[0.0; 3]; program.jobs.len()]);
        while 1e-3 < high - low {
            let rho = (low + high) / 2.0;
            let need = |(job, want): (&Row, &(f64, f64))| job.steps_left / (rho * want.1 - want.0);
            let needs: Vec<f64> = program.jobs.iter().zip(&wants).map(need).collect();
            let met = if needs.iter().all(|need| 0.0 < *need) { program.meeting(&needs) } else { None };
            match met {
                Some(shares) => (high, best) = (rho, shares),
                None => low = rho,
            }
        }
        best
    }
}

impl Policy for Shares {
    fn round(&mut self, view: &View) -> Vec<Run> {
        self.account(view);
        let due = RESET_S <= view.now_s - self.reset_s || self.reset_s == 0.0 || view.stuck;
        if self.stale && due {
            self.reset(view);
        }
        let mut classes = [0, 1, 2];
        if let Some(rng) = &mut self.shuffle {
            (1..3).rev().for_each(|last| classes.swap(last, rng.below(last as u64 + 1) as usize));
        }
        let (mut free, mut runs) = (view.devices, Vec::new());
        let mut taken = Vec::new();
        for class in classes {
            let mut line: Vec<_> =
                view.active.iter().map(|at| (self.rank(view, at.job, class), at.job)).collect();
            line.sort_by(|a, b| b.0.partial_cmp(&a.0).expect("numbers"));
            for ((priority, ..), job) in line {
                let devices = view.trace[job].devices;
                let idle = self.objective == Objective::Fifo && priority <= 0.0;
                if view.trace[job].rates[class] <= 0.0
                    || free[class] < devices
                    || taken.contains(&job)
                    || idle
                {
                    continue;
                }
                free[class] -= devices;
                taken.push(job);
                if self.share.contains_key(&job) {
                    runs.push(Run { job, class });
                }
            }
        }
        runs
    }
}

impl Shares {
    /// Furthest below its share first, then by the deficit of earlier periods, then by the share.
    fn rank(&self, view: &View, job: usize, class: usize) -> (f64, f64, f64) {
        let share = self.share.get(&job).map_or(0.0, |share| share[class]);
        let deficit = self.deficit.get(&job).map_or(0.0, |deficit| deficit[class]);
        let fraction =
            if 0.0 < self.class_s[class] { self.held_s[&job][class] / self.class_s[class] } else { 0.0 };
        let runs = 0.0 < view.trace[job].rates[class];
        let priority = if !runs {
            0.0
        } else if 0.0 < fraction {
            share / fraction
        } else {
            share * 1e9
        };
        (priority, deficit, share)
    }
}

struct Row {
    index: usize,
    devices: f64,
    rates: [f64; 3],
    steps_left: f64,
}

/// Shares `x[job, class] >= 0` with `sum_class x <= 1` and `sum_job devices x <= N`.
struct Program {
    devices: [f64; 3],
    jobs: Vec<Row>,
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

impl Program {
    fn of(view: &View) -> Program {
        let row = |at: &super::Active| Row {
            index: at.job,
            devices: f64::from(view.trace[at.job].devices),
            rates: view.trace[at.job].rates,
            steps_left: at.steps_left as f64,
        };
        Program { devices: view.devices.map(f64::from), jobs: view.active.iter().map(row).collect() }
    }

    fn isolated(&self, row: usize) -> [f64; 3] {
        let part = self.devices.map(|devices| devices / self.jobs.len() as f64 / self.jobs[row].devices);
        part.map(|share| share / part.iter().sum::<f64>().max(1.0))
    }

    /// Rates against those under time in proportion to the classes' devices, times the gang's size.
    fn normalised(&self) -> Vec<[f64; 3]> {
        let all: f64 = self.devices.iter().sum();
        let of = |job: &Row| {
            let proportional = dot(job.rates, self.devices) / all.max(self.jobs.len() as f64);
            job.rates.map(|rate| rate * job.devices / proportional)
        };
        self.jobs.iter().map(of).collect()
    }

    fn base(&self, goal: &dyn Fn(usize, usize) -> f64) -> (Problem, Vec<[Variable; 3]>) {
        let mut problem = Problem::new(OptimizationDirection::Maximize);
        let mut shares = Vec::new();
        for row in 0..self.jobs.len() {
            let of_row = [0, 1, 2].map(|class| {
                let most = if 0.0 < self.jobs[row].rates[class] { 1.0 } else { 0.0 };
                problem.add_var(goal(row, class), (0.0, most))
            });
            problem.add_constraint(of_row.map(|share| (share, 1.0)), ComparisonOp::Le, 1.0);
            shares.push(of_row);
        }
        for class in 0..3 {
            let used = self.jobs.iter().zip(&shares).map(|(job, shares)| (shares[class], job.devices));
            problem.add_constraint(used.collect::<Vec<_>>(), ComparisonOp::Le, self.devices[class]);
        }
        (problem, shares)
    }

    fn solve(problem: &Problem, shares: &[[Variable; 3]]) -> Option<Vec<[f64; 3]>> {
        let solved = problem.solve().ok()?.into_solution().ok()?;
        Some(shares.iter().map(|row| row.map(|share| solved.var_value(share).clamp(0.0, 1.0))).collect())
    }

    /// The largest least `gain . x`; of those shares, ones with a large sum. `fixed`: floors of some rows, that do
    /// not count for the least.
    fn least(&self, gain: &[[f64; 3]], fixed: &[(usize, f64)]) -> Vec<[f64; 3]> {
        let (mut problem, shares) = self.base(&|_, _| 0.0);
        let level = problem.add_var(1.0, (0.0, f64::INFINITY));
        let floor = |problem: &mut Problem, row: usize, level: Option<Variable>, floor: f64| {
            let mut terms: Vec<_> = (0..3).map(|class| (shares[row][class], gain[row][class])).collect();
            terms.extend(level.map(|level| (level, -1.0)));
            problem.add_constraint(terms, ComparisonOp::Ge, floor);
        };
        let is_fixed = |row: usize| fixed.iter().find(|fixed| fixed.0 == row);
        for row in 0..self.jobs.len() {
            match is_fixed(row) {
                Some((_, at)) => floor(&mut problem, row, None, at * (1.0 - 1e-6)),
                None => floor(&mut problem, row, Some(level), 0.0),
            }
        }
        let Some(first) = Self::solve(&problem, &shares) else { return vec![[0.0; 3]; self.jobs.len()] };
        let least = (0..self.jobs.len()).filter(|row| is_fixed(*row).is_none());
        let least = least.map(|row| dot(gain[row], first[row])).fold(f64::INFINITY, f64::min);
        let (mut problem, shares) = self.base(&|row, class| gain[row][class]);
        for row in 0..self.jobs.len() {
            let at = is_fixed(row).map_or(least, |fixed| fixed.1) * (1.0 - 1e-5);
            let terms: Vec<_> = (0..3).map(|class| (shares[row][class], gain[row][class])).collect();
            problem.add_constraint(terms, ComparisonOp::Ge, at);
        }
        Self::solve(&problem, &shares).unwrap_or(first)
    }

    fn water_filling(&self) -> Vec<[f64; 3]> {
        let gain = self.normalised();
        let mut fixed: Vec<(usize, f64)> = Vec::new();
        loop {
            let shares = self.least(&gain, &fixed);
            let loose: Vec<usize> =
                (0..self.jobs.len()).filter(|row| fixed.iter().all(|fixed| fixed.0 != *row)).collect();
            let level = loose.iter().map(|row| dot(gain[*row], shares[*row])).fold(f64::INFINITY, f64::min);
            // Of the shares at this level the ones with the largest sum show who can still gain.
            let full = |row: &usize| dot(gain[*row], shares[*row]) <= level * 1.0001;
            let bottleneck: Vec<usize> = loose.iter().copied().filter(full).collect();
            fixed.extend(bottleneck.iter().map(|row| (*row, level)));
            if bottleneck.is_empty() || fixed.len() == self.jobs.len() {
                return shares;
            }
        }
    }

    fn meeting(&self, needs: &[f64]) -> Option<Vec<[f64; 3]>> {
        let (mut problem, shares) = self.base(&|_, _| 0.0);
        for (row, need) in needs.iter().enumerate() {
            let terms = (0..3).map(|class| (shares[row][class], self.jobs[row].rates[class] / need));
            problem.add_constraint(terms.collect::<Vec<_>>(), ComparisonOp::Ge, 1.0);
        }
        Self::solve(&problem, &shares)
    }

    fn sum(&self) -> Vec<[f64; 3]> {
        let (problem, shares) = self.base(&|row, class| self.jobs[row].rates[class]);
        Self::solve(&problem, &shares).unwrap_or_default()
    }

    fn fifo(&self) -> Vec<[f64; 3]> {
        let (mut free, mut shares) = (self.devices, vec![[0.0; 3]; self.jobs.len()]);
        for (row, job) in self.jobs.iter().enumerate() {
            let fits = (0..3).filter(|class| job.devices <= free[*class]);
            let best = fits.max_by(|a, b| job.rates[*a].total_cmp(&job.rates[*b]));
            let Some(class) = best else { break };
            if 0.0 < job.rates[class] {
                free[class] -= job.devices;
                shares[row][class] = 1.0;
            }
        }
        shares
    }
}
