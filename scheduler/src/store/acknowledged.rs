//! How many commits of a store were acknowledged, in a small file beside it.
//!
//! In a store that was not closed, a last commit that does not add up looks like one that a power cut tore before it was whole, and the one
//! before is taken. This number tells whether it had been whole: it is written after the commit is durable, before anybody hears of it.
//! It is not synced itself: after a power cut an older one may be found, which asks for less. Never is one found that asks for too much.
//!
//! `commits u64, CRC-32 of it u32`, numbers in little-endian order.

use std::io::Error;

use redb::StorageBackend;

const COUNT: usize = 8;
const BYTES: usize = COUNT + 4;

/// The file.
pub struct Acknowledged(Box<dyn StorageBackend>);

impl Acknowledged {
    pub fn on(backend: impl StorageBackend) -> Acknowledged {
        Acknowledged(Box::new(backend))
    }

    /// The number that stands there; 0 where there is none that can be believed.
    pub fn read(&self) -> Result<u64, Error> {
        let mut bytes = [0; BYTES];
        if self.0.len()? < BYTES as u64 {
            return Ok(0);
        }
        self.0.read(0, &mut bytes)?;
        let (count, sum) = bytes.split_first_chunk::<COUNT>().expect("it is longer");
        let is_whole = crc32fast::hash(count).to_le_bytes() == *sum;
        Ok(if is_whole { u64::from_le_bytes(*count) } else { 0 })
    }

    pub fn write(&self, count: u64) -> Result<(), Error> {
        let count = count.to_le_bytes();
        let mut bytes = [0; BYTES];
        bytes[..COUNT].copy_from_slice(&count);
        bytes[COUNT..].copy_from_slice(&crc32fast::hash(&count).to_le_bytes());
        if self.0.len()? < BYTES as u64 {
            self.0.set_len(BYTES as u64)?;
        }
        self.0.write(0, &bytes)
    }
}
