//! Products of whole tiles of bf16, by the matrix unit of Intel's processors (AMX).
//!
//! A tile register holds 16 rows of 64 bytes; `a` is 16 rows of 16 pairs of neighbours in depth, `b` 16 such pairs of 16 columns, and a
//! product adds to 16 x 16 sums in single precision. The compiler has no stable words for it, so the instructions are spelt out; it uses
//! no tile register itself. Source: Intel, "Intel 64 and IA-32 architectures software developer's manual", volume 1, chapter 18.
#![allow(unsafe_code)]

use super::bf16::Bf16;
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _MM_HINT_T1, _mm_prefetch, _xgetbv};

/// Rows of a tile, columns of a tile of sums, and pairs in a row of a factor.
pub const TILE: usize = 16;

/// Whether the processor has the instructions, and the system lets this process keep tiles: it asks for that.
pub fn is_here() -> bool {
    /// Of leaf 7, register edx.
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    /// Of leaf 1, register ecx: the system saves what `xgetbv` names.
    const OSXSAVE: u32 = 1 << 27;
    /// What is saved of tiles: their shapes and their contents.
    const STATE: u64 = 1 << 17 | 1 << 18;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let has = __cpuid_count(7, 0).edx & (BF16 | TILES) == BF16 | TILES;
    // SAFETY: the system has set up `xgetbv`, as `OSXSAVE` says.
    has && unsafe { _xgetbv(0) } & STATE == STATE && may_keep_tiles()
}

/// Asks the system for room for tiles in this process, once and for all of its threads.
///
/// Source: Linux, `Documentation/arch/x86/xstate.rst`.
#[cfg(target_os = "linux")]
fn may_keep_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn may_keep_tiles() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles of full size.
static FULL: Shapes = {
    let mut shapes =
        Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        (shapes.row_bytes[tile], shapes.rows[tile]) = (64, TILE as u8);
        tile += 1;
    }
    shapes
};

/// This thread's tiles, from here until it is dropped: what a thread that has none costs the system less to put aside.
pub struct Tiles(());

