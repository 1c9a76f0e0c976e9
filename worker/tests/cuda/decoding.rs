//! What decodes one token of each sequence: the cache, attention over it, layers of few rows.

use crate::assert_near;
use crate::card::{Arg, Card, ELEMS, Size, long, size};
use aquifer_worker::kernels::{Attention, BLOCK, GROUP, Int8, Linear, Qkv, quantise, reference};
use aquifer_worker::random::{Random, permute};

/// A cache with the keys and values of several sequences, whose blocks are scattered.
struct Cache {
    tables: Vec<i32>,
    stride: usize,
    blocks: usize,
}

impl Cache {
    fn new(seen: &[usize]) -> Cache {
        let stride = seen.iter().max().unwrap().div_ceil(BLOCK);
        let blocks = seen.len() * stride + 3;
        let tables = (0..seen.len() * stride).map(|i| permute(i as u64, blocks as u64, 5) as i32).collect();
        Cache { tables, stride, blocks }
    }

    fn slot(&self, sequence: usize, position: usize) -> i32 {
        let block = self.tables[sequence * self.stride + position / BLOCK];
        block * BLOCK as i32 + (position % BLOCK) as i32
    }
}

#[test]
fn attention_over_a_cache() {
    let Some(card) = Card::get() else { return };
    // head_dim, heads, kv_heads, keys of each sequence; one of 0 is left out.
    for (head_dim, heads, kv_heads, seen) in [
        (8, 4, 2, vec![1, 16, 0, 17, 300]),
        (64, 18, 1, vec![33, 5]),
        (80, 6, 2, vec![40]),
        (128, 4, 1, vec![257, 64]),
    ] {
        for elem in ELEMS {
            let program = card.program("cached.cu", elem, head_dim);
            let mut random = Random::new(head_dim as u64);
            let mut some = |count: usize, by: f32| -> Vec<f32> {
                random.normals(count).iter().map(|x| elem.round(by * x)).collect()
            };
            let (rows, cache) = (seen.len(), Cache::new(&seen));
            let (width, narrow) = (heads * head_dim, kv_heads * head_dim);
            let q = some(rows * width, 2.0);
            let keys: Vec<Vec<f32>> = seen.iter().map(|count| some(count * narrow, 1.0)).collect();
            let values: Vec<Vec<f32>> = seen.iter().map(|count| some(count * narrow, 1.0)).collect();
            let size_of_cache = cache.blocks * BLOCK * narrow;
            let (cache_k, cache_v) =
                (card.no_elements(elem, size_of_cache), card.no_elements(elem, size_of_cache));
            for (sequence, (k, v)) in keys.iter().zip(&values).enumerate().filter(|(i, _)| 0 < seen[*i]) {
                // Keys and values side by side, and a row that goes nowhere.
                let mut both: Vec<f32> =
                    k.chunks(narrow).zip(v.chunks(narrow)).flat_map(|(k, v)| [k, v].concat()).collect();
                both.extend(vec![f32::NAN; 2 * narrow]);
                let count = seen[sequence];
                let mut slots: Vec<i32> = (0..count).map(|at| cache.slot(sequence, at)).collect();
                slots.push(-1);
                let (both, slots) = (card.elements(elem, &both), card.ints(&slots));
                let values = both.from(narrow * elem.bytes());
                let args = [(&cache_k).into(), (&cache_v).into(), (&both).into(), values, (&slots).into()];
                let shape = [(count + 1).into(), kv_heads.into(), (2 * narrow).into()];
                program.launch("cache_write", size(count + 1, 128), &[&args[..], &shape].concat());

                let table = &cache.tables[sequence * cache.stride..(sequence + 1) * cache.stride];
                let table = card.ints(table);
                let (back_k, back_v) =
                    (card.no_elements(elem, count * narrow), card.no_elements(elem, count * narrow));
                let outputs: [Arg; 2] = [(&back_k).into(), (&back_v).into()];
                let inputs = [(&cache_k).into(), (&cache_v).into(), (&table).into()];
                let args = [&outputs[..], &inputs, &[count.into(), kv_heads.into()]].concat();
                program.launch("cache_read", size(count, 128), &args);
                assert_eq!(&back_k.as_elements(elem), k, "{head_dim}");
                assert_eq!(&back_v.as_elements(elem), v, "{head_dim}");
            }

            let seen_memory = card.ints(&seen.iter().map(|count| *count as i32).collect::<Vec<_>>());
            let (tables, q_memory) = (card.ints(&cache.tables), card.elements(elem, &q));
            let attend = |parts: usize| {
                let partial = card.no_floats(rows * heads * parts * (head_dim + 2));
                let out = card.no_elements(elem, rows * width);
                let one = Attention { queries: 1, start: 0, heads, kv_heads, head_dim };
                let args = [
                    (&partial).into(),
                    (&q_memory).into(),
                    (&cache_k).into(),
                    (&cache_v).into(),
                    (&tables).into(),
                    (&seen_memory).into(),
                    cache.stride.into(),
                    heads.into(),
                    kv_heads.into(),
                    width.into(),
                    parts.into(),
                    one.scale().into(),
                ];
                let grid = [kv_heads, rows, parts];
                program.launch("attention_cached", Size { grid, block: 128, shared: 0 }, &args);
                let args =
                    [(&out).into(), (&partial).into(), (&seen_memory).into(), heads.into(), parts.into()];
                let grid = [heads, rows, 1];
                program.launch("attention_cached_combine", Size { grid, block: 128, shared: 0 }, &args);
                out.as_elements(elem)
            };
            let parts = seen.iter().max().unwrap().div_ceil(256);
            let out = attend(parts);
            assert_eq!(attend(parts + 1), out, "the number of parts changes bits");
            for (row, keys_seen) in seen.iter().enumerate() {
                let part = row * width..(row + 1) * width;
                let mut expected = vec![0.0; width];
                if 0 < *keys_seen {
                    let one = Attention { queries: 1, start: keys_seen - 1, heads, kv_heads, head_dim };
                    let inputs = Qkv { q: &q[part.clone()], k: &keys[row], v: &values[row] };
                    reference::attention_forward(one, &mut expected, &mut vec![0.0; heads], inputs);
                }
                // In bf16 weights are rounded as well.
                let name = format!("{elem:?} head_dim {head_dim}, {keys_seen} keys");
                assert_near(&name, &out[part], &expected, 2.0 * elem.tolerance());
            }
        }
    }
}

