//! The tests can fail: without the guard, or without its redirect, the secrets flow and nothing is recorded.

use nix::sys::signal::Signal;

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::policy::Policy;
use crate::support::simulator::SECRET_MARK;

const URL: &str = "http://169.254.169.254/latest/meta-data/iam/security-credentials/decoy-role";

#[test]
#[ignore = "needs root: make test runs it"]
fn without_the_guard_everybody_gets_the_secrets() {
    let bed = Bed::new();
    for caller in [bed.agent(), bed.webapp(), bed.person()] {
        let answer = caller.get(URL);
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains(SECRET_MARK));
    }
    assert_eq!(bed.reached(ROLE_PATH).len(), 3);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn without_the_redirect_the_guard_sees_nothing() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    // The keeper puts a removed redirect back, so it has to be held still.
    guard.signal(Signal::SIGSTOP);
    assert!(bed.nft(&["delete", "table", "inet", "imds_guard"]).0);
    let answer = bed.webapp().get(URL);
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains(SECRET_MARK));
    let of_requests = |event: &crate::support::event::Event| event.text("event.action") == "request";
    assert!(!guard.events().iter().any(of_requests), "{:?}", guard.events());
}
