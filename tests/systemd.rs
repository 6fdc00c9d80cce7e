//! The service file as systemd reads it: every word known, no ordering cycle, how exposed it is.
//!
//! `systemd-analyze verify` ends with 0 on a word that it does not know, so that what counts is what it says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test that cannot go on must stop and say so"
)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const UNIT: &str = "imds-guard.service";

/// The exposure that must not be exceeded, in tenths. What it is made of: docs/image.md.
const EXPOSURE: &str = "29";

/// The order of units that an image has besides: as Debian 12's own files say it, and firewalld's and cloud-init's
/// upstream. Only what orders them; they run nothing.
const NEIGHBOURS: &[(&str, &str)] = &[
    ("local-fs.target", "[Unit]\nDefaultDependencies=no\n"),
    ("sysinit.target", "[Unit]\nDefaultDependencies=no\nWants=local-fs.target\nAfter=local-fs.target\n"),
    ("sockets.target", "[Unit]\n"),
    ("network-pre.target", "[Unit]\n"),
    (
        "basic.target",
        "[Unit]\nRequires=sysinit.target\nWants=sockets.target\nAfter=sysinit.target sockets.target\n",
    ),
    ("shutdown.target", "[Unit]\nDefaultDependencies=no\n"),
    (
        "multi-user.target",
        "[Unit]\nRequires=basic.target\nAfter=basic.target\n\
         Wants=imds-guard.service nftables.service ufw.service netfilter-persistent.service firewalld.service \
         cloud-init-local.service cloud-init-main.service systemd-networkd.service\n",
    ),
    ("dbus.socket", "[Unit]\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n"),
    ("dbus.service", "[Unit]\nRequires=dbus.socket\n[Service]\nExecStart=/bin/sh\n"),
    (
        "systemd-journald.socket",
        "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/systemd/journal/stdout\n",
    ),
    ("systemd-journald.service", "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sh\n"),
    (
        "systemd-modules-load.service",
        "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target\n[Service]\nExecStart=/bin/sh\n",
    ),
    (
        "systemd-sysusers.service",
        "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target\n[Service]\nExecStart=/bin/sh\n",
    ),
    (
        "systemd-tmpfiles-setup.service",
        "[Unit]\nDefaultDependencies=no\nAfter=local-fs.target systemd-sysusers.service systemd-journald.service\n\
         Before=sysinit.target\n[Service]\nExecStart=/bin/sh\n",
    ),
    (
        "nftables.service",
        "[Unit]\nDefaultDependencies=no\nWants=network-pre.target\nBefore=network-pre.target\n\
         [Service]\nExecStart=/bin/sh\nExecReload=/bin/sh\n",
    ),
    (
        "ufw.service",
        "[Unit]\nDefaultDependencies=no\nBefore=network-pre.target\nWants=network-pre.target local-fs.target\n\
         After=local-fs.target\n[Service]\nExecStart=/bin/sh\nExecReload=/bin/sh\n",
    ),
    (
        "netfilter-persistent.service",
        "[Unit]\nDefaultDependencies=no\nBefore=network-pre.target\nWants=network-pre.target systemd-modules-load.service\n\
         After=systemd-modules-load.service local-fs.target\n[Service]\nExecStart=/bin/sh\n",
    ),
    (
        "firewalld.service",
        "[Unit]\nBefore=network-pre.target\nWants=network-pre.target dbus.service\nAfter=dbus.service\n\
         [Service]\nExecStart=/bin/sh\nExecReload=/bin/sh\n",
    ),
    (
        "cloud-init-local.service",
        "[Unit]\nDefaultDependencies=no\nWants=network-pre.target\nBefore=network-pre.target sysinit.target\n\
         RequiresMountsFor=/var/lib/cloud\n[Service]\nExecStart=/bin/sh\n",
    ),
    (
        "cloud-init-main.service",
        "[Unit]\nDefaultDependencies=no\nBefore=cloud-init-local.service\n[Service]\nExecStart=/bin/sh\n",
    ),
    (
        "systemd-networkd.service",
        "[Unit]\nDefaultDependencies=no\nAfter=network-pre.target systemd-sysusers.service\n[Service]\nExecStart=/bin/sh\n",
    ),
];

