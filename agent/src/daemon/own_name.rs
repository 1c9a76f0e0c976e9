//! The agent's own name, which tells it from another one that says that it is the same node.

use std::path::Path;
use std::{fs, io};

use aquifer_proto::border;

use crate::json;

/// Made at the first start in a state directory and kept there: the host's name, for people, and some chance.
///
/// # Errors
/// It cannot be kept.
pub(super) fn own_name(state_dir: &Path, host: &str) -> io::Result<String> {
    let path = state_dir.join("agent-name");
    let kept = fs::read_to_string(&path).unwrap_or_default();
    if border::name("agent-name", kept.trim_end()).is_ok() {
        return Ok(kept.trim_end().into());
    }
    let of =
        |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let source = Path::new("/proc/sys/kernel/random/uuid");
    let chance = fs::read_to_string(source).map_err(|error| of(source, error))?;
    let letters = host.chars().filter(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c)).take(64);
    let name = format!("{}-{}", letters.collect::<String>(), chance.get(..8).unwrap_or_default());
    json::replace_bytes(&path, format!("{name}\n").as_bytes()).map_err(|error| of(&path, error))?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_with_its_directory_and_no_other_has_it() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = own_name(one.path(), "gpu-1.example").unwrap();
        assert_eq!((name.len(), name.starts_with("gpu-1.example-")), ("gpu-1.example-".len() + 8, true));
        assert_eq!(own_name(one.path(), "renamed").unwrap(), name);
        assert_ne!(own_name(other.path(), "gpu-1.example").unwrap(), name);
        fs::write(one.path().join("agent-name"), "").unwrap();
        assert_ne!(own_name(one.path(), "gpu-1.example").unwrap(), name, "a damaged one is made anew");
        let error = own_name(Path::new("/no/such"), "a").unwrap_err().to_string();
        assert!(error.starts_with("/no/such/agent-name: "), "{error}");
    }
}
