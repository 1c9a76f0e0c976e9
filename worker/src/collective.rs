//! The group of ranks that train one model: forming it, and moving vectors through it over TCP.
//!
//! A star: every rank has one connection to rank 0, which adds up and sends back. For W ranks and P parameters an
//! all-reduce moves `(W - 1) * P` floats into rank 0 and as many out of it, so it is right for small groups; a
//! ring moves `2 * P` through every rank.
//!
//! Each connection has a thread that reads it all the time, so that a rank that dies is noticed at once, also in
//! the middle of a long computation ([`Group::check`]).

use crate::contract::Contract;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a new connection may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest first message, in bytes.
const MAX_HELLO: u64 = 1 << 16;
/// The largest message in a group, in bytes.
const MAX_FRAME: u64 = 1 << 38;
/// How often a waiting rank looks again.
const RETRY: Duration = Duration::from_millis(20);

/// Why the group did not form, or broke.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// Rank 0 cannot listen.
    #[error("rank 0 cannot listen at {address}: {error}")]
    Listen {
        /// Host and port.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// Not all ranks came.
    #[error("rank 0 waited {waited_s} s at {address} for {missing} of {world_size} ranks")]
    Missing {
        /// Host and port.
        address: String,
        /// How long, in seconds.
        waited_s: u64,
        /// Which ranks.
        missing: String,
        /// Ranks in the group.
        world_size: usize,
    },
    /// Rank 0 cannot be reached.
    #[error("rank {rank} waited {waited_s} s for rank 0 at {address}: {reason}")]
    Unreachable {
        /// This rank.
        rank: usize,
        /// Host and port.
        address: String,
        /// How long, in seconds.
        waited_s: u64,
        /// The last answer.
        reason: String,
    },
    /// Rank 0 does not want this rank.
    #[error("rank 0 refused rank {rank}: {reason}")]
    Refused {
        /// This rank.
        rank: usize,
        /// What differs.
        reason: String,
    },
    /// A rank is gone or silent.
    #[error("rank {rank} left: {reason}")]
    Left {
        /// The rank that is gone.
        rank: usize,
        /// How it was noticed.
        reason: String,
    },
    /// Another rank gave up and said why.
    #[error("{0}")]
    Aborted(String),
    /// A signal came before the group had formed.
    #[error("stopped while waiting for the other ranks")]
    Stopped,
}

/// How long to wait for others.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For all ranks to come.
    pub join: Duration,
    /// For a rank that should have sent something.
    pub peer: Duration,
}

/// What has to be the same on all ranks: names and values for people to read, the same names in the same order.
pub type Agreement = Vec<(String, String)>;

/// What a rank says first.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Hello {
    protocol: String,
    job: String,
    attempt: u64,
    rank: usize,
    world_size: usize,
    agreement: Agreement,
}

const PROTOCOL: &str = "aquifer-group-1";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Hello = 1,
    /// Rank 0: the group is complete.
    Start = 2,
    /// Rank 0: not you, and it makes no sense to ask again.
    Refuse = 3,
    /// Rank 0: not you; it belongs to an earlier attempt that is about to end.
    RefuseForNow = 4,
    Data = 5,
    /// The sender gives up.
    Abort = 6,
}

/// A connection to one other rank.
struct Link {
    rank: usize,
    stream: TcpStream,
    frames: Receiver<Result<Vec<u8>, Loss>>,
    peer_timeout: Duration,
}

/// How a connection ended.
#[derive(Clone, Debug)]
enum Loss {
    Left(usize, String),
    Aborted(String),
}

impl From<Loss> for CollectiveError {
    fn from(loss: Loss) -> CollectiveError {
        match loss {
            Loss::Left(rank, reason) => CollectiveError::Left { rank, reason },
            Loss::Aborted(reason) => CollectiveError::Aborted(reason),
        }
    }
}

/// The ranks that train together.
pub struct Group {
    rank: usize,
    /// For rank 0 all others in order; for another rank only rank 0.
    links: Vec<Link>,
    /// The first connection that ended.
    loss: Arc<Mutex<Option<Loss>>>,
}

