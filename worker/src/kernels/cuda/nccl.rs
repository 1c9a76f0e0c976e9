//! What two cards send each other without the memory of their hosts, through NVIDIA's NCCL, which is found when the program runs.
//!
//! It carries and adds nothing up: the order in which its collectives add depends on how many take part. Each communicator has two
//! ranks, the ends of one connection, so that whoever is lost takes nobody else's with it. No call waits: what was begun is asked after.

use super::DeviceError;
use super::card::{Card, Moment};
use super::load::done;
use super::memory::Buffer;
use super::programs::Kind;
use super::resident::{floats_of, summand};
use crate::values::{OnDevice, Values};
use cudarc::driver::sys as driver;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Range;
use std::ptr;
use std::sync::Arc;

/// The file, as the runtime packages have it, then as those for developers do.
const FILES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// The oldest version: with it came communicators that never block.
const LEAST: c_int = 21_400;
/// What is left free of a card's memory when others' sums are taken into it: a sixteenth, for what is yet to be computed.
const LEFT: usize = 16;

/// `ncclResult_t`; later versions have more of them.
type Status = c_int;
const SUCCESS: Status = 0;
const IN_PROGRESS: Status = 7;
/// `ncclFloat32`.
const FLOAT: c_int = 7;

/// What both ends of a communicator have to know.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Id([u8; 128]);

/// `ncclConfig_t` of version 2.14, which later ones still read.
///
/// Source: nccl.h 2.14, `ncclConfig_v21400` and `NCCL_CONFIG_INITIALIZER`.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    /// A field of later versions is in its place, so it says that nothing is wanted of it (`NCCL_CONFIG_UNDEF_INT`).
    unset: c_int,
}

type Communicator = *mut c_void;

/// The functions that are called.
struct Calls {
    get_unique_id: unsafe extern "C" fn(*mut Id) -> Status,
    init_rank: unsafe extern "C" fn(*mut Communicator, c_int, Id, c_int, *mut Config) -> Status,
    get_async_error: unsafe extern "C" fn(Communicator, *mut Status) -> Status,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Communicator, driver::CUstream) -> Status,
    receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Communicator, driver::CUstream) -> Status,
    abort: unsafe extern "C" fn(Communicator) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
}

/// The library, for one card.
pub struct Nccl {
    calls: Calls,
    card: Arc<Card>,
    kind: Kind,
    version: c_int,
    /// The machine, as long as it runs, and where the card is on it.
    place: String,
}

fn say<T>(sentence: String) -> Result<T, DeviceError> {
    Err(DeviceError(sentence))
}

/// Such as `2.27.3`.
fn name(version: c_int) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

impl Nccl {
    /// Finds it.
    ///
    /// # Errors
    /// In one sentence: it is not there, too old, or lacks a function.
    pub(super) fn open(card: Arc<Card>, kind: Kind) -> Result<Nccl, DeviceError> {
        // SAFETY: opening it runs nothing but its own start.
        #[allow(unsafe_code)]
        let found = FILES.iter().find_map(|file| unsafe { Library::new(file) }.ok());
        let Some(library) = found else {
            return say(format!("no NCCL: {} was not found", FILES[0]));
        };
        // Threads of it may run until the process ends.
        let library: &'static Library = Box::leak(Box::new(library));
        let get_version: unsafe extern "C" fn(*mut c_int) -> Status = function(library, "ncclGetVersion")?;
        let mut version = 0;
        // SAFETY: the place lives through the call.
        #[allow(unsafe_code)]
        let asked = unsafe { get_version(&mut version) };
        if asked != SUCCESS || version < LEAST {
            let (found, least) = (name(version), name(LEAST));
            return say(format!("NCCL {found} is too old: it must be {least} at least"));
        }
        let calls = Calls {
            get_unique_id: function(library, "ncclGetUniqueId")?,
            init_rank: function(library, "ncclCommInitRankConfig")?,
            get_async_error: function(library, "ncclCommGetAsyncError")?,
            send: function(library, "ncclSend")?,
            receive: function(library, "ncclRecv")?,
            abort: function(library, "ncclCommAbort")?,
            error_string: function(library, "ncclGetErrorString")?,
        };
        let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let place = format!("{}/{}", machine.trim(), card.found.bus);
        Ok(Nccl { calls, card, kind, version, place })
    }

