//! Bad input to every subcommand: one clear line, the documented exit code, and nothing half-written.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper of a test may fail the test, like the test itself"
)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

mod logs;

use logs::{Event, arg, guard, lines};

const GOOD: &str =
    "mode = \"audit\"\ncloud = \"aws\"\n[guard]\nuser = \"63111\"\n[everyone]\nallow = [\"config\"]\n";

const ONE_CASE: &[u8] =
    b"[users]\na = 7\n[[case]]\nname = \"one\"\ncaller = { unit = \"a.service\", user = \"a\" }\n\
    request = \"GET /latest/user-data\"\nverdict = \"deny\"\n";

/// Inputs of every bad kind, and good ones.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { directory: tempfile::tempdir().unwrap() };
        files.put("good.toml", GOOD.as_bytes());
        files.put("broken.toml", b"mode = \"audit\"\n[[agent]]\nname = \"x\"\n");
        files.put("garbage", &[0xff, 0x00, 0x9f, b'\n', 0xc3, 0x28, 0x1b, b'[', b'2', b'J']);
        files.put("good.cases.toml", b"[[case]]\nname = 7\n");
        let log = lines(&[Event::new("e-1"), Event::new("e-2")]);
        files.put("log.jsonl", log.as_bytes());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(log.repeat(50).as_bytes()).unwrap();
        let whole = gzip.finish().unwrap();
        files.put("truncated.gz", &whole[..whole.len() / 2]);
        files.put("no.gz", b"this is no gzip\n");
        fs::create_dir(files.path("directory")).unwrap();
        std::os::unix::fs::symlink("nowhere", files.path("dangling")).unwrap();
        files
    }

    fn put(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn run_in(files: &Files, arguments: &[&str]) -> Output {
    let mut command = guard(arguments);
    command.current_dir(files.directory.path()).stdin(Stdio::null()).output().unwrap()
}

/// Every command that reads a policy, with a place for it.
const OF_POLICIES: &[&[&str]] = &[
    &["check", "POLICY"],
    &["check", "--json", "POLICY"],
    &["explain", "--config", "POLICY", "GET", "/"],
    &["explain", "--json", "--config", "POLICY", "GET", "/"],
    &["explain", "--config", "POLICY", "--event", "e-1", "--log", "log.jsonl"],
    &["test", "--config", "POLICY", "cases.toml"],
    &["replay", "--policy", "POLICY", "log.jsonl"],
    &["learn", "--merge", "POLICY", "log.jsonl"],
    &["redirect", "show", "--config", "POLICY"],
    &["redirect", "verify", "--config", "POLICY"],
];

/// Every command that reads a log, with a place for it.
const OF_LOGS: &[&[&str]] = &[
    &["report", "LOG"],
    &["report", "--json", "LOG"],
    &["report", "--csv", "LOG"],
    &["learn", "LOG"],
    &["replay", "--policy", "good.toml", "LOG"],
    &["tail", "--no-follow", "LOG"],
    &["explain", "--config", "good.toml", "--event", "e-1", "--log", "LOG"],
];

fn with<'a>(command: &[&'a str], place: &str, input: &'a str) -> Vec<&'a str> {
    command.iter().map(|word| if *word == place { input } else { word }).collect()
}

/// One line that names the input, no data, this code; and what a terminal obeys is in neither.
fn expect(files: &Files, arguments: &[&str], code: i32, names: &str) {
    let before = files.names();
    let Output { status, stdout, stderr } = run_in(files, arguments);
    let err = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{arguments:?}: {err}");
    assert_eq!(String::from_utf8_lossy(&stdout), "", "{arguments:?}");
    assert_eq!(err.lines().count(), 1, "{arguments:?}: {err}");
    assert!(err.starts_with("imds-guard: ") && err.contains(names), "{arguments:?}: {err}");
    assert!(!err.contains('\u{1b}'), "{arguments:?}: {err:?}");
    assert_eq!(files.names(), before, "{arguments:?} left something behind");
}

#[test]
fn a_policy_that_cannot_be_read() {
    let files = Files::new();
    files.put("cases.toml", b"");
    for input in ["missing.toml", "directory", "garbage", "truncated.gz", "dangling"] {
        for command in OF_POLICIES {
            expect(&files, &with(command, "POLICY", input), 78, input);
        }
    }
    for command in OF_POLICIES {
        expect(&files, &with(command, "POLICY", "/dev/zero"), 78, "larger than 8192 KiB");
    }
}

#[test]
fn a_drop_in_that_cannot_be_read() {
    let files = Files::new();
    files.put("cases.toml", b"");
    fs::create_dir_all(files.path("policy.d/a.toml")).unwrap();
    for command in OF_POLICIES {
        expect(&files, &with(command, "POLICY", "good.toml"), 78, "a.toml");
    }
    fs::remove_dir_all(files.path("policy.d")).unwrap();
    files.put("policy.d", b"");
    for command in OF_POLICIES {
        expect(&files, &with(command, "POLICY", "good.toml"), 78, "policy.d");
    }
}

