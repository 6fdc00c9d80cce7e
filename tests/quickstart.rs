//! The commands of the quick start, run as they stand there, one block after the other.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must stop and say so"
)]

mod logs;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use logs::{Event, ROLE, lines};

/// What an afternoon of watching has recorded: the application of the page, and an attack by way of the web server.
fn watched() -> String {
    let mut events: Vec<Event> = (10..30)
        .map(|minute| {
            Event::new(&format!("app-{minute}"))
                .asking(ROLE, "credentials")
                .would_deny("no-agent")
                .at(&format!("24T09:{minute}:00"))
        })
        .collect();
    events.push(
        Event::new("x")
            .from("nginx.service", 33)
            .asking(ROLE, "credentials")
            .would_deny("forwarding-header")
            .with("imds_guard.faults", serde_json::json!(["forwarding-header"])),
    );
    lines(&events)
}

fn blocks(page: &str) -> Vec<&str> {
    page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

/// Programs of the system that the page calls, and what stands for them here.
fn programs(directory: &Path) {
    let scripts = [
        ("journalctl", "exec cat \"$WATCHED\"".to_owned()),
        ("systemctl", "echo \"$@\" >>\"$ASKED\"".to_owned()),
        ("imds-guard", format!("exec {} \"$@\"", env!("CARGO_BIN_EXE_imds-guard"))),
    ];
    for (name, script) in scripts {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn the_quickstart_runs_as_it_stands() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/quickstart.md")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let place = |name: &str| home.path().join(name);
    for directory in ["bin", "etc", "etc/policy.d", "work"] {
        fs::create_dir(place(directory)).unwrap();
    }
    programs(&place("bin"));
    // The shipped policy names users that packages make.
    let policy = fs::read_to_string(root.join("policy.toml")).unwrap();
    fs::write(place("etc/policy.toml"), policy.replace("cloud = \"auto\"", "cloud = \"aws\"")).unwrap();
    fs::write(place("watched"), watched()).unwrap();
    let etc = place("etc");
    let etc = etc.to_str().unwrap();
    let blocks = blocks(&page);
    assert!(blocks.len() >= 8, "{} blocks", blocks.len());
    let mut said = String::new();
    for block in &blocks {
        // Commands that look for the policy in its usual place are told where it is.
        let block = block
            .replace("/etc/imds-guard", etc)
            .replace("imds-guard check", &format!("imds-guard check {etc}/policy.toml"))
            .replace("imds-guard test ", &format!("imds-guard test --config {etc}/policy.toml "))
            .replace("imds-guard explain ", &format!("imds-guard explain --config {etc}/policy.toml "));
        let output = Command::new("sh")
            .args(["-euc", &block])
            .current_dir(place("work"))
            .env("PATH", format!("{}:{}", place("bin").display(), std::env::var("PATH").unwrap()))
            .env("WATCHED", place("watched"))
            .env("ASKED", place("asked"))
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}:\n{block}\n{out}{err}", output.status);
        said.push_str(&out);
        if block.contains("mode = \"enforce\"/' ") && block.contains("s/^mode = \"audit\"") {
            let enforced = fs::read_to_string(place("etc/policy.toml")).unwrap();
            assert!(enforced.contains("\nmode = \"enforce\"\n"), "step 5 changes nothing");
        }
    }
    for part in [
        "would deny",
        "Looks like an attack:",
        "name = \"billing\"",
        "#   ssrf-marks: ",
        "0 would be denied that were allowed, 20 allowed that were denied",
        "verdicts differ: see above",
        "2 cases, 2 passed",
        "ALLOW",
    ] {
        assert!(said.contains(part), "{part:?} is not in what the page's commands say:\n{said}");
    }
    assert!(place("work/report.html").exists());
    let reloads = fs::read_to_string(place("asked")).unwrap();
    assert_eq!(reloads.lines().filter(|line| *line == "reload imds-guard").count(), 3, "{reloads}");
    let back = fs::read_to_string(place("etc/policy.toml")).unwrap();
    assert!(back.contains("\nmode = \"audit\"\n"), "the way back leads back");
}
