//! A card: its memory, its one queue of work, and its programs.
//!
//! Everything goes into one stream, in order, but copies of what was finished at a [`Moment`]. The first call that fails is remembered; after it nothing is queued any more, and
//! whoever waits for a result gets the failure. Work that comes again and again goes there by one call ([`graphs`]).

use super::graphs::{self, Graphs, List, Work};
use super::load::{Found, done};
use super::memory::{Pool, Slice};
use super::products::Products;
use super::programs::{Kind, Programs};
use super::staging::{self, Staging};
use super::{Bf16, DeviceError};
use cudarc::driver::sys as driver;
use std::ptr;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard};
use zerocopy::{FromBytes, IntoBytes};

/// Memory is taken from the driver in multiples of this, which is also how it is aligned.
const GRAIN: usize = 512;

/// A card that is in use.
pub struct Card {
    pub(super) found: Found,
    context: driver::CUcontext,
    stream: driver::CUstream,
    /// Of copies that wait for a moment of the other one.
    copies: driver::CUstream,
    /// Memory that nobody uses.
    free: Mutex<Pool>,
    /// That of lists alone: they find theirs where it was the last time.
    free_for_lists: Mutex<Pool>,
    graphs: Mutex<Graphs>,
    failure: Mutex<Option<DeviceError>>,
    programs: Mutex<Programs>,
    products: Mutex<Option<Products>>,
    staging: Mutex<Option<Staging>>,
}

// SAFETY: the driver's handles may be used by any thread, one call at a time for each object: those of programs and products
// are behind locks, and the driver locks its stream.
#[allow(unsafe_code)]
unsafe impl Send for Card {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Card {}

/// What lies in the memory of a card: numbers without padding.
pub trait Number: Copy {}

impl Number for f32 {}
impl Number for f64 {}
impl Number for i32 {}
impl Number for i8 {}
impl Number for Bf16 {}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    Pointer(u64),
    Int(i32),
    Long(i64),
    Float(f32),
}

impl Argument {
    /// An `int`, where the kernel counts in them.
    pub fn count(count: usize) -> Argument {
        Argument::Int(i32::try_from(count).expect("the kernel counts in 32 bits"))
    }

    /// Its bits, the lowest first: the kernel reads as many of them as it declares.
    pub(super) fn bits(self) -> u64 {
        match self {
            Argument::Pointer(address) => address,
            Argument::Int(value) => u64::from(value as u32),
            Argument::Long(value) => value as u64,
            Argument::Float(value) => u64::from(value.to_bits()),
        }
    }
}

impl<T> From<&Slice<T>> for Argument {
    fn from(slice: &Slice<T>) -> Argument {
        Argument::Pointer(slice.address())
    }
}

impl<T> From<&mut Slice<T>> for Argument {
    fn from(slice: &mut Slice<T>) -> Argument {
        Argument::Pointer(slice.address())
    }
}

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launch {
    /// Its name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [usize; 3],
    /// Threads in a block.
    pub block: usize,
    /// Bytes of shared memory beside what it declares.
    pub shared: usize,
}

