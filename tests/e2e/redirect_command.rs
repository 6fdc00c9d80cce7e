//! `imds-guard redirect`: the rules without the guard, for the early boot and for looking.

use std::process::Output;

use crate::support::bed::Bed;
use crate::support::guard::Guard;
use crate::support::policy::Policy;

const URL: &str = "http://169.254.169.254/latest/meta-data/instance-id";

fn redirect(bed: &Bed, action: &str, policy: &Policy) -> Output {
    let dir = Guard::prepare(policy);
    let mut command = bed.guard_command();
    command.args(["redirect", action]);
    if action != "remove" {
        command.arg("--config").arg(Guard::config_in(&dir));
    }
    command.output().expect("the binary runs")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn applied_rules_close_the_door_until_the_guard_comes() {
    let bed = Bed::new();
    assert_eq!(code(&redirect(&bed, "apply", &Policy::enforce())), Some(0));
    assert_ne!(bed.agent().curl(&["--max-time", "3", URL]).exit, 0);
    assert!(bed.cloud.received().is_empty());
    let _guard = bed.guard(&Policy::enforce());
    assert_eq!(bed.agent().get(URL).status, 200);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn removed_rules_open_it() {
    let bed = Bed::new();
    assert_eq!(code(&redirect(&bed, "apply", &Policy::enforce())), Some(0));
    assert_eq!(code(&redirect(&bed, "remove", &Policy::enforce())), Some(0));
    assert!(!bed.has_redirect());
    assert_eq!(bed.agent().get(URL).status, 200);
    assert_eq!(code(&redirect(&bed, "remove", &Policy::enforce())), Some(0), "nothing to remove is no error");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn verify_tells_rules_from_other_rules() {
    let bed = Bed::new();
    let policy = Policy::enforce();
    assert_eq!(code(&redirect(&bed, "verify", &policy)), Some(1), "there are none yet");
    let guard = bed.guard(&policy);
    assert_eq!(code(&redirect(&bed, "verify", &policy)), Some(0));
    // The guard would put it right at once.
    guard.signal(nix::sys::signal::Signal::SIGSTOP);
    let element = "{ 169.254.169.254 . 80 }";
    assert!(bed.nft(&["delete", "element", "inet", "imds_guard", "endpoints4", element]).0);
    assert_eq!(code(&redirect(&bed, "verify", &policy)), Some(1), "an endpoint is missing");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_rules_cannot_be_applied_without_a_guard() {
    let bed = Bed::new();
    assert_ne!(code(&redirect(&bed, "apply", &Policy::audit())), Some(0));
    assert!(!bed.has_redirect());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn show_prints_rules_that_nft_takes() {
    let bed = Bed::new();
    for policy in [Policy::enforce(), Policy::audit()] {
        let shown = redirect(&bed, "show", &policy);
        assert_eq!(code(&shown), Some(0));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &shown.stdout).unwrap();
        assert!(
            bed.nft(&["-c", "-f", file.path().to_str().unwrap()]).0,
            "{}",
            String::from_utf8_lossy(&shown.stdout)
        );
    }
    assert!(!bed.has_redirect(), "showing changes nothing");
}
