//! Reading of trace files, packed or not.

use std::path::Path;
use std::process::Command;

/// Text of a file, or of `PATH.gz` where that is what lies there (unpacked by `gzip`).
///
/// # Errors
/// A sentence with the path.
pub fn read_text(path: &Path) -> Result<String, String> {
    if path.exists() {
        return std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    }
    let packed = format!("{}.gz", path.display());
    let output = Command::new("gzip").args(["-dc", &packed]).output();
    let output = output.map_err(|error| format!("gzip -dc {packed}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{packed}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    String::from_utf8(output.stdout).map_err(|error| format!("{packed}: {error}"))
}
