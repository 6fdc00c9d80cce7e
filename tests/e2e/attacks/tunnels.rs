//! What audit mode passes on unread must not live on when the policy is enforced.

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::connection::End;
use crate::support::policy::Policy;

const METADATA: &str = "169.254.169.254:80";

/// Two spaces: a service may understand it, the guard must not guess, and audit mode passes it on.
const UNREADABLE: &[u8] = b"GET  /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n";

#[test]
#[ignore = "needs root: make test runs it"]
fn a_tunnel_opened_in_audit_ends_when_enforce_is_loaded() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::audit());
    let mut tunnel = bed.person().connect(METADATA);
    tunnel.send(UNREADABLE);
    assert_eq!(tunnel.answer().map(|answer| answer.text()).as_deref(), Some("i-0decoy"));
    guard.reload(&Policy::enforce());
    tunnel.get(ROLE_PATH, &[]);
    assert!(tunnel.answer().is_none());
    assert_eq!(tunnel.end(), End::Reset);
    assert!(bed.reached(ROLE_PATH).is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_tunnel_lives_on_when_audit_is_loaded_again() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::audit());
    let mut tunnel = bed.person().connect(METADATA);
    tunnel.send(UNREADABLE);
    assert_eq!(tunnel.answer().map(|answer| answer.status), Some(200));
    guard.reload(&Policy::audit());
    tunnel.send(UNREADABLE);
    assert_eq!(tunnel.answer().map(|answer| answer.status), Some(200));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_connection_kept_since_audit_cannot_become_a_tunnel() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::audit());
    let mut kept = bed.person().connect(METADATA);
    kept.get("/latest/meta-data/instance-id", &[]);
    assert_eq!(kept.answer().map(|answer| answer.status), Some(200));
    let before = bed.cloud.received().len();
    guard.reload(&Policy::enforce());
    kept.send(UNREADABLE);
    assert!(kept.answer().is_none_or(|answer| answer.is_refusal()));
    kept.get(ROLE_PATH, &[]);
    assert!(kept.answer().is_none_or(|answer| answer.is_refusal()));
    assert_eq!(bed.cloud.received().len(), before, "something passed unread");
}
