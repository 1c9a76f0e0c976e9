//! How well slices are kept apart.

use std::fmt;
use std::str::FromStr;

use super::Scalar;

/// How well a slice is kept from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apartness(pub aquifer_proto::core::Isolation);

impl Scalar for Apartness {
    fn expected() -> String {
        "expected hard, limited or advisory".into()
    }
}
impl FromStr for Apartness {
    type Err = String;
    fn from_str(text: &str) -> Result<Apartness, String> {
        text.parse().map(Apartness)
    }
}

impl fmt::Display for Apartness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
