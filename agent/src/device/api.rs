//! What a vendor's library offers, as data: which functions to call, and where in what they write the answer stands.

use std::path::PathBuf;

use aquifer_core::Isolation;

use super::library::{Library, Place, Returned, Uncalled};
use super::recurring::Often;
use super::roots::Roots;

/// One argument of a call. A word of the machine each: every one is an integer or a pointer.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// What the initialisation gave.
    Library,
    /// Number of the card, from 0.
    Index,
    /// The card: its handle, its number where the library has no handles, or the first half of its address.
    Card,
    /// The second half of its address.
    Chip,
    /// The part of the card that knows its memory.
    Memory,
    /// The other card of a pair.
    OtherCard,
    /// The second half of its address.
    OtherChip,
    /// The set of events.
    Events,
    /// A number.
    Is(i64),
    /// Where to write: so many bytes into the answer.
    Out(usize),
    /// How many bytes there are to write to.
    Size,
}

/// Where the answer stands in what a call wrote or returned.
#[derive(Clone, Copy, Debug)]
pub enum Take {
    /// A number of so many bytes, times a unit.
    Number { at: usize, bytes: usize, unit: u64 },
    /// As `Number`, of four bytes, if those at `status` are 0.
    Checked { at: usize, status: usize },
    /// A text that ends with a zero, or with the answer.
    Text { at: usize },
    /// So many words of four bytes, one after the other in hexadecimal digits.
    Hex { words: usize },
    /// A number of eight bytes in hexadecimal digits.
    Hex64,
    /// A bus address of four numbers: domain, bus, device and function; a function that is not told is 0.
    Place { domain: usize, bus: usize, device: usize, function: Option<usize> },
    /// A bus address in one number: domain << 32 | bus << 8 | device << 3 | function.
    Bdf,
    /// Nothing.
    Done,
    /// What the function returns is the number, and no status.
    Returned,
    /// What the function returns is the text.
    ReturnedText,
}

/// A call and how to read its answer.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub symbol: &'static str,
    pub args: &'static [Arg],
    /// Bytes that the function may write.
    pub size: usize,
    /// Written to the start of the answer before: versions of structs, numbers of fields.
    pub stamp: u32,
    pub take: Take,
}

/// A number of four bytes at the start of the answer.
pub const U32: Take = Take::Number { at: 0, bytes: 4, unit: 1 };
/// A number of eight bytes at the start of the answer.
pub const U64: Take = Take::Number { at: 0, bytes: 8, unit: 1 };

/// A call without a stamp.
pub const fn probe(symbol: &'static str, args: &'static [Arg], size: usize, take: Take) -> Probe {
    Probe { symbol, args, size, stamp: 0, take }
}

impl Probe {
    /// The same with a stamp.
    pub const fn stamped(self, stamp: u32) -> Probe {
        Probe { stamp, ..self }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// People should know; it takes work.
    Note,
    /// It may be bad: what runs on it runs on, and nothing new for a while.
    Suspect,
    /// It is to be empty, and then reset.
    Drain,
    /// It must be reset.
    Reset,
    /// Its machine must be restarted.
    Reboot,
    /// It takes no work.
    Lost,
}

/// What an answer means.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// One of these values; others are well.
    Values(&'static [(u64, Level, &'static str)]),
    /// Any of these bits.
    Bits(&'static [(u64, Level, &'static str)]),
    /// As `Values`, unless a check before has said as much, or what is to be done.
    Else(&'static [(u64, Level, &'static str)]),
    /// Anything but 0.
    Not0(Level, &'static str),
    /// The value is how many numbers of four bytes there are, `most` at most: the first at `at`, the others `stride` bytes
    /// from one to the next.
    /// `often`: what is made of one that comes again, or stays.
    Each {
        at: usize,
        stride: usize,
        most: usize,
        means: fn(u64) -> Option<(Level, String)>,
        often: Option<fn(u64) -> Option<Often>>,
    },
}

/// A question about a card's health.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    pub probe: Probe,
    pub rule: Rule,
}

/// Events that a library keeps until it is asked.
#[derive(Clone, Copy, Debug)]
pub struct Events {
    pub create: Probe,
    pub register: Probe,
    /// Does not wait. Fails if there is none.
    pub next: Probe,
    /// Where the handle of the card stands, which is that of `Arg::Card`.
    pub card_at: usize,
    /// What the numbers mean; `None`: the fault of a program, not of the card.
    pub means: fn(u64) -> Option<(Level, String)>,
    /// Where this has an answer, the driver itself says whether a card may be used, and events are only told.
    pub settled_by: Probe,
}

/// Cards that are divided, or can be.
#[derive(Clone, Copy, Debug)]
pub struct Slices {
    /// Whether a card is: whether an administrator has set it up for parts.
    pub is_divided: fn(&Opened, &Context) -> bool,
    /// How well parts that are made on demand are kept from each other.
    pub level: Isolation,
    /// Parts that there are, where the library lists them as devices.
    pub listed: Option<Listed>,
}

