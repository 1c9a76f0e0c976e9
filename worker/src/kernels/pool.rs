//! Threads that wait for work: starting one for every operation would cost more than most operations do.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// A slice of which tasks write different parts at the same time.
pub struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    whole: PhantomData<&'a mut [T]>,
}

// SAFETY: it is an exclusive slice, and `get` asks its callers to keep the parts apart.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// The parts of `whole`.
    pub fn new(whole: &'a mut [T]) -> Parts<'a, T> {
        Parts { start: whole.as_mut_ptr(), len: whole.len(), whole: PhantomData }
    }

    /// Where element `index` lies; `index` is at most the length.
    pub fn start(&self, index: usize) -> *mut T {
        assert!(index <= self.len, "{index} of {}", self.len);
        self.start.wrapping_add(index)
    }

    /// One part.
    ///
    /// # Safety
    /// No two parts that are alive at the same time overlap.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub unsafe fn get(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: it lies inside the slice, and the caller keeps it apart from the other parts.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Whether pools keep their helpers on cores.
static PINS: AtomicBool = AtomicBool::new(false);

/// Says whether the helpers of pools that are made from now on stay on cores of their own, where this process may use just as
/// many cores as the pool has threads.
pub fn pin_threads(pins: bool) {
    PINS.store(pins, Ordering::Relaxed);
}

/// A core for each helper of a pool; the caller keeps what is left. None where there are fewer cores than threads, or more:
/// then others may be meant to use the rest, and all would choose the same ones.
fn helpers_cores(threads: usize, allowed: &CpuSet) -> Vec<usize> {
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    if cores.len() == threads { cores[1..].to_vec() } else { Vec::new() }
}

fn pin(core: usize) {
    let mut only = CpuSet::new();
    only.set(core);
    // Only costs speed where it fails.
    let _ = sched_setaffinity(None, &only);
}

/// Some threads that run the tasks of one operation at a time. The caller is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// There is a job, or the pool ends.
    work: Condvar,
    /// No helper is inside a job.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// The operation that helpers may join; its address is good until `inside` is 0 after it was taken away.
    job: Option<Address>,
    /// Counts operations, so that a helper joins each one once.
    number: u64,
    /// Helpers inside a job.
    inside: usize,
    ended: bool,
}

/// A [`Job`] on the stack of its caller.
#[derive(Clone, Copy)]
struct Address(*const Job<'static>);

// SAFETY: a job is shared between threads by reference only, and all of it is `Sync`.
#[allow(unsafe_code)]
unsafe impl Send for Address {}

struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    panicked: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

impl Job<'_> {
    /// Runs tasks until none is left. A panic ends the job and is kept for the caller.
    fn work(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if self.tasks <= index {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.task)(index))) {
                self.next.store(self.tasks, Ordering::Relaxed);
                *lock(&self.panicked) = Some(panic);
            }
        }
    }
}

/// The data of a lock; what it guards here is whole even after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Pool {
    /// A pool that runs on `threads` threads, the caller's included; at least one.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), idle: Condvar::new() });
        let pins = PINS.load(Ordering::Relaxed).then(|| sched_getaffinity(None).ok()).flatten();
        let cores = pins.map(|allowed| helpers_cores(threads, &allowed)).unwrap_or_default();
        let helper = |index: usize| {
            let shared = Arc::clone(&shared);
            let (name, core) = (format!("kernels-{index}"), cores.get(index - 1).copied());
            let work = move || {
                core.into_iter().for_each(pin);
                shared.help();
            };
            std::thread::Builder::new().name(name).spawn(work).expect("a thread starts")
        };
        let helpers = (1..threads.max(1)).map(helper).collect();
        Pool { shared, helpers }
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `task` once with each of `0 .. tasks`, on all threads, in no particular order, and returns when all
    /// calls have returned. Panics as the first task that panicked did.
    ///
    /// While another caller's operation runs, this one stays on its own thread.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let job = Job { task, tasks, next: AtomicUsize::new(0), panicked: Mutex::new(None) };
        let shares = 1 < tasks && !self.helpers.is_empty() && self.offer(&job);
        job.work();
        if shares {
            self.take_back();
        }
        if let Some(panic) = lock(&job.panicked).take() {
            resume_unwind(panic);
        }
    }

    /// Calls `task` with every part of `0 .. len` split into at most as many parts as there are threads, each a
    /// multiple of `align` long but for the last, and none shorter than `least`.
    pub fn split(&self, len: usize, align: usize, least: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
        let parts = self.threads().min(len / least.max(1)).max(1);
        let part = len.div_ceil(parts).next_multiple_of(align);
        self.run(len.div_ceil(part.max(1)), &|index| task(index * part..len.min((index + 1) * part)));
    }

    /// Whether the helpers were free to take it.
    fn offer(&self, job: &Job<'_>) -> bool {
        let mut state = lock(&self.shared.state);
        if state.job.is_some() || 0 < state.inside {
            return false;
        }
        state.job = Some(Address(std::ptr::from_ref(job).cast()));
        state.number += 1;
        self.shared.work.notify_all();
        true
    }

    fn take_back(&self) {
        let mut state = lock(&self.shared.state);
        state.job = None;
        while 0 < state.inside {
            state = self.shared.idle.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.state).ended = true;
        self.shared.work.notify_all();
        for helper in self.helpers.drain(..) {
            helper.join().expect("helpers catch panics");
        }
    }
}

