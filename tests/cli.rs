//! The commands about a policy: explain, test, clouds, tail, man, completions; and how each ends on bad input.

mod logs;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use logs::{Event, Logs, ROLE, arg, guard, lines, run, run_json};

const POLICY: &str = r#"mode = "enforce"
cloud = "aws"

[everyone]
allow = ["config"]

[[agent]]
name = "billing"
unit = "billing.service"
user = 998
exe = "/usr/bin/billing"
allow = ["session"]

[[rule]]
name = "billing reads its own role"
agent = "billing"
path = "/*/meta-data/iam/security-credentials/billing"
action = "allow"

[[rule]]
name = "nobody reads user-data"
class = "user-data"
action = "deny"
"#;

fn policy() -> (Logs, String) {
    let logs = Logs::new("");
    let path = arg(&logs.file("policy.toml", POLICY)).to_owned();
    (logs, path)
}

#[test]
fn explain_tells_each_step_with_the_line_that_made_it() {
    let (_logs, policy) = policy();
    let caller = ["--unit", "billing.service", "--user", "998", "--exe", "/usr/bin/billing"];
    let explain = [&["explain", "--config", &policy], &caller[..]].concat();
    let (code, out, err) = run(&[&explain[..], &["GET", ROLE]].concat());
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for step in [
        "uid 998 in /system.slice/billing.service",
        "GET /latest/meta-data/iam/security-credentials/billing at 169.254.169.254:80",
        "touches        credentials",
        "[everyone]     grants config  [",
        "policy.toml:8]",
        "billing reads its own role: grants credentials, for billing  [",
        "policy.toml:15]",
        "verdict        ALLOW",
        "(rule-allows)",
    ] {
        assert!(out.contains(step), "{step} in\n{out}");
    }
    let (code, told) = run_json(&[&explain[..], &["--json", "GET", "/latest/user-data"]].concat());
    assert_eq!(code, 1);
    assert_eq!(told["verdict"], "deny");
    assert_eq!(told["effect"], "refuse");
    assert_eq!(told["rule"], "nobody reads user-data");
    assert_eq!(told["mode_at"]["line"], 21);
    assert_eq!(told["rules"][0]["action"], "deny");
}

#[test]
fn explain_tells_what_is_missing() {
    let (_logs, policy) = policy();
    let explain = ["explain", "--config", &policy, "--unit", "billing.service", "--user", "998"];
    let (code, out, _) = run(&[&explain[..], &["GET", ROLE]].concat());
    assert_eq!(code, 1);
    assert!(out.contains("exe-not-looked") && out.contains("give --exe"), "{out}");
    let (_, out, _) =
        run(&["explain", "--config", &policy, "--unit", "billing.service", "--user", "5", "GET", ROLE]);
    assert!(out.contains("billing: lives in the same unit, as another user"), "{out}");
    let (_, out, _) =
        run(&[&explain[..], &["-H", "X-Forwarded-For: 1.2.3.4", "GET", "/latest/meta-data/"]].concat());
    assert!(out.contains("(forwarding-header)"), "{out}");
    let (_, out, _) = run(&[&explain[..], &["GET", "http://169.254.169.254/%2561"]].concat());
    assert!(out.contains("(no single meaning)") && out.contains("(double-encoding)"), "{out}");
}

#[test]
fn explain_tells_what_becomes_of_a_read_without_a_session_token() {
    let agent = |name: &str, v1: &str| {
        format!(
            "[[agent]]\nname = \"{name}\"\nunit = \"{name}.service\"\nuser = 0\nallow = \"config\"\n{v1}\n"
        )
    };
    let keys = "mode = \"enforce\"\ncloud = \"aws\"\nv1 = \"deny\"\nbind-tokens = \"on\"\n[everyone]\nallow = [\"config\", \"session\"]\n";
    let logs = Logs::new("");
    let path = logs.file("policy.toml", &format!("{keys}{}", agent("legacy", "v1 = \"upgrade\"")));
    let explain = |unit: &str, more: &[&str]| {
        let head = ["explain", "--config", arg(&path), "--user", "root", "--unit", unit];
        run(&[&head[..], more, &["GET", "/latest/meta-data/instance-id"]].concat())
    };
    let (code, out, _) = explain("x.service", &[]);
    assert_eq!(code, 1);
    for step in [
        "session        v1, it shows no token: denied as where tokens are required  [",
        "policy.toml:3]",
        "(token-required)",
    ] {
        assert!(out.contains(step), "{step} in\n{out}");
    }
    let (code, out, _) = explain("legacy.service", &[]);
    assert_eq!(code, 0);
    let lent = "v1, it shows no token: the guard shows a token of its own, says agent legacy  [";
    assert!(out.contains(lent) && out.contains("policy.toml:8]"), "{out}");
    let (code, out, _) = explain("x.service", &["-H", "X-aws-ec2-metadata-token: AQAE-decoy"]);
    assert_eq!(code, 0);
    assert!(
        out.contains("v2, it shows a token: whose it is was not looked up (bind-tokens: on)  ["),
        "{out}"
    );
    assert!(!out.contains("AQAE-decoy"), "{out}");
    let (_, told) =
        run_json(&["explain", "--config", arg(&path), "--json", "GET", "/latest/meta-data/instance-id"]);
    assert_eq!((&told["session"]["version"], &told["session"]["does"]), (&"v1".into(), &"deny".into()));
    assert_eq!(told["session"]["at"]["line"], 3);

    let stolen =
        Event::new("e-1").with("imds_guard.session", "v2").with("imds_guard.token.holder", "foreign");
    let events = Logs::new(lines(&[stolen]));
    let (code, out, _) = run(&["explain", "--config", arg(&path), "--event", "e-1", "--log", events.log()]);
    assert_eq!(code, 1);
    assert!(out.contains("another caller fetched it") && out.contains("(token-of-another)"), "{out}");
}

