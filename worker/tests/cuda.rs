//! The CUDA kernels against their specification, on a fake card: their own source, run on a processor.
//!
//! `tests/fake_cuda` says how. What no test can see there is time, and whatever a real card does differently from the
//! manuals that the fake one follows: with `AQUIFER_CARD=1` the same tests run on the card of the machine.
#![allow(unsafe_code)] // Calls of the driver.

#[path = "cuda/attention.rs"]
mod attention;
#[path = "cuda/card.rs"]
mod card;
#[path = "cuda/decoding.rs"]
mod decoding;
#[path = "cuda/elementwise.rs"]
mod elementwise;
#[path = "support/fake_cuda.rs"]
mod fake_cuda;
#[path = "cuda/nvrtc.rs"]
mod nvrtc;
#[path = "cuda/rows.rs"]
mod rows;

#[path = "cuda/wrong.rs"]
mod wrong;

use card::Elem;

impl Elem {
    /// How far a result may be from the specification's on equal inputs, as a share of its length: sums in another order
    /// for floats; half of the last of 8 bits for each rounding to bf16, of which there is one at the end.
    pub fn tolerance(self) -> f32 {
        match self {
            Elem::Float => 2e-6,
            Elem::Bf16 => 2.5e-3,
        }
    }
}

/// Compares vectors by their length, and each element by the length of a typical one.
#[track_caller]
pub fn assert_near(name: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let size = length(&mut expected.iter().copied());
    let error = length(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    assert!(error <= f64::from(tolerance) * size, "{name}: error {error} of {size}");
    let typical = (size / (expected.len() as f64).sqrt()) as f32;
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let most = 8.0 * tolerance * typical.max(expected.abs());
        assert!((got - expected).abs() <= most, "{name}[{i}]: {got}, not {expected}");
    }
}