fn shipped() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(UNIT)).unwrap()
}

/// A root directory with the unit, the programs that it names, and other units.
struct Root(TempDir);

impl Root {
    fn new(unit: &str) -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(root.units()).unwrap();
        fs::write(root.units().join(UNIT), unit).unwrap();
        for program in
            ["usr/bin/imds-guard", "usr/sbin/nft", "usr/lib/imds-guard/remember-direction", "bin/sh"]
        {
            let file = root.0.path().join(program);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        root
    }

    fn with_neighbours(self) -> Self {
        for (name, text) in NEIGHBOURS {
            fs::write(self.units().join(name), text).unwrap();
        }
        let wants = self.units().join("sysinit.target.wants");
        fs::create_dir(&wants).unwrap();
        symlink(format!("../{UNIT}"), wants.join(UNIT)).unwrap();
        self
    }

    fn units(&self) -> std::path::PathBuf {
        self.0.path().join("usr/lib/systemd/system")
    }

    /// What `systemd-analyze verify` has to say; `None` where there is no systemd-analyze.
    fn verify(&self, what: &[&str]) -> Option<String> {
        let root = format!("--root={}", self.0.path().display());
        let mut arguments = vec!["verify", "--man=no", &root];
        arguments.extend(what);
        analyze(&arguments).map(|output| String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn analyze(arguments: &[&str]) -> Option<Output> {
    let output = Command::new("systemd-analyze").args(arguments).output().ok();
    if output.is_none() {
        // Past the test harness, which keeps what a passing test prints to itself.
        let _ = writeln!(
            std::io::stderr().lock(),
            "\n*** systemd-analyze is missing: the unit's test was SKIPPED\n"
        );
    }
    output
}

#[test]
fn systemd_knows_every_word_of_the_unit() {
    let Some(said) = Root::new(&shipped()).verify(&[UNIT]) else { return };
    assert_eq!(said, "");
}

#[test]
fn a_misspelt_word_would_be_noticed() {
    let unit = shipped().replace("ProtectClock=", "ProtectClocks=");
    let Some(said) = Root::new(&unit).verify(&[UNIT]) else { return };
    assert!(said.contains("ProtectClocks"), "{said}");
}

#[test]
fn there_is_no_ordering_cycle_with_firewalls_and_cloud_init() {
    let root = Root::new(&shipped()).with_neighbours();
    let Some(said) = root.verify(&["multi-user.target"]) else { return };
    assert!(!said.contains("cycle"), "{said}");
    assert_eq!(said, "");
}

#[test]
fn waiting_for_firewalld_would_be_a_cycle() {
    let unit = shipped().replace("After=nftables.service", "After=firewalld.service nftables.service");
    let root = Root::new(&unit).with_neighbours();
    let Some(said) = root.verify(&["multi-user.target"]) else { return };
    assert!(said.contains("ordering cycle"), "{said}");
}

#[test]
fn the_exposure_stays_below_its_bound() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(UNIT);
    let threshold = format!("--threshold={EXPOSURE}");
    let file = file.to_str().unwrap();
    let Some(output) = analyze(&["security", "--offline=true", &threshold, "--no-pager", file]) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = text.lines().last().unwrap_or_default();
    let _ = writeln!(std::io::stderr().lock(), "systemd-analyze security --offline=true: {figure}");
    assert!(output.status.success(), "{text}");
}

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/image.md")).unwrap()
}

/// Every point that systemd-analyze counts against the unit stands in the page's table, with its weight.
#[test]
fn each_point_of_exposure_that_is_not_won_is_explained() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(UNIT);
    let arguments = ["security", "--offline=true", "--json=short", "--no-pager", file.to_str().unwrap()];
    let Some(output) = analyze(&arguments) else { return };
    let points: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let page = page();
    for point in points {
        let weight: f64 = point["exposure"].as_str().map_or(0.0, |weight| weight.parse().unwrap());
        if weight > 0.0 {
            let row = format!("| `{}` | {weight} | ", point["name"].as_str().unwrap().replace('|', "\\|"));
            assert!(page.lines().any(|line| line.starts_with(&row)), "docs/image.md lacks: {row}");
        }
    }
}

