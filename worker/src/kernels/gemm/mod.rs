//! The matrix product that training and prefill spend their time in.
//!
//! Operands are copied into panels that the innermost loop reads in order: `ROWS` rows of `a` and `COLUMNS` columns
//! of `b`, `DEPTH` lanes deep. That loop keeps a `ROWS x COLUMNS` tile of the result in registers; the panel of `a`
//! stays in the first-level cache while it meets every panel of a block of `b`, which stays in the second. Source:
//! Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008, section 4.
//!
//! A lane is one `f32`, or a pair of neighbours in depth as bf16, or 16 such pairs. Operands are rounded to bf16 on their way into
//! the panels, so that they cost no memory of their own.
//!
//! Every element is the sum over blocks of `DEPTH` lanes, each block summed in order: it depends on its row of
//! `a`, its column of `b` and `K` alone, never on the other rows, the blocking by rows, or the threads.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::Precision;
use super::bf16::Bf16;
use super::isa::{Isa, PORTABLE_FMA};
use super::pool::{Parts, Pool};
#[cfg(target_arch = "x86_64")]
pub use avx512::transpose;
use portable::Loops;
use std::cell::RefCell;

/// Columns of `b` that are packed at a time.
const BLOCK_COLUMNS: usize = 1024;

/// Elements of an operand.
#[derive(Clone, Copy)]
pub enum Elements<'a> {
    /// In single precision.
    F32(&'a [f32]),
    /// In half the memory.
    Bf16(&'a [Bf16]),
}

impl Elements<'_> {
    fn len(&self) -> usize {
        match self {
            Elements::F32(x) => x.len(),
            Elements::Bf16(x) => x.len(),
        }
    }
}

/// A matrix seen through strides: element `(i, j)` is `data[i * row + j * column]`. One of the strides is 1.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: Elements<'a>,
    row: usize,
    column: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix with `width` elements between rows.
    pub fn rows(data: &'a [f32], width: usize) -> View<'a> {
        View { data: Elements::F32(data), row: width, column: 1 }
    }

    /// The transpose of a row-major matrix with `width` elements between its rows.
    pub fn transposed(data: &'a [f32], width: usize) -> View<'a> {
        View::rows(data, width).transpose()
    }

    /// A row-major matrix with `width` elements between rows.
    pub fn of(data: Elements<'a>, width: usize) -> View<'a> {
        View { data, row: width, column: 1 }
    }

    /// Rows become columns.
    pub fn transpose(self) -> View<'a> {
        View { row: self.column, column: self.row, ..self }
    }

    /// From row `row` and column `column` on.
    fn from(self, row: usize, column: usize) -> View<'a> {
        let start = row * self.row + column * self.column;
        let data = match self.data {
            Elements::F32(x) => Elements::F32(&x[start..]),
            Elements::Bf16(x) => Elements::Bf16(&x[start..]),
        };
        View { data, ..self }
    }

    #[inline(always)]
    fn get(&self, row: usize, column: usize) -> f32 {
        match self.data {
            Elements::F32(x) => x[row * self.row + column * self.column],
            Elements::Bf16(x) => x[row * self.row + column * self.column].value(),
        }
    }

    /// Whether a matrix of this size lies inside the data.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

/// A product `[m, k] * [k, n]`.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Products in a sum.
    pub k: usize,
    /// `[m, k]`.
    pub a: View<'a>,
    /// `[k, n]`.
    pub b: View<'a>,
    /// What the operands are rounded to; sums are always `f32`.
    pub precision: Precision,
}

