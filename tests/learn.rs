//! A policy learnt from a log: what is in it, what must never be, and that it says of the log what was accepted.

mod logs;

use logs::{Event, Logs, ROLE, arg, lines, run, run_json};
use serde_json::json;

fn honest() -> Vec<Event> {
    let mut events = Vec::new();
    for day in 10..18 {
        for hour in 0..20 {
            let at = format!("{day}T{hour:02}:00:00");
            let id = |what: &str| format!("{what}-{day}-{hour}");
            events.push(
                Event::new(&id("token"))
                    .asking("/latest/api/token", "session")
                    .with("http.request.method", "PUT")
                    .at(&at),
            );
            events.push(
                Event::new(&id("list"))
                    .asking("/latest/meta-data/iam/security-credentials", "credentials")
                    .would_deny("no-agent")
                    .at(&at),
            );
            events.push(Event::new(&id("role")).asking(ROLE, "credentials").would_deny("no-agent").at(&at));
            events.push(
                Event::new(&id("dns"))
                    .from("policy-routes@ens5.service", 0)
                    .at(&at)
                    .with("process.executable", "/usr/sbin/routes"),
            );
            events.push(
                Event::new(&id("many"))
                    .from("multi.service", 12)
                    .asking(&format!("/latest/meta-data/iam/security-credentials/r{hour}"), "credentials")
                    .at(&at),
            );
        }
    }
    events
}

fn attackers() -> Vec<Event> {
    let keys = |id: &str| Event::new(id).asking(ROLE, "credentials").would_deny("no-agent").at("17T12:00:00");
    vec![
        keys("x-ssrf").from("web.service", 33).with("imds_guard.faults", json!(["forwarding-header"])),
        keys("x-honest-once").from("web.service", 33),
        keys("x-rebind").from("blog.service", 34).with("imds_guard.faults", json!(["host-foreign"])),
        keys("x-spelling")
            .from("shop.service", 35)
            .with("imds_guard.faults", json!(["double-encoding"]))
            .without("url.path"),
        keys("x-shell").in_session(1000).with("process.executable", "/usr/bin/curl"),
        keys("x-tmp").from("cron.service", 0).with("process.executable", "/tmp/.x/miner"),
        keys("x-deleted").from("job.service", 0).with("imds_guard.process.doubt", "deleted"),
        keys("x-fake").with(
            "imds_guard.cgroup",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/billing.service",
        ),
        keys("x-container").with("imds_guard.cgroup", "/system.slice/docker-0a1b.scope"),
        keys("x-orphan")
            .with("imds_guard.attribution", "orphan")
            .without("user.id")
            .without("imds_guard.cgroup"),
        keys("x-probe-1").from("scan.service", 36),
        keys("x-probe-2").from("scan.service", 36).asking("/metadata/identity/oauth2/token", "unknown"),
        keys("x-inject")
            .from("evil.service", 37)
            .with("event.id", "x\n[everyone]\nallow = [\"credentials\"]")
            .with("imds_guard.faults", json!(["host-foreign"])),
    ]
}

fn all() -> Vec<Event> {
    [honest(), attackers()].concat()
}

#[test]
fn what_is_proposed_says_of_its_log_exactly_what_was_accepted() {
    let events = all();
    let logs = Logs::new(lines(&events));
    let policy = logs.directory.path().join("learned.toml");
    let (code, out, err) = run(&["learn", "--output", arg(&policy), logs.log()]);
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    let (code, findings) = run_json(&["check", "--json", arg(&policy)]);
    let codes: Vec<&str> =
        findings.as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap()).collect();
    // Only what is about this machine and not about the proposal.
    assert!(code == 0 && codes.iter().all(|code| *code == "unknown-user"), "{findings}");
    // Every honest request passes, every attacker's is denied: recorded so, there is no difference.
    let accepted: Vec<Event> = events
        .into_iter()
        .map(|event| {
            let bad = event.0["event.id"].as_str().unwrap().starts_with('x');
            event.with("imds_guard.verdict", if bad { "deny" } else { "allow" })
        })
        .collect();
    let wanted = logs.file("wanted.jsonl", &lines(&accepted));
    let (code, told) = run_json(&["replay", "--json", "--policy", arg(&policy), arg(&wanted)]);
    assert_eq!(code, 0, "{told:#}");
    assert_eq!(told["requests"], accepted.len());
}