    /// Such as `NCCL 2.27.3`.
    pub fn name(&self) -> String {
        format!("NCCL {}", name(self.version))
    }

    /// What another member is told, to know whether it can be joined.
    pub fn greeting(&self) -> String {
        format!("{} {}", self.name(), self.place)
    }

    /// Why no communicator can be made with the card whose greeting this is, if so.
    pub fn refusal(&self, greeting: &str) -> Option<String> {
        let (theirs, place) = greeting.rsplit_once(' ').unwrap_or((greeting, ""));
        let ours = self.name();
        if theirs != ours {
            return Some(format!("it has {theirs}, this rank {ours}"));
        }
        (place == self.place).then(|| "both ranks are on one card".into())
    }

    fn check(&self, call: &str, status: Status) -> Result<(), DeviceError> {
        if matches!(status, SUCCESS | IN_PROGRESS) {
            return Ok(());
        }
        // SAFETY: it gives a constant text that ends with a zero for any status.
        #[allow(unsafe_code)]
        let reason = unsafe { CStr::from_ptr((self.calls.error_string)(status)) }.to_string_lossy();
        say(format!("{call}: {reason}"))
    }

    /// A new identity. This end has to be the first rank.
    ///
    /// # Errors
    /// Such as no network interface.
    pub fn new_id(&self) -> Result<Id, DeviceError> {
        let mut id = Id([0; 128]);
        // SAFETY: the place lives through the call, and any bytes are an identity.
        #[allow(unsafe_code)]
        let made = unsafe { (self.calls.get_unique_id)(&mut id) };
        self.check("ncclGetUniqueId", made).map(|()| id)
    }

    /// Begins to make a communicator of two; it stands once it [is ready](Pair::is_ready).
    ///
    /// * `rank`: 0 of the end that has made the identity, 1 of the other one.
    ///
    /// # Errors
    /// It cannot begin.
    pub fn join(self: &Arc<Nccl>, id: Id, rank: c_int) -> Result<Pair, DeviceError> {
        const NON_BLOCKING: u32 = driver::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        self.card.enter()?;
        let (mut stream, mut communicator) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the place lives through the call.
        #[allow(unsafe_code)]
        done("cuStreamCreate", unsafe { driver::cuStreamCreate(&mut stream, NON_BLOCKING) })?;
        let (magic, version) = (0xcafe_beef, LEAST as u32);
        let mut config = Config { size: size_of::<Config>(), magic, version, blocking: 0, unset: c_int::MIN };
        // SAFETY: the places live through the call, which copies the configuration.
        #[allow(unsafe_code)]
        let begun = unsafe { (self.calls.init_rank)(&mut communicator, 2, id, rank, &mut config) };
        let pair = Pair { nccl: Arc::clone(self), communicator, stream, peer: 1 - rank };
        self.check("ncclCommInitRankConfig", begun)?;
        Ok(pair)
    }

    /// Room for so many floats from another card, unless too little would be left for what is computed here. Once they are
    /// [written](OnDevice::is_written) nothing else uses it.
    pub fn room(&self, len: usize) -> Option<Values> {
        let (free, total) = self.card.memory();
        if free < len * size_of::<f32>() + total / LEFT {
            return None;
        }
        Some(summand(&self.card, self.kind, Buffer::new(&self.card, len).ok()?))
    }

    /// One float, to try a communicator with.
    ///
    /// # Errors
    /// The card has failed, or has no room for it.
    pub fn one(&self, value: f32) -> Result<Values, DeviceError> {
        let mut floats = Buffer::new(&self.card, 1)?;
        self.card.upload(&mut floats, &[value]);
        Ok(summand(&self.card, self.kind, floats))
    }
}

/// A function of the library.
fn function<F: Copy>(library: &'static Library, name: &str) -> Result<F, DeviceError> {
    // SAFETY: each is asked for with the type that it has in nccl.h.
    #[allow(unsafe_code)]
    match unsafe { library.get::<F>(name.as_bytes()) } {
        Ok(function) => Ok(*function),
        Err(_) => say(format!("{} has no {name}: this NCCL is too old", FILES[0])),
    }
}

