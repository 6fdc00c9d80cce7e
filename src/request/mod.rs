//! What a caller wrote, read strictly: one meaning or a reason why there is none.
//!
//! [`gate`] cuts a byte stream into heads and bodies and refuses every framing on which two HTTP parsers
//! could disagree. [`target`] turns the head's request target into one normal form. Everything here is pure.

pub mod fault;
pub mod gate;
pub mod head;
pub mod host;
pub mod names;
pub mod path;
pub mod query;
pub mod target;

mod chunked;
mod hygiene;
mod parse;
mod percent;

pub use fault::Fault;
pub use gate::{Gate, Limits, Step, Strictness};
pub use head::{BodyKind, Header, Method, RawHead, Version};
pub use host::Host;
pub use names::is_dropped_in_enforce;
pub use path::Path;
pub use query::Query;
pub use target::Target;
