//! What a simulation tells: tables side by side, JSON, pictures.

use aquifer_sim::replay::compare::Run;
use aquifer_sim::replay::engine::Mode;
use aquifer_sim::replay::metrics::{self, DEMANDS, Spread};
use aquifer_sim::replay::plot::{self, Line, Panel};
use aquifer_sim::replay::workload::{SIZES, Workload};
use serde::Serialize;

use crate::output::{Output, Side, Table};
use crate::units;

/// Part of the arrivals in churn that are not looked at: the pool fills up meanwhile.
const WARM_UP: (usize, usize) = (2, 5);

/// Points of a line over time.
const POINTS: usize = 300;

/// A workload, perhaps with nodes added.
pub struct Variant {
    /// What was added; empty for nothing.
    pub added: String,
    /// It.
    pub workload: Workload,
}

/// All runs, by policy.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    mode: String,
    nodes: usize,
    devices: u64,
    seeds: Vec<u64>,
    policies: Vec<PolicyReport>,
}

/// The runs of one policy.
#[derive(Clone, Debug, Serialize)]
struct PolicyReport {
    policy: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    added: String,
    /// By seed.
    runs: Vec<RunReport>,
    #[serde(skip)]
    curve: Vec<(f64, f64)>,
    #[serde(skip)]
    series: Vec<metrics::Point>,
}

