//! All that a store holds as bytes with checksums: what a damaged file holds is not taken for a pool.
//!
//! | bytes | |
//! |---|---|
//! | 16 | `aquifer backup\n\0` |
//! | 4, 8, 8 | format, milliseconds since the Unix epoch, term |
//! | 4 | CRC-32 of all before |
//! | for each record: 4, n, 4 | n, the record (`frame.rs`), CRC-32 of both |
//! | 4, 8, 4 | 0, number of records, CRC-32 of all before |
//!
//! Numbers are in little-endian order.

use super::{Contents, frame};

/// Version of the layout. A newer version of the program reads all older ones.
const FORMAT: u32 = 1;

const MAGIC: &[u8; 16] = b"aquifer backup\n\0";

/// Terms that a pool can have had since its backup was made: agents obey none that is lower than one they have seen.
pub const TERMS_SINCE: u64 = 1000;

/// Why bytes are no backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It never was one.
    #[error("it is no backup of an aquifer store")]
    Foreign,
    /// It was written by a newer version.
    #[error("it has format {found}, this version reads formats up to {known}")]
    TooNew {
        /// Format of the backup.
        found: u32,
        /// The latest that is known.
        known: u32,
    },
    /// It is not as it was written.
    #[error("it is damaged at byte {offset}: {what}")]
    Damaged {
        /// Of the first part that is not as it should be.
        offset: usize,
        /// What is wrong with it.
        what: String,
    },
}

/// Writes all that a store holds. `made_ms`: now, in milliseconds since the Unix epoch.
pub fn write(contents: &Contents, made_ms: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend(made_ms.to_le_bytes());
    bytes.extend(contents.term.to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    for row in &contents.rows {
        let start = bytes.len();
        bytes.extend([0; 4]);
        frame::push(row, &mut bytes);
        let length = (bytes.len() - start - 4) as u32;
        bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes[start..]).to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes.extend((contents.rows.len() as u64).to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// Reads what was written, and when.
///
/// # Errors
/// Names the first byte from which on it is not as it was written. Nothing is skipped.
pub fn read(bytes: &[u8]) -> Result<(Contents, u64), BackupError> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(16).ok() != Some(MAGIC) {
        return Err(BackupError::Foreign);
    }
    let format = reader.u32()?;
    if FORMAT < format {
        return Err(BackupError::TooNew { found: format, known: FORMAT });
    }
    let (made_ms, term) = (reader.u64()?, reader.u64()?);
    reader.checksum(0, "its head")?;
    let mut rows = Vec::new();
    // A length that was changed to zero looks like the end: the damage may be there.
    let end = loop {
        let start = reader.at;
        let length = reader.u32()?;
        if length == 0 {
            break start;
        }
        // If its length was changed, that is where the damage is.
        let from_start = |error| match error {
            BackupError::Damaged { what, .. } => BackupError::Damaged { offset: start, what },
            error => error,
        };
        let mut record = reader.take(length as usize).map_err(from_start)?;
        reader.checksum(start, &format!("record {}", rows.len() + 1)).map_err(from_start)?;
        let row = frame::pop(&mut record).filter(|_| record.is_empty());
        let what = || format!("record {} is of no kind that is known", rows.len() + 1);
        rows.push(row.ok_or_else(|| BackupError::Damaged { offset: start, what: what() })?);
    };
    let count = reader.u64()?;
    if count != rows.len() as u64 {
        let what = format!("there are {} of {count} records", rows.len());
        return Err(BackupError::Damaged { offset: end, what });
    }
    reader.checksum(0, "the whole")?;
    if reader.at != bytes.len() {
        let what = format!("{} bytes follow its end", bytes.len() - reader.at);
        return Err(BackupError::Damaged { offset: reader.at, what });
    }
    Ok((Contents { term, rows }, made_ms))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], BackupError> {
        let rest = &self.bytes[self.at..];
        if rest.len() < length {
            let what = format!("it ends {} bytes later, {length} were expected", rest.len());
            return Err(BackupError::Damaged { offset: self.at, what });
        }
        self.at += length;
        Ok(&rest[..length])
    }

    fn u32(&mut self) -> Result<u32, BackupError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("4 bytes")))
    }

    fn u64(&mut self) -> Result<u64, BackupError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("8 bytes")))
    }

    /// Compares the checksum that comes next with that of all since `start`.
    fn checksum(&mut self, start: usize, of: &str) -> Result<(), BackupError> {
        let found = crc32fast::hash(&self.bytes[start..self.at]);
        match self.u32()? == found {
            true => Ok(()),
            false => {
                let what = format!("the checksum of {of} does not match");
                Err(BackupError::Damaged { offset: start, what })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use aquifer_proto::store::{Kind, Row};

    use super::*;

    fn contents() -> Contents {
        let row = |at: usize, kind: Kind| Row {
            kind,
            key: kind.table().into(),
            value: Some(vec![at as u8; at * 7]),
        };
        let rows = Kind::ALL.into_iter().enumerate().map(|(at, kind)| row(at, kind)).collect();
        Contents { term: 7, rows }
    }

    #[test]
    fn a_backup_reads_as_it_was_written() {
        for contents in [contents(), Contents::default()] {
            assert_eq!(read(&write(&contents, 99)), Ok((contents, 99)));
        }
    }

    #[test]
    fn no_byte_can_be_changed_cut_off_or_added() {
        let whole = write(&contents(), 99);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                let refused = read(&changed).expect_err("a flipped bit");
                if let BackupError::Damaged { offset, .. } = refused {
                    assert!(offset <= at, "byte {at} was changed: {refused}");
                }
            }
            read(&whole[..at]).expect_err("it is cut off");
        }
        let longer = [&whole[..], &[0]].concat();
        let damaged = BackupError::Damaged { offset: whole.len(), what: "1 bytes follow its end".into() };
        assert_eq!(read(&longer), Err(damaged));
        assert_eq!(read(b"something else"), Err(BackupError::Foreign));
        let mut newer = whole.clone();
        newer[16] = 2;
        assert_eq!(read(&newer), Err(BackupError::TooNew { found: 2, known: 1 }));
        let damaged = read(&whole[..whole.len() / 2]).expect_err("it is cut off").to_string();
        assert!(damaged.starts_with("it is damaged at byte "), "{damaged}");
    }
}
