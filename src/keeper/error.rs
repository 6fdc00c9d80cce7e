//! Why the guard cannot start, or ended.

use std::io;
use std::path::Path;

use thiserror::Error;

use crate::cloud::Endpoint;
use crate::policy::Diagnostic;
use crate::redirect::apply::RedirectError;

use super::bundle::Bundle;
use super::files::{FileError, Trust};

/// Why the guard cannot start, or ended.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// Only root may run the guard.
    #[error("imds-guard run must be started as root: it loads nftables rules and then drops its privileges")]
    NotRoot,
    /// The stamps mean nothing in a user namespace.
    #[error(
        "imds-guard must run in the initial user namespace: elsewhere the kernel does not tell users apart"
    )]
    UserNamespace,
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The policy has errors.
    #[error("the policy has {} error{}", .0.len(), if .0.len() == 1 { "" } else { "s" })]
    Policy(Vec<Diagnostic>),
    /// The guard's own user does not exist.
    #[error("the guard's user {0:?} does not exist: create it, or set [guard] user to one that does")]
    NoUser(String),
    /// The listener could not be opened.
    #[error("cannot listen on port {port} of the loopback addresses")]
    Listen {
        /// The port.
        port: u16,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The redirect could not be loaded.
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    /// The proxy did not start.
    #[error("the proxy did not become ready: {0}")]
    Proxy(&'static str),
    /// The proxy ended by itself.
    #[error("the proxy ended: {0}")]
    ProxyEnded(std::process::ExitStatus),
    /// The policy has endpoints that the running guard has no listener for.
    #[error("{0} was not guarded when the guard started: restart it")]
    NeedsRestart(Endpoint),
    /// The running guard has neither listeners nor the capability for containers.
    #[error("[containers] was not there when the guard started: restart it")]
    ContainersNeedRestart,
    /// Each endpoint has a listener, and there are not so many ports.
    #[error("from `port` = {0} upwards there are too few ports for all listeners: choose a lower one")]
    Ports(u16),
    /// Without the capability no container could be told from another.
    #[error("[containers] needs CAP_SYS_ADMIN, to look into other network namespaces: let the unit have it")]
    NoNamespaces,
    /// The system failed.
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
}

/// Prints a policy's errors with their places.
pub fn report(diagnostics: &[Diagnostic], config: &Path) {
    let sources = Bundle::read(config, Trust::RootOnly).map(|bundle| bundle.sources()).unwrap_or_default();
    for diagnostic in diagnostics {
        tracing::error!("{}", diagnostic.render(&sources, false));
    }
}
