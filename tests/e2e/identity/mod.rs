//! Tricks by which somebody without privileges passes for somebody else; none may read a credential.
//!
//! Every trick is played twice. First while the guard only watches: there it must get the credential, or it would show
//! nothing. Then while the same policy is enforced: there it must not, and nothing of it may reach the cloud.
//!
//! The tricks themselves stand in `tests/support/tricks.py`. They are played by a [`stranger`], who is neither the user
//! nor in the unit of an agent, and, where it is about the program, by an [`insider`], who is both and merely runs
//! something else. What an insider can do with the genuine program itself (preload a library into it, or let it connect
//! and be the only visible holder) is no matter of identity: such a user *is* the agent, and the threat model says so.

mod disguise;
mod genuine;
mod kernel;
mod possession;
mod units;

use std::os::unix::fs::chown;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::bed::{Bed, PERSON_UID, ROLE_PATH};
use crate::support::caller::{Caller, PYTHON};
use crate::support::guard::Guard;
use crate::support::netns::unique;
use crate::support::policy::Policy;
use crate::support::simulator::SECRET_MARK;

const TRICKS: &str = include_str!("../../support/tricks.py");

/// The user of the agent that is pinned by unit and user.
const PINNED_UID: u32 = 63_201;
const PINNED_UNIT: &str = "pinned.service";

/// The user of the agent that is pinned by unit, user and executable.
const BOUND_UID: u32 = 63_202;
const BOUND_UNIT: &str = "bound.service";

/// The exit status by which a trick tells that this machine lacks the means for it.
const SKIPPED: i32 = 77;

/// Both agents, the second bound to this executable.
fn agents(policy: Policy, exe: &str) -> Policy {
    policy.with(&format!(
        "[[agent]]\nname = \"pinned\"\nunit = \"{PINNED_UNIT}\"\nuser = {PINNED_UID}\nallow = [\"credentials\"]\n\n\
         [[agent]]\nname = \"bound\"\nunit = \"{BOUND_UNIT}\"\nuser = {BOUND_UID}\nexe = [\"{exe}\"]\n\
         allow = [\"credentials\"]"
    ))
}

/// Neither an agent's user nor in an agent's unit.
fn stranger(bed: &Bed) -> Caller<'_> {
    bed.caller("session-7.scope", PERSON_UID)
}

/// The bound agent's user in its unit. What else it runs must not matter.
fn insider(bed: &Bed) -> Caller<'_> {
    bed.caller(BOUND_UNIT, BOUND_UID)
}

/// The pinned agent.
fn pinned(bed: &Bed) -> Caller<'_> {
    bed.caller(PINNED_UNIT, PINNED_UID)
}

/// A bed with a guard that watches, and can be told to enforce.
struct Stage {
    guard: Guard,
    bed: Bed,
    exe: String,
}

impl Stage {
    fn new() -> Self {
        Self::with_exe("/usr/bin/curl")
    }

    fn with_exe(exe: &str) -> Self {
        let bed = Bed::new();
        let guard = bed.guard(&agents(Policy::audit(), exe));
        Self { guard, bed, exe: exe.to_owned() }
    }

    fn enforce(&self) {
        self.guard.reload(&agents(Policy::enforce(), &self.exe));
    }

    /// Plays `play`, which tells what was read, in both modes, and demands that only the first succeeds. `None` is a
    /// trick that this machine lacks the means for.
    fn fools_nobody(&self, play: impl Fn(&Bed) -> Option<String>) {
        let Some(watched) = play(&self.bed) else { return };
        assert!(watched.contains(SECRET_MARK), "the trick shows nothing, it does not work at all: {watched}");
        let before = self.bed.reached(ROLE_PATH).len();
        self.enforce();
        let judged = play(&self.bed).unwrap_or_default();
        assert!(!judged.contains(SECRET_MARK), "it passed for the agent: {judged}");
        assert_eq!(self.bed.reached(ROLE_PATH).len(), before, "its request reached the cloud");
        self.guard.event("of the refused trick", |event| {
            event.text("imds_guard.verdict") == "deny" && event.text("imds_guard.mode") == "enforce"
        });
    }
}

/// Plays a trick of the script with each of these callers.
fn fools_nobody(trick: &str, callers: &[fn(&Bed) -> Caller<'_>]) {
    for caller in callers {
        Stage::new().fools_nobody(|bed| play(&caller(bed), trick, &[]));
    }
}

/// Runs a trick to its end, in a directory of its own; what it wrote, or `None` if it cannot be played here.
pub(super) fn play(caller: &Caller<'_>, trick: &str, arguments: &[&str]) -> Option<String> {
    let scratch = scratch(caller.uid);
    let output = run(caller, trick, &scratch, arguments);
    let told = format!("{}{}", text(&output.stdout), text(&output.stderr));
    if output.status.code() == Some(SKIPPED) {
        eprintln!("SKIPPED {trick}: {told}");
        return None;
    }
    Some(told)
}

/// A trick that hangs ends by `timeout`, with all its processes.
fn run(caller: &Caller<'_>, trick: &str, scratch: &TempDir, arguments: &[&str]) -> Output {
    let mut command = caller.command("timeout");
    command.args(["-k", "1", "25", PYTHON, "-I", "-S", "-c", TRICKS, trick]);
    command.arg(scratch.path()).args(arguments).output().expect("python3 runs")
}

/// A trick that goes on until the test ends it.
pub(super) fn start(caller: &Caller<'_>, trick: &str, scratch: &TempDir, arguments: &[&str]) -> Command {
    let mut command = caller.command(PYTHON);
    command.args(["-I", "-S", "-c", TRICKS, trick]).arg(scratch.path()).args(arguments);
    command
}

/// A new directory that belongs to the user.
pub(super) fn scratch(uid: u32) -> TempDir {
    let scratch = tempfile::Builder::new().prefix(&unique()).tempdir().expect("a directory");
    chown(scratch.path(), Some(uid), Some(uid)).expect("root may give it away");
    scratch
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
