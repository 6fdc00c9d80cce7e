//! `aggregate = "redact"` for the documents of Oracle, Vultr, UpCloud, Hetzner and OpenStack: each by its own catalogue.

use crate::support::answer::Answer;
use crate::support::bed::Bed;
use crate::support::caller::Caller;
use crate::support::policy::Policy;
use crate::support::simulator::{Fault, Options, SECRET_MARK};

/// A document that mixes classes.
struct Document {
    cloud: &'static str,
    path: &'static str,
    header: &'static str,
    /// What is left of it, to the letter.
    part: &'static str,
    /// What the event says is missing.
    withheld: &'static str,
    /// What a refusal's status is there.
    refusal: u16,
}

const DOCUMENTS: [Document; 6] = [
    Document {
        cloud: "oracle-oci",
        path: "/opc/v2/instance/",
        header: "Authorization: Bearer Oracle",
        part: r#"{"displayName":"decoy","id":"ocid1.instance.decoy","region":"eu-decoy-1"}"#,
        withheld: r#"["user-data"]"#,
        refusal: 403,
    },
    Document {
        cloud: "oracle-oci",
        path: "/opc/v1/instance",
        header: "Accept: */*",
        part: r#"{"displayName":"decoy","id":"ocid1.instance.decoy","region":"eu-decoy-1"}"#,
        withheld: r#"["user-data"]"#,
        refusal: 403,
    },
    Document {
        cloud: "vultr",
        path: "/v1.json",
        header: "Metadata-Token: vultr",
        part: r#"{"hostname":"decoy","instanceid":"1234","interfaces":[{"mac":"02:00:00:00:00:02"}]}"#,
        withheld: r#"["user-data"]"#,
        refusal: 404,
    },
    Document {
        cloud: "upcloud",
        path: "/metadata/v1.json",
        header: "Accept: */*",
        part: r#"{"cloud_name":"upcloud","hostname":"decoy","instance_id":"00decoy"}"#,
        withheld: r#"["user-data"]"#,
        refusal: 404,
    },
    Document {
        cloud: "hetzner",
        path: "/hetzner/v1/metadata",
        header: "Accept: */*",
        part: "hostname: decoy\ninstance-id: 42\nnetwork-config:\n  version: 1\nregion: eu-decoy\n",
        withheld: r#"["user-data"]"#,
        refusal: 404,
    },
    Document {
        cloud: "openstack",
        path: "/openstack/latest/meta_data.json",
        header: "Accept: */*",
        part: r#"{"hostname":"decoy.novalocal","public_keys":{"decoy":"ssh-ed25519 AAAAdecoy decoy"},"uuid":"00000000-0000-0000-0000-00000000d0c2"}"#,
        withheld: r#"["credentials","user-data"]"#,
        refusal: 404,
    },
];

impl Document {
    fn bed(&self) -> Bed {
        Bed::with_options(Options { is_upcloud: self.cloud == "upcloud", ..Options::default() })
    }

    fn policy(&self, policy: Policy) -> Policy {
        policy.cloud(self.cloud).key("aggregate = \"redact\"")
    }

    fn get(&self, caller: &Caller<'_>, headers: &[&str]) -> Answer {
        let headers: Vec<&str> = headers.iter().copied().chain([self.header]).collect();
        caller.get_with(&format!("http://169.254.169.254{}", self.path), &headers)
    }
}

fn etag(answer: &Answer) -> String {
    answer.header("etag").unwrap_or_else(|| panic!("no version: {answer:?}")).to_owned()
}

