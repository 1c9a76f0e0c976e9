//! The kernels' source, compiled for the card that is there.

use super::DeviceError;
use super::load::done;
use cudarc::driver::sys as driver;
use cudarc::nvrtc::sys as nvrtc;
use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::ptr;

/// A file of kernels, and their names.
struct Source {
    file: &'static str,
    text: &'static str,
    kernels: &'static [&'static str],
}

macro_rules! sources {
    ($($file:literal: [$($kernel:literal),* $(,)?]),* $(,)?) => {
        [$(Source { file: $file, text: include_str!($file), kernels: &[$($kernel),*] }),*]
    };
}

const SOURCES: &[Source] = &sources!(
    "elementwise.cu": [
        "to_elem", "to_float", "add_bias", "add_bias_float", "swiglu_forward", "swiglu_backward", "rope", "embedding_forward",
        "embedding_backward",
    ],
    "update.cu": ["add_floats", "adamw", "sum_of_squares", "sum_doubles"],
    "norm.cu": [
        "rms_norm_forward", "rms_norm_backward", "head_norm_forward", "head_norm_backward", "column_sums",
        "reduce_rows",
    ],
    "loss.cu": ["cross_entropy"],
    "attention.cu": ["attention_forward"],
    "attention_backward.cu": ["attention_backward_prepare", "attention_backward_kv", "attention_backward_q"],
    "cached.cu": ["cache_write", "cache_read", "attention_cached", "attention_cached_combine"],
    "linear_few.cu": ["linear_few", "linear_few_float"],
);

const HEADERS: [(&str, &str); 3] = [
    ("common.cuh", include_str!("common.cuh")),
    ("ptx.cuh", include_str!("ptx.cuh")),
    ("tiles.cuh", include_str!("tiles.cuh")),
];

/// The file whose kernels have the processor's bits: the compiler fuses products and sums if it may.
const EXACT: &str = "update.cu";

/// Lengths of heads that the kernels take.
const HEAD_DIMS: std::ops::RangeInclusive<usize> = 8..=128;

/// What kernels are compiled for: whether elements are bf16, and the length of a head.
pub type Kind = (bool, usize);

/// The programs that were compiled. They live as long as the process.
pub struct Programs {
    capability: (u32, u32),
    functions: BTreeMap<(Kind, &'static str), driver::CUfunction>,
}

impl Programs {
    pub fn new(capability: (u32, u32)) -> Programs {
        Programs { capability, functions: BTreeMap::new() }
    }

    /// Compiles all kernels, unless it was done: some seconds. The card is that of this thread.
    ///
    /// # Errors
    /// What the compiler or the driver says, or heads of a length that no kernel takes.
    pub fn prepare(&mut self, kind: Kind) -> Result<(), DeviceError> {
        check(kind)?;
        let capability = self.capability;
        let missing = |source: &&Source| !self.functions.contains_key(&(kind, source.kernels[0]));
        let images: Vec<_> = std::thread::scope(|scope| {
            let compile = |source| (source, scope.spawn(move || compile(source, capability, kind)));
            let compiled: Vec<_> = SOURCES.iter().filter(missing).map(compile).collect();
            let wait = |(source, thread): (_, std::thread::ScopedJoinHandle<'_, _>)| {
                (source, thread.join().expect("no panic in it"))
            };
            compiled.into_iter().map(wait).collect()
        });
        images.into_iter().try_for_each(|(source, image)| self.load(kind, source, &image?))
    }

    /// A kernel; compiles the file that has it, if that was not done.
    ///
    /// # Errors
    /// As [`prepare`](Programs::prepare).
    pub fn function(&mut self, kind: Kind, kernel: &'static str) -> Result<driver::CUfunction, DeviceError> {
        if !self.functions.contains_key(&(kind, kernel)) {
            let source = SOURCES.iter().find(|source| source.kernels.contains(&kernel));
            let source = source.unwrap_or_else(|| panic!("{kernel} stands in no list of kernels"));
            check(kind)?;
            self.load(kind, source, &compile(source, self.capability, kind)?)?;
        }
        Ok(self.functions[&(kind, kernel)])
    }

