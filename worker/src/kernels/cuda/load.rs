//! The libraries of NVIDIA, found when the program runs: it is built and runs where there are none.

use super::DeviceError;
use cudarc::driver::sys as driver;
use cudarc::{cublaslt, nvrtc};
use std::ffi::{CStr, c_char, c_int};

/// The oldest driver: the one whose CUDA has the kernels' instructions for all cards that are taken.
const LEAST_DRIVER: c_int = 12_000;
/// The oldest cards.
const LEAST_CAPABILITY: (c_int, c_int) = (8, 0);

/// A card that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number among those that this process may see.
    pub index: usize,
    /// The driver's name for it.
    pub device: c_int,
    /// Such as `NVIDIA H200`.
    pub name: String,
    /// Where it is on this machine, such as `0000:1b:00.0`.
    pub bus: String,
    /// Its compute capability.
    pub capability: (u32, u32),
    /// Its multiprocessors.
    pub processors: usize,
    /// Its memory.
    pub memory_bytes: usize,
}

/// A library: what it is, the file that people know, whether it is there, and the first of the names that it lacks.
struct Library {
    what: &'static str,
    file: &'static str,
    is_there: unsafe fn() -> bool,
    lacks: fn() -> Option<&'static str>,
}

macro_rules! lacks {
    ($library:path, [$($name:literal),* $(,)?]) => {
        || {
            // SAFETY: the library was found before this is called, and the addresses are not called here.
            #[allow(unsafe_code)]
            let has = |name: &str| unsafe { $library().get::<unsafe extern "C" fn()>(name.as_bytes()).is_ok() };
            [$($name),*].into_iter().find(|name| !has(name))
        }
    };
}

const LIBRARIES: [Library; 3] = [
    Library {
        what: "CUDA driver",
        file: "libcuda.so.1",
        is_there: driver::is_culib_present,
        lacks: lacks!(
            driver::culib,
            [
                "cuInit",
                "cuDriverGetVersion",
                "cuDeviceGetCount",
                "cuDeviceGet",
                "cuDeviceGetName",
                "cuDeviceGetAttribute",
                "cuDeviceGetPCIBusId",
                "cuDeviceTotalMem_v2",
                "cuDevicePrimaryCtxRetain",
                "cuCtxSetCurrent",
                "cuStreamCreate",
                "cuStreamDestroy_v2",
                "cuStreamSynchronize",
                "cuMemAlloc_v2",
                "cuMemFree_v2",
                "cuMemGetInfo_v2",
                "cuMemcpyHtoDAsync_v2",
                "cuMemcpyDtoHAsync_v2",
                "cuMemcpyDtoDAsync_v2",
                "cuMemsetD8Async",
                "cuModuleLoadData",
                "cuModuleGetFunction",
                "cuFuncSetAttribute",
                "cuLaunchKernel",
                "cuMemAllocHost_v2",
                "cuEventCreate",
                "cuEventDestroy_v2",
                "cuEventQuery",
                "cuEventRecord",
                "cuEventSynchronize",
                "cuStreamWaitEvent",
            ]
        ),
    },
    Library {
        what: "NVRTC, CUDA's compiler at run time",
        file: "libnvrtc.so",
        is_there: nvrtc::sys::is_culib_present,
        lacks: lacks!(
            nvrtc::sys::culib,
            [
                "nvrtcVersion",
                "nvrtcCreateProgram",
                "nvrtcCompileProgram",
                "nvrtcGetCUBINSize",
                "nvrtcGetCUBIN",
                "nvrtcGetProgramLogSize",
                "nvrtcGetProgramLog",
                "nvrtcDestroyProgram",
            ]
        ),
    },
    Library {
        what: "cuBLASLt",
        file: "libcublasLt.so",
        is_there: cublaslt::sys::is_culib_present,
        lacks: lacks!(
            cublaslt::sys::culib,
            [
                "cublasLtCreate",
                "cublasLtGetVersion",
                "cublasLtMatmul",
                "cublasLtMatmulDescCreate",
                "cublasLtMatmulDescSetAttribute",
                "cublasLtMatrixLayoutCreate",
                "cublasLtMatmulPreferenceCreate",
                "cublasLtMatmulPreferenceDestroy",
                "cublasLtMatmulPreferenceSetAttribute",
                "cublasLtMatmulAlgoGetHeuristic",
            ]
        ),
    },
];

