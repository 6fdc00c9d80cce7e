//! The detections under docs/detections: they parse, their logic finds what it should in events as they are
//! recorded, and both languages name the same patterns.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper of a test may fail the test, like the test itself"
)]

mod kql;
mod logs;

use std::fs;
use std::path::Path;

use imds_guard::request::Fault;
use kql::Query;
use logs::{Event, ROLE};
use serde_json::{Map, Value, json};

/// As much of YAML as Sigma rules need: nested maps, lists of scalars, quoted and plain scalars.
fn yaml(text: &str) -> Value {
    let lines: Vec<(usize, &str)> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .map(|line| (line.len() - line.trim_start().len(), line.trim()))
        .collect();
    let (value, rest) = block(&lines, 0);
    assert!(rest.is_empty(), "{rest:?}");
    value
}

fn block<'a, 'b>(mut lines: &'b [(usize, &'a str)], indent: usize) -> (Value, &'b [(usize, &'a str)]) {
    let (mut map, mut list) = (Map::new(), Vec::new());
    while let Some(((depth, line), rest)) = lines.split_first() {
        if *depth < indent {
            break;
        }
        assert_eq!(*depth, indent, "{line}");
        lines = rest;
        if let Some(item) = line.strip_prefix("- ") {
            list.push(scalar(item));
            continue;
        }
        let (key, value) = line.split_once(':').unwrap_or_else(|| panic!("{line}"));
        let value = if value.trim().is_empty() {
            let inner = lines.first().unwrap_or_else(|| panic!("{line}")).0;
            let (value, rest) = block(lines, inner);
            lines = rest;
            value
        } else {
            scalar(value.trim())
        };
        assert!(map.insert(key.to_owned(), value).is_none(), "{key} stands twice");
    }
    (if list.is_empty() { Value::Object(map) } else { Value::Array(list) }, lines)
}

fn scalar(text: &str) -> Value {
    match text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
        Some(quoted) => quoted.replace("''", "'").into(),
        None if text == "true" => true.into(),
        None => text.parse::<u64>().map_or_else(|_| text.into(), Into::into),
    }
}

fn detections() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/detections"))
}

fn rule(name: &str) -> Value {
    yaml(&fs::read_to_string(detections().join("sigma").join(name)).unwrap())
}

/// Whether a rule finds an event: Sigma's selections, `|contains` and `|endswith`, and the conditions in use here.
fn finds(rule: &Value, event: &Value) -> bool {
    let detection = rule["detection"].as_object().unwrap();
    let holds = |name: &str| selection(&detection[name], event);
    let one_of = |pattern: &str| {
        let prefix = pattern.strip_suffix('*').unwrap();
        detection.keys().filter(|name| name.starts_with(prefix)).any(|name| holds(name))
    };
    let term = |term: &str| match term.strip_prefix("1 of ") {
        Some(pattern) => one_of(pattern),
        None => holds(term),
    };
    let condition = detection["condition"].as_str().unwrap();
    match condition.split_once(" and not ") {
        Some((yes, no)) => term(yes) && !term(no),
        None => term(condition),
    }
}

fn selection(selection: &Value, event: &Value) -> bool {
    selection.as_object().unwrap().iter().all(|(key, wanted)| {
        let (field, modifier) = key.split_once('|').unwrap_or((key, ""));
        let wanted = wanted.as_array().cloned().unwrap_or_else(|| vec![wanted.clone()]);
        let seen = &event[field];
        let seen = seen.as_array().cloned().unwrap_or_else(|| vec![seen.clone()]);
        seen.iter().any(|seen| wanted.iter().any(|wanted| matches(seen, wanted, modifier)))
    })
}

fn matches(seen: &Value, wanted: &Value, modifier: &str) -> bool {
    let (Some(seen), Some(wanted)) = (seen.as_str(), wanted.as_str()) else { return seen == wanted };
    let (seen, wanted) = (seen.to_lowercase(), wanted.to_lowercase());
    match modifier {
        "" => seen == wanted,
        "contains" => seen.contains(&wanted),
        "endswith" => seen.ends_with(&wanted),
        other => panic!("{other}"),
    }
}

fn value(event: Event) -> Value {
    Value::Object(event.0)
}

