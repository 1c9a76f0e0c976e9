//! A multi-process service for each device: its programs share that one, and see no other.
//!
//! Source: NVIDIA, "Multi-Process Service", `nvidia-cuda-mps-control(1)`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::said::{PATIENCE, said};

/// What starts and ends services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mps {
    program: PathBuf,
}

impl Mps {
    /// Through this program: `nvidia-cuda-mps-control`.
    pub fn new(program: PathBuf) -> Mps {
        Mps { program }
    }

    /// Starts the service of a device, unless it runs; returns where it listens.
    pub(super) fn start(&self, dir: &Path, device: &str) -> Result<PathBuf, String> {
        let own = dir.join(short(device));
        let make =
            |dir: &Path| fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()));
        make(&own.join("pipe"))?;
        make(&own.join("log"))?;
        fs::write(own.join("device"), device).map_err(|error| format!("{}: {error}", own.display()))?;
        let mut command = self.command(&own);
        command.arg("-d").env("CUDA_VISIBLE_DEVICES", device);
        match said(command, b"", PATIENCE) {
            Err(why) if !why.contains("already running") => {
                Err(format!("the multi-process service of {device} does not start: {why}"))
            }
            _ => Ok(own.join("pipe")),
        }
    }

    /// Ends the services of all devices but these.
    pub(super) fn stop_others(&self, dir: &Path, devices: &BTreeSet<&str>) {
        for own in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let device = fs::read_to_string(own.join("device")).unwrap_or_default();
            if devices.contains(&device[..]) {
                continue;
            }
            // One that cannot be reached has ended.
            let ended = said(self.command(&own), b"quit\n", PATIENCE);
            tracing::debug!(device, ?ended, "multi-process service");
            let _ = fs::remove_dir_all(&own);
        }
    }

    fn command(&self, own: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("CUDA_MPS_PIPE_DIRECTORY", own.join("pipe"))
            .env("CUDA_MPS_LOG_DIRECTORY", own.join("log"));
        command
    }
}

/// The path of a socket has room for little.
fn short(device: &str) -> String {
    let hash = device
        .bytes()
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}
