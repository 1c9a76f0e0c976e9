//! What goes over a connection between two members.
//!
//! A frame is the length of a head, the number of vectors and their lengths, the head as JSON, and the vectors as little-endian
//! floats. Instead of a number of vectors there may stand what else it is: a message whose vector is offered and does not follow, or a [`Word`]
//! about one. A vector without a head is one that was offered before.
//! Before a member has said who it is, it may send neither vectors nor words.

use crate::elastic::Message;
use crate::vector::Vector;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use zerocopy::IntoBytes;

/// Bytes of a vector that are read at a time.
pub const CHUNK: usize = 1 << 18;
/// The largest head of a frame, in bytes.
const MAX_HEAD: usize = 1 << 16;
/// The most vectors in a frame.
const MAX_VECTORS: usize = 3;
/// In the place of their number.
const OFFER: u8 = 254;
const WORD: u8 = 255;

/// What both ends of a connection agree on beside messages; the end that was dialed says whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// A sign of life of who sends something else.
    Alive,
    /// From who was dialed: the identity of a communicator that both ends make.
    Join(String),
    /// It stands, as the sender sees it.
    Joined,
    /// There is room for what was offered.
    Room,
    /// From who was dialed: send what you have offered; there is room for it.
    Send,
    /// From who was dialed: receive what I have offered.
    Receive,
    /// It has come.
    Came,
    /// Send it over the connection.
    Here,
}

/// One frame, without what is read behind it.
#[derive(Debug, PartialEq)]
pub enum Frame {
    /// A message with its vectors.
    Message(Message),
    /// One whose vector, of so many floats, is offered.
    Offer(Message, usize),
    /// What was offered follows, so many floats.
    Vector(usize),
    /// A word.
    Word(Word),
}

fn start(head: usize, kind: u8, lengths: impl Iterator<Item = usize>) -> Vec<u8> {
    let mut start = Vec::from((head as u32).to_le_bytes());
    start.push(kind);
    lengths.for_each(|length| start.extend((length as u64).to_le_bytes()));
    start
}

/// A message with its vectors.
///
/// # Errors
/// The connection's.
pub fn write_message(stream: &mut impl Write, message: &Message, vectors: &[&[f32]]) -> io::Result<()> {
    let head = serde_json::to_vec(message)?;
    let mut frame = start(head.len(), vectors.len() as u8, vectors.iter().map(|vector| vector.len()));
    frame.extend(head);
    stream.write_all(&frame)?;
    vectors.iter().try_for_each(|vector| stream.write_all(vector.as_bytes()))
}

/// A message whose vector of so many floats is offered.
///
/// # Errors
/// The connection's.
pub fn write_offer(stream: &mut impl Write, message: &Message, floats: usize) -> io::Result<()> {
    let head = serde_json::to_vec(message)?;
    let mut frame = start(head.len(), OFFER, [floats].into_iter());
    frame.extend(head);
    stream.write_all(&frame)
}

/// A vector that was offered.
///
/// # Errors
/// The connection's.
pub fn write_vector(stream: &mut impl Write, vector: &[f32]) -> io::Result<()> {
    stream.write_all(&start(0, 1, [vector.len()].into_iter()))?;
    stream.write_all(vector.as_bytes())
}

/// A word.
///
/// # Errors
/// The connection's.
pub fn write_word(stream: &mut impl Write, word: &Word) -> io::Result<()> {
    let head = serde_json::to_vec(word)?;
    let mut frame = start(head.len(), WORD, [].into_iter());
    frame.extend(head);
    stream.write_all(&frame)
}

/// What a member would not say.
pub fn bad() -> io::Error {
    io::Error::other("not a message of a member")
}

