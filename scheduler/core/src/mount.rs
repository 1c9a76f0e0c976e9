//! Directories and files of a node that a container sees.

use std::{fmt, str::FromStr};

use crate::types::Name;

/// Mounts of a role, at most.
pub const MAX_MOUNTS: usize = 64;

const EXPECTED: &str = "expected HOST[:CONTAINER][:ro], absolute paths, like /data or /srv/sets:/data:ro";

/// A directory or a file of the node, and where it is seen in the container: `HOST[:CONTAINER][:ro]`.
///
/// Paths are absolute and plain: no `.`, no `..`, no double or closing slashes, no colon.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mount {
    /// Path on the node.
    pub source: Name,
    /// Path in the container.
    pub target: Name,
    /// Whether it may only be read.
    pub read_only: bool,
}

impl Mount {
    /// Checks both paths, and makes them plain.
    ///
    /// # Errors
    /// Says what is expected.
    pub fn new(source: &str, target: &str, read_only: bool) -> Result<Mount, String> {
        let (source, target) = (plain(source)?, plain(target)?);
        match &*target {
            "/" => Err("expected a path below / in the container".into()),
            _ => Ok(Mount { source, target, read_only }),
        }
    }
}

fn plain(path: &str) -> Result<Name, String> {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    if !path.starts_with('/') || path.contains(':') {
        return Err(EXPECTED.into());
    }
    if 4096 < path.len() || path.contains(char::is_control) || parts.any(|part| part == "." || part == "..") {
        return Err("expected paths of at most 4,096 bytes, without . and .. and control characters".into());
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    Ok(format!("/{}", parts.join("/")).into())
}

impl FromStr for Mount {
    type Err = String;

    fn from_str(text: &str) -> Result<Mount, String> {
        match text.split(':').collect::<Vec<&str>>()[..] {
            [path] => Mount::new(path, path, false),
            [path, "ro"] => Mount::new(path, path, true),
            [source, target] => Mount::new(source, target, false),
            [source, target, "ro"] => Mount::new(source, target, true),
            _ => Err(EXPECTED.into()),
        }
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if self.source != self.target {
            write!(f, ":{}", self.target)?;
        }
        f.write_str(if self.read_only { ":ro" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_reads_as_it_is_written() {
        for text in ["/data", "/data:ro", "/srv/sets:/data", "/srv/my sets, \"a\":/data:ro", "/:/node:ro"] {
            assert_eq!(text.parse::<Mount>().unwrap().to_string(), text);
        }
        let plain: Mount = "/data//sets/:/d/".parse().unwrap();
        assert_eq!((&*plain.source, &*plain.target, plain.read_only), ("/data/sets", "/d", false));
        assert_eq!("/data:/data:ro".parse::<Mount>().unwrap().to_string(), "/data:ro");
    }

    #[test]
    fn what_is_no_mount_is_refused() {
        let wrong = ["", "data", "/data:data", "/a:/b:rw", "/a:/b:ro:ro", "ro", "/a:", ":/a", "/a:ro:/b"];
        for text in wrong {
            assert_eq!(text.parse::<Mount>().expect_err(text), EXPECTED);
        }
        for text in ["/a/../b", "/a/.", "/a\n", "/a\0", &format!("/{}", "a".repeat(4096))] {
            assert!(text.parse::<Mount>().expect_err(text).starts_with("expected paths of at most"));
        }
        assert!("/".parse::<Mount>().unwrap_err().contains("below /"));
        assert!(Mount::new("/a:b", "/c", false).is_err(), "it could not be written");
    }
}
