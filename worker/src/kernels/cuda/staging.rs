//! Large copies between the host and a card, through memory of the host that the card reads by itself.
//!
//! Ordinary memory may move, so the driver would copy it piece by piece into memory of its own, with one thread. Here there
//! are two pieces, and while one of them is on its way, threads fill or empty the other.

use super::DeviceError;
use super::load::done;
use cudarc::driver::sys as driver;
use std::ptr;
use std::slice;

/// Bytes of a piece.
const PIECE: usize = 32 << 20;
/// Shorter copies are the driver's.
pub const LONG: usize = 1 << 20;
/// The most threads that fill or empty a piece, and the fewest bytes for each: a few of them are as fast as the memory.
const THREADS: usize = 8;
const SHARE: usize = 1 << 20;

/// Two pieces of memory, and whether the copies from and to them are done.
pub struct Staging {
    pieces: [*mut u8; 2],
    events: [driver::CUevent; 2],
}

// SAFETY: the pieces are this one's alone, and events may be used by any thread.
#[allow(unsafe_code)]
unsafe impl Send for Staging {}

impl Staging {
    /// Takes the memory, for as long as the process lives. The card is that of this thread.
    ///
    /// # Errors
    /// The system has none to give.
    pub fn new() -> Result<Staging, DeviceError> {
        let (mut pieces, mut events) = ([ptr::null_mut(); 2], [ptr::null_mut(); 2]);
        const NO_TIME: u32 = driver::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
        for (piece, event) in pieces.iter_mut().zip(&mut events) {
            let mut place = ptr::null_mut();
            // SAFETY: the places live through the calls.
            #[allow(unsafe_code)]
            unsafe {
                done("cuMemAllocHost", driver::cuMemAllocHost_v2(&mut place, PIECE))?;
                done("cuEventCreate", driver::cuEventCreate(event, NO_TIME))?;
                // From here on all of its bytes have a value.
                ptr::write_bytes(place.cast::<u8>(), 0, PIECE);
            }
            *piece = place.cast();
        }
        Ok(Staging { pieces, events })
    }

    /// Copies to `to` of the card; `from` may change as soon as this returns.
    ///
    /// # Errors
    /// The card has failed.
    pub fn upload(&mut self, stream: driver::CUstream, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        for (index, from) in from.chunks(PIECE).enumerate() {
            let at = to + (index * PIECE) as u64;
            self.wait(index % 2)?;
            copy(&mut self.piece(index % 2)[..from.len()], from);
            // SAFETY: the piece is not written before the event says that it was read; the caller owns what is written.
            #[allow(unsafe_code)]
            let queued = unsafe {
                driver::cuMemcpyHtoDAsync_v2(at, self.pieces[index % 2].cast(), from.len(), stream)
            };
            done("copy to the card", queued)?;
            self.record(index % 2, stream)?;
        }
        Ok(())
    }

    /// Copies from `from` of the card, once all that was queued is done.
    ///
    /// # Errors
    /// The card has failed.
    pub fn download(
        &mut self,
        stream: driver::CUstream,
        to: &mut [u8],
        from: u64,
    ) -> Result<(), DeviceError> {
        let mut before: Option<(usize, &mut [u8])> = None;
        for (index, to) in to.chunks_mut(PIECE).enumerate() {
            let at = from + (index * PIECE) as u64;
            // An upload may still read it.
            self.wait(index % 2)?;
            // SAFETY: the piece is not read before the event says that it was written, nor used otherwise; the caller owns
            // what is read.
            #[allow(unsafe_code)]
            let queued =
                unsafe { driver::cuMemcpyDtoHAsync_v2(self.pieces[index % 2].cast(), at, to.len(), stream) };
            done("copy from the card", queued)?;
            self.record(index % 2, stream)?;
            if let Some((index, to)) = before.replace((index % 2, to)) {
                self.empty(index, to)?;
            }
        }
        before.map_or(Ok(()), |(index, to)| self.empty(index, to))
    }

    fn empty(&mut self, index: usize, to: &mut [u8]) -> Result<(), DeviceError> {
        self.wait(index)?;
        let len = to.len();
        copy(to, &self.piece(index)[..len]);
        Ok(())
    }

    fn wait(&self, index: usize) -> Result<(), DeviceError> {
        // SAFETY: events live as long as the process; one that was never recorded is done.
        #[allow(unsafe_code)]
        done("cuEventSynchronize", unsafe { driver::cuEventSynchronize(self.events[index]) })
    }

    fn record(&self, index: usize, stream: driver::CUstream) -> Result<(), DeviceError> {
        // SAFETY: as in `wait`.
        #[allow(unsafe_code)]
        done("cuEventRecord", unsafe { driver::cuEventRecord(self.events[index], stream) })
    }

    /// A piece that the card neither reads nor writes, as its event has said.
    fn piece(&mut self, index: usize) -> &mut [u8] {
        // SAFETY: it is as long, was written whole, and is this one's alone.
        #[allow(unsafe_code)]
        unsafe {
            slice::from_raw_parts_mut(self.pieces[index], PIECE)
        }
    }
}

/// `to = from`, by several threads.
fn copy(to: &mut [u8], from: &[u8]) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let share = to.len().div_ceil(threads).max(SHARE);
    std::thread::scope(|scope| {
        let mut parts = to.chunks_mut(share).zip(from.chunks(share));
        let own = parts.next();
        for (to, from) in parts {
            scope.spawn(|| to.copy_from_slice(from));
        }
        if let Some((to, from)) = own {
            to.copy_from_slice(from);
        }
    });
}
