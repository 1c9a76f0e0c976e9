//! Second moments in few numbers: of a matrix the sums of its rows and of its columns, of a vector all.
//!
//! The mean square gradient of an element of a matrix is, near enough, its row's share of the whole times its column's. So what is
//! sent of the second moments of a model is about a hundredth of its size, and it can be added up: the sums of a mean over replicas are
//! the means of their sums.
//!
//! Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", arXiv 1804.04235, section 3.

use crate::model::Layout;
use std::ops::Range;

/// Numbers that stand for the second moments of a model.
pub fn len(layout: &Layout) -> usize {
    places(layout).last().map_or(0, |(_, place)| place.end)
}

/// Writes what stands for `second`, `[parameters]`, to `factors`, `[len(layout)]`.
pub fn write(layout: &Layout, second: &[f32], factors: &mut [f32]) {
    for (tensor, place) in places(layout) {
        let (values, factors) = (tensor.span.of(second), &mut factors[place]);
        let [rows, columns] = tensor.shape[..] else {
            factors.copy_from_slice(values);
            continue;
        };
        let mut of_columns = vec![0.0; columns];
        for (factor, row) in factors.iter_mut().zip(values.chunks_exact(columns)) {
            *factor = row.iter().map(|value| f64::from(*value)).sum::<f64>() as f32;
            of_columns.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let pairs = factors[rows..].iter_mut().zip(of_columns);
        pairs.for_each(|(factor, sum)| *factor = sum as f32);
    }
}

/// Second moments, `[parameters]`, from what stands for them, `[len(layout)]`, `times` over: `v[i, j] = row[i] * column[j] / sum(row) / times`.
pub fn read(layout: &Layout, factors: &[f32], times: f32, second: &mut [f32]) {
    for (tensor, place) in places(layout) {
        let (values, factors) = (tensor.span.of_mut(second), &factors[place]);
        let [rows, columns] = tensor.shape[..] else {
            values.iter_mut().zip(factors).for_each(|(value, factor)| *value = factor / times);
            continue;
        };
        let (of_rows, of_columns) = factors.split_at(rows);
        let all: f64 = of_rows.iter().map(|row| f64::from(*row)).sum();
        // Of what never had a gradient nothing is known: that is 0, not 0 / 0.
        let scale = if all == 0.0 { 0.0 } else { 1.0 / (all * f64::from(times)) };
        for (row, sum) in values.chunks_exact_mut(columns).zip(of_rows) {
            let share = f64::from(*sum) * scale;
            row.iter_mut()
                .zip(of_columns)
                .for_each(|(value, column)| *value = (share * f64::from(*column)) as f32);
        }
    }
}

/// Every tensor, and where its numbers stand.
fn places(layout: &Layout) -> impl Iterator<Item = (&crate::model::Tensor, Range<usize>)> {
    layout.tensors.iter().scan(0, |end, tensor| {
        let len = match tensor.shape[..] {
            [rows, columns] => rows + columns,
            _ => tensor.span.len,
        };
        let start = std::mem::replace(end, *end + len);
        Some((tensor, start..*end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;
    use crate::random::Random;

    #[test]
    fn products_of_rows_and_columns_come_back_and_sums_of_all_others() {
        let layout = Layout::new(&ModelConfig::preset("tiny").unwrap());
        assert!(len(&layout) < layout.len / 50, "{} of {}", len(&layout), layout.len);
        let mut random = Random::new(7);
        let mut second: Vec<f32> = random.normals(layout.len).iter().map(|it| it * it).collect();
        let product = &layout.tensors[1..].iter().find(|it| it.shape.len() == 2).unwrap();
        let columns = product.shape[1];
        for (at, value) in product.span.of_mut(&mut second).iter_mut().enumerate() {
            *value = (1 + at / columns) as f32 * (1 + at % columns) as f32 / 1e9;
        }
        layout.embedding.of_mut(&mut second).fill(0.0);
        let (mut factors, mut back) = (vec![f32::NAN; len(&layout)], vec![f32::NAN; layout.len]);
        write(&layout, &second, &mut factors);
        // As of three replicas that have the same.
        factors.iter_mut().for_each(|it| *it *= 3.0);
        read(&layout, &factors, 3.0, &mut back);
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-5 * b.abs();
        let pairs =
            |range: Range<usize>| back[range.clone()].iter().zip(&second[range]).all(|(a, b)| near(*a, *b));
        assert!(pairs(product.span.range()) && pairs(layout.norm.range()) && pairs(layout.embedding.range()));
        for tensor in &layout.tensors {
            let sum = |values: &[f32]| tensor.span.of(values).iter().sum::<f32>();
            assert!(
                (sum(&back) / sum(&second) - 1.0).abs() < 1e-3 || tensor.span == layout.embedding,
                "{}",
                tensor.name
            );
        }
    }
}
