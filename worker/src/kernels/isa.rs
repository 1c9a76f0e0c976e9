//! Which instructions this processor has, and functions compiled once for each set of them.

/// The instructions that the inner loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// All of the next one, and AMX: products of whole tiles of bf16.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// AVX-512 with dot products of bf16 pairs.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the compiler assumes everywhere; on aarch64 that is NEON with fused multiply-add.
    Portable,
}

impl Isa {
    /// The best instructions that this processor has, found once.
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
            *BEST.get_or_init(|| {
                let avx512 = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl");
                if avx512 && is_x86_feature_detected!("avx512bf16") {
                    if super::amx::is_here() { Isa::Amx } else { Isa::Avx512Bf16 }
                } else if avx512 {
                    Isa::Avx512
                } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    Isa::Avx2
                } else {
                    Isa::Portable
                }
            })
        }
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Portable
    }

    /// Whether products of bf16 are of whole tiles, many times faster than those of f32.
    pub fn multiplies_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let has = self == Isa::Amx;
        #[cfg(not(target_arch = "x86_64"))]
        let has = false;
        has
    }

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => "amx",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => "avx512+bf16",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            Isa::Portable if cfg!(target_arch = "aarch64") => "neon",
            Isa::Portable => "portable",
        }
    }
}

/// Whether there is AVX-512, and so room for 32 vectors of 16 floats in the registers.
#[inline]
pub fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = matches!(Isa::best(), Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx);
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

/// Whether there are dot products of 16-bit integers in vectors of 512 bits.
#[cfg(target_arch = "x86_64")]
pub fn has_vnni() -> bool {
    static HAS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *HAS.get_or_init(|| has_avx512() && is_x86_feature_detected!("avx512vnni"))
}

/// Whether [`Isa::Portable`] has a fused multiply-add: the library call that stands in for it elsewhere is slow.
pub const PORTABLE_FMA: bool = cfg!(target_arch = "aarch64");

/// `a * b + c`, fused where the instruction exists.
#[inline(always)]
pub fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// How many bytes ahead of its use a loop asks for what it reads once, from one end to the other: the processor asks for no
/// more than it has just seen, and not across the end of a page. Found by trying: less is slower, more is no faster.
pub const AHEAD: usize = 8 << 10;

/// Asks for the cache line at `address`, where the architecture has words for it. It may lie outside of what is ours.
#[inline(always)]
pub fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Bytes that a [`prefetch`] brings.
pub const LINE: usize = 64;

/// Compiles a function once for each [`Isa`] and calls the best one. Inside, `FMA` says whether
/// [`multiply_add`] is fused.
macro_rules! simd {
    ($(#[$meta:meta])* $visible:vis fn $name:ident$(<$T:ident: $bound:path>)?($($arg:ident: $type:ty),* $(,)?) $(-> $return:ty)? $body:block) => {
        $(#[$meta])*
        $visible fn $name$(<$T: $bound>)?($($arg: $type),*) $(-> $return)? {
            #[inline(always)]
            #[allow(non_snake_case)]
            fn body<const FMA: bool $(, $T: $bound)?>($($arg: $type),*) $(-> $return)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            fn avx512$(<$T: $bound>)?($($arg: $type),*) $(-> $return)? { body::<true $(, $T)?>($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2$(<$T: $bound>)?($($arg: $type),*) $(-> $return)? { body::<true $(, $T)?>($($arg),*) }
            use $crate::kernels::isa::{Isa, PORTABLE_FMA};
            match Isa::best() {
                // SAFETY: the instructions were found on this processor.
                #[cfg(target_arch = "x86_64")]
                #[allow(unsafe_code)]
                Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe { avx512$(::<$T>)?($($arg),*) },
                // SAFETY: the instructions were found on this processor.
                #[cfg(target_arch = "x86_64")]
                #[allow(unsafe_code)]
                Isa::Avx2 => unsafe { avx2$(::<$T>)?($($arg),*) },
                Isa::Portable => body::<PORTABLE_FMA $(, $T)?>($($arg),*),
            }
        }
    };
}
pub(super) use simd;
