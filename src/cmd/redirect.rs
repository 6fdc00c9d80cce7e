//! `imds-guard redirect show|apply|remove|verify`

use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{anyhow, bail};

use super::{Complaint, Exit};
use crate::cli::{ConfigArgs, RedirectAction, RedirectArgs};
use crate::keeper::bundle::Bundle;
use crate::keeper::files::Trust;
use crate::keeper::plan::wanted_by;
use crate::redirect::apply::{self, Nft};
use crate::redirect::{Direction, Wanted};

/// Shows, loads, removes or verifies the redirect.
pub fn run(args: &RedirectArgs) -> anyhow::Result<Exit> {
    match &args.action {
        RedirectAction::Show(config) => show(config),
        RedirectAction::Apply(config) => load(config),
        RedirectAction::Remove => {
            Nft::find()?.remove()?;
            Ok(Exit::Success)
        }
        RedirectAction::Verify(config) => verify(config),
    }
}

fn show(config: &ConfigArgs) -> anyhow::Result<Exit> {
    write!(io::stdout(), "{}", wanted(&config.config, Trust::Anybody)?.script())?;
    Ok(Exit::Success)
}

fn load(config: &ConfigArgs) -> anyhow::Result<Exit> {
    let wanted = wanted(&config.config, Trust::RootOnly)?;
    if wanted.direction == Direction::Open {
        bail!("audit rules belong to the guard that runs, and go when it ends: start imds-guard run instead");
    }
    // Dropping it leaves an enforce table where it is.
    drop(Nft::find()?.load(&wanted, None)?);
    Ok(Exit::Success)
}

fn verify(config: &ConfigArgs) -> anyhow::Result<Exit> {
    let wanted = wanted(&config.config, Trust::Anybody)?;
    let table = Nft::find()?.table()?;
    let verdict = match &table {
        Some(table) => apply::check(&wanted, table).map_err(|error| error.to_string()),
        None => Err("the redirect is not loaded".to_owned()),
    };
    match verdict {
        Ok(()) => {
            writeln!(io::stdout(), "the redirect is as the policy asks: {} endpoints", wanted.doors.len())?;
            Ok(Exit::Success)
        }
        Err(why) => {
            writeln!(io::stdout(), "{why}")?;
            Ok(Exit::Failure)
        }
    }
}

fn wanted(config: &Path, trust: Trust) -> anyhow::Result<Wanted> {
    let bundle = Bundle::read(config, trust)?;
    let broken = |errors: Vec<_>| {
        let why =
            format!("{} has errors: {}; run imds-guard check to see them", config.display(), errors.len());
        anyhow!(Complaint::new(Exit::Config, why))
    };
    let policy = bundle.compile().map_err(broken)?.policy;
    Ok(wanted_by(&policy)?)
}