/// How the parts of a card are listed.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    pub most: Probe,
    /// Handle of a part of `Arg::Card`; `Arg::Index` is its number.
    pub handle: Probe,
    /// Device nodes of a part beside its card's, whose number is given.
    pub nodes: fn(&Opened, &Context, u32, &Roots) -> Vec<PathBuf>,
}

/// Whether two cards are linked directly.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub probe: Probe,
    pub is_linked: fn(u64) -> bool,
}

/// Reads the addresses of cards.
pub type List = fn(&Opened) -> Result<Vec<[usize; 2]>, CallError>;

/// One generation of a vendor's library. Where several calls are listed, the first that the library has and that
/// succeeds counts.
#[derive(Clone, Copy, Debug)]
pub struct Api {
    pub init: &'static [Probe],
    pub count: &'static [Probe],
    /// Addresses of cards, where they are not the numbers up to `count`.
    pub list: Option<List>,
    pub handle: &'static [Probe],
    pub memory_part: &'static [Probe],
    pub uuid: &'static [Probe],
    /// In front of what `uuid` gives.
    pub uuid_prefix: &'static str,
    pub model: &'static [Probe],
    pub place: &'static [Probe],
    /// Bytes of memory.
    pub memory: &'static [Probe],
    /// Version of the driver, where the worker has kernels for the cards.
    pub driver: &'static [Probe],
    /// How many programs use the card, where the worker has kernels for it. One of which that cannot be told is taken to be
    /// used.
    pub users: &'static [Probe],
    /// The number by which the vendor's runtime knows the card; without, that of the card.
    pub logical: &'static [Probe],
    /// The number of its device node; without, the logical one.
    pub physical: &'static [Probe],
    /// The logical number may be that of another card's device node: a card without its own is at fault.
    pub needs_physical: bool,
    pub checks: &'static [Check],
    pub events: Option<Events>,
    pub slices: Option<Slices>,
    pub link: Option<Link>,
    /// Name of the domain of direct links that a card shares with cards of other nodes, if it is in one.
    pub super_pod: Option<fn(&Opened, &Context) -> Option<String>>,
    /// Statuses that say that a card is gone.
    pub lost: &'static [i32],
    /// Text of a status.
    pub explain: Option<&'static str>,
    /// Handles are made by asking for them, and asked for once.
    pub keeps_handles: bool,
}