/// Errors of the policy are told by `check` as data, by the others as talk; all of them end with a line that says so.
#[test]
fn a_policy_with_errors() {
    let files = Files::new();
    files.put("cases.toml", ONE_CASE);
    for command in OF_POLICIES {
        let arguments = with(command, "POLICY", "broken.toml");
        let Output { status, stdout, stderr } = run_in(&files, &arguments);
        let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        if command[0] == "check" {
            assert_eq!((status.code(), err.as_str()), (Some(1), ""), "{arguments:?}");
            assert!(out.contains("agent-is-anybody"), "{out}");
            continue;
        }
        assert_eq!((status.code(), out.as_str()), (Some(78), ""), "{arguments:?}: {err}");
        let last = err.lines().last().unwrap();
        assert!(last.starts_with("imds-guard: ") && last.contains("errors"), "{arguments:?}: {err}");
    }
}

#[test]
fn a_log_that_cannot_be_read() {
    let files = Files::new();
    for input in ["missing.jsonl", "directory", "dangling"] {
        for command in OF_LOGS {
            expect(&files, &with(command, "LOG", input), 66, input);
        }
    }
}

/// What can be read of a log that breaks off counts, and the rest is told; garbage is told and never printed.
#[test]
fn a_log_that_breaks_off_or_is_none() {
    let files = Files::new();
    let Output { status, stdout, stderr } = run_in(&files, &["report", "truncated.gz"]);
    let err = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(0), "{err}");
    assert!(err.contains("truncated.gz breaks off"), "{err}");
    assert!(!stdout.is_empty());
    for input in ["garbage", "no.gz", "/dev/null"] {
        for command in OF_LOGS {
            let arguments = with(command, "LOG", input);
            let Output { status, stdout, stderr } = run_in(&files, &arguments);
            let talk = String::from_utf8(stderr).unwrap();
            assert!(matches!(status.code(), Some(0 | 1 | 66)), "{arguments:?}: {status} {talk}");
            let out = String::from_utf8(stdout).unwrap();
            assert!(!out.contains(['\u{1b}', '\0']) && !talk.contains(['\u{1b}', '\0']), "{arguments:?}");
            assert!(talk.lines().all(|line| line.starts_with("imds-guard: ")), "{arguments:?}: {talk}");
        }
    }
}

#[test]
fn cases_that_cannot_be_read() {
    let files = Files::new();
    for (input, code) in [("missing.toml", 66), ("directory", 66), ("garbage", 66), ("dangling", 66)] {
        expect(&files, &["test", "--config", "good.toml", input], code, input);
    }
    expect(&files, &["test", "--config", "good.toml"], 78, "good.cases.toml: line 2");
    expect(&files, &["test", "--config", "log.jsonl"], 66, "cases");
}

#[test]
fn outputs_that_cannot_be_written() {
    let files = Files::new();
    files.put(
        "seen.jsonl",
        lines(&[Event::new("e-1").asking("/latest/user-data", "user-data").would_deny("no-agent")])
            .as_bytes(),
    );
    for place in ["directory", "missing/page", "log.jsonl/page"] {
        expect(&files, &["report", "--html", place, "log.jsonl"], 73, place);
    }
    for place in ["directory", "missing/policy.toml"] {
        let output = run_in(&files, &["learn", "--output", place, "seen.jsonl"]);
        assert!(matches!(output.status.code(), Some(1 | 73)), "{output:?}");
    }
    expect(&files, &["man", "log.jsonl"], 73, "log.jsonl");
    assert!(files.path("directory").read_dir().unwrap().next().is_none(), "something was left in it");
}

/// Commands that print something, whatever the machine.
const PRINTING: &[&[&str]] = &[
    &["clouds"],
    &["clouds", "gcp"],
    &["clouds", "--json"],
    &["check", "good.toml"],
    &["check", "--json", "good.toml"],
    &["check", "broken.toml"],
    &["explain", "--config", "good.toml", "GET", "/"],
    &["explain", "--json", "--config", "good.toml", "GET", "/"],
    &["explain", "--config", "good.toml", "--event", "e-1", "--log", "log.jsonl"],
    &["test", "--config", "good.toml", "one.toml"],
    &["test", "--json", "--config", "good.toml", "one.toml"],
    &["redirect", "show", "--config", "good.toml"],
    &["completions", "bash"],
    &["completions", "zsh"],
    &["report", "log.jsonl"],
    &["report", "--json", "log.jsonl"],
    &["report", "--csv", "log.jsonl"],
    &["replay", "--policy", "good.toml", "log.jsonl"],
    &["replay", "--json", "--policy", "good.toml", "log.jsonl"],
    &["tail", "--no-follow", "log.jsonl"],
];

fn printing() -> Files {
    let files = Files::new();
    files.put("one.toml", ONE_CASE);
    files
}

