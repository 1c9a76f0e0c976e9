//! Products against sums in double precision, in every shape that an edge of a block can have.

use super::*;
use crate::random::Random;

/// Every element of `a * b` of the factors as they are rounded in double precision, and the sum of the absolute products, which bounds the error.
fn exact(product: &Product<'_>) -> Vec<(f64, f64)> {
    let rounded = |x: f32| match product.precision {
        Precision::F32 => f64::from(x),
        Precision::Bf16 | Precision::Int8 => f64::from(Bf16::round(x).value()),
    };
    let sums = |index| {
        let (i, j) = (index / product.n, index % product.n);
        let terms = (0..product.k).map(|k| rounded(product.a.get(i, k)) * rounded(product.b.get(k, j)));
        terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()))
    };
    (0..product.m * product.n).map(sums).collect()
}

/// Within roundings of the sum in f32, whatever its order.
fn assert_right(name: &str, product: &Product<'_>, c: &[f32], stride: usize, before: f32) {
    let unit = f64::from(f32::EPSILON) * (product.k as f64).sqrt().max(4.0);
    for (index, (sum, size)) in exact(product).into_iter().enumerate() {
        let got = f64::from(c[index / product.n * stride + index % product.n]);
        let error = (got - sum - f64::from(before)).abs();
        assert!(
            error <= unit * (size + f64::from(before.abs()) + 1e-6),
            "{name} at {index}: {got}, not {sum}"
        );
    }
}

const SHAPES: [[usize; 3]; 10] = [
    [1, 1, 1],
    [14, 32, 512],
    [15, 33, 513],
    [13, 31, 511],
    [1, 100, 3],
    [97, 1, 1025],
    [29, 70, 1024],
    [84, 1025, 7],
    [100, 1056, 2],
    [27, 65, 0],
];

#[test]
fn products_are_right_at_every_edge_of_the_blocks_in_all_layouts_and_precisions() {
    let mut random = Random::new(1);
    for [m, n, k] in SHAPES {
        let (a, b) = (random.normals(m * k), random.normals(k * n));
        let rounded = |x: &[f32]| x.iter().map(|x| Bf16::round(*x)).collect::<Vec<_>>();
        let (half_a, half_b) = (rounded(&a), rounded(&b));
        for a in
            [View::rows(&a, k.max(1)), View::transposed(&a, m), View::of(Elements::Bf16(&half_a), k.max(1))]
        {
            for b in [View::rows(&b, n), View::transposed(&b, k.max(1)), View::of(Elements::Bf16(&half_b), n)]
            {
                for precision in [Precision::F32, Precision::Bf16] {
                    let product = Product { m, n, k, a, b, precision };
                    let name = format!("{m} x {n} x {k} {precision:?}");
                    for (accumulate, before) in [(false, 0.0), (true, 3.0)] {
                        let stride = n + 5;
                        let mut c = vec![3.0; m * stride];
                        product.run(&Pool::new(2), &mut c, stride, accumulate);
                        assert_right(&name, &product, &c, stride, before);
                        let margin =
                            c.chunks(stride).flat_map(|row| &row[n..]).filter(|x| **x != 3.0).count();
                        assert_eq!(margin, 0, "{name}: wrote beside the result");
                    }
                }
            }
        }
    }
}

#[test]
fn the_loops_of_other_instruction_sets_are_right_too() {
    let mut random = Random::new(2);
    for [m, n, k] in SHAPES {
        let (a, b) = (random.normals(m * k), random.normals(k * n));
        for precision in [Precision::F32, Precision::Bf16] {
            let (a, b) = (View::rows(&a, k.max(1)), View::transposed(&b, k.max(1)));
            let product = Product { m, n, k, a, b, precision };
            let run = |which: fn(&Product<'_>, Tile)| {
                let mut c = vec![0.0; m * n];
                which(&product, Out { parts: Parts::new(&mut c), stride: n }.from(0, 0));
                assert_right(&format!("{m} x {n} x {k} {precision:?}"), &product, &c, n, 0.0);
            };
            run(|product, c| product.blocked::<Loops<4, 8, false>>(c, false));
            #[cfg(target_arch = "x86_64")]
            {
                #[allow(unsafe_code)]
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: just detected.
                    run(|product, c| unsafe { product.narrow(c, false) });
                }
                #[allow(unsafe_code)]
                if matches!(Isa::best(), Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx) {
                    // SAFETY: just detected.
                    run(|product, c| unsafe { product.wide(c, false) });
                }
                if Isa::best() == Isa::Amx && precision == Precision::Bf16 {
                    run(|product, c| product.blocked::<avx512::Pairs>(c, false));
                }
            }
        }
    }
}

#[test]
fn results_have_the_same_bits_for_any_number_of_threads_and_any_company() {
    let mut random = Random::new(3);
    let (m, n, k) = (300, 290, 1100);
    let (a, b) = (random.normals(m * k), random.normals(k * n));
    for precision in [Precision::F32, Precision::Bf16] {
        let run = |threads, first: usize, m| {
            let (a, b) = (View::rows(&a[first * k..], k), View::rows(&b, n));
            let mut c = vec![0.0; m * n];
            Product { m, n, k, a, b, precision }.run(&Pool::new(threads), &mut c, n, false);
            c
        };
        let one = run(1, 0, m);
        assert!(one == run(2, 0, m) && one == run(3, 0, m) && one == run(16, 0, m), "{precision:?}");
        assert!(run(2, 101, 40) == one[101 * n..141 * n], "{precision:?}: rows depend on their company");
    }
}
