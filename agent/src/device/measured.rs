//! What devices were measured to do: by the worker's own kernels, in a process of its own, once for each class, driver
//! and program, and kept in the agent's directory.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

use aquifer_core::{DeviceClass, Measured};
use serde::{Deserialize, Serialize};

use super::Found;
use super::reset::about;
use crate::json;
use crate::trial::{self, Trouble};

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

/// Under what a device is measured: figures count for no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Under {
    /// Version of what drives it.
    pub driver: String,
    /// Who measures it.
    pub by: By,
}

/// Who measures a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The worker, by its own kernels.
    Worker,
    /// A [program of the site](Site).
    Site,
}

/// A program of whoever runs the node, which measures devices that the worker has no kernels for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    program: PathBuf,
    /// How its figures are kept: another program measures anew.
    stamp: String,
}

/// Begins the stamps of all of them.
const OF_SITE: &str = "site:";

impl Site {
    /// The program at a path.
    pub fn new(program: PathBuf) -> Site {
        let state = std::fs::metadata(&program).map(|file| (file.len(), file.modified().ok())).ok();
        let (bytes, changed) = state.unwrap_or_default();
        let since = changed.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let stamp = format!("{OF_SITE}{}:{bytes}:{}", program.display(), since.as_secs());
        Site { program, stamp }
    }

    /// What it is called with for a device.
    ///
    /// * `env`: variables of a process that sees this device alone.
    pub(super) fn about(&self, found: &Found, env: Vec<(String, String)>) -> OfSite {
        OfSite { program: self.program.clone(), about: about(found), env }
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

impl Key {
    fn is_of_site(&self) -> bool {
        self.program.starts_with(OF_SITE)
    }
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
    site: Option<Site>,
}

impl Measurements {
    /// Reads a file of measurements. One that is missing or damaged has none.
    ///
    /// * `site`: what measures devices that the worker has no kernels for; `None`: nothing does, but what any program of the site has
    ///   measured counts.
    pub fn open(file: &Path, site: Option<Site>) -> Measurements {
        Measurements { file: Some(file.into()), entries: json::read(file).unwrap_or_default(), site }
    }

    pub(super) fn site(&self) -> Option<&Site> {
        self.site.as_ref()
    }

    /// Whether a program of the site measures devices, or has measured any.
    pub(super) fn may_be_of_site(&self) -> bool {
        self.site.is_some() || self.entries.iter().any(|entry| entry.of.is_of_site())
    }

    /// What a class does, as it was measured under this driver and by this very program.
    pub fn of(&self, class: &DeviceClass, under: &Under) -> Option<&Figures> {
        let key = self.key(class, under);
        let is_any_site = under.by == By::Site && self.site.is_none();
        let is_by_it = |of: &Key| if is_any_site { of.is_of_site() } else { of.program == key.program };
        let is_of_it = |of: &Key| of.vendor == key.vendor && of.model == key.model && of.driver == key.driver;
        let entry = self.entries.iter().find(|entry| is_of_it(&entry.of) && is_by_it(&entry.of));
        entry.map(|entry| &entry.figures).filter(|figures| figures.tflops().is_some())
    }

    /// Keeps a measurement, over an earlier one.
    ///
    /// # Errors
    /// It cannot be written; it counts all the same.
    pub fn enter(&mut self, class: &DeviceClass, under: &Under, figures: Figures) -> std::io::Result<()> {
        let of = self.key(class, under);
        // Those of other programs and drivers will not be asked for again.
        self.entries.retain(|entry| (&entry.of.vendor, &entry.of.model) != (&of.vendor, &of.model));
        self.entries.push(Entry { of, figures });
        self.file.as_deref().map_or(Ok(()), |file| json::replace(file, &self.entries))
    }

    fn key(&self, class: &DeviceClass, under: &Under) -> Key {
        // Without optimisation the same kernels are slower.
        let build = if cfg!(debug_assertions) { "-debug" } else { "" };
        let program = match under.by {
            By::Worker => format!("{}{build}", env!("CARGO_PKG_VERSION")),
            By::Site => self.site.as_ref().map(|site| site.stamp.clone()).unwrap_or_default(),
        };
        Key {
            vendor: class.vendor.to_string(),
            model: class.model.to_string(),
            driver: under.driver.clone(),
            program,
        }
    }
}

/// A device to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToMeasure {
    /// What it stands for.
    pub class: DeviceClass,
    /// Under what.
    pub under: Under,
    /// Its index on the node.
    pub index: u16,
    /// How it is found.
    pub on: On,
}

/// What measures a device, and how it finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    /// The worker: a core of this number.
    Core(u32),
    /// The worker: the only card that a process with these variables sees.
    Card(Vec<(String, String)>),
    /// The site's program.
    Site(OfSite),
}

