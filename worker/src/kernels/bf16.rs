//! bfloat16: the upper half of an `f32`.

use super::isa::simd;

/// A number of 8 bits of exponent and 8 of precision. Source: Kalamkar et al., "A study of BFLOAT16 for deep
/// learning training", arXiv 1905.12322, section 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Bf16 {
    /// The nearest one, ties to even; NaN stays NaN.
    #[inline(always)]
    pub fn round(x: f32) -> Bf16 {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        // Without a branch, so that it vectorises: a NaN must not round up to infinity.
        Bf16((if x.is_nan() { bits | 0x40_0000 } else { rounded } >> 16) as u16)
    }

    /// Its value, exactly.
    #[inline(always)]
    pub fn value(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

simd! {
    /// `y = round(x)`, element by element.
    pub fn round_all(y: &mut [Bf16], x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = Bf16::round(*x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_goes_to_the_nearest_and_ties_to_even() {
        let unit = 1.0 / 128.0;
        for (x, expected) in [
            (1.0, 1.0),
            (1.0 + unit / 2.0, 1.0),
            (1.0 + 1.5 * unit, 1.0 + 2.0 * unit),
            (1.0 + 0.51 * unit, 1.0 + unit),
            (-1.0 - 0.51 * unit, -1.0 - unit),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            (0.0, 0.0),
        ] {
            assert_eq!(Bf16::round(x).value(), expected, "{x}");
        }
        assert!(Bf16::round(f32::NAN).value().is_nan());
        assert!(Bf16::round(f32::from_bits(0x7f80_0001)).value().is_nan());
    }
}