/// The figures of one run. Times are in seconds.
#[derive(Clone, Debug, Default, Serialize)]
struct RunReport {
    seed: u64,
    /// Arrivals and starts that were verified.
    arrivals: usize,
    started: u64,
    dropped: u64,
    /// Of the devices, in per cent: what jobs held at 90, 100 and 130 per cent of demand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allocated_percent: Vec<f64>,
    /// Of the devices, in per cent: free at the end of a fill.
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_percent: Option<f64>,
    /// Of the devices, in per cent: free parts of devices in use.
    sliver_percent: f64,
    by_size: Vec<SizeReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queueing: Option<QueueingReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<DecisionReport>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct SizeReport {
    size: &'static str,
    arrived: u64,
    started: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_s: Option<SpreadReport>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct QueueingReport {
    used_percent: f64,
    waited_percent: f64,
    waiting: f64,
    left_waiting: u64,
    makespan_s: f64,
    wait_s: SpreadReport,
    completion_s: SpreadReport,
}

#[derive(Clone, Debug, Default, Serialize)]
struct SpreadReport {
    mean: f64,
    p50: f64,
    p99: f64,
}

/// Microseconds a decision.
#[derive(Clone, Debug, Default, Serialize)]
struct DecisionReport {
    decisions: u64,
    mean_us: f64,
    p50_us: f64,
    p99_us: f64,
}

impl From<Spread> for SpreadReport {
    fn from(ms: Spread) -> SpreadReport {
        let seconds = |ms: f64| (ms.round()) / 1000.0;
        SpreadReport { mean: seconds(ms.mean), p50: seconds(ms.p50 as f64), p99: seconds(ms.p99 as f64) }
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl Report {
    /// Without runs yet.
    pub fn new(mode: &str, base: &Workload, seeds: &[u64]) -> Report {
        let devices = base.capacity_milli() / 1000;
        Report {
            mode: mode.into(),
            nodes: base.nodes.len(),
            devices,
            seeds: seeds.into(),
            policies: Vec::new(),
        }
    }

    /// Whether there are no runs yet.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Adds a run.
    pub fn add(&mut self, variant: &Variant, mode: Mode, run: &Run, draw: bool) {
        let (policy, added) = (run.policy.name(), &variant.added);
        let known = self.policies.iter().position(|it| it.policy == policy && it.added == *added);
        let at = known.unwrap_or_else(|| {
            self.policies.push(PolicyReport {
                policy: policy.into(),
                added: added.clone(),
                runs: Vec::new(),
                curve: Vec::new(),
                series: Vec::new(),
            });
            self.policies.len() - 1
        });
        let report = &mut self.policies[at];
        match mode {
            Mode::Fill => report.add_fill(&variant.workload, run, draw),
            Mode::Churn | Mode::Replay => report.add_queueing(&variant.workload, run, mode, draw),
        }
    }

    /// Tables for people.
    pub fn text(&self, output: &Output) -> String {
        let seeds = match self.seeds.len() {
            1 => format!("seed {}", self.seeds[0]),
            number => format!("means over {number} seeds"),
        };
        let (nodes, devices) = (units::group(self.nodes as u64), units::group(self.devices));
        let mut parts = vec![format!("{}: {nodes} nodes, {devices} devices; {seeds}", self.mode)];
        match self.mode == "static" {
            true => {
                parts.push(self.fill_table().plain(output));
                parts.push(format!(
                    "Placed of those that arrived, in per cent, by devices\n\n{}",
                    self.accepted().plain(output)
                ));
            }
            false => {
                parts.push(self.queueing_table().plain(output));
                parts.push(format!(
                    "Wait, mean / 99th percentile, by devices\n\n{}",
                    self.waits().plain(output)
                ));
            }
        }
        if self.policies.iter().any(|policy| policy.runs.iter().any(|run| run.decision.is_some())) {
            parts.push(self.decisions().plain(output));
        }
        parts.join("\n\n")
    }

    fn fill_table(&self) -> Table {
        let columns = [
            ("POLICY", Side::Left),
            ("AT 90 %", Side::Right),
            ("AT 100 %", Side::Right),
            ("AT 130 %", Side::Right),
            ("WORST", Side::Right),
            ("AGAINST FIRST", Side::Right),
            ("IDLE %", Side::Right),
            ("SLIVERS %", Side::Right),
        ];
        let mut table = Table::new(&columns);
        let last = DEMANDS.len() - 1;
        for policy in &self.policies {
            let at = |demand: usize| move |run: &RunReport| run.allocated_percent[demand];
            let against: Vec<f64> = policy
                .runs
                .iter()
                .zip(&self.policies[0].runs)
                .map(|(mine, first)| mine.allocated_percent[last] - first.allocated_percent[last])
                .collect();
            let mean = against.iter().sum::<f64>() / against.len() as f64;
            let worst = policy.runs.iter().map(at(last)).fold(f64::MAX, f64::min);
            table.row([
                policy.name(),
                format!("{:.2}", policy.mean(at(0))),
                format!("{:.2}", policy.mean(at(1))),
                format!("{:.2}", policy.mean(at(2))),
                format!("{worst:.2}"),
                format!("{mean:+.2}"),
                format!("{:.2}", policy.mean(|run| run.idle_percent.unwrap_or(0.0))),
                format!("{:.2}", policy.mean(|run| run.sliver_percent)),
            ]);
        }
        table
    }

    /// A table with a column for each size that occurs.
    fn by_size(&self, cell: impl Fn(&PolicyReport, usize) -> String) -> Table {
        let occurs = |size: &usize| {
            self.policies.iter().any(|policy| policy.runs.iter().any(|run| 0 < run.by_size[*size].arrived))
        };
        let sizes: Vec<usize> = (0..SIZES.len()).filter(occurs).collect();
        let headings = sizes.iter().map(|size| (HEADINGS[*size], Side::Right));
        let columns: Vec<_> = [("POLICY", Side::Left)].into_iter().chain(headings).collect();
        let mut table = Table::new(&columns);
        for policy in &self.policies {
            let cells = sizes.iter().map(|size| cell(policy, *size));
            table.row([policy.name()].into_iter().chain(cells));
        }
        table
    }

    fn accepted(&self) -> Table {
        self.by_size(|policy, size| {
            let sum = |of: fn(&SizeReport) -> u64| {
                policy.runs.iter().map(|run| of(&run.by_size[size])).sum::<u64>()
            };
            let (arrived, started) = (sum(|size| size.arrived), sum(|size| size.started));
            if arrived == 0 { "-".into() } else { format!("{:.1}", started as f64 * 100.0 / arrived as f64) }
        })
    }

    fn waits(&self) -> Table {
        self.by_size(|policy, size| {
            let of = |part: fn(&SpreadReport) -> f64| {
                policy.mean(|run| run.by_size[size].wait_s.as_ref().map_or(0.0, part))
            };
            format!("{} / {}", seconds(of(|wait| wait.mean)), seconds(of(|wait| wait.p99)))
        })
    }

    fn queueing_table(&self) -> Table {
        let columns = [
            ("POLICY", Side::Left),
            ("USED %", Side::Right),
            ("SLIVERS %", Side::Right),
            ("WAITED %", Side::Right),
            ("QUEUE", Side::Right),
            ("WAIT", Side::Right),
            ("P99", Side::Right),
            ("COMPLETION", Side::Right),
            ("P50", Side::Right),
            ("P99", Side::Right),
            ("MAKESPAN", Side::Right),
            ("LEFT", Side::Right),
        ];
        let mut table = Table::new(&columns);
        for policy in &self.policies {
            let of =
                |part: fn(&QueueingReport) -> f64| policy.mean(|run| run.queueing.as_ref().map_or(0.0, part));
            table.row([
                policy.name(),
                format!("{:.2}", of(|run| run.used_percent)),
                format!("{:.2}", policy.mean(|run| run.sliver_percent)),
                format!("{:.2}", of(|run| run.waited_percent)),
                format!("{:.1}", of(|run| run.waiting)),
                seconds(of(|run| run.wait_s.mean)),
                seconds(of(|run| run.wait_s.p99)),
                seconds(of(|run| run.completion_s.mean)),
                seconds(of(|run| run.completion_s.p50)),
                seconds(of(|run| run.completion_s.p99)),
                seconds(of(|run| run.makespan_s)),
                format!("{:.0}", of(|run| run.left_waiting as f64)),
            ]);
        }
        table
    }

    fn decisions(&self) -> Table {
        let columns = [
            ("POLICY", Side::Left),
            ("DECISIONS", Side::Right),
            ("MEAN µs", Side::Right),
            ("P50 µs", Side::Right),
            ("P99 µs", Side::Right),
        ];
        let mut table = Table::new(&columns);
        for policy in &self.policies {
            let of =
                |part: fn(&DecisionReport) -> f64| policy.mean(|run| run.decision.as_ref().map_or(0.0, part));
            table.row([
                policy.name(),
                units::group(of(|it| it.decisions as f64) as u64),
                format!("{:.1}", of(|it| it.mean_us)),
                format!("{:.1}", of(|it| it.p50_us)),
                format!("{:.1}", of(|it| it.p99_us)),
            ]);
        }
        table
    }

    /// The runs of the first seed, as SVG.
    pub fn picture(&self, mode: Mode) -> String {
        let line = |policy: &PolicyReport, points: Vec<(f64, f64)>| Line { name: policy.name(), points };
        let over_time = |what: fn(&metrics::Point) -> f64| {
            let hours = |point: &metrics::Point| (point.at_ms as f64 / 3_600_000.0, what(point));
            self.policies.iter().map(|it| line(it, it.series.iter().map(hours).collect())).collect()
        };
        let panel = |title: &str, horizontal: &str, lines, range| Panel {
            title: title.into(),
            horizontal: horizontal.into(),
            lines,
            range,
        };
        let panels = match mode {
            Mode::Fill => {
                let whole = self.policies.iter().map(|it| line(it, it.curve.clone())).collect();
                let late =
                    |it: &PolicyReport| it.curve.iter().filter(|point| 80.0 <= point.0).copied().collect();
                let end: Vec<Line> = self.policies.iter().map(|it| line(it, late(it))).collect();
                let least =
                    end.iter().flat_map(|line| &line.points).map(|point| point.1).fold(100.0, f64::min);
                let demand = "devices asked for, % of all";
                vec![
                    panel("Allocated devices, %", demand, whole, Some((0.0, 100.0))),
                    panel(
                        "Allocated devices, %, from 80 % demand",
                        demand,
                        end,
                        Some((least.floor(), 100.0)),
                    ),
                ]
            }
            Mode::Churn | Mode::Replay => vec![
                panel("Devices held, %", "hours", over_time(|point| point.used_percent), Some((0.0, 100.0))),
                panel("Jobs that wait", "hours", over_time(|point| point.waiting), None),
            ],
        };
        plot::svg(&panels)
    }
}

/// Headings of the columns by size; see [`SIZES`].
const HEADINGS: [&str; SIZES.len()] = ["NONE", "A PART", "1", "2", "4", "8", "OTHER"];

/// A time for people, from seconds: exact where it is short.
fn seconds(seconds: f64) -> String {
    if seconds < 100.0 { format!("{seconds:.1}s") } else { units::duration((seconds * 1000.0) as u64) }
}

impl PolicyReport {
    fn name(&self) -> String {
        if self.added.is_empty() { self.policy.clone() } else { format!("{} {}", self.policy, self.added) }
    }

    fn mean(&self, figure: impl Fn(&RunReport) -> f64) -> f64 {
        self.runs.iter().map(figure).sum::<f64>() / self.runs.len().max(1) as f64
    }

    fn add_fill(&mut self, workload: &Workload, run: &Run, draw: bool) {
        let fill = metrics::fill(workload, &run.log);
        if draw {
            let points = fill.curve.iter().enumerate();
            self.curve = points.filter_map(|(demand, used)| Some((demand as f64, (*used)?))).collect();
        }
        let percent = |milli: u64| rounded(milli as f64 * 100.0 / workload.capacity_milli() as f64);
        self.runs.push(RunReport {
            allocated_percent: DEMANDS.map(|demand| fill.at(demand).unwrap_or(0.0)).into(),
            idle_percent: Some(percent(fill.idle_milli)),
            sliver_percent: percent(fill.sliver_milli),
            by_size: by_size(&fill.accepted, None),
            ..RunReport::new(workload, run)
        });
    }

    fn add_queueing(&mut self, workload: &Workload, run: &Run, mode: Mode, draw: bool) {
        let first = if mode == Mode::Churn { workload.jobs.len() * WARM_UP.0 / WARM_UP.1 } else { 0 };
        let figures = metrics::queueing(workload, &run.log, first);
        if draw {
            self.series = metrics::series(workload, &run.log, POINTS);
        }
        self.runs.push(RunReport {
            sliver_percent: rounded(figures.sliver_percent),
            by_size: by_size(&figures.accepted, Some(&figures.wait_by_size)),
            queueing: Some(QueueingReport {
                used_percent: rounded(figures.used_percent),
                waited_percent: rounded(figures.waited_percent),
                waiting: rounded(figures.waiting),
                left_waiting: figures.left_waiting,
                makespan_s: figures.makespan_ms as f64 / 1000.0,
                wait_s: figures.wait.into(),
                completion_s: figures.completion.into(),
            }),
            ..RunReport::new(workload, run)
        });
    }
}

impl RunReport {
    fn new(workload: &Workload, run: &Run) -> RunReport {
        let decision = (!run.latency.ns.is_empty()).then(|| {
            let spread = Spread::of(run.latency.ns.clone());
            DecisionReport {
                decisions: spread.count,
                mean_us: rounded(spread.mean / 1000.0),
                p50_us: rounded(spread.p50 as f64 / 1000.0),
                p99_us: rounded(spread.p99 as f64 / 1000.0),
            }
        });
        RunReport {
            seed: run.seed,
            arrivals: workload.jobs.len(),
            started: run.verified.starts,
            dropped: run.verified.dropped,
            decision,
            ..RunReport::default()
        }
    }
}

fn by_size(accepted: &[(u64, u64)], waits: Option<&[Spread]>) -> Vec<SizeReport> {
    let size = |at: usize| SizeReport {
        size: SIZES[at],
        arrived: accepted[at].0,
        started: accepted[at].1,
        wait_s: waits.map(|waits| waits[at].into()),
    };
    (0..SIZES.len()).map(size).collect()
}