/// A library of which nothing is known.
pub const NOTHING: Api = Api {
    init: &[],
    count: &[],
    list: None,
    handle: &[],
    memory_part: &[],
    uuid: &[],
    uuid_prefix: "",
    model: &[],
    place: &[],
    memory: &[],
    driver: &[],
    users: &[],
    logical: &[],
    physical: &[],
    needs_physical: false,
    checks: &[],
    events: None,
    slices: None,
    link: None,
    super_pod: None,
    lost: &[],
    explain: None,
    keeps_handles: false,
};

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The library has no such function.
    Missing(&'static str),
    /// The function failed with this status.
    Status { symbol: &'static str, status: i32, text: String },
    /// The answer makes no sense.
    Nonsense(&'static str),
    /// The library crashed or hung, in this call or an earlier one: a whole sentence.
    Gone(String),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::Missing(symbol) => write!(f, "the library has no {symbol}"),
            CallError::Status { symbol, status, text } if text.is_empty() => {
                write!(f, "{symbol} says {status}")
            }
            CallError::Status { symbol, status, text } => write!(f, "{symbol} says {status}: {text}"),
            CallError::Nonsense(symbol) => write!(f, "the answer of {symbol} makes no sense"),
            CallError::Gone(why) => f.write_str(why),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Number(u64),
    Text(String),
}

impl Value {
    pub fn number(self) -> u64 {
        match self {
            Value::Number(number) => number,
            Value::Text(_) => 0,
        }
    }

    pub fn text(self) -> String {
        match self {
            Value::Number(number) => number.to_string(),
            Value::Text(text) => text,
        }
    }
}

/// What the arguments of a call stand for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    pub index: usize,
    /// Handle or address.
    pub card: [usize; 2],
    pub memory: usize,
    pub other: [usize; 2],
}

/// A library that was initialised.
pub struct Opened {
    pub api: &'static Api,
    pub library: Library,
    pub handle: usize,
    pub events: usize,
}

impl Opened {
    /// Asks, and gives the bytes of the answer besides its value.
    pub fn ask_raw(&self, probe: &Probe, about: &Context) -> Result<(Value, Vec<u8>), CallError> {
        let stamp = probe.stamp.to_ne_bytes();
        let start = if probe.stamp == 0 { &[][..] } else { &stamp[..] };
        let word = |arg: &Arg| {
            Place::Is(match *arg {
                Arg::Library => self.handle as u64,
                Arg::Index => about.index as u64,
                Arg::Card => about.card[0] as u64,
                Arg::Chip => about.card[1] as u64,
                Arg::Memory => about.memory as u64,
                Arg::OtherCard => about.other[0] as u64,
                Arg::OtherChip => about.other[1] as u64,
                Arg::Events => self.events as u64,
                Arg::Is(number) => number as u64,
                Arg::Out(at) => return Place::At(at as u32),
                Arg::Size => probe.size as u64,
            })
        };
        let words: Vec<Place> = probe.args.iter().map(word).collect();
        let is_text = matches!(probe.take, Take::ReturnedText);
        let returned = self.library.call(probe.symbol, &words, start, probe.size, is_text);
        let Returned { value, text, memory: bytes } = returned.map_err(|uncalled| match uncalled {
            Uncalled::Missing => CallError::Missing(probe.symbol),
            Uncalled::Gone(why) => CallError::Gone(why),
        })?;
        match probe.take {
            Take::Returned => return Ok((Value::Number(u64::from(value as u32)), Vec::new())),
            Take::ReturnedText => return Ok((Value::Text(text), Vec::new())),
            _ => (),
        }
        match value as i32 {
            0 => take(probe, &bytes).ok_or(CallError::Nonsense(probe.symbol)).map(|value| (value, bytes)),
            status => Err(self.failed(probe.symbol, status)),
        }
    }

    /// Asks.
    pub fn ask(&self, probe: &Probe, about: &Context) -> Result<Value, CallError> {
        self.ask_raw(probe, about).map(|(value, _)| value)
    }

    /// Asks one after the other until there is an answer. That a card is gone is one, and that the library is.
    pub fn first(&self, probes: &[Probe], about: &Context) -> Result<Value, CallError> {
        let mut failed = None;
        for probe in probes {
            match self.ask(probe, about) {
                Err(error) if self.is_lost(&error) => return Err(error),
                // An old function's failure says more than that a new one is missing.
                Err(error) => {
                    failed = Some(failed.filter(|_| matches!(error, CallError::Missing(_))).unwrap_or(error))
                }
                Ok(Value::Text(text)) if text.is_empty() => {
                    _ = failed.get_or_insert(CallError::Nonsense(probe.symbol))
                }
                answer => return answer,
            }
        }
        Err(failed.unwrap_or(CallError::Missing("such function")))
    }

    /// Whether this says that the card is gone, or nothing can be asked any more.
    pub fn is_lost(&self, error: &CallError) -> bool {
        match error {
            CallError::Status { status, .. } => self.api.lost.contains(status),
            CallError::Gone(_) => true,
            CallError::Missing(_) | CallError::Nonsense(_) => false,
        }
    }

    fn failed(&self, symbol: &'static str, status: i32) -> CallError {
        let said = |explain| self.library.call(explain, &[Place::Is(status as u64)], &[], 0, true).ok();
        let text = self.api.explain.and_then(said).map(|returned| returned.text).unwrap_or_default();
        CallError::Status { symbol, status, text }
    }
}

/// A text that ends with a zero byte, or where its room does.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// Reads the answer out of what was written; `None` if it is no bus address or no text.
pub fn take(probe: &Probe, bytes: &[u8]) -> Option<Value> {
    let number = |at: usize, size: usize| {
        let mut word = [0; 8];
        // The low bytes of a number: machines with the high bytes first have none of these cards.
        word[..size].copy_from_slice(bytes.get(at..at + size)?);
        Some(u64::from_le_bytes(word))
    };
    Some(match probe.take {
        Take::Number { at, bytes, unit } => Value::Number(number(at, bytes)?.checked_mul(unit)?),
        Take::Checked { at, status } => Value::Number((number(status, 4)? == 0).then_some(number(at, 4)?)?),
        Take::Text { at } => Value::Text(text(bytes.get(at..)?).trim().to_string()),
        Take::Hex { words } => {
            let words: Option<Vec<u64>> = (0..words).map(|word| number(4 * word, 4)).collect();
            Value::Text(words?.iter().map(|word| format!("{word:08x}")).collect())
        }
        Take::Hex64 => Value::Text(format!("{:x}", number(0, 8)?)),
        Take::Place { domain, bus, device, function } => {
            let function = function.map_or(Some(0), |at| number(at, 4))?;
            Value::Text(place_text(number(domain, 4)?, number(bus, 4)?, number(device, 4)?, function))
        }
        Take::Bdf => {
            let bdf = number(0, 8)?;
            Value::Text(place_text(bdf >> 32, bdf >> 8 & 0xff, bdf >> 3 & 0x1f, bdf & 7))
        }
        Take::Done => Value::Number(0),
        Take::Returned | Take::ReturnedText => return None,
    })
}

/// Asks for a list of numbers of four bytes, whose length and start stand in the answer.
pub fn take_list(
    opened: &Opened,
    probe: &Probe,
    length_at: usize,
    at: usize,
) -> Result<Vec<usize>, CallError> {
    let (_, bytes) = opened.ask_raw(probe, &Context::default())?;
    let number = |at: usize| {
        let word = bytes.get(at..at + 4).ok_or(CallError::Nonsense(probe.symbol))?;
        Ok(u32::from_le_bytes(word.try_into().expect("four bytes")) as usize)
    };
    (0..number(length_at)?).map(|item| number(at + 4 * item)).collect()
}

/// A bus address as sysfs has it.
pub fn place_text(domain: u64, bus: u64, device: u64, function: u64) -> String {
    format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
}
