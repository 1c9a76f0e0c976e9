//! Tiles and panels for AVX-512: 14 x 32 sums in 28 of the 32 registers.
#![allow(unsafe_code)]

use super::{Elements, Instructions, Tile, View};
use std::arch::x86_64::*;

const ROWS: usize = 14;
const COLUMNS: usize = 32;
/// `ROWS * DEPTH * 4` bytes of a panel of `a` fill the first-level cache but for the tile's own lines.
const DEPTH: usize = 512;
/// 32-bit elements in a vector.
const V: usize = 16;

/// Lanes of one `f32`; both operands are `f32`.
pub struct Singles;
/// Lanes of two bf16.
pub struct Pairs;

/// The mask of the first `count` of 16 elements.
fn first(count: usize) -> u16 {
    if count < V { (1u16 << count) - 1 } else { u16::MAX }
}

/// The mask of the first `count` of 32 elements.
fn first32(count: usize) -> u32 {
    if count < 2 * V { (1u32 << count) - 1 } else { u32::MAX }
}

/// Defines the tile of one kind of lane: `$op(sums, a, b)` multiplies lanes and adds.
macro_rules! tile {
    ($name:ident, $features:literal, $op:expr) => {
        /// The first `R` rows of a tile; `columns <= 32`.
        ///
        /// # Safety
        /// The processor has the features; the panels are `depth` lanes deep; `c` has `R` rows of `columns`.
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize>(
            depth: usize,
            mut a: *const u32,
            mut b: *const u32,
            c: Tile,
            columns: usize,
            add: bool,
        ) {
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            let (low, high) = (first(columns), first(columns.saturating_sub(V)));
            for i in 0..R {
                let row = c.start.wrapping_add(i * c.stride);
                _mm_prefetch::<_MM_HINT_T0>(row.cast());
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(V).cast());
            }
            for _ in 0..depth {
                let ahead = b.wrapping_add(8 * COLUMNS);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(V).cast());
                // SAFETY: inside the panels, which are `depth` lanes deep.
                unsafe {
                    let (left, right) = (_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(V).cast()));
                    for i in 0..R {
                        let x = _mm512_set1_epi32(*a.add(i) as i32);
                        sums[i][0] = $op(sums[i][0], x, left);
                        sums[i][1] = $op(sums[i][1], x, right);
                    }
                    (a, b) = (a.add(ROWS), b.add(COLUMNS));
                }
            }
            for (i, [left, right]) in sums.into_iter().enumerate() {
                let row = c.start.wrapping_add(i * c.stride);
                // SAFETY: the masks keep to the row's `columns` elements.
                unsafe { put(row, low, left, add) };
                unsafe { put(row.wrapping_add(V), high, right, add) };
            }
        }
    };
}

tile!(singles, "avx512f", |c, x, y| _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y), c));
tile!(pairs, "avx512f,avx512bf16", |c, x: __m512i, y: __m512i| _mm512_dpbf16_ps(
    c,
    // SAFETY: both are 64 bytes of any content.
    std::mem::transmute::<__m512i, __m512bh>(x),
    std::mem::transmute::<__m512i, __m512bh>(y)
));

/// # Safety
/// The elements of `mask` can be read and written.
#[target_feature(enable = "avx512f")]
unsafe fn put(at: *mut f32, mask: u16, sums: __m512, add: bool) {
    // SAFETY: as the caller promises.
    unsafe {
        if mask == u16::MAX {
            let sums = if add { _mm512_add_ps(_mm512_loadu_ps(at), sums) } else { sums };
            _mm512_storeu_ps(at, sums);
        } else if mask != 0 {
            let sums = if add { _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), sums) } else { sums };
            _mm512_mask_storeu_ps(at, mask, sums);
        }
    }
}

/// Makes tiles of `$tile` and panels of `$pack`, with `$lane` elements a lane, the instructions of a kind of lane. A
/// tile has as many rows as are wanted, because the panel's other rows are zeros.
macro_rules! instructions {
    ($kind:ident, $lane:literal, $pack:ident, $tile:ident, [$($r:literal)*]) => {
        impl Instructions for $kind {
            const ROWS: usize = ROWS;
            const COLUMNS: usize = COLUMNS;
            const LANE: usize = $lane;
            const DEPTH: usize = DEPTH;

            fn begin() -> Self {
                $kind
            }

            fn pack_a(panel: &mut [u32], from: View<'_>, rows: usize, elements: usize, _: bool) {
                $pack::<ROWS>(panel, from, rows, elements);
            }

            fn pack_b(panel: &mut [u32], from: View<'_>, columns: usize, elements: usize, _: bool) {
                $pack::<COLUMNS>(panel, from, columns, elements);
            }

            fn tile(&self, depth: usize, [a, b]: [&[u32]; 2], c: Tile, rows: usize, columns: usize, add: bool) {
                assert!(ROWS * depth <= a.len() && COLUMNS * depth <= b.len());
                // SAFETY: the instructions were found before this module was chosen; the panels are as deep as asserted.
                match rows {
                    $($r => unsafe { $tile::<$r>(depth, a.as_ptr(), b.as_ptr(), c, columns, add) },)*
                    _ => unreachable!("a tile has at most {ROWS} rows"),
                }
            }
        }
    };
}

