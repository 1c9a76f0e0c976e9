//! What computes: the processor, or a card that is found when the program runs.

use super::{Bf16, Card, Cuda, DeviceError, Isa, Nccl, Precision};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::{fmt, fs};

/// What is asked to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// This rank's card of those that it may see, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// This rank's card of those that it may see.
    OwnCuda,
    /// The card of a number among those that this process may see.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let number = |text: &str| text.parse().ok().filter(|number| *number < 1024);
        match text.split_once(':') {
            None if text == "auto" => Ok(Device::Auto),
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::OwnCuda),
            Some(("cuda", index)) if let Some(index) = number(index) => Ok(Device::Cuda(index)),
            _ => Err("it is auto, cpu, cuda or cuda:N with the number of a card from 0".into()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => to.write_str("auto"),
            Device::Cpu => to.write_str("cpu"),
            Device::OwnCuda => to.write_str("cuda"),
            Device::Cuda(index) => write!(to, "cuda:{index}"),
        }
    }
}

/// What computes.
pub enum Chosen {
    /// The processor, because.
    Processor(Option<DeviceError>),
    /// A card, in single precision.
    CudaF32(Cuda<f32>),
    /// A card, with elements of bf16; weights may be integers of 8 bits.
    CudaBf16(Cuda<Bf16>),
}

impl Device {
    /// Finds it and makes it ready for models whose heads have a length; a card takes some seconds for that.
    ///
    /// # Errors
    /// A card was asked for, and cannot be had: why.
    pub fn open(self, precision: Precision, head_dim: usize) -> Result<Chosen, DeviceError> {
        let card = |find: &dyn Fn() -> Result<Card, DeviceError>| {
            let card = Arc::new(find()?);
            match precision {
                Precision::F32 => Cuda::new(card, head_dim).map(Chosen::CudaF32),
                _ => Cuda::new(card, head_dim).map(Chosen::CudaBf16),
            }
        };
        match self {
            Device::Auto => Ok(card(&Card::own).unwrap_or_else(|error| {
                // On a machine without a card nobody wonders why none is used.
                Chosen::Processor(Some(error).filter(|_| has_card(&sysfs())))
            })),
            Device::Cpu => Ok(Chosen::Processor(None)),
            Device::OwnCuda => card(&Card::own),
            Device::Cuda(index) => card(&|| Card::find(index)),
        }
    }
}

/// What the kernel knows of devices; elsewhere in some containers.
fn sysfs() -> PathBuf {
    std::env::var_os("AQUIFER_SYSFS").map_or("/sys".into(), PathBuf::from)
}

/// Whether a card of NVIDIA is plugged in: a display or a processing accelerator.
fn has_card(sysfs: &Path) -> bool {
    const NVIDIA: &str = "0x10de";
    let places = fs::read_dir(sysfs.join("bus/pci/devices")).into_iter().flatten().flatten();
    let says = |place: &Path, file: &str, starts: &[&str]| {
        let text = fs::read_to_string(place.join(file)).unwrap_or_default();
        starts.iter().any(|start| text.trim().starts_with(start))
    };
    places
        .map(|entry| entry.path())
        .any(|it| says(&it, "vendor", &[NVIDIA]) && says(&it, "class", &["0x03", "0x12"]))
}

impl Chosen {
    /// For people: what computes, and why no card.
    pub fn describe(&self, threads: usize) -> String {
        match self {
            Chosen::Processor(why) => {
                let s = if threads == 1 { "" } else { "s" };
                let why = why.as_ref().map_or(String::new(), |why| format!("; {why}"));
                format!("computing on {threads} thread{s} of the processor, {}{why}", Isa::best().name())
            }
            Chosen::CudaF32(kernels) => format!("computing on {}", kernels.card().describe()),
            Chosen::CudaBf16(kernels) => format!("computing on {}", kernels.card().describe()),
        }
    }

    /// The card's name, if it is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Chosen::Processor(_) => None,
            Chosen::CudaF32(kernels) => Some(kernels.card().name()),
            Chosen::CudaBf16(kernels) => Some(kernels.card().name()),
        }
    }

    /// What cards send each other through, or why there is nothing of use; `None` of a processor.
    pub fn nccl(&self) -> Option<Result<Nccl, DeviceError>> {
        match self {
            Chosen::Processor(_) => None,
            Chosen::CudaF32(kernels) => Some(kernels.nccl()),
            Chosen::CudaBf16(kernels) => Some(kernels.nccl()),
        }
    }

    /// Those who compute the same bits have the same class. Updates have the same bits whatever computes them.
    pub fn class(&self) -> String {
        match self {
            Chosen::Processor(_) => Isa::best().name().into(),
            Chosen::CudaF32(kernels) => kernels.card().class(),
            Chosen::CudaBf16(kernels) => kernels.card().class(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_printed() {
        for text in ["auto", "cpu", "cuda", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:1024", "cpu:0", "CUDA"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_card_of_nvidia_is_known_by_the_bus_and_its_sound_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let plug = |place: &str, vendor: &str, class: &str| {
            let place = dir.path().join("bus/pci/devices").join(place);
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("vendor"), vendor).unwrap();
            fs::write(place.join("class"), class).unwrap();
        };
        assert!(!has_card(dir.path()));
        plug("0000:00:01.0", "0x8086\n", "0x030000\n");
        plug("0000:01:00.1", "0x10de\n", "0x040300\n");
        assert!(!has_card(dir.path()), "the sound of a card is none");
        plug("0000:01:00.0", "0x10de\n", "0x030200\n");
        assert!(has_card(dir.path()));
    }
}
