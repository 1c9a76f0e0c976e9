//! What devices were measured to do: by the worker's own kernels, in a process of its own, once for each class, driver
//! and program, and kept in the agent's directory.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use aquifer_core::{DeviceClass, Measured};
use serde::{Deserialize, Serialize};

use crate::{json, trial};

/// Whether an agent measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MeasureChoice {
    /// It does not, and uses no earlier measurement.
    Never,
    /// What was not measured before, while nothing runs.
    #[default]
    Auto,
    /// Everything anew at its start.
    Always,
}

impl FromStr for MeasureChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<MeasureChoice, String> {
        match text {
            "never" => Ok(MeasureChoice::Never),
            "auto" => Ok(MeasureChoice::Auto),
            "always" => Ok(MeasureChoice::Always),
            _ => Err("expected never, auto or always".into()),
        }
    }
}

/// What one device does; the names are those of `aquifer worker measure`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Figures {
    pub f32_tflops: Option<f64>,
    pub bf16_tflops: Option<f64>,
    pub int8_tflops: Option<f64>,
    pub memory_gbs: Option<f64>,
    pub attention_tflops: Option<f64>,
    pub train_tokens_per_s: Option<f64>,
    pub decode_tokens_per_s: Option<f64>,
    pub host_link_gbs: Option<f64>,
}

impl Figures {
    /// What speeds are counted by, in TFLOP/s: the matrix product in bfloat16; `None`: it makes no sense.
    pub fn tflops(&self) -> Option<f64> {
        self.bf16_tflops.filter(|tflops| tflops.is_finite() && 0.0 < *tflops)
    }
}

impl From<&Figures> for Measured {
    /// What makes no sense counts as not measured.
    fn from(figures: &Figures) -> Measured {
        let whole = |figure: Option<f64>, unit: f64| (figure.unwrap_or(0.0) * unit) as u64;
        Measured {
            f32_mflops: whole(figures.f32_tflops, 1e6),
            bf16_mflops: whole(figures.bf16_tflops, 1e6),
            int8_mflops: whole(figures.int8_tflops, 1e6),
            attention_mflops: whole(figures.attention_tflops, 1e6),
            memory_mbs: whole(figures.memory_gbs, 1e3),
            host_link_mbs: whole(figures.host_link_gbs, 1e3),
            train_tokens_milli: whole(figures.train_tokens_per_s, 1e3),
            decode_tokens_milli: whole(figures.decode_tokens_per_s, 1e3),
        }
    }
}

/// What figures are of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    vendor: String,
    model: String,
    driver: String,
    program: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    of: Key,
    figures: Figures,
}

/// The measurements that are kept.
#[derive(Debug, Default)]
pub struct Measurements {
    file: Option<PathBuf>,
    entries: Vec<Entry>,
}

impl Measurements {
    /// Reads a file of measurements. One that is missing or damaged has none.
    pub fn open(file: &Path) -> Measurements {
        Measurements { file: Some(file.into()), entries: json::read(file).unwrap_or_default() }
    }

    /// What a class does under a driver, as this very program measured it.
    pub fn of(&self, class: &DeviceClass, driver: &str) -> Option<&Figures> {
        let key = key(class, driver);
        let entry = self.entries.iter().find(|entry| entry.of == key);
        entry.map(|entry| &entry.figures).filter(|figures| figures.tflops().is_some())
    }

    /// Keeps a measurement, over an earlier one.
    ///
    /// # Errors
    /// It cannot be written; it counts all the same.
    pub fn enter(&mut self, class: &DeviceClass, driver: &str, figures: Figures) -> std::io::Result<()> {
        let of = key(class, driver);
        // Those of other programs and drivers will not be asked for again.
        self.entries.retain(|entry| (&entry.of.vendor, &entry.of.model) != (&of.vendor, &of.model));
        self.entries.push(Entry { of, figures });
        self.file.as_deref().map_or(Ok(()), |file| json::replace(file, &self.entries))
    }
}

fn key(class: &DeviceClass, driver: &str) -> Key {
    // Without optimisation the same kernels are slower.
    let build = if cfg!(debug_assertions) { "-debug" } else { "" };
    Key {
        vendor: class.vendor.to_string(),
        model: class.model.to_string(),
        driver: driver.into(),
        program: format!("{}{build}", env!("CARGO_PKG_VERSION")),
    }
}

/// A device to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToMeasure {
    /// What it stands for.
    pub class: DeviceClass,
    /// Version of what drives it.
    pub driver: String,
    /// Its index on the node.
    pub index: u16,
    /// How the worker finds it.
    pub on: On,
}

/// How the worker finds what it measures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    /// A core of this number.
    Core(u32),
    /// The only card that a process with these variables sees.
    Card(Vec<(String, String)>),
}

impl On {
    /// How long a measurement may take. The worker itself begins no figure after some seconds; before that a card's driver may
    /// take as long to start, and its kernels are compiled.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(if matches!(self, On::Core(_)) { 10 } else { 45 })
    }
}

/// How a measurement ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// With figures; why there are no more of them, if something was in the way.
    Measured(Figures, Option<String>),
    /// Without, because.
    Failed(String),
    /// Somebody needs the device.
    Stopped,
}