#[test]
fn every_rule_has_what_sigma_asks_for() {
    let mut ids = Vec::new();
    for entry in fs::read_dir(detections().join("sigma")).unwrap() {
        let path = entry.unwrap().path();
        let rule = yaml(&fs::read_to_string(&path).unwrap());
        for key in ["title", "id", "status", "description", "logsource", "detection", "level", "tags"] {
            assert!(!rule[key].is_null(), "{key} in {}", path.display());
        }
        assert!(rule["id"].as_str().unwrap().len() == 36 && !ids.contains(&rule["id"]), "{}", path.display());
        ids.push(rule["id"].clone());
        let readme = fs::read_to_string(detections().join("README.md")).unwrap();
        assert!(readme.contains(path.file_name().unwrap().to_str().unwrap()), "{}", path.display());
    }
    assert_eq!(ids.len(), 6);
}

#[test]
fn the_guard_s_events_are_found() {
    let denied = rule("imds_guard_secrets_denied.yml");
    let theft = Event::new("1").asking(ROLE, "credentials").would_deny("no-agent");
    assert!(finds(&denied, &value(theft.clone())));
    assert!(!finds(&denied, &value(theft.with("imds_guard.verdict", "allow"))));
    assert!(!finds(&denied, &value(Event::new("2").would_deny("no-agent"))), "config is no secret");

    let ssrf = rule("imds_guard_ssrf.yml");
    let forged = Event::new("3").with("imds_guard.faults", json!(["header-repeated", "forwarding-header"]));
    assert!(finds(&ssrf, &value(forged)));
    assert!(!finds(&ssrf, &value(Event::new("4").with("imds_guard.faults", json!(["head-too-large"])))));

    let tampered = rule("imds_guard_tampered.yml");
    let lost = Event::new("5").with("event.action", "guard").with("event.severity", 2);
    assert!(finds(&tampered, &value(lost.clone())));
    assert!(!finds(&tampered, &value(lost.with("event.severity", 6))));
}

#[test]
fn a_decoy_is_found_and_its_use() {
    let (rule, taken) = (rule("imds_guard_decoy.yml"), query("guard-decoys.kql"));
    let decoy = Event::new("1").asking(ROLE, "credentials").with("imds_guard.verdict", "deny");
    let decoy = decoy.with("imds_guard.result", "refused");
    for (event, found) in [
        (decoy.clone().with("imds_guard.decoy", true), true),
        (decoy.clone(), false),
        (decoy.with("imds_guard.decoy", true).with("imds_guard.result", "forwarded"), false),
    ] {
        let event = value(event);
        assert_eq!((taken.finds(&event), finds(&rule, &event)), (found, found), "{event}");
    }
    let used = query("canary-used.kql");
    assert_eq!(used.table, "AWSCloudTrail");
    assert!(used.finds(&json!({"UserIdentityAccessKeyId": "AKIAIOSFODNN7EXAMPLE"})));
    assert!(!used.finds(&json!({"UserIdentityAccessKeyId": "ASIAOTHER"})));
}

#[test]
fn the_technique_s_two_patterns_are_found() {
    let network = rule("imds_network.yml");
    let connection = |ip: &str, name: &str, image: &str| json!({"DestinationIp": ip, "DestinationHostname": name, "Image": image});
    for (event, found) in [
        (connection("169.254.169.254", "", "/usr/bin/curl"), true),
        (connection("fd00:ec2::254", "", "/usr/bin/python3"), true),
        (connection("10.0.0.1", "metadata.google.internal", "/tmp/x"), true),
        (connection("169.254.169.254", "", "/usr/bin/amazon-ssm-agent"), false),
        (connection("169.254.169.253", "", "/usr/bin/curl"), false),
    ] {
        assert_eq!(finds(&network, &event), found, "{event}");
    }
    let command_line = rule("imds_command_line.yml");
    for (line, found) in [
        ("curl http://169.254.169.254/latest/meta-data/iam/security-credentials/", true),
        ("curl -H Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/", true),
        ("ls /etc", false),
    ] {
        assert_eq!(finds(&command_line, &json!({ "CommandLine": line })), found, "{line}");
    }
}

#[test]
fn both_languages_name_the_same_patterns() {
    for (kql, sigma, selections) in [
        (
            "defender-network.kql",
            "imds_network.yml",
            &["selection_address", "selection_name", "filter_agents"][..],
        ),
        ("defender-process.kql", "imds_command_line.yml", &["selection"]),
        ("guard-denied.kql", "imds_guard_ssrf.yml", &["selection"]),
    ] {
        let query = fs::read_to_string(detections().join(kql)).unwrap();
        let rule = rule(sigma);
        for selection in selections {
            for (field, patterns) in rule["detection"][selection].as_object().unwrap() {
                let one = vec![patterns.clone()];
                for pattern in patterns.as_array().unwrap_or(&one) {
                    assert!(
                        query.contains(&format!("\"{}\"", pattern.as_str().unwrap())),
                        "{field} {pattern} in {kql}"
                    );
                }
            }
        }
    }
}

