//! What is said to the process that has a library, and what it answers: a head in JSON and bytes of memory, each with its length in
//! front.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of a head, and of memory, at most.
const MOST: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
pub enum Question {
    /// Comes once, first.
    Load(Load),
    Call(Call),
}

/// Load the first of these that can be had.
#[derive(Debug, Serialize, Deserialize)]
pub struct Load {
    pub needs: Vec<String>,
    pub names: Vec<String>,
    pub dirs: Vec<PathBuf>,
}

/// Call a function. The memory beside it is what that is given starts with.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    pub symbol: String,
    pub words: Vec<Place>,
    /// Bytes of memory.
    pub size: u32,
    pub is_text: bool,
}

/// A word of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// A number, or an address that the library gave.
    Is(u64),
    /// The address of this byte of memory.
    At(u32),
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// By the name of its file.
    Loaded { name: String },
    /// None of the names is there.
    Absent,
    /// What the loader says.
    Refused(String),
    /// The memory beside it is as the function left it.
    Returned { value: u64, text: String },
    /// There is no such function.
    Missing,
}

/// Sends a message whole.
///
/// # Errors
/// It cannot be sent, or is too large.
pub fn send(to: &mut impl Write, head: &impl Serialize, memory: &[u8]) -> Result<()> {
    let head = serde_json::to_vec(head)?;
    if MOST < head.len().max(memory.len()) {
        return Err(too_large(head.len().max(memory.len())));
    }
    let length = |bytes: &[u8]| (bytes.len() as u32).to_le_bytes();
    to.write_all(&[&length(&head)[..], &length(memory), &head, memory].concat())
}

/// Receives a message.
///
/// # Errors
/// Nobody is there any more, it takes too long, or is no message.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> Result<(T, Vec<u8>)> {
    let mut lengths = [0; 8];
    from.read_exact(&mut lengths)?;
    let [head, memory] = [0, 4].map(|at| {
        u32::from_le_bytes([lengths[at], lengths[at + 1], lengths[at + 2], lengths[at + 3]]) as usize
    });
    if MOST < head.max(memory) {
        return Err(too_large(head.max(memory)));
    }
    let mut bytes = vec![0; head + memory];
    from.read_exact(&mut bytes)?;
    let memory = bytes.split_off(head);
    Ok((serde_json::from_slice(&bytes).map_err(|error| Error::new(ErrorKind::InvalidData, error))?, memory))
}

fn too_large(bytes: usize) -> Error {
    Error::new(ErrorKind::InvalidData, format!("a message of {bytes} bytes: at most {MOST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_as_it_was_sent_and_a_senseless_one_is_refused_without_room_for_it() {
        let mut sent = Vec::new();
        send(&mut sent, &Place::At(7), b"abc").unwrap();
        let (head, memory): (Place, _) = receive(&mut &sent[..]).unwrap();
        assert_eq!((head, &memory[..]), (Place::At(7), &b"abc"[..]));
        let kind = |bytes: &[u8]| receive::<Place>(&mut &bytes[..]).unwrap_err().kind();
        assert_eq!(kind(&sent[..sent.len() - 1]), ErrorKind::UnexpectedEof, "it was cut");
        assert_eq!(kind(b"\x03\0\0\0\0\0\0\0abc"), ErrorKind::InvalidData, "no JSON");
        assert_eq!(kind(b"\0\0\0\0\x01\0\x10\0"), ErrorKind::InvalidData, "memory of more than a MiB");
        assert_eq!(kind(b"\xff\xff\xff\xff\0\0\0\0"), ErrorKind::InvalidData, "a head of 4 GiB");
        assert_eq!(
            send(&mut sent, &Answer::Absent, &[0; MOST + 1]).unwrap_err().kind(),
            ErrorKind::InvalidData
        );
    }
}
