//! What of a node containers see.

use std::fmt;
use std::str::FromStr;

use super::Scalar;

/// A directory or a file of the node that is seen in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount(pub aquifer_proto::core::Mount);

impl Scalar for Mount {
    fn expected() -> String {
        "expected HOST[:CONTAINER][:ro], absolute paths, like /data or /srv/sets:/data:ro".into()
    }
}
impl FromStr for Mount {
    type Err = String;
    fn from_str(text: &str) -> Result<Mount, String> {
        text.parse().map(Mount)
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