#[test]
fn explain_takes_a_live_process() {
    let (_logs, policy) = policy();
    let pid = std::process::id().to_string();
    let (code, told) = run_json(&[
        "explain",
        "--config",
        &policy,
        "--json",
        "--pid",
        &pid,
        "GET",
        "/latest/meta-data/ami-id",
    ]);
    if told["caller"]["cgroup"].is_null() {
        return;
    }
    assert_eq!((code, &told["verdict"]), (0, &"allow".into()));
    assert!(told["caller"]["executables"][0]["path"].as_str().unwrap().contains("cli"), "{told}");
    let (code, _, err) = run(&["explain", "--config", &policy, "--pid", "4194304", "GET", "/"]);
    assert_eq!(code, 66, "{err}");
}

#[test]
fn explain_takes_an_event_from_the_log() {
    let (_files, policy) = policy();
    let event = Event::new("e-7").asking("/latest/user-data", "user-data").would_deny("no-agent");
    let logs = Logs::new(lines(&[Event::new("e-1"), event, Event::new("g-1").with("event.action", "guard")]));
    let explain = |id: &str| run(&["explain", "--config", &policy, "--event", id, "--log", logs.log()]);
    let (code, out, _) = explain("e-7");
    assert_eq!(code, 1);
    assert!(
        out.contains("nobody reads user-data") && out.contains("recorded       deny (no-agent)"),
        "{out}"
    );
    assert_eq!(explain("e-1").0, 0);
    assert_eq!(explain("g-1").0, 66);
    let (code, out, err) = explain("nowhere");
    assert_eq!((code, out.as_str()), (66, ""));
    assert!(err.contains("event nowhere is not in the log"), "{err}");
}

#[test]
fn test_runs_the_cases_beside_a_policy() {
    let (files, policy) = policy();
    let case = |name: &str, verdict: &str| {
        format!(
            "[[case]]\nname = \"{name}\"\ncaller = {{ unit = \"a.service\", user = \"a\" }}\nrequest = \"GET /latest/user-data\"\nverdict = \"{verdict}\"\n"
        )
    };
    files.file("policy.cases.toml", &format!("[users]\na = 7\n{}", case("one", "deny")));
    let (code, out, err) = run(&["test", "--config", &policy]);
    assert_eq!((code, out.as_str()), (0, "1 cases, 1 passed, 0 failed\n"), "{err}");
    let bad =
        files.file("bad.toml", &format!("[users]\na = 7\n{}{}", case("one", "deny"), case("two", "allow")));
    let (code, out, _) = run(&["test", "--config", &policy, arg(&bad)]);
    assert_eq!(code, 1);
    assert!(out.contains("two: verdict: wanted allow, got deny (rule-denies"), "{out}");
    let named = files
        .file("named.toml", &format!("policy = \"policy.toml\"\n[users]\na = 7\n{}", case("one", "deny")));
    assert_eq!(run(&["test", arg(&named)]).0, 0);
    let broken = files.file("broken.toml", "[[case]]\nname = 7\n");
    let (code, _, err) = run(&["test", "--config", &policy, arg(&broken)]);
    assert_eq!(code, 78);
    assert!(err.contains("broken.toml: line 2: "), "{err}");
    assert_eq!(run(&["test", "--config", &policy, "/nonexistent"]).0, 66);
}

