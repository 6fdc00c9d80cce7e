//! The commands that the pages show are run, and their configurations loaded. What cannot be says so in its fence, with the
//! reason. The quick start has a test of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must stop and say so"
)]

mod logs;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use logs::{Event, ROLE, lines};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A block of a page: what stands behind its fence, and in it.
struct Block {
    page: String,
    info: String,
    text: String,
}

fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "SECURITY.md", "CONTRIBUTING.md"].iter().map(|name| root().join(name)).collect();
    let mut directories = vec![root().join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            if entry.path().is_dir() {
                directories.push(entry.path());
            } else if entry.path().extension().is_some_and(|extension| extension == "md") {
                pages.push(entry.path());
            }
        }
    }
    pages.sort();
    pages
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for path in pages() {
        let page = path.strip_prefix(root()).unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        let mut open: Option<Block> = None;
        for line in text.lines() {
            match (line.trim_start().strip_prefix("```"), &mut open) {
                (Some(info), None) => {
                    open = Some(Block { page: page.clone(), info: info.to_owned(), text: String::new() });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => block.text.extend([line, "\n"]),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{page}: a block has no end");
    }
    blocks
}

/// Names of functions in the tests, for reasons that point to them.
fn functions() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut directories = vec![root().join("tests"), root().join("src"), root().join("scripts")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            names.insert(path.strip_prefix(root()).unwrap().display().to_string());
            let text = fs::read_to_string(&path).unwrap_or_default();
            let rest = text.split("fn ").skip(1);
            names.extend(rest.map(|rest| rest.split(['(', '<']).next().unwrap().to_owned()));
        }
    }
    names
}

/// Commands and configurations are run and loaded by somebody, or say why they are not; nothing else stands in fences but
/// text.
#[test]
fn every_block_is_run_or_loaded_or_says_why_not() {
    let functions = functions();
    let (mut run, mut excused) = (0, 0);
    for Block { page, info, text } in blocks() {
        let (kind, reason) = info.split_once(' ').unwrap_or((&info, ""));
        match (kind, reason) {
            ("text", "") | ("toml", "" | "decoys" | "cases") | ("yaml", "prometheus") => {}
            ("sh", "") => run += 1,
            ("sh", reason) => {
                let reason = reason.strip_prefix("no-run: ").unwrap_or_else(|| panic!("{page}: {info}"));
                assert!(reason.len() > 15, "{page}: {reason} is no reason for:\n{text}");
                excused += 1;
                named(reason, &functions, &page);
            }
            (_, reason) => {
                let reason = reason.strip_prefix("no-load: ").unwrap_or_else(|| {
                    panic!("{page}: what loads this `{kind}`? Say `no-load: ` and why it cannot be:\n{text}")
                });
                assert!(reason.len() > 15, "{page}: {reason}");
                named(reason, &functions, &page);
            }
        }
    }
    assert!(run > excused && run >= 12, "{run} are run, {excused} are not");
}

/// A reason that names a test or a script in backticks points to one that is there.
fn named(reason: &str, functions: &BTreeSet<String>, page: &str) {
    for name in reason.split('`').skip(1).step_by(2) {
        assert!(functions.contains(name), "{page}: there is no {name}");
    }
}

/// Serves the snapshot of the tests as a guard does.
fn serve(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    let snapshot = fs::read_to_string(root().join("tests/status/snapshot.json")).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
                head.push(byte[0]);
            }
            let length = snapshot.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{snapshot}"
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
}

