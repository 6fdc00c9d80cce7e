//! `imds-guard verify`: it says so when a connection does not reach the guard, whatever the reason, and leaves no trace.

use std::process::Output;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::guard::{self, Guard, binary};
use crate::support::policy::Policy;

const METADATA: &str = "169.254.169.254:80";

/// What it found: exit code and the findings.
struct Verified(i32, Vec<Value>);

impl Verified {
    fn read(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout);
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        Self(output.status.code().unwrap(), report["findings"].as_array().unwrap().clone())
    }

    /// Status and detail of what it says about an endpoint.
    fn about(&self, endpoint: &str) -> (String, String) {
        let is_about =
            |finding: &&Value| finding["detail"].as_str().unwrap().starts_with(&format!("{endpoint}: "));
        let finding = self.1.iter().find(is_about).unwrap_or_else(|| panic!("{endpoint}: {:#?}", self.1));
        (finding["status"].as_str().unwrap().to_owned(), finding["detail"].as_str().unwrap().to_owned())
    }
}

fn verify(bed: &Bed, config: &std::path::Path) -> Verified {
    let output = bed.guard_command().args(["verify", "--json", "--config"]).arg(config).output().unwrap();
    Verified::read(&output)
}

fn assert_wrong(verified: &Verified, because: &str) {
    assert_eq!(verified.0, 1);
    let (status, detail) = verified.about(METADATA);
    assert!(status == "wrong" && detail.contains(because), "{status}: {detail}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_guarded_machine_is_told_so_and_nothing_is_asked() {
    for policy in [Policy::enforce(), Policy::audit()] {
        let bed = Bed::new();
        let guard = bed.guard(&policy);
        let verified = verify(&bed, &guard.config());
        assert_eq!(verified.0, 0, "{:#?}", verified.1);
        for endpoint in [METADATA, "169.254.169.254:443", "[fd00:ec2::254]:80", "168.63.129.16:80"] {
            let (status, detail) = verified.about(endpoint);
            assert!(status == "ok" && detail.ends_with("reaches the guard"), "{status}: {detail}");
        }
        assert!(bed.cloud.received().is_empty());
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn verifying_leaves_no_event() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    assert_eq!(verify(&bed, &guard.config()).0, 0);
    bed.agent().get(&format!("http://{METADATA}{ROLE_PATH}"));
    guard.event_for(ROLE_PATH);
    let events = guard.events();
    assert_eq!(events.len(), 1, "{events:#?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn anybody_may_verify() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    let mut command = bed.person().command(binary().to_str().unwrap());
    let output = command.args(["verify", "--json", "--config"]).arg(guard.config()).output().unwrap();
    let verified = Verified::read(&output);
    assert_eq!((verified.0, verified.about(METADATA).0.as_str()), (0, "ok"));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_machine_without_the_guard_is_told_so() {
    let bed = Bed::new();
    let dir = Guard::prepare(&Policy::enforce());
    assert_wrong(&verify(&bed, &Guard::config_in(&dir)), "goes around the guard");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_dead_guard_in_enforce_is_told_so() {
    let bed = Bed::new();
    let mut guard = bed.guard(&Policy::enforce());
    guard::send(guard.keeper(), Signal::SIGKILL);
    guard.wait_for_end();
    assert_wrong(&verify(&bed, &guard.config()), "the guard is not there");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_guard_that_hangs_is_told_so() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce().cloud("aws"));
    guard::send(guard.proxy(), Signal::SIGSTOP);
    let verified = verify(&bed, &guard.config());
    guard::send(guard.proxy(), Signal::SIGCONT);
    assert_wrong(&verified, "does not take it");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn another_s_redirect_before_the_guard_s_is_told() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::audit().cloud("aws"));
    assert_eq!(verify(&bed, &guard.config()).0, 0);
    let listener = bed.network.vm.enter(|| std::net::TcpListener::bind("127.0.0.1:9254")).unwrap();
    let rules = "add table ip other; \
        add chain ip other out { type nat hook output priority -150; policy accept; }; \
        add rule ip other out ip daddr 169.254.169.254 tcp dport 80 redirect to :9254";
    assert!(bed.nft(&[rules]).0);
    assert_wrong(&verify(&bed, &guard.config()), "goes around the guard");
    drop(listener);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_image_is_looked_through_from_outside() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("usr/sbin")).unwrap();
    let mut command = std::process::Command::new(binary());
    let output = command.args(["verify", "--image", "--json", "--root"]).arg(root.path()).output().unwrap();
    let Verified(exit, findings) = Verified::read(&output);
    let wrong: Vec<&str> = findings
        .iter()
        .filter(|one| one["status"] == "wrong")
        .map(|one| one["check"].as_str().unwrap())
        .collect();
    assert_eq!((exit, &wrong[..]), (1, &["nft", "service", "policy"][..]));
}