instructions!(Singles, 1, pack_singles, singles, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]);
instructions!(Pairs, 2, pack_pairs, pairs, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]);

fn pack_singles<const W: usize>(panel: &mut [u32], from: View<'_>, rows: usize, elements: usize) {
    let Elements::F32(data) = from.data else { panic!("operands of f32 products are f32") };
    check::<W>(panel, from, rows, elements, elements);
    let (to, data) = (panel.as_mut_ptr(), data.as_ptr());
    // SAFETY: the instructions were found before this module was chosen; `check` found room on both sides.
    unsafe {
        match from.row {
            1 => singles_by_depth::<W>(to, data, from.column, rows, elements),
            _ => singles_by_row::<W>(to, data, from.row, rows, elements),
        }
    }
}

pub(super) fn pack_pairs<const W: usize>(panel: &mut [u32], from: View<'_>, rows: usize, elements: usize) {
    check::<W>(panel, from, rows, elements, elements.div_ceil(2));
    let to = panel.as_mut_ptr();
    // SAFETY: the instructions were found before this module was chosen; `check` found room on both sides.
    unsafe {
        match (from.data, from.row) {
            (Elements::F32(data), 1) => rounded_by_depth::<W>(to, data.as_ptr(), from.column, rows, elements),
            (Elements::F32(data), _) => rounded_by_row::<W>(to, data.as_ptr(), from.row, rows, elements),
            (Elements::Bf16(data), 1) => {
                halves_by_depth::<W>(to, data.as_ptr().cast(), from.column, rows, elements);
            }
            (Elements::Bf16(data), _) => {
                halves_by_row::<W>(to, data.as_ptr().cast(), from.row, rows, elements);
            }
        }
    }
}

/// Fills a panel with lanes of 16 pairs, each of which stays together: lane `l` of row `i` at `panel[(l * W + i) * 16]`.
pub(super) fn keep_pairs<const W: usize>(panel: &mut [u32], from: View<'_>, rows: usize, elements: usize) {
    check::<W>(panel, from, rows, elements, elements.div_ceil(2).next_multiple_of(V));
    let to = panel.as_mut_ptr();
    // SAFETY: the instructions were found before this module was chosen; `check` found room on both sides.
    unsafe {
        match (from.data, from.row) {
            (Elements::F32(data), 1) => {
                rounded_rows_by_depth::<W>(to, data.as_ptr(), from.column, rows, elements);
            }
            (Elements::F32(data), _) => {
                rounded_rows_by_row::<W>(to, data.as_ptr(), from.row, rows, elements);
            }
            (Elements::Bf16(data), 1) => {
                halves_rows_by_depth::<W>(to, data.as_ptr().cast(), from.column, rows, elements);
            }
            (Elements::Bf16(data), _) => {
                halves_rows_by_row::<W>(to, data.as_ptr().cast(), from.row, rows, elements);
            }
        }
    }
}

/// There is room for `lanes` lanes of `W` rows, and the matrix holds what is packed.
fn check<const W: usize>(panel: &[u32], from: View<'_>, rows: usize, elements: usize, lanes: usize) {
    assert!(W * lanes <= panel.len() && rows <= W, "the panel has no room");
    assert!(from.holds(rows, elements) && (from.row == 1 || from.column == 1));
}

/// Defines a function that packs `rows` rows of `elements` elements, whose lines in memory are `stride` elements apart, into a
/// panel of `W` rows.
macro_rules! packing {
    ($name:ident, $features:literal, $element:ty, |$to:ident, $data:ident, $stride:ident, $rows:ident, $elements:ident| $body:block) => {
        /// # Safety
        /// The processor has the features; `to` has room for the panel and the data holds `rows x elements`.
        #[target_feature(enable = $features)]
        unsafe fn $name<const W: usize>(
            $to: *mut u32,
            $data: *const $element,
            $stride: usize,
            $rows: usize,
            $elements: usize,
        ) $body
    };
}

