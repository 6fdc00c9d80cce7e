//! The record: one JSON line for each request, without secrets, in a bounded queue.

pub mod event;
pub mod scrub;
pub mod sink;

pub use event::Event;
pub use sink::{Destination, Sink, Slot};
