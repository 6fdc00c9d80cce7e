//! What the clouds serve: addresses, paths and their classes, session tokens, refusal answers.
//!
//! One file under `clouds/` per service, compiled in; a policy may add to them. Everything here is pure:
//! loading parses text that is part of the program, and detection is a function of strings that somebody else
//! read.
//!
//! * [`catalogue`]: the clouds that were chosen, and every question that the rest of the program asks about
//!   them.
//! * [`asked`]: one request in the words of the catalogue; the policy decides about this.
//! * [`refusal`]: what a refused client is told, so that it gives up instead of trying again.
//! * [`issued`]: what an answer tells of the key in it.
//! * [`decoy`]: in which form it would hand out a canary's key.
//! * [`members`]: which members of an answer that mixes classes hold which.
//! * [`session`]: session tokens, and how a request speaks of them.
//! * [`tls`]: which services can be asked over TLS as well.
//! * [`service`]: one cloud as its file describes it, after [`load`] found nothing wrong with it.

pub mod additions;
pub mod asked;
mod builtin;
pub mod catalogue;
pub mod class;
pub mod decoy;
pub mod detect;
pub mod endpoint;
mod index;
pub mod issued;
pub mod load;
pub mod members;
mod mention;
pub mod pattern;
pub mod refusal;
pub mod service;
pub mod session;
mod source;
pub mod table;
pub mod tls;

pub use additions::{AddedEndpoint, AddedResource};
pub use asked::Asked;
pub use catalogue::{Catalogue, CatalogueError, CloudSet, Selection, Touched};
pub use class::{Class, Classes};
pub use detect::Dmi;
pub use endpoint::{Door, Endpoint, Proof};
pub use members::{Format, Members, Withholding};
pub use mention::{Mention, mention};
pub(crate) use pattern::NameClue;
pub use pattern::{PathPattern, PatternError};
pub use refusal::Answer;
pub use service::Cloud;
pub use session::{How, Session, Spoken, TokenHolder};
