//! End to end: the real binary behind the real redirect, a decoy cloud, and callers of every kind, in network
//! namespaces that each test makes and removes.
//!
//! They need root (`make test` runs them then), nft, iproute2, util-linux, curl and Python. One file a subject.

#![allow(
    unreachable_pub,
    dead_code,
    reason = "the test bed is shared with the demo, which uses other parts of it"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that cannot go on must stop and say so"
)]
#![allow(clippy::missing_panics_doc, reason = "the same")]

#[path = "../support/mod.rs"]
mod support;

mod attacks;
mod attribution;
mod audit_log;
mod audit_mode;
mod clients;
mod clouds;
mod coexistence;
mod commands;
mod connections;
mod containers;
mod corpus;
mod decisions;
mod decoys;
mod degraded;
mod documents;
mod doors;
mod http;
mod identity;
mod issued;
mod last_good;
mod lifecycle;
mod memory;
mod negative_control;
mod network;
mod node_agents;
mod odd_sockets;
mod privileges;
mod redaction;
mod redirect_command;
mod reload;
mod rotation;
mod session;
mod status;
mod tampering;
mod tls;
mod tools;
mod upstream;
mod upstream_faults;
mod verify;
mod walkthrough;
