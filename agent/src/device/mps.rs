//! NVIDIA's multi-process service: kernels of several programs run on one device at once, each within its share.

use std::env;
use std::path::PathBuf;

/// Where its daemon listens, for programs that are not told otherwise.
pub fn pipe_directory() -> PathBuf {
    env::var_os("CUDA_MPS_PIPE_DIRECTORY").unwrap_or("/tmp/nvidia-mps".into()).into()
}

/// Whether an administrator has started it for all devices: `nvidia-cuda-mps-control -d`.
pub fn runs() -> bool {
    pipe_directory().join("control").exists()
}