impl Product<'_> {
    /// `c = a * b`, or `c += a * b` with `accumulate`; rows of `c` are `stride` elements apart. Splits the result
    /// over the threads of `pool` where that pays.
    pub fn run(&self, pool: &Pool, c: &mut [f32], stride: usize, accumulate: bool) {
        /// Products that a thread must have to be worth waking.
        const WORTH_A_THREAD: usize = 1 << 19;
        let Product { m, n, k, .. } = *self;
        assert!(m == 0 || n == 0 || (m - 1) * stride + n <= c.len(), "the result has no room");
        let threads = pool.threads().min(m * n * k / WORTH_A_THREAD).max(1);
        // A grid of threads over the result, such that the least is packed twice.
        let by_rows = (1..=threads).filter(|rows| threads.is_multiple_of(*rows));
        let by_rows = by_rows.min_by_key(|rows| n * rows + m * (threads / rows)).unwrap_or(1);
        let rows = m.div_ceil(by_rows).next_multiple_of(ROW_ALIGN);
        let columns = n.div_ceil(threads / by_rows).next_multiple_of(COLUMN_ALIGN);
        let (down, across) = (m.div_ceil(rows), n.div_ceil(columns));
        let out = Out { parts: Parts::new(c), stride };
        pool.run(down * across, &|index| {
            let (row, column) = (index / across * rows, index % across * columns);
            let (a, b) = (self.a.from(row, 0), self.b.from(0, column));
            let part = Product { m: rows.min(m - row), n: columns.min(n - column), a, b, ..*self };
            part.serial(out.from(row, column), accumulate);
        });
    }

    /// The same on this thread.
    pub fn run_here(&self, c: &mut [f32], stride: usize, accumulate: bool) {
        assert!(self.m == 0 || self.n == 0 || (self.m - 1) * stride + self.n <= c.len());
        self.serial(Out { parts: Parts::new(c), stride }.from(0, 0), accumulate);
    }

    fn serial(&self, c: Tile, accumulate: bool) {
        assert!(self.a.holds(self.m, self.k) && self.b.holds(self.k, self.n), "an operand is too small");
        if self.m == 0 || self.n == 0 {
            return;
        }
        match (Isa::best(), self.precision) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, Precision::Bf16) => self.blocked::<amx::Tiles>(c, accumulate),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Precision::Bf16) => self.blocked::<avx512::Pairs>(c, accumulate),
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Precision::F32)
                if matches!((self.a.data, self.b.data), (Elements::F32(_), Elements::F32(_))) =>
            {
                self.blocked::<avx512::Singles>(c, accumulate);
            }
            // SAFETY: the instructions were found on this processor.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, _) => unsafe { self.wide(c, accumulate) },
            // SAFETY: the instructions were found on this processor.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            (Isa::Avx2, _) => unsafe { self.narrow(c, accumulate) },
            (Isa::Portable, _) => self.blocked::<Loops<4, 8, PORTABLE_FMA>>(c, accumulate),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn wide(&self, c: Tile, accumulate: bool) {
        self.blocked::<Loops<12, 32, true>>(c, accumulate);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn narrow(&self, c: Tile, accumulate: bool) {
        self.blocked::<Loops<6, 16, true>>(c, accumulate);
    }

    #[inline(always)]
    fn blocked<I: Instructions>(&self, c: Tile, accumulate: bool) {
        let Product { m, n, k, a, b, precision } = *self;
        let lanes = k.div_ceil(I::LANE);
        let bf16 = precision == Precision::Bf16;
        // Taken, not borrowed by a closure: a closure is a function of its own, without the caller's instructions.
        let mut panels = PANELS.take();
        let (panel_a, panels_b) =
            panels.of_size(I::ROWS * I::DEPTH * I::WORDS, I::COLUMNS, I::DEPTH * I::WORDS);
        let instructions = I::begin();
        if lanes == 0 && !accumulate {
            c.zero(m, n);
        }
        for first in (0..lanes).step_by(I::DEPTH) {
            let depth = I::DEPTH.min(lanes - first);
            let (from, elements) = (first * I::LANE, (depth * I::LANE).min(k - first * I::LANE));
            let add = accumulate || 0 < first;
            for column in (0..n).step_by(BLOCK_COLUMNS) {
                let columns = BLOCK_COLUMNS.min(n - column);
                for (j, panel) in
                    (0..columns).step_by(I::COLUMNS).zip(panels_b.chunks_mut(I::COLUMNS * depth * I::WORDS))
                {
                    let from = b.from(from, column + j).transpose();
                    I::pack_b(panel, from, I::COLUMNS.min(columns - j), elements, bf16);
                }
                for row in (0..m).step_by(I::ROWS) {
                    let rows = I::ROWS.min(m - row);
                    I::pack_a(panel_a, a.from(row, from), rows, elements, bf16);
                    for (j, panel) in
                        (0..columns).step_by(I::COLUMNS).zip(panels_b.chunks(I::COLUMNS * depth * I::WORDS))
                    {
                        let tile = c.from(row, column + j);
                        let columns = I::COLUMNS.min(columns - j);
                        instructions.tile(depth, [panel_a, panel], tile, rows, columns, add);
                    }
                }
            }
        }
        PANELS.set(panels);
    }
}

