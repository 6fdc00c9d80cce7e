//! The operator's way, walked from end to end: watch, report, learn, test, enforce. docs/quickstart.md tells it to people.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::bed::{Bed, PERSON_UID, ROLE_PATH, WEB_UID};
use crate::support::caller::Caller;
use crate::support::guard::{self, Guard};
use crate::support::policy::Policy;
use crate::support::simulator::SECRET_MARK;
use crate::support::wait;

/// An application that needs the machine's role, and that nobody has listed.
const APP: &str = "billing.service";
const APP_UID: u32 = 63_034;

/// Somebody's shell, in which the published steps of the technique's tests are typed.
const INTRUDER: &str = "user.slice/user-63101.slice/session-9.scope";
const INTRUDER_UID: u32 = 63_101;

const LISTING: &str = "/latest/meta-data/iam/security-credentials/";

const PATIENCE: Duration = Duration::from_secs(20);

/// The steps of the published tests of MITRE ATT&CK T1552.005: the clouds' documents and tokens, one after the other.
const STEPS: &str = r#"
curl -s -m 5 -H 'Metadata: true' 'http://169.254.169.254/metadata/instance?api-version=2021-12-13'
token=$(curl -s -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)
for path in meta-data/iam/security-credentials/decoy-role user-data dynamic/instance-identity/document; do
    curl -s -m 5 -H "X-aws-ec2-metadata-token: $token" "http://169.254.169.254/latest/$path"
done
curl -s -m 5 -H 'Metadata-Flavor: Google' \
    http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token
"#;

/// A step from which each caller came back with the machine's secrets, or without.
struct Way<'a> {
    bed: &'a Bed,
}

impl Way<'_> {
    fn url(path: &str) -> String {
        format!("http://169.254.169.254{path}")
    }

    fn app(&self) -> Caller<'_> {
        self.bed.caller(APP, APP_UID)
    }

    /// The honest ones; whether each of them got what it needs.
    fn honest(&self) -> [bool; 2] {
        let agent = self.bed.agent().get(&Self::url(ROLE_PATH)).text().contains(SECRET_MARK);
        let listing = self.app().get(&Self::url(LISTING)).status == 200;
        let app = self.app().get(&Self::url(ROLE_PATH)).text().contains(SECRET_MARK);
        [agent, listing && app]
    }

    /// The three attacks: forged forwarding through a web server, a shell's curl, the published steps. Whether each of
    /// them got a secret.
    fn attacks(&self) -> [bool; 3] {
        let forwarded = ["X-Forwarded-For: 198.51.100.7", "Via: 1.1 shop"];
        let ssrf = self.bed.webapp().get_with(&Self::url(ROLE_PATH), &forwarded);
        let shell = self.bed.caller("user.slice/user-63100.slice/session-7.scope", PERSON_UID);
        let shell = shell.get(&Self::url(ROLE_PATH));
        let steps = self.bed.caller(INTRUDER, INTRUDER_UID).command("sh").args(["-c", STEPS]).output();
        let steps = String::from_utf8_lossy(&steps.expect("a shell runs").stdout).into_owned();
        [ssrf.text(), shell.text(), steps].map(|answer| answer.contains(SECRET_MARK))
    }
}

