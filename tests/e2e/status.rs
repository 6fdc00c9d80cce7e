//! What the guard shows of itself while it runs, to whom, and that nobody who looks can hold it up.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::bed::{Bed, PERSON_UID, ROLE_PATH, WEB_UID};
use crate::support::guard::{self, Guard};
use crate::support::policy::Policy;
use crate::support::wait;

const PATIENCE: Duration = Duration::from_secs(10);

const METRICS: &str = "127.0.0.1:9169";

/// With the status socket beside the guard's other files, and the metrics on loopback.
fn observed(policy: Policy) -> Policy {
    policy.guard_key("status-socket = \"{dir}/status.sock\"").guard_key(&format!("metrics = \"{METRICS}\""))
}

fn socket(guard: &Guard) -> PathBuf {
    guard.config().with_file_name("status.sock")
}

/// The exit code of `imds-guard status`, and what it said.
fn status(guard: &Guard, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(guard::binary());
    command.arg("status").arg("--config").arg(guard.config()).args(arguments);
    let output = command.output().expect("the program runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8(said).expect("text"))
}

fn snapshot(guard: &Guard) -> Value {
    let (_, said) = status(guard, &["--json", "--socket", socket(guard).to_str().expect("text")]);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// Waits until the snapshot is so.
fn snapshot_in_which(guard: &Guard, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait::until(what, PATIENCE, || Some(snapshot(guard)).filter(&is_so))
}

fn metrics(bed: &Bed) -> String {
    let mut command = bed.network.vm.command("curl");
    let output = command.args(["-sS", "--max-time", "8", &format!("http://{METRICS}/metrics")]).output();
    let output = output.expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A caller of each kind asks once for the role, without a session token.
fn traffic(bed: &Bed) {
    let role = format!("http://169.254.169.254{ROLE_PATH}");
    assert_eq!(bed.agent().get(&role).status, 200);
    assert!(bed.webapp().get(&role).is_refusal());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_status_tells_what_the_guard_is_doing() {
    let bed = Bed::new();
    let guard = bed.guard(&observed(Policy::enforce()));
    traffic(&bed);
    let snapshot = snapshot_in_which(&guard, "both requests are counted", |snapshot| {
        snapshot["results"]["forwarded"] == 1 && snapshot["results"]["refused"] == 1
    });
    let decision = |verdict: &str| {
        let all = snapshot["decisions"].as_array().unwrap();
        all.iter().find(|one| one["verdict"] == verdict).cloned().unwrap_or_default()
    };
    let (allowed, denied) = (decision("allow"), decision("deny"));
    assert_eq!((&allowed["agent"], &allowed["count"]), (&"agent".into(), &1.into()), "{snapshot:#}");
    assert_eq!((&denied["reason"], &denied["mode"]), (&"no-agent".into(), &"enforce".into()));
    assert_eq!(denied["classes"], serde_json::json!(["credentials"]));
    let last = &snapshot["last_denial"];
    assert_eq!(last["request"], format!("GET {ROLE_PATH}"));
    assert_eq!((&last["uid"], &last["passed"]), (&WEB_UID.into(), &false.into()));
    guard.event("the denial that the status names", |event| {
        last["event"] == event.text("event.id") && event.text("imds_guard.verdict") == "deny"
    });
    let callers = snapshot["callers"].as_array().unwrap();
    let web = callers.iter().find(|one| one["uid"] == WEB_UID).expect("the web application is named");
    assert_eq!(web["cgroup"], bed.slice.unit("webapp.service").path);
    assert_eq!((&web["requests"], &web["denied"], &web["v1"]), (&1.into(), &1.into(), &1.into()));
    let shared = endpoint(&snapshot, "169.254.169.254:80");
    assert_eq!((&shared["reachable"], &shared["requests"]), (&true.into(), &2.into()));
    assert_eq!(snapshot["policy"]["mode"], "enforce");
    assert_eq!((&snapshot["redirect"]["in_place"], &snapshot["lost_events"]), (&true.into(), &0.into()));

    let (code, said) = status(&guard, &[]);
    assert_eq!(code, 0, "{said}");
    for part in [
        "mode         enforce",
        "in place for",
        "1 allowed, 1 denied and refused, 0 denied and passed",
        &format!("GET {ROLE_PATH} (no-agent, refused, event "),
        "169.254.169.254:80  yes",
        &format!("webapp.service uid {WEB_UID}"),
    ] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    assert!(!said.contains("have changed since"), "{said}");
}

fn endpoint(snapshot: &Value, name: &str) -> Value {
    let all = snapshot["endpoints"].as_array().unwrap();
    all.iter().find(|one| one["endpoint"] == name).cloned().unwrap_or_default()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_service_that_does_not_answer_and_a_removed_redirect_are_seen() {
    let bed = Bed::new();
    let guard = bed.guard(&observed(Policy::audit().guard_key("self-heal = false")));
    let role = format!("http://169.254.169.254{ROLE_PATH}");
    bed.agent().get(&role);
    let Bed { cloud, slice, network, name } = bed;
    drop(cloud); // its ports are closed now
    let agent =
        crate::support::caller::Caller::new(&network.vm, slice.unit(crate::support::policy::AGENT), 0);
    assert_ne!(agent.curl(&[&role]).exit, 0, "{name}: nobody answers any more");
    let seen = snapshot_in_which(&guard, "the endpoint is unreachable", |snapshot| {
        endpoint(snapshot, "169.254.169.254:80")["reachable"] == false
    });
    assert_eq!(endpoint(&seen, "169.254.169.254:80")["failures"], 1);
    assert_eq!(status(&guard, &[]).0, 0, "that the service is down is not the guard's fault");

    // Somebody else's change, by whoever may: here the table is emptied under an owner's feet.
    let enforced = observed(Policy::enforce().guard_key("self-heal = false"));
    guard.reload(&enforced);
    let delete = network.vm.command("nft").args(["delete", "table", "inet", "imds_guard"]).status();
    assert!(delete.expect("nft runs").success());
    let seen = snapshot_in_which(&guard, "the redirect is missed", |snapshot| {
        snapshot["redirect"]["in_place"] == false
    });
    assert_eq!(seen["redirect"]["tampered"], 1);
    let (code, said) = status(&guard, &[]);
    assert!(code == 1 && said.contains("NOT IN PLACE"), "{code}: {said}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn only_root_and_the_group_may_read_the_status() {
    let bed = Bed::new();
    let mut guard =
        bed.guard(&observed(Policy::enforce().guard_key(&format!("status-group = {PERSON_UID}"))));
    let path = socket(&guard);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (0, PERSON_UID));
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    let reads = |uid: u32| {
        let caller = bed.caller("reader.service", uid);
        let socket = path.to_str().unwrap();
        caller.curl(&["--unix-socket", socket, "http://localhost/status"])
    };
    assert_eq!(reads(PERSON_UID).answer.status, 200, "the group may");
    let stranger = reads(WEB_UID);
    assert!(stranger.exit != 0 && stranger.answer.body.is_empty(), "{stranger:?}");
    guard.signal(Signal::SIGTERM);
    guard.wait_for_end();
    assert!(!path.exists(), "a name stays at which nobody answers");
    let (code, said) = status(&guard, &[]);
    assert!(code == 66 && said.contains("does the guard run?"), "{code}: {said}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_metrics_count_and_name_nobody() {
    let bed = Bed::new();
    let guard = bed.guard(&observed(Policy::audit()));
    let role = format!("http://169.254.169.254{ROLE_PATH}");
    bed.agent().get(&role);
    bed.webapp().get_with(&role, &["X-Forwarded-For: 198.51.100.7", "User-Agent: decoy-agent"]);
    snapshot_in_which(&guard, "both requests are counted", |snapshot| snapshot["results"]["forwarded"] == 2);
    let text = metrics(&bed);
    for line in [
        r#"imds_guard_requests_total{cloud="aws-ec2",class="credentials",verdict="allow",mode="audit",reason="agent-allows",agent="agent"} 1"#,
        r#"imds_guard_requests_total{cloud="aws-ec2",class="credentials",verdict="deny",mode="audit",reason="forwarding-header",agent=""} 1"#,
        r#"imds_guard_connections_total{attribution="stamped"} 2"#,
        r#"imds_guard_results_total{result="forwarded"} 2"#,
        "imds_guard_upstream_seconds_count 2",
        "imds_guard_attribution_seconds_count 2",
        "imds_guard_redirect_in_place 1",
        "imds_guard_events_lost_total 0",
    ] {
        assert!(text.lines().any(|one| one == line), "{line} is not in:\n{text}");
    }
    for name in ["webapp", "decoy-", "198.51.100.7", "meta-data", "curl", &WEB_UID.to_string()] {
        assert!(!text.contains(name), "{name} is in:\n{text}");
    }
    let at_port = bed.person().curl(&[&format!("http://{METRICS}/status")]);
    assert_eq!(at_port.answer.status, 404, "the port shows the metrics alone");
    // What Prometheus itself says of the text.
    let Some(promtool) = super::tools::promtool() else { return };
    let mut check = Command::new(promtool);
    let mut check = check
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let verdict = check.wait_with_output().unwrap();
    assert!(verdict.status.success(), "{}", String::from_utf8_lossy(&verdict.stderr));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_reload_keeps_the_status_and_tells_which_policy_is_in_force() {
    let bed = Bed::new();
    let guard = bed.guard(&observed(Policy::enforce()));
    traffic(&bed);
    let before =
        snapshot_in_which(&guard, "both are counted", |snapshot| snapshot["results"]["refused"] == 1);
    guard.reload(&observed(Policy::audit()));
    let after = snapshot_in_which(&guard, "the new policy", |snapshot| snapshot["policy"]["reloads"] == 1);
    assert_eq!(after["policy"]["mode"], "audit");
    assert_ne!(after["policy"]["version"], before["policy"]["version"]);
    assert_eq!(after["results"]["refused"], 1, "what was counted stays counted");
    guard.reload_text("mode = \"audit\"\nmood = \"good\"\n");
    let wrong =
        snapshot_in_which(&guard, "the refusal", |snapshot| snapshot["policy"]["is_outdated"] == true);
    assert_eq!(wrong["policy"]["version"], after["policy"]["version"]);
    assert!(metrics(&bed).contains("imds_guard_policy_outdated 1\n"));
    // The policy on the disk names the socket no more.
    let (code, said) = status(&guard, &["--socket", socket(&guard).to_str().unwrap()]);
    assert!(code == 0 && said.contains("the files have changed since: reload"), "{code}: {said}");
    assert!(said.contains("because the files are wrong"), "{said}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn readers_that_do_not_read_hold_up_nobody() {
    let bed = Bed::new();
    let guard = bed.guard(&observed(Policy::enforce()));
    let mut idle = Vec::new();
    for at in 0..24 {
        let mut stream = UnixStream::connect(socket(&guard)).unwrap();
        if at % 2 == 0 {
            stream.write_all(b"GET /status HTTP/1.1\r\n").unwrap();
        }
        idle.push(stream);
    }
    let mut at_port: Vec<_> = (0..16).map(|_| bed.person().connect(METRICS)).collect();
    for connection in &mut at_port {
        connection.send(b"GET /metrics HTTP/1.1\r\nX: ");
    }
    traffic(&bed);
    // They are let go one after the other, and then whoever waits is answered.
    wait::until("a reader is answered", Duration::from_mins(1), || {
        (status(&guard, &[]).0 == 0).then_some(())
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_taken_port_does_not_keep_the_guard_from_guarding() {
    let bed = Bed::new();
    let _taken = bed.network.vm.enter(|| std::net::TcpListener::bind(METRICS).expect("a free port"));
    let guard = bed.guard(&observed(Policy::enforce()));
    traffic(&bed);
    assert!(guard.output().contains("the metrics port could not be opened"), "{}", guard.output());
    assert_eq!(status(&guard, &[]).0, 0);
}