impl Card {
    /// Begins to use a card.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(found: Found) -> Result<Card, DeviceError> {
        let (mut context, mut stream, mut copies) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        let mut lists = ptr::null_mut();
        const NON_BLOCKING: u32 = driver::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the driver was started by whoever found the card, and the places live through the calls.
        #[allow(unsafe_code)]
        unsafe {
            done("cuDevicePrimaryCtxRetain", driver::cuDevicePrimaryCtxRetain(&mut context, found.device))?;
            done("cuCtxSetCurrent", driver::cuCtxSetCurrent(context))?;
            done("cuStreamCreate", driver::cuStreamCreate(&mut stream, NON_BLOCKING))?;
            done("cuStreamCreate", driver::cuStreamCreate(&mut copies, NON_BLOCKING))?;
            done("cuStreamCreate", driver::cuStreamCreate(&mut lists, NON_BLOCKING))?;
        }
        let programs = Mutex::new(Programs::new(found.capability));
        Ok(Card {
            found,
            context,
            stream,
            copies,
            free: Mutex::default(),
            free_for_lists: Mutex::default(),
            graphs: Mutex::new(Graphs::new(lists)),
            failure: Mutex::default(),
            programs,
            products: Mutex::default(),
            staging: Mutex::default(),
        })
    }

    /// The work goes on without this, and what it failed of is not forgotten.
    pub fn fail(&self, error: DeviceError) {
        self.failure.lock().expect("no panic while locked").get_or_insert(error);
    }

    /// What went wrong, now or before.
    ///
    /// # Errors
    /// If anything did.
    pub fn check(&self) -> Result<(), DeviceError> {
        match &*self.failure.lock().expect("no panic while locked") {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    /// Does something behind all that was asked for, unless the card has failed, and remembers it if that fails.
    fn attempt(&self, work: impl FnOnce() -> Result<(), DeviceError>) {
        if let Some(list) = graphs::cut(self) {
            self.try_to(|| self.queue_list(list, false));
        }
        self.try_to(work);
    }

    fn try_to(&self, work: impl FnOnce() -> Result<(), DeviceError>) {
        if self.check().is_ok()
            && let Err(error) = self.enter().and_then(|()| work())
        {
            self.fail(error);
        }
    }

    /// Makes it the card of this thread.
    pub(super) fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained as long as the process lives.
        #[allow(unsafe_code)]
        done("cuCtxSetCurrent", unsafe { driver::cuCtxSetCurrent(self.context) })
    }

    pub(super) fn stream(&self) -> driver::CUstream {
        self.stream
    }

    /// Compiles the kernels for elements that are bf16 or not, and heads of a length, if that was not done yet.
    ///
    /// # Errors
    /// The compiler's.
    pub fn prepare(&self, kind: Kind) -> Result<(), DeviceError> {
        self.enter()?;
        self.programs.lock().expect("no panic while locked").prepare(kind)
    }

    /// The library of products, made when it is first asked for.
    pub fn products(&self) -> Result<MutexGuard<'_, Option<Products>>, DeviceError> {
        let mut products = self.products.lock().expect("no panic while locked");
        if products.is_none() {
            self.enter()?;
            *products = Some(Products::new(self)?);
        }
        Ok(products)
    }

    /// Queues a product.
    pub fn multiply(&self, product: super::products::Product) {
        self.attempt(|| {
            let mut products = self.products()?;
            products.as_mut().expect("it was made").multiply(self, product)
        });
    }

    /// Queues a kernel of the programs for these elements and heads.
    pub fn launch(&self, kind: Kind, launch: Launch, arguments: &[Argument]) {
        if launch.grid.contains(&0) {
            return;
        }
        self.try_to(|| {
            let function =
                self.programs.lock().expect("no panic while locked").function(kind, launch.kernel)?;
            self.queue(Work::Launch(function, launch, arguments.len()), arguments)
        });
    }

    /// Queues work, or notes it for [`at_once`](Card::at_once).
    fn queue(&self, work: Work, arguments: &[Argument]) -> Result<(), DeviceError> {
        if graphs::note(self, work, arguments) {
            return Ok(());
        }
        let mut cells: Vec<u64> = arguments.iter().map(|argument| argument.bits()).collect();
        work.queue(self.stream, &mut cells)
    }

    /// Does `work`, and queues all that it asks of this card by one call if it has asked for the same before.
    pub fn at_once(&self, work: impl FnOnce()) {
        if !graphs::begin(self) {
            return work();
        }
        work();
        let (list, is_whole, free) = graphs::end();
        self.try_to(|| self.queue_list(list, is_whole));
        self.free_for_lists.lock().expect("no panic while locked").extend(free);
    }

    fn queue_list(&self, mut list: List, is_whole: bool) -> Result<(), DeviceError> {
        let mut graphs = self.graphs.lock().expect("no panic while locked");
        if is_whole { graphs.queue(self, list) } else { list.queue(self.stream) }
    }

    /// Memory, and how much it is.
    ///
    /// # Errors
    /// There is not enough, or the card has failed.
    pub fn allocate(&self, bytes: usize) -> Result<(u64, usize), DeviceError> {
        self.check()?;
        self.enter()?;
        // Large pieces in steps of a 16th, so that lengths that grow by little use the same memory again.
        let step = GRAIN.max(bytes.next_power_of_two() / 32);
        let bytes = bytes.next_multiple_of(step);
        let lists = || self.free_for_lists.lock().expect("no panic while locked").take_any(bytes);
        if let Some(found) = graphs::free(self, |free| free.take_any(bytes).or_else(lists)).flatten() {
            return Ok(found);
        }
        if let Some(found) = self.free.lock().expect("no panic while locked").take(bytes) {
            return Ok(found);
        }
        let mut result = self.ask(bytes);
        if result.is_err() {
            self.trim();
            result = self.ask(bytes);
        }
        match result {
            Ok(address) => Ok((address, bytes)),
            Err(driver::CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                let (free, total) = self.memory();
                let Found { index, name, .. } = &self.found;
                Err(DeviceError(format!(
                    "card {index}, {name}, has no room for {}: {} of {} are free",
                    mebibytes(bytes),
                    mebibytes(free),
                    mebibytes(total)
                )))
            }
            Err(other) => done("cuMemAlloc", other).map(|()| (0, 0)),
        }
    }

    fn ask(&self, bytes: usize) -> Result<u64, driver::CUresult> {
        let mut address = 0;
        // SAFETY: the place lives through the call.
        #[allow(unsafe_code)]
        match unsafe { driver::cuMemAlloc_v2(&mut address, bytes) } {
            driver::CUresult::CUDA_SUCCESS => Ok(address),
            other => Err(other),
        }
    }

    /// Takes memory back, for whoever asks next: what is queued is in order.
    pub fn give_back(&self, address: u64, bytes: usize) {
        if graphs::free(self, |free| free.give(address, bytes)).is_none() {
            self.free.lock().expect("no panic while locked").give(address, bytes);
        }
    }

    /// Gives memory that nobody uses back to the driver.
    pub fn trim(&self) {
        let pools = [&self.free, &self.free_for_lists];
        self.attempt(|| {
            let free = pools.map(|pool| std::mem::take(&mut *pool.lock().expect("no panic while locked")));
            self.wait()?;
            for address in free.into_iter().flat_map(Pool::into_addresses) {
                // SAFETY: nobody has it any more, and nothing that uses it is queued.
                #[allow(unsafe_code)]
                done("cuMemFree", unsafe { driver::cuMemFree_v2(address) })?;
            }
            Ok(())
        });
    }

    /// Bytes that are free and in all.
    pub fn memory(&self) -> (usize, usize) {
        let (mut free, mut total) = (0, 0);
        if self.enter().is_ok() {
            // SAFETY: the places live through the call, which leaves them where it fails.
            #[allow(unsafe_code)]
            let _ = unsafe { driver::cuMemGetInfo_v2(&mut free, &mut total) };
        }
        (free, total)
    }

    /// Waits until everything that was queued is done.
    pub(super) fn wait(&self) -> Result<(), DeviceError> {
        self.wait_for(self.stream)
    }

    fn wait_for(&self, stream: driver::CUstream) -> Result<(), DeviceError> {
        // SAFETY: the stream lives as long as the card.
        #[allow(unsafe_code)]
        done("cuStreamSynchronize", unsafe { driver::cuStreamSynchronize(stream) })
    }

    /// Now.
    pub fn moment(self: &Arc<Card>) -> Moment {
        self.moment_of(self.stream)
    }

    /// Now, in another queue.
    pub(super) fn moment_of(self: &Arc<Card>, stream: driver::CUstream) -> Moment {
        let mut event = ptr::null_mut();
        self.attempt(|| {
            const NO_TIME: u32 = driver::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: the place lives through the call, and then there is such an event.
            #[allow(unsafe_code)]
            unsafe {
                done("cuEventCreate", driver::cuEventCreate(&mut event, NO_TIME))?;
                done("cuEventRecord", driver::cuEventRecord(event, stream))
            }
        });
        Moment { card: Arc::clone(self), event }
    }

    /// Waits until everything that was queued is done.
    ///
    /// # Errors
    /// It has failed, now or before.
    pub fn finish(&self) -> Result<(), DeviceError> {
        self.attempt(|| self.wait());
        self.check()
    }

    fn staged(&self, copy: impl FnOnce(&mut Staging) -> Result<(), DeviceError>) {
        self.attempt(|| {
            let mut staging = self.staging.lock().expect("no panic while locked");
            match &mut *staging {
                Some(staging) => copy(staging),
                none => copy(none.insert(Staging::new()?)),
            }
        });
    }

    /// `to = from`, of values without pointers; `from` may change as soon as this returns.
    pub fn upload<T: Number>(&self, to: &mut Slice<T>, from: &[T]) {
        assert_eq!(to.len(), from.len());
        if from.is_empty() {
            return;
        }
        if staging::LONG <= size_of_val(from) {
            // SAFETY: numbers have no bytes without a value.
            #[allow(unsafe_code)]
            let bytes = unsafe { slice::from_raw_parts(from.as_ptr().cast(), size_of_val(from)) };
            return self.staged(|staging| staging.upload(self.stream, to.address(), bytes));
        }
        // SAFETY: both are as long, and the driver copies pageable memory away before it returns.
        #[allow(unsafe_code)]
        self.attempt(|| {
            let (to, from, bytes) = (to.address(), from.as_ptr().cast(), size_of_val(from));
            done("copy to the card", unsafe { driver::cuMemcpyHtoDAsync_v2(to, from, bytes, self.stream) })
        });
    }

    /// `to = from`, once all that was queued is done.
    ///
    /// # Errors
    /// The card has failed, now or before.
    pub fn download<T>(&self, to: &mut [T], from: &Slice<T>) -> Result<(), DeviceError>
    where
        T: Number + FromBytes + IntoBytes,
    {
        self.copy_down(self.stream, to, from)
    }

    /// As [`download`](Card::download), once what was queued up to a moment is done: what was queued since goes on meanwhile.
    ///
    /// # Errors
    /// As [`download`](Card::download).
    pub fn download_of<T>(&self, moment: &Moment, to: &mut [T], from: &Slice<T>) -> Result<(), DeviceError>
    where
        T: Number + FromBytes + IntoBytes,
    {
        self.attempt(|| {
            // SAFETY: stream and event live; a stream may wait for an event any number of times.
            #[allow(unsafe_code)]
            done("cuStreamWaitEvent", unsafe { driver::cuStreamWaitEvent(self.copies, moment.event, 0) })
        });
        self.copy_down(self.copies, to, from)
    }

    fn copy_down<T>(&self, stream: driver::CUstream, to: &mut [T], from: &Slice<T>) -> Result<(), DeviceError>
    where
        T: Number + FromBytes + IntoBytes,
    {
        assert_eq!(to.len(), from.len());
        if staging::LONG <= size_of_val(to) {
            self.staged(|staging| staging.download(stream, to.as_mut_bytes(), from.address()));
            return self.check();
        }
        // SAFETY: both are as long, any bits are numbers, and the copy is done before `to` can be read.
        #[allow(unsafe_code)]
        self.attempt(|| {
            if !to.is_empty() {
                let (to, from, bytes) = (to.as_mut_ptr().cast(), from.address(), size_of_val(to));
                done("copy from the card", unsafe { driver::cuMemcpyDtoHAsync_v2(to, from, bytes, stream) })?;
            }
            self.wait_for(stream)
        });
        self.check()
    }

    /// `to = from`.
    pub fn copy<T>(&self, to: &mut Slice<T>, from: &Slice<T>) {
        assert_eq!(to.len(), from.len());
        if from.len() == 0 {
            return;
        }
        let (to, from, bytes) = (to.address(), from.address(), from.bytes());
        self.try_to(|| self.queue(Work::Copy { to, from, bytes }, &[]));
    }

    /// Zeros, of any type whose zero has no bits.
    pub fn zero<T>(&self, x: &mut Slice<T>) {
        if x.len() == 0 {
            return;
        }
        self.try_to(|| self.queue(Work::Zero { to: x.address(), bytes: x.bytes() }, &[]));
    }
}

