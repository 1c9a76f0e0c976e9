//! Sums that go from card to card, beside a connection.
//!
//! A sum that lies on a card is offered: its message goes over the connection, without it. Who is to have it makes room. The end that was dialed then
//! says whose turn it is, so that both begin with the same one, and none before both are ready: a card that waits for another one
//! occupies its processors. When it has come, that is said; if it has not, it is sent over the connection after all, and
//! so is all that follows. Words keep both ends alive for each other meanwhile, and a connection that ends ends all of it.

use super::Input;
use super::frame::{self, Frame, Word, bad};
use super::wire::{ALIVE, Cards, Reader, WRITE, Wire};
use crate::elastic::Message;
use crate::kernels::{DeviceError, Id, Nccl, Pair};
use crate::values::{OnDevice, Values};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

/// How often who waits for a card looks again, and who waits for two to be joined.
const LOOK: Duration = Duration::from_micros(100);
const LOOK_RARELY: Duration = Duration::from_millis(2);
/// Floats that are moved at a time, and how long they may take once both ends have begun.
const PIECE: usize = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(2);

/// Why something was not carried.
enum Stop {
    /// The connection has ended.
    Broken(io::Error),
    /// The cards could not; says why.
    Failed(String),
    /// The other end wants it over the connection, or there is no other way here.
    Declined,
    /// It follows over the connection, so many floats.
    Follows(usize),
}

impl From<DeviceError> for Stop {
    fn from(DeviceError(reason): DeviceError) -> Stop {
        Stop::Failed(reason)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Broken(error)
    }
}

/// What is done between two looks; it takes about as long as there is between them.
type Idle<'a> = &'a mut dyn FnMut() -> Result<(), Stop>;

/// Looks until something is so.
fn wait(idle: Idle<'_>, mut is_so: impl FnMut() -> Result<bool, DeviceError>) -> Result<(), Stop> {
    while !is_so()? {
        idle()?;
    }
    Ok(())
}

/// As [`wait`], for so long.
fn wait_for(
    patience: Duration,
    idle: Idle<'_>,
    is_so: impl FnMut() -> Result<bool, DeviceError>,
) -> Result<(), Stop> {
    let start = Instant::now();
    let mut hurry = || match start.elapsed() < patience {
        true => idle(),
        false => Err(Stop::Failed(format!("nothing has moved for {} s", patience.as_secs()))),
    };
    wait(&mut hurry, is_so)
}

/// Has so many floats moved, and waits until they are.
fn carry(
    pair: &Pair,
    floats: usize,
    patience: Duration,
    idle: Idle<'_>,
    begin: impl Fn(Range<usize>) -> Result<(), DeviceError>,
) -> Result<(), Stop> {
    let mut moments = VecDeque::new();
    for start in (0..floats).step_by(PIECE) {
        begin(start..floats.min(start + PIECE))?;
        wait_for(patience, idle, || pair.is_ready())?;
        moments.push_back(pair.moment());
    }
    for moment in moments {
        wait_for(patience, idle, || Ok(pair.is_ready()? && moment.is_past()?))?;
    }
    Ok(())
}

impl Wire {
    /// Whether sums go from card to card.
    pub fn reaches_card(&self) -> bool {
        self.has_joined.load(Ordering::Relaxed) && self.has_other_joined.load(Ordering::Relaxed)
    }

