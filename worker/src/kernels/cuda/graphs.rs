//! Work that comes again and again, queued by one call: a graph.
//!
//! [`Card::at_once`] notes what it is asked for, and then looks the whole list up among those that it knows: kernels, grids, and
//! every argument, addresses with the rest. A graph is made of a list that comes the second time, and is launched for none but the
//! very same list. So whatever has changed since, memory that has moved, more rows or a longer context, there is another list, and no
//! graph for it; that what the addresses name is still there is shown by whoever asks now, as for any launch. What may change between two launches lies
//! behind the addresses.

use super::card::{Card, Launch};
use super::load::done;
use super::memory::Pool;
use super::{Argument, DeviceError};
use cudarc::driver::sys as driver;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::ptr;

/// Lists that are known, with a graph or not yet: those that were asked for last.
const KNOWN: usize = 32;

/// What the driver's functions for graphs are called.
const FUNCTIONS: [&str; 6] = [
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
];

/// Something that goes into a stream, and only that.
#[derive(Clone, Copy, PartialEq)]
pub enum Work {
    /// A kernel with so many arguments.
    Launch(driver::CUfunction, Launch, usize),
    /// From one address of the card to another one.
    Copy { to: u64, from: u64, bytes: usize },
    /// To zeros.
    Zero { to: u64, bytes: usize },
}

impl Work {
    /// Queues it; a kernel takes its arguments, of 64 bits each.
    ///
    /// # Errors
    /// The card has failed, or does not take it.
    pub fn queue(self, stream: driver::CUstream, arguments: &mut [u64]) -> Result<(), DeviceError> {
        match self {
            Work::Launch(function, Launch { kernel, grid, block, shared }, _) => {
                let mut places: Vec<*mut c_void> =
                    arguments.iter_mut().map(|cell| ptr::from_mut(cell).cast()).collect();
                let [x, y, z] = grid.map(|blocks| u32::try_from(blocks).expect("a grid of 32 bits"));
                // SAFETY: the arguments are those that the kernel declares, which its tests show, and their places live through
                // the call; what they point to lives until the stream is past it, because memory is only used again by what is
                // queued behind.
                #[allow(unsafe_code)]
                let result = unsafe {
                    if 48 << 10 < shared {
                        use driver::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
                        done(
                            "cuFuncSetAttribute",
                            driver::cuFuncSetAttribute(function, MOST, shared as i32),
                        )?;
                    }
                    let (block, shared) = (block as u32, shared as u32);
                    let (places, none) = (places.as_mut_ptr(), ptr::null_mut());
                    driver::cuLaunchKernel(function, x, y, z, block, 1, 1, shared, stream, places, none)
                };
                done(kernel, result)
            }
            // SAFETY: whoever made it has shown that both are as long, and in the card's memory.
            #[allow(unsafe_code)]
            Work::Copy { to, from, bytes } => {
                done("copy", unsafe { driver::cuMemcpyDtoDAsync_v2(to, from, bytes, stream) })
            }
            // SAFETY: as above.
            #[allow(unsafe_code)]
            Work::Zero { to, bytes } => {
                done("zeros", unsafe { driver::cuMemsetD8Async(to, 0, bytes, stream) })
            }
        }
    }
}

/// Work in order.
#[derive(Default, PartialEq)]
pub struct List {
    work: Vec<Work>,
    /// Of all kernels, one after the other.
    arguments: Vec<u64>,
}

impl List {
    fn add(&mut self, work: Work, arguments: &[Argument]) {
        self.work.push(work);
        self.arguments.extend(arguments.iter().map(|argument| argument.bits()));
    }

    /// Queues all of it, one call after the other.
    ///
    /// # Errors
    /// As of [`Work::queue`].
    pub fn queue(&mut self, stream: driver::CUstream) -> Result<(), DeviceError> {
        let mut rest = &mut self.arguments[..];
        for work in &self.work {
            let count = if let Work::Launch(_, _, count) = work { *count } else { 0 };
            let (own, others) = rest.split_at_mut(count);
            work.queue(stream, own)?;
            rest = others;
        }
        Ok(())
    }
}

/// What a thread is asked for on a card, meanwhile not queued.
struct Noted {
    /// Which card; compared, and nothing else.
    card: *const Card,
    list: List,
    /// Memory that was given back meanwhile: what is noted will still use it, so nobody else may.
    free: Pool,
    /// A part was queued before the others were noted.
    is_cut: bool,
}

thread_local! {
    static NOTED: RefCell<Option<Noted>> = const { RefCell::new(None) };
}

/// Does something with what this thread notes of a card; `None` if it does not.
fn noted<R>(card: &Card, work: impl FnOnce(&mut Noted) -> R) -> Option<R> {
    NOTED.with_borrow_mut(|noted| noted.as_mut().filter(|noted| ptr::eq(noted.card, card)).map(work))
}

/// Begins to note; false if this thread does already.
pub fn begin(card: &Card) -> bool {
    NOTED.with_borrow_mut(|noted| {
        let is_first = noted.is_none();
        noted.get_or_insert_with(|| Noted {
            card,
            list: List::default(),
            free: Pool::default(),
            is_cut: false,
        });
        is_first
    })
}

