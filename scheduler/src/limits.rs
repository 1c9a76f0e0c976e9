//! What one client may take of the scheduler at a time, and all of them together.
//!
//! A pool has one token, so what tells clients apart is where they come from: a client is an IPv4 address, or a `/64` of
//! IPv6. Calls beyond its rate wait for their turn; what would have to wait too long is refused, with the time to try again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::metrics::Meters;

/// For so long a client may have saved up turns that it did not use.
const SAVED: Duration = Duration::from_millis(250);
/// For so long it may owe such that it did use.
const OWED: Duration = Duration::from_secs(10);
/// A call whose turn comes later than that is refused.
const LONGEST_TURN: Duration = Duration::from_secs(1);
/// Time of the deciding thread that the calls of one client may use: a part of so many.
const PART_OF_THREAD: f64 = 4.0;
/// Bytes of requests that arrive from one client at a time, and from all.
const CLIENT_BYTES: usize = 32 << 20;
const ALL_BYTES: usize = 256 << 20;
/// Questions and commands of one client that wait for the deciding thread at a time; others wait behind them, so that
/// nobody else does.
const QUESTIONS: usize = 4;
const COMMANDS: usize = 64;
/// Connections of one client that begin at a time; others wait.
const BEGINNING: usize = 64;
/// Clients that are remembered without a look at who may be forgotten.
const REMEMBERED: usize = 1024;

/// How much clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of all clients and agents.
    pub connections: usize,
    /// Connections of one client, the agents at its address among them.
    pub client_connections: usize,
    /// Calls of one client under way, streams among them.
    pub client_calls: usize,
    /// Calls that one client may begin in a second; 0: as many as it likes.
    pub client_rate: u32,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reached {
    /// Of connections in all.
    #[error("there are {0} connections, as many as this scheduler takes (--connections)")]
    Connections(usize),
    /// Of connections of one client.
    #[error("{client} has {most} connections, as many as one address may have (--client-connections)")]
    #[allow(missing_docs)]
    ClientConnections { client: IpAddr, most: usize },
    /// Of calls under way.
    #[error("{client} has {most} calls under way, as many as one address may have (--client-calls)")]
    #[allow(missing_docs)]
    Calls { client: IpAddr, most: usize },
    /// Of calls in a second.
    #[error(
        "{client} has used up its {rate} calls a second, or its part of the deciding thread (--client-rate)"
    )]
    #[allow(missing_docs)]
    Rate { client: IpAddr, rate: u32, again: Duration },
    /// Of bytes of requests that are arriving.
    #[error(
        "requests that are arriving from {client} hold {held} bytes, and those of all clients {all}: no more at a time"
    )]
    #[allow(missing_docs)]
    Bytes { client: IpAddr, held: usize, all: usize },
}

impl Reached {
    /// After how long to try again.
    pub fn again(&self) -> Duration {
        match self {
            Reached::Rate { again, .. } => *again,
            _ => Duration::from_secs(1),
        }
    }

    /// The value of a label.
    pub fn word(&self) -> &'static str {
        match self {
            Reached::Connections(_) => "connections",
            Reached::ClientConnections { .. } => "client-connections",
            Reached::Calls { .. } => "client-calls",
            Reached::Rate { .. } => "client-rate",
            Reached::Bytes { .. } => "bytes",
        }
    }
}

/// All clients.
pub struct Clients {
    limits: Limits,
    meters: Meters,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    connections: usize,
    bytes: usize,
    clients: BTreeMap<IpAddr, Client>,
}

struct Client {
    connections: usize,
    calls: usize,
    bytes: usize,
    room: Arc<Room>,
    /// Calls that it may begin; below zero: that it began before their turn.
    turns: f64,
    counted: Instant,
}

/// What of one client may happen at a time.
struct Room {
    beginning: Arc<Semaphore>,
    questions: Semaphore,
    commands: Semaphore,
}

impl Client {
    fn new(limits: &Limits, now: Instant) -> Client {
        let of = |most| Semaphore::new(if limits.client_rate == 0 { Semaphore::MAX_PERMITS } else { most });
        let beginning = Arc::new(Semaphore::new(BEGINNING));
        let room = Arc::new(Room { beginning, questions: of(QUESTIONS), commands: of(COMMANDS) });
        let turns = most_turns(limits);
        Client { connections: 0, calls: 0, bytes: 0, room, turns, counted: now }
    }

    /// Brings the turns up to date.
    fn count(&mut self, limits: &Limits, now: Instant) {
        let since = now.saturating_duration_since(self.counted).as_secs_f64();
        self.turns = (self.turns + since * f64::from(limits.client_rate)).min(most_turns(limits));
        self.counted = now;
    }
}

fn most_turns(limits: &Limits) -> f64 {
    f64::from(limits.client_rate) * SAVED.as_secs_f64()
}

impl Clients {
    /// Nobody yet.
    pub fn new(limits: Limits, meters: Meters) -> Arc<Clients> {
        Arc::new(Clients { limits, meters, table: Mutex::default() })
    }

