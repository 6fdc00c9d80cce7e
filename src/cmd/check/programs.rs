//! What the policy names and the machine has: executables that are missing, and those that somebody could replace.

use std::path::Path;

use crate::caller::executable::may_only_root_replace;
use crate::policy::{Diagnostic, NamedFile, Programs};

/// Where systemd looks for units (systemd.unit(5)).
const UNIT_PATHS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Warnings about the executables of every agent that this machine has.
pub(super) fn findings(programs: &[Programs]) -> Vec<Diagnostic> {
    programs.iter().flat_map(of_agent).collect()
}

fn of_agent(programs: &Programs) -> Vec<Diagnostic> {
    // `*` may stand for a version that is not installed yet.
    let exact = || programs.exes.iter().filter(|exe| !exe.path.contains('*'));
    let there = |exe: &&NamedFile| Path::new(&*exe.path).exists();
    let writable = exact().filter(there).filter(|exe| !may_only_root_replace(Path::new(&*exe.path)));
    let mut found: Vec<Diagnostic> = writable.map(|exe| exe.warning(
        "writable-exe",
        format!("`{}` can be written or replaced by somebody other than root", exe.path),
        "such a file is never believed, so the agent gets nothing: let root own it and its directories, writable by nobody else",
    )).collect();
    // One of several will do; and an image names agents that a machine need not have.
    if exact().count() == programs.exes.len()
        && !exact().any(|exe| there(&exe))
        && is_installed(&programs.units)
    {
        found.extend(exact().map(|exe| {
            exe.warning(
                "missing-exe",
                format!("agent `{}` is bound to `{}`, which is not there", programs.agent, exe.path),
                "no process can match, so the agent gets nothing: look at what its unit starts (systemctl show -p ExecStart)",
            )
        }));
    }
    found
}

/// Whether one of the agent's units is there; an agent without any could be anywhere.
fn is_installed(units: &[String]) -> bool {
    let exists = |unit: &String| UNIT_PATHS.iter().any(|directory| Path::new(directory).join(unit).exists());
    units.is_empty() || units.iter().any(exists)
}
