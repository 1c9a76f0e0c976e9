//! Matrices of 8-bit integers with a scale for every group of neighbours in a row.

use super::isa::{multiply_add, simd};
use std::ops::Range;

/// Elements of a row that share a scale.
pub const GROUP: usize = 64;

/// A matrix `[rows, columns]`: element `(r, c)` is `values[r * columns + c] * scales[r * groups + c / GROUP]` with
/// `groups = ceil(columns / GROUP)`.
#[derive(Clone, Copy)]
pub struct Int8<'a> {
    /// `[rows, columns]`, from -127 to 127.
    pub values: &'a [i8],
    /// `[rows, groups]`.
    pub scales: &'a [f32],
}

impl<'a> Int8<'a> {
    /// Rows `rows` of a matrix of so many columns.
    pub fn rows(self, rows: Range<usize>, columns: usize) -> Int8<'a> {
        let groups = columns.div_ceil(GROUP);
        Int8 {
            values: &self.values[rows.start * columns..rows.end * columns],
            scales: &self.scales[rows.start * groups..rows.end * groups],
        }
    }

    /// Row `row` of a matrix of `y.len()` columns.
    pub fn copy_row(self, y: &mut [f32], row: usize) {
        let Int8 { values, scales } = self.rows(row..row + 1, y.len());
        for ((y, values), scale) in y.chunks_mut(GROUP).zip(values.chunks(GROUP)).zip(scales) {
            y.iter_mut().zip(values).for_each(|(y, value)| *y = f32::from(*value) * scale);
        }
    }
}

/// Rounds a row: the largest element of every group becomes 127 or -127, and the others the nearest multiples of a 127th
/// of it, so that no element moves by more than a 254th of the largest one of its group.
///
/// * `values`: `[columns]`. `scales`: `[groups]`.
pub fn quantise(values: &mut [i8], scales: &mut [f32], row: &[f32]) {
    for ((values, scale), row) in values.chunks_mut(GROUP).zip(scales).zip(row.chunks(GROUP)) {
        let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        *scale = largest / 127.0;
        let by = if *scale == 0.0 { 0.0 } else { 1.0 / *scale };
        values.iter_mut().zip(row).for_each(|(value, x)| *value = (x * by).round() as i8);
    }
}

/// Vectors that meet a matrix: 16-bit integers with a scale for every group, which moves an element by no more than a
/// 65,534th of the largest one of its group.
pub struct Activations {
    /// `[rows, groups * GROUP]`, zeros behind the last element.
    values: Vec<i16>,
    /// `[rows, groups]`.
    scales: Vec<f32>,
    columns: usize,
}

impl Activations {
    /// Rounds rows of `columns` elements.
    pub fn of(x: &[f32], columns: usize) -> Activations {
        let (rows, groups) = (x.len() / columns, columns.div_ceil(GROUP));
        let mut all =
            Activations { values: vec![0; rows * groups * GROUP], scales: vec![0.0; rows * groups], columns };
        let values = all.values.chunks_exact_mut(groups * GROUP);
        for ((values, scales), x) in
            values.zip(all.scales.chunks_exact_mut(groups)).zip(x.chunks_exact(columns))
        {
            round_to_16_bits(values, scales, x);
        }
        all
    }

    /// `y[r][o] = w[o] . x[r]` for the rows `rows`, at most [`ROWS`](super::ROWS), or `+=` with `accumulate`: sums of a
    /// group are exact, and those of the groups `f32` in an order that depends on the columns alone, so that a row has
    /// the bits that it has alone.
    pub fn dots(&self, y: &mut [&mut [f32]], rows: Range<usize>, w: Int8<'_>, accumulate: bool) {
        let groups = self.columns.div_ceil(GROUP);
        let x = &self.values[rows.start * groups * GROUP..rows.end * groups * GROUP];
        let scales = &self.scales[rows.start * groups..rows.end * groups];
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        if super::isa::has_vnni() && self.columns.is_multiple_of(GROUP) {
            let outputs = y.first().map_or(0, |y| y.len());
            assert!(y.len() == rows.len() && y.iter().all(|y| y.len() == outputs));
            assert!(outputs * self.columns <= w.values.len() && outputs * groups <= w.scales.len());
            // SAFETY: the instructions were found on this processor; the matrix has a row for every element of a `y`,
            // and there are as many vectors as there are `y`, all of the same length.
            return unsafe {
                match y {
                    [] => (),
                    [one] => vnni::dots([one], x, scales, w, accumulate),
                    [one, two] => vnni::dots([one, two], x, scales, w, accumulate),
                    [one, two, three] => vnni::dots([one, two, three], x, scales, w, accumulate),
                    [one, two, three, four] => vnni::dots([one, two, three, four], x, scales, w, accumulate),
                    _ => unreachable!("at most {} rows", super::ROWS),
                }
            };
        }
        let each = x.chunks_exact(groups * GROUP).zip(scales.chunks_exact(groups));
        for (y, (x, scales)) in y.iter_mut().zip(each) {
            dots(y, x, scales, w, self.columns, accumulate);
        }
    }
}

