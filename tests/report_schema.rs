//! docs/audit-events.md and docs/audit-event.schema.json say what the code writes.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper of a test may fail the test, like the test itself"
)]

use std::collections::BTreeSet;

use imds_guard::audit::event::{Action, Event, Outcome, ProcessSource, Severity, TECHNIQUE, UpstreamTls};
use imds_guard::cloud::{Class, TokenHolder};
use serde_json::Value;

const CODE: &str = include_str!("../src/audit/event.rs");
const PAGE: &str = include_str!("../docs/audit-events.md");
const SCHEMA: &str = include_str!("../docs/audit-event.schema.json");

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

fn fields_of_the_code() -> BTreeSet<&'static str> {
    CODE.split("rename = \"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

#[test]
fn the_page_the_schema_and_the_code_name_the_same_fields() {
    let code = fields_of_the_code();
    assert!(code.len() > 40 && code.contains("imds_guard.verdict"));
    let rows = PAGE.lines().filter(|line| line.starts_with("| `") && line.matches(" | ").count() >= 5);
    let page: BTreeSet<&str> = rows.map(|row| row.split('`').nth(1).unwrap()).collect();
    assert_eq!(page, code);
    let schema = schema();
    let known: BTreeSet<&str> =
        schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(known, code);
}

/// As much of JSON Schema as ours uses.
fn fits(schema: &Value, value: &Value) -> bool {
    let kind = match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64(),
        Some("boolean") => value.is_boolean(),
        Some("array") => {
            value.as_array().is_some_and(|items| items.iter().all(|item| fits(&schema["items"], item)))
        }
        _ => true,
    };
    let allowed = schema["enum"].as_array().is_none_or(|allowed| allowed.contains(value));
    let constant = schema.get("const").is_none_or(|constant| constant == value);
    kind && allowed && constant
}

fn check(event: &Event<'_>) -> BTreeSet<String> {
    let mut line = Vec::new();
    event.write(&mut line);
    let value: Value = serde_json::from_slice(&line).unwrap();
    let schema = schema();
    let object = value.as_object().unwrap();
    for (name, value) in object {
        assert!(fits(&schema["properties"][name], value), "{name}: {value}");
    }
    for name in schema["required"].as_array().unwrap() {
        assert!(object.contains_key(name.as_str().unwrap()), "{name}");
    }
    object.keys().cloned().collect()
}

#[test]
fn events_fit_the_schema() {
    let mut event = Event::now("1", Action::Request);
    check(&event);
    event.outcome = "failure";
    event.severity = Severity::Warning as u8;
    event.mode = Some("audit");
    event.verdict = Some("deny");
    event.would_deny = Some(true);
    event.faults = vec!["host-foreign"];
    event.classes = Class::ALL.into_iter().map(Class::name).collect();
    event.technique = Some(TECHNIQUE);
    event.status = Some(404);
    event.source_ip = Some("10.0.0.1".parse().unwrap());
    event.user_id = Some("33".to_owned());
    event.process_source = Some(ProcessSource::Fresh);
    event.holders = Some(1);
    event.upgraded = Some(true);
    event.decoy = Some(true);
    event.token_holder = Some(TokenHolder::Foreign);
    event.token_of = Some("uid 0 in a.service".into());
    assert!(check(&event).contains("imds_guard.classes"));
    for action in [Action::Unjudged, Action::Opaque, Action::Connection, Action::Aggregate, Action::Guard] {
        check(&Event::now("1", action));
    }
    for result in [
        Outcome::Forwarded,
        Outcome::Refused,
        Outcome::Tunnelled,
        Outcome::UpstreamFailed,
        Outcome::CallerLeft,
        Outcome::Closed,
    ] {
        event.result = Some(result);
        check(&event);
    }
    for tls in [
        UpstreamTls::Established,
        UpstreamTls::Declined,
        UpstreamTls::NoCertificate,
        UpstreamTls::Bootstrap,
        UpstreamTls::Failed,
    ] {
        event.upstream_tls = Some(tls);
        check(&event);
    }
    for source in [ProcessSource::Cached, ProcessSource::Skipped] {
        event.process_source = Some(source);
        check(&event);
    }
}

/// The check itself can fail.
#[test]
fn a_wrong_value_does_not_fit() {
    let schema = schema();
    let fits = |name: &str, value: Value| fits(&schema["properties"][name], &value);
    assert!(!fits("imds_guard.verdict", "perhaps".into()));
    assert!(!fits("imds_guard.classes", serde_json::json!(["keys"])));
    assert!(!fits("http.response.status_code", "404".into()));
    assert!(!fits("imds_guard.schema", 2.into()));
}
