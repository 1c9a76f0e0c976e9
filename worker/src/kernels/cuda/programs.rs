//! The kernels' source, compiled for the card that is there, unless that was done before.

use super::DeviceError;
use super::cache::Cache;
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
        "embedding_forward_int8", "widen_int8", "embedding_backward",
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
    "linear_few.cu": ["linear_few", "linear_few_float", "linear_few_int8", "linear_few_int8_float"],
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

/// The programs that were loaded. They live as long as the process.
pub struct Programs {
    capability: (u32, u32),
    cache: Cache,
    functions: BTreeMap<(Kind, &'static str), driver::CUfunction>,
}

impl Programs {
    pub fn new(capability: (u32, u32)) -> Programs {
        Programs { capability, cache: Cache::of_user(), functions: BTreeMap::new() }
    }

    /// Makes all kernels ready, unless it was done: some seconds where they have to be compiled. The card is that of this thread.
    ///
    /// # Errors
    /// What the compiler or the driver says, or heads of a length that no kernel takes.
    pub fn prepare(&mut self, kind: Kind) -> Result<(), DeviceError> {
        check(kind)?;
        let missing = |source: &&Source| !self.functions.contains_key(&(kind, source.kernels[0]));
        let builds: Vec<Build> =
            SOURCES.iter().filter(missing).map(|source| Build::new(source, self.capability, kind)).collect();
        let cache = &self.cache;
        let images: Vec<_> = std::thread::scope(|scope| {
            let compiled: Vec<_> =
                builds.iter().map(|build| scope.spawn(move || build.image(cache))).collect();
            compiled.into_iter().map(|thread| thread.join().expect("no panic in it")).collect()
        });
        builds.iter().zip(images).try_for_each(|(build, image)| self.load(build, image?))
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
            let build = Build::new(source, self.capability, kind);
            self.load(&build, build.image(&self.cache)?)?;
        }
        Ok(self.functions[&(kind, kernel)])
    }

    /// Loads what was kept or compiled; what the driver does not take of what was kept is compiled anew.
    fn load(&mut self, build: &Build, image: Image) -> Result<(), DeviceError> {
        let mut module = ptr::null_mut();
        // SAFETY: the image is a whole one of the compiler, and both live through the call.
        #[allow(unsafe_code)]
        let mut load = |image: &[u8]| unsafe { driver::cuModuleLoadData(&mut module, image.as_ptr().cast()) };
        let mut result = load(&image.code);
        if result != driver::CUresult::CUDA_SUCCESS && image.was_kept {
            result = load(&build.compile(&self.cache)?);
        }
        done("cuModuleLoadData", result)?;
        for kernel in build.source.kernels {
            let (name, mut function) = (CString::new(*kernel).expect("no zeros"), ptr::null_mut());
            // SAFETY: the module is loaded, and the name ends with a zero.
            #[allow(unsafe_code)]
            let found = unsafe { driver::cuModuleGetFunction(&mut function, module, name.as_ptr()) };
            done(kernel, found)?;
            self.functions.insert((build.kind, kernel), function);
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

/// The code of a file, and whether it was kept from an earlier start.
struct Image {
    code: Vec<u8>,
    was_kept: bool,
}

/// A file that is to be compiled for cards of a compute capability.
struct Build {
    source: &'static Source,
    kind: Kind,
    options: Vec<String>,
}

impl Build {
    fn new(source: &'static Source, (major, minor): (u32, u32), kind: Kind) -> Build {
        // Code of 9.0a has the products of warp groups, and runs on 9.0 alone.
        let architecture = if (major, minor) == (9, 0) { "90a".into() } else { format!("{major}{minor}") };
        let options = vec![
            format!("--gpu-architecture=sm_{architecture}"),
            "--std=c++17".into(),
            format!("-DBF16={}", u8::from(kind.0)),
            format!("-DHEAD_DIM={}", kind.1),
            format!("--fmad={}", source.file != EXACT),
        ];
        Build { source, kind, options }
    }

    /// All that its code is made of.
    fn key(&self) -> String {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the places live through the call, which leaves them where it fails.
        #[allow(unsafe_code)]
        let _ = unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) };
        let headers = HEADERS.iter().flat_map(|(name, text)| [*name, *text]);
        let parts = [self.source.file, self.source.text].into_iter().chain(headers);
        let parts: Vec<&str> = parts.chain(self.options.iter().map(String::as_str)).collect();
        format!("NVRTC {major}.{minor}\0{}", parts.join("\0"))
    }

    fn image(&self, cache: &Cache) -> Result<Image, DeviceError> {
        match cache.get(&self.key()) {
            Some(code) => Ok(Image { code, was_kept: true }),
            None => Ok(Image { code: self.compile(cache)?, was_kept: false }),
        }
    }

    fn compile(&self, cache: &Cache) -> Result<Vec<u8>, DeviceError> {
        let code = compile(self.source, &self.options)?;
        cache.put(&self.key(), &code);
        Ok(code)
    }
}

/// The code of one file.
fn compile(source: &Source, options: &[String]) -> Result<Vec<u8>, DeviceError> {
    let text = |text: &str| CString::new(text).expect("no zeros in sources");
    let texts: Vec<CString> = options.iter().map(|option| text(option)).collect();
    let own = [text(source.text), text(source.file)];
    let (contents, names) = (HEADERS.map(|(_, content)| text(content)), HEADERS.map(|(name, _)| text(name)));
    let pointers =
        |texts: &[CString]| -> Vec<*const c_char> { texts.iter().map(|text| text.as_ptr()).collect() };
    let (arguments, contents, names) = (pointers(&texts), pointers(&contents), pointers(&names));
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
        let compiled = nvrtc::nvrtcCompileProgram(program, arguments.len() as i32, arguments.as_ptr());
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
                "{} was not compiled with {}: {compiled:?}: {first}",
                source.file,
                options.join(" ")
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