#[test]
fn the_shipped_policy_passes_its_own_cases() {
    let root = env!("CARGO_MANIFEST_DIR");
    let (code, out, err) = run(&["test", "--config", &format!("{root}/policy.toml")]);
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn clouds_shows_what_is_known() {
    let (code, out, _) = run(&["clouds"]);
    assert_eq!(code, 0);
    assert!(out.contains("aws-ec2") && out.contains("168.63.129.16:80"), "{out}");
    let (_, out, _) = run(&["clouds", "ibm-vpc"]);
    assert!(out.contains("good for 5 to 3600 s; 401 where one is required, which is always"), "{out}");
    let (_, out, _) = run(&["clouds", "gcp"]);
    assert!(out.contains("/computemetadata/{v1,v1beta1}/instance/service-accounts/*/token"), "{out}");
    let (code, told) = run_json(&["clouds", "aws", "--json"]);
    assert_eq!((code, told.as_array().unwrap().len()), (0, 3));
    let (code, out, err) = run(&["clouds", "nimbus"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("there is no cloud `nimbus`"), "{err}");
}

#[test]
fn tail_filters_and_escapes_what_attackers_wrote() {
    let hostile = Event::new("e-2")
        .asking("/latest/\u{1b}]0;owned\u{7}\u{202e}", "credentials")
        .would_deny("no-agent")
        .with("process.executable", "/tmp/\u{1b}[2Jx");
    let logs = Logs::new(lines(&[Event::new("e-1"), hostile]));
    let (code, out, _) = run(&["tail", "--no-follow", logs.log()]);
    assert_eq!((code, out.lines().count()), (0, 2));
    assert!(!out.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{out:?}");
    for (filter, count) in [
        (["--verdict", "deny"], 1),
        (["--class", "config"], 1),
        (["--agent", "nobody"], 0),
        (["--lines", "1"], 1),
    ] {
        let (_, out, _) = run(&[&["tail", "--no-follow", logs.log()], &filter[..]].concat());
        assert_eq!(out.lines().count(), count, "{filter:?}: {out}");
    }
    let (code, _, err) = run(&["tail", "--no-follow", logs.log(), "--class", "keys"]);
    assert_eq!(code, 2);
    assert!(err.contains("there is no class `keys`"), "{err}");
}

#[test]
fn tail_follows_a_log_through_its_rotation() {
    let logs = Logs::new(lines(&[Event::new("e-1")]));
    let mut child = guard(&["tail", logs.log()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut shown = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || shown.next().unwrap().unwrap();
    assert!(next().ends_with("(e-1)"));
    let mut log = std::fs::OpenOptions::new().append(true).open(&logs.log).unwrap();
    let whole = lines(&[Event::new("e-2")]);
    let (first, second) = whole.split_at(100);
    log.write_all(first.as_bytes()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    log.write_all(second.as_bytes()).unwrap();
    assert!(next().ends_with("(e-2)"));
    std::fs::rename(&logs.log, logs.directory.path().join("audit.jsonl.1")).unwrap();
    std::fs::write(&logs.log, lines(&[Event::new("e-3")])).unwrap();
    assert!(next().ends_with("(e-3)"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn man_pages_and_completions_come_from_the_definitions() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    assert_eq!(run(&["man", arg(&pages)]), (0, String::new(), String::new()));
    for page in ["imds-guard.1", "imds-guard-report.1", "imds-guard-redirect-apply.1"] {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(!pages.join("imds-guard-proxy.1").exists(), "what is hidden has no page");
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).1.contains("imds-guard"), "{shell}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    for arguments in [&["clouds", "--json"][..], &["completions", "bash"], &["clouds", "gcp"]] {
        let mut child = guard(arguments).stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn a_wrong_policy_is_told_once_and_ends_with_78() {
    let logs = Logs::new("");
    let broken = logs.file("policy.toml", "mode = \"audit\"\n[[agent]]\nname = \"x\"\n");
    for command in [
        &["explain", "--config", arg(&broken), "GET", "/"][..],
        &["replay", "--policy", arg(&broken), logs.log()],
    ] {
        let (code, out, err) = run(command);
        assert_eq!((code, out.as_str()), (78, ""), "{err}");
        assert!(err.contains("agent-is-anybody"), "{err}");
        let missing: Vec<&str> = command
            .iter()
            .map(|word| if *word == arg(&broken) { "/nonexistent.toml" } else { word })
            .collect();
        let (code, _, err) = run(&missing);
        assert_eq!(code, 78, "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    for wrong in [
        &["explain", "GET", "ftp://x/"][..],
        &["explain", "--unit", "nginx", "GET", "/"],
        &["explain", "--user", "no-such-user", "GET", "/"],
        &["explain", "-H", "a: b\r\nc: d", "GET", "/"],
    ] {
        let root = format!("{}/policy.toml", env!("CARGO_MANIFEST_DIR"));
        let (code, out, err) = run(&[wrong, &["--config", &root]].concat());
        assert_eq!((code, out.as_str(), err.lines().count()), (2, "", 1), "{wrong:?}: {err}");
    }
}

/// The example of docs/cases.md is a file of cases, and holds for the policy that it speaks of.
#[test]
fn the_documented_cases_run() {
    let page = include_str!("../docs/cases.md");
    let example = page.split("```toml cases\n").nth(1).unwrap().split("```").next().unwrap();
    let files = Logs::new("");
    let policy = "mode = \"audit\"\n[[agent]]\nname = \"billing\"\nunit = \"billing.service\"\nuser = 998\n\
                  [[rule]]\nname = \"r\"\nagent = \"billing\"\npath = \"/*/meta-data/iam/security-credentials/billing\"\naction = \"allow\"\n";
    let policy = files.file("policy.toml", policy);
    files.file("policy.cases.toml", example);
    let (code, out, err) = run(&["test", "--config", arg(&policy)]);
    assert_eq!((code, out.as_str()), (0, "2 cases, 2 passed, 0 failed\n"), "{err}");
}