    fn load(&mut self, kind: Kind, source: &Source, image: &[u8]) -> Result<(), DeviceError> {
        let mut module = ptr::null_mut();
        // SAFETY: the image is a whole one of the compiler, and both live through the call.
        #[allow(unsafe_code)]
        done("cuModuleLoadData", unsafe { driver::cuModuleLoadData(&mut module, image.as_ptr().cast()) })?;
        for kernel in source.kernels {
            let (name, mut function) = (CString::new(*kernel).expect("no zeros"), ptr::null_mut());
            // SAFETY: the module is loaded, and the name ends with a zero.
            #[allow(unsafe_code)]
            let found = unsafe { driver::cuModuleGetFunction(&mut function, module, name.as_ptr()) };
            done(kernel, found)?;
            self.functions.insert((kind, kernel), function);
        }
        Ok(())
    }
}

fn check((_, head_dim): Kind) -> Result<(), DeviceError> {
    if HEAD_DIMS.contains(&head_dim) && head_dim.is_multiple_of(8) {
        return Ok(());
    }
    let (least, most) = (HEAD_DIMS.start(), HEAD_DIMS.end());
    let allowed = format!("on a card they are multiples of 8 from {least} to {most}");
    Err(DeviceError(format!("the model's heads have length {head_dim}; {allowed}")))
}

/// The code of one file for cards of a compute capability.
fn compile(
    source: &Source,
    (major, minor): (u32, u32),
    (bf16, head_dim): Kind,
) -> Result<Vec<u8>, DeviceError> {
    // Code of 9.0a has the products of warp groups, and runs on 9.0 alone.
    let architecture = if (major, minor) == (9, 0) { "90a".into() } else { format!("{major}{minor}") };
    let options = [
        format!("--gpu-architecture=sm_{architecture}"),
        "--std=c++17".into(),
        format!("-DBF16={}", u8::from(bf16)),
        format!("-DHEAD_DIM={head_dim}"),
        format!("--fmad={}", source.file != EXACT),
    ];
    let text = |text: &str| CString::new(text).expect("no zeros in sources");
    let (options, own) = (options.map(|option| text(&option)), [text(source.text), text(source.file)]);
    let (contents, names) = (HEADERS.map(|(_, content)| text(content)), HEADERS.map(|(name, _)| text(name)));
    let pointers =
        |texts: &[CString]| -> Vec<*const c_char> { texts.iter().map(|text| text.as_ptr()).collect() };
    let (options, contents, names) = (pointers(&options), pointers(&contents), pointers(&names));
    let mut program = ptr::null_mut();
    let success = nvrtc::nvrtcResult::NVRTC_SUCCESS;
    // SAFETY: all texts end with zeros and live until the program is gone; what is read back is as long as was said.
    #[allow(unsafe_code)]
    unsafe {
        let count = HEADERS.len() as i32;
        let (source_text, file) = (own[0].as_ptr(), own[1].as_ptr());
        let made = nvrtc::nvrtcCreateProgram(
            &mut program,
            source_text,
            file,
            count,
            contents.as_ptr(),
            names.as_ptr(),
        );
        if made != success {
            return Err(DeviceError(format!("NVRTC does not take {}: {made:?}", source.file)));
        }
        let compiled = nvrtc::nvrtcCompileProgram(program, options.len() as i32, options.as_ptr());
        let image = if compiled == success {
            read(program, nvrtc::nvrtcGetCUBINSize, nvrtc::nvrtcGetCUBIN)
        } else {
            let log =
                read(program, nvrtc::nvrtcGetProgramLogSize, nvrtc::nvrtcGetProgramLog).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let first =
                log.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no more is known");
            let first = first.trim_end_matches('\0').to_string();
            Err(DeviceError(format!(
                "{} was not compiled for compute capability {major}.{minor}: {compiled:?}: {first}",
                source.file
            )))
        };
        nvrtc::nvrtcDestroyProgram(&mut program);
        image
    }
}

type Size = unsafe fn(nvrtc::nvrtcProgram, *mut usize) -> nvrtc::nvrtcResult;
type Content = unsafe fn(nvrtc::nvrtcProgram, *mut c_char) -> nvrtc::nvrtcResult;

/// Something that a program has.
///
/// # Safety
/// The program lives, and `content` writes as many bytes as `size` says.
#[allow(unsafe_code)]
unsafe fn read(program: nvrtc::nvrtcProgram, size: Size, content: Content) -> Result<Vec<u8>, DeviceError> {
    let mut bytes = 0;
    // SAFETY: the place lives through the call.
    let mut result = unsafe { size(program, &mut bytes) };
    let mut all = vec![0; bytes];
    if result == nvrtc::nvrtcResult::NVRTC_SUCCESS {
        // SAFETY: there is as much room as was asked for.
        result = unsafe { content(program, all.as_mut_ptr().cast()) };
    }
    match result {
        nvrtc::nvrtcResult::NVRTC_SUCCESS => Ok(all),
        other => Err(DeviceError(format!("NVRTC does not give what it compiled: {other:?}"))),
    }
}