impl Group {
    /// Forms the group: rank 0 listens at `MASTER_ADDR:MASTER_PORT`, the others connect and try again until the
    /// time is over. Only ranks of the same job and attempt with the same `agreement` are let in. A group of one
    /// needs no network.
    ///
    /// # Errors
    /// Where the time is over, the ranks do not agree, or `stop` was set.
    pub fn join(
        contract: &Contract,
        agreement: &Agreement,
        timeouts: Timeouts,
        stop: &AtomicBool,
    ) -> Result<Group, CollectiveError> {
        let hello = Hello {
            protocol: PROTOCOL.into(),
            job: contract.job.clone(),
            attempt: contract.attempt,
            rank: contract.rank,
            world_size: contract.world_size,
            agreement: agreement.clone(),
        };
        let address = format!("{}:{}", contract.master_addr, contract.master_port);
        let streams = match (contract.world_size, contract.rank) {
            (1, _) => Vec::new(),
            (_, 0) => accept_all(&hello, &contract.master_addr, contract.master_port, timeouts.join, stop)?,
            _ => vec![(0, connect(&hello, &address, timeouts.join, stop)?)],
        };
        let loss = Arc::new(Mutex::new(None));
        let link = |(rank, stream)| Link::start(rank, stream, timeouts.peer, Arc::clone(&loss));
        let links = streams.into_iter().map(link).collect::<Result<_, _>>()?;
        Ok(Group { rank: contract.rank, links, loss })
    }

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Whether the group has more than one rank.
    pub fn has_others(&self) -> bool {
        !self.links.is_empty()
    }

    /// Whether all connections still stand.
    ///
    /// # Errors
    /// Names the rank that left first.
    pub fn check(&self) -> Result<(), CollectiveError> {
        match &*self.loss.lock().expect("no panic while locked") {
            Some(loss) => Err(loss.clone().into()),
            None => Ok(()),
        }
    }

    /// Rank 0 gets the message of every other rank, in their order; the others get nothing.
    ///
    /// # Errors
    /// Names the rank that left.
    pub fn gather(&mut self, message: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        if self.rank == 0 {
            return self.links.iter_mut().map(Link::receive).collect();
        }
        self.send(message)?;
        Ok(Vec::new())
    }

    /// All ranks get the message of rank 0. Only rank 0's argument matters.
    ///
    /// # Errors
    /// Names the rank that left.
    pub fn broadcast(&mut self, message: Vec<u8>) -> Result<Vec<u8>, CollectiveError> {
        if self.rank == 0 {
            self.send(&message)?;
            return Ok(message);
        }
        self.links[0].receive()
    }

    /// Copies the vector of rank 0 into that of all others.
    ///
    /// # Errors
    /// Names the rank that left.
    pub fn broadcast_floats(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        if self.links.is_empty() {
            return Ok(());
        }
        let message = if self.rank == 0 { floats_to_bytes(values) } else { Vec::new() };
        let message = self.broadcast(message)?;
        bytes_to_floats(&message, values).map_err(|reason| CollectiveError::Left { rank: 0, reason })
    }

