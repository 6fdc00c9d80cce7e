//! `imds-guard learn`: a policy proposed from what was seen.

use std::io::{self, Write as _};

use super::{Exit, input, output, talk};
use crate::cli::LearnArgs;
use crate::report::learn::Learner;
use crate::report::proposal::{self, Purpose};

/// Proposes a policy, or what another one lacks.
pub fn run(args: &LearnArgs) -> anyhow::Result<Exit> {
    let base =
        args.merge.as_ref().map(|file| input::policy_for(file, input::context_for_logs())).transpose()?;
    let logs = input::logs(&args.logs, &args.config)?;
    let mut learner = Learner::default();
    let tally = input::read(&args.logs, &logs, |record| {
        learner.add(record, base.as_ref().map(|loaded| &loaded.policy));
    })?;
    if tally.events == 0 {
        talk("the log holds no events, so there is nothing to propose");
        return Ok(Exit::Failure);
    }
    let places = base.as_ref().map(input::Loaded::places).unwrap_or_default();
    let taken = |name: &str| places.agent(name).is_some() || places.rule(name).is_some();
    let purpose = if base.is_some() { Purpose::DropIn } else { Purpose::Whole };
    let text = proposal::write(&learner, purpose, &taken);
    match &args.output {
        Some(path) => output::replace(path, text.as_bytes())?,
        None => io::stdout().lock().write_all(text.as_bytes())?,
    }
    talk(&format!(
        "{} callers proposed, {} not; check it, test it, and replay the log against it before you use it",
        learner.accepted().count(),
        learner.refused().count()
    ));
    Ok(Exit::Success)
}
