//! The cloud vendors' own client libraries, unmodified, with their default endpoints.
//!
//! They come from PyPI into a virtual environment below `target/` (scripts/clients.sh). Where they can't be installed,
//! `make test` says so loudly and skips these tests.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::bed::Bed;
use crate::support::caller::Caller;
use crate::support::policy::Policy;
use crate::support::simulator::{Options, SECRET_MARK};

/// The environment's Python.
fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("bash").arg(root.join("scripts/clients.sh")).output().expect("bash runs");
    assert!(
        output.status.success(),
        "the clients could not be installed (`make test` skips these tests then):\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// What a client library came back with.
struct Outcome {
    secret: Option<String>,
    error: String,
    took: Duration,
}

fn ask(caller: &Caller<'_>, python: &Path, client: &str) -> Outcome {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(client);
    let output =
        caller.command(python.to_str().unwrap()).arg("-I").arg(script).output().expect("python runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(printed.lines().last().unwrap_or("")).unwrap_or_else(|error| {
        panic!("{client}: {error}\n{printed}\n{}", String::from_utf8_lossy(&output.stderr))
    });
    Outcome {
        secret: report["secret"].as_str().map(str::to_owned),
        error: report["error"].as_str().unwrap_or_default().to_owned(),
        took: Duration::from_secs_f64(report["seconds"].as_f64().unwrap_or_default()),
    }
}

/// The listed agent gets credentials; the same program, as the same user, in another unit gets none and knows it fast.
fn check(client: &str) {
    let python = python();
    let bed = Bed::with_options(Options { v2_only: true, ..Options::default() });
    let _guard = bed.guard(&Policy::enforce());
    let mut hosts = tempfile::Builder::new().prefix(&bed.name).tempfile().unwrap();
    writeln!(hosts, "127.0.0.1 localhost\n169.254.169.254 metadata.google.internal").unwrap();

    let granted = ask(&bed.agent().with_hosts(hosts.path().to_owned()), &python, client);
    let refused = ask(&bed.caller("webapp.service", 0).with_hosts(hosts.path().to_owned()), &python, client);

    // Not by a macro: the test harness would keep the figures of a passed test to itself.
    let _ = writeln!(
        std::io::stderr(),
        "{client}: credentials after {:.2?}, refusal known after {:.2?}",
        granted.took,
        refused.took
    );
    assert!(granted.secret.is_some_and(|secret| secret.contains(SECRET_MARK)), "{}", granted.error);
    assert_eq!(refused.secret, None);
    assert!(!refused.error.is_empty());
    // The promise is 2 s; a machine that also runs the other tests gets some more.
    assert!(
        refused.took < Duration::from_secs(4),
        "refused only after {:?}: {}",
        refused.took,
        refused.error
    );
}

#[test]
#[ignore = "needs root: make test runs it"]
fn boto3() {
    check("aws_instance.py");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn google_auth() {
    check("gcp_instance.py");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn azure_identity() {
    check("azure_vm.py");
}
