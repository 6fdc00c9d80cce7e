//! What the guard shows of itself while it runs: a snapshot as JSON, and metrics for Prometheus.
//!
//! ```text
//! each worker: Counters (plain numbers, nobody else's) --copy, when asked--+
//! keeper: Health (redirect, reloads) ----------------- Order::Health ------+--> Snapshot --> /status   JSON
//! proxy: policy, connections, lost events ---------------------------------+             \-> /metrics  Prometheus
//! ```
//!
//! * A request costs a few additions in its worker's own memory: no lock, no atomic, no allocation.
//! * Label sets are bounded, whatever callers think up; what has no place is counted together.
//! * A reader has a thread of its own, a time limit and few connections: a slow one holds up nobody.
//! * The snapshot names callers and paths, so that only root and one group may read it, on a unix socket. The metrics hold
//!   nothing that a caller wrote and no secret, since on a loopback port every local user may read them.

pub mod counters;
pub mod histogram;
pub mod moment;
pub mod prometheus;
pub mod snapshot;
pub mod socket;

pub use counters::{Counters, Tally};
pub use moment::Moment;
pub use snapshot::{Health, Snapshot};
