//! The unprivileged half: it reads what callers write, judges it, and speaks to the metadata service.
//!
//! [`pipeline`] is the sentence of the crate's documentation, read top to bottom. [`wire`] puts the gate under
//! hyper's server; [`service`] asks on behalf of whoever has a permit, by [`upstream`]; [`record`] turns each exchange
//! into one event; [`observer`] shows what the workers count.

pub mod connection;
pub mod decoy;
pub mod descriptors;
pub mod farewell;
pub mod flood;
pub mod flow;
#[cfg(test)]
mod footprint;
pub mod identity;
pub mod issued;
pub mod keeper_line;
pub mod limits;
pub mod memory;
pub mod observer;
pub mod outgoing;
pub mod pace;
pub mod partial;
pub mod pipeline;
pub mod record;
pub mod reply;
pub mod run;
pub mod sandbox;
#[cfg(test)]
mod schedules;
pub mod service;
pub mod socket;
pub mod stream;
pub mod tls;
pub mod tokens;
pub mod tunnel;
pub mod upgrade;
pub mod upstream;
pub mod wire;
pub mod worker;