/// Defines the packing of a matrix whose rows lie in memory one after the other: 16 vectors are loaded along the
/// rows by `$load(row, element, elements left)` and transposed in registers.
macro_rules! pack_by_row {
    ($name:ident, $features:literal, $element:ty, $lane:literal, $load:ident) => {
        packing!($name, $features, $element, |to, data, stride, rows, elements| {
            let lanes = elements.div_ceil($lane);
            for i in (0..W).step_by(V) {
                for l in (0..lanes).step_by(V) {
                    let left = elements - l * $lane;
                    let mut block = [_mm512_setzero_si512(); V];
                    for (r, vector) in block.iter_mut().enumerate().take(rows.saturating_sub(i)) {
                        let at = data.wrapping_add((i + r) * stride + l * $lane);
                        // SAFETY: inside the data, or masked out.
                        *vector = unsafe { $load(at, left) };
                    }
                    let block = transpose(block);
                    let width = (W - i).min(V);
                    for (n, vector) in block.into_iter().enumerate().take(lanes - l) {
                        let at = to.wrapping_add((l + n) * W + i);
                        // SAFETY: inside the panel.
                        unsafe { store(at, width, vector) };
                    }
                }
            }
        });
    };
}

/// Defines the packing of a matrix whose columns lie in memory one after the other: `$load(at, next, count)` makes
/// the lanes of `count` rows from one column, or two, the second of which may be missing.
macro_rules! pack_by_depth {
    ($name:ident, $features:literal, $element:ty, $lane:literal, $load:ident) => {
        packing!($name, $features, $element, |to, data, stride, rows, elements| {
            for l in 0..elements.div_ceil($lane) {
                let at = data.wrapping_add(l * $lane * stride);
                let next = (l * $lane + 1 < elements).then_some(at.wrapping_add(stride));
                for i in (0..W).step_by(V) {
                    let count = rows.saturating_sub(i).min(V);
                    // SAFETY: inside the data, or masked out; inside the panel.
                    unsafe {
                        let next = next.map(|next| next.wrapping_add(i));
                        let vector = $load(at.wrapping_add(i), next, count);
                        store(to.wrapping_add(l * W + i), (W - i).min(V), vector);
                    }
                }
            }
        });
    };
}

/// # Safety
/// The first `width` elements can be written.
#[target_feature(enable = "avx512f")]
unsafe fn store(at: *mut u32, width: usize, vector: __m512i) {
    // SAFETY: as the caller promises.
    unsafe {
        match width {
            V.. => _mm512_storeu_si512(at.cast(), vector),
            _ => _mm512_mask_storeu_epi32(at.cast(), first(width), vector),
        }
    }
}

/// Defines the packing of a matrix whose rows lie in memory one after the other, rows staying rows: lane `l` of row `i`, 16 words,
/// at `to[(l * W + i) * V]`.
macro_rules! keep_by_row {
    ($name:ident, $features:literal, $element:ty, $load:ident) => {
        packing!($name, $features, $element, |to, data, stride, rows, elements| {
            for i in 0..W {
                for (l, first) in (0..elements).step_by(2 * V).enumerate() {
                    let at = data.wrapping_add(i * stride + first);
                    // SAFETY: inside the data, or masked out; inside the panel.
                    unsafe {
                        let vector =
                            if i < rows { $load(at, elements - first) } else { _mm512_setzero_si512() };
                        store(to.wrapping_add((l * W + i) * V), V, vector);
                    }
                }
            }
        });
    };
}

/// Defines the same of a matrix whose columns lie in memory one after the other.
macro_rules! keep_by_depth {
    ($name:ident, $features:literal, $element:ty, $load:ident) => {
        packing!($name, $features, $element, |to, data, stride, rows, elements| {
            for (l, first) in (0..elements).step_by(2 * V).enumerate() {
                for i in (0..W).step_by(V) {
                    let count = rows.saturating_sub(i).min(V);
                    let mut block = [_mm512_setzero_si512(); V];
                    for (pair, vector) in block.iter_mut().enumerate().take((elements - first).div_ceil(2)) {
                        let element = first + 2 * pair;
                        let at = data.wrapping_add(element * stride + i);
                        let next = (element + 1 < elements).then_some(at.wrapping_add(stride));
                        // SAFETY: inside the data, or masked out.
                        *vector = unsafe { $load(at, next, count) };
                    }
                    for (r, vector) in transpose(block).into_iter().enumerate() {
                        // SAFETY: inside the panel.
                        unsafe { store(to.wrapping_add((l * W + i + r) * V), V, vector) };
                    }
                }
            }
        });
    };
}

/// # Safety
/// As many elements as are left, of the first 16, can be read.
#[target_feature(enable = "avx512f")]
unsafe fn singles_of_row(at: *const f32, left: usize) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe {
        match left {
            V.. => _mm512_loadu_si512(at.cast()),
            _ => _mm512_maskz_loadu_epi32(first(left), at.cast()),
        }
    }
}