/// A fault that is renamed must be renamed here, too.
#[test]
fn the_faults_that_rules_name_exist() {
    let rule = rule("imds_guard_ssrf.yml");
    for fault in rule["detection"]["selection"]["imds_guard.faults"].as_array().unwrap() {
        assert!(Fault::ALL.iter().any(|known| known.code() == fault), "{fault}");
    }
}

/// Events of the walk through audit and enforce mode, as the guard recorded them: a listed agent, an application, and
/// three attacks.
fn recorded() -> Vec<Value> {
    let text = include_str!("detections/recorded.jsonl");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn is_denied(event: &Value) -> bool {
    event["imds_guard.verdict"] == "deny"
}

fn query(name: &str) -> Query {
    Query::parse(&fs::read_to_string(detections().join(name)).unwrap())
}

/// A recorded event as Defender's sensors would have told it: the columns of docs/audit-events.md.
fn as_defender(event: &Value) -> Value {
    json!({
        "RemoteIP": event["destination.ip"],
        "RemotePort": event["destination.port"],
        "RemoteUrl": event["url.path"],
        "InitiatingProcessFileName": event["process.name"],
        "InitiatingProcessCommandLine": event["process.command_line"],
        "FileName": event["process.name"],
        "ProcessCommandLine": event["process.command_line"],
    })
}

#[test]
fn the_guard_s_rules_find_the_attacks_in_what_was_recorded() {
    let (secrets, ssrf) = (rule("imds_guard_secrets_denied.yml"), rule("imds_guard_ssrf.yml"));
    let denied = query("guard-denied.kql");
    let (mut thefts, mut forged) = (0, 0);
    for event in recorded() {
        let is_secret = event["imds_guard.classes"]
            .as_array()
            .is_some_and(|classes| classes.iter().any(|class| class != "config" && class != "session"));
        let found = finds(&secrets, &event);
        assert_eq!(found, is_denied(&event) && is_secret, "{event:#}");
        thefts += u32::from(found);
        assert_eq!(finds(&ssrf, &event), event["user.id"] == "63033", "{event:#}");
        forged += u32::from(finds(&ssrf, &event));
        assert_eq!(denied.finds(&event), is_denied(&event), "{event:#}");
    }
    assert!(thefts >= 10 && forged >= 2, "{thefts} thefts, {forged} forged");
}

#[test]
fn the_technique_s_patterns_find_what_was_recorded_and_leave_others_alone() {
    let (network, process) = (query("defender-network.kql"), query("defender-process.kql"));
    let (by_sigma, command_line) = (rule("imds_network.yml"), rule("imds_command_line.yml"));
    for event in recorded() {
        let row = as_defender(&event);
        assert!(network.finds(&row), "whoever connects is found, but for the agents: {row:#}");
        let sigma = json!({"DestinationIp": row["RemoteIP"], "Image": event["process.executable"]});
        assert!(finds(&by_sigma, &sigma), "{sigma}");
        let line = row["ProcessCommandLine"].as_str().unwrap_or_default();
        let names_it = line.contains("169.254.169.254");
        assert_eq!(process.finds(&row), names_it, "{row:#}");
        assert_eq!(finds(&command_line, &json!({ "CommandLine": line })), names_it, "{line}");
    }
    let agent = json!({"RemoteIP": "169.254.169.254", "InitiatingProcessFileName": "Amazon-SSM-Agent"});
    assert!(!network.finds(&agent), "an agent of the list, in any case of letters");
    for (ip, url, found) in [
        ("10.0.0.1", "http://metadata.google.internal/computeMetadata/v1/", true),
        ("fd00:ec2::254", "", true),
        ("169.254.169.253", "", false),
        ("10.0.0.1", "https://metadata.google.internal.example/", true),
        ("10.0.0.1", "http://169.254.169.2541/", false),
    ] {
        let row = json!({"RemoteIP": ip, "RemoteUrl": url, "InitiatingProcessFileName": "curl"});
        assert_eq!(network.finds(&row), found, "{row}");
    }
    for (line, found) in [
        ("wget -qO- http://METADATA.google.internal/computeMetadata/v1/", true),
        ("curl http://169.254.169.254/latest/dynamic/instance-identity/document", true),
        ("grep metadata /etc/hosts", false),
        ("ping 169.254.169.25", false),
        ("wget http://169.254.169.2541/", false),
    ] {
        assert_eq!(process.finds(&json!({ "ProcessCommandLine": line })), found, "{line}");
    }
}

#[test]
fn sigma_s_contains_finds_parts_of_words_where_kql_s_has_does_not() {
    let line = "wget http://169.254.169.2541/";
    assert!(finds(&rule("imds_command_line.yml"), &json!({ "CommandLine": line })));
    assert!(!query("defender-process.kql").finds(&json!({ "ProcessCommandLine": line })));
}

/// Columns of Defender's two tables, as far as the queries may name them.
const DEFENDER: [(&str, &[&str]); 2] = [
    (
        "DeviceNetworkEvents",
        &[
            "Timestamp",
            "DeviceId",
            "DeviceName",
            "ActionType",
            "RemoteIP",
            "RemotePort",
            "RemoteUrl",
            "LocalIP",
            "LocalPort",
            "Protocol",
            "InitiatingProcessFileName",
            "InitiatingProcessId",
            "InitiatingProcessCommandLine",
            "InitiatingProcessFolderPath",
            "InitiatingProcessParentFileName",
            "InitiatingProcessAccountName",
            "InitiatingProcessSHA256",
            "ReportId",
            "AdditionalFields",
        ],
    ),
    (
        "DeviceProcessEvents",
        &[
            "Timestamp",
            "DeviceId",
            "DeviceName",
            "ActionType",
            "FileName",
            "FolderPath",
            "SHA256",
            "ProcessId",
            "ProcessCommandLine",
            "AccountName",
            "AccountDomain",
            "InitiatingProcessFileName",
            "InitiatingProcessCommandLine",
            "InitiatingProcessFolderPath",
            "ReportId",
            "AdditionalFields",
        ],
    ),
];

#[test]
fn queries_name_columns_that_their_tables_have() {
    for (name, table) in
        [("defender-network.kql", "DeviceNetworkEvents"), ("defender-process.kql", "DeviceProcessEvents")]
    {
        let query = query(name);
        assert_eq!(query.table, table);
        let (_, columns) = DEFENDER.iter().find(|(known, _)| *known == table).unwrap();
        for (column, _) in query.columns() {
            assert!(columns.contains(&column.as_str()), "{column} in {name}");
        }
    }
    // The guard's own events come out under Defender's names, from fields that the guard has.
    let schema = fs::read_to_string(detections().with_file_name("audit-event.schema.json")).unwrap();
    for (column, from) in
        query("guard-decoys.kql").columns().into_iter().chain(query("guard-denied.kql").columns())
    {
        for field in from.split("event[\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(schema.contains(&format!("\"{field}\"")), "{field} of {column}");
        }
    }
    let query = query("guard-denied.kql");
    let faults: Vec<&str> = query.lists["ssrf"].iter().map(String::as_str).collect();
    assert!(faults.iter().all(|code| Fault::ALL.iter().any(|fault| fault.code() == *code)), "{faults:?}");
}