/// Measures a device with `program`, which is this one, in a process that is gone when this returns. What it has measured before
/// its deadline or its death counts.
///
/// * `probe`: only what speeds are counted by, in a fraction of a second.
/// * `stop`: ends it early.
pub async fn measure(
    program: &Path,
    of: &ToMeasure,
    probe: bool,
    patience: Duration,
    stop: impl Future<Output = ()>,
) -> Ended {
    let mut command = tokio::process::Command::new(program);
    command.args(["worker", "measure", "--lines"]).args(probe.then_some("--probe"));
    match &of.on {
        On::Core(core) => command.args(["--core", &core.to_string()]),
        On::Card(env) => command.args(["--device", "cuda:0"]).envs(env.iter().cloned()),
    };
    let (said, trouble) = match trial::run(command, patience, stop).await {
        trial::Ended::Over { said, trouble } => (said, trouble.map(|trouble| trouble.what)),
        trial::Ended::NotStarted(error) => return Ended::Failed(format!("{}: {error}", program.display())),
        trial::Ended::Stopped => return Ended::Stopped,
    };
    // The last line that was written whole has all figures.
    let figures = said.lines().rev().find_map(|line| serde_json::from_str::<Figures>(line).ok());
    match figures.filter(|figures| figures.tflops().is_some()) {
        Some(figures) => Ended::Measured(figures, trouble),
        None => Ended::Failed(trouble.unwrap_or_else(|| "no matrix product was measured".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquifer_core::Vendor;

    fn class(model: &str) -> DeviceClass {
        DeviceClass { vendor: Vendor::Cpu, model: model.into(), memory_bytes: 1 << 30 }
    }

    fn figures(tflops: f64) -> Figures {
        Figures { bf16_tflops: Some(tflops), ..Figures::default() }
    }

    #[test]
    fn a_measurement_is_kept_for_its_class_and_driver_until_either_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("measured.json");
        Measurements::open(&file).enter(&class("epyc"), "6.1", figures(0.2)).unwrap();
        let again = Measurements::open(&file);
        assert_eq!(again.of(&class("epyc"), "6.1"), Some(&figures(0.2)));
        assert_eq!(again.of(&class("epyc"), "6.2"), None, "another driver");
        assert_eq!(again.of(&class("xeon"), "6.1"), None, "another class");
    }

    #[test]
    fn every_figure_is_told_the_scheduler_in_its_own_field() {
        let figures = Figures {
            f32_tflops: Some(0.082),
            bf16_tflops: Some(0.161),
            int8_tflops: Some(f64::NAN),
            memory_gbs: Some(16.5),
            attention_tflops: Some(0.059),
            train_tokens_per_s: Some(2170.0),
            decode_tokens_per_s: Some(913.5),
            host_link_gbs: None,
        };
        let told = Measured {
            f32_mflops: 82_000,
            bf16_mflops: 161_000,
            int8_mflops: 0,
            attention_mflops: 59_000,
            memory_mbs: 16_500,
            host_link_mbs: 0,
            train_tokens_milli: 2_170_000,
            decode_tokens_milli: 913_500,
        };
        assert_eq!(Measured::from(&figures), told);
    }

    #[test]
    fn a_damaged_file_and_figures_that_make_no_sense_count_as_not_measured() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("measured.json");
        for damaged in ["", "{", "[{\"of\":7}]", "[null"] {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(Measurements::open(&file).of(&class("epyc"), ""), None, "{damaged:?}");
        }
        for nonsense in [0.0, -1.0] {
            Measurements::open(&file).enter(&class("epyc"), "", figures(nonsense)).unwrap();
            assert_eq!(Measurements::open(&file).of(&class("epyc"), ""), None, "{nonsense}");
        }
    }

    /// What a program that is no worker gives.
    async fn measured(script: &str, patience: Duration, stop: impl Future<Output = ()>) -> Ended {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let on = On::Card(vec![("CUDA_VISIBLE_DEVICES".into(), "GPU-7".into())]);
        let of = ToMeasure { class: class("h100"), driver: String::new(), index: 0, on };
        measure(&program, &of, false, patience, stop).await
    }

    #[tokio::test]
    async fn what_was_measured_before_the_deadline_or_a_crash_counts() {
        let long = Duration::from_secs(60);
        let run = async |script: &str, patience| measured(script, patience, std::future::pending()).await;
        let line = r#"test "$CUDA_VISIBLE_DEVICES $*" = "GPU-7 worker measure --lines --device cuda:0" && echo '{"bf16_tflops":7.5}'"#;
        let whole = run(&format!("{line}; echo '{{\"bf16_tflops\":7.5,\"memory_gbs\":3}}'"), long).await;
        assert_eq!(whole, Ended::Measured(Figures { memory_gbs: Some(3.0), ..figures(7.5) }, None));
        let half = run(&format!("{line}; printf '{{\"bf16_tflops\":7.5,\"mem'; kill -ABRT $$"), long).await;
        let said = "signal: 6 (SIGABRT)".to_string();
        assert_eq!(
            half,
            Ended::Measured(figures(7.5), Some(said)),
            "of a line that was cut the one before counts"
        );
        let late = run(&format!("{line}; exec sleep 1000"), Duration::from_secs(1)).await;
        assert_eq!(late, Ended::Measured(figures(7.5), Some("it took longer than 1 s".into())));
        let broken = run("echo one >&2; echo 'no compiler' >&2; exit 2", long).await;
        assert_eq!(broken, Ended::Failed("no compiler".into()));
        assert_eq!(run("echo '{}'", long).await, Ended::Failed("no matrix product was measured".into()));
        let absurd = run(r#"echo '{"bf16_tflops":-1}'"#, long).await;
        assert_eq!(absurd, Ended::Failed("no matrix product was measured".into()));
        let stopped = measured("exec sleep 1000", long, std::future::ready(())).await;
        assert_eq!(stopped, Ended::Stopped);
    }
}
