//! `v1 = "deny"`, and headers that are missing, repeated or malformed: the service's own answers.

use super::{INSTANCE_ID, TOKEN_PATH, TTL, aws, fetch_token, showing, url, v2_only, with_v1};
use crate::support::bed::{Bed, ROLE_PATH, in_both_modes};
use crate::support::guard::MARK;
use crate::support::policy::Policy;

#[test]
#[ignore = "needs root: make test runs it"]
fn a_read_without_a_token_is_answered_as_by_a_cloud_that_requires_one() {
    let direct = {
        let bed = v2_only();
        bed.webapp().get(&url(INSTANCE_ID)).status
    };
    let bed = Bed::new();
    let guard = bed.guard(&aws(Policy::enforce()).key("v1 = \"deny\""));
    let answer = bed.webapp().get(&url(INSTANCE_ID));
    assert_eq!(answer.status, direct, "the cloud's own answer");
    assert!(answer.header(MARK).is_some());
    assert_eq!(bed.agent().get(&url(ROLE_PATH)).status, 401);
    // Some services take an empty header for none.
    assert_eq!(bed.agent().get_with(&url(ROLE_PATH), &["X-aws-ec2-metadata-token;"]).status, 401);
    assert!(bed.cloud.received().is_empty(), "{:?}", bed.cloud.received());
    let event = guard.event_for(INSTANCE_ID);
    assert_eq!(event.text("imds_guard.reason"), "token-required");
    assert_eq!(
        (event.text("imds_guard.session"), event.text("imds_guard.result")),
        ("v1".into(), "refused".into())
    );

    let token = fetch_token(&bed.webapp());
    assert_eq!(bed.webapp().get_with(&url(INSTANCE_ID), &[&showing(&token)]).status, 200);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_mode_only_records_who_speaks_version_1() {
    let bed = Bed::new();
    let guard = bed.guard(&aws(Policy::audit()).key("v1 = \"deny\""));
    assert_eq!(bed.webapp().get(&url(INSTANCE_ID)).status, 200);
    let event = guard.event_for(INSTANCE_ID);
    assert_eq!(
        (event.text("imds_guard.session"), event.text("imds_guard.would_deny")),
        ("v1".into(), "true".into())
    );
    assert_eq!(bed.reached(INSTANCE_ID).len(), 1);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_agent_may_be_held_to_tokens_alone() {
    let bed = Bed::new();
    let _guard = bed.guard(&with_v1(Policy::enforce(), "deny"));
    assert_eq!(bed.agent().get(&url(INSTANCE_ID)).status, 401);
    assert_eq!(bed.person().get(&url(INSTANCE_ID)).status, 200);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn token_requests_and_headers_are_judged_by_the_service_alone() {
    let requests: [(&[&str], &str); 7] = [
        (&["-X", "PUT"], TOKEN_PATH),
        (&["-X", "PUT", "-H", "X-aws-ec2-metadata-token-ttl-seconds: 0"], TOKEN_PATH),
        (&["-X", "PUT", "-H", "X-aws-ec2-metadata-token-ttl-seconds: 21601"], TOKEN_PATH),
        (&["-X", "PUT", "-H", "X-aws-ec2-metadata-token-ttl-seconds: soon"], TOKEN_PATH),
        (&["-X", "PUT", "-H", TTL], TOKEN_PATH),
        (&["-H", "X-aws-ec2-metadata-token: of somebody's own making"], INSTANCE_ID),
        (&["-H", "X-aws-ec2-metadata-token;"], INSTANCE_ID),
    ];
    let direct = v2_only();
    in_both_modes(|bed| {
        for (arguments, path) in requests {
            let url = url(path);
            let arguments: Vec<&str> = arguments.iter().copied().chain([url.as_str()]).collect();
            let (expected, got) = (direct.agent().curl(&arguments), bed.agent().curl(&arguments));
            assert_eq!(got.answer.status, expected.answer.status, "{arguments:?}");
            assert!(!got.answer.is_refusal(), "{arguments:?}");
            assert_eq!(
                got.answer.header("x-aws-ec2-metadata-token-ttl-seconds"),
                expected.answer.header("x-aws-ec2-metadata-token-ttl-seconds")
            );
        }
    });
    // One request with two tokens has no single meaning: the one fault here, as for every header that comes once.
    let bed = Bed::new();
    let _guard = bed.guard(&aws(Policy::enforce()));
    let twice = [showing("a"), showing("b")];
    let answer = bed.agent().get_with(&url(INSTANCE_ID), &[&twice[0], &twice[1]]);
    assert!(answer.is_refusal() && answer.status == 400, "{answer:?}");
}
