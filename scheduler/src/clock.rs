//! Time for the core: the wall clock as it was at the start, going on at the pace of the monotonic clock.
//! A wall clock that is set while the scheduler runs changes no decision.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use aquifer_core::Time;

/// A clock that never goes back.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_ms: u64,
}

impl Clock {
    /// Reads the wall clock, for the only time.
    pub fn start() -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { started: Instant::now(), started_ms: wall.as_millis() as u64 }
    }

    /// Now.
    pub fn now(&self) -> Time {
        Time(self.started_ms + self.started.elapsed().as_millis() as u64)
    }
}
