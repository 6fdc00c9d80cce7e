//! Tests of the room as a whole: diagnostics as they are rendered, settings, and what makes a permit.

use super::{
    Accounts, Action, AuditLog, Context, Decision, Diagnostic, Form, Limits, Mode, Policy, Reason, Severity,
    Source, Verdict, diagnostic, settings::TlsUse,
};
use crate::cloud::{Asked, Class, Classes, Endpoint, Touched};
use crate::request::{Fault, RawHead};

fn context() -> Context {
    let passwd = "root:x:0:0::/:/x\nimds-guard:x:990:990::/:/x\nbilling:x:1001:1001::/:/x\nnobody:x:65534:65534::/:/x\n";
    Context {
        accounts: Accounts::parse(passwd, "ops:x:5:billing\n"),
        detected: vec!["aws-ec2".to_owned()],
        uplinks: vec!["ens5".to_owned()],
        ..Context::default()
    }
}

fn source(name: &str, text: &str) -> Source {
    Source { name: name.to_owned(), text: text.to_owned() }
}

fn findings(sources: &[Source]) -> Vec<Diagnostic> {
    match Policy::compile(sources, &context()) {
        Ok(compiled) => compiled.warnings,
        Err(errors) => errors,
    }
}

fn codes(text: &str) -> Vec<&'static str> {
    findings(&[source("policy.toml", text)]).iter().map(|one| one.code).collect()
}

fn rendered(sources: &[Source]) -> String {
    diagnostic::render(&findings(sources), sources, false)
}

fn policy(text: &str) -> Policy {
    let sources = [source("policy.toml", text)];
    match Policy::compile(&sources, &context()) {
        Ok(compiled) => compiled.policy,
        Err(errors) => panic!("{}", diagnostic::render(&errors, &sources, false)),
    }
}

fn asked(faulty: bool) -> Asked {
    let head = RawHead::read(
        b"GET /latest/user-data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
        crate::request::Limits { head_bytes: 4096, headers: 16 },
    );
    let endpoint = Endpoint::new(Endpoint::SHARED, 80);
    let asked = Asked::read(crate::cloud::Catalogue::builtin(), endpoint, head.unwrap());
    if faulty { Asked::unclear(endpoint, asked.head, Fault::ALL[0]) } else { asked }
}

#[test]
fn every_error_is_told_at_once() {
    let main = source("policy.toml", include_str!("tests/errors.toml"));
    let drop_in = source("policy.d/50-team.toml", include_str!("tests/errors-drop-in.toml"));
    insta::assert_snapshot!(rendered(&[main, drop_in]));
}

#[test]
fn every_lint_is_told() {
    insta::assert_snapshot!(rendered(&[source("policy.toml", include_str!("tests/lints.toml"))]));
}

#[test]
fn a_path_that_never_touches_a_rule_s_classes_is_told() {
    let main = |cloud: &str, rule: &str| {
        let text =
            format!("mode = \"enforce\"\n{cloud}\n[[rule]]\nname = \"r\"\naction = \"deny\"\n{rule}\n");
        codes(&text).contains(&"rule-never-matches")
    };
    let (aws, google) = ("cloud = \"aws\"", "cloud = \"gcp\"");
    for (cloud, rule) in [
        (aws, "path = \"/latest/meta-data/instance-id\"\nclass = \"credentials\""),
        (aws, "path = \"/*/meta-data/{instance-id,ami-id}\"\nclass = [\"credentials\", \"user-data\"]"),
        (aws, "path = [\"/latest/user-data\", \"/*/meta-data/instance-id\"]\nclass = \"credentials\""),
        (aws, "path = \"/latest/nowhere/at-all\"\nclass = \"credentials\""),
        (aws, "path = \"/latest/api/token\"\nclass = \"identity\""),
        (google, "path = \"/latest/meta-data/iam/security-credentials/r\"\nclass = \"credentials\""),
        // No cloud of which the firmware may tell has that there.
        ("", "path = \"/latest/meta-data/instance-id\"\nclass = \"identity\""),
    ] {
        assert!(main(cloud, rule), "{cloud}\n{rule}");
    }
    let added = "[[resource]]\npath = \"/latest/nowhere/at-all\"\nclass = \"credentials\"";
    for (cloud, rule) in [
        (aws, "path = \"/latest/meta-data/iam/security-credentials/r\"\nclass = \"credentials\""),
        (aws, "path = [\"/latest/user-data\", \"/*/meta-data/iam/**\"]\nclass = \"credentials\""),
        (aws, "path = \"/**/security-credentials/**\"\nclass = \"credentials\""),
        (aws, "path = \"/latest/meta-data/instance-id\"\nclass = [\"credentials\", \"config\"]"),
        // A path that nobody knows is unknown; one that somebody knows may be so at another endpoint.
        (aws, "path = \"/latest/nowhere/at-all\"\nclass = \"unknown\""),
        (aws, "path = \"/latest/user-data\"\nclass = \"unknown\""),
        // Any known path is written to by a method that it does not list.
        (aws, "path = \"/latest/meta-data/instance-id\"\nclass = \"write\""),
        (aws, &format!("path = \"/latest/nowhere/at-all\"\nclass = \"credentials\"\n{added}")),
        (aws, "path = \"/latest/meta-data/instance-id\""),
        // CloudStack's passwords are asked for by a header, whatever the path.
        ("cloud = \"cloudstack\"", "path = \"/latest/meta-data/instance-id\"\nclass = \"credentials\""),
        // This machine is on AWS, the policy is for any.
        ("", "path = \"/opc/v2/identity/key.pem\"\nclass = \"credentials\""),
        (google, "path = \"/computeMetadata/v1/\"\nclass = \"user-data\""),
    ] {
        assert!(!main(cloud, rule), "{cloud}\n{rule}");
    }
}