/// A machine's places in a directory, and stand-ins for the programs that would change this one.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for directory in [
            "bin",
            "work",
            "etc/imds-guard/policy.d",
            "var/log/imds-guard",
            "var/lib/imds-guard",
            "run/imds-guard",
        ] {
            fs::create_dir_all(machine.place(directory)).unwrap();
        }
        machine.programs();
        let policy = fs::read_to_string(root().join("policy.toml")).unwrap();
        let policy = policy.replace("cloud = \"auto\"", "cloud = \"aws\"");
        let (log, socket) =
            (machine.place("var/log/imds-guard/audit.jsonl"), machine.place("run/imds-guard/status.sock"));
        let policy = policy
            .lines()
            .filter(|line| !line.starts_with("audit-log =") && !line.starts_with("status-socket ="))
            .map(|line| match line {
                "[guard]" => format!(
                    "[guard]\naudit-log = \"{}\"\nstatus-socket = \"{}\"",
                    log.display(),
                    socket.display()
                ),
                line => line.to_owned(),
            })
            .collect::<Vec<_>>()
            .join("\n");
        fs::write(machine.place("etc/imds-guard/policy.toml"), policy).unwrap();
        let theft = Event::new("e-2").asking(ROLE, "credentials").would_deny("no-agent");
        let events = lines(&[Event::new("e-1").with("imds_guard.session", "v1"), theft]);
        fs::write(&log, &events).unwrap();
        fs::write(machine.place("work/audit.jsonl"), &events).unwrap();
        fs::write(machine.place("var/lib/imds-guard/last-good.json"), "{}").unwrap();
        serve(&socket);
        machine
    }

    fn place(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn programs(&self) {
        let guard = env!("CARGO_BIN_EXE_imds-guard");
        let config = self.place("etc/imds-guard/policy.toml");
        let config = config.display();
        // What goes on until somebody ends it is ended while it still runs; a denial that is explained is no failure.
        let guard = format!(
            "command=$1; shift\n\
             case \"$command $*\" in\n\
             check*) exec {guard} check {config} \"$@\" ;;\n\
             tail*|*--watch*) timeout 3 {guard} \"$command\" --config {config} \"$@\" || test $? = 124 ;;\n\
             explain*) {guard} explain --config {config} \"$@\" || test $? = 1 ;;\n\
             *) exec {guard} \"$command\" --config {config} \"$@\" ;;\n\
             esac"
        );
        let told = |name: &str| format!("echo \"{name} $*\" >>\"$ASKED\"");
        for (name, script) in [
            ("imds-guard", guard),
            ("sudo", "exec \"$@\"".to_owned()),
            ("systemctl", told("systemctl")),
            ("systemd-sysusers", told("systemd-sysusers")),
            ("systemd-tmpfiles", told("systemd-tmpfiles")),
            ("nft", told("nft")),
            (
                "cargo",
                format!(
                    "{}; mkdir -p target/release; cp {} target/release/",
                    told("cargo"),
                    env!("CARGO_BIN_EXE_imds-guard")
                ),
            ),
            ("chromium", format!("{}; for page; do :; done; test -s \"$page\"", told("chromium"))),
        ] {
            let path = self.place("bin").join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    /// Runs a block with the machine's paths in it, and gives what it said.
    fn run(&self, block: &Block) -> String {
        let home = self.0.path().display().to_string();
        let mut text = block.text.replace(
            "--event ID --log FILE",
            &format!("--event e-2 --log {home}/var/log/imds-guard/audit.jsonl"),
        );
        for place in ["/etc/", "/var/", "/run/", "/usr/"] {
            text = text.replace(&format!(" {place}"), &format!(" {home}{place}"));
        }
        let output = Command::new("sh")
            .args(["-euc", &text])
            .current_dir(self.place("work"))
            .env("PATH", format!("{home}/bin:{}", std::env::var("PATH").unwrap()))
            .env("ASKED", self.place("asked"))
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{}: {}:\n{text}\n{said}", block.page, output.status);
        said
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.place("asked")).unwrap_or_default()
    }
}

#[test]
fn the_commands_of_the_pages_run_as_they_stand() {
    let mut count = 0;
    for block in blocks() {
        if block.info != "sh" || block.page == "docs/quickstart.md" {
            continue;
        }
        count += 1;
        let machine = Machine::new();
        // What a block takes from the repository.
        for name in ["policy.toml", "systemd", "docs"] {
            std::os::unix::fs::symlink(root().join(name), machine.place("work").join(name)).unwrap();
        }
        let said = machine.run(&block);
        match block.page.as_str() {
            "docs/audit-events.md" => {
                for part in ["e-2", "would deny", "DENY", "/system.slice/billing.service"] {
                    assert!(said.contains(part), "{part:?} is not in:\n{said}");
                }
            }
            "docs/status.md" => {
                assert!(said.contains("mode         enforce") && said.contains("\"schema\": 1"), "{said}");
            }
            "docs/operations.md" => {
                assert_eq!(machine.asked(), "systemctl stop imds-guard\nnft delete table inet imds_guard\n");
                assert_eq!(fs::read_dir(machine.place("var/lib/imds-guard")).unwrap().count(), 0);
            }
            "README.md" => {
                for file in [
                    "usr/bin/imds-guard",
                    "etc/imds-guard/policy.toml",
                    "usr/lib/systemd/system/imds-guard.service",
                ] {
                    assert!(machine.place(file).exists(), "{file} is not installed");
                }
                assert!(
                    machine.asked().ends_with("systemctl daemon-reload\nsystemctl enable --now imds-guard\n")
                );
            }
            "CONTRIBUTING.md" => {
                let page = fs::read_to_string(machine.place("work/report.html")).unwrap();
                assert!(page.contains("<html") && machine.asked().contains("--screenshot="), "{said}");
            }
            _ => {}
        }
    }
    assert!(count >= 5, "{count} blocks");
}

#[test]
fn prometheus_takes_the_configuration_that_is_shown() {
    let output = Command::new("bash").arg(root().join("scripts/promtool.sh")).output().expect("bash runs");
    let mut found = 0;
    for block in blocks().into_iter().filter(|block| block.info == "yaml prometheus") {
        found += 1;
        if !output.status.success() {
            continue; // `make test` says so
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("prometheus.yml");
        fs::write(&file, &block.text).unwrap();
        let promtool = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let checked = Command::new(promtool).args(["check", "config"]).arg(&file).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
    assert!(found > 0, "no page shows a configuration for Prometheus");
}
