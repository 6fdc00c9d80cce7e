//! The test bed of the end-to-end tests and of the demo.
//!
//! | part | what it is |
//! |---|---|
//! | [`simulator`] | the decoy cloud, in this process |
//! | [`netns`] | two network namespaces, "cloud" and "vm", with a cable between them |
//! | [`cgroup`] | control groups that look as systemd's do |
//! | [`caller`], [`connection`] | programs that ask for metadata as some user, in some unit; curl, or raw bytes |
//! | [`container`] | network namespaces behind a bridge of the vm, as container engines make them |
//! | [`guard`], [`policy`] | the real binary, with a policy, in the vm |
//! | [`tls`] | the same cloud behind TLS, and a certificate authority |
//! | [`event`] | its audit log |
//! | [`bed`] | all of them together |
//!
//! Everything is removed when it is dropped, also when a test panics.

pub mod answer;
pub mod bed;
pub mod caller;
pub mod cgroup;
pub mod connection;
pub mod container;
pub mod event;
pub mod guard;
pub mod netns;
pub mod policy;
pub mod simulator;
pub mod tls;
pub mod wait;