#[test]
fn settings_that_do_nothing_are_told() {
    let of = |guard: &str| codes(&format!("mode = \"audit\"\ncloud = \"aws\"\n{guard}\n"));
    assert_eq!(of("[guard.limits]\nconnections = 100\nconnections-per-uid = 200"), ["limit-has-no-effect"]);
    assert_eq!(of("[guard.limits]\nconnections = 100\nconnections-per-uid = 50"), [""; 0]);
    assert_eq!(of("[guard]\naudit-log = \"journald\"\naudit-log-max = \"1 MiB\""), ["no-effect"]);
}

#[test]
fn a_syntax_error_has_its_place() {
    insta::assert_snapshot!(rendered(&[source("policy.toml", "mode = \"audit\"\n[[agent]\nname = \"x\"\n")]));
}

#[test]
fn findings_are_data_too() {
    let found = findings(&[source("policy.toml", "mode = \"audti\"\n")]);
    insta::assert_snapshot!(serde_json::to_string_pretty(&found).unwrap());
}

#[test]
fn colour_only_when_asked() {
    let sources = [source("policy.toml", "mode = 1\n")];
    let found = findings(&sources);
    assert!(!diagnostic::render(&found, &sources, false).contains('\x1b'));
    assert!(diagnostic::render(&found, &sources, true).contains('\x1b'));
}

/// A terminal must not obey what a policy file says, nor a drop-in's author rewrite what `check` shows.
#[test]
fn control_characters_do_not_reach_the_terminal() {
    let sources = [source(
        "policy.toml",
        "mode = \"audit\"\n[[agent]]\nname = \"x\\u001b[2J\"\nunit = \"\u{9b}2J\u{202e}.servic\"\n",
    )];
    let shown = rendered(&sources);
    assert!(!shown.contains(['\x1b', '\u{9b}', '\u{202e}']), "{shown:?}");
}

#[test]
fn no_policy_is_an_error() {
    assert_eq!(findings(&[]).first().map(|one| one.code), Some("no-source"));
    assert_eq!(codes(""), ["no-mode"]);
}

/// With `name` missing, the rest of the table is still checked.
#[test]
fn one_error_does_not_hide_another() {
    let found =
        codes("mode = \"audit\"\n[[agent]]\nunit = \"x\"\nallow = \"secrets\"\n[[rule]]\npath = \"x\"\n");
    assert_eq!(found, ["no-name", "bad-unit", "unknown-class", "no-name", "no-action", "bad-path"]);
}

/// Read as "any", an empty list would open the rule to everybody.
#[test]
fn an_empty_list_is_an_error() {
    let agent = "mode = \"audit\"\n[[agent]]\nname = \"a\"\nuser = 1\nallow = \"identity\"\n";
    for key in ["unit", "cgroup", "user", "group", "exe", "sha256"] {
        let found =
            codes(&format!("mode = \"audit\"\n[[agent]]\nname = \"a\"\n{key} = []\nallow = \"identity\"\n"));
        assert!(found.contains(&"empty-list"), "{key}: {found:?}");
    }
    for key in ["agent", "user", "path", "method", "query", "class", "cloud", "header"] {
        let found = codes(&format!("{agent}[[rule]]\nname = \"r\"\naction = \"allow\"\n{key} = []\n"));
        assert!(found.contains(&"empty-list"), "{key}: {found:?}");
    }
    assert!(codes("mode = \"audit\"\ncloud = []\n").contains(&"empty-list"));
}

