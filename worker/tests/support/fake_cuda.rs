//! Builds the fake NVIDIA card of `tests/fake_cuda`.
#![allow(dead_code)] // Each test binary uses its part.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Library, the version in its file's other name, and source.
const LIBRARIES: [(&str, &str, &str); 4] = [
    ("libcuda.so", "1", "driver.cpp"),
    ("libnvrtc.so", "12", "nvrtc.cpp"),
    ("libcublasLt.so", "12", "cublaslt.cpp"),
    ("libnccl.so", "2", "nccl.cpp"),
];

/// A folder with `libcuda`, `libnvrtc`, `libcublasLt` and `libnccl` that pretend to be a card, for `LD_LIBRARY_PATH`; built once for
/// all test processes. `None`, said aloud, where there is no C++ compiler.
pub fn libraries() -> Option<PathBuf> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> Option<PathBuf> {
    // The tests of the whole use it, too.
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda");
    let of_worker = Path::new(env!("CARGO_MANIFEST_DIR")).join("worker/tests/fake_cuda");
    let source = if own.exists() { own } else { of_worker };
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    for file in ["driver.cpp", "nvrtc.cpp", "cublaslt.cpp", "nccl.cpp", "graphs.h", "launch.h", "memory.h"] {
        std::fs::read(source.join(file)).unwrap().hash(&mut hasher);
    }
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = parent.join(format!("fake-cuda-{:016x}", hasher.finish()));
    if folder.exists() {
        return Some(folder);
    }
    // Other processes may do the same at this moment: the first to finish gives its folder the name.
    let work = parent.join(format!("fake-cuda.{}", std::process::id()));
    std::fs::create_dir_all(&work).unwrap();
    for (library, version, file) in LIBRARIES {
        let mut compiler = Command::new(std::env::var("CXX").unwrap_or("c++".into()));
        compiler
            .args([
                "-std=c++17",
                "-O3",
                "-shared",
                "-fPIC",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                "-Werror",
            ])
            .arg(format!("-DFAKE_CUDA_SOURCE=\"{}\"", source.display()))
            // With this name a library that was opened by its path is found by it, too.
            .arg(format!("-Wl,-soname,{library}"))
            .arg("-o")
            .arg(work.join(library))
            .arg(source.join(file))
            .arg("-ldl");
        match compiler.output() {
            Ok(output) => {
                let log = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{file} does not compile: {log}");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                _ = writeln!(io::stderr(), "skipped: no C++ compiler, so no fake card");
                return None;
            }
            Err(error) => panic!("c++: {error}"),
        }
        std::os::unix::fs::symlink(library, work.join(format!("{library}.{version}"))).unwrap();
    }
    if std::fs::rename(&work, &folder).is_err() {
        std::fs::remove_dir_all(&work).unwrap();
    }
    Some(folder)
}
