//! What of a node containers see.

use std::collections::BTreeSet;

use aquifer_core::{MAX_MOUNTS, Mount};

use super::{Checked, Invalid};
use crate::v1;

/// Checks the mounts of a role.
pub(super) fn mounts(field: &str, wire: &[v1::Mount], contained: bool) -> Checked<Vec<Mount>> {
    if MAX_MOUNTS < wire.len() {
        let allowed = format!("expected at most {MAX_MOUNTS}");
        return Err(Invalid::new(field, format!("{} mounts", wire.len()), allowed));
    }
    let mut targets = BTreeSet::new();
    let mut mounts = Vec::with_capacity(wire.len());
    for (at, v1::Mount { source, target, read_only }) in wire.iter().enumerate() {
        let refused = |allowed: String| {
            let options = if *read_only { ":ro" } else { "" };
            Invalid::new(
                format!("{field}[{at}]"),
                format!("{:?}", format!("{source}:{target}{options}")),
                allowed,
            )
        };
        let mount = Mount::new(source, target, *read_only).map_err(refused)?;
        if !targets.insert(mount.target.clone()) {
            return Err(refused("another one is at the same path in the container".into()));
        }
        mounts.push(mount);
    }
    match mounts.first() {
        Some(mount) if !contained => {
            let allowed = "only of a container: give its image";
            Err(Invalid::new(format!("{field}[0]"), format!("{:?}", mount.to_string()), allowed))
        }
        _ => Ok(mounts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_few_and_apart_and_of_a_container() {
        let wire = |number: usize| -> Vec<v1::Mount> {
            let at =
                |at: usize| v1::Mount { source: "/data".into(), target: format!("/{at}"), read_only: true };
            (0..number).map(at).collect()
        };
        let refused = |wire: &[v1::Mount]| mounts("mounts", wire, true).expect_err("refused").to_string();
        assert_eq!(mounts("mounts", &wire(64), true).map(|mounts| mounts.len()), Ok(64));
        assert_eq!(refused(&wire(65)), "mounts is 65 mounts: expected at most 64");
        let mut twice = wire(2);
        twice[1].target = "/0/".into();
        let expected = "mounts[1] is \"/data:/0/:ro\": another one is at the same path in the container";
        assert_eq!(refused(&twice), expected);
        twice[1].source = "data".into();
        assert!(
            refused(&twice).starts_with("mounts[1] is \"data:/0/:ro\": expected HOST[:CONTAINER][:ro], ")
        );
        assert_eq!(mounts("mounts", &[], false), Ok(Vec::new()));
        let bare = mounts("mounts", &wire(1), false).expect_err("no image").to_string();
        assert_eq!(bare, "mounts[0] is \"/data:/0:ro\": only of a container: give its image");
    }
}