/// The guard's uid is exempt from the redirect.
#[test]
fn containers_are_not_behind_an_uplink() {
    let of = |interfaces: &str| codes(&format!("mode = \"audit\"\n[containers]\ninterfaces = {interfaces}"));
    assert_eq!(of("\"ens5\""), ["uplink-of-containers"]);
    assert_eq!(of("[\"docker0\", \"en*\"]"), ["uplink-of-containers"]);
    assert!(of("[\"docker0\", \"br-*\", \"ens50\"]").is_empty());
    assert_eq!(of("[]"), ["empty-list"]);
    assert_eq!(codes("mode = \"audit\"\n[containers]\njudge = true"), ["no-interfaces"]);
    let generous = "mode = \"audit\"\n[containers]\ninterfaces = \"docker0\"\nallow = \"credentials\"";
    assert_eq!(codes(generous), ["secrets-for-containers"]);
}

#[test]
fn the_guard_is_neither_root_nor_nobody() {
    for user in ["\"root\"", "0", "\"0\"", "\"nobody\"", "65534", "4294967295"] {
        let found = codes(&format!("mode = \"audit\"\n[guard]\nuser = {user}\n"));
        assert_eq!(found, ["guard-user"], "{user}");
    }
    assert_eq!(codes("mode = \"audit\"\n[guard]\nuser = 1001\n"), [""; 0]);
    assert_eq!(codes("mode = \"audit\"\n[guard]\nuser = \"later\"\n"), ["unknown-user"]);
}

#[test]
fn a_drop_in_cannot_change_the_daemon() {
    let main = source("policy.toml", "mode = \"enforce\"\n");
    for text in [
        "mode = \"audit\"",
        "cloud = \"gcp\"",
        "v1 = \"allow\"",
        "bind-tokens = \"off\"",
        "[guard]\nport = 1",
        "[unattributed]\nallow = \"credentials\"",
    ] {
        let found = findings(&[main.clone(), source("policy.d/x.toml", text)]);
        assert_eq!(found.iter().map(|one| one.code).collect::<Vec<_>>(), ["main-file-only"], "{text}");
    }
}

#[test]
fn words_about_session_tokens_are_known_or_errors() {
    let agent = |v1: &str| {
        format!(
            "mode = \"enforce\"\n[[agent]]\nname = \"a\"\nunit = \"a.service\"\nuser = 1\nallow = \"identity\"\nv1 = {v1}\n"
        )
    };
    for v1 in ["\"allow\"", "\"deny\"", "\"upgrade\""] {
        assert_eq!(codes(&format!("mode = \"enforce\"\nv1 = {v1}\n")), [""; 0]);
        assert_eq!(codes(&agent(v1)), [""; 0]);
    }
    assert_eq!(codes("mode = \"enforce\"\nv1 = \"denny\"\n"), ["unknown-v1"]);
    assert_eq!(codes(&agent("\"on\"")), ["unknown-v1"]);
    assert_eq!(codes("mode = \"enforce\"\nv1 = false\n"), ["wrong-type"]);
    assert_eq!(codes("mode = \"enforce\"\nbind-tokens = \"on\"\n"), [""; 0]);
    assert_eq!(codes("mode = \"enforce\"\nbind-tokens = \"yes\"\n"), ["unknown-bind-tokens"]);
    assert_eq!(codes("mode = \"enforce\"\nbind_tokens = \"on\"\n"), ["unknown-key"]);
}

#[test]
fn v1_is_warned_of_where_it_undoes_tokens_or_says_nothing() {
    let web = |keys: &str, v1: &str| {
        format!(
            "{keys}\n[[agent]]\nname = \"web\"\nunit = \"nginx.service\"\nuser = 1\nallow = \"identity\"\n{v1}\n"
        )
    };
    let enforce = "mode = \"enforce\"";
    assert_eq!(codes(&web(enforce, "v1 = \"upgrade\"")), ["v1-upgrade-for-web-server"]);
    // Said of everybody, it is said of the web server, too; unless that has its own word.
    assert_eq!(codes(&web("mode = \"enforce\"\nv1 = \"upgrade\"", "")), ["v1-upgrade-for-web-server"]);
    assert_eq!(codes(&web("mode = \"enforce\"\nv1 = \"upgrade\"", "v1 = \"deny\"")), [""; 0]);
    assert_eq!(codes("mode = \"audit\"\nv1 = \"upgrade\"\n"), ["v1-has-no-effect"]);
    assert_eq!(codes("mode = \"audit\"\nv1 = \"deny\"\n"), [""; 0]);
    assert_eq!(codes("mode = \"enforce\"\ncloud = \"gcp\"\nv1 = \"deny\"\n"), ["v1-has-no-effect"]);
}

