//! Matrices of 8-bit integers with a scale for every group of neighbours in a row.

use super::isa::{multiply_add, simd};

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
    pub fn rows(self, rows: std::ops::Range<usize>, columns: usize) -> Int8<'a> {
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

/// Lanes of a sum.
const LANES: usize = 16;

simd! {
    /// `y[o] = w[o] . x`, or `+=` with `accumulate`; products and sums are `f32`, in an order that depends on the length
    /// of `x` alone.
    pub fn dots(y: &mut [f32], x: &[f32], w: Int8<'_>, accumulate: bool) {
        let whole = x.len() / GROUP;
        let rows = w.values.chunks_exact(x.len()).zip(w.scales.chunks_exact(x.len().div_ceil(GROUP)));
        for (y, (values, scales)) in y.iter_mut().zip(rows) {
            let mut lanes = [0.0f32; LANES];
            let (groups, rest) = values.as_chunks::<GROUP>();
            let (x_groups, x_rest) = x.as_chunks::<GROUP>();
            for ((w, x), scale) in groups.iter().zip(x_groups).zip(scales) {
                let mut sums = [0.0f32; LANES];
                for i in 0..GROUP / LANES {
                    for j in 0..LANES {
                        let w = f32::from(w[i * LANES + j]);
                        sums[j] = multiply_add::<FMA>(w, x[i * LANES + j], sums[j]);
                    }
                }
                for j in 0..LANES {
                    lanes[j] = multiply_add::<FMA>(sums[j], *scale, lanes[j]);
                }
            }
            for (j, (w, x)) in rest.iter().zip(x_rest).enumerate() {
                lanes[j % LANES] = multiply_add::<FMA>(f32::from(*w) * scales[whole], *x, lanes[j % LANES]);
            }
            let mut width = LANES / 2;
            while 0 < width {
                for j in 0..width {
                    lanes[j] += lanes[j + width];
                }
                width /= 2;
            }
            *y = if accumulate { *y + lanes[0] } else { lanes[0] };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
