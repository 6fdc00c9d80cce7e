//! `aggregate = "redact"`: answers that mix classes, given without what the caller lacks, and never mixed up with the
//! whole ones.

use std::time::Duration;

use serde_json::Value;

use crate::support::answer::Answer;
use crate::support::bed::Bed;
use crate::support::connection::Connection;
use crate::support::policy::Policy;
use crate::support::simulator::{Fault, SECRET_MARK};

const ADDRESS: &str = "169.254.169.254:80";
const METADATA: &str = "http://169.254.169.254";
const TREE: &str = "/computeMetadata/v1/?recursive=true&alt=json";
const GOOGLE: &str = "Metadata-Flavor: Google";

fn redact() -> Policy {
    Policy::enforce().key("aggregate = \"redact\"")
}

fn google(connection: &mut Connection, target: &str, headers: &[&str]) -> Answer {
    let mut all = vec![GOOGLE];
    all.extend(headers);
    connection.get(target, &all);
    connection.answer().expect("an answer")
}

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

fn etag(answer: &Answer) -> String {
    answer.header("etag").unwrap_or_else(|| panic!("no version: {answer:?}")).to_owned()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_stranger_gets_the_tree_without_what_it_lacks() {
    let bed = Bed::new();
    let guard = bed.guard(&redact());
    let mut stranger = bed.webapp().connect(ADDRESS);
    let answer =
        google(&mut stranger, TREE, &["Range: bytes=0-20", "Accept-Encoding: gzip", "If-Match: \"x\""]);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.text().contains(SECRET_MARK), "{answer:?}");
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
    assert_eq!(answer.header("metadata-flavor"), Some("Google"));
    let tree = json(&answer);
    assert_eq!(tree["instance"]["attributes"], serde_json::json!({ "enable-oslogin": "FALSE" }));
    assert_eq!(tree["project"]["attributes"]["ssh-keys"], "decoy:ssh-ed25519 AAAAdecoy decoy");
    assert_eq!(tree["instance"]["service-accounts"]["default"]["aliases"][0], "default");
    let asked = bed.cloud.received().remove(0).text().to_ascii_lowercase();
    for header in ["range:", "accept-encoding:", "if-match:"] {
        assert!(!asked.contains(header), "{asked}");
    }
    let event = guard.event_for("/computeMetadata/v1");
    assert_eq!(event.text("imds_guard.verdict"), "allow");
    assert_eq!(event.text("imds_guard.result"), "forwarded");
    assert_eq!(event.text("imds_guard.withheld"), r#"["credentials","identity","user-data"]"#);

    let whole = google(&mut bed.agent().connect(ADDRESS), TREE, &[]);
    assert!(whole.text().contains(SECRET_MARK), "the agent may read it all: {whole:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_redacted_answer_and_the_whole_one_never_stand_for_each_other() {
    let bed = Bed::new();
    let _guard = bed.guard(&redact());
    let (mut stranger, mut agent) = (bed.webapp().connect(ADDRESS), bed.agent().connect(ADDRESS));
    let part = etag(&google(&mut stranger, TREE, &[]));
    let whole = etag(&google(&mut agent, TREE, &[]));
    assert_ne!(part, whole);
    let status = |connection: &mut Connection, known: &str| {
        google(connection, TREE, &[&format!("If-None-Match: {known}")]).status
    };
    // Each form is validated by itself alone.
    assert_eq!(status(&mut stranger, &part), 304);
    assert_eq!(status(&mut stranger, &whole), 200);
    assert_eq!(status(&mut stranger, "*"), 200);
    assert_eq!(status(&mut agent, &whole), 304);
    assert_eq!(status(&mut agent, &part), 200);
    let unchanged = google(&mut stranger, TREE, &[&format!("If-None-Match: {whole}, {part}")]);
    assert_eq!((unchanged.status, etag(&unchanged)), (304, part));
    let head = {
        stranger
            .send(format!("HEAD {TREE} HTTP/1.1\r\nHost: 169.254.169.254\r\n{GOOGLE}\r\n\r\n").as_bytes());
        assert!(stranger.wait_for(b"\r\n\r\n"));
        stranger.get("/computeMetadata/v1/instance/id", &[GOOGLE]);
        assert!(stranger.wait_for(b"1234567890"));
        stranger.unread_text()
    };
    let head = head.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
    assert!(
        head.contains("-part-") && !head.contains("content-length"),
        "the whole one's length is no business of his: {head}"
    );
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_long_poll_for_a_redacted_tree_waits_and_ends_with_the_change() {
    let bed = Bed::new();
    let _guard = bed.guard(&redact());
    let mut stranger = bed.webapp().connect(ADDRESS);
    let part = etag(&google(&mut stranger, TREE, &[]));
    let whole = etag(&google(&mut bed.agent().connect(ADDRESS), TREE, &[]));
    let poll = |version: &str| format!("{TREE}&wait_for_change=true&timeout_sec=60&last%5Fetag={version}");
    // The whole one's version says nothing about what this caller has, so the service answers at once.
    let at_once = google(&mut stranger, &poll(&whole), &[]);
    assert_eq!(etag(&at_once), part);
    stranger.get(&poll(&part), &[GOOGLE]);
    assert!(stranger.is_silent_for(Duration::from_secs(1)), "nothing has changed");
    let asked = bed.cloud.received().pop().unwrap().text();
    assert!(asked.contains(&format!("last_etag={whole}")), "{asked}");
    bed.cloud.change();
    let changed = stranger.answer().expect("the poll ends");
    assert_ne!(etag(&changed), part);
    assert!(changed.status == 200 && !changed.text().contains(SECRET_MARK), "{changed:?}");
    // And the agent who sends a redacted one's version has not that which it gets.
    let mut agent = bed.agent().connect(ADDRESS);
    assert!(google(&mut agent, &poll(&part), &[]).text().contains(SECRET_MARK));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn other_clouds_documents_lose_their_members() {
    let bed = Bed::new();
    let _guard = bed.guard(&redact());
    for (target, header, kept) in [
        ("/metadata/instance?api-version=2021-02-01", "Metadata: true", "Standard_B1s"),
        ("/METADATA/instance/Compute?api-version=2021-02-01", "Metadata: true", "Standard_B1s"),
        ("/metadata/v1.json", "Accept: */*", "dcy1"),
    ] {
        let answer = bed.webapp().get_with(&format!("{METADATA}{target}"), &[header]);
        assert_eq!(answer.status, 200, "{target}: {answer:?}");
        assert!(answer.text().contains(kept) && !answer.text().contains(SECRET_MARK), "{target}: {answer:?}");
    }
    // What the service says of a wrong request reaches the client.
    let wrong = bed.webapp().get_with(&format!("{METADATA}/metadata/instance"), &["Metadata: true"]);
    assert!(wrong.status == 400 && wrong.text().contains("newest-versions"), "{wrong:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_cannot_be_taken_apart_is_refused() {
    let bed = Bed::new();
    let guard = bed.guard(&redact());
    let stranger = bed.webapp();
    let text =
        stranger.get_with(&format!("{METADATA}/computeMetadata/v1/?recursive=true&alt=text"), &[GOOGLE]);
    assert!(text.is_refusal() && !text.text().contains(SECRET_MARK), "{text:?}");
    let secret = format!("\"{SECRET_MARK}\"");
    let of = |head: &str, body: &str| {
        format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let large =
        format!("{{\"a\":\"{}\",\"instance\":{{\"attributes\":{{\"b\":{secret}}}}}}}", "x".repeat(3 << 20));
    let document = format!("{{\"instance\":{{\"attributes\":{{\"b\":{secret}}}}}}}");
    let repeated = format!("{{\"instance\":1,\"instance\":{{\"attributes\":{{\"b\":{secret}}}}}}}");
    for (what, raw, code) in [
        ("compressed", of("200 OK\r\nContent-Encoding: gzip", &document), "answer-encoded"),
        ("a part", of("206 Partial Content\r\nContent-Range: bytes 0-9/99", &document), "answer-partial"),
        ("too large", of("200 OK", &large), "answer-too-large"),
        ("broken", of("200 OK", &document[..document.len() - 1]), "answer-malformed"),
        ("two documents", of("200 OK", &format!("{{}}{document}")), "answer-malformed"),
        ("no object", of("200 OK", &secret), "answer-malformed"),
        ("a repeated name", of("200 OK", &repeated), "answer-repeats-names"),
        (
            "not UTF-8",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"a\":\"\xff\"}".to_vec(),
            "answer-malformed",
        ),
    ] {
        bed.cloud.set_fault(Fault::Raw(raw));
        let answer = stranger.get_with(&format!("{METADATA}{TREE}"), &[GOOGLE]);
        assert!(
            answer.is_refusal() && !answer.text().contains(SECRET_MARK),
            "{what}: {:.300}",
            answer.text()
        );
        let event = guard.event(what, |event| event.text("imds_guard.reason") == code);
        assert_eq!(event.text("imds_guard.verdict"), "deny", "{what}");
        assert_eq!(event.text("imds_guard.result"), "refused", "{what}");
    }
    // In chunks it is the same document, and gets a length.
    let chunks = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        &document[..5],
        document.len() - 5,
        &document[5..]
    );
    bed.cloud.set_fault(Fault::Raw(chunks.into_bytes()));
    let answer = stranger.get_with(&format!("{METADATA}{TREE}"), &[GOOGLE]);
    assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"instance":{"attributes":{}}}"#));
    assert_eq!(answer.header("content-length"), Some("30"));
    // A service that breaks off is told as such.
    bed.cloud.set_fault(Fault::ResetMidBody);
    let broken = stranger.curl(&["-H", GOOGLE, &format!("{METADATA}{TREE}")]);
    assert_ne!(broken.exit, 0, "{:?}", broken.answer);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_mode_withholds_nothing_and_tells() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::audit().key("aggregate = \"redact\""));
    let answer = google(&mut bed.webapp().connect(ADDRESS), TREE, &["Accept-Encoding: gzip"]);
    assert!(answer.text().contains(SECRET_MARK), "{answer:?}");
    assert!(!etag(&answer).contains("part"));
    assert!(bed.cloud.received()[0].text().contains("Accept-Encoding: gzip"));
    let event = guard.event_for("/computeMetadata/v1");
    assert_eq!(event.text("imds_guard.mode"), "audit");
    assert!(event.text("imds_guard.withheld").contains("user-data"), "{event:?}");
}