/// The next frame. `alive` is called for each part of a vector.
///
/// * `longest`: floats of the longest vector that is taken, 0 of somebody unknown.
///
/// # Errors
/// The connection's, or it is no frame.
pub fn read(reader: &mut impl Read, longest: usize, alive: &mut impl FnMut()) -> io::Result<Frame> {
    let mut start = [0; 5];
    reader.read_exact(&mut start)?;
    let head = u32::from_le_bytes(start[..4].try_into().expect("four bytes")) as usize;
    let count = match start[4] {
        OFFER => 1,
        WORD if longest == 0 => return Err(bad()),
        WORD => 0,
        count => usize::from(count),
    };
    if MAX_HEAD < head || MAX_VECTORS < count {
        return Err(bad());
    }
    let mut lengths = [0; MAX_VECTORS];
    for length in &mut lengths[..count] {
        let mut bytes = [0; 8];
        reader.read_exact(&mut bytes)?;
        *length = usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| bad())?;
        if longest < *length {
            return Err(bad());
        }
    }
    if head == 0 && start[4] == 1 {
        return Ok(Frame::Vector(lengths[0]));
    }
    let mut bytes = vec![0; head];
    reader.read_exact(&mut bytes)?;
    if start[4] == WORD {
        return serde_json::from_slice(&bytes).map(Frame::Word).map_err(|_| bad());
    }
    let mut message: Message = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    if start[4] == OFFER {
        return Ok(Frame::Offer(message, lengths[0]));
    }
    let mut vectors = Vec::new();
    for length in &lengths[..count] {
        vectors.push(read_vector(reader, *length, alive)?);
    }
    message.fill(vectors).map_err(io::Error::other)?;
    Ok(Frame::Message(message))
}

/// So many floats.
///
/// # Errors
/// The connection's.
pub fn read_vector(reader: &mut impl Read, floats: usize, alive: &mut impl FnMut()) -> io::Result<Vector> {
    let mut vector = Vector::any(floats);
    for part in vector.as_mut_bytes().chunks_mut(CHUNK) {
        reader.read_exact(part)?;
        alive();
    }
    Ok(vector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elastic::{Spent, Turn};
    use std::sync::Arc;

    fn sent(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_message(&mut bytes, message, &message.vectors().unwrap()).unwrap();
        bytes
    }

    fn read(bytes: &[u8], longest: usize) -> Result<Frame, String> {
        super::read(&mut &bytes[..], longest, &mut || ()).map_err(|error| error.to_string())
    }

    #[test]
    fn messages_survive_and_parts_of_them_are_refused() {
        let values: Vec<f32> = (0..100_000).map(|it| it as f32 / 7.0).collect();
        let part = Message::Part {
            turn: Turn { step: 3, number: 1 },
            start: 4,
            size: 2,
            is_disputed: false,
            pace_us: 9,
            values: Arc::new(values.clone().into()),
        };
        let commit = Message::Commit { step: 4, total: Arc::new(values.into()), spent: Spent::default() };
        for message in
            [part, commit, Message::Ping(Some(7)), Message::Work { turn: Turn::default(), shards: 2..5 }]
        {
            let bytes = sent(&message);
            assert_eq!(read(&bytes, 100_000), Ok(Frame::Message(message)));
            assert!(read(&bytes[..bytes.len() - 1], 100_000).is_err());
        }
    }

    #[test]
    fn what_is_offered_follows_when_it_is_asked_for() {
        let message = |floats: Vec<f32>| Message::Commit {
            step: 4,
            total: Arc::new(floats.into()),
            spent: Spent::default(),
        };
        let mut bytes = Vec::new();
        write_offer(&mut bytes, &message(vec![]), 3).unwrap();
        assert_eq!(read(&bytes, 3), Ok(Frame::Offer(message(vec![]), 3)));
        assert!(read(&bytes, 2).is_err());
        bytes.clear();
        write_word(&mut bytes, &Word::Join("ab".into())).unwrap();
        assert_eq!(read(&bytes, 3), Ok(Frame::Word(Word::Join("ab".into()))));
        bytes.clear();
        write_vector(&mut bytes, &[1.0, 2.0, 3.0]).unwrap();
        let mut rest = &bytes[..];
        assert_eq!(super::read(&mut rest, 3, &mut || ()).unwrap(), Frame::Vector(3));
        assert_eq!(&read_vector(&mut rest, 3, &mut || ()).unwrap()[..], [1.0, 2.0, 3.0]);
    }

    #[test]
    fn a_stranger_cannot_make_a_member_wait_for_gigabytes() {
        let hello =
            sent(&Message::Commit { step: 1, total: Arc::new(vec![0.0; 9].into()), spent: Spent::default() });
        let refused = Err("not a message of a member".to_string());
        assert_eq!(read(&hello, 8), refused);
        assert_eq!(read(b"GET / HTTP/1.1\r\n\r\n", 8), refused);
        assert_eq!(read(&[255, 255, 255, 255, 0], 8), refused);
        assert_eq!(read(&[2, 0, 0, 0, 0, b'4', b'2'], 8), refused);
        let mut word = Vec::new();
        write_word(&mut word, &Word::Joined).unwrap();
        assert_eq!(read(&word, 0), refused);
    }
}