/// Parts of the result that threads get are multiples of these, so that no tile is cut: a multiple of all tiles but AMX's, of
/// which one may be.
const ROW_ALIGN: usize = 84;
const COLUMN_ALIGN: usize = 32;

/// The innermost loops of one instruction set.
trait Instructions {
    /// Rows of a tile.
    const ROWS: usize;
    /// Columns of a tile.
    const COLUMNS: usize;
    /// Elements in a lane.
    const LANE: usize;
    /// Words of 32 bits that a lane of one row takes in a panel.
    const WORDS: usize = 1;
    /// Lanes in a panel.
    const DEPTH: usize;

    /// Makes this thread ready for [`tile`](Instructions::tile), until it is dropped.
    fn begin() -> Self;

    /// Fills a panel with `rows` rows, `elements` deep: lane `l` of row `i` at `panel[l * ROWS + i]` where it is one word,
    /// zeros where there is no row.
    fn pack_a(panel: &mut [u32], from: View<'_>, rows: usize, elements: usize, bf16: bool);

    /// The same with columns, which are the rows of `from`, and `COLUMNS`.
    fn pack_b(panel: &mut [u32], from: View<'_>, columns: usize, elements: usize, bf16: bool);

    /// `c = a * b`, or `+=` with `add`, for the first `rows` rows and `columns` columns of two panels.
    fn tile(&self, depth: usize, panels: [&[u32]; 2], c: Tile, rows: usize, columns: usize, add: bool);
}

/// A result that threads write parts of.
struct Out<'a> {
    parts: Parts<'a, f32>,
    stride: usize,
}

impl Out<'_> {
    fn from(&self, row: usize, column: usize) -> Tile {
        Tile { start: self.parts.start(row * self.stride + column), stride: self.stride }
    }
}

/// A stretch of a result: row `i` starts `i * stride` elements behind `start`.
///
/// [`Product::run`] checks once that the whole result lies in its slice, and gives every thread another stretch.
#[derive(Clone, Copy)]
struct Tile {
    start: *mut f32,
    stride: usize,
}

impl Tile {
    #[inline(always)]
    fn from(self, row: usize, column: usize) -> Tile {
        Tile { start: self.start.wrapping_add(row * self.stride + column), ..self }
    }

    /// The first `len` elements of row `row`.
    #[inline(always)]
    #[allow(unsafe_code)]
    fn row<'a>(self, row: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: callers stay inside the stretch that they were given, see `Tile`.
        unsafe { std::slice::from_raw_parts_mut(self.start.wrapping_add(row * self.stride), len) }
    }

    fn zero(self, m: usize, n: usize) {
        (0..m).for_each(|row| self.row(row, n).fill(0.0));
    }
}

thread_local! {
    /// Kept from one product to the next.
    static PANELS: RefCell<Panels> = const { RefCell::new(Panels(Vec::new())) };
}

/// Memory of the panels.
#[derive(Default)]
struct Panels(Vec<u32>);

impl Panels {
    /// One panel of `a` and a block of panels of `b`, each on a cache line, with room for a vector behind it.
    fn of_size(&mut self, a: usize, columns: usize, depth: usize) -> (&mut [u32], &mut [u32]) {
        const LINE: usize = 16;
        let a = (a + LINE).next_multiple_of(LINE);
        let b = BLOCK_COLUMNS.next_multiple_of(columns) * depth + LINE;
        if self.0.len() < a + b + LINE {
            self.0.resize(a + b + LINE, 0);
        }
        let skip = self.0.as_ptr().align_offset(64);
        self.0[skip..skip + a + b].split_at_mut(a)
    }
}

#[cfg(test)]
mod tests;