simd! {
    fn round_to_16_bits(values: &mut [i16], scales: &mut [f32], x: &[f32]) {
        for ((values, scale), x) in values.chunks_mut(GROUP).zip(scales).zip(x.chunks(GROUP)) {
            let largest = x.iter().fold(0.0f32, |largest, x| if largest < x.abs() { x.abs() } else { largest });
            *scale = largest / 32_767.0;
            let by = if largest == 0.0 { 0.0 } else { 32_767.0 / largest };
            for (value, x) in values.iter_mut().zip(x) {
                // Adding it rounds to an integer, which then stands in the low bits.
                const ROUND: f32 = 12_582_912.0;
                *value = (x * by + ROUND).to_bits() as i16;
            }
        }
    }
}

/// Lanes of a sum: the pair of elements `2 * j` and `2 * j + 1` of every half of a group goes to lane `j`.
const LANES: usize = 16;

simd! {
    fn dots(y: &mut [f32], x: &[i16], x_scales: &[f32], w: Int8<'_>, columns: usize, accumulate: bool) {
        let rows = w.values.chunks_exact(columns).zip(w.scales.chunks_exact(x_scales.len()));
        for (y, (values, scales)) in y.iter_mut().zip(rows) {
            let mut lanes = [[0.0f32; LANES]; 2];
            let groups = values.chunks(GROUP).zip(x.as_chunks::<GROUP>().0).zip(scales.iter().zip(x_scales));
            for (g, ((w, x), (w_scale, x_scale))) in groups.enumerate() {
                let mut sums = [0i32; LANES];
                if let Ok(w) = <&[i8; GROUP]>::try_from(w) {
                    let product = |i: usize| i32::from(w[i]) * i32::from(x[i]);
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = product(2 * j) + product(2 * j + 1) + product(32 + 2 * j) + product(33 + 2 * j);
                    }
                } else {
                    for (i, (w, x)) in w.iter().zip(x).enumerate() {
                        sums[i / 2 % LANES] += i32::from(*w) * i32::from(*x);
                    }
                }
                for j in 0..LANES {
                    // Exact: a sum of four products has 24 bits.
                    lanes[g % 2][j] = multiply_add::<FMA>(sums[j] as f32, w_scale * x_scale, lanes[g % 2][j]);
                }
            }
            let [mut sums, more] = lanes;
            (0..LANES).for_each(|j| sums[j] += more[j]);
            let sum = add_lanes(sums);
            *y = if accumulate { *y + sum } else { sum };
        }
    }
}

/// Halves the lanes until one is left.
#[inline(always)]
fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    for width in [8, 4, 2, 1] {
        (0..width).for_each(|j| lanes[j] += lanes[j + width]);
    }
    lanes[0]
}

