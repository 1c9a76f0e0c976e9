//! Connections between the members of a training.
//!
//! A star: every member has one connection to the leader, which adds up and sends back. For W members and P parameters a
//! step moves `(W - 1) * P` floats into the leader and as many out of it. Each connection has a thread that reads it all the
//! time, so that a member that dies is noticed at once, and one that writes, so that nobody waits for a slow one.
//!
//! A frame is the length of a head, the number of vectors and their lengths, the head as JSON, and the vectors as little-endian
//! floats. Before a member has said who it is, it may send no vectors.

use super::Input;
use super::socket::{Listener, Socket, connect};
use crate::checkpoint::TrainingState;
use crate::elastic::{Event, Link, Message};
use crate::vector::Vector;
use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// How long a member may take to take what it is sent.
const WRITE: Duration = Duration::from_secs(30);
/// How often somebody who waits looks again, and one who listens whether it still has to.
const LOOK: Duration = Duration::from_millis(5);
const LISTEN: Duration = Duration::from_millis(50);
/// The largest head of a frame, in bytes.
const MAX_HEAD: usize = 1 << 16;
/// Vectors that may wait to be written: a state, sums, and what a new leader is given of a step.
const MOST_WAITING: u64 = 32;
/// The most vectors in a frame.
const MAX_VECTORS: usize = 3;
/// Bytes of a vector that are read at a time.
const CHUNK: usize = 1 << 18;
/// Sign of life while a long vector comes in.
const ALIVE: Duration = Duration::from_millis(50);

/// What the threads of the network say.
pub enum Heard {
    /// Something for the member.
    Event(Event),
    /// A connection that this side asked for, by the number of its try, or why there is none.
    Dialed(u64, Result<Socket, String>),
    /// Somebody connected.
    Accepted(Socket),
}

/// A message on its way out.
pub enum Outgoing {
    /// An ordinary one.
    Message(Message),
    /// The state, with its head.
    State(Message, TrainingState),
}

impl Outgoing {
    /// What is sent. Waits for vectors that a device has: a member whose device has failed sends nothing.
    fn parts(&self) -> io::Result<(&Message, Vec<&[f32]>)> {
        match self {
            Outgoing::Message(message) => Ok((message, message.vectors().map_err(io::Error::other)?)),
            Outgoing::State(message, state) => Ok((message, state.trained.vectors().to_vec())),
        }
    }

    fn bytes(&self) -> u64 {
        let floats = match self {
            Outgoing::Message(message) => message.floats(),
            Outgoing::State(_, state) => state.trained.vectors().iter().map(|vector| vector.len()).sum(),
        };
        4 * floats as u64
    }
}

/// All connections of a member.
pub struct Net {
    heard: Sender<Input>,
    links: HashMap<Link, Open>,
    next: Link,
    dials: u64,
    /// Floats of the longest vector.
    longest: usize,
    ended: Arc<AtomicBool>,
}

struct Open {
    sender: Sender<Outgoing>,
    stream: Socket,
    /// Bytes that wait to be written.
    waiting: Arc<AtomicU64>,
}

impl Net {
    /// No connection yet. Vectors have at most `longest` floats.
    pub fn new(heard: Sender<Input>, longest: usize) -> Net {
        Net { heard, links: HashMap::new(), next: 0, dials: 0, longest, ended: Arc::default() }
    }

