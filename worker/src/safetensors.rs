//! The safetensors format: an 8-byte length, a JSON header, then the elements of all tensors.
//!
//! Written here rather than taken from the crate of that name because the two places that matter need more than it
//! offers: files stream to disk from slices of one flat vector and are synced before they count, and a damaged
//! file is an error that names the tensor.
//! Source: <https://github.com/huggingface/safetensors>, section "Format".

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// The largest header that is read, in bytes; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

#[derive(Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// A tensor to be written.
pub struct TensorRef<'a> {
    /// Its name.
    pub name: &'a str,
    /// Lengths of its dimensions.
    pub shape: &'a [usize],
    /// Its elements, row-major.
    pub values: &'a [f32],
}

/// A file as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Length of the file.
    pub bytes: u64,
    /// CRC-32 (IEEE) of the file, as `gzip` and `crc32` compute it.
    pub crc32: u32,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file breaks the format, or lacks what was asked for.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Writes 32-bit floats to `path` and waits until they are on disk.
///
/// # Errors
/// What the system said, such as a full disk.
pub fn write(path: &Path, tensors: &[TensorRef<'_>]) -> io::Result<Written> {
    let mut header = BTreeMap::new();
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + 4 * tensor.values.len();
        let (dtype, shape) = ("F32".to_string(), tensor.shape.to_vec());
        header.insert(tensor.name, Entry { dtype, shape, data_offsets: (offset, end) });
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).expect("plain fields");
    // The elements start at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file =
        Checksummed { file: BufWriter::new(std::fs::File::create(path)?), written: 0, crc: crc32() };
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut bytes = Vec::new();
    for tensor in tensors {
        for values in tensor.values.chunks(1 << 16) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            file.write_all(&bytes)?;
        }
    }
    file.flush()?;
    file.file.get_ref().sync_all()?;
    Ok(Written { bytes: file.written, crc32: file.crc.finalize() })
}

fn crc32() -> crc32fast::Hasher {
    crc32fast::Hasher::new()
}

struct Checksummed {
    file: BufWriter<std::fs::File>,
    written: u64,
    crc: crc32fast::Hasher,
}

impl Write for Checksummed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.crc.update(&bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A file in memory.
pub struct Safetensors {
    path: PathBuf,
    header: BTreeMap<String, Entry>,
    bytes: Vec<u8>,
    start: usize,
}

impl Safetensors {
    /// Reads a whole file and checks its header.
    ///
    /// # Errors
    /// Where the file cannot be read or breaks the format.
    pub fn read(path: &Path) -> Result<Safetensors, SafetensorsError> {
        let damaged = |reason: String| SafetensorsError::Damaged { path: path.to_path_buf(), reason };
        let bytes =
            std::fs::read(path).map_err(|error| SafetensorsError::Io { path: path.to_path_buf(), error })?;
        let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
        let Some(length) = length.filter(|&length| length <= MAX_HEADER && length + 8 <= bytes.len() as u64)
        else {
            return Err(damaged(format!("{} bytes are too few for its header", bytes.len())));
        };
        let start = 8 + length as usize;
        let json = |error| damaged(format!("header: {error}"));
        let mut header: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&bytes[8..start]).map_err(json)?;
        header.remove("__metadata__");
        let mut entries = BTreeMap::new();
        for (name, value) in header {
            let entry: Entry = serde_json::from_value(value).map_err(json)?;
            let (from, to) = entry.data_offsets;
            if to < from || bytes.len() - start < to {
                let have = bytes.len() - start;
                return Err(damaged(format!("{name} ends at byte {to} of its data, which has {have}")));
            }
            entries.insert(name, entry);
        }
        Ok(Safetensors { path: path.to_path_buf(), header: entries, bytes, start })
    }

    /// CRC-32 (IEEE) of the whole file.
    pub fn crc32(&self) -> u32 {
        crc32fast::hash(&self.bytes)
    }

    /// Copies a tensor of 32-bit or 16-bit floats (`F32`, `BF16`) into `values`.
    ///
    /// # Errors
    /// Where the tensor is missing or has another shape or type.
    pub fn copy(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<(), SafetensorsError> {
        let damaged = |reason: String| SafetensorsError::Damaged { path: self.path.clone(), reason };
        let entry = self.header.get(name).ok_or_else(|| damaged(format!("{name} is missing")))?;
        if entry.shape != shape {
            return Err(damaged(format!("{name} has shape {:?}, the model needs {shape:?}", entry.shape)));
        }
        let bytes = &self.bytes[self.start + entry.data_offsets.0..self.start + entry.data_offsets.1];
        let width = match entry.dtype.as_str() {
            "F32" => 4,
            "BF16" => 2,
            other => return Err(damaged(format!("{name} has type {other}; F32 and BF16 are supported"))),
        };
        if bytes.len() != width * values.len() {
            let (have, need) = (bytes.len(), width * values.len());
            return Err(damaged(format!("{name} has {have} bytes, its shape needs {need}")));
        }
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(width)) {
            *value = match *bytes {
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                [a, b] => f32::from_bits(u32::from(u16::from_le_bytes([a, b])) << 16),
                _ => unreachable!("chunks of two or four"),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn tensors_survive_their_file_and_its_checksum_is_the_usual_one() {
        let dir = TempDir::new();
        let path = dir.path().join("model.safetensors");
        let (a, b) = ([1.0f32, -2.5, f32::MIN_POSITIVE], [7.0f32; 4]);
        let tensors = [
            TensorRef { name: "z", shape: &[3], values: &a },
            TensorRef { name: "a", shape: &[2, 2], values: &b },
        ];
        let written = write(&path, &tensors).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(written, Written { bytes: bytes.len() as u64, crc32: crc32fast::hash(&bytes) });
        let file = Safetensors::read(&path).unwrap();
        let (mut a_read, mut b_read) = ([0.0; 3], [0.0; 4]);
        file.copy("z", &[3], &mut a_read).unwrap();
        file.copy("a", &[2, 2], &mut b_read).unwrap();
        assert_eq!((a, b), (a_read, b_read));
    }

    #[test]
    fn a_file_cut_anywhere_is_damaged_and_never_a_panic() {
        let dir = TempDir::new();
        let path = dir.path().join("cut.safetensors");
        write(&path, &[TensorRef { name: "w", shape: &[5], values: &[1.0; 5] }]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Safetensors::read(&path).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_tensor_of_another_shape_or_name_is_refused() {
        let dir = TempDir::new();
        let path = dir.path().join("w.safetensors");
        write(&path, &[TensorRef { name: "w", shape: &[2], values: &[1.0; 2] }]).unwrap();
        let file = Safetensors::read(&path).unwrap();
        let error = |name, shape: &[usize]| {
            let text =
                file.copy(name, shape, &mut vec![0.0; shape.iter().product()]).unwrap_err().to_string();
            text.split_once(": ").unwrap().1.to_string()
        };
        assert_eq!(error("v", &[2]), "v is missing");
        assert_eq!(error("w", &[3]), "w has shape [2], the model needs [3]");
    }
}