    /// The cards of this connection, when it is the caller's turn.
    fn turn(&self, idle: Idle<'_>) -> Result<MutexGuard<'_, Option<Pair>>, Stop> {
        loop {
            match self.pair.try_lock() {
                Ok(pair) => return Ok(pair),
                Err(TryLockError::WouldBlock) => idle()?,
                Err(TryLockError::Poisoned(_)) => unreachable!("no holder panics"),
            }
        }
    }

    /// Sends all that follows over the connection. What was being moved is kept until the cards let go of it.
    fn give_up(&self, pair: Pair, moving: impl Send + 'static, why: &Stop) {
        self.has_joined.store(false, Ordering::Relaxed);
        pair.leave(moving);
        match why {
            Stop::Failed(reason) => self.say_why(reason),
            Stop::Declined | Stop::Follows(_) => self.say_why("the other end has given up"),
            Stop::Broken(_) => (),
        }
    }

    fn line(&self, what: &str) {
        let who = self.who.lock().expect("no holder panics").clone();
        self.tell(Input::Line(format!("{who}: sums go {what}")));
    }

    fn say_why(&self, reason: &str) {
        self.line(&format!("through the memory of the hosts: {reason}"));
    }

    /// Sends a message whose vector lies on this card.
    ///
    /// # Errors
    /// The connection's, or the card has failed.
    pub fn offer(&self, message: &Message, words: &Receiver<Word>) -> io::Result<()> {
        let values = message.sum().expect("it has a vector");
        // Without a sign of life: a card that computes nothing any more is not to look like one that does.
        let written = wait(&mut look_again, || device(values).is_written());
        written.map_err(|_| io::Error::other("the card has failed"))?;
        frame::write_offer(&mut *self.out(), message, values.len())?;
        let answer = match self.hear(words)? {
            Word::Room if self.is_dialed => self.send(values, words)?,
            Word::Send if !self.is_dialed => self.send(values, words)?,
            answer => answer,
        };
        match answer {
            Word::Came => Ok(()),
            Word::Here => {
                let vector = values.host().map_err(io::Error::other)?;
                frame::write_vector(&mut *self.out(), vector)
            }
            _ => Err(bad()),
        }
    }

    /// Sends what there is room for at the other end, and returns what that end says of it, or would.
    fn send(&self, values: &Arc<Values>, words: &Receiver<Word>) -> io::Result<Word> {
        let (mut verdict, mut last) = (None, Instant::now());
        let mut idle = || {
            match words.recv_timeout(LOOK) {
                Ok(Word::Here) => return Err(Stop::Declined),
                Ok(Word::Came) => verdict = Some(Word::Came),
                Ok(_) => return Err(bad().into()),
                Err(RecvTimeoutError::Timeout) if last.elapsed() < ALIVE => (),
                Err(RecvTimeoutError::Timeout) => {
                    last = Instant::now();
                    self.say(&Word::Alive)?;
                }
                Err(RecvTimeoutError::Disconnected) => return Err(closed().into()),
            }
            Ok(())
        };
        let mut turn = match self.turn(&mut idle) {
            Ok(turn) => turn,
            Err(Stop::Broken(error)) => return Err(error),
            Err(_) => return Err(bad()),
        };
        let Some(pair) = &*turn else {
            // Who waits for it takes it as it comes.
            return Ok(Word::Here);
        };
        if self.is_dialed {
            self.say(&Word::Receive)?;
        }
        let carried = carry(pair, values.len(), PATIENCE, &mut idle, |part| pair.send(device(values), part));
        if let Err(stop) = carried {
            let pair = turn.take().expect("just used");
            self.give_up(pair, Arc::clone(values), &stop);
            match stop {
                Stop::Broken(error) => return Err(error),
                Stop::Declined => return Ok(Word::Here),
                Stop::Failed(_) | Stop::Follows(_) => (),
            }
        }
        // The turn ends with the verdict.
        verdict.map_or_else(|| self.hear(words), Ok)
    }

    /// The next word for who writes, with signs of life meanwhile.
    fn hear(&self, words: &Receiver<Word>) -> io::Result<Word> {
        let start = Instant::now();
        loop {
            match words.recv_timeout(ALIVE) {
                Ok(word) => return Ok(word),
                Err(RecvTimeoutError::Timeout) if start.elapsed() < WRITE => self.say(&Word::Alive)?,
                Err(RecvTimeoutError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
                Err(RecvTimeoutError::Disconnected) => return Err(closed()),
            }
        }
    }

    /// Has both ends join their cards, if they can: this end was dialed, and the other one has said what it has.
    pub fn join_first(self: &Arc<Wire>, greeting: &str) {
        let Some(Cards { nccl, .. }) = &self.cards else { return };
        if let Some(reason) = nccl.refusal(greeting) {
            return self.say_why(&reason);
        }
        let (wire, nccl) = (Arc::clone(self), Arc::clone(nccl));
        std::thread::spawn(move || match nccl.new_id() {
            // If it cannot be said, the connection has ended.
            Ok(id) if wire.say(&Word::Join(id.to_text())).is_ok() => wire.join(&nccl, id, 0),
            Ok(_) => (),
            Err(error) => wire.say_why(&error.to_string()),
        });
    }

    /// Joins as the other end says; `None` if it has said something else.
    pub fn join_other(self: &Arc<Wire>, id: &str) -> Option<()> {
        let (id, wire) = (Id::from_text(id)?, Arc::clone(self));
        let nccl = Arc::clone(&self.cards.as_ref()?.nccl);
        std::thread::spawn(move || wire.join(&nccl, id, 1));
        Some(())
    }

    fn join(&self, nccl: &Arc<Nccl>, id: Id, rank: i32) {
        let Some(Cards { patience, .. }) = self.cards else { return };
        let mut idle = || match self.has_ended.load(Ordering::Relaxed) {
            true => Err(closed().into()),
            false => look_again_rarely(),
        };
        let pair = match nccl.join(id, rank) {
            Ok(pair) => pair,
            Err(error) => return self.say_why(&error.to_string()),
        };
        let number = |rank| nccl.one((rank + 1) as f32).map(Arc::new);
        let (own, theirs) = match (number(rank), number(-1)) {
            (Ok(own), Ok(theirs)) => (own, theirs),
            // The card has failed, which others find out.
            _ => return pair.leave(()),
        };
        let met = wait_for(patience, &mut idle, || pair.is_ready())
            .and_then(|()| meet(&pair, rank, [&own, &theirs], patience, &mut idle));
        if let Err(stop) = met {
            return self.give_up(pair, [own, theirs], &stop);
        }
        *self.pair.lock().expect("no holder panics") = Some(pair);
        self.has_joined.store(true, Ordering::Release);
        if self.say(&Word::Joined).is_ok() && self.is_dialed {
            self.line(&format!("from card to card, through {}", nccl.name()));
        }
        if self.has_ended.load(Ordering::Relaxed)
            && let Some(pair) = self.pair.lock().expect("no holder panics").take()
        {
            pair.leave(());
        }
    }
}

/// Both ends send each other a number: what takes time when cards first meet is done then, and they are known to do so.
fn meet(
    pair: &Pair,
    rank: i32,
    [own, theirs]: [&Arc<Values>; 2],
    patience: Duration,
    idle: Idle<'_>,
) -> Result<(), Stop> {
    let (from, to) = (device(own), device(theirs));
    wait(idle, || Ok(from.is_written()? && to.is_written()?))?;
    for sends in [rank == 0, rank != 0] {
        match sends {
            true => carry(pair, 1, patience, idle, |part| pair.send(from, part))?,
            false => carry(pair, 1, patience, idle, |part| pair.receive(to, part))?,
        }
    }
    let (came, sent) = (theirs.host()?[0], (2 - rank) as f32);
    match came == sent {
        true => Ok(()),
        false => Err(Stop::Failed(format!("{came} has come where {sent} was sent"))),
    }
}

/// Of values that lie on this card.
fn device(values: &Values) -> &dyn OnDevice {
    values.device().expect("they lie on a card")
}

impl Reader {
    /// The vector of a message, so many floats, that is offered.
    ///
    /// # Errors
    /// The connection's.
    pub fn take(&mut self, floats: usize) -> io::Result<Arc<Values>> {
        let stop = match self.take_by_card(floats) {
            Ok(values) => return Ok(values),
            Err(stop) => stop,
        };
        let follows = match stop {
            Stop::Broken(error) => return Err(error),
            Stop::Follows(follows) => follows,
            Stop::Failed(_) | Stop::Declined => {
                self.wire.say(&Word::Here)?;
                loop {
                    match self.read()? {
                        Frame::Vector(follows) => break follows,
                        Frame::Word(word) if self.on_word(word.clone())?.is_none() => (),
                        _ => return Err(bad()),
                    }
                }
            }
        };
        match follows == floats {
            true => Ok(Arc::new(self.read_vector(floats)?.into())),
            false => Err(bad()),
        }
    }

    fn take_by_card(&mut self, floats: usize) -> Result<Arc<Values>, Stop> {
        let wire = Arc::clone(&self.wire);
        let room = wire.cards.as_ref().filter(|_| wire.has_joined.load(Ordering::Acquire));
        let Some(values) = room.and_then(|cards| cards.nccl.room(floats)).map(Arc::new) else {
            return Err(Stop::Declined);
        };
        wait(&mut || self.listen(), || device(&values).is_written())?;
        if !wire.is_dialed {
            wire.say(&Word::Room)?;
            while !self.hears_receive()? {}
        }
        let mut turn = wire.turn(&mut || self.listen())?;
        let Some(pair) = &*turn else { return Err(Stop::Declined) };
        if wire.is_dialed {
            wire.say(&Word::Send)?;
        }
        let carried =
            carry(pair, floats, PATIENCE, &mut || self.listen(), |part| pair.receive(device(&values), part));
        match carried {
            // The turn ends behind this.
            Ok(()) => wire.say(&Word::Came)?,
            Err(stop) => {
                wire.give_up(turn.take().expect("just used"), values, &stop);
                return Err(stop);
            }
        }
        drop(turn);
        Ok(values)
    }

    /// Takes in what comes within a moment.
    fn listen(&mut self) -> Result<(), Stop> {
        match self.hears_receive()? {
            true => Err(bad().into()),
            false => Ok(()),
        }
    }

    /// As [`listen`](Reader::listen); whether this end is told to receive.
    fn hears_receive(&mut self) -> Result<bool, Stop> {
        if self.stream.buffer().is_empty() && !self.stream.get_ref().is_readable(LOOK)? {
            return Ok(false);
        }
        match self.read()? {
            Frame::Word(word) => Ok(self.on_word(word)?.is_some()),
            Frame::Vector(floats) => Err(Stop::Follows(floats)),
            Frame::Message(_) | Frame::Offer(..) => Err(bad().into()),
        }
    }
}

/// Nobody listens any more.
fn closed() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

fn look_again() -> Result<(), Stop> {
    std::thread::sleep(LOOK);
    Ok(())
}

fn look_again_rarely() -> Result<(), Stop> {
    std::thread::sleep(LOOK_RARELY);
    Ok(())
}