/// The communicator of two cards, with a stream of its own.
pub struct Pair {
    nccl: Arc<Nccl>,
    communicator: Communicator,
    stream: driver::CUstream,
    peer: c_int,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time; who shares it has it behind a lock.
#[allow(unsafe_code)]
unsafe impl Send for Pair {}

impl Pair {
    /// Whether what was asked for last has begun; a communicator that is being made stands then.
    ///
    /// # Errors
    /// It has failed, now or before.
    pub fn is_ready(&self) -> Result<bool, DeviceError> {
        let mut state = SUCCESS;
        // SAFETY: the communicator lives until this is dropped, and so does the place through the call.
        #[allow(unsafe_code)]
        let asked = unsafe { (self.nccl.calls.get_async_error)(self.communicator, &mut state) };
        self.nccl.check("ncclCommGetAsyncError", asked)?;
        self.nccl.check("NCCL", state)?;
        Ok(state == SUCCESS)
    }

    /// Begins to send a part of values of this card. They stay as they are until it is done, which the caller sees to.
    ///
    /// # Errors
    /// It cannot begin.
    pub fn send(&self, values: &dyn OnDevice, part: Range<usize>) -> Result<(), DeviceError> {
        self.begin("ncclSend", values, part, |from, len| {
            // SAFETY: so many floats lie there, the caller keeps them, and communicator and stream live until this is dropped.
            #[allow(unsafe_code)]
            unsafe {
                (self.nccl.calls.send)(from, len, FLOAT, self.peer, self.communicator, self.stream)
            }
        })
    }

    /// Begins to receive a part of values that there is [room](Nccl::room) for. Nobody reads them until it is done, which the caller sees to.
    ///
    /// # Errors
    /// It cannot begin.
    pub fn receive(&self, values: &dyn OnDevice, part: Range<usize>) -> Result<(), DeviceError> {
        self.begin("ncclRecv", values, part, |to, len| {
            // SAFETY: as in `send`; nothing that was queued before uses the memory any more.
            #[allow(unsafe_code)]
            unsafe {
                let to = to.cast_mut();
                (self.nccl.calls.receive)(to, len, FLOAT, self.peer, self.communicator, self.stream)
            }
        })
    }

    fn begin(
        &self,
        call: &str,
        values: &dyn OnDevice,
        part: Range<usize>,
        begin: impl FnOnce(*const c_void, usize) -> Status,
    ) -> Result<(), DeviceError> {
        self.nccl.card.enter()?;
        let part = &floats_of(values).expect("a process has one device")[part];
        let at = ptr::without_provenance::<c_void>(part.address() as usize);
        self.nccl.check(call, begin(at, part.len()))
    }

    /// When all that has begun so far is done.
    pub fn moment(&self) -> Moment {
        self.nccl.card.moment_of(self.stream)
    }

    /// Gives it up, beside the caller: who waits for a card in vain may wait for it to let go, too. What it was moving is kept until then.
    pub fn leave(self, moving: impl Send + 'static) {
        std::thread::spawn(move || {
            drop(self);
            drop(moving);
        });
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if self.nccl.card.enter().is_err() {
            return;
        }
        // SAFETY: both are this one's alone and are not used again; an abort ends what is under way in the stream.
        #[allow(unsafe_code)]
        unsafe {
            if !self.communicator.is_null() {
                let _ = (self.nccl.calls.abort)(self.communicator);
            }
            let _ = driver::cuStreamDestroy_v2(self.stream);
        }
    }
}

impl Id {
    /// In hexadecimal digits.
    pub fn to_text(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What [`to_text`](Id::to_text) has written, if this is.
    pub fn from_text(text: &str) -> Option<Id> {
        if text.len() != 256 || !text.is_ascii() {
            return None;
        }
        let mut id = Id([0; 128]);
        for (byte, at) in id.0.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
        }
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_the_same_as_a_text_and_nothing_else_is_one() {
        let mut id = Id([0; 128]);
        (0..).zip(&mut id.0).for_each(|(number, byte)| *byte = 2 * number);
        let text = id.to_text();
        assert_eq!(Id::from_text(&text).map(|id| id.0), Some(id.0));
        for wrong in [&text[1..], &format!("{text}0"), &"x".repeat(256), &"ä".repeat(128)] {
            assert!(Id::from_text(wrong).is_none(), "{wrong}");
        }
        assert_eq!((name(21_400), name(22_703)), ("2.14.0".into(), "2.27.3".into()));
    }
}
