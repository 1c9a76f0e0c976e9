//! Files as slices of memory, and memory in large pages.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file that is mapped into memory to be read: its pages come from disk when they are touched, and are the system's to
/// drop.
///
/// A file that another program cuts while it is mapped ends this process by a signal. Checkpoints are replaced by
/// renaming, which leaves a mapped file as it was.
pub struct Mapping {
    start: *const u8,
    len: usize,
}

// SAFETY: nothing writes to the mapping.
#[allow(unsafe_code)]
unsafe impl Send for Mapping {}
// SAFETY: nothing writes to the mapping.
#[allow(unsafe_code)]
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the whole file.
    ///
    /// # Errors
    /// What the system said.
    pub fn of(path: &Path) -> io::Result<Mapping> {
        let file = File::open(path)?;
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if len == 0 {
            return Ok(Mapping { start: std::ptr::dangling(), len });
        }
        // SAFETY: a new private mapping, at a place that the system chooses, touches no memory of ours.
        #[allow(unsafe_code)]
        let start = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, &file, 0)? };
        Ok(Mapping { start: start.cast(), len })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is `len` bytes long and lives as long as `self`.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.start, self.len)
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if 0 < self.len {
            // SAFETY: the whole mapping, which nothing borrows any more. That it cannot fail leaves nothing to do.
            #[allow(unsafe_code)]
            let _ = unsafe { munmap(self.start.cast_mut().cast(), self.len) };
        }
    }
}

/// `len` times `value`, in large pages where the system gives them.
pub fn in_large_pages<T: Clone>(len: usize, value: T) -> Vec<T> {
    let mut all = Vec::with_capacity(len);
    // Before it is written: what lies in small pages stays there.
    prefer_large_pages(all.spare_capacity_mut());
    all.resize(len, value);
    all
}

/// Asks for large pages under memory that was not touched yet: where every token reads all of it, looking up small ones
/// takes a good part of the time; and a process that is killed closes its connections only after it has given back its memory, which takes
/// 8 ms for 100 MB of small pages. Nothing but speed depends on the answer.
fn prefer_large_pages<T>(memory: &[T]) {
    /// What advice is about starts at a page; what is smaller than a large one has none.
    const PAGE: usize = 4096;
    const LARGE: usize = 2 << 20;
    let (start, len) = (memory.as_ptr().cast::<u8>(), std::mem::size_of_val(memory));
    // The first and the last page as well, in which others may have a part: mappings that are neighbours are one only if all of both is
    // advised alike, and a large page does not lie in two.
    let before = start.addr() % PAGE;
    if LARGE <= len {
        let (start, len) = (start.wrapping_sub(before), (before + len).next_multiple_of(PAGE));
        // SAFETY: whole pages, each of which has part of the slice; the advice changes nothing that is read.
        #[allow(unsafe_code)]
        let _ = unsafe { madvise(start.cast_mut().cast(), len, Advice::LinuxHugepage) };
    }
}

/// The memory of this machine or, if that is less, what the control group of this process may use.
pub fn usable_bytes() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.to_string();
        Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
    });
    // A group is bound by those around it as well.
    let own = read("/proc/self/cgroup")
        .and_then(|text| Some(text.lines().find_map(|line| line.strip_prefix("0::"))?.to_string()));
    let own = own.unwrap_or_else(|| "/".into());
    let groups =
        std::path::Path::new(&own).ancestors().map(|group| format!("/sys/fs/cgroup{}", group.display()));
    let limits = groups.filter_map(|group| read(&format!("{group}/memory.max"))?.trim().parse::<u64>().ok());
    limits.chain(machine).min().unwrap_or(4 << 30)
}
