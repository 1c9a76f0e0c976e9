//! Which devices a node offers, as text.

use std::path::PathBuf;
use std::str::FromStr;

use aquifer_core::Vendor;

use super::parse_cores;
use super::vendor::maker;

/// Which devices a node offers.
///
/// Text: `auto`, `none`, or a list of `cpu`, `cpu:0-3+6`, `VENDOR`, `VENDOR:LIBRARY` and `fake:FILE`, with commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// Every accelerator that is found; the cores as devices if there is none.
    Auto,
    /// These; an empty list for none.
    These(Vec<BackendChoice>),
}

/// One backend and its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// Cores as devices; an empty list means all that the agent may use.
    Cpu(Vec<usize>),
    /// A vendor's devices, through this library or the installed one.
    Vendor(Vendor, Option<PathBuf>),
    /// Devices of a file, for tests and trials.
    Fake(PathBuf),
}

/// Why a choice of devices cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The text of a [`DeviceChoice`] makes no sense.
    #[error("devices {text:?}: {why}")]
    Choice {
        /// The part that makes none.
        text: String,
        /// Why.
        why: String,
    },
    /// A file of fake devices cannot be used.
    #[error("fake devices: {0}")]
    Fake(String),
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;
    fn from_str(text: &str) -> Result<DeviceChoice, DeviceError> {
        match text {
            "auto" => return Ok(DeviceChoice::Auto),
            "none" => return Ok(DeviceChoice::These(Vec::new())),
            _ => (),
        }
        let part = |part: &str| {
            let (name, rest) = part.split_once(':').map_or((part, None), |(name, rest)| (name, Some(rest)));
            let error = |why: &str| DeviceError::Choice { text: part.to_string(), why: why.to_string() };
            match (name, rest) {
                ("cpu", None) => Ok(BackendChoice::Cpu(Vec::new())),
                ("cpu", Some(cores)) => parse_cores(cores).map(BackendChoice::Cpu).map_err(|why| error(&why)),
                ("fake", Some(file)) if !file.is_empty() => Ok(BackendChoice::Fake(file.into())),
                ("auto" | "none", None) => Err(error("stands alone, or not at all")),
                ("fake", _) => Err(error("needs a file: fake:FILE")),
                (name, library) => match (name.parse(), library) {
                    (Ok(Vendor::Cpu) | Err(_), _) => Err(error(&format!(
                        "expected auto, none, cpu, cpu:0-3, a vendor ({}) or fake:FILE",
                        vendors().join(", ")
                    ))),
                    (Ok(vendor), Some("")) => Err(error(&format!("needs a library: {vendor}:LIBRARY"))),
                    (Ok(vendor), Some(_)) if maker(vendor).is_none() => {
                        Err(error("its devices are found without a library"))
                    }
                    (Ok(vendor), library) => Ok(BackendChoice::Vendor(vendor, library.map(PathBuf::from))),
                },
            }
        };
        text.split(',').map(|text| part(text.trim())).collect::<Result<_, _>>().map(DeviceChoice::These)
    }
}

/// Names of those that make accelerators.
fn vendors() -> Vec<&'static str> {
    Vendor::ALL.iter().filter(|(vendor, _)| *vendor != Vendor::Cpu).map(|(_, name)| *name).collect()
}
