//! The dashboard and the alert rules fit the metrics that the guard has, and Prometheus takes them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on must stop and say so"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use imds_guard::observe::prometheus;
use imds_guard::observe::snapshot::Snapshot;
use imds_guard::request::Fault;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names in a text that look like metrics of the guard.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.match_indices("imds_guard_")
        .map(|(at, _)| text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect())
        .collect()
}

/// The metrics of a snapshot in which nothing has happened yet, and of one in which something has.
fn exported() -> BTreeSet<String> {
    let example: Snapshot = serde_json::from_str(&read("tests/status/snapshot.json")).expect("a snapshot");
    let text = prometheus::write(&example);
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.flat_map(|line| metrics_in(line.split(['{', ' ']).next().unwrap())).collect()
}

fn families() -> BTreeSet<String> {
    let example: Snapshot = serde_json::from_str(&read("tests/status/snapshot.json")).expect("a snapshot");
    let text = prometheus::write(&example);
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|rest| rest.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn every_metric_that_dashboard_and_alerts_name_exists() {
    let exported = exported();
    for file in ["docs/observability/dashboard.json", "docs/observability/alerts.yml"] {
        let named = metrics_in(&read(file));
        assert!(named.len() >= 8, "{file} names only {named:?}");
        for name in named {
            assert!(exported.contains(&name), "{file} names {name}, which the guard has not");
        }
    }
}

#[test]
fn the_page_tells_every_metric_and_no_other() {
    let page = read("docs/status.md");
    let rows = page.lines().filter(|line| line.starts_with("| `imds_guard_"));
    let told: BTreeSet<String> = rows.flat_map(|row| metrics_in(row.split('|').nth(1).unwrap())).collect();
    assert_eq!(told, families());
}

#[test]
fn the_page_tells_every_field_of_the_snapshot() {
    let page = read("docs/status.md");
    let (_, section) = page.split_once("\n## The snapshot\n").expect("a section");
    let section = section.split("\n## ").next().unwrap();
    let example: serde_json::Value = serde_json::from_str(&read("tests/status/snapshot.json")).unwrap();
    for field in example.as_object().unwrap().keys() {
        assert!(section.contains(&format!("`{field}`")), "{field} is not told");
    }
}

#[test]
fn labels_that_dashboard_and_alerts_select_by_exist() {
    let labels = ["cloud", "class", "verdict", "mode", "reason", "agent"];
    let others = ["instance", "version", "limit", "endpoint", "result", "attribution", "le", "job"];
    for file in ["docs/observability/dashboard.json", "docs/observability/alerts.yml"] {
        let text = read(file).replace("\\\"", "\"");
        for part in text.split("by (").skip(1) {
            for label in part.split(')').next().unwrap().split(',').map(str::trim) {
                assert!(labels.contains(&label) || others.contains(&label), "{label} in {file}");
            }
        }
    }
    // Codes of faults that are renamed must be renamed there, too.
    let rules = read("docs/observability/alerts.yml");
    let (_, marks) = rules.split_once("reason=~\"").unwrap();
    for code in marks.split('"').next().unwrap().split('|') {
        assert!(Fault::ALL.iter().any(|fault| fault.code() == code), "{code}");
    }
}

#[test]
fn the_dashboard_is_one_that_grafana_can_lay_out() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("docs/observability/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut seen = BTreeSet::new();
    for panel in panels {
        assert!(seen.insert(panel["id"].as_u64().unwrap()), "an id twice");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24 && at("h") > 0, "{panel:#}");
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            assert_eq!(
                expression.matches(['(', '{', '[']).count(),
                expression.matches([')', '}', ']']).count()
            );
            assert!(expression.contains("instance=~\"$instance\""), "{expression} is of all hosts");
        }
    }
}

fn promtool() -> Option<PathBuf> {
    let output = Command::new("bash").arg(root().join("scripts/promtool.sh")).output().expect("bash runs");
    if output.status.success() {
        return Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let _ = writeln!(std::io::stderr(), "*** promtool cannot be had; its checks are SKIPPED: {why}");
    None
}

#[test]
fn prometheus_takes_the_rules_and_they_fire_when_they_should() {
    let Some(promtool) = promtool() else { return };
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]] {
        let mut command = Command::new(&promtool);
        let output = command.args(arguments).current_dir(root().join("docs/observability")).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn every_alert_is_told_and_has_a_test() {
    let named = |text: &str, before: &str| -> BTreeSet<String> {
        let names = text.split(before).skip(1);
        names.map(|rest| rest.chars().take_while(char::is_ascii_alphanumeric).collect()).collect()
    };
    let rules = named(&read("docs/observability/alerts.yml"), "- alert: ");
    assert!(rules.len() > 10, "{rules:?}");
    assert_eq!(named(&read("docs/observability/alerts.test.yml"), "alertname=\""), rules);
    let page = read("docs/observability/README.md");
    assert!(rules.iter().all(|rule| page.contains(&format!("`{rule}`"))));
}