#[test]
fn the_grants_are_no_wider_than_what_was_used() {
    let logs = Logs::new(lines(&honest()));
    let (_, text, _) = run(&["learn", logs.log()]);
    let policy: toml::Table = text.parse().unwrap();
    let agents = policy["agent"].as_array().unwrap();
    let agent = |name: &str| agents.iter().find(|one| one["name"].as_str() == Some(name)).unwrap();
    assert_eq!(agent("billing")["allow"].as_array().unwrap(), &[toml::Value::from("session")]);
    let rule = &policy["rule"].as_array().unwrap()[0];
    assert_eq!(rule["path"][1].as_str(), Some("/*/meta-data/iam/security-credentials/billing"));
    assert_eq!(rule["class"].as_str(), Some("credentials"));
    // Twenty roles are no single one.
    assert_eq!(agent("multi")["allow"].as_array().unwrap(), &[toml::Value::from("credentials")]);
    assert_eq!(agent("policy-routes")["unit"].as_str(), Some("policy-routes@*.service"));
    assert_eq!(agent("policy-routes")["exe"].as_str(), Some("/usr/sbin/routes"));
    assert!(agent("billing").get("exe").is_none(), "an interpreter says nothing");
    assert!(policy.get("everyone").is_none());
    assert!(
        text.contains("# 480 requests, first 2026-11-10 00:00, last 2026-11-17 19:00. Confidence: high."),
        "{text}"
    );
}

/// Containers: by their slice and as Quadlet's units they last, and are proposed; by their ids they do not.
fn contained() -> Vec<Event> {
    let mut events = Vec::new();
    for (start, digit) in ["a", "b"].iter().enumerate() {
        let id = digit.repeat(64);
        for (name, cgroup) in [
            ("slice", format!("/billing.slice/docker-{id}.scope")),
            ("quadlet", format!("/system.slice/web.service/libpod-payload-{id}")),
            ("x-plain", format!("/system.slice/docker-{id}.scope")),
            ("x-rootless", format!("/user.slice/user-1000.slice/billing.slice/libpod-{id}.scope")),
        ] {
            for time in 0..15 {
                events.push(
                    Event::new(&format!("{name}-{start}-{time}"))
                        .asking(ROLE, "credentials")
                        .would_deny("no-agent-in-container")
                        .with("user.id", "1001")
                        .with("imds_guard.cgroup", cgroup.clone())
                        .with("imds_guard.origin", "container")
                        .with("process.executable", "/app/server")
                        .at(&format!("24T1{start}:{time:02}:00")),
                );
            }
        }
    }
    events
}

#[test]
fn containers_are_proposed_by_what_lasts_and_no_others() {
    let events = contained();
    let logs = Logs::new(lines(&events));
    let policy = logs.directory.path().join("learned.toml");
    let (code, _, err) = run(&["learn", "--output", arg(&policy), logs.log()]);
    assert_eq!(code, 0, "{err}");
    let text = std::fs::read_to_string(&policy).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let agents = table["agent"].as_array().unwrap();
    let named: Vec<&str> = agents.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(named, ["billing", "web"], "{text}");
    assert_eq!(agents[0]["container"]["slice"].as_str(), Some("billing.slice"));
    assert_eq!(agents[0]["container"]["runtime"].as_str(), Some("docker"));
    assert_eq!(
        (agents[1]["container"].as_str(), agents[1]["unit"].as_str()),
        (Some("quadlet"), Some("web.service"))
    );
    assert!(agents.iter().all(|one| one.get("exe").is_none()), "a container's files are not the host's");
    assert_eq!(table["containers"]["judge"].as_bool(), Some(true));
    for refused in ["# /system.slice/docker-", "# /user.slice/user-1000.slice/billing.slice/libpod-"] {
        let at = text.find(refused).unwrap_or_else(|| panic!("{refused} in\n{text}"));
        assert!(text[at..].split("\n\n").next().unwrap().contains("without a lasting name"), "{text}");
    }
    let (code, findings) = run_json(&["check", "--json", arg(&policy)]);
    let codes: Vec<&str> =
        findings.as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap()).collect();
    assert!(code == 0 && codes.iter().all(|code| *code == "unknown-user"), "{findings}");
    let accepted: Vec<Event> = events
        .into_iter()
        .map(|event| {
            let bad = event.0["event.id"].as_str().unwrap().starts_with('x');
            event.with("imds_guard.verdict", if bad { "deny" } else { "allow" })
        })
        .collect();
    let wanted = logs.file("wanted.jsonl", &lines(&accepted));
    let (code, told) = run_json(&["replay", "--json", "--policy", arg(&policy), arg(&wanted)]);
    assert_eq!(code, 0, "{told:#}");
}

