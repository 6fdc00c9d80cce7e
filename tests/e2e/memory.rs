//! `cache = "constants"`: what cannot change while the machine runs is asked for once.

use std::time::Duration;

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::caller::Caller;
use crate::support::policy::Policy;
use crate::support::simulator::{Fault, Options};

const METADATA: &str = "169.254.169.254:80";
const INSTANCE_ID: &str = "/latest/meta-data/instance-id";

fn remembering() -> Policy {
    Policy::enforce().cloud("aws").guard_key("cache = \"constants\"")
}

/// What may change, or is somebody's secret, or proves something.
const NEVER: [&str; 4] = [
    ROLE_PATH,
    "/latest/user-data",
    "/latest/meta-data/network/interfaces/macs/",
    "/latest/dynamic/instance-identity/document",
];

fn url(path: &str) -> String {
    format!("http://169.254.169.254{path}")
}

fn fetch_token(caller: &Caller<'_>) -> String {
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60";
    caller.curl(&["-X", "PUT", "-H", ttl, &url("/latest/api/token")]).answer.text()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_constant_is_asked_for_once_and_the_event_says_where_it_came_from() {
    let bed = Bed::new();
    let guard = bed.guard(&remembering());
    let first = bed.agent().get(&url(INSTANCE_ID));
    let second = bed.webapp().get(&url(INSTANCE_ID));
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(first.text(), second.text());
    assert_eq!(first.header("content-type"), second.header("content-type"));
    assert_eq!(bed.reached(INSTANCE_ID).len(), 1);
    let told = guard.event("an answer from memory", |event| event.text("imds_guard.from_memory") == "true");
    assert_eq!(
        (told.text("url.path"), told.text("imds_guard.result")),
        (INSTANCE_ID.into(), "forwarded".into())
    );
    guard.reload(&remembering().key("# changed"));
    assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 200);
    assert_eq!(bed.reached(INSTANCE_ID).len(), 2, "a reload forgets");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn sixty_four_units_that_ask_at_once_make_one_request() {
    let bed = Bed::new();
    let _guard = bed.guard(&remembering());
    bed.cloud.set_fault(Fault::Slow(Duration::from_millis(400)));
    let callers: Vec<Caller<'_>> = (0..64)
        .map(|number| bed.caller(&format!("imds-test-many-{number}.service"), 2000 + number))
        .collect();
    let mut connections: Vec<_> = callers.iter().map(|caller| caller.connect(METADATA)).collect();
    for connection in &mut connections {
        connection.get(INSTANCE_ID, &[]);
    }
    for connection in &mut connections {
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    }
    assert_eq!(bed.reached(INSTANCE_ID).len(), 1);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_token_that_the_service_would_refuse_gets_nothing_from_memory() {
    let bed = Bed::with_options(Options { v2_only: true, ..Options::default() });
    let _guard = bed.guard(&remembering());
    let showing = |token: &str| format!("X-aws-ec2-metadata-token: {token}");
    let (mine, yours) = (fetch_token(&bed.agent()), fetch_token(&bed.webapp()));
    for token in [&mine, &mine, &yours] {
        assert_eq!(bed.agent().get_with(&url(INSTANCE_ID), &[&showing(token)]).status, 200);
    }
    assert_eq!(bed.reached(INSTANCE_ID).len(), 1, "good tokens are alike");
    assert_eq!(bed.agent().get_with(&url(INSTANCE_ID), &[&showing("made-up")]).status, 401);
    assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 401, "and so does no token");
    assert_eq!(bed.agent().get_with(&url(INSTANCE_ID), &["X-aws-ec2-metadata-token;"]).status, 401);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_may_change_or_is_a_secret_is_never_remembered() {
    let bed = Bed::new();
    let guard = bed.guard(&remembering());
    for _ in 0..2 {
        for path in NEVER {
            bed.agent().get(&url(path));
        }
        fetch_token(&bed.agent());
        bed.cloud.set_fault(Fault::Status(404));
        assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 404);
        bed.cloud.set_fault(Fault::None);
    }
    for path in NEVER.iter().chain(&[INSTANCE_ID, "/latest/api/token"]) {
        assert_eq!(bed.reached(path).len(), 2, "{path}");
    }
    assert!(guard.events().iter().all(|event| event.text("imds_guard.from_memory") != "true"));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn nothing_is_remembered_unless_the_policy_says_so() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce().cloud("aws"));
    for _ in 0..2 {
        assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 200);
    }
    assert_eq!(bed.reached(INSTANCE_ID).len(), 2);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn whoever_may_not_read_a_constant_gets_none_from_memory() {
    let bed = Bed::new();
    let _guard = bed.guard(&remembering().everyone(""));
    assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 200);
    assert!(bed.webapp().get(&url(INSTANCE_ID)).is_refusal());
}