    /// Listens until it is dropped; waits for at most `patience` if an earlier worker still has the port.
    ///
    /// # Errors
    /// Where it cannot.
    pub fn listen(&self, address: &str, patience: Duration) -> io::Result<()> {
        let start = Instant::now();
        let listener = loop {
            match Listener::bind(address) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && start.elapsed() < patience => {
                    std::thread::sleep(4 * LOOK);
                }
                result => break result?,
            }
        };
        let (heard, ended) = (self.heard.clone(), Arc::clone(&self.ended));
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept(LISTEN) {
                    Ok(Some(stream)) => _ = heard.send(Input::Net(Heard::Accepted(stream))),
                    Ok(None) => (),
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        });
        Ok(())
    }

    /// Asks for a connection; of several that were asked for only the last one counts.
    pub fn dial(&mut self, address: String) {
        self.dials += 1;
        let (heard, number) = (self.heard.clone(), self.dials);
        std::thread::spawn(move || {
            let result = connect(&address).map_err(|error| describe(&error));
            _ = heard.send(Input::Net(Heard::Dialed(number, result)));
        });
    }

    /// Turns what was heard into an event, if it is one.
    pub fn event(&mut self, heard: Heard) -> Option<Event> {
        match heard {
            Heard::Event(event) => {
                let link = match &event {
                    Event::Closed(link, _) | Event::Got(link, _) | Event::Alive(link) => link,
                    _ => return Some(event),
                };
                let is_known = self.links.contains_key(link);
                if let Event::Closed(link, _) = &event {
                    self.links.remove(link);
                }
                is_known.then_some(event)
            }
            Heard::Dialed(number, _) if number != self.dials => None,
            Heard::Dialed(_, Err(reason)) => Some(Event::NotDialed(reason)),
            Heard::Dialed(_, Ok(stream)) => Some(match self.open(stream, true) {
                Ok(link) => Event::Dialed(link),
                Err(error) => Event::NotDialed(describe(&error)),
            }),
            Heard::Accepted(stream) => self.open(stream, false).ok().map(Event::Accepted),
        }
    }

    fn open(&mut self, stream: Socket, is_trusted: bool) -> io::Result<Link> {
        stream.prepare(WRITE)?;
        self.next += 1;
        let (link, longest, waiting) = (self.next, self.longest, Arc::<AtomicU64>::default());
        let (sender, outgoing) = channel();
        let (heard, reader) = (self.heard.clone(), stream.try_clone()?);
        std::thread::spawn(move || {
            read_all(reader, link, if is_trusted { longest } else { 0 }, longest, &heard)
        });
        let (writer, counted) = (stream.try_clone()?, Arc::clone(&waiting));
        std::thread::spawn(move || write_all(writer, outgoing, &counted));
        self.links.insert(link, Open { sender, stream, waiting });
        Ok(link)
    }

    /// Sends a message. A member that does not take what it is sent is let go: it finds back, and gets the state then.
    pub fn send(&mut self, link: Link, message: Outgoing) {
        let Some(open) = self.links.get(&link) else { return };
        let most = MOST_WAITING * 4 * self.longest as u64 + (1 << 20);
        if most < open.waiting.fetch_add(message.bytes(), Ordering::Relaxed) {
            // The reader says so.
            _ = open.stream.shutdown();
            return;
        }
        _ = open.sender.send(message);
    }

    /// Ends a connection, once what was sent is written.
    pub fn close(&mut self, link: Link) {
        self.links.remove(&link);
    }

    /// Waits, for a while, until all that was sent is written.
    pub fn flush(&self, patience: Duration) {
        let start = Instant::now();
        let is_busy = |open: &Open| 0 < open.waiting.load(Ordering::Relaxed);
        while self.links.values().any(is_busy) && start.elapsed() < patience {
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn read_all(stream: Socket, link: Link, first: usize, longest: usize, heard: &Sender<Input>) {
    let mut reader = BufReader::with_capacity(CHUNK, stream);
    let (mut longest_now, mut last) = (first, Instant::now());
    let mut alive = || {
        if ALIVE <= last.elapsed() {
            last = Instant::now();
            _ = heard.send(Input::Net(Heard::Event(Event::Alive(link))));
        }
    };
    loop {
        let event = match read_frame(&mut reader, longest_now, &mut alive) {
            Ok(message) => Event::Got(link, message),
            Err(error) => {
                _ = heard.send(Input::Net(Heard::Event(Event::Closed(link, describe(&error)))));
                return;
            }
        };
        // It has said who it is; whoever has nothing to do here is let go before it can say more.
        longest_now = longest;
        if heard.send(Input::Net(Heard::Event(event))).is_err() {
            return;
        }
    }
}

fn write_all(mut stream: Socket, outgoing: Receiver<Outgoing>, waiting: &AtomicU64) {
    for message in outgoing {
        let bytes = message.bytes();
        let written = message.parts().and_then(|(head, vectors)| write_frame(&mut stream, head, &vectors));
        waiting.fetch_sub(bytes, Ordering::Relaxed);
        if written.is_err() {
            break;
        }
    }
    // Ends the reading thread as well.
    _ = stream.shutdown();
}

fn write_frame(stream: &mut impl Write, message: &Message, vectors: &[&[f32]]) -> io::Result<()> {
    let head = serde_json::to_vec(message)?;
    let mut start = Vec::from((head.len() as u32).to_le_bytes());
    start.push(vectors.len() as u8);
    vectors.iter().for_each(|vector| start.extend((vector.len() as u64).to_le_bytes()));
    start.extend(head);
    stream.write_all(&start)?;
    vectors.iter().try_for_each(|vector| stream.write_all(vector.as_bytes()))
}

fn read_frame(reader: &mut impl Read, longest: usize, alive: &mut impl FnMut()) -> io::Result<Message> {
    let bad = || io::Error::other("not a message of a member");
    let mut start = [0; 5];
    reader.read_exact(&mut start)?;
    let head = u32::from_le_bytes(start[..4].try_into().expect("four bytes")) as usize;
    let count = usize::from(start[4]);
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
    let mut bytes = vec![0; head];
    reader.read_exact(&mut bytes)?;
    let mut message: Message = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    let mut vectors = Vec::new();
    for length in &lengths[..count] {
        let mut vector = Vector::any(*length);
        for part in vector.as_mut_bytes().chunks_mut(CHUNK) {
            reader.read_exact(part)?;
            alive();
        }
        vectors.push(vector);
    }
    message.fill(vectors).map_err(io::Error::other)?;
    Ok(message)
}

/// One or a few words for people.
pub fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "connection closed".into()
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".into(),
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elastic::{Spent, Turn};

    fn sent(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, message, &message.vectors().unwrap()).unwrap();
        bytes
    }

    fn read(bytes: &[u8], longest: usize) -> Result<Message, String> {
        read_frame(&mut &bytes[..], longest, &mut || ()).map_err(|error| describe(&error))
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
            assert_eq!(read(&bytes, 100_000), Ok(message));
            assert!(read(&bytes[..bytes.len() - 1], 100_000).is_err());
        }
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
    }
}