/// # Safety
/// The first `count` elements can be read.
#[target_feature(enable = "avx512f")]
unsafe fn singles_of_column(at: *const f32, _: Option<*const f32>, count: usize) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe { singles_of_row(at, count) }
}

/// # Safety
/// As many elements as are left, of the first 32, can be read.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rounded_of_row(at: *const f32, left: usize) -> __m512i {
    let next = at.wrapping_add(V);
    // SAFETY: as the caller promises; both are 64 bytes of any content.
    unsafe {
        let (low, high) = match left {
            32.. => (_mm512_loadu_ps(at), _mm512_loadu_ps(next)),
            _ => {
                let (low, high) = (first(left), first(left.saturating_sub(V)));
                (_mm512_maskz_loadu_ps(low, at), _mm512_maskz_loadu_ps(high, next))
            }
        };
        std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
    }
}

/// # Safety
/// The first `count` elements, 16 at most, can be read, of the next column too where there is one.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn rounded_of_columns(at: *const f32, next: Option<*const f32>, count: usize) -> __m512i {
    let mask = first(count);
    // SAFETY: as the caller promises; both are 32 bytes of any content.
    unsafe {
        let load = |at: *const f32| match mask {
            u16::MAX => _mm512_loadu_ps(at),
            _ => _mm512_maskz_loadu_ps(mask, at),
        };
        let low = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(load(at)));
        let high = match next {
            Some(next) => std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(load(next))),
            None => _mm256_setzero_si256(),
        };
        interleave(low, high)
    }
}

/// # Safety
/// As many elements as are left, of the first 32, can be read.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn halves_of_row(at: *const u16, left: usize) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe {
        match left {
            32.. => _mm512_loadu_si512(at.cast()),
            _ => _mm512_maskz_loadu_epi16(first32(left), at.cast()),
        }
    }
}

/// # Safety
/// The first `count` elements, 16 at most, can be read, of the next column too where there is one.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn halves_of_columns(at: *const u16, next: Option<*const u16>, count: usize) -> __m512i {
    let mask = first(count);
    // SAFETY: as the caller promises.
    unsafe {
        let low = _mm256_maskz_loadu_epi16(mask, at.cast());
        let high = match next {
            Some(next) => _mm256_maskz_loadu_epi16(mask, next.cast()),
            None => _mm256_setzero_si256(),
        };
        interleave(low, high)
    }
}

pack_by_row!(singles_by_row, "avx512f", f32, 1, singles_of_row);
pack_by_depth!(singles_by_depth, "avx512f", f32, 1, singles_of_column);
pack_by_row!(rounded_by_row, "avx512f,avx512bf16", f32, 2, rounded_of_row);
pack_by_depth!(rounded_by_depth, "avx512f,avx512bw,avx512bf16", f32, 2, rounded_of_columns);
pack_by_row!(halves_by_row, "avx512f,avx512bw", u16, 2, halves_of_row);
pack_by_depth!(halves_by_depth, "avx512f,avx512bw,avx512vl", u16, 2, halves_of_columns);
keep_by_row!(rounded_rows_by_row, "avx512f,avx512bf16", f32, rounded_of_row);
keep_by_depth!(rounded_rows_by_depth, "avx512f,avx512bw,avx512bf16", f32, rounded_of_columns);
keep_by_row!(halves_rows_by_row, "avx512f,avx512bw", u16, halves_of_row);
keep_by_depth!(halves_rows_by_depth, "avx512f,avx512bw,avx512vl", u16, halves_of_columns);

/// Pairs of a half from each.
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave(low: __m256i, high: __m256i) -> __m512i {
    _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high)))
}

/// Rows become columns, of 16 words each.
#[target_feature(enable = "avx512f")]
pub fn transpose(mut r: [__m512i; V]) -> [__m512i; V] {
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for i in (0..V).step_by(4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for i in 0..4 {
        t[i] = _mm512_shuffle_i32x4::<0x88>(r[i], r[i + 4]);
        t[i + 4] = _mm512_shuffle_i32x4::<0xdd>(r[i], r[i + 4]);
        t[i + 8] = _mm512_shuffle_i32x4::<0x88>(r[i + 8], r[i + 12]);
        t[i + 12] = _mm512_shuffle_i32x4::<0xdd>(r[i + 8], r[i + 12]);
    }
    for i in 0..4 {
        r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 8]);
        r[i + 8] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[i + 8]);
        r[i + 4] = _mm512_shuffle_i32x4::<0x88>(t[i + 4], t[i + 12]);
        r[i + 12] = _mm512_shuffle_i32x4::<0xdd>(t[i + 4], t[i + 12]);
    }
    r
}
