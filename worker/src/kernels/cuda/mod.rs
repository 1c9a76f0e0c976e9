//! The backend for NVIDIA's cards: libraries found at run time, kernels compiled for the card that is there.
//!
//! Matrix products of many rows are cuBLASLt's ([`products`]), everything else is the kernels in this folder, which say what
//! they compute and in which order. All sums have an order that depends on shapes alone.

mod backend;
mod cache;
mod card;
mod graphs;
mod load;
mod memory;
mod nccl;
mod products;
mod programs;
mod resident;
mod serving;
mod staging;
mod weights;

use super::{Bf16, DeviceError, GROUP, Linear, Stretch, Weight};
use crate::random::Random;
pub use card::Card;
use card::{Argument, Launch, Number};
use memory::{Buffer, Slice};
pub use nccl::{Id, Nccl, Pair};
use products::{Factor, Product};
use programs::Kind;
use std::marker::PhantomData;
use std::sync::Arc;
use weights::{Bytes, CardWeight, WIDENED};

/// Rows of one launch of the kernels for few rows.
const FEW: usize = 16;

impl Card {
    /// The card of a number among those that this process may see.
    ///
    /// # Errors
    /// What is missing, in one sentence.
    pub fn find(index: usize) -> Result<Card, DeviceError> {
        Card::open(load::find(index)?)
    }

    /// The card that is this rank's own: of those that this process may see, the one at its number among the ranks of
    /// its machine (`LOCAL_RANK`).
    ///
    /// # Errors
    /// What is missing, in one sentence.
    pub fn own() -> Result<Card, DeviceError> {
        Card::find(own_index(std::env::var("LOCAL_RANK").ok().as_deref(), load::visible()?))
    }

    /// Such as `NVIDIA H200`.
    pub fn name(&self) -> &str {
        &self.found.name
    }

    /// What is computed on, for people.
    pub fn describe(&self) -> String {
        format!("card {}, {}, {} MiB", self.found.index, self.found.name, self.found.memory_bytes >> 20)
    }

    /// A kernel of which every thread takes eight of `count` elements.
    fn each(&self, kind: Kind, kernel: &'static str, count: usize, arguments: &[Argument]) {
        let grid = [count.div_ceil(2048), 1, 1];
        self.launch(kind, Launch { kernel, grid, block: 256, shared: 0 }, arguments);
    }

    /// `x += y`.
    fn add(&self, kind: Kind, x: &mut Slice<f32>, y: &Slice<f32>) {
        self.each(kind, "add_floats", x.len(), &[x.into(), y.into(), long(y.len())]);
    }

    /// Those whose results have the same bits: the kernels are compiled for an architecture, and the library of products
    /// chooses by it and by its own version.
    pub fn class(&self) -> String {
        let (major, minor) = self.found.capability;
        format!("cuda-{major}.{minor}-{}sm-cublaslt-{}", self.found.processors, products::version())
    }
}

/// Which of the cards that a rank may see is its own: ranks of one node that see the same ones share them out by their numbers on the
/// node. Whoever sees one card has that one, whatever its number.
///
/// * `local_rank`: as the environment has it; 0 if it makes no sense.
fn own_index(local_rank: Option<&str>, visible: usize) -> usize {
    local_rank.and_then(|rank| rank.parse::<usize>().ok()).map_or(0, |rank| rank % visible)
}

/// What elements are: single precision or bf16.
pub trait Element: Number + Send + Sync + 'static {
    /// Whether they are bf16.
    const IS_BF16: bool;

    /// The nearest one.
    fn of(value: f32) -> Self;

    /// Copies a matrix to a card; `room` is for what is rounded there.
    fn place(kernels: &Cuda<Self>, to: &mut Slice<Self>, matrix: Weight<'_>, room: &mut Buffer<f32>);
}

impl Element for f32 {
    const IS_BF16: bool = false;

    fn of(value: f32) -> f32 {
        value
    }

