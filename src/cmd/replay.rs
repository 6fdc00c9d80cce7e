//! `imds-guard replay`: what another policy would have said to what was recorded.

use std::collections::BTreeSet;
use std::io::{self, Write as _};

use super::{Exit, input, talk};
use crate::cli::{ConfigArgs, ReplayArgs};
use crate::report::log::Tally;
use crate::report::replay::Replay;
use crate::report::table::{Table, count};

/// Decides a log again; fails if any verdict differs.
pub fn run(args: &ReplayArgs) -> anyhow::Result<Exit> {
    let logs = input::logs(&args.logs, &ConfigArgs { config: args.policy.clone() })?;
    let loaded = input::policy_for(&args.policy, input::context_for_logs())?;
    let mut replay = Replay::default();
    let tally = input::read(&args.logs, &logs, |record| replay.add(record, &loaded.policy))?;
    let mut out = io::stdout().lock();
    if args.json {
        let told = serde_json::json!({
            "requests": replay.requests,
            "newly_denied": replay.newly_denied,
            "newly_allowed": replay.newly_allowed,
            "uncertain": replay.uncertain,
            "differences": replay.sorted(),
            "log": tally,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&told)?)?;
    } else {
        show(&replay, &tally, &mut out)?;
    }
    Ok(if replay.is_same() { Exit::Success } else { Exit::Failure })
}

fn show(replay: &Replay, tally: &Tally, out: &mut impl io::Write) -> anyhow::Result<()> {
    if tally.events == 0 {
        talk("the log holds no events");
    }
    let mut table = Table::new(&["COUNT", "CALLER", "REQUEST", "WAS", "WOULD BE", "BECAUSE", "EVENT"], &[0]);
    for one in replay.sorted() {
        let mut because = one.after_reason.to_owned();
        for named in [&one.rule, &one.agent].into_iter().flatten().collect::<BTreeSet<_>>() {
            because.extend([" (", named, ")"]);
        }
        let doubt = if one.uncertain { "?" } else { "" };
        table.row([
            &*count(one.count),
            &one.caller.to_string(),
            &format!("{} {}", one.method, one.path),
            one.before,
            &format!("{}{doubt}", one.after),
            &because,
            &one.event,
        ]);
    }
    if !table.is_empty() {
        table.write(out)?;
        writeln!(out)?;
    }
    writeln!(
        out,
        "{} requests decided again: {} would be denied that were allowed, {} allowed that were denied",
        count(replay.requests),
        count(replay.newly_denied),
        count(replay.newly_allowed)
    )?;
    if replay.uncertain > 0 {
        writeln!(
            out,
            "{} of them (marked ? where they differ) depend on what the log does not hold, such as the executable",
            count(replay.uncertain)
        )?;
    }
    Ok(())
}
