//! The scheduler's decisions, as one deterministic state machine.
//!
//! Facts and requests go in as [`Event`]s, together with the time at which they are handled; decisions come
//! out as [`Effect`]s. Nothing here performs I/O, reads a clock, draws a random number, spawns a task, or
//! logs. The same code runs in the live server, in the trace-driven simulator and in the fault-injection
//! tests.

pub mod event;
pub mod types;

pub use event::*;
pub use types::*;
