//! The process that has a vendor's library alone, as tests of this crate start it.

fn main() -> std::process::ExitCode {
    aquifer_agent::ask_library()
}
