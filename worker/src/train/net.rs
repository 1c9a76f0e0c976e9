//! Connections between the members of a training.
//!
//! A star: every member has one connection to the leader, which adds up and sends back. For W members and P parameters a
//! step moves `(W - 1) * P` floats into the leader and as many out of it. Each connection has a thread that reads it all the
//! time, so that a member that dies is noticed at once, and one that writes, so that nobody waits for a slow one.

use super::Input;
use super::socket::{Listener, Socket, connect};
use super::wire::{Cards, Wire};
use crate::checkpoint::TrainingState;
use crate::elastic::{Event, Link, Message};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// How often somebody who waits looks again, and one who listens whether it still has to.
const LOOK: Duration = Duration::from_millis(5);
const LISTEN: Duration = Duration::from_millis(50);
/// Vectors that may wait to be written: a state, sums, and what a new leader is given of a step.
const MOST_WAITING: u64 = 32;

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
    pub(super) fn parts(&self) -> io::Result<(&Message, Vec<&[f32]>)> {
        match self {
            Outgoing::Message(message) => Ok((message, message.vectors().map_err(io::Error::other)?)),
            Outgoing::State(message, state) => Ok((message, state.trained.vectors().to_vec())),
        }
    }

    /// A message whose vector lies on a card.
    pub(super) fn on_card(&self) -> Option<&Message> {
        match self {
            Outgoing::Message(message) => {
                Some(message).filter(|it| it.sum().is_some_and(|it| it.device().is_some()))
            }
            Outgoing::State(..) => None,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
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
    /// What sums may go through beside the connections.
    cards: Option<Cards>,
    ended: Arc<AtomicBool>,
}

struct Open {
    sender: Sender<Outgoing>,
    wire: Arc<Wire>,
    /// What its cards could be joined with, as the other end has said.
    greeting: Option<String>,
    /// Bytes that wait to be written.
    waiting: Arc<AtomicU64>,
}

impl Net {
    /// No connection yet. Vectors have at most `longest` floats.
    pub fn new(heard: Sender<Input>, longest: usize) -> Net {
        let links = HashMap::new();
        Net { heard, links, next: 0, dials: 0, longest, cards: None, ended: Arc::default() }
    }

    /// Sums go from card to card where that is possible.
    pub fn through(mut self, cards: Option<Cards>) -> Net {
        self.cards = cards;
        self
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
                match &event {
                    Event::Closed(link, _) => _ = self.links.remove(link),
                    Event::Got(link, Message::Hello(who, _)) => {
                        if let Some(open) = self.links.get_mut(link) {
                            open.greeting = who.cards.clone();
                            *open.wire.who.lock().expect("no holder panics") = format!("rank {}", who.rank);
                        }
                    }
                    _ => (),
                }
                is_known.then_some(event)
            }
            Heard::Dialed(number, _) if number != self.dials => None,
            Heard::Dialed(_, Err(reason)) => Some(Event::NotDialed(reason)),
            Heard::Dialed(_, Ok(stream)) => Some(match self.open(stream, false) {
                Ok(link) => Event::Dialed(link),
                Err(error) => Event::NotDialed(describe(&error)),
            }),
            Heard::Accepted(stream) => self.open(stream, true).ok().map(Event::Accepted),
        }
    }

    /// * `is_dialed`: the other end has asked for it, and has yet to say who it is.
    fn open(&mut self, stream: Socket, is_dialed: bool) -> io::Result<Link> {
        self.next += 1;
        let (link, waiting) = (self.next, Arc::<AtomicU64>::default());
        let (sender, outgoing) = channel();
        let (heard, cards) = (self.heard.clone(), self.cards.clone());
        let told = (outgoing, Arc::clone(&waiting));
        let wire = Wire::open(stream, (link, is_dialed), self.longest, (heard, cards), told)?;
        self.links.insert(link, Open { sender, wire, greeting: None, waiting });
        Ok(link)
    }

    /// Sends a message. A member that does not take what it is sent is let go: it finds back, and gets the state then.
    pub fn send(&mut self, link: Link, message: Outgoing) {
        let Some(open) = self.links.get(&link) else { return };
        let most = MOST_WAITING * 4 * self.longest as u64 + (1 << 20);
        if most < open.waiting.fetch_add(message.bytes(), Ordering::Relaxed) {
            // The reader says so.
            return open.wire.shut();
        }
        let is_let_in = matches!(message, Outgoing::Message(Message::Welcome));
        _ = open.sender.send(message);
        if let (true, Some(greeting)) = (is_let_in, &open.greeting) {
            open.wire.join_first(greeting);
        }
    }

    /// Ends a connection, once what was sent is written.
    pub fn close(&mut self, link: Link) {
        self.links.remove(&link);
    }

    /// Waits, for a while, until all that was sent is written, and no card moves anything.
    pub fn end(&mut self, patience: Duration) {
        let start = Instant::now();
        let is_busy = |open: &Open| 0 < open.waiting.load(Ordering::Relaxed);
        while self.links.values().any(is_busy) && start.elapsed() < patience {
            std::thread::sleep(LOOK);
        }
        self.links.clear();
        let is_used = |cards: &Cards| 1 < Arc::strong_count(&cards.nccl);
        while self.cards.as_ref().is_some_and(is_used) && start.elapsed() < patience {
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
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