/// By pySigma, which others convert these rules with.
#[test]
fn the_rules_convert() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = std::process::Command::new("bash").arg(root.join("scripts/sigma.sh")).output().unwrap();
    if !python.status.success() {
        return; // `make test` says so
    }
    let rules: Vec<_> =
        fs::read_dir(detections().join("sigma")).unwrap().map(|one| one.unwrap().path()).collect();
    let output = std::process::Command::new(String::from_utf8(python.stdout).unwrap().trim())
        .arg("-I")
        .arg(root.join("tests/detections/convert.py"))
        .args(&rules)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let converted: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(converted.as_object().unwrap().len(), rules.len());
    for (name, queries) in converted.as_object().unwrap() {
        assert_eq!(queries["lucene"].as_array().unwrap().len(), 1, "{name}: {queries}");
        // Nothing of a rule is lost on the way.
        let lucene = queries["lucene"][0].as_str().unwrap().replace('\\', "");
        let rule = rule(name);
        for (selection, fields) in rule["detection"].as_object().unwrap() {
            let values = fields.as_object().into_iter().flatten().map(|(_, value)| value);
            let each = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            for wanted in values.flat_map(each) {
                let wanted = wanted.as_str().map_or_else(|| wanted.to_string(), str::to_owned);
                assert!(lucene.contains(&wanted), "{wanted} of {selection} in {name}: {lucene}");
            }
        }
    }
    let kql = |name: &str| converted[name]["kql"][0].as_str().unwrap().to_owned();
    assert!(kql("imds_network.yml").starts_with("DeviceNetworkEvents\n| where "));
    assert!(kql("imds_command_line.yml").starts_with("DeviceProcessEvents\n| where "));
}