    /// Returns on all ranks once all have called it.
    ///
    /// # Errors
    /// Names the rank that left.
    pub fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.gather(&[])?;
        self.broadcast(Vec::new())?;
        Ok(())
    }

    /// Tells the other ranks why this one gives up, as far as they still listen.
    pub fn abort(&mut self, reason: &str) {
        for link in &mut self.links {
            // The connection may be the reason.
            let _ = write_frame(&mut link.stream, Kind::Abort, reason.as_bytes());
        }
    }

    fn send(&mut self, message: &[u8]) -> Result<(), CollectiveError> {
        for link in &mut self.links {
            if let Err(error) = write_frame(&mut link.stream, Kind::Data, message) {
                // What the other side said last explains more than a broken pipe.
                if let Ok(Err(loss)) = link.frames.recv_timeout(Duration::from_millis(200)) {
                    return Err(loss.into());
                }
                return Err(CollectiveError::Left { rank: link.rank, reason: describe(&error) });
            }
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for link in &self.links {
            // Ends the reading thread as well.
            let _ = link.stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Link {
    fn start(
        rank: usize,
        stream: TcpStream,
        peer_timeout: Duration,
        loss: Arc<Mutex<Option<Loss>>>,
    ) -> Result<Link, CollectiveError> {
        let left = |error: io::Error| CollectiveError::Left { rank, reason: error.to_string() };
        stream.set_read_timeout(None).map_err(left)?;
        stream.set_write_timeout(Some(peer_timeout)).map_err(left)?;
        let mut reader = stream.try_clone().map_err(left)?;
        let (sender, frames) = channel();
        std::thread::spawn(move || {
            loop {
                let ended = match read_frame(&mut reader, MAX_FRAME) {
                    Ok((Kind::Data, message)) => {
                        if sender.send(Ok(message)).is_err() {
                            return;
                        }
                        continue;
                    }
                    Ok((Kind::Abort, reason)) => Loss::Aborted(String::from_utf8_lossy(&reason).into_owned()),
                    Ok((kind, _)) => Loss::Left(rank, format!("unexpected message {kind:?}")),
                    Err(error) => Loss::Left(rank, describe(&error)),
                };
                loss.lock().expect("no panic while locked").get_or_insert(ended.clone());
                let _ = sender.send(Err(ended));
                return;
            }
        });
        Ok(Link { rank, stream, frames, peer_timeout })
    }

    fn receive(&mut self) -> Result<Vec<u8>, CollectiveError> {
        match self.frames.recv_timeout(self.peer_timeout) {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(loss)) => Err(loss.into()),
            Err(RecvTimeoutError::Timeout) => {
                let reason = format!("silent for {} s", self.peer_timeout.as_secs());
                Err(CollectiveError::Left { rank: self.rank, reason })
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(CollectiveError::Left { rank: self.rank, reason: "connection closed".into() })
            }
        }
    }
}

/// Rank 0's side of forming the group: the connections of all others, by rank.
fn accept_all(
    own: &Hello,
    host: &str,
    port: u16,
    timeout: Duration,
    stop: &AtomicBool,
) -> Result<Vec<(usize, TcpStream)>, CollectiveError> {
    let (address, start) = (format!("{host}:{port}"), Instant::now());
    let listener = loop {
        match listen(host, port) {
            Ok(listener) => break listener,
            // Rank 0 of an earlier attempt may still be about to end.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && start.elapsed() < timeout => {
                wait(stop)?
            }
            Err(error) => return Err(CollectiveError::Listen { address, error }),
        }
    };
    let mut streams: Vec<Option<TcpStream>> = (1..own.world_size).map(|_| None).collect();
    while streams.iter().any(Option::is_none) {
        if timeout <= start.elapsed() {
            let missing = (1..own.world_size).filter(|rank| streams[rank - 1].is_none());
            let missing = missing.map(|rank| format!("rank {rank}")).collect::<Vec<_>>().join(", ");
            let (waited_s, world_size) = (timeout.as_secs(), own.world_size);
            return Err(CollectiveError::Missing { address, waited_s, missing, world_size });
        }
        match listener.accept() {
            Ok((stream, _)) => {
                // A connection that fails here was no rank, or a rank that will try again.
                if let Ok((rank, stream)) = welcome(own, stream, &streams) {
                    streams[rank - 1] = Some(stream);
                }
            }
            Err(_) => wait(stop)?,
        }
    }
    let mut ranks = Vec::new();
    for (index, stream) in streams.into_iter().flatten().enumerate() {
        let (rank, mut stream) = (index + 1, stream);
        write_frame(&mut stream, Kind::Start, &[])
            .map_err(|error| CollectiveError::Left { rank, reason: describe(&error) })?;
        ranks.push((rank, stream));
    }
    Ok(ranks)
}

fn wait(stop: &AtomicBool) -> Result<(), CollectiveError> {
    if stop.load(Ordering::Relaxed) {
        return Err(CollectiveError::Stopped);
    }
    std::thread::sleep(RETRY);
    Ok(())
}

/// Listens at the address that the others know, or everywhere where that is not an address of this machine.
fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let listener = match TcpListener::bind((host, port)) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => TcpListener::bind(("0.0.0.0", port)),
        result => result,
    }?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Reads who connects, and lets it in or tells it why not.
fn welcome(
    own: &Hello,
    mut stream: TcpStream,
    present: &[Option<TcpStream>],
) -> io::Result<(usize, TcpStream)> {
    prepare(&stream)?;
    let (kind, message) = read_frame(&mut stream, MAX_HELLO)?;
    let hello: Hello = match serde_json::from_slice(&message) {
        Ok(hello) if kind == Kind::Hello => hello,
        _ => return Err(io::Error::other("not a rank")),
    };
    let refusal = refusal(own, &hello).or_else(|| {
        let there = present[hello.rank - 1].is_some();
        there.then(|| (Kind::Refuse, format!("rank {} is already there", hello.rank)))
    });
    if let Some((kind, reason)) = refusal {
        write_frame(&mut stream, kind, reason.as_bytes())?;
        return Err(io::Error::other(reason));
    }
    Ok((hello.rank, stream))
}