/// A moment in the queue of a card: all that was queued before.
pub struct Moment {
    card: Arc<Card>,
    /// Null if the card had failed; then nothing waits for it.
    event: driver::CUevent,
}

// SAFETY: events may be used by any thread.
#[allow(unsafe_code)]
unsafe impl Send for Moment {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Moment {}

impl Moment {
    /// Whether all that was queued before it is done.
    ///
    /// # Errors
    /// The card has failed, now or before.
    pub fn is_past(&self) -> Result<bool, DeviceError> {
        self.card.check()?;
        self.card.enter()?;
        // SAFETY: the card had not failed when this was made, so there is such an event.
        #[allow(unsafe_code)]
        match unsafe { driver::cuEventQuery(self.event) } {
            driver::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => done("cuEventQuery", result).map(|()| true),
        }
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        if !self.event.is_null() && self.card.enter().is_ok() {
            // SAFETY: nobody has it any more; the driver keeps it for as long as a stream waits for it.
            #[allow(unsafe_code)]
            let _ = unsafe { driver::cuEventDestroy_v2(self.event) };
        }
    }
}

/// Bytes for people.
fn mebibytes(bytes: usize) -> String {
    match bytes {
        0..1_048_576 => format!("{bytes} bytes"),
        _ => format!("{} MiB", bytes >> 20),
    }
}