fn length(answer: &Answer) -> Option<usize> {
    answer.header("content-length").and_then(|length| length.parse().ok())
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_stranger_gets_each_document_without_what_it_lacks() {
    for document in &DOCUMENTS {
        let bed = document.bed();
        let guard = bed.guard(&document.policy(Policy::enforce()));
        let part = document.get(&bed.webapp(), &["Range: bytes=0-9", "Accept-Encoding: gzip"]);
        assert_eq!((part.status, part.text().as_str()), (200, document.part), "{}", document.path);
        assert_eq!(length(&part), Some(document.part.len()), "{part:?}");
        assert_eq!(part.header("last-modified"), None, "the date is the whole one's: {part:?}");
        let asked = bed.cloud.received().remove(0).text().to_ascii_lowercase();
        assert!(!asked.contains("range:") && !asked.contains("accept-encoding:"), "{asked}");
        let event = guard.event_for(document.path.trim_end_matches('/'));
        assert_eq!(event.text("imds_guard.verdict"), "allow");
        assert_eq!(event.text("imds_guard.withheld"), document.withheld, "{}", document.path);

        let whole = document.get(&bed.agent(), &[]);
        assert!(whole.status == 200 && whole.text().contains(SECRET_MARK), "{whole:?}");
        assert_eq!((length(&whole), etag(&whole).as_str()), (Some(whole.body.len()), "\"decoy-1\""));
        assert!(whole.header("last-modified").is_some(), "{whole:?}");

        // Each form has its own version, and neither is taken for the other.
        let part = etag(&part);
        assert_ne!(part, etag(&whole));
        let status = |caller: Caller<'_>, known: &str| {
            document.get(&caller, &[&format!("If-None-Match: {known}")]).status
        };
        assert_eq!(status(bed.webapp(), &part), 304, "{}", document.path);
        assert_eq!(status(bed.webapp(), "\"decoy-1\""), 200, "{}", document.path);
        assert_eq!(status(bed.agent(), "\"decoy-1\""), 304, "{}", document.path);
        assert_eq!(status(bed.agent(), &part), 200, "{}", document.path);
        let log = std::fs::read_to_string(guard.log()).unwrap();
        assert!(!log.contains(SECRET_MARK), "{log}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_document_that_cannot_be_taken_apart_is_refused() {
    for document in &DOCUMENTS {
        let bed = document.bed();
        let guard = bed.guard(&document.policy(Policy::enforce()));
        let whole = document.get(&bed.agent(), &[]).text();
        // A text that does not end.
        let broken = match document.cloud {
            "hetzner" => whole.replace("vendor_data: |\n  #cloud-config\n", "vendor_data: \"\n"),
            _ => whole[..whole.len() - 2].to_owned(),
        };
        let large = match document.cloud {
            "hetzner" => format!("{whole}padding: {}\n", "x".repeat(3 << 20)),
            _ => format!("{{\"padding\":\"{}\",{}", "x".repeat(3 << 20), &whole[1..]),
        };
        for (what, body, code) in
            [("broken", broken, "answer-malformed"), ("too large", large, "answer-too-large")]
        {
            let raw = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            bed.cloud.set_fault(Fault::Raw(raw.into_bytes()));
            let answer = document.get(&bed.webapp(), &[]);
            assert!(answer.is_refusal() && !answer.text().contains(SECRET_MARK), "{what}: {answer:?}");
            assert_eq!(answer.status, document.refusal, "{what} {}", document.path);
            let event = guard.event(what, |event| event.text("imds_guard.reason") == code);
            assert_eq!(event.text("imds_guard.result"), "refused", "{what}");
            // Whoever may have it all gets it as it is.
            assert_eq!(document.get(&bed.agent(), &[]).body.len(), body.len(), "{what} {}", document.path);
        }
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn without_redaction_a_document_is_refused_and_audit_lets_it_pass() {
    for document in &DOCUMENTS {
        let bed = document.bed();
        let guard = bed.guard(&Policy::enforce().cloud(document.cloud));
        let answer = document.get(&bed.webapp(), &[]);
        assert!(answer.is_refusal() && bed.cloud.received().is_empty(), "{answer:?}");
        assert_eq!(answer.status, document.refusal);
        drop(guard);
        let guard = bed.guard(&document.policy(Policy::audit()));
        let answer = document.get(&bed.webapp(), &[]);
        assert!(answer.status == 200 && answer.text().contains(SECRET_MARK), "{answer:?}");
        let event = guard.event_for(document.path.trim_end_matches('/'));
        assert_eq!(event.text("imds_guard.withheld"), document.withheld);
    }
}
