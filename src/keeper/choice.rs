//! Which policy the guard starts with: its file's, or the last one that it accepted.

use std::path::Path;

use crate::policy::Policy;
use crate::redirect::apply::Nft;

use super::bundle::Bundle;
use super::error::{KeeperError, report};
use super::files::{self, Trust};
use super::plan::compile;
use super::state::State;

/// The policy to start with.
pub(super) struct Chosen {
    /// Its files.
    pub(super) bundle: Bundle,
    /// What they say.
    pub(super) policy: Policy,
    /// Why they are not what is in the files now.
    pub(super) stand_in: Option<String>,
}

/// Reads the policy. If it is wrong, its place is taken by the last one that was accepted; if there is none either,
/// the guard cannot start, and leaves the endpoints in the direction of the last policy that it knew.
pub(super) fn choose(config: &Path, state: &State) -> Result<Chosen, KeeperError> {
    let error = match read(config) {
        Ok((bundle, policy)) => return Ok(Chosen { bundle, policy, stand_in: None }),
        Err(error) => error,
    };
    if let Some((bundle, policy)) = last_good(state) {
        if let KeeperError::Policy(diagnostics) = &error {
            report(diagnostics, config);
        }
        let why = format!("the last policy that was accepted is in force: {error:#}");
        tracing::error!("{why}");
        return Ok(Chosen { bundle, policy, stand_in: Some(why) });
    }
    let direction = match close(state) {
        Ok(true) => "the endpoints are closed, as the last policy wanted",
        Ok(false) => "the endpoints are open",
        Err(failure) => {
            tracing::error!(error = %failure, "the endpoints could not be closed");
            "the endpoints could not be closed"
        }
    };
    tell(&format!("no policy to guard by, and none was kept: {error:#}; {direction}"));
    Err(error)
}

fn read(config: &Path) -> Result<(Bundle, Policy), KeeperError> {
    let bundle = Bundle::read(config, Trust::RootOnly)?;
    let policy = compile(&bundle)?;
    Ok((bundle, policy))
}

fn last_good(state: &State) -> Option<(Bundle, Policy)> {
    let kept =
        state.last_good().inspect_err(|error| tracing::error!(%error, "the kept policy cannot be used"));
    let bundle = kept.ok()??;
    let policy =
        compile(&bundle).inspect_err(|error| tracing::error!(%error, "the kept policy is wrong, too"));
    Some((bundle, policy.ok()?))
}

/// Loads the table that closes the endpoints, if one was kept; whether there was one.
fn close(state: &State) -> anyhow::Result<bool> {
    let Some(table) = state.closing_table()? else { return Ok(false) };
    Nft::find()?.load_text(&table)?;
    Ok(true)
}

/// The policy says where the audit log is, and there is no policy: standard output, which the service manager keeps.
fn tell(message: &str) {
    let told = files::standard_output().and_then(|mut log| log.append_guard_event("policy-broken", message));
    if let Err(error) = told {
        tracing::error!(%error, "an event of the guard's own could not be written");
    }
}
