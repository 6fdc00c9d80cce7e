//! Session tokens of other clouds: IBM's, which comes in JSON and is shown as a bearer's, and Akamai's.

use super::url;
use crate::support::answer::Answer;
use crate::support::bed::Bed;
use crate::support::caller::Caller;
use crate::support::event::Event;
use crate::support::policy::{AGENT, Policy};
use crate::support::simulator::SECRET_MARK;

/// How a cloud's clients ask for a token, and how they show it.
struct Kin {
    cloud: &'static str,
    token_path: &'static str,
    asking: &'static [&'static str],
    showing: &'static str,
    /// A read of `config`, and what the answer holds.
    read: (&'static str, &'static str),
    /// What is secret, and how it is asked for.
    secret: (&'static [&'static str], &'static str),
}

const IBM_FLAVOR: &str = "Metadata-Flavor: ibm";

const KIN: [Kin; 4] = [
    Kin {
        cloud: "ibm-vpc",
        token_path: "/instance_identity/v1/token?version=2022-03-01",
        asking: &["-H", IBM_FLAVOR, "-H", "Accept: application/json", "-d", "{\"expires_in\": 600}"],
        showing: "Authorization: Bearer ",
        read: ("/metadata/v1/instance?version=2022-03-01", "decoy"),
        secret: (
            &["-X", "POST", "-H", IBM_FLAVOR, "-d", "{}"],
            "/instance_identity/v1/iam_token?version=2022-03-01",
        ),
    },
    // The same service, by the names that it has had since 2025.
    Kin {
        cloud: "ibm-vpc",
        token_path: "/identity/v1/token?version=2025-08-26",
        asking: &["-H", IBM_FLAVOR, "-d", "{\"expires_in\": 600}"],
        showing: "Authorization: bearer ",
        read: ("/metadata/v1/instance?version=2025-08-26", "decoy"),
        secret: (&["-X", "POST", "-H", IBM_FLAVOR, "-d", "{}"], "/identity/v1/iam_tokens?version=2025-08-26"),
    },
    Kin {
        cloud: "akamai-linode",
        token_path: "/v1/token",
        asking: &["-H", "Metadata-Token-Expiry-Seconds: 600"],
        showing: "Metadata-Token: ",
        read: ("/v1/instance", "label: decoy"),
        secret: (&[], "/v1/user-data"),
    },
    // Asked for in JSON, it comes in a list.
    Kin {
        cloud: "akamai-linode",
        token_path: "/v1/token",
        asking: &["-H", "Metadata-Token-Expiry-Seconds: 600", "-H", "Accept: application/json"],
        showing: "Metadata-Token: ",
        read: ("/v1/instance", "label: decoy"),
        secret: (&[], "/v1/user-data"),
    },
];

impl Kin {
    fn policy(&self, policy: Policy) -> Policy {
        // IBM's token is a proof of the machine's identity, too.
        policy.cloud(self.cloud).everyone(r#""config", "session", "identity""#)
    }

    fn fetch(&self, caller: &Caller<'_>) -> String {
        let (url, put) = (url(self.token_path), ["-X", "PUT"]);
        let arguments: Vec<&str> = put.iter().chain(self.asking).copied().chain([url.as_str()]).collect();
        let curl = caller.curl(&arguments);
        assert_eq!((curl.exit, curl.answer.status), (0, 200), "{}: {}", self.cloud, curl.message);
        let text = curl.answer.text();
        let start = text.find(SECRET_MARK).expect("a token");
        text[start..].split('"').next().unwrap().to_owned()
    }

    fn read(&self, caller: &Caller<'_>, token: Option<&str>) -> Answer {
        let shown = token.map(|token| format!("{}{token}", self.showing));
        caller.get_with(&url(self.read.0), &shown.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn read_secret(&self, caller: &Caller<'_>, token: &str) -> Answer {
        let (shown, url) = (format!("{}{token}", self.showing), url(self.secret.1));
        let rest = ["-H", shown.as_str(), url.as_str()];
        caller.curl(&self.secret.0.iter().copied().chain(rest).collect::<Vec<_>>()).answer
    }
}

fn holder(event: &Event) -> String {
    event.text("imds_guard.token.holder")
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_token_of_any_cloud_works_for_whoever_fetched_it_alone() {
    for kin in &KIN {
        let bed = Bed::new();
        let guard = bed.guard(&kin.policy(Policy::enforce()).key("bind-tokens = \"on\""));
        let token = kin.fetch(&bed.agent());
        let own = kin.read(&bed.agent(), Some(&token));
        assert!(own.status == 200 && own.text().contains(kin.read.1), "{}: {own:?}", kin.cloud);
        assert!(kin.read_secret(&bed.agent(), &token).text().contains(SECRET_MARK), "{}", kin.cloud);
        let reached = bed.cloud.received().len();
        for thief in [bed.webapp(), bed.caller(AGENT, 63_033), bed.caller("other.service", 0)] {
            let answer = kin.read(&thief, Some(&token));
            assert!(answer.is_refusal() && answer.status == 401, "{}: {answer:?}", kin.cloud);
            let answer = kin.read_secret(&thief, &token);
            assert!(answer.is_refusal() && !answer.text().contains(SECRET_MARK), "{}: {answer:?}", kin.cloud);
        }
        assert_eq!(bed.cloud.received().len(), reached, "nothing of a thief's reaches the service");
        let event = guard.event("of a thief", |event| holder(event) == "foreign");
        assert_eq!(event.text("imds_guard.reason"), "token-of-another");
        assert_eq!(event.text("imds_guard.token.fetched_by"), format!("uid 0 in {AGENT}"));
        guard.event("of the owner", |event| holder(event) == "own");
        // Whoever fetches another, as a 401 tells to, is served.
        let another = kin.fetch(&bed.webapp());
        assert_eq!(kin.read(&bed.webapp(), Some(&another)).status, 200, "{}", kin.cloud);
        let log = std::fs::read_to_string(guard.log()).unwrap();
        assert!(!log.contains(SECRET_MARK) && !log.contains("decoy-secret-session"), "{log}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn denying_version_1_says_what_these_clouds_say() {
    for kin in &KIN {
        let direct = kin.read(&Bed::new().webapp(), None);
        let bed = Bed::new();
        let guard = bed.guard(&kin.policy(Policy::enforce()).key("v1 = \"deny\""));
        let answer = kin.read(&bed.webapp(), None);
        assert!(answer.is_refusal() && answer.status == direct.status, "{}: {answer:?}", kin.cloud);
        assert!(bed.cloud.received().is_empty(), "{}", kin.cloud);
        let path = kin.read.0.split('?').next().unwrap();
        assert_eq!(guard.event_for(path).text("imds_guard.reason"), "token-required");
        let token = kin.fetch(&bed.webapp());
        assert_eq!(kin.read(&bed.webapp(), Some(&token)).status, 200, "{}", kin.cloud);
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_never_had_a_version_1_is_lent_no_token() {
    for kin in &KIN {
        let bed = Bed::new();
        let guard = bed.guard(&kin.policy(Policy::enforce()).key("v1 = \"upgrade\""));
        let answer = kin.read(&bed.agent(), None);
        assert!(answer.status == 401 && !answer.is_refusal(), "the service's own word: {answer:?}");
        assert_eq!(bed.cloud.received().len(), 1, "the guard asks for nothing of its own");
        let event = guard.event_for(kin.read.0.split('?').next().unwrap());
        assert_eq!(event.text("imds_guard.session"), "v1");
    }
}
