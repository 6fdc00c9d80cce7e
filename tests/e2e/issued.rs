//! Which key an answer handed out, as the event tells it: enough to find it in the cloud's own log, never the key.

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::policy::Policy;
use crate::support::simulator::{Fault, SECRET_MARK};

const METADATA: &str = "http://169.254.169.254";
const GOOGLE: &str = "/computeMetadata/v1/instance/service-accounts/default/token";
const AZURE: &str = "/metadata/identity/oauth2/token";

fn text_of_all_events(guard: &crate::support::guard::Guard) -> String {
    std::fs::read_to_string(guard.log()).unwrap()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_event_of_a_credential_read_tells_which_key_was_issued() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    let agent = bed.agent();
    assert_eq!(agent.get(&format!("{METADATA}{ROLE_PATH}")).status, 200);
    let event = guard.event_for(ROLE_PATH);
    assert!(event.text("imds_guard.issued.key_id").starts_with("ASIA"), "{event:?}");
    assert_eq!(event.text("imds_guard.issued.principal"), "decoy-role");
    assert!(event.text("imds_guard.issued.expires").parse::<jiff::Timestamp>().is_ok(), "{event:?}");

    agent.get_with(
        &format!("{METADATA}{GOOGLE}?scopes=https://www.googleapis.com/auth/devstorage.read_only"),
        &["Metadata-Flavor: Google"],
    );
    let event = guard.event_for(GOOGLE);
    assert_eq!(event.text("imds_guard.issued.principal"), "default");
    assert_eq!(event.text("imds_guard.issued.scope"), "https://www.googleapis.com/auth/devstorage.read_only");
    let expires: jiff::Timestamp = event.text("imds_guard.issued.expires").parse().unwrap();
    assert!(expires > jiff::Timestamp::now());

    let url = format!("{METADATA}{AZURE}?api-version=2018-02-01&resource=https://vault.azure.net");
    agent.get_with(&url, &["Metadata: true"]);
    let event = guard.event_for(AZURE);
    assert_eq!(event.text("imds_guard.issued.principal"), "00000000-0000-0000-0000-00000000d0c0");
    assert_eq!(event.text("imds_guard.issued.scope"), "https://vault.azure.net");
    assert!(!text_of_all_events(&guard).contains(SECRET_MARK));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_cannot_be_read_is_told_and_passes_all_the_same() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    let large = "x".repeat(100_000);
    for (head, body, why) in [
        ("Content-Encoding: gzip\r\n", "{}", "encoded"),
        ("", large.as_str(), "too-large"),
        ("", "no JSON", "unreadable"),
        ("", r#"{"Code":"Failed"}"#, "unreadable"),
    ] {
        let raw = format!("HTTP/1.1 200 OK\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len());
        bed.cloud.set_fault(Fault::Raw(raw.into_bytes()));
        let answer = bed.agent().get(&format!("{METADATA}{ROLE_PATH}"));
        assert_eq!((answer.status, answer.body.len()), (200, body.len()), "{why}");
        let event = guard.event(why, |event| event.text("imds_guard.issued.unread") == why);
        assert_eq!(event.text("imds_guard.issued.key_id"), "");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn nothing_is_told_of_issued_keys_where_that_is_switched_off() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce().guard_key("issued-key = false"));
    assert_eq!(bed.agent().get(&format!("{METADATA}{ROLE_PATH}")).status, 200);
    guard.event_for(ROLE_PATH);
    assert!(!text_of_all_events(&guard).contains("imds_guard.issued"));
}