/// Rounds the rows of a matrix to 8 bits.
fn to_int8(w: &[f32], inputs: usize) -> (Vec<i8>, Vec<f32>) {
    let (rows, groups) = (w.len() / inputs, inputs.div_ceil(GROUP));
    let (mut values, mut scales) = (vec![0; w.len()], vec![0.0; rows * groups]);
    for ((values, scales), row) in
        values.chunks_mut(inputs).zip(scales.chunks_mut(groups)).zip(w.chunks(inputs))
    {
        quantise(values, scales, row);
    }
    (values, scales)
}

#[test]
fn layers_of_few_rows() {
    let Some(card) = Card::get() else { return };
    for elem in ELEMS {
        let program = card.program("linear_few.cu", elem, 8);
        for (rows, inputs, outputs) in
            [(1, 8, 1), (3, 24, 40), (8, 100, 17), (9, 1096, 16), (16, 320, 33), (2, 4096 + 64, 5), (4, 7, 3)]
        {
            let mut random = Random::new((rows + inputs) as u64);
            let x = elem.round_all(&random.normals(rows * inputs));
            let w = random.normals(outputs * inputs);
            let (int8, scales) = to_int8(&w, inputs);
            let w = elem.round_all(&w);
            let mut wide = vec![0.0; w.len()];
            for (row, wide) in wide.chunks_mut(inputs).enumerate() {
                Int8 { values: &int8, scales: &scales }.copy_row(wide, row);
            }
            let before = random.normals(rows * outputs);
            let (x_memory, w_memory) = (card.elements(elem, &x), card.elements(elem, &w));
            let (int8, scales) = (card.bytes(&int8), card.floats(&scales));
            for eight in [false, true] {
                let weights: Vec<Arg> =
                    if eight { vec![(&int8).into(), (&scales).into()] } else { vec![(&w_memory).into()] };
                let kernel = if eight { "linear_few_int8" } else { "linear_few" };
                let shape = [rows.into(), inputs.into(), outputs.into()];
                let grid = size(outputs.div_ceil(16), 256);
                let name = format!("{kernel} {elem:?} {rows} x {inputs} x {outputs}");
                let mut expected = vec![0.0; rows * outputs];
                let layer = Linear::new(rows, inputs, outputs);
                reference::linear_forward(layer, &mut expected, &x, if eight { &wide } else { &w }, false);

                let y = card.no_elements(elem, rows * outputs);
                let args = [&[(&y).into(), (&x_memory).into()][..], &weights, &shape].concat();
                program.launch(kernel, grid, &args);
                assert_near(&name, &y.as_elements(elem), &expected, elem.tolerance());

                let y = card.floats(&before);
                let args = [&[(&y).into(), (&x_memory).into()][..], &weights, &shape, &[1.into()]].concat();
                program.launch(&format!("{kernel}_float"), grid, &args);
                let grown: Vec<f32> = before.iter().zip(&expected).map(|(a, b)| a + b).collect();
                let floats = y.as_floats();
                // Sums are not rounded to elements.
                assert_near(&name, &floats, &grown, 4e-6);

                // Each row alone has the same bits.
                for row in 0..rows {
                    let y = card.floats(&before[row * outputs..(row + 1) * outputs]);
                    let from = x_memory.from(row * inputs * elem.bytes());
                    let shape = [1.into(), inputs.into(), outputs.into(), 1.into()];
                    let args = [&[(&y).into(), from][..], &weights, &shape].concat();
                    program.launch(&format!("{kernel}_float"), grid, &args);
                    assert_eq!(
                        y.as_floats(),
                        floats[row * outputs..(row + 1) * outputs],
                        "{name}, row {row}"
                    );
                }
            }
        }
    }
}

