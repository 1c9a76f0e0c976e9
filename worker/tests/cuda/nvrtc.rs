//! Whether NVIDIA's own compiler takes the kernels, which needs no card.

use libloading::{Library, Symbol};
use std::ffi::{CString, c_char, c_int, c_void};
use std::io::Write;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Mutex;

/// Ampere, Ada, Hopper, Blackwell.
const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_89", "sm_90a", "sm_100"];

/// Programs whose code depends on the length of a head, and those where it does not.
const BY_HEAD: [&str; 3] = ["attention.cu", "attention_backward.cu", "cached.cu"];
const OTHERS: [&str; 5] = ["elementwise.cu", "linear_few.cu", "loss.cu", "norm.cu", "update.cu"];

#[derive(Clone, Copy, Debug)]
struct Target {
    file: &'static str,
    architecture: &'static str,
    bf16: bool,
    head_dim: usize,
}

fn targets() -> Vec<Target> {
    let mut all = Vec::new();
    for architecture in ARCHITECTURES {
        for bf16 in [false, true] {
            all.extend(OTHERS.map(|file| Target { file, architecture, bf16, head_dim: 128 }));
            let lengths: &[usize] = match architecture {
                "sm_80" => &[64, 128],
                "sm_90a" => &[80, 128],
                _ => &[128],
            };
            for &head_dim in lengths {
                all.extend(BY_HEAD.map(|file| Target { file, architecture, bf16, head_dim }));
            }
        }
    }
    all
}

/// The compiler's result and log.
fn compile(library: &Library, target: Target) -> (c_int, String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda");
    let text = |file: &str| CString::new(std::fs::read_to_string(folder.join(file)).unwrap()).unwrap();
    let headers = ["common.cuh", "ptx.cuh", "tiles.cuh"];
    let (texts, names) = (headers.map(text), headers.map(|name| CString::new(name).unwrap()));
    let Target { file, architecture, bf16, head_dim } = target;
    let options = [
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".into(),
        format!("-DBF16={}", u8::from(bf16)),
        format!("-DHEAD_DIM={head_dim}"),
        format!("--fmad={}", file != "update.cu"),
        // Registers and what does not fit into them go into the log.
        "--ptxas-options=-v".into(),
    ]
    .map(|option: String| CString::new(option).unwrap());
    let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
    let (source, name) = (text(file), CString::new(file).unwrap());
    let (mut program, mut size) = (null_mut::<c_void>(), 0usize);
    type Program = *mut c_void;
    type Texts = *const *const c_char;
    // SAFETY: the signatures are those of nvrtc.h, and all strings live until the end.
    unsafe {
        let create: Symbol<
            '_,
            unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Texts, Texts) -> c_int,
        > = library.get(b"nvrtcCreateProgram").unwrap();
        let compile: Symbol<'_, unsafe extern "C" fn(Program, c_int, Texts) -> c_int> =
            library.get(b"nvrtcCompileProgram").unwrap();
        let log_size: Symbol<'_, unsafe extern "C" fn(Program, *mut usize) -> c_int> =
            library.get(b"nvrtcGetProgramLogSize").unwrap();
        let get_log: Symbol<'_, unsafe extern "C" fn(Program, *mut u8) -> c_int> =
            library.get(b"nvrtcGetProgramLog").unwrap();
        let destroy: Symbol<'_, unsafe extern "C" fn(*mut Program) -> c_int> =
            library.get(b"nvrtcDestroyProgram").unwrap();
        let (texts, names, options) = (pointers(&texts), pointers(&names), pointers(&options));
        let count = texts.len() as c_int;
        create(&mut program, source.as_ptr(), name.as_ptr(), count, texts.as_ptr(), names.as_ptr());
        let result = compile(program, options.len() as c_int, options.as_ptr());
        log_size(program, &mut size);
        let mut log = vec![0; size];
        get_log(program, log.as_mut_ptr());
        destroy(&mut program);
        (result, String::from_utf8_lossy(&log).trim_end_matches('\0').into())
    }
}

/// What is wrong with a log: warnings, and values that went from registers to memory, but for a few of a whole kernel.
fn complaints(log: &str) -> Vec<&str> {
    let spills = |line: &str| {
        let bytes =
            line.split_once(" bytes stack frame").and_then(|(before, _)| before.split_whitespace().last());
        bytes.is_some_and(|bytes| bytes.parse::<usize>().is_ok_and(|bytes| 32 < bytes))
    };
    log.lines().filter(|line| line.contains("warning") || line.contains("error") || spills(line)).collect()
}

#[test]
fn every_kernel_compiles_for_every_architecture_and_fits_into_registers() {
    let Some(path) = std::env::var_os("AQUIFER_NVRTC") else {
        _ = writeln!(std::io::stderr(), "skipped: NVIDIA's compiler (AQUIFER_NVRTC names no libnvrtc.so.12)");
        return;
    };
    // SAFETY: NVIDIA's library does nothing when it is loaded.
    let library = unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("AQUIFER_NVRTC: {error}"));
    let (queue, failures) = (Mutex::new(targets()), Mutex::new(Vec::new()));
    let kernels = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(target) = queue.lock().unwrap().pop() else { return };
                    let (result, log) = compile(&library, target);
                    // An older compiler does not know the newest cards.
                    if log.contains("invalid value for --gpu-architecture") && target.architecture == "sm_100"
                    {
                        continue;
                    }
                    *kernels.lock().unwrap() += log.matches("Used ").count();
                    if result != 0 || !complaints(&log).is_empty() {
                        failures.lock().unwrap().push(format!("{target:?}: {result}\n{log}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let kernels = kernels.into_inner().unwrap();
    assert!(200 < kernels, "{kernels} kernels told of their registers");
}