    /// Gives a place to a connection.
    ///
    /// # Errors
    /// There is none left, in all or for its client.
    pub fn connect(self: &Arc<Self>, from: IpAddr) -> Result<Place, Reached> {
        let client = client(from);
        let placed = self.place(client);
        if let Err(reached) = &placed {
            self.meters.on_refusal(reached.word());
        }
        let room = placed?;
        Ok(Place { clients: self.clone(), client, room, known: AtomicBool::new(false) })
    }

    fn place(&self, client: IpAddr) -> Result<Arc<Room>, Reached> {
        let (limits, now, mut table) = (&self.limits, Instant::now(), self.table());
        if limits.connections <= table.connections {
            return Err(Reached::Connections(limits.connections));
        }
        if REMEMBERED < table.clients.len() {
            table.clients.retain(|_, it| {
                it.count(limits, now);
                0 < it.connections || it.turns < most_turns(limits)
            });
        }
        let it = table.clients.entry(client).or_insert_with(|| Client::new(limits, now));
        if limits.client_connections <= it.connections {
            return Err(Reached::ClientConnections { client, most: limits.client_connections });
        }
        it.connections += 1;
        let room = it.room.clone();
        table.connections += 1;
        self.meters.set_connections(table.connections);
        Ok(room)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder panics")
    }
}

/// The client at an address.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        v4 => v4,
    }
}

/// The place of one connection, for as long as it lives.
pub struct Place {
    clients: Arc<Clients>,
    client: IpAddr,
    room: Arc<Room>,
    known: AtomicBool,
}

impl Place {
    /// Waits until this connection may begin.
    pub async fn begin(&self) -> impl Drop + use<> {
        self.room.beginning.clone().acquire_owned().await.expect("it is never closed")
    }