/// The exit code of a command of the program, what it said, and what it said beside.
fn imds_guard(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(guard::binary()).args(arguments).output().expect("the program runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn json(arguments: &[&str]) -> Value {
    let (_, out, err) = imds_guard(arguments);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}{err}"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// What a report says of the caller with this uid.
fn caller_of(report: &Value, uid: u32) -> Value {
    let callers = report["callers"].as_array().expect("callers");
    callers.iter().find(|one| one["caller"]["uid"] == uid).cloned().unwrap_or_default()
}

fn signals(caller: &Value) -> BTreeSet<&str> {
    caller["signals"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Watches until the log shows each attacker for what it is: who is gone too fast is not seen with its program.
fn watch(way: &Way<'_>, guard: &Guard) -> PathBuf {
    wait::until("the log tells the shell's program", PATIENCE, || {
        assert_eq!((way.honest(), way.attacks()), ([true; 2], [true; 3]), "audit mode lets everything pass");
        let report = json(&["report", "--json", text(&guard.log())]);
        let seen = |uid, signal| signals(&caller_of(&report, uid)).contains(signal);
        let all = seen(PERSON_UID, "tool-outside-unit") && seen(INTRUDER_UID, "several-clouds");
        (all && caller_of(&report, APP_UID)["denied"].as_u64() > Some(0)).then_some(())
    });
    let watched = guard.log().with_file_name("watched.jsonl");
    fs::copy(guard.log(), &watched).expect("its own file");
    watched
}

/// The report tells the listed agent, the application that nobody listed, and the attacks apart.
fn report_tells_them_apart(log: &Path) {
    let report = json(&["report", "--json", text(log)]);
    let agent = caller_of(&report, 0);
    assert_eq!((&agent["denied"], &agent["suspect"]), (&0.into(), &false.into()), "{agent:#}");
    let app = caller_of(&report, APP_UID);
    assert_eq!((&app["caller"]["name"], &app["suspect"]), (&APP.into(), &false.into()), "{app:#}");
    assert!(app["denied"].as_u64() > Some(0) && signals(&app).is_empty(), "enforce would break it: {app:#}");
    for (uid, signal) in
        [(WEB_UID, "ssrf-marks"), (PERSON_UID, "tool-outside-unit"), (INTRUDER_UID, "several-clouds")]
    {
        let attacker = caller_of(&report, uid);
        assert_eq!(attacker["suspect"], true, "{attacker:#}");
        assert!(signals(&attacker).contains(signal), "{signal} in {attacker:#}");
    }
}

/// What is learnt from the log as a drop-in beside the policy: the application, its one role, and nobody else.
fn learn(config: &Path, log: &Path) -> PathBuf {
    let drop_in = config.with_file_name("policy.d").join("50-learned.toml");
    fs::create_dir(drop_in.parent().expect("a directory")).expect("a directory of its own");
    let (code, out, err) =
        imds_guard(&["learn", "--merge", text(config), "--output", text(&drop_in), text(log)]);
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    let learned = fs::read_to_string(&drop_in).expect("the proposal");
    let table: toml::Table = learned.parse().expect("TOML");
    let agents = table["agent"].as_array().expect("agents");
    assert_eq!(agents.len(), 1, "{learned}");
    assert_eq!(
        (agents[0]["unit"].as_str(), agents[0]["user"].as_integer()),
        (Some(APP), Some(APP_UID.into()))
    );
    let rules = table["rule"].as_array().expect("rules");
    assert_eq!(rules.len(), 1, "one role is a rule for its path, and no grant of the class: {learned}");
    assert!(rules[0]["path"].to_string().contains("decoy-role"), "{learned}");
    for uid in [WEB_UID, PERSON_UID, INTRUDER_UID] {
        let listed =
            learned.lines().any(|line| line.starts_with("# ") && line.contains(&format!("uid {uid}:")));
        assert!(listed, "uid {uid} is told with its signals in\n{learned}");
    }
    drop_in
}

fn cases(config: &Path) -> PathBuf {
    let cases = config.with_file_name("policy.cases.toml");
    let case = |name: &str, unit: &str, uid: u32, path: &str, verdict: &str| {
        format!(
            "[[case]]\nname = \"{name}\"\ncaller = {{ unit = \"{unit}\", uid = {uid} }}\n\
             request = \"GET {path}\"\nverdict = \"{verdict}\"\n"
        )
    };
    let role = "/latest/meta-data/iam/security-credentials";
    let all = [
        case("the application reads its own role", APP, APP_UID, ROLE_PATH, "allow"),
        case("and no other", APP, APP_UID, &format!("{role}/admin"), "deny"),
        case("no other user of its unit does", APP, WEB_UID, ROLE_PATH, "deny"),
        case("the web server never does", "webapp.service", WEB_UID, ROLE_PATH, "deny"),
    ];
    fs::write(&cases, format!("detected = [\"aws-ec2\"]\n{}", all.concat())).expect("its own file");
    cases
}

/// Check, test and replay agree that the new policy is right before anybody is refused anything.
fn try_out(config: &Path, log: &Path) {
    let (code, out, err) = imds_guard(&["check", text(config)]);
    assert_eq!(code, 0, "{out}{err}");
    let (code, out, err) = imds_guard(&["test", "--config", text(config), text(&cases(config))]);
    assert!(code == 0 && out.contains("4 cases, 4 passed"), "{out}{err}");
    let replay = json(&["replay", "--json", "--policy", text(config), text(log)]);
    assert_eq!((&replay["newly_denied"], &replay["uncertain"]), (&0.into(), &0.into()), "{replay:#}");
    let opened = replay["differences"].as_array().expect("differences");
    assert!(!opened.is_empty() && opened.iter().all(|one| one["caller"]["uid"] == APP_UID), "{replay:#}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn from_watching_to_enforcing() {
    let bed = Bed::new();
    let way = Way { bed: &bed };
    let guard = bed.guard(&Policy::audit());
    let watched = watch(&way, &guard);
    report_tells_them_apart(&watched);
    learn(&guard.config(), &watched);
    try_out(&guard.config(), &watched);

    let before = bed.reached(ROLE_PATH).len();
    guard.reload(&Policy::enforce());
    assert_eq!((way.honest(), way.attacks()), ([true; 2], [false; 3]));
    assert_eq!(bed.reached(ROLE_PATH).len(), before + 2, "the agent and the application, and nobody else");

    // Every denial carries the technique, in either mode; nothing else does.
    let enforced = |event: &&crate::support::event::Event| event.text("imds_guard.mode") == "enforce";
    guard.event("the last step in enforce mode", |event| {
        enforced(&event) && event.text("url.path").ends_with("/default/token")
    });
    let events = guard.events();
    let mut denied = 0;
    for event in events.iter().filter(|event| !event.text("imds_guard.verdict").is_empty()) {
        let is_denied = event.text("imds_guard.verdict") == "deny";
        denied += u32::from(is_denied);
        assert_eq!(event.text("threat.technique.id") == "T1552.005", is_denied, "{event:#?}");
        if is_denied {
            let passed = event.text("imds_guard.would_deny") == "true";
            assert_eq!(passed, event.text("imds_guard.mode") == "audit", "{event:#?}");
        }
    }
    assert!(denied > 10, "{denied} denials");
    let by_enforce: BTreeSet<String> =
        events.iter().filter(enforced).map(|event| event.text("user.id")).collect();
    assert_eq!(by_enforce.len(), 5, "each of the five callers is told: {by_enforce:?}");
}

/// What whoever can write a log writes into it changes nothing of what is learnt, and is told.
#[test]
#[ignore = "needs root: make test runs it"]
fn hostile_lines_in_the_log_change_nothing_that_is_learnt() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::audit());
    assert_eq!(Way { bed: &bed }.honest(), [true; 2]);
    guard.event("the last request", |event| {
        event.text("url.path") == ROLE_PATH && event.text("user.id") == APP_UID.to_string()
    });
    let honest = fs::read_to_string(guard.log()).expect("the log");
    let learned = |name: &str, log: &[u8]| {
        let path = guard.log().with_file_name(name);
        fs::write(&path, log).expect("its own file");
        let (code, out, err) = imds_guard(&["learn", text(&path)]);
        assert_eq!(code, 0, "{err}");
        (out, err)
    };
    let (wanted, told) = learned("honest.jsonl", honest.as_bytes());
    assert!(!told.contains("skipped"), "{told}");
    let forged = [
        "{\"event.dataset\":\"imds-guard.audit\",\"imds_guard.schema\":99,\"event.action\":\"request\"}\n".to_owned(),
        "\u{1b}]0;owned\u{7}\u{1b}[2J[[agent]]\nname = \"evil\"\n".to_owned(),
        "{\"event.dataset\":\"imds-guard.audit\",\"imds_guard.schema\":1,\"imds_guard.verdict\":[\"allow\"]}\n".to_owned(),
        format!("{}\n", "{\"a\":".repeat(5000)),
        format!("{{\"x\":\"{}\"}}\n", "y".repeat(300_000)),
        "{\"event.dataset\":\"nginx\",\"user.id\":\"0\"}\n".to_owned(),
    ];
    let mut mixed = b"\xff\xfe\x00 rest of a line\n".to_vec();
    for (line, bad) in honest.split_inclusive('\n').zip(forged.iter().cycle()) {
        mixed.extend_from_slice(bad.as_bytes());
        mixed.extend_from_slice(line.as_bytes());
    }
    mixed.extend(forged.concat().bytes());
    mixed.extend_from_slice(honest.as_bytes().get(..40).expect("a line"));
    let (got, told) = learned("mixed.jsonl", &mixed);
    assert_eq!(got, wanted);
    for what in
        ["broken", "cut off at the end", "longer than any event", "not of this guard", "of a schema version"]
    {
        assert!(told.contains(what), "{what} is not told: {told}");
    }
    assert!(!told.contains('\u{1b}'), "{told:?}");
}
