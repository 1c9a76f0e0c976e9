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

/// An instruction on tiles: their numbers, and where the rows of one lie, so many bytes apart.
///
/// Each of them is unsafe: there are tiles, and what is loaded can be read, what is stored written.
macro_rules! tile {
    (zero $tile:literal) => {
        asm!(concat!("tilezero tmm", $tile), options(nostack, preserves_flags, nomem))
    };
    (load $tile:literal, $at:expr, $row_bytes:expr) => {
        asm!(
            concat!("tileloadd tmm", $tile, ", [{} + {}*1]"),
            in(reg) $at, in(reg) $row_bytes,
            options(nostack, preserves_flags, readonly)
        )
    };
    (store $tile:literal, $at:expr, $row_bytes:expr) => {
        asm!(
            concat!("tilestored [{} + {}*1], tmm", $tile),
            in(reg) $at, in(reg) $row_bytes,
            options(nostack, preserves_flags)
        )
    };
    (add $a:literal * $b:literal to $sums:literal) => {
        asm!(
            concat!("tdpbf16ps tmm", $sums, ", tmm", $a, ", tmm", $b),
            options(nostack, preserves_flags, nomem)
        )
    };
}

/// Bytes of a row of a tile.
const ROW: usize = 4 * TILE;

/// `c = a * b`, or `c += a * b` with `add`: `[16, 32]` sums over `depth` times 32 elements, one after the other, or `[32, 32]` where
/// `BOTH` halves of the rows are wanted.
///
/// * `a`: `[depth, 32 rows, 16 pairs]`. `b`: `[depth, 16 pairs, 32 columns]`. `stride`: bytes from row to row of `c`.
///
/// # Safety
/// Both factors can be read, and `c` written, and read where `add`.
#[inline]
pub unsafe fn product<const BOTH: bool>(
    _: &Tiles,
    depth: usize,
    [a, b]: [*const u32; 2],
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    let (beside, below) = (c.wrapping_add(TILE), c.wrapping_byte_add(TILE * stride));
    let below_beside = below.wrapping_add(TILE);
    // SAFETY: as the caller promises; there are tiles, as one holds them.
    unsafe {
        if add {
            tile!(load 0, c, stride);
            tile!(load 1, beside, stride);
        } else {
            tile!(zero 0);
            tile!(zero 1);
        }
        if BOTH && add {
            tile!(load 2, below, stride);
            tile!(load 3, below_beside, stride);
        } else if BOTH {
            tile!(zero 2);
            tile!(zero 3);
        }
        for block in 0..depth {
            let (a, b) = (a.add(block * 2 * TILE * TILE), b.add(block * 2 * TILE * TILE));
            tile!(load 6, b, 2 * ROW);
            tile!(load 4, a, ROW);
            tile!(add 4 * 6 to 0);
            tile!(load 7, b.add(TILE), 2 * ROW);
            tile!(add 4 * 7 to 1);
            if BOTH {
                tile!(load 5, a.add(TILE * TILE), ROW);
                tile!(add 5 * 6 to 2);
                tile!(add 5 * 7 to 3);
            }
        }
        tile!(store 0, c, stride);
        tile!(store 1, beside, stride);
        if BOTH {
            tile!(store 2, below, stride);
            tile!(store 3, below_beside, stride);
        }
    }
}

/// The content of a tile: 16 rows of 16 words, each of which is a pair of bf16 or a sum.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Tile(pub [[u32; TILE]; TILE]);

impl Tile {
    /// All zeros.
    pub const ZERO: Tile = Tile([[0; TILE]; TILE]);
}

/// The sums of 32 rows of a matrix with one or two groups of 16 vectors, `sums[group][half of the rows]`.
///
/// A vector's tiles are those of its two parts, block by block. All first parts of a block go before all second ones, because a
/// tile of sums takes three products until it can be added to again.
///
/// # Safety
/// `rows` are 32 rows of as many blocks of 32 elements as each group has pairs of tiles.
pub unsafe fn dots(
    _: &Tiles,
    rows: &[Bf16],
    (one, other): (&[Tile], Option<&[Tile]>),
    sums: &mut [[Tile; 2]; 2],
) {
    let row_bytes = size_of_val(rows) / (2 * TILE);
    let upper = rows.as_ptr().cast::<u8>();
    let lower = upper.wrapping_add(TILE * row_bytes);
    let mut ahead = rows.as_ptr_range().end.cast::<u8>();
    // SAFETY: as the caller promises; there are tiles, as one holds them; what is asked for ahead need not be ours.
    unsafe {
        tile!(zero 0);
        tile!(zero 1);
        tile!(zero 2);
        tile!(zero 3);
        for block in 0..one.len() / 2 {
            // As much of the next rows as is read of these.
            for line in 0..2 * TILE {
                prefetch_to_second(ahead.wrapping_add(ROW * line));
            }
            ahead = ahead.wrapping_add(2 * TILE * ROW);
            tile!(load 4, upper.add(ROW * block), row_bytes);
            tile!(load 5, lower.add(ROW * block), row_bytes);
            for part in 2 * block..2 * block + 2 {
                tile!(load 6, &raw const one[part], ROW);
                tile!(add 4 * 6 to 0);
                tile!(add 5 * 6 to 1);
                if let Some(other) = other {
                    tile!(load 7, &raw const other[part], ROW);
                    tile!(add 4 * 7 to 2);
                    tile!(add 5 * 7 to 3);
                }
            }
        }
        tile!(store 0, &raw mut sums[0][0], ROW);
        tile!(store 1, &raw mut sums[0][1], ROW);
        tile!(store 2, &raw mut sums[1][0], ROW);
        tile!(store 3, &raw mut sums[1][1], ROW);
    }
}

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
        for _ in 0..turns {
            tile!(add 4 * 6 to 0);
            tile!(add 4 * 7 to 1);
            tile!(add 5 * 6 to 2);
            tile!(add 5 * 7 to 3);
        }
        tile!(store 0, sums.as_mut_ptr(), ROW);
    }
    sums[0]
}
