//! Which connections reach the guard: one nftables table, rendered from the wanted state, loaded in one
//! transaction, read back, and watched.

pub mod apply;
pub mod containers;
pub mod interfaces;
pub mod ruleset;
pub mod watch;

pub use containers::Guests;
pub use ruleset::{Direction, Interface, Led, Wanted};

/// The one table that the guard owns; it touches no other.
pub const TABLE: &str = "imds_guard";