/// Ends that: the list, whether it is whole, and memory that is free once it was queued.
pub fn end() -> (List, bool, Pool) {
    let Noted { list, free, is_cut, .. } = NOTED.take().expect("it was begun");
    (list, !is_cut, free)
}

/// Notes work, if this thread does; whether it did.
pub fn note(card: &Card, work: Work, arguments: &[Argument]) -> bool {
    noted(card, |noted| noted.list.add(work, arguments)).is_some()
}

/// Takes out what was noted so far: something comes behind it that cannot be noted.
pub fn cut(card: &Card) -> Option<List> {
    noted(card, |noted| {
        noted.is_cut = true;
        std::mem::take(&mut noted.list)
    })
}

/// The memory that this thread gave back since it began to note; `None` if it does not.
pub fn free<R>(card: &Card, work: impl FnOnce(&mut Pool) -> R) -> Option<R> {
    noted(card, |noted| work(&mut noted.free))
}

/// The graphs of a card.
pub struct Graphs {
    /// In which lists are captured: what others queue meanwhile goes into the card's own.
    stream: driver::CUstream,
    /// The one that was asked for last at the front.
    known: VecDeque<(List, Option<driver::CUgraphExec>)>,
    /// The driver has none.
    are_missing: bool,
}

/// A driver that has no graphs.
struct Missing(&'static str);

impl Graphs {
    /// With a stream that is used for nothing else.
    pub fn new(stream: driver::CUstream) -> Graphs {
        Graphs { stream, known: VecDeque::new(), are_missing: false }
    }

    /// Queues a list: by one call, if it is known.
    ///
    /// # Errors
    /// The card has failed, or does not take it.
    pub fn queue(&mut self, card: &Card, mut list: List) -> Result<(), DeviceError> {
        if self.are_missing || list.work.len() < 2 {
            return list.queue(card.stream());
        }
        let Some(index) = self.known.iter().position(|(known, _)| *known == list) else {
            list.queue(card.stream())?;
            self.known.push_front((list, None));
            return self.forget(card);
        };
        let (mut list, graph) = self.known.remove(index).expect("it was found");
        let graph = match graph {
            Some(graph) => graph,
            None => match self.capture(&mut list)? {
                Ok(graph) => graph,
                Err(Missing(call)) => {
                    self.are_missing = true;
                    eprintln!(
                        "card {}: its driver has no graphs ({call}), so the kernels of a step are launched one by one",
                        card.found.index
                    );
                    return list.queue(card.stream());
                }
            },
        };
        self.known.push_front((list, Some(graph)));
        // SAFETY: the graph was made and is not destroyed; what its arguments point to lives, for whoever asks has just named it.
        #[allow(unsafe_code)]
        done("cuGraphLaunch", unsafe { driver::cuGraphLaunch(graph, card.stream()) })
    }

    /// The graph of a list, of which nothing is done yet.
    fn capture(&self, list: &mut List) -> Result<Result<driver::CUgraphExec, Missing>, DeviceError> {
        // SAFETY: the driver was found, and the addresses are not called here.
        #[allow(unsafe_code)]
        let is_there =
            |name: &str| unsafe { driver::culib().get::<unsafe extern "C" fn()>(name.as_bytes()).is_ok() };
        if let Some(name) = FUNCTIONS.into_iter().find(|name| !is_there(name)) {
            return Ok(Err(Missing(name)));
        }
        // Of this thread alone: others may allocate.
        let mode = driver::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let (mut graph, mut made) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the functions are there, the stream lives, and so do the places through the calls; a graph is destroyed once,
        // and what was made of it does not need it any more.
        #[allow(unsafe_code)]
        let result = unsafe {
            let begun = driver::cuStreamBeginCapture_v2(self.stream, mode);
            if begun == driver::CUresult::CUDA_ERROR_NOT_SUPPORTED {
                return Ok(Err(Missing("cuStreamBeginCapture")));
            }
            done("cuStreamBeginCapture", begun)?;
            let queued = list.queue(self.stream);
            let ended = driver::cuStreamEndCapture(self.stream, &mut graph);
            queued?;
            done("cuStreamEndCapture", ended)?;
            let result = driver::cuGraphInstantiateWithFlags(&mut made, graph, 0);
            done("cuGraphDestroy", driver::cuGraphDestroy(graph))?;
            result
        };
        done("cuGraphInstantiate", result).map(|()| Ok(made))
    }

    /// Keeps no more than [`KNOWN`].
    fn forget(&mut self, card: &Card) -> Result<(), DeviceError> {
        for (_, graph) in self.known.drain(self.known.len().min(KNOWN)..) {
            let Some(graph) = graph else { continue };
            // It may still be at work.
            card.wait()?;
            // SAFETY: nobody has it any more.
            #[allow(unsafe_code)]
            done("cuGraphExecDestroy", unsafe { driver::cuGraphExecDestroy(graph) })?;
        }
        Ok(())
    }
}
