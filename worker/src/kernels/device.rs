//! What computes: the processor, or a card that is found when the program runs.

use super::{Bf16, Card, Cuda, DeviceError, Isa, Precision};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What is asked to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first card that this process may see, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
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
            None if text == "cuda" => Ok(Device::Cuda(0)),
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
    /// A card, with elements of bf16.
    CudaBf16(Cuda<Bf16>),
}

impl Device {
    /// Finds it and makes it ready for models whose heads have a length; a card takes some seconds for that.
    ///
    /// # Errors
    /// A card was asked for, and cannot be had: why.
    pub fn open(self, precision: Precision, head_dim: usize) -> Result<Chosen, DeviceError> {
        let card = |index| {
            if precision == Precision::Int8 {
                return Err(DeviceError("weights of 8 bits are for processors only".into()));
            }
            let card = Arc::new(Card::find(index)?);
            match precision {
                Precision::F32 => Cuda::new(card, head_dim).map(Chosen::CudaF32),
                _ => Cuda::new(card, head_dim).map(Chosen::CudaBf16),
            }
        };
        match self {
            Device::Auto => Ok(card(0).unwrap_or_else(|error| Chosen::Processor(Some(error)))),
            Device::Cpu => Ok(Chosen::Processor(None)),
            Device::Cuda(index) => card(index),
        }
    }
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

    /// Those who compute the same bits have the same class. Updates are computed by the processor in any case.
    pub fn class(&self) -> String {
        let own = Isa::best().name();
        match self {
            Chosen::Processor(_) => own.into(),
            Chosen::CudaF32(kernels) => format!("{}, {own}", kernels.card().class()),
            Chosen::CudaBf16(kernels) => format!("{}, {own}", kernels.card().class()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_printed() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:1024", "cpu:0", "CUDA"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