    /// Where it comes from.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// A call came with the token: the connection may stay.
    pub fn know(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// Whether that was so.
    pub fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// Begins a call, and says after how long it is its turn.
    ///
    /// # Errors
    /// Its client has too many under way, or began too many.
    pub fn call(self: &Arc<Self>) -> Result<(Call, Duration), Reached> {
        let (limits, client) = (&self.clients.limits, self.client);
        let begun = {
            let mut table = self.clients.table();
            let it = table.clients.get_mut(&client).expect("it has a connection");
            it.count(limits, Instant::now());
            let wait = match limits.client_rate {
                0 => Duration::ZERO,
                rate => Duration::from_secs_f64((1.0 - it.turns).max(0.0) / f64::from(rate)),
            };
            if limits.client_calls <= it.calls {
                Err(Reached::Calls { client, most: limits.client_calls })
            } else if LONGEST_TURN < wait {
                Err(Reached::Rate { client, rate: limits.client_rate, again: wait })
            } else {
                it.calls += 1;
                it.turns -= 1.0;
                Ok(wait)
            }
        };
        match begun {
            Ok(wait) => {
                Ok((Call { place: self.clone(), bytes: Mutex::new(0), as_of: Mutex::default() }, wait))
            }
            Err(reached) => {
                self.clients.meters.on_refusal(reached.word());
                Err(reached)
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.clients.table();
        table.connections -= 1;
        self.clients.meters.set_connections(table.connections);
        if let Some(it) = table.clients.get_mut(&self.client) {
            it.connections -= 1;
        }
    }
}

/// A call that is under way.
pub struct Call {
    place: Arc<Place>,
    /// Of its request, while it arrives.
    bytes: Mutex<usize>,
    /// The oldest moment of which its answer is; `None`: it is of now.
    as_of: Mutex<Option<Instant>>,
}

impl Call {
    /// Waits until the deciding thread may be asked.
    pub async fn question(&self) -> impl Drop {
        self.place.room.questions.acquire().await.expect("it is never closed")
    }

    /// Waits until the deciding thread may be told to do something.
    pub async fn command(&self) -> impl Drop {
        self.place.room.commands.acquire().await.expect("it is never closed")
    }

    /// More of its request has arrived.
    ///
    /// # Errors
    /// The requests of its client, or of all, hold too much.
    pub fn hold(&self, more: usize) -> Result<(), Reached> {
        let (clients, client) = (&self.place.clients, self.place.client);
        let mut table = clients.table();
        let all = table.bytes + more;
        let it = table.clients.get_mut(&client).expect("it has a connection");
        let held = it.bytes + more;
        if CLIENT_BYTES < held || ALL_BYTES < all {
            clients.meters.on_refusal("bytes");
            return Err(Reached::Bytes { client, held, all });
        }
        it.bytes = held;
        table.bytes = all;
        *self.bytes.lock().expect("no holder panics") += more;
        Ok(())
    }

    /// The request was read.
    pub fn release(&self) {
        let bytes = std::mem::take(&mut *self.bytes.lock().expect("no holder panics"));
        let mut table = self.place.clients.table();
        table.bytes -= bytes;
        if let Some(it) = table.clients.get_mut(&self.place.client) {
            it.bytes -= bytes;
        }
    }

    /// Part of its answer is of this moment, where it is not of now.
    pub fn answer_as_of(&self, moment: Option<Instant>) {
        if let Some(moment) = moment {
            let mut oldest = self.as_of.lock().expect("no holder panics");
            *oldest = Some(oldest.map_or(moment, |oldest| oldest.min(moment)));
        }
    }

    /// How old its answer is; `None`: it is of now.
    pub fn age(&self) -> Option<Duration> {
        self.as_of.lock().expect("no holder panics").map(|moment| moment.elapsed())
    }

    /// It has held up the deciding thread for so long, which counts as the calls that could have been decided.
    pub fn charge(&self, time: Duration) {
        let limits = &self.place.clients.limits;
        let rate = f64::from(limits.client_rate);
        let mut table = self.place.clients.table();
        if let Some(it) = table.clients.get_mut(&self.place.client) {
            let owes = time.as_secs_f64() * rate * PART_OF_THREAD;
            it.turns = (it.turns - owes).max(-rate * OWED.as_secs_f64());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.release();
        if let Some(it) = self.place.clients.table().clients.get_mut(&self.place.client) {
            it.calls -= 1;
        }
    }
}

tokio::task_local! {
    /// The call on whose behalf something is asked of the deciding thread.
    pub static CALL: Arc<Call>;
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    fn clients(limits: Limits) -> Arc<Clients> {
        Clients::new(limits, Meters::new(&Registry::new()))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    const LIMITS: Limits = Limits { connections: 3, client_connections: 2, client_calls: 2, client_rate: 0 };

    #[test]
    fn connections_are_limited_in_all_and_for_each_client() {
        let clients = clients(LIMITS);
        let a = address("10.0.0.1");
        let first = clients.connect(a).expect("a place");
        let _second = clients.connect(a).expect("a place");
        let refused = clients.connect(a).err();
        assert_eq!(refused, Some(Reached::ClientConnections { client: a, most: 2 }));
        let _third = clients.connect(address("10.0.0.2")).expect("a place of another");
        assert_eq!(clients.connect(address("10.0.0.3")).err(), Some(Reached::Connections(3)));
        drop(first);
        clients.connect(a).expect("the place is free again");
    }

    #[test]
    fn a_client_is_a_network_where_each_host_has_many_addresses() {
        let same = ["2001:db8::1", "2001:db8::ffff:1"].map(address).map(client);
        assert_eq!(same, [address("2001:db8::"); 2]);
        assert_ne!(client(address("2001:db8:0:1::1")), same[0]);
        assert_eq!(client(address("::ffff:10.0.0.1")), address("10.0.0.1"));
    }

    #[test]
    fn calls_are_limited_and_counted_until_they_end() {
        let place = Arc::new(clients(LIMITS).connect(address("10.0.0.1")).expect("a place"));
        let first = place.call().expect("a call");
        let _second = place.call().expect("a call");
        assert!(matches!(place.call(), Err(Reached::Calls { most: 2, .. })));
        drop(first);
        place.call().expect("the first has ended");
    }

    #[test]
    fn calls_beyond_the_rate_wait_and_then_are_refused_and_questions_count_by_their_time() {
        let limits = Limits { client_calls: 1000, client_rate: 40, ..LIMITS };
        let clients = clients(limits);
        let place = Arc::new(clients.connect(address("10.0.0.1")).expect("a place"));
        let waits: Vec<_> = (0..60).map(|_| place.call().map(|(_, wait)| wait)).collect();
        assert!(waits[..10].iter().all(|wait| *wait == Ok(Duration::ZERO)), "{waits:?}");
        let most = waits.iter().flatten().max().expect("calls");
        assert!((800..=1000).contains(&most.as_millis()), "{most:?}");
        let Err(Reached::Rate { again, .. }) = waits[59] else { panic!("{waits:?}") };
        assert!(LONGEST_TURN < again && again < Duration::from_secs(2), "{again:?}");
        let other = Arc::new(clients.connect(address("10.0.0.2")).expect("a place"));
        let (call, wait) = other.call().expect("a call of another");
        assert_eq!(wait, Duration::ZERO);
        call.charge(Duration::from_millis(1000));
        assert!(matches!(other.call(), Err(Reached::Rate { .. })), "a second is worth four of calls");
    }

    #[test]
    fn bytes_of_requests_are_limited_until_they_are_read() {
        let clients = clients(Limits { connections: 100, client_connections: 100, ..LIMITS });
        let place = |at: usize| clients.connect(address(&format!("10.0.0.{at}"))).map(Arc::new);
        let places: Vec<_> = (0..9).map(|at| place(at).expect("a place")).collect();
        let calls: Vec<_> = places.iter().map(|place| place.call().expect("a call").0).collect();
        calls[0].hold(CLIENT_BYTES).expect("room");
        assert!(matches!(calls[0].hold(1), Err(Reached::Bytes { .. })));
        for call in &calls[1..8] {
            call.hold(CLIENT_BYTES).expect("room");
        }
        assert!(matches!(calls[8].hold(1), Err(Reached::Bytes { held: 1, .. })), "all is full");
        calls[0].release();
        calls[8].hold(1).expect("room");
    }
}
