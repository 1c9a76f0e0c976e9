//! A tree as the kernel makes it for one card of AMD with 192 GiB and eight dies, and what the kernel does when it is parted.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aquifer_agent::device::Roots;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::fixture::between_looks;

pub const CARD: &str = "GPU-0000000000000042";
const PLACE: &str = "bus/pci/devices/0000:3d:00.0";
const NODES: &str = "class/kfd/kfd/topology/nodes";

pub struct Kernel {
    dir: tempfile::TempDir,
}

impl Kernel {
    pub fn new() -> Kernel {
        let kernel = Kernel { dir: tempfile::tempdir().unwrap() };
        for (file, text) in [
            ("vendor", "0x1002"),
            ("class", "0x120000"),
            ("unique_id", "0000000000000042"),
            ("mem_info_vram_total", "206158430208"),
            ("available_compute_partition", "SPX, DPX, QPX, CPX"),
            ("current_compute_partition", "SPX"),
        ] {
            kernel.put(&format!("{PLACE}/{file}"), &format!("{text}\n"));
        }
        kernel.list(1);
        kernel
    }

    pub fn roots(&self) -> Roots {
        Roots { sysfs: self.dir.path().into(), ..Roots::default() }
    }

    fn put(&self, file: &str, text: &str) {
        let path = self.dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn mode_file(&self) -> PathBuf {
        self.dir.path().join(PLACE).join("current_compute_partition")
    }

    pub fn mode(&self) -> String {
        fs::read_to_string(self.mode_file()).unwrap_or_default().trim().to_string()
    }

    /// Parts that are listed.
    pub fn parts(&self) -> usize {
        fs::read_dir(self.dir.path().join(NODES)).unwrap().count() - 1
    }

    /// Lists as many parts as the card is to have.
    pub fn obey(&self) {
        let parts = match &self.mode()[..] {
            "DPX" => 2,
            "QPX" => 4,
            "CPX" => 8,
            "SPX" => 1,
            // The file is just being written.
            _ => return,
        };
        if self.parts() as u64 == parts {
            return;
        }
        // As in the kernel, nothing is listed for a moment, and then all of it.
        self.list(0);
        self.list(parts);
    }

    /// Lists a processor, and this many parts.
    fn list(&self, parts: u64) {
        self.put("aside/0/properties", "cpu_cores_count 96\nsimd_count 0\nvendor_id 4098\n");
        for part in 0..parts {
            // Newer kernels give every part a name of its own.
            let name = if parts == 1 { 0x42 } else { 0x1000 + part };
            let properties = format!(
                "cpu_cores_count 0\nsimd_count {}\nnum_xcc {}\nvendor_id 4098\ndevice_id 29857\n\
                 location_id {}\ndomain 0\ndrm_render_minor {}\nunique_id {name}\n",
                1216 / parts,
                8 / parts,
                0x3d00,
                128 + part
            );
            let memory = format!("heap_type 1\nsize_in_bytes {}\n", 206_158_430_208 / parts - 4096);
            self.put(&format!("aside/{}/mem_banks/0/properties", 1 + part), &memory);
            self.put(&format!("aside/{}/properties", 1 + part), &properties);
        }
        let (nodes, aside) = (self.dir.path().join(NODES), self.dir.path().join("aside"));
        fs::create_dir_all(&nodes).unwrap();
        renameat_with(CWD, &aside, CWD, &nodes, RenameFlags::EXCHANGE).unwrap();
        fs::remove_dir_all(aside).unwrap();
    }

    /// Obeys all the while.
    pub fn obeying<T>(&self, during: impl FnOnce() -> T) -> T {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    self.obey();
                    between_looks();
                }
                // What it was just doing was perhaps not the last thing that it was told.
                self.obey();
            });
            // What fails meanwhile must not wait for the kernel for ever.
            let _end = OnDrop(&done);
            during()
        })
    }
}

/// Ends who waits for it, also when what it stands for fails.
pub struct OnDrop<'a>(pub &'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
