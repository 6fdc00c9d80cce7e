//! The privileged half. It reads policy files, opens logs and listeners, keeps the redirect, and answers the
//! proxy's few questions. It never reads a byte that a caller wrote.

pub mod answers;
pub mod bundle;
pub mod certificates;
pub mod choice;
pub mod commands;
mod decoys;
pub mod error;
pub mod files;
mod guestbook;
mod hints;
pub mod host;
pub mod listeners;
mod news;
pub mod node_agents;
pub mod plan;
pub mod privileges;
pub mod protocol;
pub mod proxy;
pub mod replies;
pub mod rotation;
pub mod run;
pub mod state;
pub mod status;
pub mod store;
pub mod upstream;