    fn place(kernels: &Cuda<f32>, to: &mut Slice<f32>, matrix: Weight<'_>, _: &mut Buffer<f32>) {
        match matrix {
            Weight::F32(matrix) => kernels.card.upload(to, matrix),
            _ => kernels.card.fail(DeviceError("weights that were rounded are not single precision".into())),
        }
    }
}

impl Element for Bf16 {
    const IS_BF16: bool = true;

    fn of(value: f32) -> Bf16 {
        Bf16::round(value)
    }

    fn place(kernels: &Cuda<Bf16>, to: &mut Slice<Bf16>, matrix: Weight<'_>, room: &mut Buffer<f32>) {
        match matrix {
            Weight::F32(matrix) => {
                room.resize(&kernels.card, matrix.len());
                kernels.card.upload(room, matrix);
                kernels.round(to, room);
            }
            Weight::Bf16(matrix) => kernels.card.upload(to, matrix),
            Weight::Int8(_) => kernels.card.fail(DeviceError("integers of 8 bits are no elements".into())),
        }
    }
}

/// A card with elements `E`, for models whose heads have one length.
#[derive(Clone)]
pub struct Cuda<E> {
    card: Arc<Card>,
    head_dim: usize,
    elements: PhantomData<E>,
}

impl<E: Element> Cuda<E> {
    /// Compiles the kernels, which takes some seconds, unless this process has done so.
    ///
    /// # Errors
    /// The kernels cannot be compiled, heads are of a length that they do not take, or the card has no room.
    pub fn new(card: Arc<Card>, head_dim: usize) -> Result<Cuda<E>, DeviceError> {
        card.prepare((E::IS_BF16, head_dim))?;
        drop(card.products()?);
        Ok(Cuda::as_needed(card, head_dim))
    }

    /// As [`new`](Cuda::new), but compiles what is needed when it is.
    pub fn as_needed(card: Arc<Card>, head_dim: usize) -> Cuda<E> {
        Cuda { card, head_dim, elements: PhantomData }
    }

    fn launch(&self, kernel: &'static str, grid: [usize; 3], block: usize, arguments: &[Argument]) {
        self.launch_with(Launch { kernel, grid, block, shared: 0 }, arguments);
    }

    fn launch_with(&self, launch: Launch, arguments: &[Argument]) {
        self.card.launch(self.kind(), launch, arguments);
    }

    fn kind(&self) -> Kind {
        (E::IS_BF16, self.head_dim)
    }

    /// As [`Card::each`].
    fn each(&self, kernel: &'static str, count: usize, arguments: &[Argument]) {
        self.card.each(self.kind(), kernel, count, arguments);
    }

    /// What this card and those of others can send each other through.
    ///
    /// # Errors
    /// There is no NCCL of use, in one sentence.
    pub fn nccl(&self) -> Result<Nccl, DeviceError> {
        Nccl::open(Arc::clone(&self.card), self.kind())
    }

    /// A kernel of which every thread takes eight of a row, with the matrix's shape as its last arguments.
    fn each_of_rows(&self, kernel: &'static str, [rows, width]: [usize; 2], arguments: &[Argument]) {
        let grid = [(rows * width.div_ceil(8)).div_ceil(256), 1, 1];
        self.launch(kernel, grid, 256, &[arguments, &[long(rows), int(width)]].concat());
    }

    /// `y = x`, rounded.
    fn round(&self, y: &mut Slice<E>, x: &Slice<f32>) {
        self.each("to_elem", x.len(), &[y.into(), x.into(), long(x.len())]);
    }

    /// Numbers for a kernel, in the card's memory.
    fn integers(&self, values: impl Iterator<Item = usize>) -> Buffer<i32> {
        let small = |value| i32::try_from(value).expect("the kernels count in 32 bits");
        let values: Vec<i32> = values.map(small).collect();
        let mut buffer = Buffer::room(&self.card, values.len());
        self.card.upload(&mut buffer, &values);
        buffer
    }

