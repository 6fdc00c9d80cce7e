//! The record: one JSON line for each request, without secrets, in a bounded queue.

mod backlog;
mod destination;
pub mod event;
pub mod scrub;
pub mod sink;

pub use destination::{Destination, JOURNAL};
pub use event::Event;
pub use sink::{Sink, Slot};
