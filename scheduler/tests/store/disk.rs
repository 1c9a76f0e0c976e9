//! A disk that fails when it is told to: what is not synced can be lost or torn, writes and syncs can be refused.

use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

/// Numbers from a seed.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// From 0 to `below - 1`.
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

/// The content of a file, as programs see it and as it would be after a power cut. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    seen: Vec<u8>,
    safe: Vec<u8>,
    /// Since the last sync.
    unsafe_yet: Vec<Change>,
    writes: u64,
    syncs: u64,
    fails: Option<Fault>,
    has_failed: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

/// What goes wrong, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Writes are refused from this one on.
    Writes { from: u64, kind: ErrorKind },
    /// This sync is refused, and what it should have saved may be lost, as with Linux.
    Sync { at: u64 },
    /// The power is cut before this change.
    Power { at: u64 },
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => bytes.resize(*length as usize, 0),
        Change::Write(offset, data) => {
            let (start, end) = (*offset as usize, *offset as usize + data.len());
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(data);
        }
    }
}

impl Disk {
    /// From now on this goes wrong, counted from now.
    pub fn fail(&self, fault: Option<Fault>) {
        let mut state = self.0.lock().expect("no holder panics");
        (state.writes, state.syncs, state.fails, state.has_failed) = (0, 0, fault, false);
    }

    /// Whether something was refused.
    pub fn has_failed(&self) -> bool {
        self.0.lock().expect("no holder panics").has_failed
    }

    /// The disk after the power was cut: of what was not synced, any part is there.
    pub fn after_cut(&self, random: &mut Random) -> Disk {
        let state = self.0.lock().expect("no holder panics");
        let mut bytes = state.safe.clone();
        for change in &state.unsafe_yet {
            match (random.below(4), change) {
                (0, _) => (),
                (1, Change::Write(offset, data)) => {
                    // In sectors.
                    let sectors = data.len().div_ceil(512) as u64;
                    let torn = (random.below(sectors + 1) * 512).min(data.len() as u64) as usize;
                    apply(&mut bytes, &Change::Write(*offset, data[..torn].into()));
                }
                (_, change) => apply(&mut bytes, change),
            }
        }
        Disk::of(bytes)
    }

    /// The disk as programs see it, once it works again.
    pub fn mended(&self) -> Disk {
        Disk::of(self.bytes())
    }

    /// What programs see.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("no holder panics").seen.clone()
    }

    /// A disk with this on it.
    pub fn of(bytes: Vec<u8>) -> Disk {
        let state = State { seen: bytes.clone(), safe: bytes, ..State::default() };
        Disk(Arc::new(Mutex::new(state)))
    }

    fn change(&self, change: Change) -> Result<(), Error> {
        let mut state = self.0.lock().expect("no holder panics");
        state.writes += 1;
        let refused = match state.fails {
            Some(Fault::Writes { from, kind }) if from <= state.writes => Some(kind),
            Some(Fault::Power { at }) if at <= state.writes => Some(ErrorKind::Other),
            _ => None,
        };
        if let Some(kind) = refused {
            state.has_failed = true;
            return Err(kind.into());
        }
        apply(&mut state.seen, &change);
        state.unsafe_yet.push(change);
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.0.lock().expect("no holder panics").seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let state = self.0.lock().expect("no holder panics");
        let range = offset as usize..offset as usize + out.len();
        out.copy_from_slice(state.seen.get(range).ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<(), Error> {
        self.change(Change::Length(length))
    }

    fn sync_data(&self) -> Result<(), Error> {
        let mut state = self.0.lock().expect("no holder panics");
        state.syncs += 1;
        let refused = match state.fails {
            Some(Fault::Sync { at }) => at <= state.syncs,
            Some(Fault::Power { at }) => at <= state.writes,
            _ => false,
        };
        if refused {
            state.has_failed = true;
            return Err(ErrorKind::Other.into());
        }
        state.safe = state.seen.clone();
        state.unsafe_yet.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.change(Change::Write(offset, data.into()))
    }
}
