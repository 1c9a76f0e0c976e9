//! One connection between two members, and the two threads that read and write it.

use super::Input;
use super::frame::{self, CHUNK, Frame, Word, bad};
use super::net::{Heard, Outgoing, describe};
use super::socket::Socket;
use crate::elastic::{Event, Link};
use crate::kernels::{Nccl, Pair};
use std::io::{self, BufReader};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a member may take to take what it is sent.
pub const WRITE: Duration = Duration::from_secs(30);
/// Sign of life while a long vector comes in, or waits to.
pub const ALIVE: Duration = Duration::from_millis(50);

/// What cards may send each other through, and how long it may take to connect two.
#[derive(Clone)]
pub struct Cards {
    /// The library.
    pub nccl: Arc<Nccl>,
    /// For both ends to join.
    pub patience: Duration,
}

/// A connection.
pub struct Wire {
    pub link: Link,
    /// Somebody else has asked for it. That end says whose turn it is to send through the cards.
    pub is_dialed: bool,
    /// For people: who is at the other end.
    pub who: Mutex<String>,
    stream: Socket,
    /// The end that is written to, a frame at a time.
    out: Mutex<Socket>,
    heard: Sender<Input>,
    pub cards: Option<Cards>,
    /// Of the cards at both ends. Who uses it holds it until both ends know what has become of that.
    pub pair: Mutex<Option<Pair>>,
    /// It stands at this end, and at the other one.
    pub has_joined: AtomicBool,
    pub has_other_joined: AtomicBool,
    pub has_ended: AtomicBool,
}

impl Wire {
    /// Begins to read and write.
    ///
    /// * `longest`: floats of the longest vector.
    /// * `waiting`: bytes that wait to be written.
    ///
    /// # Errors
    /// The connection's.
    pub fn open(
        stream: Socket,
        (link, is_dialed): (Link, bool),
        longest: usize,
        (heard, cards): (Sender<Input>, Option<Cards>),
        (outgoing, waiting): (Receiver<Outgoing>, Arc<AtomicU64>),
    ) -> io::Result<Arc<Wire>> {
        stream.prepare(WRITE)?;
        let (out, read) = (stream.try_clone()?, stream.try_clone()?);
        let wire = Arc::new(Wire {
            link,
            is_dialed,
            who: Mutex::new("the leader".into()),
            stream,
            out: Mutex::new(out),
            heard,
            cards,
            pair: Mutex::default(),
            has_joined: AtomicBool::new(false),
            has_other_joined: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        });
        let (mailbox, words) = channel();
        let reader = Reader {
            wire: Arc::clone(&wire),
            stream: BufReader::with_capacity(CHUNK, read),
            longest: if is_dialed { 0 } else { longest },
            last: Instant::now(),
            mailbox,
        };
        std::thread::spawn(move || reader.read_all(longest));
        let writer = Arc::clone(&wire);
        std::thread::spawn(move || writer.write_all(outgoing, &words, &waiting));
        Ok(wire)
    }

    /// Ends it for both threads.
    pub fn shut(&self) {
        _ = self.stream.shutdown();
    }

    /// Nobody may listen any more.
    pub fn tell(&self, input: Input) -> bool {
        self.heard.send(input).is_ok()
    }

    fn event(&self, event: Event) -> bool {
        self.tell(Input::Net(Heard::Event(event)))
    }

    /// Where frames are written.
    pub fn out(&self) -> MutexGuard<'_, Socket> {
        self.out.lock().expect("no holder panics")
    }

    /// Says a word at once, amid the other thread's frames.
    ///
    /// # Errors
    /// The connection's.
    pub fn say(&self, word: &Word) -> io::Result<()> {
        frame::write_word(&mut *self.out(), word)
    }

    fn write_all(&self, outgoing: Receiver<Outgoing>, words: &Receiver<Word>, waiting: &AtomicU64) {
        for message in outgoing {
            let bytes = message.bytes();
            let written = match message.on_card().filter(|_| self.reaches_card()) {
                Some(message) => self.offer(message, words),
                None => message
                    .parts()
                    .and_then(|(head, vectors)| frame::write_message(&mut *self.out(), head, &vectors)),
            };
            waiting.fetch_sub(bytes, Ordering::Relaxed);
            if written.is_err() {
                break;
            }
        }
        // Ends the reading thread as well.
        self.shut();
        self.end();
    }

    /// One of the threads has ended: nothing is carried any more.
    fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        if let Some(pair) = self.pair.lock().expect("no holder panics").take() {
            pair.leave(());
        }
    }
}

/// What reads a connection.
pub struct Reader {
    pub wire: Arc<Wire>,
    pub stream: BufReader<Socket>,
    /// Floats of the longest vector that is taken.
    longest: usize,
    /// The last sign of life that was passed on.
    last: Instant,
    /// Words for who writes.
    mailbox: Sender<Word>,
}

impl Reader {
    fn read_all(mut self, longest: usize) {
        loop {
            let event = match self.next() {
                Ok(message) => Event::Got(self.wire.link, message),
                Err(error) => {
                    self.wire.event(Event::Closed(self.wire.link, describe(&error)));
                    break;
                }
            };
            // It has said who it is; whoever has nothing to do here is let go before it can say more.
            self.longest = longest;
            if !self.wire.event(event) {
                break;
            }
        }
        // Who writes is not to wait for words any more.
        let wire = Arc::clone(&self.wire);
        drop(self);
        wire.end();
    }

    /// The next message.
    fn next(&mut self) -> io::Result<crate::elastic::Message> {
        loop {
            match self.read()? {
                Frame::Message(message) => return Ok(message),
                Frame::Offer(mut message, floats) => {
                    let values = self.take(floats)?;
                    *message.sum_mut().ok_or_else(bad)? = values;
                    return Ok(message);
                }
                Frame::Word(word) => {
                    if self.on_word(word)?.is_some() {
                        return Err(bad());
                    }
                }
                Frame::Vector(_) => return Err(bad()),
            }
        }
    }

    /// The next frame.
    ///
    /// # Errors
    /// The connection's.
    pub fn read(&mut self) -> io::Result<Frame> {
        let Reader { wire, stream, longest, last, .. } = self;
        frame::read(stream, *longest, &mut || alive(wire, last))
    }

    /// So many floats.
    ///
    /// # Errors
    /// The connection's.
    pub fn read_vector(&mut self, floats: usize) -> io::Result<crate::vector::Vector> {
        let Reader { wire, stream, last, .. } = self;
        frame::read_vector(stream, floats, &mut || alive(wire, last))
    }

    /// Passes a word on, unless it is for who reads.
    ///
    /// # Errors
    /// It has no meaning here.
    pub fn on_word(&mut self, word: Word) -> io::Result<Option<Word>> {
        match word {
            Word::Alive => alive(&self.wire, &mut self.last),
            Word::Joined => self.wire.has_other_joined.store(true, Ordering::Release),
            Word::Join(id) if !self.wire.is_dialed => self.wire.join_other(&id).ok_or_else(bad)?,
            Word::Receive if !self.wire.is_dialed => return Ok(Some(word)),
            Word::Join(_) | Word::Receive => return Err(bad()),
            // If it writes no more, the connection ends.
            Word::Room | Word::Send | Word::Came | Word::Here => _ = self.mailbox.send(word),
        }
        Ok(None)
    }
}

/// The other end lives.
fn alive(wire: &Wire, last: &mut Instant) {
    if ALIVE <= last.elapsed() {
        *last = Instant::now();
        wire.event(Event::Alive(wire.link));
    }
}
