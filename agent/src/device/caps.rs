//! The nodes that part MIG instances from each other: whoever can open those of an instance may use it.
//!
//! Source: NVIDIA, "MIG user guide", Device Nodes and Capabilities: `/proc/driver/nvidia-caps/mig-minors` has lines like
//! `gpu0/gi1/ci0/access 12`, by the card's minor number, and 12 is `/dev/nvidia-caps/nvidia-cap12`.

use std::path::PathBuf;

use super::roots::{Roots, read};

/// Where the driver keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// The directory of the nodes.
    pub dir: PathBuf,
    /// The table of their numbers.
    pub table: PathBuf,
}

impl Default for Caps {
    fn default() -> Caps {
        Caps { dir: "/dev/nvidia-caps".into(), table: "/proc/driver/nvidia-caps/mig-minors".into() }
    }
}

/// The nodes of an instance with all of its compute; none, unless both are there.
///
/// * `card`: its minor number. `instance`, `compute`: the driver's numbers.
pub fn of_instance(roots: &Roots, card: u32, instance: u32, compute: u32) -> Vec<PathBuf> {
    let table = read(&roots.caps.table).unwrap_or_default();
    let node = |access: String| {
        let line = table.lines().find_map(|line| line.strip_prefix(&access)?.strip_prefix(' '))?;
        let node = roots.caps.dir.join(format!("nvidia-cap{}", line.trim().parse::<u32>().ok()?));
        node.exists().then_some(node)
    };
    let own = format!("gpu{card}/gi{instance}");
    let both = [format!("{own}/access"), format!("{own}/ci{compute}/access")].map(node);
    both.into_iter().collect::<Option<Vec<PathBuf>>>().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_instance_has_two_nodes_and_none_where_one_of_them_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let caps = Caps { dir: dir.path().into(), table: dir.path().join("mig-minors") };
        let roots = Roots { caps, ..Roots::default() };
        let of = |card, instance, compute| -> Vec<String> {
            let nodes = of_instance(&roots, card, instance, compute);
            nodes.iter().map(|node| node.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(of(0, 1, 0), [""; 0], "there is no table");
        let table = "config 1\nmonitor 2\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\ngpu0/gi10/access 93\n\
                     gpu0/gi10/ci0/access 94\ngpu1/gi1/access 147\ngpu1/gi1/ci0/access x\n";
        fs::write(&roots.caps.table, table).unwrap();
        for minor in [12, 13, 93, 147] {
            fs::write(dir.path().join(format!("nvidia-cap{minor}")), "").unwrap();
        }
        assert_eq!(of(0, 1, 0), ["nvidia-cap12", "nvidia-cap13"]);
        assert_eq!(of(0, 10, 0), [""; 0], "one of its nodes is not there");
        assert_eq!(of(0, 1, 1), [""; 0], "no such compute instance");
        assert_eq!(of(1, 1, 0), [""; 0], "a number that is none");
    }
}
