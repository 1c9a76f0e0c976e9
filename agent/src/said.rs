//! What another program says: run to its end, with a deadline, and no thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How long most programs may take. Docker's client waits for its daemon for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of its answer that are read, at most.
const MOST_SAID: usize = 1 << 20;

/// Runs a command to its end with this input, and returns what it said; or the last line of its complaints. Blocks.
pub(crate) fn said(mut command: Command, input: &[u8], patience: Duration) -> Result<String, String> {
    let mut start = || {
        let (given, out, complaints) = (memory_file()?, memory_file()?, memory_file()?);
        given.write_all_at(input, 0)?;
        command.stdin(given).stdout(out.try_clone()?).stderr(complaints.try_clone()?);
        Ok((command.spawn()?, out, complaints))
    };
    let (mut child, out, complaints) =
        start().map_err(|error: io::Error| format!("it cannot be started: {error}"))?;
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it did not answer within {} s", patience.as_secs()));
            }
        }
    };
    match status.success() {
        true => Ok(read(&out)),
        false => {
            let complaints = read(&complaints);
            Err(last_line(&complaints)
                .map_or_else(|| status.to_string(), |line| line.chars().take(300).collect()))
        }
    }
}

/// The last line that is not empty.
pub(crate) fn last_line(text: &str) -> Option<&str> {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty())
}

/// What is written here needs no thread to be read, which a supervisor must not have, and nobody who goes on writing is
/// waited for.
pub(crate) fn memory_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("said", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

/// What was written, as text; what is no text is replaced.
pub(crate) fn read(file: &File) -> String {
    let mut bytes = vec![0; MOST_SAID];
    let length = file.read_at(&mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}
