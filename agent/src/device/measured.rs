//! What devices were measured to do: by the worker's own kernels, in a process of its own, once for each class, driver
//! and program, and kept in the agent's directory.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use aquifer_core::DeviceClass;
use serde::{Deserialize, Serialize};

use crate::json;

/// How long a measurement may take; the worker itself stops before.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// Its number for the worker.
    pub core: u32,
}

/// Measures a device with `program`, which is this one. The process ends with the future.
///
/// * `probe`: only what speeds are counted by, in a fraction of a second.
///
/// # Errors
/// Says why there are no figures.
pub async fn measure(program: &Path, of: &ToMeasure, probe: bool) -> Result<Figures, String> {
    let mut command = tokio::process::Command::new(program);
    command.args(["worker", "measure", "--core", &of.core.to_string()]);
    command.args(probe.then_some("--probe"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let ran = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = match ran {
        Err(_) => return Err(format!("it took longer than {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => return Err(format!("{}: {error}", program.display())),
        Ok(Ok(output)) => output,
    };
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()));
    }
    let figures: Figures = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("its answer is no figures: {error}"))?;
    figures.tflops().map(|_| ()).ok_or("no matrix product was measured")?;
    Ok(figures)
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
}
