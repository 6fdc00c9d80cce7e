//! What was seen: reads audit logs back, and makes tables, a page, a proposed policy and differences of them.
//!
//! A log holds what attackers wrote: process names, paths, user agents, whole lines. So every line may be broken
//! ([`log`] counts, tells and skips), every text is escaped where it is shown ([`escape`]), and what is remembered
//! is bounded however long the log is ([`summary`]).

pub mod caller;
pub mod contained;
pub mod csv;
pub mod escape;
pub mod html;
pub mod learn;
pub mod log;
pub mod proposal;
pub mod rebuild;
pub mod record;
pub mod replay;
pub mod signals;
pub mod since;
pub mod summary;
pub mod table;

pub use log::{Input, Tally};
pub use record::Record;