/// For products of many rows, and as rows of an embedding: exactly, but for the rounding of elements.
#[test]
fn matrices_of_8_bits_are_widened() {
    let Some(card) = Card::get() else { return };
    for elem in ELEMS {
        let program = card.program("elementwise.cu", elem, 8);
        for (rows, width) in [(3, 64), (5, 100), (2, 8), (4, 7), (3, 2056)] {
            let (int8, scales) = to_int8(&Random::new(width as u64).normals(rows * width), width);
            let mut wide = vec![0.0; rows * width];
            for (row, wide) in wide.chunks_mut(width).enumerate() {
                Int8 { values: &int8, scales: &scales }.copy_row(wide, row);
            }
            let (int8, scales) = (card.bytes(&int8), card.floats(&scales));
            let weights: [Arg; 2] = [(&int8).into(), (&scales).into()];
            let y = card.no_elements(elem, rows * width);
            let args = [&[(&y).into()], &weights[..], &[long(rows), width.into()]].concat();
            program.launch("widen_int8", size((rows * width.div_ceil(8)).div_ceil(256), 256), &args);
            assert_eq!(y.as_elements(elem), elem.round_all(&wide), "{elem:?} {rows} x {width}");

            let (y, tokens) = (card.no_floats(2 * width), card.ints(&[rows as i32 - 1, 0]));
            let args =
                [&[(&y).into(), (&tokens).into()], &weights[..], &[2usize.into(), width.into()]].concat();
            program.launch("embedding_forward_int8", size(2, 256), &args);
            let expected = [&wide[(rows - 1) * width..], &wide[..width]].concat();
            assert_eq!(y.as_floats(), expected, "{elem:?} {rows} x {width}");
        }
    }
}
