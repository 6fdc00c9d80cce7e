//! What the audit log tells, and what it must never tell.

use std::time::Duration;

use crate::support::bed::{Bed, ROLE_PATH, WEB_UID};
use crate::support::policy::Policy;
use crate::support::simulator::{Options, SECRET_MARK};
use crate::support::wait;

#[test]
#[ignore = "needs root: make test runs it"]
fn an_event_tells_who_asked_for_what_and_what_became_of_it() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    bed.webapp().get_with(&format!("http://169.254.169.254{ROLE_PATH}?a=b"), &["User-Agent: decoy/1"]);
    let event = guard.event_for(ROLE_PATH);
    let cgroup = bed.slice.unit("webapp.service").path;
    for (field, value) in [
        ("event.dataset", "imds-guard.audit"),
        ("event.action", "request"),
        ("event.outcome", "failure"),
        ("imds_guard.mode", "enforce"),
        ("imds_guard.verdict", "deny"),
        ("imds_guard.result", "refused"),
        ("imds_guard.attribution", "stamped"),
        ("imds_guard.classes", r#"["credentials"]"#),
        ("imds_guard.cgroup", &cgroup),
        ("service.name", "webapp.service"),
        ("user.id", &WEB_UID.to_string()),
        ("http.request.method", "GET"),
        ("http.response.status_code", "404"),
        ("url.path", ROLE_PATH),
        ("user_agent.original", "decoy/1"),
        ("source.ip", "10.99.0.2"),
        ("destination.ip", "169.254.169.254"),
        ("destination.port", "80"),
        ("threat.technique.id", "T1552.005"),
        ("process.executable", "/usr/bin/curl"),
        ("process.name", "curl"),
    ] {
        assert_eq!(event.text(field), value, "{field} of {event:#?}");
    }
    for field in
        ["@timestamp", "event.id", "event.duration", "imds_guard.reason", "process.pid", "source.port"]
    {
        assert!(event.get(field).is_some(), "{field} of {event:#?}");
    }
    assert!(event.text("process.command_line").contains("curl"), "{event:#?}");
    assert!(event.get("imds_guard.duration.attribution_us").is_some(), "{event:#?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_granted_request_is_told_too_and_names_no_technique() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    bed.agent().get(&format!("http://169.254.169.254{ROLE_PATH}"));
    let event = guard.event_for(ROLE_PATH);
    assert_eq!(event.text("event.outcome"), "success");
    assert_eq!(event.text("imds_guard.result"), "forwarded");
    assert_eq!(event.text("user.id"), "0");
    assert_eq!(event.text("threat.technique.id"), "");
    assert!(event.get("imds_guard.duration.upstream_us").is_some(), "{event:#?}");
    assert!(event.get("http.response.body.bytes").is_some(), "{event:#?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn every_request_of_a_connection_has_its_event() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    let mut connection = bed.agent().connect("169.254.169.254:80");
    for _ in 0..20 {
        connection.get("/latest/meta-data/instance-id", &[]);
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    }
    let count = || {
        guard
            .events()
            .iter()
            .map(|event| {
                let of_one = event.text("url.path") == "/latest/meta-data/instance-id";
                if of_one { event.text("imds_guard.count").parse().unwrap_or(1) } else { 0 }
            })
            .sum::<u64>()
    };
    wait::until_true("twenty requests in events or aggregates", Duration::from_secs(10), || count() == 20);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn no_secret_is_in_any_event_or_log() {
    let bed = Bed::with_options(Options { v2_only: true, ..Options::default() });
    let guard = bed.guard(&Policy::audit());
    let agent = bed.agent();
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60";
    let token =
        agent.curl(&["-X", "PUT", "-H", ttl, "http://169.254.169.254/latest/api/token"]).answer.text();
    assert!(token.contains(SECRET_MARK));
    // The token is in a header, in the command line of the process, and (a mistake that people make) in the query.
    let header = format!("X-aws-ec2-metadata-token: {token}");
    agent.get_with(&format!("http://169.254.169.254{ROLE_PATH}?token={token}"), &[&header]);
    bed.webapp().get_with(&format!("http://169.254.169.254{ROLE_PATH}"), &[&header]);
    bed.webapp().get_with(
        "http://169.254.169.254/metadata/v1/id",
        &["Authorization: Bearer decoy-secret-bearer", "X-Auth-Key: decoy-secret-key"],
    );
    let body = "client_secret=decoy-secret-body";
    bed.webapp().curl(&["-X", "POST", "-d", body, "http://169.254.169.254/metadata/v1/id"]);
    guard.event("the last request", |event| event.text("http.request.method") == "POST");
    let log = std::fs::read_to_string(guard.log()).unwrap();
    for (text, what) in [(log, "the audit log"), (guard.output(), "the guard's output")] {
        let line = text.lines().find(|line| line.contains(SECRET_MARK));
        assert_eq!(line, None, "a secret in {what}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_hostile_path_stays_inside_its_event() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::audit());
    let mut connection = bed.person().connect("169.254.169.254:80");
    connection.get("/latest/%0a%7b%22event.id%22:%22forged%22%7d%1b%5b31m", &[]);
    connection.answer();
    guard.event("an event", |event| !event.text("event.id").is_empty());
    // `events` reads every line as JSON, and fails on a torn one.
    assert!(guard.events().iter().all(|event| event.text("event.id") != "forged"));
    let log = std::fs::read(guard.log()).unwrap();
    assert!(log.iter().all(|byte| *byte == b'\n' || *byte >= 0x20), "a control byte is in the log");
}
