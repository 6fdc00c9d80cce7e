//! Audit mode changes nothing for anybody, and tells everything.

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::policy::Policy;
use crate::support::simulator::SECRET_MARK;

const URL: &str = "http://169.254.169.254/latest/meta-data/iam/security-credentials/decoy-role";

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_passes_and_records() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::audit());
    let answer = bed.webapp().get(URL);
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains(SECRET_MARK));
    let event = guard.event_for(ROLE_PATH);
    assert_eq!(event.text("imds_guard.mode"), "audit");
    assert_eq!(event.text("imds_guard.verdict"), "deny");
    assert_eq!(event.text("imds_guard.would_deny"), "true");
    assert_eq!(event.text("imds_guard.result"), "forwarded");
    assert_eq!(event.text("http.response.status_code"), "200");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_says_of_a_listed_agent_that_it_would_be_allowed() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::audit());
    assert_eq!(bed.agent().get(URL).status, 200);
    let event = guard.event_for(ROLE_PATH);
    assert_eq!(event.text("imds_guard.verdict"), "allow");
    assert_eq!(event.text("imds_guard.would_deny"), "false");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_sends_the_head_as_it_came() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::audit());
    let head = "GET //latest/./meta-data/%69nstance-id?a=1&a=2 HTTP/1.1\r\nhOsT: 169.254.169.254\r\n\
                X-Forwarded-For: 192.0.2.1\r\nx-ODD-Case:  two spaces  \r\nUser-Agent: decoy\r\nAccept: */*\r\n\r\n";
    let mut connection = bed.person().connect("169.254.169.254:80");
    connection.send(head.as_bytes());
    assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    let received = &bed.cloud.received()[0];
    assert_eq!(header_lines(&received.text()), header_lines(head));
}

/// Header names, their case and order, and values without the optional space around them, which no server may see.
fn header_lines(head: &str) -> Vec<String> {
    let trimmed = |line: &str| match line.split_once(':') {
        Some((name, value)) if !line.contains(" HTTP/1.1") => format!("{name}:{}", value.trim()),
        _ => line.to_owned(),
    };
    head.lines().map(trimmed).collect()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_tunnels_a_head_that_cannot_be_parsed() {
    // A bare line feed: servers take it, and the guard's parser does not. It worked without the guard, so it works.
    let bed = Bed::new();
    let guard = bed.guard(&Policy::audit());
    let head = "GET /latest/meta-data/instance-id HTTP/1.1\nHost: 169.254.169.254\n\n";
    let mut connection = bed.person().connect("169.254.169.254:80");
    connection.send(head.as_bytes());
    let answer = connection.answer().expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (200, "i-0decoy"));
    assert_eq!(bed.cloud.received()[0].text(), head, "byte for byte");
    let event = guard.event("unjudged", |event| event.text("event.action") == "unjudged");
    assert!(event.text("imds_guard.faults").contains("bare-lf"), "{event:?}");
    assert_eq!(event.text("destination.ip"), "169.254.169.254");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn enforce_never_tunnels() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let mut connection = bed.agent().connect("169.254.169.254:80");
    connection.send(b"GET /latest/meta-data/instance-id HTTP/1.1\nHost: 169.254.169.254\n\n");
    let answer = connection.answer().unwrap_or_default();
    assert!(answer.status == 0 || answer.is_refusal(), "{answer:?}");
    assert!(bed.cloud.received().is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_enforce_rule_bites_in_audit_mode() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::audit().with(
        "[[rule]]\nname = \"no user data\"\naction = \"deny\"\nclass = \"user-data\"\nmode = \"enforce\"",
    ));
    assert!(bed.webapp().get("http://169.254.169.254/latest/user-data").is_refusal());
    assert_eq!(bed.webapp().get(URL).status, 200);
}