/// The same bits by dot products of 16-bit pairs, which the compiler does not find.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod vnni {
    use super::{GROUP, Int8, add_lanes};
    use crate::kernels::isa::{AHEAD, prefetch};
    use std::arch::x86_64::*;

    /// `N` vectors, which share each load of a weight.
    ///
    /// # Safety
    /// The processor has the features; all `y` have one length, the matrix a row for every element of a `y`, and `x` and
    /// `x_scales` have `N` vectors of one row's length, which is whole groups.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub unsafe fn dots<const N: usize>(
        y: [&mut [f32]; N],
        x: &[i16],
        x_scales: &[f32],
        w: Int8<'_>,
        accumulate: bool,
    ) {
        let (columns, groups) = (x.len() / N, x_scales.len() / N);
        for o in 0..y[0].len() {
            let (values, scales) = (w.values[o * columns..].as_ptr(), w.scales[o * groups..].as_ptr());
            let (mut even, mut odd) = ([_mm512_setzero_ps(); N], [_mm512_setzero_ps(); N]);
            let add = |g: usize, lanes: &mut [__m512; N]| {
                // SAFETY: inside the rows, which are whole groups.
                unsafe {
                    let w = values.add(g * GROUP);
                    prefetch(w.wrapping_add(AHEAD));
                    let (low, high) = (_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(w.add(32).cast()));
                    let (low, high) = (_mm512_cvtepi8_epi16(low), _mm512_cvtepi8_epi16(high));
                    for (n, lanes) in lanes.iter_mut().enumerate() {
                        let x = x.as_ptr().add(n * columns + g * GROUP);
                        let sum = _mm512_setzero_si512();
                        let sum = _mm512_dpwssd_epi32(sum, low, _mm512_loadu_si512(x.cast()));
                        let sum = _mm512_dpwssd_epi32(sum, high, _mm512_loadu_si512(x.add(32).cast()));
                        let scale = _mm512_set1_ps(*scales.add(g) * *x_scales.as_ptr().add(n * groups + g));
                        *lanes = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, *lanes);
                    }
                }
            };
            // By pairs, so that all lanes stay in registers.
            for g in (0..groups & !1).step_by(2) {
                add(g, &mut even);
                add(g + 1, &mut odd);
            }
            if groups % 2 == 1 {
                add(groups - 1, &mut even);
            }
            for n in 0..N {
                let mut sums = [0.0; 16];
                // SAFETY: 16 elements.
                unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_add_ps(even[n], odd[n])) };
                let (y, sum) = (&mut y[n][o], add_lanes(sums));
                *y = if accumulate { *y + sum } else { sum };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::ROWS;
    use crate::random::Random;

    #[test]
    fn no_element_moves_by_more_than_half_a_step_of_its_group() {
        let mut random = Random::new(1);
        let mut row = random.normals(3 * GROUP + 5);
        row[..GROUP].fill(0.0);
        row[GROUP] = 100.0;
        let (mut values, mut scales) = (vec![0; row.len()], vec![0.0; 4]);
        quantise(&mut values, &mut scales, &row);
        let mut back = vec![0.0; row.len()];
        Int8 { values: &values, scales: &scales }.copy_row(&mut back, 0);
        for (i, (x, y)) in row.iter().zip(&back).enumerate() {
            assert!((x - y).abs() <= 0.501 * scales[i / GROUP], "{i}: {x} became {y}");
        }
        assert_eq!((scales[0], values[GROUP]), (0.0, 127));
    }

    #[test]
    fn sums_are_near_the_exact_ones_and_the_same_bits_in_company_and_without_vnni() {
        let mut random = Random::new(2);
        for columns in [64, 768, 65, 7, 200] {
            let (x, w) = (random.normals(ROWS * columns), random.normals(5 * columns));
            let groups = columns.div_ceil(GROUP);
            let (mut values, mut scales) = (vec![0; 5 * columns], vec![0.0; 5 * groups]);
            for row in 0..5 {
                let to = &mut values[row * columns..(row + 1) * columns];
                quantise(
                    to,
                    &mut scales[row * groups..(row + 1) * groups],
                    &w[row * columns..(row + 1) * columns],
                );
            }
            let w = Int8 { values: &values, scales: &scales };
            let all = Activations::of(&x, columns);
            let mut together = [[1.0; 5]; ROWS];
            all.dots(&mut together.each_mut().map(|y| &mut y[..]), 0..ROWS, w, true);
            for (row, x) in x.chunks_exact(columns).enumerate() {
                let (mut y, mut plain) = ([1.0; 5], vec![1.0; 5]);
                all.dots(&mut [&mut y], row..row + 1, w, true);
                assert_eq!(y, together[row], "{columns}");
                let part = row * groups * GROUP..(row + 1) * groups * GROUP;
                let x_scales = &all.scales[row * groups..(row + 1) * groups];
                dots(&mut plain, &all.values[part], x_scales, w, columns, true);
                assert_eq!(y[..], plain, "{columns}");
                for (o, y) in y.iter().enumerate() {
                    let mut exact = vec![0.0; columns];
                    w.copy_row(&mut exact, o);
                    let sum: f32 = exact.iter().zip(x).map(|(w, x)| w * x).sum();
                    let size: f32 = exact.iter().zip(x).map(|(w, x)| (w * x).abs()).sum();
                    assert!((y - 1.0 - sum).abs() < 1e-4 * size + 1e-5, "{columns}: {y}, not {}", sum + 1.0);
                }
            }
        }
    }
}