impl Shared {
    fn help(&self) {
        let mut seen = 0;
        let mut state = lock(&self.state);
        while !state.ended {
            match state.job {
                Some(Address(job)) if state.number != seen => {
                    seen = state.number;
                    state.inside += 1;
                    drop(state);
                    // SAFETY: `inside` was raised while the job was on offer, under the lock; its caller waits for
                    // `inside` to be 0 before the job leaves its stack.
                    #[allow(unsafe_code)]
                    unsafe { &*job }.work();
                    state = lock(&self.state);
                    state.inside -= 1;
                    if state.inside == 0 {
                        self.idle.notify_all();
                    }
                }
                _ => state = self.work.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(count: &AtomicUsize) {
        count.fetch_add(1, Ordering::Relaxed);
    }

    #[test]
    fn every_task_runs_once_for_any_number_of_threads_and_tasks() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 3, 100] {
                let calls: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|index| add(&calls[index]));
                assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1), "{threads} {tasks}");
            }
        }
    }

    #[test]
    fn helpers_have_cores_of_their_own_where_there_are_just_as_many_as_threads() {
        let mut allowed = CpuSet::new();
        [3, 5, 64].into_iter().for_each(|core| allowed.set(core));
        assert_eq!(helpers_cores(3, &allowed), [5, 64]);
        assert!(helpers_cores(2, &allowed).is_empty() && helpers_cores(4, &allowed).is_empty());

        let own = sched_getaffinity(None).unwrap();
        let threads = own.count() as usize;
        pin_threads(true);
        let pool = Pool::new(threads);
        pin_threads(false);
        let (seen, together) = (Mutex::new(Vec::new()), std::sync::Barrier::new(threads));
        pool.run(threads, &|_| {
            together.wait();
            lock(&seen).push(sched_getaffinity(None).unwrap().count());
        });
        let pinned = lock(&seen).iter().filter(|count| **count == 1).count();
        // A caller that may use one core only has no helper.
        assert_eq!(pinned, if threads == 1 { 1 } else { threads - 1 });
    }

    #[test]
    fn parts_cover_a_length_and_keep_to_their_bounds() {
        for (len, align, least, parts) in
            [(0, 1, 1, 0), (10, 4, 1, 3), (10, 1, 6, 1), (12, 1, 6, 2), (7, 8, 1, 1)]
        {
            let seen = Mutex::new(Vec::new());
            Pool::new(3).split(len, align, least, &|part| lock(&seen).push((part.start, part.end)));
            let mut seen = seen.into_inner().unwrap();
            seen.sort();
            assert_eq!(seen.len(), parts, "{len} {align} {least}");
            let mut end = 0;
            for (index, &(start, stop)) in seen.iter().enumerate() {
                assert_eq!(start, end);
                assert!(index + 1 == parts || (stop - start).is_multiple_of(align));
                end = stop;
            }
            assert_eq!(end, len);
        }
    }

    #[test]
    fn callers_at_the_same_time_and_inside_a_task_all_get_their_work_done() {
        let (pool, done) = (Pool::new(3), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(4, &|_| pool.run(3, &|_| add(&done)));
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 4 * 200 * 4 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let panic = catch_unwind(AssertUnwindSafe(|| pool.run(50, &|index| assert!(index != 20, "task 20"))));
        assert!(panic.is_err());
        let done = AtomicUsize::new(0);
        pool.run(50, &|_| add(&done));
        assert_eq!(done.into_inner(), 50);
    }
}
