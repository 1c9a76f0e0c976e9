//! The safetensors format: an 8-byte length, a JSON header, then the elements of all tensors.
//!
//! Written here rather than taken from the crate of that name because the two places that matter need more than it
//! offers: files stream to disk from slices of one flat vector and are synced before they count, and a damaged
//! file is an error that names the tensor. Files are mapped, so that only what is read is in memory.
//! Source: <https://github.com/huggingface/safetensors>, section "Format".

use crate::mapping::Mapping;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

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
    write_synced(path, &|out| write_to(out, tensors))
}

/// Makes a file of what `content` writes, over one that is there already, and waits until it is on disk.
pub(crate) fn write_synced(path: &Path, content: Content<'_>) -> io::Result<Written> {
    let file = std::fs::File::options().write(true).create(true).truncate(false).open(path)?;
    let mut out = Checksummed::new(BufWriter::new(file));
    content(&mut out)?;
    out.flush()?;
    let (file, written) = (out.out.get_ref(), out.bytes);
    if written < file.metadata()?.len() {
        file.set_len(written)?;
    }
    file.sync_all()?;
    Ok(out.end().1)
}

/// Writes the content of a file.
pub(crate) type Content<'a> = &'a dyn Fn(&mut dyn Write) -> io::Result<()>;

/// Bytes of a file with these tensors.
pub(crate) fn length(tensors: &[TensorRef<'_>]) -> u64 {
    let values: usize = tensors.iter().map(|tensor| tensor.values.len()).sum();
    (8 + header(tensors).len() + 4 * values) as u64
}

/// Writes a file with these tensors, in pieces that are small.
pub(crate) fn write_to(out: &mut dyn Write, tensors: &[TensorRef<'_>]) -> io::Result<()> {
    let header = header(tensors);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut pieces = tensors.iter().flat_map(|tensor| tensor.values.chunks(1 << 16));
    pieces.try_for_each(|values| out.write_all(values.as_bytes()))
}

fn header(tensors: &[TensorRef<'_>]) -> Vec<u8> {
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
    header
}

/// Counts and sums up what passes through.
pub(crate) struct Checksummed<W> {
    out: W,
    bytes: u64,
    crc: crc32fast::Hasher,
}

impl<W> Checksummed<W> {
    pub(crate) fn new(out: W) -> Checksummed<W> {
        Checksummed { out, bytes: 0, crc: crc32fast::Hasher::new() }
    }

    pub(crate) fn end(self) -> (W, Written) {
        (self.out, Written { bytes: self.bytes, crc32: self.crc.finalize() })
    }
}

impl<W: Write> Write for Checksummed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.crc.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A file that is mapped into memory.
pub struct Safetensors {
    path: PathBuf,
    header: BTreeMap<String, Entry>,
    bytes: Mapping,
    start: usize,
}

impl Safetensors {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// Where the file cannot be read or breaks the format.
    pub fn read(path: &Path) -> Result<Safetensors, SafetensorsError> {
        let damaged = |reason: String| SafetensorsError::Damaged { path: path.to_path_buf(), reason };
        let bytes =
            Mapping::of(path).map_err(|error| SafetensorsError::Io { path: path.to_path_buf(), error })?;
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

    /// Names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.keys().map(String::as_str)
    }

    /// Copies a tensor of 32-bit or 16-bit floats (`F32`, `BF16`, `F16`) into `values`.
    ///
    /// # Errors
    /// Where the tensor is missing or has another shape or type.
    pub fn copy(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<(), SafetensorsError> {
        self.copy_part(name, shape, 0, values)
    }

    /// As [`copy`](Safetensors::copy), for as many elements as `values` has, from `first` on.
    ///
    /// # Errors
    /// As [`copy`](Safetensors::copy).
    pub fn copy_part(
        &self,
        name: &str,
        shape: &[usize],
        first: usize,
        values: &mut [f32],
    ) -> Result<(), SafetensorsError> {
        let damaged = |reason: String| SafetensorsError::Damaged { path: self.path.clone(), reason };
        let entry = self.header.get(name).ok_or_else(|| damaged(format!("{name} is missing")))?;
        if entry.shape != shape {
            return Err(damaged(format!("{name} has shape {:?}, the model needs {shape:?}", entry.shape)));
        }
        let bytes = &self.bytes[self.start + entry.data_offsets.0..self.start + entry.data_offsets.1];
        let width = match entry.dtype.as_str() {
            "F32" => 4,
            "BF16" | "F16" => 2,
            other => return Err(damaged(format!("{name} has type {other}; it is F32, BF16 or F16"))),
        };
        let elements: usize = shape.iter().product();
        if bytes.len() != width * elements {
            let (have, need) = (bytes.len(), width * elements);
            return Err(damaged(format!("{name} has {have} bytes, its shape needs {need}")));
        }
        let bytes = &bytes[width * first..width * (first + values.len())];
        match entry.dtype.as_str() {
            "F32" => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            "BF16" => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
            _ => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = from_half(u16::from_le_bytes(*bytes));
                }
            }
        }
        Ok(())
    }
}

/// The value of a 16-bit float of IEEE 754, exactly.
fn from_half(bits: u16) -> f32 {
    let (sign, exponent, fraction) =
        (u32::from(bits >> 15) << 31, (bits >> 10) & 31, u32::from(bits & 0x3ff));
    let size = match exponent {
        // Multiples of 2^-24.
        0 => fraction as f32 / 16_777_216.0,
        31 => f32::from_bits(0x7f80_0000 | fraction << 13),
        _ => f32::from_bits((u32::from(exponent) + 112) << 23 | fraction << 13),
    };
    f32::from_bits(size.to_bits() | sign)
}

/// The weights of a model: in one file, or in several with an index.
pub struct Weights {
    files: Vec<Safetensors>,
    index: PathBuf,
    /// In which file each tensor is.
    places: BTreeMap<String, usize>,
}

/// The index of weights in several files.
const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Whether a directory has weights that can be read.
    pub fn are_in(directory: &Path) -> bool {
        directory.join("model.safetensors").exists() || directory.join(INDEX).exists()
    }

    /// A file that holds all weights.
    pub fn one(file: Safetensors) -> Weights {
        let places = file.names().map(|name| (name.to_string(), 0)).collect();
        Weights { index: file.path.clone(), files: vec![file], places }
    }

    /// Opens the files that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// Where one of them cannot be read, is damaged, or lacks a tensor that the index promises.
    pub fn indexed(directory: &Path) -> Result<Weights, SafetensorsError> {
        let path = directory.join(INDEX);
        let damaged = |reason: String| SafetensorsError::Damaged { path: path.clone(), reason };
        let text =
            std::fs::read(&path).map_err(|error| SafetensorsError::Io { path: path.clone(), error })?;
        let index: Index = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let (mut files, mut numbers, mut places) =
            (Vec::<Safetensors>::new(), BTreeMap::new(), BTreeMap::new());
        for (tensor, file) in index.weight_map {
            if file.contains('/') {
                return Err(damaged(format!("{tensor} is in {file:?}; it is in a file beside the index")));
            }
            let number = match numbers.get(&file) {
                Some(number) => *number,
                None => {
                    files.push(Safetensors::read(&directory.join(&file))?);
                    numbers.insert(file, files.len() - 1);
                    files.len() - 1
                }
            };
            if !files[number].header.contains_key(&tensor) {
                return Err(damaged(format!("{tensor} is not in {}", files[number].path.display())));
            }
            places.insert(tensor, number);
        }
        Ok(Weights { files, index: path, places })
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// See [`Safetensors::copy_part`].
    ///
    /// # Errors
    /// See [`Safetensors::copy`].
    pub fn copy_part(
        &self,
        name: &str,
        shape: &[usize],
        first: usize,
        values: &mut [f32],
    ) -> Result<(), SafetensorsError> {
        let missing =
            || SafetensorsError::Damaged { path: self.index.clone(), reason: format!("{name} is missing") };
        let file = &self.files[*self.places.get(name).ok_or_else(missing)?];
        file.copy_part(name, shape, first, values)
    }

    /// Refuses a tensor that is none of the model's, which would be one of another architecture.
    ///
    /// # Errors
    /// Names the first one.
    pub fn refuse_others(&self, known: impl Fn(&str) -> bool) -> Result<(), SafetensorsError> {
        match self.names().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(SafetensorsError::Damaged {
                path: self.index.clone(),
                reason: format!("{name} is no tensor of the model that config.json describes"),
            }),
        }
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
    fn halves_are_read_exactly() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 2f32.powi(-24)),
            (0x83ff, -1023.0 * 2f32.powi(-24)),
            (0x0400, 2f32.powi(-14)),
            (0x7bff, 65504.0),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(from_half(bits), value, "{bits:x}");
        }
        assert!(from_half(0x7e00).is_nan() && from_half(0x8000).is_sign_negative());
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
