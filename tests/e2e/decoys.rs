//! Decoys: a stranger's read of credentials is answered with a canary's, nobody else's is, and no canary gets into a log.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::support::bed::{Bed, PERSON_UID, ROLE_PATH, WEB_UID};
use crate::support::guard::{Guard, MARK};
use crate::support::policy::{AGENT, Policy};
use crate::support::simulator::SECRET_MARK;

const METADATA: &str = "http://169.254.169.254";
const LISTING: &str = "/latest/meta-data/iam/security-credentials/";
const GOOGLE: &str = "/computeMetadata/v1/instance/service-accounts/default/token";
const AZURE: &str =
    "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://management.azure.com/";
const USER_DATA: &str = "/latest/user-data";

const RULE: &str = "[[rule]]\nname = \"canaries\"\naction = \"decoy\"\nclass = \"credentials\"\n";

const CANARIES: &str = "[aws-ec2]\nrole = \"canary-admin\"\naccess-key-id = \"AKIACANARY0000000001\"\n\
     secret-access-key = \"canary-secret-aws\"\nsession-token = \"canary-token-aws\"\n\
     [gcp]\naccess-token = \"ya29.canary-token-gcp\"\n\
     [azure]\nclient-id = \"00000000-0000-0000-0000-0000000000ca\"\naccess-token = \"canary-token-azure\"\n";

/// What must never be in a log.
const SECRETS: [&str; 4] =
    ["canary-secret-aws", "canary-token-aws", "canary-token-gcp", "canary-token-azure"];

/// A directory of root's with a file of canaries.
struct Canaries(tempfile::TempDir);

impl Canaries {
    fn new() -> Self {
        let canaries = Self(tempfile::tempdir().unwrap());
        canaries.write(CANARIES, 0o600);
        canaries
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("decoys.toml")
    }

    fn write(&self, text: &str, mode: u32) {
        fs::write(self.path(), text).unwrap();
        fs::set_permissions(self.path(), Permissions::from_mode(mode)).unwrap();
    }

    fn policy(&self, policy: Policy) -> Policy {
        policy.guard_key(&format!("decoys = \"{}\"", self.path().display())).with(RULE)
    }
}

fn log(guard: &Guard) -> String {
    fs::read_to_string(guard.log()).unwrap()
}

