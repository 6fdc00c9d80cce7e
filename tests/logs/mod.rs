//! Audit logs as the guard writes them, and the program run on them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "a helper of tests may fail the test, and each file of tests uses a part of it"
)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Map, Value, json};

/// The path of a role's credentials on EC2.
pub(crate) const ROLE: &str = "/latest/meta-data/iam/security-credentials/billing";

/// One event.
#[derive(Clone)]
pub(crate) struct Event(pub(crate) Map<String, Value>);

impl Event {
    /// A request of uid 998 in billing.service for the instance's id, allowed.
    pub(crate) fn new(id: &str) -> Self {
        let event = json!({
            "@timestamp": "2026-11-24T09:00:00.000000Z",
            "ecs.version": "8.17.0",
            "event.dataset": "imds-guard.audit",
            "imds_guard.schema": 1,
            "event.id": id,
            "event.action": "request",
            "event.outcome": "success",
            "imds_guard.mode": "audit",
            "imds_guard.verdict": "allow",
            "imds_guard.would_deny": false,
            "imds_guard.reason": "everyone-allows",
            "imds_guard.classes": ["config"],
            "cloud.provider": "aws-ec2",
            "http.request.method": "GET",
            "url.path": "/latest/meta-data/instance-id",
            "destination.ip": "169.254.169.254",
            "destination.port": 80,
            "imds_guard.attribution": "stamped",
            "user.id": "998",
            "imds_guard.cgroup": "/system.slice/billing.service",
            "service.name": "billing.service",
            "imds_guard.process.source": "fresh",
            "imds_guard.process.holders": 1,
            "process.executable": "/usr/bin/python3.11"
        });
        Self(event.as_object().unwrap().clone())
    }

    pub(crate) fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0.insert(field.to_owned(), value.into());
        self
    }

    pub(crate) fn without(mut self, field: &str) -> Self {
        self.0.remove(field);
        self
    }

    pub(crate) fn at(self, time: &str) -> Self {
        self.with("@timestamp", format!("2026-11-{time}Z"))
    }

    pub(crate) fn from(self, unit: &str, uid: u32) -> Self {
        self.with("user.id", uid.to_string()).with("imds_guard.cgroup", format!("/system.slice/{unit}"))
    }

    pub(crate) fn in_session(self, uid: u32) -> Self {
        let cgroup = format!("/user.slice/user-{uid}.slice/session-3.scope");
        self.with("user.id", uid.to_string()).with("imds_guard.cgroup", cgroup)
    }

    pub(crate) fn asking(self, path: &str, class: &str) -> Self {
        self.with("url.path", path).with("imds_guard.classes", json!([class]))
    }

    pub(crate) fn would_deny(self, reason: &str) -> Self {
        self.with("imds_guard.verdict", "deny")
            .with("imds_guard.would_deny", true)
            .with("imds_guard.reason", reason)
    }
}

/// The events as lines.
pub(crate) fn lines(events: &[Event]) -> String {
    events.iter().map(|event| Value::Object(event.0.clone()).to_string() + "\n").collect()
}

/// A directory with a log in it.
pub(crate) struct Logs {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) log: PathBuf,
}

impl Logs {
    pub(crate) fn new(text: impl AsRef<[u8]>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("audit.jsonl");
        fs::write(&log, text).unwrap();
        Self { directory, log }
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn log(&self) -> &str {
        self.log.to_str().unwrap()
    }
}

/// The program.
pub(crate) fn guard(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imds-guard"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs it, and gives its exit code, standard output and standard error.
pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    told(guard(arguments).output().expect("the program runs"))
}

/// Runs it with something on standard input.
pub(crate) fn run_fed(arguments: &[&str], input: &[u8]) -> (i32, String, String) {
    let mut child = guard(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    child.stdin.take().unwrap().write_all(input).unwrap();
    told(child.wait_with_output().unwrap())
}

/// Runs it, and reads what it says as JSON.
pub(crate) fn run_json(arguments: &[&str]) -> (i32, Value) {
    let (code, out, err) = run(arguments);
    (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
}

fn told(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// A path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}