#[test]
fn a_full_disk() {
    let files = printing();
    for command in PRINTING {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut guard = guard(command);
        let output =
            guard.current_dir(files.directory.path()).stdin(Stdio::null()).stdout(full).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(73), "{command:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{command:?}: {err}");
        assert!(err.starts_with("imds-guard: ") && err.contains("No space left"), "{command:?}: {err}");
    }
}

#[test]
fn a_reader_that_leaves() {
    let files = printing();
    for command in PRINTING {
        let mut guard = guard(command);
        let mut child = guard
            .current_dir(files.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{command:?}: {} {err}", output.status);
        assert_eq!(err, "", "{command:?}");
    }
}

/// Nobody reads a directory of a stranger's; root reads everything, so this says something only to others.
#[test]
fn what_may_not_be_read() {
    let files = Files::new();
    if rustix::process::geteuid().is_root() {
        return;
    }
    for name in ["good.toml", "log.jsonl"] {
        fs::set_permissions(files.path(name), fs::Permissions::from_mode(0o000)).unwrap();
    }
    expect(&files, &["check", "good.toml"], 78, "good.toml");
    expect(&files, &["report", "log.jsonl"], 66, "log.jsonl");
}

/// What makes no sense ends with 2 before anything is read.
#[test]
fn arguments_that_make_no_sense() {
    let files = Files::new();
    for arguments in [
        &["fly"][..],
        &["check", "--fly"],
        &["check", "a", "b"],
        &["explain", "GET"],
        &["explain", "--unit", "a.service", "--cgroup", "/a", "GET", "/"],
        &["explain", "--pid", "x", "GET", "/"],
        &["explain", "--event", "e"],
        &["clouds", "nimbus"],
        &["completions", "cmd"],
        &["report", "--json", "--csv", "log.jsonl"],
        &["report", "--since", "yesterday", "log.jsonl"],
        &["replay", "--since", "-1h", "log.jsonl"],
        &["tail", "--verdict", "maybe", "log.jsonl"],
        &["tail", "--class", "keys", "log.jsonl"],
        &["tail", "--lines", "x", "log.jsonl"],
        &["redirect"],
        &["redirect", "fly"],
    ] {
        let output = run_in(&files, arguments);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        assert!(output.stdout.is_empty() && !err.is_empty(), "{arguments:?}");
    }
    let output = run_in(&files, &["explain", "--config", "good.toml", "--pid", "4194305", "GET", "/"]);
    assert_eq!(output.status.code(), Some(66));
}

/// A policy that root runs by must be a file: a pipe without a writer would keep the guard from ever starting.
#[test]
fn a_guard_never_waits_for_its_policy() {
    let files = Files::new();
    let pipe = files.path("pipe.toml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let read = imds_guard::keeper::files::policy(&pipe, imds_guard::keeper::files::Trust::RootOnly);
    let error = read.unwrap_err().to_string();
    assert!(error.contains("is not a regular file"), "{error}");
}

/// What the machine has, beside what the policy says: only `check` looks.
#[test]
fn check_looks_at_the_executables_that_a_policy_names() {
    let files = Files::new();
    let there = files.path("agent");
    files.put("agent", b"#!/bin/sh\n");
    let policy = |exe: &Path, more: &str| {
        format!(
            "{GOOD}[[agent]]\nname = \"a\"\nuser = 0\nexe = [\"{}\"{more}]\nallow = \"config\"\n",
            arg(exe)
        )
    };
    let codes = |text: &str| -> Vec<String> {
        files.put("named.toml", text.as_bytes());
        let output = run_in(&files, &["check", "--json", "named.toml"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = found.as_array().unwrap().iter();
        found
            .map(|one| {
                assert_eq!(
                    (one["column"].as_u64(), one["severity"].as_str()),
                    (Some(8), Some("warning")),
                    "{one}"
                );
                one["code"].as_str().unwrap().to_owned()
            })
            .collect()
    };
    assert_eq!(codes(&policy(Path::new("/bin/sh"), "")), [""; 0]);
    assert_eq!(codes(&policy(Path::new("/nonexistent/agent"), "")), ["missing-exe"]);
    assert_eq!(
        codes(&policy(Path::new("/nonexistent/agent"), ", \"/bin/sh\"")),
        [""; 0],
        "one of several will do"
    );
    assert_eq!(codes(&policy(Path::new("/nonexistent/*/agent"), "")), [""; 0]);
    fs::set_permissions(&there, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(codes(&policy(&there, "")), ["writable-exe"]);
    // An image's policy names agents that this machine does not have.
    let absent = policy(Path::new("/nonexistent/agent"), "")
        .replace("user = 0", "user = 0\nunit = \"no-such-agent.service\"");
    assert_eq!(codes(&absent), [""; 0]);
    files.put("named.toml", policy(&there, "").as_bytes());
    assert_eq!(run_in(&files, &["check", "--strict", "named.toml"]).status.code(), Some(1));
}
