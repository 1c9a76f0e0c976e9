//! The fork server and its supervisors alone, as tests and benchmarks of this crate start them.

fn main() -> std::process::ExitCode {
    aquifer_agent::supervise()
}