/// A call of the site's program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfSite {
    program: PathBuf,
    about: [String; 4],
    env: Vec<(String, String)>,
}

impl On {
    /// How long a measurement may take. The worker itself begins no figure after some seconds; before that a card's driver may
    /// take as long to start, and its kernels are compiled.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(match self {
            On::Core(_) => 10,
            On::Card(_) => 45,
            // It may have to load a framework.
            On::Site(_) => 120,
        })
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
    /// The device is in use, as the site's program says by its exit code: it is to be tried again later.
    Busy,
}

const WORKER: [&str; 3] = ["worker", "measure", "--lines"];

/// Measures a device, in a process that is gone when this returns: of `program`, which is this one, or of the site's. What it has measured before
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
    let program = if let On::Site(site) = &of.on { &site.program } else { program };
    let mut command = tokio::process::Command::new(program);
    match &of.on {
        On::Core(core) => command.args(WORKER).args(["--core", &core.to_string()]),
        On::Card(env) => command.args(WORKER).args(["--device", "cuda:0"]).envs(env.iter().cloned()),
        On::Site(site) => command.args(&site.about).envs(site.env.iter().cloned()),
    };
    command.args(probe.then_some("--probe"));
    let (said, trouble) = match trial::run(command, patience, stop).await {
        trial::Ended::Over { trouble: Some(Trouble { code: Some(trial::LATER), .. }), .. }
            if matches!(of.on, On::Site(_)) =>
        {
            return Ended::Busy;
        }
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

    fn open(file: &Path) -> Measurements {
        Measurements::open(file, None)
    }

    fn under(driver: &str) -> Under {
        Under { driver: driver.into(), by: By::Worker }
    }

    fn figures(tflops: f64) -> Figures {
        Figures { bf16_tflops: Some(tflops), ..Figures::default() }
    }

    #[test]
    fn a_measurement_is_kept_for_its_class_and_driver_until_either_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("measured.json");
        open(&file).enter(&class("epyc"), &under("6.1"), figures(0.2)).unwrap();
        let again = open(&file);
        assert_eq!(again.of(&class("epyc"), &under("6.1")), Some(&figures(0.2)));
        assert_eq!(again.of(&class("epyc"), &under("6.2")), None, "another driver");
        assert_eq!(again.of(&class("xeon"), &under("6.1")), None, "another class");
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
            assert_eq!(open(&file).of(&class("epyc"), &under("")), None, "{damaged:?}");
        }
        for nonsense in [0.0, -1.0] {
            open(&file).enter(&class("epyc"), &under(""), figures(nonsense)).unwrap();
            assert_eq!(open(&file).of(&class("epyc"), &under("")), None, "{nonsense}");
        }
    }

    #[test]
    fn what_a_program_of_the_site_measured_counts_for_that_program_and_where_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (file, program) = (dir.path().join("measured.json"), dir.path().join("measure"));
        std::fs::write(&program, "one").unwrap();
        let with = |program: &Path| Measurements::open(&file, Some(Site::new(program.into())));
        let by_site = Under { driver: "24.1".into(), by: By::Site };
        with(&program).enter(&class("910b"), &by_site, figures(300.0)).unwrap();
        assert_eq!(with(&program).of(&class("910b"), &by_site), Some(&figures(300.0)));
        assert_eq!(open(&file).of(&class("910b"), &by_site), Some(&figures(300.0)));
        assert_eq!(open(&file).of(&class("910b"), &under("24.1")), None, "the worker has not measured it");
        let newer = Under { driver: "24.2".into(), ..by_site.clone() };
        assert_eq!(open(&file).of(&class("910b"), &newer), None);
        std::fs::write(&program, "another one").unwrap();
        assert_eq!(with(&program).of(&class("910b"), &by_site), None, "the program was changed");
        assert!(open(&file).may_be_of_site() && with(&program).may_be_of_site());
        let (other, mut by_worker) = (dir.path().join("other.json"), Measurements::default());
        assert!(Measurements::open(&other, Some(Site::new(program))).may_be_of_site(), "it may measure yet");
        by_worker.enter(&class("epyc"), &under("6.1"), figures(0.2)).unwrap();
        assert!(!by_worker.may_be_of_site());
    }

    /// What a program that is no worker gives.
    async fn measured(script: &str, patience: Duration, stop: impl Future<Output = ()>) -> Ended {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let on = On::Card(vec![("CUDA_VISIBLE_DEVICES".into(), "GPU-7".into())]);
        let of = ToMeasure { class: class("h100"), under: under(""), index: 0, on };
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