/// Why `other` does not belong into the group of `own`, if so.
fn refusal(own: &Hello, other: &Hello) -> Option<(Kind, String)> {
    if other.protocol != own.protocol {
        return Some((Kind::Refuse, format!("it speaks {}, this group {}", other.protocol, own.protocol)));
    }
    if other.job != own.job {
        return Some((Kind::RefuseForNow, format!("it belongs to {}, this group to {}", other.job, own.job)));
    }
    if other.attempt != own.attempt {
        let kind = if own.attempt < other.attempt { Kind::RefuseForNow } else { Kind::Refuse };
        let (theirs, ours) = (other.attempt, own.attempt);
        return Some((
            kind,
            format!("it belongs to attempt {theirs} of {}, this group to attempt {ours}", own.job),
        ));
    }
    if other.world_size != own.world_size || other.rank == 0 || own.world_size <= other.rank {
        let who = format!("it is rank {} of {}", other.rank, other.world_size);
        return Some((Kind::Refuse, format!("{who}, this group has {} ranks", own.world_size)));
    }
    for ((name, ours), (_, theirs)) in own.agreement.iter().zip(&other.agreement) {
        if ours != theirs {
            return Some((Kind::Refuse, format!("its {name} is {theirs}, rank 0 has {ours}")));
        }
    }
    None
}

/// The other ranks' side of forming the group.
fn connect(
    own: &Hello,
    address: &str,
    timeout: Duration,
    stop: &AtomicBool,
) -> Result<TcpStream, CollectiveError> {
    let start = Instant::now();
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        let reason = match knock(own, address, left, stop) {
            Ok(Knock::Start(stream)) => return Ok(stream),
            Ok(Knock::Refused(reason)) => return Err(CollectiveError::Refused { rank: own.rank, reason }),
            Ok(Knock::Later(reason)) => reason,
            Err(_) if stop.load(Ordering::Relaxed) => return Err(CollectiveError::Stopped),
            Err(error) => describe(&error),
        };
        if timeout <= start.elapsed() {
            let (rank, waited_s, address) = (own.rank, timeout.as_secs(), address.to_string());
            return Err(CollectiveError::Unreachable { rank, address, waited_s, reason });
        }
        wait(stop)?;
    }
}

enum Knock {
    Start(TcpStream),
    Refused(String),
    Later(String),
}

fn knock(own: &Hello, address: &str, left: Duration, stop: &AtomicBool) -> io::Result<Knock> {
    let start = Instant::now();
    let target =
        address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&target, left.clamp(RETRY, HELLO_TIMEOUT))?;
    prepare(&stream)?;
    write_frame(&mut stream, Kind::Hello, &serde_json::to_vec(own).expect("plain fields"))?;
    // The answer comes once all ranks are there.
    stream.set_read_timeout(Some(RETRY))?;
    while let Err(error) = stream.peek(&mut [0]) {
        let timed_out = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        if !timed_out || left <= start.elapsed() || stop.load(Ordering::Relaxed) {
            return Err(error);
        }
    }
    stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
    let (kind, message) = read_frame(&mut stream, MAX_HELLO)?;
    let reason = String::from_utf8_lossy(&message).into_owned();
    Ok(match kind {
        Kind::Start => Knock::Start(stream),
        Kind::Refuse => Knock::Refused(reason),
        _ => Knock::Later(reason),
    })
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
    stream.set_write_timeout(Some(HELLO_TIMEOUT))
}

/// A message: one byte of kind, eight of length, then the content.
fn write_frame(stream: &mut TcpStream, kind: Kind, message: &[u8]) -> io::Result<()> {
    let mut header = [kind as u8; 9];
    header[1..].copy_from_slice(&(message.len() as u64).to_le_bytes());
    stream.write_all(&header)?;
    stream.write_all(message)
}

fn read_frame(stream: &mut TcpStream, max: u64) -> io::Result<(Kind, Vec<u8>)> {
    let mut header = [0; 9];
    stream.read_exact(&mut header)?;
    let kinds = [Kind::Hello, Kind::Start, Kind::Refuse, Kind::RefuseForNow, Kind::Data, Kind::Abort];
    let kind = kinds.into_iter().find(|&kind| kind as u8 == header[0]);
    let length = u64::from_le_bytes(header[1..].try_into().expect("eight bytes"));
    match kind {
        Some(kind) if length <= max => {
            let mut message = vec![0; length as usize];
            stream.read_exact(&mut message)?;
            Ok((kind, message))
        }
        _ => Err(io::Error::other("not a message of a rank")),
    }
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "connection closed".into()
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".into(),
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        _ => error.to_string(),
    }
}