#[test]
fn settings_have_defaults_and_ranges() {
    let settings = policy("mode = \"audit\"\n").settings().clone();
    assert_eq!((settings.port, settings.workers, settings.self_heal), (169, None, true));
    assert_eq!((settings.user.uid, settings.user.gid), (Some(990), Some(990)));
    assert_eq!((settings.audit_log, settings.limits), (AuditLog::Stdout, Limits::default()));
    let text = "mode = \"audit\"\n[guard]\naudit-log = \"/var/log/imds.jsonl\"\nworkers = 2\n[guard.limits]\nhead-bytes = 8192\n";
    let settings = policy(text).settings().clone();
    assert_eq!(settings.audit_log, AuditLog::File("/var/log/imds.jsonl".to_owned()));
    assert_eq!((settings.workers, settings.limits.head_bytes, settings.limits.headers), (Some(2), 8192, 100));
    for bad in ["port = 0", "port = 65001", "workers = 0", "audit-log = \"log\"", "audit-log = \"/a/../b\""] {
        let found = findings(&[source("p", &format!("mode = \"audit\"\n[guard]\n{bad}\n"))]);
        assert!(found.iter().any(|one| one.severity == Severity::Error), "{bad}");
    }
    let status = "mode = \"audit\"\n[guard]\nstatus-socket = \"/run/x/s.sock\"\nstatus-group = 4\nmetrics = \"[::1]:9169\"\n";
    let settings = policy(status).settings().clone();
    assert_eq!((settings.status_socket.as_deref(), settings.status_gid), (Some("/run/x/s.sock"), Some(4)));
    assert_eq!(settings.metrics, "[::1]:9169".parse().ok());
    let long = format!("status-socket = \"/{}\"", "x".repeat(107));
    for (bad, code) in [
        ("metrics = \"0.0.0.0:9169\"", "metrics"),
        ("metrics = \"10.0.0.1:9169\"", "metrics"),
        ("metrics = \"127.0.0.1:0\"", "metrics"),
        ("metrics = \"9169\"", "metrics"),
        ("status-socket = \"status.sock\"", "status-socket"),
        ("status-socket = \"/run/../etc/s\"", "status-socket"),
        (&*long, "status-socket"),
        ("status-group = [1, 2]", "status-group"),
        ("status-group = \"ghosts\"", "unknown-group"),
    ] {
        assert_eq!(codes(&format!("mode = \"audit\"\n[guard]\n{bad}\n")), [code], "{bad}");
    }
    for key in ["connections", "connections-per-uid", "head-bytes", "headers", "head-seconds", "idle-seconds"]
    {
        for value in ["-1", "0", "9999999999"] {
            let found = codes(&format!("mode = \"audit\"\n[guard.limits]\n{key} = {value}\n"));
            assert_eq!(found, ["out-of-range"], "{key} = {value}");
        }
    }
}

#[test]
fn tls_that_is_not_to_be_had_is_told() {
    let codes_of = |cloud: &str, tls: &str| {
        codes(&format!("mode = \"audit\"\ncloud = {cloud}\n[guard]\nupstream-tls = \"{tls}\"\n"))
    };
    for tls in ["prefer", "require"] {
        assert_eq!(codes_of("\"gcp\"", tls), [""; 0]);
        assert_eq!(codes_of("\"ibm\"", tls), [""; 0]);
        assert_eq!(codes_of("\"aws\"", tls), ["upstream-tls-has-no-effect"]);
        assert_eq!(codes_of("[\"aws\", \"gcp\"]", tls), ["upstream-tls-uncertain"]);
        assert_eq!(codes_of("\"all\"", tls), ["upstream-tls-uncertain"]);
        // Which cloud it will be, the machine tells when it boots.
        assert_eq!(codes_of("\"auto\"", tls), [""; 0]);
    }
    assert_eq!(codes_of("\"all\"", "off"), [""; 0]);
    assert_eq!(codes_of("\"gcp\"", "required"), ["upstream-tls"]);
    assert_eq!(policy("mode = \"audit\"\n").settings().upstream_tls, TlsUse::Off);
}