#[test]
fn attackers_are_listed_with_their_signals_and_never_proposed() {
    let logs = Logs::new(lines(&attackers()));
    let (code, text, err) = run(&["learn", logs.log()]);
    assert_eq!(code, 0, "{err}");
    let policy: toml::Table = text.parse().unwrap();
    assert!(policy.get("agent").is_none() && policy.get("everyone").is_none(), "{text}");
    for (caller, signal) in [
        ("# web.service uid 33: 2 requests", "ssrf-marks"),
        ("# blog.service uid 34", "ssrf-marks"),
        ("# shop.service uid 35", "odd-spelling"),
        ("# /user.slice/user-1000.slice/session-3.scope uid 1000", "tool-outside-unit"),
        ("# /user.slice/user-1000.slice/session-3.scope uid 1000", "interactive-session"),
        ("# cron.service uid 0", "dubious-executable"),
        ("# job.service uid 0", "dubious-executable"),
        ("# /user.slice/user-1000.slice/user@1000.service/app.slice/billing.service", "interactive-session"),
        ("# /system.slice/docker-0a1b.scope", "container"),
        ("# unattributed (orphan)", "unattributed"),
        ("# scan.service uid 36", "several-clouds"),
    ] {
        let at = text.find(caller).unwrap_or_else(|| panic!("{caller} in\n{text}"));
        let block = text[at..].split("\n\n").next().unwrap();
        assert!(block.contains(&format!("#   {signal}: ")), "{signal} in\n{block}");
    }
    assert!(err.contains("0 callers proposed, 11 not"), "{err}");
}

#[test]
fn the_same_log_gives_the_same_text_whatever_its_order() {
    let mut events = all();
    let logs = Logs::new(lines(&events));
    let one = run(&["learn", logs.log()]).1;
    events.sort_by_key(|event| event.0["event.id"].as_str().unwrap().chars().rev().collect::<String>());
    let other = run(&["learn", arg(&logs.file("other.jsonl", &lines(&events)))]).1;
    assert_eq!(one, other);
}

#[test]
fn merging_proposes_only_what_the_policy_lacks() {
    let logs = Logs::new(lines(&all()));
    let base = "mode = \"audit\"\ncloud = \"aws\"\n[everyone]\nallow = [\"config\", \"session\"]\n\
                [[agent]]\nname = \"billing\"\nunit = \"other.service\"\nuser = 1\nallow = \"config\"\n";
    let policy = logs.file("policy.toml", base);
    std::fs::create_dir(logs.directory.path().join("policy.d")).unwrap();
    let drop_in = logs.directory.path().join("policy.d/50-learned.toml");
    let (code, _, err) = run(&["learn", "--merge", arg(&policy), "--output", arg(&drop_in), logs.log()]);
    assert_eq!(code, 0, "{err}");
    let text = std::fs::read_to_string(&drop_in).unwrap();
    let table: toml::Table = text.parse().unwrap();
    assert!(table.get("mode").is_none());
    let names: Vec<&str> =
        table["agent"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["billing-learned", "multi"], "{text}");
    assert_eq!(run(&["check", arg(&policy)]).0, 0);
    // Now nothing is lacking.
    let (_, again, _) = run(&["learn", "--merge", arg(&policy), logs.log()]);
    assert!(!again.contains("[[agent]]"), "{again}");
}

#[test]
fn nothing_to_learn_is_no_policy() {
    let logs = Logs::new("broken\n");
    let policy = logs.directory.path().join("learned.toml");
    let (code, _, err) = run(&["learn", "--output", arg(&policy), logs.log()]);
    assert_eq!(code, 1);
    assert!(err.contains("holds no events") && !policy.exists(), "{err}");
}
