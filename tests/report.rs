//! Logs read back: report in its forms, replay, and what broken and hostile logs do to them.

#![expect(clippy::unwrap_used, reason = "a helper of a test may fail the test, like the test itself")]

mod logs;

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use logs::{Event, Logs, ROLE, arg, lines, run, run_fed, run_json};
use serde_json::json;

/// An agent, an unlisted application, and an SSRF through a web server.
fn traffic() -> Vec<Event> {
    let ssrf = |id: &str| {
        Event::new(id)
            .from("web.service", 33)
            .asking(ROLE, "credentials")
            .would_deny("forwarding-header")
            .with("imds_guard.faults", json!(["forwarding-header"]))
            .with("threat.technique.id", "T1552.005")
    };
    vec![
        Event::new("a-1").with("imds_guard.agent", "billing").asking(ROLE, "credentials").at("24T09:00:00"),
        Event::new("a-2")
            .from("app.service", 7)
            .asking(ROLE, "credentials")
            .would_deny("no-agent")
            .at("24T09:01:00"),
        ssrf("a-3").at("24T09:02:00"),
        ssrf("a-4").at("24T10:02:00").with("imds_guard.count", 3),
        Event::new("g-1")
            .with("event.action", "guard")
            .with("imds_guard.reason", "events-lost")
            .with("imds_guard.count", 9),
    ]
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn report_tells_who_what_would_break_and_what_attacks() {
    let logs = Logs::new(lines(&traffic()));
    let (code, told) = run_json(&["report", "--json", logs.log()]);
    assert_eq!(code, 0);
    assert_eq!((&told["requests"], &told["would_deny"], &told["lost"]), (&json!(6), &json!(5), &json!(9)));
    let suspects: Vec<_> =
        told["callers"].as_array().unwrap().iter().filter(|one| one["suspect"] == true).collect();
    assert_eq!(suspects.len(), 1);
    assert_eq!(suspects[0]["caller"], json!({"kind": "unit", "name": "web.service", "uid": 33}));
    assert_eq!(suspects[0]["signals"], json!(["ssrf-marks"]));
    let row =
        told["rows"].as_array().unwrap().iter().find(|row| row["fault"] == "forwarding-header").unwrap();
    assert_eq!((&row["count"], &row["event"]), (&json!(4), &json!("a-4")));
    assert_eq!(row["first"], "2026-11-24T09:02:00Z");

    let (code, out, err) = run(&["report", logs.log()]);
    assert_eq!((code, err.as_str()), (0, ""));
    for part in [
        "would deny",
        "billing (billing.service uid 998)",
        "  aws-ec2  ",
        "Looks like an attack:",
        "ssrf-marks",
        "9 events were lost",
    ] {
        assert!(out.contains(part), "{part} in\n{out}");
    }
    let (_, csv, _) = run(&["report", "--csv", logs.log()]);
    assert_eq!(csv.lines().count(), 4);
    assert!(csv.starts_with("caller,uid,agent,"), "{csv}");
}

/// "Who still needs version 1?", as docs/policy.md asks it.
#[test]
fn report_tells_who_still_needs_version_1() {
    let read = |id: &str, unit: &str, version: &str| {
        Event::new(id).from(unit, 0).with("imds_guard.session", version)
    };
    let logs = Logs::new(lines(&[
        read("a-1", "modern.service", "v2"),
        read("a-2", "legacy.service", "v1"),
        read("a-3", "inventory.service", "v1").with("imds_guard.upgraded", true),
        Event::new("a-4").from("other.service", 0),
    ]));
    let units = |session: &str| {
        let (code, told) = run_json(&["report", "--session", session, "--json", logs.log()]);
        assert_eq!(code, 0);
        let callers = told["callers"].as_array().unwrap();
        callers.iter().map(|one| one["caller"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(units("v1"), ["legacy.service", "inventory.service"]);
    assert_eq!(units("v2"), ["modern.service"]);
    assert_eq!(units("upgraded"), ["inventory.service"]);
    let (_, out, _) = run(&["tail", "--no-follow", "--session", "upgraded", logs.log()]);
    assert!(out.lines().count() == 1 && out.contains("a-3"), "{out}");
}

#[test]
fn report_writes_one_page_whole_or_not_at_all() {
    let logs = Logs::new(lines(&traffic()));
    let page = logs.directory.path().join("report.html");
    assert_eq!(run(&["report", "--html", arg(&page), logs.log()]).0, 0);
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("Content-Security-Policy") && text.ends_with("</html>\n"));
    let (code, _, err) = run(&["report", "--html", "/nonexistent/report.html", logs.log()]);
    assert_eq!(code, 73, "{err}");
}

#[test]
fn logs_come_from_files_and_standard_input_plain_and_compressed() {
    let text = lines(&traffic());
    let logs = Logs::new(gzip(&text));
    let requests = |arguments: &[&str], input: &[u8]| {
        let (code, out, err) = run_fed(&[&["report", "--json"], arguments].concat(), input);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap()["requests"].as_u64().unwrap()
    };
    assert_eq!(requests(&[logs.log()], b""), 6);
    assert_eq!(requests(&["-"], text.as_bytes()), 6);
    assert_eq!(requests(&[], text.as_bytes()), 6);
    assert_eq!(requests(&["-", logs.log()], &gzip(&text)), 12);
    // A rotated log, appended to by gzip -c >>, is several members.
    assert_eq!(requests(&["-"], &[gzip(&text), gzip(&text)].concat()), 12);
    assert_eq!(requests(&["--since", "2026-11-24T09:02:00Z", logs.log()], b""), 4);
    assert_eq!(requests(&["--since", "2099-01-01", logs.log()], b""), 0);
    let (code, out, err) = run(&["report", "/nonexistent.jsonl"]);
    assert_eq!((code, out.as_str()), (66, ""));
    assert!(err.contains("cannot read the log /nonexistent.jsonl: No such file"), "{err}");
    assert_eq!(run(&["report", "--since", "yesterday", logs.log()]).0, 2);
    assert_eq!(run(&["report", arg(logs.directory.path())]).0, 66);
}

#[test]
fn wrapped_by_the_journal_an_event_is_still_one() {
    let event = lines(&[Event::new("e-1")]);
    let entry = json!({"MESSAGE": event.trim(), "_PID": "1", "_HOSTNAME": "alpha"}).to_string();
    let prefixed = format!("Nov 24 09:00:00 host imds-guard[1]: {event}");
    let (_, out, _) = run_fed(&["report", "--json", "-"], format!("{entry}\n{prefixed}").as_bytes());
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&told["requests"], &told["log"]["broken"]), (&json!(2), &json!(0)), "{out}");
    // Many machines' journals put together: each entry names its own.
    let of = |host: &str| json!({"MESSAGE": event.trim(), "_HOSTNAME": host}).to_string() + "\n";
    let (_, learned, _) = run_fed(&["learn", "-"], [of("alpha"), of("beta"), of("beta")].concat().as_bytes());
    assert!(learned.contains("# 3 requests on 2 hosts, first"), "{learned}");
}

#[test]
fn what_this_program_cannot_unpack_is_told_and_the_next_log_read() {
    let logs = Logs::new([0x28, 0xb5, 0x2f, 0xfd, 0, 1, 2]);
    let next = logs.file("next.jsonl", &lines(&[Event::new("e-1")]));
    let (_, told) = run_json(&["report", "--json", logs.log(), arg(&next)]);
    assert_eq!(told["requests"], 1);
    assert!(
        told["log"]["broken_off"][0].as_str().unwrap().contains("compressed with zstd"),
        "{}",
        told["log"]
    );
}

/// Behind a terminal of its own (script(1)), fed by a pipe that takes longer than a second.
#[test]
fn what_takes_longer_than_a_second_shows_its_progress_on_a_terminal_alone() {
    let logs = Logs::new(lines(&traffic()));
    let program = env!("CARGO_BIN_EXE_imds-guard");
    let feed = format!("(cat {0}; sleep 1.3; cat {0}; sleep 0.3; cat {0}) | {program} report -", logs.log());
    let script = std::process::Command::new("script").args(["-qec", &feed, "/dev/null"]).output();
    let Ok(shown) = script else { return }; // no script(1) on this machine
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("reading standard input: "), "{shown:?}");
    let (_, piped) = {
        let output = std::process::Command::new("sh").args(["-c", &feed]).output().unwrap();
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(piped, "", "no progress where nobody watches");
}

#[test]
fn lines_that_cannot_be_used_are_counted_told_and_skipped() {
    let good = lines(&[Event::new("e-1")]);
    let newer = lines(&[Event::new("e-2").with("imds_guard.schema", 2)]);
    let extended = lines(&[Event::new("e-3").with("imds_guard.of_the_future", json!({"a": [1]}))]);
    let odd = lines(&[Event::new("e-4").with("url.path", 7)]);
    let mut log = format!("{good}{newer}{extended}{odd}not json\n[1]\n\n{{\"a\":1}}\n").into_bytes();
    log.extend_from_slice(
        b"{\"event.dataset\":\"imds-guard.audit\",\"imds_guard.schema\":1,\"url.path\":\"\xff\"}\n",
    );
    log.extend_from_slice("[".repeat(100_000).as_bytes());
    log.extend_from_slice(b"\n");
    log.extend_from_slice(&vec![b'x'; 1 << 20]);
    log.push(b'\n');
    log.extend_from_slice(good.as_bytes());
    log.extend_from_slice(b"{\"event.id\":\"cut o");
    let logs = Logs::new(log);
    let (code, told) = run_json(&["report", "--json", logs.log()]);
    assert_eq!(code, 0);
    let tally = &told["log"];
    assert_eq!(tally["events"], 3, "{tally}");
    assert_eq!(tally["other_schema"], 1, "{tally}");
    assert_eq!(tally["broken"], 5, "{tally}");
    assert_eq!(tally["foreign"], 1, "{tally}");
    assert_eq!(tally["too_long"], 1, "{tally}");
    assert_eq!(tally["truncated"], 1, "{tally}");
    let (_, _, err) = run(&["report", logs.log()]);
    assert!(err.contains("skipped 5 lines that are broken"), "{err}");
    assert!(err.contains("skipped 1 line that is cut off"), "{err}");
}

#[test]
fn a_compressed_log_that_breaks_off_is_told_and_the_next_one_read() {
    let text = lines(&traffic());
    let mut cut = gzip(&text.repeat(200));
    cut.truncate(cut.len() / 2);
    let logs = Logs::new(cut);
    let next = logs.file("next.jsonl", &lines(&[Event::new("e-1")]));
    let (code, told) = run_json(&["report", "--json", logs.log(), arg(&next)]);
    assert_eq!(code, 0);
    assert!(
        told["log"]["broken_off"][0].as_str().unwrap().contains("breaks off after line"),
        "{}",
        told["log"]
    );
    assert!(told["rows"].as_array().unwrap().iter().any(|row| row["event"] == "e-1"));
}

#[test]
fn hostile_texts_reach_no_terminal() {
    let hostile = "\u{1b}[31m\u{202e}\u{7}=1+1";
    let event = Event::new(hostile)
        .asking(hostile, "credentials")
        .would_deny(hostile)
        .with("process.executable", hostile)
        .with("imds_guard.agent", hostile)
        .with("http.request.method", hostile);
    let logs = Logs::new(lines(&[event]));
    for form in [&["report"][..], &["report", "--csv"], &["learn"], &["replay", "--policy", "policy.toml"]] {
        let arguments = [form, &[logs.log()]].concat();
        let output = logs::guard(&arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        let shown = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!shown.contains(['\u{1b}', '\u{202e}', '\u{7}']), "{form:?}: {shown:?}");
        assert!(
            shown.contains("\\u{1b}") || form[0] == "learn" || form[0] == "replay",
            "{form:?}: {shown:?}"
        );
    }
}

#[test]
fn replay_shows_what_a_change_would_break_and_what_it_would_open() {
    let logs = Logs::new(lines(&traffic()));
    let policy =
        |text: &str| logs.file("policy.toml", &format!("mode = \"enforce\"\ncloud = \"aws\"\n{text}"));
    let agents = |app: &str| {
        format!(
            "[[agent]]\nname = \"billing\"\nunit = \"billing.service\"\nuser = 998\nallow = \"credentials\"\n\
             [[agent]]\nname = \"app\"\nunit = \"app.service\"\nuser = 7\nallow = {app}\n"
        )
    };
    let same = policy(&agents("[\"session\"]"));
    let (code, out, _) = run(&["replay", "--policy", arg(&same), logs.log()]);
    assert_eq!(code, 0, "{out}");
    assert!(out.starts_with("6 requests decided again: 0 would be denied"), "{out}");

    let opens = policy(&agents("[\"credentials\"]"));
    let (code, told) = run_json(&["replay", "--policy", arg(&opens), "--json", logs.log()]);
    assert_eq!((code, &told["newly_allowed"], &told["newly_denied"]), (1, &json!(1), &json!(0)));
    assert_eq!(told["differences"][0]["caller"]["name"], "app.service");
    assert_eq!(told["differences"][0]["path"], ROLE);
    assert_eq!(
        (&told["differences"][0]["before"], &told["differences"][0]["after"]),
        (&json!("deny"), &json!("allow"))
    );
    assert_eq!(told["differences"][0]["agent"], "app");

    let breaks = policy("[everyone]\nallow = \"config\"\n");
    let (code, out, _) = run(&["replay", "--policy", arg(&breaks), logs.log()]);
    assert_eq!(code, 1);
    let line = out.lines().find(|line| line.contains("billing.service uid 998")).expect("the caller's line");
    for part in [&format!("GET {ROLE}"), "allow", "deny", "no-agent"] {
        assert!(line.contains(part), "{line}");
    }
    // A fault is a denial whatever the policy says.
    assert!(!out.contains("web.service"), "{out}");
}