/// Little-endian bytes of `values`.
pub fn floats_to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Reads `values.len()` little-endian floats.
///
/// # Errors
/// Where the lengths differ.
pub fn bytes_to_floats(bytes: &[u8], values: &mut [f32]) -> Result<(), String> {
    if bytes.len() != 4 * values.len() {
        return Err(format!("sent {} bytes instead of {}", bytes.len(), 4 * values.len()));
    }
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
        *value = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts { join: Duration::from_secs(10), peer: Duration::from_secs(10) };

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn contract(rank: usize, world_size: usize, port: u16) -> Contract {
        Contract { rank, world_size, master_port: port, ..Contract::default() }
    }

    fn model(name: &str) -> Agreement {
        vec![("--model".into(), name.into())]
    }

    fn join(contract: &Contract) -> Result<Group, CollectiveError> {
        Group::join(contract, &model("tiny"), TIMEOUTS, &AtomicBool::new(false))
    }

    #[test]
    fn messages_reach_all_ranks_in_order() {
        let port = free_port();
        let run = |rank: usize| {
            let mut group = join(&contract(rank, 3, port)).unwrap();
            let gathered = group.gather(&[rank as u8]).unwrap();
            let mut values = [rank as f32; 3];
            group.broadcast_floats(&mut values).unwrap();
            group.barrier().unwrap();
            (gathered, values)
        };
        std::thread::scope(|scope| {
            let others = [1, 2].map(|rank| scope.spawn(move || run(rank)));
            assert_eq!(run(0), (vec![vec![1], vec![2]], [0.0; 3]));
            for other in others {
                assert_eq!(other.join().unwrap(), (vec![], [0.0; 3]));
            }
        });
    }

    #[test]
    fn a_rank_that_leaves_is_named_to_all_others() {
        let port = free_port();
        std::thread::scope(|scope| {
            let leaver = scope.spawn(move || drop(join(&contract(2, 3, port)).unwrap()));
            let stayer = scope.spawn(move || {
                let mut group = join(&contract(1, 3, port)).unwrap();
                group.broadcast(Vec::new()).unwrap_err().to_string()
            });
            let mut group = join(&contract(0, 3, port)).unwrap();
            leaver.join().unwrap();
            let error = group.links[1].receive().unwrap_err().to_string();
            assert_eq!(error, "rank 2 left: connection closed");
            assert!(group.check().is_err());
            group.abort(&error);
            assert_eq!(stayer.join().unwrap(), error);
        });
    }

    #[test]
    fn a_rank_of_an_earlier_attempt_or_with_other_settings_is_refused() {
        let port = free_port();
        let attempt = |rank, attempt| Contract { attempt, ..contract(rank, 2, port) };
        std::thread::scope(|scope| {
            let root = scope.spawn(move || join(&attempt(0, 3)).map(|_| ()));
            let old = join(&attempt(1, 2)).err().unwrap().to_string();
            assert_eq!(
                old,
                "rank 0 refused rank 1: it belongs to attempt 2 of by-hand, this group to attempt 3"
            );
            let other = Group::join(&attempt(1, 3), &model("small"), TIMEOUTS, &AtomicBool::new(false));
            assert_eq!(
                other.err().unwrap().to_string(),
                "rank 0 refused rank 1: its --model is small, rank 0 has tiny"
            );
            // Neither of them took the place of the right one.
            let right = join(&attempt(1, 3)).unwrap();
            root.join().unwrap().unwrap();
            drop(right);
        });
    }

    #[test]
    fn noise_on_the_port_does_not_keep_the_group_from_forming() {
        let port = free_port();
        std::thread::scope(|scope| {
            let root = scope.spawn(move || join(&contract(0, 2, port)).map(|_| ()));
            let mut noise = loop {
                if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
                    break stream;
                }
                std::thread::yield_now();
            };
            noise.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let rank = join(&contract(1, 2, port)).unwrap();
            root.join().unwrap().unwrap();
            drop(rank);
        });
    }

    #[test]
    fn missing_ranks_are_named_when_the_time_is_over() {
        let port = free_port();
        let timeouts = Timeouts { join: Duration::from_millis(50), ..TIMEOUTS };
        let stop = AtomicBool::new(false);
        let error = |rank| {
            Group::join(&contract(rank, 3, port), &model("tiny"), timeouts, &stop).err().unwrap().to_string()
        };
        assert_eq!(error(0), format!("rank 0 waited 0 s at 127.0.0.1:{port} for rank 1, rank 2 of 3 ranks"));
        assert_eq!(error(1), format!("rank 1 waited 0 s for rank 0 at 127.0.0.1:{port}: connection refused"));
    }

    #[test]
    fn a_signal_ends_the_wait_for_the_others() {
        let stop = AtomicBool::new(true);
        let error = Group::join(&contract(0, 2, free_port()), &model("tiny"), TIMEOUTS, &stop).err().unwrap();
        assert!(matches!(error, CollectiveError::Stopped), "{error}");
    }
}
