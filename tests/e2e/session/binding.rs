//! `bind-tokens`: a token works for the caller that fetched it.

use std::time::Duration;

use super::{INSTANCE_ID, aws, fetch_token, showing, url};
use crate::support::bed::{Bed, WEB_UID};
use crate::support::policy::{AGENT, Policy};
use crate::support::simulator::SECRET_MARK;
use crate::support::wait;

fn binding(policy: Policy) -> Policy {
    aws(policy).key("bind-tokens = \"on\"")
}

fn holder(event: &crate::support::event::Event) -> String {
    event.text("imds_guard.token.holder")
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_stolen_token_is_worthless() {
    let bed = Bed::new();
    let guard = bed.guard(&binding(Policy::enforce()));
    let token = fetch_token(&bed.agent());
    let thieves = [
        bed.webapp(),
        bed.person(),
        bed.caller(AGENT, WEB_UID),     // another user in the same unit
        bed.caller("other.service", 0), // the same user in another unit
    ];
    for thief in thieves {
        let answer = thief.get_with(&url(INSTANCE_ID), &[&showing(&token)]);
        assert!(answer.is_refusal() && answer.status == 401, "{answer:?}");
    }
    assert!(bed.reached(INSTANCE_ID).is_empty());
    let event = guard.event("of a thief", |event| holder(event) == "foreign");
    assert_eq!(event.text("imds_guard.reason"), "token-of-another");
    assert_eq!(event.text("imds_guard.token.fetched_by"), format!("uid 0 in {AGENT}"));

    // Whoever fetched it, and whoever fetches his own as a 401 tells him to, is served.
    assert_eq!(bed.agent().get_with(&url(INSTANCE_ID), &[&showing(&token)]).status, 200);
    let own = fetch_token(&bed.webapp());
    assert_eq!(bed.webapp().get_with(&url(INSTANCE_ID), &[&showing(&own)]).status, 200);
    guard.event("of an owner", |event| holder(event) == "own");
    let log = std::fs::read_to_string(guard.log()).unwrap();
    assert!(!log.contains(SECRET_MARK), "{log}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn every_worker_knows_every_token() {
    let bed = Bed::new();
    let _guard = bed.guard(&binding(Policy::enforce()).workers(4));
    for _ in 0..8 {
        let token = fetch_token(&bed.agent());
        assert_eq!(bed.agent().get_with(&url(INSTANCE_ID), &[&showing(&token)]).status, 200);
        assert_eq!(bed.webapp().get_with(&url(INSTANCE_ID), &[&showing(&token)]).status, 401);
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_token_may_be_shown_as_soon_as_it_is_there() {
    // On one connection, the next request right behind the answer.
    let bed = Bed::new();
    let _guard = bed.guard(&binding(Policy::enforce()).workers(1));
    let mut connection = bed.agent().connect("169.254.169.254:80");
    for _ in 0..20 {
        connection.send(b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n");
        let token = connection.answer().unwrap().text();
        connection.get(INSTANCE_ID, &[&showing(&token)]);
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_is_only_recorded_passes() {
    for (policy, would_deny) in [
        (aws(Policy::enforce()).key("bind-tokens = \"audit\""), "false"),
        (aws(Policy::audit()).key("bind-tokens = \"audit\""), "false"),
        (binding(Policy::audit()), "true"),
    ] {
        let bed = Bed::new();
        let guard = bed.guard(&policy);
        let token = fetch_token(&bed.agent());
        assert_eq!(bed.webapp().get_with(&url(INSTANCE_ID), &[&showing(&token)]).status, 200);
        let event = guard.event("of it", |event| holder(event) == "foreign");
        assert_eq!(event.text("imds_guard.would_deny"), would_deny);
    }
    let bed = Bed::new();
    let guard = bed.guard(&aws(Policy::enforce()));
    let token = fetch_token(&bed.agent());
    assert_eq!(bed.webapp().get_with(&url(INSTANCE_ID), &[&showing(&token)]).status, 200);
    assert_eq!(holder(&guard.event_for(INSTANCE_ID)), "", "off is off");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_token_that_is_older_than_the_guard_belongs_to_its_first_user() {
    let bed = Bed::new();
    let tokens = [fetch_token(&bed.agent()), fetch_token(&bed.agent())];
    let guard = bed.guard(&binding(Policy::enforce()));
    for token in &tokens {
        assert_eq!(bed.agent().get_with(&url(INSTANCE_ID), &[&showing(token)]).status, 200, "no outage");
    }
    guard.event("of a first use", |event| holder(event) == "older");
    for token in &tokens {
        assert_eq!(bed.webapp().get_with(&url(INSTANCE_ID), &[&showing(token)]).status, 401);
        assert_eq!(bed.agent().get_with(&url(INSTANCE_ID), &[&showing(token)]).status, 200);
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_token_of_somebody_s_own_making_becomes_nobody_s() {
    let bed = Bed::new();
    let guard = bed.guard(&binding(Policy::enforce()));
    for _ in 0..2 {
        let answer = bed.webapp().get_with(&url(INSTANCE_ID), &[&showing("of-my-own-making")]);
        assert!(answer.status == 401 && !answer.is_refusal(), "the service's own answer: {answer:?}");
    }
    let seen = wait::until("both events", Duration::from_secs(10), || {
        let seen: Vec<String> =
            guard.events().iter().map(holder).filter(|holder| !holder.is_empty()).collect();
        (seen.len() == 2).then_some(seen)
    });
    assert_eq!(seen, ["older", "older"]);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_reload_forgets_no_token() {
    let bed = Bed::new();
    let guard = bed.guard(&aws(Policy::enforce()));
    let token = fetch_token(&bed.agent());
    let status = |caller: crate::support::caller::Caller<'_>| {
        caller.get_with(&url(INSTANCE_ID), &[&showing(&token)]).status
    };
    assert_eq!(status(bed.webapp()), 200);
    // It was fetched while nobody was bound to anything, and still belongs to whoever fetched it.
    guard.reload(&binding(Policy::enforce()));
    assert_eq!((status(bed.webapp()), status(bed.agent())), (401, 200));
    guard.reload(
        &binding(Policy::enforce()).with("[[rule]]\nname = \"other\"\npath = \"/x\"\naction = \"deny\""),
    );
    assert_eq!((status(bed.webapp()), status(bed.agent())), (401, 200));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_unit_that_starts_again_keeps_its_token() {
    let bed = Bed::new();
    let _guard = bed.guard(&binding(Policy::enforce()));
    let agent = bed.agent();
    let token = fetch_token(&agent);
    agent.cgroup.remove();
    drop(agent);
    assert_eq!(bed.agent().get_with(&url(INSTANCE_ID), &[&showing(&token)]).status, 200);
}
