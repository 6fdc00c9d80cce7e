//! `imds-guard run`, and its hidden other half.

use anyhow::Error;

use super::{Exit, complain};
use crate::cli::RunArgs;
use crate::keeper::error::{self, KeeperError};
use crate::keeper::run as keeper;
use crate::keeper::state::State;

/// Guards until told to stop.
pub fn run(args: &RunArgs) -> anyhow::Result<Exit> {
    let Err(error) = keeper::run(&args.config.config, State::at(args.state.as_deref())) else {
        return Ok(Exit::Success);
    };
    let exit = match &error {
        KeeperError::NotRoot
        | KeeperError::UserNamespace
        | KeeperError::File(_)
        | KeeperError::NoUser(_)
        | KeeperError::Ports(_) => Exit::Config,
        KeeperError::Policy(diagnostics) => {
            error::report(diagnostics, &args.config.config);
            Exit::Config
        }
        KeeperError::Redirect(_) | KeeperError::Listen { .. } | KeeperError::NoNamespaces => {
            Exit::NoPermission
        }
        KeeperError::NeedsRestart(_)
        | KeeperError::ContainersNeedRestart
        | KeeperError::Proxy(_)
        | KeeperError::ProxyEnded(_)
        | KeeperError::System(_) => Exit::Software,
    };
    complain(&Error::new(error));
    Ok(exit)
}

/// The proxy's process.
pub fn proxy() -> anyhow::Result<Exit> {
    crate::proxy::run::run()?;
    Ok(Exit::Success)
}