/// How many cards this process may see: one at least.
///
/// # Errors
/// What is missing, in one sentence: a library or one of its functions, or any card.
pub fn visible() -> Result<usize, DeviceError> {
    let say = |sentence: String| Err(DeviceError(sentence));
    for (number, library) in LIBRARIES.iter().enumerate() {
        let Library { what, file, .. } = library;
        // SAFETY: opening these libraries runs nothing but their own start.
        #[allow(unsafe_code)]
        if !unsafe { (library.is_there)() } {
            return say(format!("no {what}: {file} was not found"));
        }
        if let Some(name) = (library.lacks)() {
            return say(format!("{file} has no {name}: this {what} is too old"));
        }
        if number == 0 {
            start()?;
        }
    }
    let mut count = 0;
    // SAFETY: the driver was started, and the place lives through the call.
    #[allow(unsafe_code)]
    let counted = unsafe { driver::cuDeviceGetCount(&mut count) };
    done("cuDeviceGetCount", counted)?;
    match usize::try_from(count).unwrap_or(0) {
        0 => say("no NVIDIA card is visible".into()),
        count => Ok(count),
    }
}

/// The card of a number among those that this process may see.
///
/// # Errors
/// As of [`visible`], or there is no such card, or it lacks something.
pub fn find(index: usize) -> Result<Found, DeviceError> {
    match visible()? {
        count if count <= index => {
            Err(DeviceError(format!("there is no card {index}: {count} visible, counted from 0")))
        }
        _ => look(index),
    }
}

/// Starts the driver.
fn start() -> Result<(), DeviceError> {
    let mut version = 0;
    // SAFETY: both may be called at any time, and the place lives through the call.
    #[allow(unsafe_code)]
    let (started, asked) = unsafe { (driver::cuInit(0), driver::cuDriverGetVersion(&mut version)) };
    if started == driver::CUresult::CUDA_ERROR_NO_DEVICE {
        return Err(DeviceError("no NVIDIA card is visible".into()));
    }
    done("cuInit", started)?;
    done("cuDriverGetVersion", asked)?;
    if version < LEAST_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        let least = LEAST_DRIVER / 1000;
        return Err(DeviceError(format!(
            "the driver is for CUDA {major}.{minor}; it must be for {least} at least"
        )));
    }
    Ok(())
}

fn look(index: usize) -> Result<Found, DeviceError> {
    use driver::CUdevice_attribute as Attribute;
    let (mut device, mut memory_bytes, mut text) = (0, 0, [0 as c_char; 256]);
    let number = c_int::try_from(index).map_err(|_| DeviceError(format!("there is no card {index}")))?;
    // SAFETY: the driver was started, and all places live through the calls and are as long as they are said to be.
    #[allow(unsafe_code)]
    unsafe {
        done("cuDeviceGet", driver::cuDeviceGet(&mut device, number))?;
        done("cuDeviceGetName", driver::cuDeviceGetName(text.as_mut_ptr(), text.len() as c_int - 1, device))?;
        done("cuDeviceTotalMem", driver::cuDeviceTotalMem_v2(&mut memory_bytes, device))?;
    }
    let name = text_of(&text);
    text.fill(0);
    // SAFETY: as above.
    #[allow(unsafe_code)]
    let asked = unsafe { driver::cuDeviceGetPCIBusId(text.as_mut_ptr(), text.len() as c_int - 1, device) };
    done("cuDeviceGetPCIBusId", asked)?;
    let bus = text_of(&text);
    let attribute = |which: Attribute| {
        let mut value = 0;
        // SAFETY: as above.
        #[allow(unsafe_code)]
        let asked = unsafe { driver::cuDeviceGetAttribute(&mut value, which, device) };
        done("cuDeviceGetAttribute", asked).map(|()| value)
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if (major, minor) < LEAST_CAPABILITY {
        let (least, minor_least) = LEAST_CAPABILITY;
        return Err(DeviceError(format!(
            "card {index}, {name}, has compute capability {major}.{minor}; it must have {least}.{minor_least} at least, with \
             which products of bf16 and asynchronous copies came"
        )));
    }
    let processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
    Ok(Found { index, device, name, bus, capability: (major as u32, minor as u32), processors, memory_bytes })
}

/// What the driver has written.
fn text_of(text: &[c_char; 256]) -> String {
    // SAFETY: the driver ends its texts with a zero, and the last byte is one.
    #[allow(unsafe_code)]
    unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned()
}

/// What a call of the driver came to.
pub fn done(call: &str, result: driver::CUresult) -> Result<(), DeviceError> {
    match result {
        driver::CUresult::CUDA_SUCCESS => Ok(()),
        result => Err(DeviceError(format!("the card failed: {call}: {result:?}"))),
    }
}