fn assert_no_secret(guard: &Guard) {
    for text in [log(guard), guard.output()] {
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret} is in:\n{text}");
        }
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_stranger_is_given_a_canary_and_the_service_is_not_asked() {
    let bed = Bed::new();
    let canaries = Canaries::new();
    let guard = bed.guard(&canaries.policy(Policy::enforce()));
    for caller in [bed.webapp(), bed.person()] {
        let answer = caller.get(&format!("{METADATA}{ROLE_PATH}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.header(MARK).is_none(), "the answer is marked as the guard's: {answer:?}");
        assert_eq!(answer.header("server"), Some("EC2ws"));
        let keys: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(keys["AccessKeyId"], "AKIACANARY0000000001");
        assert_eq!(
            (&keys["Code"], &keys["SecretAccessKey"]),
            (&"Success".into(), &"canary-secret-aws".into())
        );
        let expires: jiff::Timestamp = keys["Expiration"].as_str().unwrap().parse().unwrap();
        let left = expires.duration_since(jiff::Timestamp::now()).as_secs();
        assert!((3600..=21_600).contains(&left), "{left}");
        assert_eq!(caller.get(&format!("{METADATA}{LISTING}")).text(), "canary-admin");
        let google = caller.get_with(&format!("{METADATA}{GOOGLE}"), &["Metadata-Flavor: Google"]);
        assert!(google.status == 200 && google.text().contains("ya29.canary-token-gcp"), "{google:?}");
        assert_eq!(google.header("metadata-flavor"), Some("Google"));
        let azure = caller.get_with(&format!("{METADATA}{AZURE}"), &["Metadata: true"]);
        assert!(azure.status == 200 && azure.text().contains("canary-token-azure"), "{azure:?}");
    }
    let event = guard.event_for(ROLE_PATH);
    assert_eq!(event.text("imds_guard.verdict"), "deny");
    assert_eq!(event.text("imds_guard.result"), "refused");
    assert_eq!(event.text("rule.name"), "canaries");
    assert_eq!(event.text("threat.technique.id"), "T1552.005");
    assert_eq!(event.0["imds_guard.decoy"], true);
    assert_eq!(event.0["event.severity"], 2);
    assert_eq!(event.text("imds_guard.issued.key_id"), "AKIACANARY0000000001");
    assert!(bed.cloud.received().is_empty(), "the service was asked: {:?}", bed.cloud.received());
    guard.event("Azure's", |event| event.text("url.path") == "/metadata/identity/oauth2/token");
    assert_no_secret(&guard);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_agent_is_never_given_a_decoy() {
    let bed = Bed::new();
    let canaries = Canaries::new();
    // One that may read credentials, one that may not, and one that is bound to another program: whatever they ask for,
    // they are refused like anybody, because the rule is a deny rule for them.
    let policy = canaries.policy(Policy::enforce()).with(&format!(
        "[[agent]]\nname = \"config only\"\nunit = \"backup.service\"\nuser = {WEB_UID}\nallow = [\"config\"]\n\
         [[agent]]\nname = \"another program\"\nunit = \"job.service\"\nuser = {WEB_UID}\n\
         exe = \"/usr/bin/true\"\nallow = [\"config\"]\n"
    ));
    let guard = bed.guard(&policy);
    for caller in [bed.agent(), bed.caller("backup.service", WEB_UID), bed.caller("job.service", WEB_UID)] {
        let answer = caller.get(&format!("{METADATA}{ROLE_PATH}"));
        assert!(answer.is_refusal(), "{answer:?}");
    }
    // Another user in an agent's unit is none.
    let other = bed.caller(AGENT, PERSON_UID).get(&format!("{METADATA}{ROLE_PATH}"));
    assert!(other.status == 200 && other.text().contains("AKIACANARY"), "{other:?}");
    let events = guard.events();
    for event in events.iter().filter(|event| !event.text("imds_guard.agent").is_empty()) {
        assert!(event.0.get("imds_guard.decoy").is_none(), "{event:?}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_is_no_read_of_credentials_or_has_no_canary_is_refused() {
    let bed = Bed::new();
    let canaries = Canaries::new();
    canaries.write(
        "[aws-ec2]\nrole = \"r\"\naccess-key-id = \"a\"\nsecret-access-key = \"s\"\nsession-token = \"t\"\n",
        0o600,
    );
    let rule = "[[rule]]\nname = \"everything\"\naction = \"decoy\"\n";
    let policy =
        Policy::enforce().guard_key(&format!("decoys = \"{}\"", canaries.path().display())).with(rule);
    let _guard = bed.guard(&policy);
    let web = bed.webapp();
    let refused = |answer: crate::support::answer::Answer| assert!(answer.is_refusal(), "{answer:?}");
    refused(web.get(&format!("{METADATA}{USER_DATA}")));
    refused(web.get_with(&format!("{METADATA}{GOOGLE}"), &["Metadata-Flavor: Google"]));
    refused(web.get_with(&format!("{METADATA}{ROLE_PATH}"), &["X-Forwarded-For: 198.51.100.7"]));
    let posted = web.curl(&["-X", "POST", "-d", "", &format!("{METADATA}{ROLE_PATH}")]);
    refused(posted.answer);
    assert!(bed.cloud.received().is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_gives_no_decoy_and_tells_what_enforce_would() {
    let bed = Bed::new();
    let canaries = Canaries::new();
    let guard = bed.guard(&canaries.policy(Policy::audit()));
    let answer = bed.webapp().get(&format!("{METADATA}{ROLE_PATH}"));
    assert!(answer.status == 200 && answer.text().contains(SECRET_MARK), "{answer:?}");
    let event = guard.event_for(ROLE_PATH);
    assert_eq!(
        (&event.0["imds_guard.decoy"], &event.0["imds_guard.would_deny"]),
        (&true.into(), &true.into())
    );
    assert_eq!(event.text("imds_guard.result"), "forwarded");
    assert_eq!(event.0["event.severity"], 4, "nobody was deceived");
    assert_eq!(bed.reached(ROLE_PATH).len(), 1);
}

/// How a guard that must not start ends, and what it says.
fn refused_start(bed: &Bed, policy: &Policy) -> (Option<i32>, String) {
    let output = Guard::run_to_end(&mut bed.guard_command(), policy);
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_file_of_canaries_that_others_could_read_or_write_is_refused() {
    let bed = Bed::new();
    let canaries = Canaries::new();
    let policy = canaries.policy(Policy::enforce());
    for (text, mode, owner, why) in [
        (CANARIES, 0o644, 0, "is readable by others"),
        (CANARIES, 0o666, 0, "is writable by others"),
        (CANARIES, 0o600, WEB_UID, "is not owned by root"),
        ("[aws-ec2]\nrole = \"canary-secret-aws\"\n", 0o600, 0, "lacks `access-key-id`"),
        ("[aws-ec2\ncanary-secret-aws", 0o600, 0, "is no TOML (line 1)"),
    ] {
        canaries.write(text, mode);
        std::os::unix::fs::chown(canaries.path(), Some(owner), None).unwrap();
        let (code, said) = refused_start(&bed, &policy);
        assert!([66, 77, 78].map(Some).contains(&code), "{why}: {code:?} {said}");
        assert!(said.contains(why), "{why} is not in:\n{said}");
        assert!(!said.contains("canary-secret-aws"), "{said}");
        std::os::unix::fs::chown(canaries.path(), Some(0), None).unwrap();
    }
    fs::remove_file(canaries.path()).unwrap();
    assert!(refused_start(&bed, &policy).1.contains("cannot read"), "a file that is not there");
    assert!(!bed.has_redirect());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_reload_takes_new_canaries_and_keeps_the_old_ones_if_they_are_wrong() {
    let bed = Bed::new();
    let canaries = Canaries::new();
    let policy = canaries.policy(Policy::enforce());
    let guard = bed.guard(&policy);
    let key = || bed.webapp().get(&format!("{METADATA}{ROLE_PATH}")).text();
    assert!(key().contains("AKIACANARY0000000001"));
    canaries.write(&CANARIES.replace("0000000001", "0000000002"), 0o600);
    guard.reload(&policy);
    assert!(key().contains("AKIACANARY0000000002"));
    canaries.write(CANARIES, 0o604);
    guard.reload(&policy);
    guard.event("the refusal", |event| event.text("imds_guard.reason") == "reload-failed");
    assert!(key().contains("AKIACANARY0000000002"), "what is in force stays in force");
    canaries.write(CANARIES, 0o600);
    // Without the rule nobody is deceived any more.
    guard.reload(&Policy::enforce());
    assert!(bed.webapp().get(&format!("{METADATA}{ROLE_PATH}")).is_refusal());
    assert_no_secret(&guard);
    guard.signal(Signal::SIGTERM);
}

/// The canaries are in the proxy's memory alone: the kept policy has none.
#[test]
#[ignore = "needs root: make test runs it"]
fn the_last_good_policy_is_kept_without_canaries() {
    let bed = Bed::new();
    let canaries = Canaries::new();
    let state = tempfile::tempdir().unwrap();
    let policy = canaries.policy(Policy::enforce());
    let mut guard = Guard::start_with_state(&bed.network.vm, |dir| policy.text(dir), state.path());
    assert_eq!(bed.webapp().get(&format!("{METADATA}{ROLE_PATH}")).status, 200);
    guard.signal(Signal::SIGTERM);
    guard.wait_for_end();
    let mut kept = 0;
    for entry in fs::read_dir(state.path()).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap_or_default();
        kept += usize::from(bytes.windows(8).any(|part| part == b"canaries"));
        for secret in SECRETS {
            assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret}");
        }
    }
    assert_eq!(kept, 1, "the policy itself is kept");
    // A broken policy, and canaries that must not be trusted any more: the last good one refuses.
    canaries.write(CANARIES, 0o644);
    let guard = Guard::start_with_state(&bed.network.vm, |_| "mood = \"good\"\n".to_owned(), state.path());
    assert!(bed.webapp().get(&format!("{METADATA}{ROLE_PATH}")).is_refusal());
    drop(guard);
    let _: &Path = state.path();
}
