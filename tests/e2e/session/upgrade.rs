//! `v1 = "upgrade"`: the guard shows a token of its own for a listed caller that cannot.

use std::time::Duration;

use super::{INSTANCE_ID, TOKEN_PATH, showing, shown, url, v2_only, with_v1};
use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::event::Event;
use crate::support::guard::Guard;
use crate::support::policy::Policy;
use crate::support::simulator::{Fault, Options, SECRET_MARK};
use crate::support::wait;

/// Part of every session token of the decoy cloud.
const SESSION_MARK: &str = "decoy-secret-session";

fn upgrading() -> Policy {
    with_v1(Policy::enforce(), "upgrade").workers(1)
}

fn tokens_fetched(bed: &Bed) -> usize {
    bed.reached(TOKEN_PATH).len()
}

/// No token of the guard's may be anywhere but at the cloud.
fn tells_no_token(guard: &Guard) {
    let log = std::fs::read_to_string(guard.log()).unwrap_or_default();
    assert!(
        !log.contains(SESSION_MARK) && !guard.output().contains(SESSION_MARK),
        "{log}\n{}",
        guard.output()
    );
}

fn is_upgraded(event: &Event) -> bool {
    event.text("imds_guard.upgraded") == "true"
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_listed_legacy_caller_is_served_by_a_cloud_that_requires_tokens() {
    let bed = v2_only();
    let guard = bed.guard(&upgrading());
    for _ in 0..3 {
        let answer = bed.agent().get(&url(ROLE_PATH));
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains(SECRET_MARK));
        let all = format!("{:?}{}", answer.headers, answer.text());
        assert!(!all.contains(SESSION_MARK), "the caller got the guard's token: {all}");
    }
    assert_eq!(bed.agent().curl(&["-I", &url(ROLE_PATH)]).answer.status, 200, "HEAD is a read");
    assert_eq!(tokens_fetched(&bed), 1, "one token serves until it expires");
    let head = &bed.reached(TOKEN_PATH)[0].text();
    assert!(head.starts_with("PUT /latest/api/token HTTP/1.1\r\n") && head.contains(": 21600\r\n"), "{head}");
    assert!(
        bed.reached(ROLE_PATH)
            .iter()
            .all(|read| shown(read).is_some_and(|token| token.contains(SESSION_MARK)))
    );
    let event = guard.event_for(ROLE_PATH);
    assert!(is_upgraded(&event), "{event:?}");
    assert_eq!(
        (event.text("imds_guard.session"), event.text("imds_guard.verdict")),
        ("v1".into(), "allow".into())
    );
    tells_no_token(&guard);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_service_that_brings_the_token_back_gives_it_to_nobody() {
    let options = Options { v2_only: true, echoes_token: true, ..Options::default() };
    let bed = Bed::with_options(options);
    let _guard = bed.guard(&upgrading());
    let answer = bed.agent().get(&url(INSTANCE_ID));
    assert_eq!(answer.status, 200);
    assert!(!format!("{:?}", answer.headers).contains(SESSION_MARK), "{answer:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn nobody_else_has_a_token_lent() {
    let bed = v2_only();
    let guard = bed.guard(&upgrading().key("v1 = \"upgrade\""));
    // A web application that was talked into a plain GET is no listed caller, though it may read this.
    let answer = bed.webapp().get(&url(INSTANCE_ID));
    assert!(answer.status == 401 && !answer.is_refusal(), "the cloud's own answer: {answer:?}");
    let event = guard.event_for(INSTANCE_ID);
    assert!(!is_upgraded(&event) && event.text("imds_guard.session") == "v1", "{event:?}");
    assert_eq!(bed.webapp().get(&url(ROLE_PATH)).status, 404);
    assert_eq!(tokens_fetched(&bed), 0);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_caller_that_shows_a_token_is_never_upgraded() {
    let bed = v2_only();
    let guard = bed.guard(&upgrading());
    assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 200);
    for header in [&showing("stale"), "X-aws-ec2-metadata-token;"] {
        let answer = bed.agent().get_with(&url(ROLE_PATH), &[header]);
        assert!(answer.status == 401 && !answer.is_refusal(), "{header}: {answer:?}");
    }
    let sent: Vec<_> = bed.reached(ROLE_PATH).iter().map(shown).collect();
    assert_eq!(sent, [Some("stale".to_owned()), Some(String::new())]);
    assert!(!is_upgraded(&guard.event_for(ROLE_PATH)));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_mode_upgrades_nothing() {
    let bed = v2_only();
    let guard = bed.guard(&with_v1(Policy::audit(), "upgrade"));
    assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 401);
    assert!(!is_upgraded(&guard.event_for(INSTANCE_ID)));
    assert_eq!(tokens_fetched(&bed), 0);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn one_token_is_fetched_however_many_wait_for_it() {
    let bed = v2_only();
    let _guard = bed.guard(&upgrading());
    bed.cloud.set_fault(Fault::Slow(Duration::from_millis(400)));
    let mut waiting: Vec<_> = (0..16).map(|_| bed.agent().connect("169.254.169.254:80")).collect();
    for connection in &mut waiting {
        connection.get(INSTANCE_ID, &[]);
    }
    for connection in &mut waiting {
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    }
    assert_eq!(tokens_fetched(&bed), 1);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_refused_token_is_renewed_once() {
    let bed = v2_only();
    let _guard = bed.guard(&upgrading());
    assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 200);
    bed.cloud.revoke_tokens();
    assert_eq!(bed.agent().get(&url(ROLE_PATH)).status, 200, "the caller sees nothing of it");
    assert_eq!((tokens_fetched(&bed), bed.reached(ROLE_PATH).len()), (2, 2));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_service_that_refuses_every_token_is_not_asked_forever() {
    let bed = v2_only();
    let _guard = bed.guard(&upgrading());
    assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 200);
    bed.cloud.set_fault(Fault::Status(401));
    for _ in 0..5 {
        let answer = bed.agent().get(&url(ROLE_PATH));
        assert!(answer.status == 401 && !answer.is_refusal(), "{answer:?}");
    }
    assert_eq!(tokens_fetched(&bed), 2, "one more try, and then a pause");
    assert_eq!(bed.reached(ROLE_PATH).len(), 5);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_service_that_refuses_its_own_new_tokens_is_not_asked_with_every_read() {
    // Reads are refused for a reason of the service's own: a fresh token changes nothing.
    let options = Options { v2_only: true, token_seconds: Some(0), ..Options::default() };
    let bed = Bed::with_options(options);
    let _guard = bed.guard(&upgrading());
    for _ in 0..8 {
        assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 401);
    }
    // Two, and two more after each pause of ten seconds.
    assert!(tokens_fetched(&bed) <= 4, "{}", tokens_fetched(&bed));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_token_is_renewed_before_it_expires() {
    let options = Options { v2_only: true, token_seconds: Some(4), ..Options::default() };
    let bed = Bed::with_options(options);
    let _guard = bed.guard(&upgrading());
    let mut reads = 0;
    wait::until_true("the third token is fetched", Duration::from_mins(1), || {
        assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 200);
        reads += 1;
        tokens_fetched(&bed) >= 3
    });
    assert_eq!(bed.reached(INSTANCE_ID).len(), reads, "a token that had expired was shown, and then another");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_service_without_tokens_gets_the_request_as_it_is() {
    // A clone of EC2 that answers 404 to the token request: a second request for each read would be no service.
    let bed = Bed::new();
    let guard = bed.guard(&upgrading());
    bed.cloud.set_fault(Fault::Status(404));
    for _ in 0..3 {
        assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 404);
    }
    assert_eq!((tokens_fetched(&bed), bed.reached(INSTANCE_ID).len()), (1, 3));
    assert!(bed.reached(INSTANCE_ID).iter().all(|read| shown(read).is_none()));
    assert!(!is_upgraded(&guard.event_for(INSTANCE_ID)));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn tokens_are_fetched_on_a_connection_of_their_own() {
    let bed = v2_only();
    let _guard = bed.guard(&upgrading());
    for _ in 0..4 {
        assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 200);
    }
    let fetched = bed.reached(TOKEN_PATH)[0].peer;
    assert!(bed.reached(INSTANCE_ID).iter().all(|read| read.peer != fetched));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_guard_s_own_token_is_worthless_in_a_caller_s_hands() {
    let bed = v2_only();
    let guard = bed.guard(&upgrading().key("bind-tokens = \"on\""));
    assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 200);
    let token = shown(&bed.reached(INSTANCE_ID)[0]).unwrap();
    for caller in [bed.agent(), bed.webapp()] {
        assert!(caller.get_with(&url(INSTANCE_ID), &[&showing(&token)]).is_refusal());
    }
    let event = guard.event("of it", |event| event.text("imds_guard.token.holder") == "foreign");
    assert_eq!(event.text("imds_guard.token.fetched_by"), "the guard itself");
    tells_no_token(&guard);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_reload_keeps_the_guard_s_token_and_takes_back_the_loan() {
    let bed = v2_only();
    let guard = bed.guard(&upgrading());
    let mut connection = bed.agent().connect("169.254.169.254:80");
    let mut status = || {
        connection.get(INSTANCE_ID, &[]);
        connection.answer().map(|answer| answer.status)
    };
    assert_eq!(status(), Some(200));
    guard.reload(&with_v1(Policy::enforce(), "allow").workers(1));
    assert_eq!(status(), Some(401));
    guard.reload(&upgrading());
    assert_eq!(status(), Some(200));
    assert_eq!(tokens_fetched(&bed), 1);
}