#[test]
fn what_the_rest_of_the_program_asks() {
    let text =
        "mode = \"audit\"\n[[agent]]\nname = \"a\"\nuser = 1\nexe = \"/snap/a/*/a\"\nallow = \"identity\"\n";
    let policy = policy(text);
    assert_eq!(policy.executables().collect::<Vec<_>>(), ["/snap/a/*/a"]);
    assert!(!policy.needs_digest() && !policy.can_refuse());
    assert_eq!(policy.catalogue().clouds().len(), 1);
}

#[test]
fn only_an_allowed_request_or_audit_mode_makes_a_permit() {
    for (verdict, mode, faulty, wanted) in [
        (Verdict::Allow, Mode::Enforce, false, "rebuilt"),
        (Verdict::Allow, Mode::Enforce, true, "refused"),
        (Verdict::Deny, Mode::Enforce, false, "refused"),
        (Verdict::Deny, Mode::Enforce, true, "refused"),
        (Verdict::Allow, Mode::Audit, false, "as it came"),
        (Verdict::Allow, Mode::Audit, true, "as it came"),
        (Verdict::Deny, Mode::Audit, false, "as it came"),
        (Verdict::Deny, Mode::Audit, true, "as it came"),
    ] {
        let decision = Decision {
            verdict,
            mode,
            reason: Reason::RuleDenies,
            rule: None,
            agent: None,
            upgrades: false,
            withheld: Classes::EMPTY,
            bait: None,
        };
        assert_eq!(decision.would_deny(), verdict == Verdict::Deny && mode == Mode::Audit);
        let got = match decision.act(&asked(faulty)) {
            Action::Refuse(_) => "refused",
            Action::Withhold(_) => "a part",
            Action::Decoy(..) => "a decoy",
            Action::Forward(permit) => match permit.form() {
                Form::Rebuilt(_) => "rebuilt",
                Form::Upgraded(..) => "upgraded",
                Form::AsItCame(_) => "as it came",
                Form::Tunnel => "tunnel",
            },
        };
        assert_eq!(got, wanted, "{verdict:?} {mode:?} {faulty}");
    }
}

#[test]
fn a_decision_that_withholds_makes_no_permit_for_the_whole() {
    let withheld = Classes::of(Class::UserData);
    for (verdict, mode, faulty, wanted) in [
        (Verdict::Allow, Mode::Enforce, false, "a part"),
        (Verdict::Allow, Mode::Enforce, true, "nothing"),
        (Verdict::Deny, Mode::Enforce, false, "nothing"),
        (Verdict::Allow, Mode::Audit, false, "all"),
    ] {
        let decision = Decision {
            verdict,
            mode,
            reason: Reason::EveryoneAllows,
            rule: None,
            agent: None,
            upgrades: false,
            withheld,
            bait: None,
        };
        let got = match decision.act(&asked(faulty)) {
            Action::Refuse(_) | Action::Decoy(..) => "nothing",
            Action::Withhold(permit) if permit.withheld() == withheld => "a part",
            Action::Withhold(_) => "another part",
            Action::Forward(_) => "all",
        };
        assert_eq!(got, wanted, "{verdict:?} {mode:?} {faulty}");
    }
}

/// A catalogue that names no class knows nothing of the path; that "all of none" is granted must not follow.
#[test]
fn a_request_that_touches_nothing_is_not_thereby_allowed() {
    let policy = policy("mode = \"enforce\"\n[everyone]\nallow = \"config\"\n");
    let mut asked = asked(false);
    asked.touched = Touched { classes: Classes::EMPTY, ..Touched::unknown() };
    let caller = crate::caller::Caller::unattributed(crate::caller::Why::Orphan);
    assert_eq!(policy.decide(&caller, &asked).verdict(), Verdict::Deny);
}

/// The line goes to whoever was refused: nothing of the policy, the machine or the request may be in it.
#[test]
fn a_refusal_s_line_tells_no_names() {
    let text = "mode = \"enforce\"\n[[rule]]\nname = \"hidden-name\"\npath = \"/latest/user-data\"\naction = \"deny\"\n";
    let policy = policy(text);
    let caller = crate::caller::Caller::unattributed(crate::caller::Why::Orphan);
    let decision = policy.decide(&caller, &asked(false));
    assert_eq!(decision.rule().map(|rule| &**rule), Some("hidden-name"));
    match decision.act(&asked(false)) {
        Action::Refuse(refusal) => assert_eq!(refusal.line(), "a rule denies this"),
        Action::Forward(_) | Action::Withhold(_) | Action::Decoy(..) => panic!("it was forwarded"),
    }
    let reason = policy.decide(&caller, &asked(true)).reason();
    assert!(!reason.to_string().contains(['/', '\n']));
    assert!(Class::ALL.len() == 7, "a new class needs a look at `PerClass` and the docs");
}