    /// `d[R, O] = x[R, I] * w[O, I]^T`, with `c` added. `d` and `c` are floats or elements.
    fn forward(&self, shape: Linear, d: (u64, bool), c: Option<u64>, x: &Slice<E>, w: CardWeight<'_, E>) {
        let Linear { rows, inputs, outputs, .. } = shape;
        let a = factor(x, inputs, false);
        let (values, scales, room) = match w {
            CardWeight::Elements(w) => {
                return self.multiply([rows, outputs, inputs], a, factor(w, inputs, true), c, d);
            }
            CardWeight::Bytes(Bytes { values, scales, room }) => (values, scales, room),
        };
        // Some outputs at a time: their weights are widened, and multiplied like any.
        let groups = inputs.div_ceil(GROUP);
        let bytes = if d.1 || !E::IS_BF16 { size_of::<f32>() } else { size_of::<E>() };
        for first in (0..outputs).step_by(WIDENED) {
            let last = outputs.min(first + WIDENED);
            let (values, scales) =
                (&values[first * inputs..last * inputs], &scales[first * groups..last * groups]);
            let wide = &room[0..values.len()];
            self.each_of_rows(
                "widen_int8",
                [last - first, inputs],
                &[wide.into(), values.into(), scales.into()],
            );
            let shifted = |address: u64| address + (first * bytes) as u64;
            let b = factor(wide, inputs, true);
            let product = [rows, last - first, inputs];
            self.multiply_into(product, a, b, c.map(shifted), (shifted(d.0), d.1), outputs);
        }
    }

    fn multiply(&self, product: [usize; 3], a: Factor, b: Factor, c: Option<u64>, d: (u64, bool)) {
        self.multiply_into(product, a, b, c, d, product[1]);
    }

    /// As [`multiply`](Cuda::multiply), with rows of the result that are `stride` long in memory.
    fn multiply_into(
        &self,
        [m, n, k]: [usize; 3],
        a: Factor,
        b: Factor,
        c: Option<u64>,
        d: (u64, bool),
        stride: usize,
    ) {
        let (d, is_float) = (d.0, d.1 || !E::IS_BF16);
        if 0 < m * n * k {
            self.card.multiply(Product { m, n, k, a, b, is_bf16: E::IS_BF16, c, d, is_float, stride });
        }
    }

    /// The card.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Length of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Waits until everything that was queued is done.
    ///
    /// # Errors
    /// It has failed, now or before.
    pub fn finish(&self) -> Result<(), DeviceError> {
        self.card.finish()
    }

    /// Some numbers of deviation one, over and over, to measure with.
    pub fn scatter(&self, x: &mut Slice<E>) {
        let some: Vec<E> = Random::new(1).normals(x.len().min(1 << 16)).into_iter().map(E::of).collect();
        for first in (0..x.len()).step_by(some.len().max(1)) {
            let last = x.len().min(first + some.len());
            self.card.upload(&mut x[first..last], &some[..last - first]);
        }
    }
}

/// A matrix of rows of `stride`.
fn factor<E>(x: &Slice<E>, stride: usize, is_transposed: bool) -> Factor {
    Factor { address: x.address(), stride, is_transposed }
}

/// A `long long`.
fn long(count: usize) -> Argument {
    Argument::Long(count as i64)
}

/// An `int`.
fn int(count: usize) -> Argument {
    Argument::count(count)
}

/// No memory.
const NONE: Argument = Argument::Pointer(0);

#[cfg(test)]
mod tests {
    use super::own_index;

    #[test]
    fn ranks_of_one_node_share_the_cards_that_they_see() {
        let of = |rank: &str, visible| own_index(Some(rank), visible);
        assert_eq!([of("0", 4), of("3", 4), of("5", 4)], [0, 3, 1]);
        assert_eq!([of("3", 1), of("two", 4), of("-1", 4), own_index(None, 4)], [0; 4]);
    }
}
