//! The supervisor alone, as tests and benchmarks of this crate start it: `supervise DIR`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(dir) => aquifer_agent::supervise(Path::new(&dir)),
        None => ExitCode::from(2),
    }
}