/// What the figure would be with one thing or several given up, as the page's second table has it: its words, what goes,
/// what comes.
const WITHOUT: &[(&str, &[&str], &str)] = &[
    ("nothing", &[], ""),
    ("`CAP_KILL`", &[" CAP_KILL"], ""),
    ("`CAP_KILL`, `CAP_NET_BIND_SERVICE`", &[" CAP_KILL", " CAP_NET_BIND_SERVICE"], ""),
    ("`CAP_DAC_READ_SEARCH`", &[" CAP_DAC_READ_SEARCH"], ""),
    ("`CAP_SETUID`, `CAP_SETGID`", &[" CAP_SETUID CAP_SETGID"], ""),
    ("all of `@privileged`", &[], "SystemCallFilter=~@privileged"),
    (
        "`@privileged` but `setresuid`, `setresgid`, `setgroups`",
        &[],
        "SystemCallFilter=~@privileged\nSystemCallFilter=setresuid setresgid setgroups",
    ),
    ("`AF_INET`, `AF_INET6`", &["AF_INET AF_INET6 "], ""),
    ("every address: `IPAddressDeny=any`", &[], "IPAddressDeny=any"),
    (
        "all but `IPAddressAllow=localhost link-local`",
        &[],
        "IPAddressDeny=any\nIPAddressAllow=localhost link-local",
    ),
    ("root: `User=`, all capabilities kept", &[], "User=imds-guard-keeper"),
    (
        "root, `CAP_SETUID`, `CAP_SETGID`, `CAP_KILL`, `@privileged`",
        &[" CAP_SETUID CAP_SETGID CAP_KILL"],
        "User=imds-guard-keeper\nSystemCallFilter=~@privileged",
    ),
    (
        "those and every address",
        &[" CAP_SETUID CAP_SETGID CAP_KILL"],
        "User=imds-guard-keeper\nSystemCallFilter=~@privileged\nIPAddressDeny=any",
    ),
    (
        "root kept; `CAP_SETUID`, `CAP_SETGID`, `CAP_KILL`, `@privileged`",
        &[" CAP_SETUID CAP_SETGID CAP_KILL"],
        "SystemCallFilter=~@privileged",
    ),
];

#[test]
fn what_the_exposure_would_be_otherwise_is_as_the_page_says() {
    // Another version weighs otherwise.
    let Some(version) = analyze(&["--version"]) else { return };
    if !String::from_utf8_lossy(&version.stdout).starts_with("systemd 252 ") {
        return;
    }
    let page = page();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(UNIT);
    let mut wrong = Vec::new();
    for (what, goes, comes) in WITHOUT {
        let mut unit = goes.iter().fold(shipped(), |unit, words| {
            assert!(unit.contains(words), "{words}");
            unit.replace(words, "")
        });
        unit = unit.replace("\n[Install]", &format!("\n{comes}\n[Install]"));
        fs::write(&file, unit).unwrap();
        let output = analyze(&["security", "--offline=true", "--no-pager", file.to_str().unwrap()]).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let figure = text.lines().last().and_then(|line| line.split(": ").nth(1)?.split(' ').next());
        let row = format!("| {what} | {} | ", figure.unwrap_or_default());
        if !page.lines().any(|line| line.starts_with(&row)) {
            wrong.push(row);
        }
    }
    assert!(wrong.is_empty(), "docs/image.md lacks:\n{}", wrong.join("\n"));
}