impl Tiles {
    /// Makes all tiles of full size.
    ///
    /// # Safety
    /// [`is_here`] said so.
    pub unsafe fn new() -> Tiles {
        // SAFETY: reads the 64 bytes of a palette that every processor with tiles has.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const FULL, options(nostack, preserves_flags, readonly))
        };
        Tiles(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there are tiles, as `new` has made them.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// Where a factor's tiles lie: those of the next 16 pairs in depth follow `next` bytes behind, its rows are `row` bytes
/// apart, and the second tile beside the first starts `beside` bytes behind it.
#[derive(Clone, Copy)]
pub struct Factor {
    pub start: *const u8,
    pub next: usize,
    pub row: usize,
    pub beside: usize,
}

/// Defines a product of a row of one or two tiles of `a` with two of `b`.
macro_rules! product {
    ($(#[$meta:meta])* $name:ident, [$($second:literal),*], [$($load:literal),*], [$($zero:literal),*], [$($store:literal),*]) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// The tiles of both factors can be read, and those of `c`, whose rows are `stride` bytes apart, written, and read where `add`.
        #[inline]
        pub unsafe fn $name(_: &Tiles, depth: usize, a: Factor, b: Factor, c: *mut f32, stride: usize, add: bool) {
            // SAFETY: as the caller promises; there are tiles, as one holds them.
            unsafe {
                if add {
                    asm!(
                        "tileloadd tmm0, [{c} + {stride}*1]", "tileloadd tmm1, [{c} + {stride}*1 + 64]", $($load,)*
                        c = in(reg) c, below = in(reg) c.wrapping_byte_add(TILE * stride), stride = in(reg) stride,
                        options(nostack, preserves_flags, readonly)
                    );
                } else {
                    asm!("tilezero tmm0", "tilezero tmm1", $($zero,)* options(nostack, preserves_flags, nomem));
                }
                asm!(
                    "2:",
                    "tileloadd tmm6, [{b} + {b_row}*1]",
                    "tileloadd tmm4, [{a} + {a_row}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b_beside} + {b_row}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    $($second,)*
                    "add {a}, {a_next}",
                    "add {a_beside}, {a_next}",
                    "add {b}, {b_next}",
                    "add {b_beside}, {b_next}",
                    "dec {depth}",
                    "jnz 2b",
                    a = inout(reg) a.start => _, a_beside = inout(reg) a.start.wrapping_add(a.beside) => _,
                    b = inout(reg) b.start => _, b_beside = inout(reg) b.start.wrapping_add(b.beside) => _,
                    a_row = in(reg) a.row, b_row = in(reg) b.row, a_next = in(reg) a.next, b_next = in(reg) b.next,
                    depth = inout(reg) depth => _,
                    options(nostack, readonly)
                );
                asm!(
                    "tilestored [{c} + {stride}*1], tmm0", "tilestored [{c} + {stride}*1 + 64], tmm1", $($store,)*
                    c = in(reg) c, below = in(reg) c.wrapping_byte_add(TILE * stride), stride = in(reg) stride,
                    options(nostack, preserves_flags)
                );
            }
        }
    };
}

product!(
    /// `c = a * b`, or `c += a * b` with `add`: `[32, 32]` sums over `depth` times 32 elements, `depth >= 1`, one after the other.
    product_32,
    ["tileloadd tmm5, [{a_beside} + {a_row}*1]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7"],
    ["tileloadd tmm2, [{below} + {stride}*1]", "tileloadd tmm3, [{below} + {stride}*1 + 64]"],
    ["tilezero tmm2", "tilezero tmm3"],
    ["tilestored [{below} + {stride}*1], tmm2", "tilestored [{below} + {stride}*1 + 64], tmm3"]
);
product!(
    /// The same for 16 rows of `a` and `c`.
    product_16,
    [],
    ["/* {below} */"],
    [],
    ["/* {below} */"]
);

/// The content of a tile: 16 rows of 16 words, each of which is a pair of bf16 or a sum.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Tile(pub [[u32; TILE]; TILE]);

impl Tile {
    /// All zeros.
    pub const ZERO: Tile = Tile([[0; TILE]; TILE]);
}

/// Defines the sums of 32 rows of a matrix with one or two groups of 16 vectors, `sums[group][half of the rows]`.
///
/// A vector's tiles are those of its two parts, block by block. All first parts of a block go before all second ones, because a
/// tile of sums takes three products until it can be added to again.
macro_rules! dots {
    ($(#[$meta:meta])* $name:ident, $groups:literal, [$($zero:literal),*], [$($first:literal),*], [$($second:literal),*], [$($store:literal),*]) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// `rows` are 32 rows of as many blocks of 32 elements as each group has pairs of tiles.
        pub unsafe fn $name(_: &Tiles, rows: &[Bf16], groups: [&[Tile]; $groups], sums: &mut [[Tile; 2]; 2]) {
            let row_bytes = rows.len() / 32 * size_of::<Bf16>();
            let mut ahead = rows.as_ptr_range().end.cast::<u8>();
            // SAFETY: as the caller promises; there are tiles, as one holds them; what is asked for ahead need not be ours.
            unsafe {
                asm!("tilezero tmm0", "tilezero tmm1", $($zero,)* options(nostack, preserves_flags, nomem));
                for block in 0..groups[0].len() / 2 {
                    let row = rows.as_ptr().byte_add(64 * block);
                    // As much of the next rows as is read of these.
                    for line in 0..32 {
                        prefetch_to_second(ahead.wrapping_add(64 * line));
                    }
                    ahead = ahead.wrapping_add(32 * 64);
                    asm!(
                        "tileloadd tmm4, [{upper} + {row_bytes}*1]",
                        "tileloadd tmm5, [{lower} + {row_bytes}*1]",
                        "tileloadd tmm6, [{one} + {tile_row}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm5, tmm6",
                        $($first,)*
                        "tileloadd tmm6, [{one} + {tile_row}*1 + 1024]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm5, tmm6",
                        $($second,)*
                        upper = in(reg) row, lower = in(reg) row.byte_add(16 * row_bytes), row_bytes = in(reg) row_bytes,
                        one = in(reg) &raw const groups[0][2 * block], other = in(reg) &raw const groups[$groups - 1][2 * block],
                        tile_row = in(reg) 64usize,
                        options(nostack, preserves_flags, readonly)
                    );
                }
                asm!(
                    "tilestored [{sums} + {tile_row}*1], tmm0", "tilestored [{sums} + {tile_row}*1 + 1024], tmm1", $($store,)*
                    sums = in(reg) sums, tile_row = in(reg) 64usize,
                    options(nostack, preserves_flags)
                );
            }
        }
    };
}

dots!(
    /// Of one group.
    dots_16, 1, [], ["/* {other} */"], ["/* {other} */"], []
);
dots!(
    /// Of two groups.
    dots_32, 2,
    ["tilezero tmm2", "tilezero tmm3"],
    ["tileloadd tmm7, [{other} + {tile_row}*1]", "tdpbf16ps tmm2, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7"],
    ["tileloadd tmm7, [{other} + {tile_row}*1 + 1024]", "tdpbf16ps tmm2, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7"],
    ["tilestored [{sums} + {tile_row}*1 + 2048], tmm2", "tilestored [{sums} + {tile_row}*1 + 3072], tmm3"]
);

/// Asks for a cache line, for the second-level cache: the first one has no room for what is read ahead here.
#[inline(always)]
pub fn prefetch_to_second(address: *const u8) {
    // SAFETY: a hint, which reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
}

/// Operations of a turn of [`multiply`].
pub const PEAK_OPERATIONS: f64 = 4.0 * (2 * TILE * TILE * 2 * TILE) as f64;

/// Multiplies and adds in registers, `turns` times four products of tiles.
///
/// # Panics
/// Where the instructions are not here.
pub fn multiply(turns: usize) -> f32 {
    assert!(super::Isa::best() == super::Isa::Amx);
    let mut sums = [0.0f32; TILE * TILE];
    // SAFETY: the instructions are here; the one tile that is stored has room.
    unsafe {
        let _tiles = Tiles::new();
        asm!(
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {turns}",
            "jnz 2b",
            "tilestored [{sums} + {row}*1], tmm0",
            turns = inout(reg) turns => _, sums = in(reg) sums.as_mut_ptr(), row = in(reg) 4 * TILE,
            options(nostack)
        );
    }
    sums[0]
}
