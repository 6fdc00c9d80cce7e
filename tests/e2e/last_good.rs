//! A policy that has become wrong: the last good one takes its place, and without one the direction holds that the last
//! accepted policy had.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::guard::Guard;
use crate::support::policy::Policy;
use crate::support::simulator::SECRET_MARK;

const URL: &str = "http://169.254.169.254/latest/meta-data/iam/security-credentials/decoy-role";

/// EX_CONFIG.
const CONFIGURATION: i32 = 78;

fn broken(_: &Path) -> String {
    "mode = \"enforce\"\n[everyone]\nalow = [\"config\"]\n".to_owned()
}

/// A directory for the guard's state, and a guard of this mode that has once accepted its policy and was stopped.
fn after_a_good_start(bed: &Bed, policy: &Policy) -> (tempfile::TempDir, Guard) {
    let state = tempfile::tempdir().unwrap();
    let mut guard = Guard::start_with_state(&bed.network.vm, |dir| policy.text(dir), state.path());
    guard.signal(Signal::SIGTERM);
    assert!(guard.wait_for_end().success());
    (state, guard)
}

fn closing_table(state: &tempfile::TempDir) -> PathBuf {
    state.path().join("closed.nft")
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_broken_policy_at_start_gives_way_to_the_last_good_one() {
    for (policy, enforces) in [(Policy::enforce(), true), (Policy::audit(), false)] {
        let bed = Bed::new();
        let (state, before) = after_a_good_start(&bed, &policy);
        let guard = Guard::start_with_state(&bed.network.vm, broken, state.path());
        assert_eq!(bed.agent().get(URL).status, 200);
        assert_eq!(bed.webapp().get(URL).is_refusal(), enforces);
        // Its log is where the good policy says.
        let event =
            before.event("of the broken policy", |event| event.text("imds_guard.reason") == "policy-broken");
        assert_eq!(event.text("event.severity"), "2");
        assert!(guard.output().contains("alow"), "it must say what is wrong:\n{}", guard.output());
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn without_a_good_policy_it_is_closed_where_the_last_one_enforced() {
    let bed = Bed::new();
    let (state, _before) = after_a_good_start(&bed, &Policy::enforce());
    std::fs::remove_file(state.path().join("last-good.json")).unwrap();
    assert!(bed.nft(&["delete", "table", "inet", "imds_guard"]).0, "as after a reboot");
    let output = start_broken(&bed, &state);
    assert_eq!(output.status.code(), Some(CONFIGURATION));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("\"imds_guard.reason\":\"policy-broken\""),
        "{output:?}"
    );
    let curl = bed.agent().curl(&["--max-time", "3", URL]);
    assert!(curl.exit != 0 && !curl.answer.text().contains(SECRET_MARK), "{curl:?}");
    assert!(bed.reached(ROLE_PATH).is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn without_a_good_policy_it_is_open_where_the_last_one_audited() {
    let bed = Bed::new();
    let (state, _before) = after_a_good_start(&bed, &Policy::audit());
    std::fs::remove_file(state.path().join("last-good.json")).unwrap();
    let output = start_broken(&bed, &state);
    assert_eq!(output.status.code(), Some(CONFIGURATION));
    assert!(String::from_utf8_lossy(&output.stdout).contains("policy-broken"), "{output:?}");
    assert_eq!(bed.webapp().get(URL).status, 200);
    assert!(!bed.has_redirect());
}

/// By the service manager's variable, as for a unit with `StateDirectory=`.
fn start_broken(bed: &Bed, state: &tempfile::TempDir) -> std::process::Output {
    let policy = Policy::enforce().with("[[agnet]]\nname = \"misspelt\"");
    Guard::run_to_end(bed.guard_command().env("STATE_DIRECTORY", state.path()), &policy)
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_reload_that_changes_the_mode_changes_the_direction() {
    let bed = Bed::new();
    let state = tempfile::tempdir().unwrap();
    let mut guard = Guard::start_with_state(&bed.network.vm, |dir| Policy::audit().text(dir), state.path());
    assert!(!closing_table(&state).exists());
    guard.reload(&Policy::enforce());
    assert!(closing_table(&state).exists());
    guard.reload_text("mode = \"audit\"\nnot toml\n");
    assert!(closing_table(&state).exists(), "a refused reload changes nothing");
    guard.reload(&Policy::audit());
    assert!(!closing_table(&state).exists());
    guard.reload(&Policy::enforce());
    crate::support::guard::send(guard.keeper(), Signal::SIGKILL);
    guard.wait_for_end();
    let curl = bed.agent().curl(&["--max-time", "3", URL]);
    assert!(!curl.answer.text().contains(SECRET_MARK), "{curl:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_stranger_s_state_is_not_believed() {
    use std::os::unix::fs::PermissionsExt as _;
    let bed = Bed::new();
    let (state, _before) = after_a_good_start(&bed, &Policy::enforce());
    std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(start_broken(&bed, &state).status.code(), Some(CONFIGURATION));
}
