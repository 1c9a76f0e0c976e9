//! What the node's files of the Container Device Interface call its devices.
//!
//! Source: container-device-interface, `SPEC.md`; names as `nvidia-ctk cdi generate` gives them: the index, the unique
//! name, or both.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use aquifer_core::Vendor;
use serde::Deserialize;

use super::ShownDevice;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Names of devices that engines know, `nvidia.com/gpu=0` and the like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CdiDevices(BTreeSet<String>);

#[derive(Deserialize)]
struct File {
    kind: String,
    #[serde(default)]
    devices: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: serde_json::Value,
}

/// Reads the files of some directories; what cannot be read is left out.
pub fn cdi_devices(dirs: &[PathBuf]) -> CdiDevices {
    let files = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let mut all = CdiDevices::default();
    for file in files {
        let path = file.path();
        if let Some(text) = text(&path) {
            all.0.extend(names(&text));
        }
    }
    all
}

fn text(path: &Path) -> Option<String> {
    let known = path.extension().is_some_and(|end| ["json", "yaml", "yml"].iter().any(|known| end == *known));
    let bytes = known.then(|| crate::json::read_bytes(path, MAX_FILE).ok())??;
    String::from_utf8(bytes).ok()
}

/// JSON is YAML too.
fn names(text: &str) -> Vec<String> {
    let Ok(File { kind, devices }) = yaml_serde::from_str(text) else { return Vec::new() };
    let name = |named: &Named| match &named.name {
        serde_json::Value::String(name) => Some(format!("{kind}={name}")),
        serde_json::Value::Number(name) => Some(format!("{kind}={name}")),
        _ => None,
    };
    devices.iter().filter_map(name).collect()
}

impl CdiDevices {
    /// What a device is called; `None` if it has no name there.
    pub fn name_of(&self, device: &ShownDevice) -> Option<String> {
        if device.vendor != Vendor::Nvidia {
            return None;
        }
        // The number of its node names no part of a card.
        let number = (!device.uuid.starts_with("MIG-")).then(|| device.number.to_string());
        let names = [Some(device.uuid.clone()), number].into_iter().flatten();
        names.map(|name| format!("nvidia.com/gpu={name}")).find(|name| self.0.contains(name))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<String> for CdiDevices {
    fn from_iter<T: IntoIterator<Item = String>>(names: T) -> CdiDevices {
        CdiDevices(names.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_the_names_of_the_files_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let yaml = "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits: {}\n- name: GPU-b\n";
        fs::write(dir.path().join("nvidia.yaml"), yaml).unwrap();
        let json =
            r#"{"cdiVersion":"0.6.0","kind":"nvidia.com/gpu","devices":[{"name":"MIG-c"},{"name":7}]}"#;
        fs::write(dir.path().join("mig.json"), json).unwrap();
        fs::write(dir.path().join("notes.txt"), yaml.replace("GPU-b", "GPU-x")).unwrap();
        fs::write(dir.path().join("broken.yaml"), "kind: [").unwrap();
        let known = cdi_devices(&["/no/such/dir".into(), dir.path().to_path_buf()]);
        let name = |uuid: &str, number| {
            known.name_of(&ShownDevice {
                vendor: Vendor::Nvidia,
                uuid: uuid.into(),
                number,
                is_parted: false,
            })
        };
        assert_eq!(known.count(), 4);
        assert_eq!(name("GPU-a", 0).as_deref(), Some("nvidia.com/gpu=0"));
        assert_eq!(name("GPU-b", 1).as_deref(), Some("nvidia.com/gpu=GPU-b"));
        assert_eq!(name("MIG-c", 0).as_deref(), Some("nvidia.com/gpu=MIG-c"));
        assert_eq!(name("MIG-d", 0), None, "a part is not the whole card");
        assert_eq!(name("GPU-x", 5), None);
    }
}
