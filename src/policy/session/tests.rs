//! Every treatment of requests with and without session tokens, and what holds of them for random policies.

use proptest::prelude::*;

use super::super::{Accounts, Context, Source};
use super::super::{Action, Form, diagnostic};
use super::*;
use crate::caller::{Attribution, Cgroup, CgroupPath, Exe, Origin, Process, Processes, Stamps, Why};
use crate::cases::request;
use crate::cloud::Endpoint;

const TOKEN: &str = "X-aws-ec2-metadata-token: AQAE";
const CONFIG: &str = "GET /latest/meta-data/instance-id";
const KEYS: &str = "GET /latest/meta-data/iam/security-credentials/r";

fn policy(text: &str) -> Policy {
    let sources = [Source { name: "policy.toml".to_owned(), text: text.to_owned() }];
    let context = Context { accounts: Accounts::parse("imds-guard:x:990:990", ""), ..Context::default() };
    match Policy::compile(&sources, &context) {
        Ok(compiled) => compiled.policy,
        Err(errors) => panic!("{}", diagnostic::render(&errors, &sources, false)),
    }
}

fn caller(unit: &str) -> Caller {
    let path = CgroupPath::new(format!("/system.slice/{unit}.service")).unwrap();
    let stamps = Stamps { uid: 1, cgroup: Cgroup { id: 1, path }, inode: 1, cookie: 1 };
    Caller { origin: Origin::Host, attribution: Attribution::Stamped(stamps), processes: Processes::Skipped }
}

fn running(unit: &str, exe: &str) -> Caller {
    let exe = Exe { path: exe.to_owned(), names: vec![exe.to_owned()], doubt: String::new(), sha256: None };
    let (comm, command_line) = (String::new(), String::new());
    let process = Process { pid: 1, start_ticks: 1, parent: 0, uid: 1, comm, command_line, exe };
    Caller { processes: Processes::Holders(vec![process]), ..caller(unit) }
}

fn ask(policy: &Policy, line: &str, headers: &[&str]) -> Asked {
    let headers: Vec<String> = headers.iter().map(ToString::to_string).collect();
    request::ask(policy.catalogue(), Endpoint::new(Endpoint::SHARED, 80), line, &headers)
}

/// What happens to a request, in one word: the form in which it goes, or the reason why it does not.
fn fate(policy: &Policy, caller: &Caller, line: &str, headers: &[&str]) -> &'static str {
    let asked = ask(policy, line, headers);
    fate_of(policy, caller, &asked)
}

fn fate_of(policy: &Policy, caller: &Caller, asked: &Asked) -> &'static str {
    match policy.decide(caller, asked).act(asked) {
        Action::Refuse(refusal) => refusal.decision().reason().code(),
        Action::Withhold(_) => "redacted",
        Action::Decoy(..) => "decoy",
        Action::Forward(permit) => match permit.form() {
            Form::Rebuilt(_) => "rebuilt",
            Form::Upgraded(..) => "upgraded",
            Form::AsItCame(_) => "as it came",
            Form::Tunnel => "tunnel",
        },
    }
}

fn aws(mode: &str, keys: &str, tables: &str) -> Policy {
    policy(&format!(
        "mode = \"{mode}\"\ncloud = \"aws\"\n{keys}\n[everyone]\nallow = [\"config\", \"session\"]\n{tables}"
    ))
}

fn agent(name: &str, keys: &str) -> String {
    format!("[[agent]]\nname = \"{name}\"\nunit = \"{name}.service\"\nallow = \"credentials\"\n{keys}\n")
}

#[test]
fn without_a_word_nothing_changes() {
    let policy = aws("enforce", "", &agent("a", ""));
    assert_eq!(fate(&policy, &caller("a"), KEYS, &[]), "rebuilt");
    assert_eq!(fate(&policy, &caller("a"), KEYS, &[TOKEN]), "rebuilt");
    assert_eq!(fate(&policy, &caller("x"), KEYS, &[TOKEN]), "no-agent");
}

#[test]
fn deny_wants_a_token_for_everything_but_the_token() {
    let policy = aws("enforce", "v1 = \"deny\"", &agent("a", ""));
    for caller in [caller("a"), caller("x")] {
        assert_eq!(fate(&policy, &caller, CONFIG, &[]), "token-required");
        assert_eq!(fate(&policy, &caller, CONFIG, &[TOKEN]), "rebuilt");
        assert_eq!(fate(&policy, &caller, "PUT /latest/api/token", &[]), "rebuilt");
    }
    assert_eq!(fate(&policy, &caller("a"), KEYS, &[]), "token-required");
    // Some services take an empty header for none at all.
    assert_eq!(fate(&policy, &caller("a"), KEYS, &["X-aws-ec2-metadata-token: "]), "token-required");
    // A token opens nothing, and its absence does not hide a denial.
    assert_eq!(fate(&policy, &caller("x"), KEYS, &[TOKEN]), "no-agent");
    assert_eq!(fate(&policy, &caller("x"), KEYS, &[]), "no-agent");
    let answer = |asked: &Asked| match policy.decide(&caller("a"), asked).act(asked) {
        Action::Refuse(refusal) => refusal.answer(policy.catalogue(), asked).status,
        Action::Forward(_) | Action::Withhold(_) | Action::Decoy(..) => 200,
    };
    assert_eq!(answer(&ask(&policy, CONFIG, &[])), 401, "the cloud's own answer");
    assert_eq!(answer(&ask(&policy, "GET /latest/user-data", &[TOKEN])), 404);
}

#[test]
fn a_path_that_no_cloud_knows_is_no_way_around_the_token() {
    let unknown = "GET /latest/of-the-future";
    let keys = "v1 = \"deny\"";
    let unlisted = |cloud: &str| {
        policy(&format!("mode = \"enforce\"\ncloud = {cloud}\n{keys}\n[everyone]\nallow = \"unknown\"\n"))
    };
    assert_eq!(fate(&unlisted("\"aws\""), &caller("x"), unknown, &[]), "token-required");
    assert_eq!(fate(&unlisted("\"aws\""), &caller("x"), unknown, &[TOKEN]), "rebuilt");
    // Where another cloud may be behind the address, nobody knows that there are tokens.
    assert_eq!(fate(&unlisted("[\"aws\", \"gcp\"]"), &caller("x"), unknown, &[]), "rebuilt");
    assert_eq!(fate(&unlisted("\"gcp\""), &caller("x"), unknown, &[]), "rebuilt");
}

#[test]
fn another_method_is_no_way_around_the_token() {
    let policy = policy(
        "mode = \"enforce\"\ncloud = \"aws\"\nv1 = \"deny\"\n[everyone]\nallow = [\"config\", \"write\"]\n",
    );
    assert_eq!(fate(&policy, &caller("x"), "POST /latest/meta-data/instance-id", &[]), "token-required");
}

#[test]
fn an_agent_s_own_word_goes_before_the_policy_s() {
    let tables =
        [agent("legacy", "v1 = \"upgrade\""), agent("strict", "v1 = \"deny\""), agent("plain", "")].concat();
    let fates = |keys: &str| {
        let policy = aws("enforce", keys, &tables);
        ["legacy", "strict", "plain", "x"].map(|unit| fate(&policy, &caller(unit), CONFIG, &[]))
    };
    assert_eq!(fates(""), ["upgraded", "token-required", "rebuilt", "rebuilt"]);
    assert_eq!(fates("v1 = \"deny\""), ["upgraded", "token-required", "token-required", "token-required"]);
    // In general, too, only those who are listed have a token lent.
    assert_eq!(fates("v1 = \"upgrade\""), ["upgraded", "token-required", "upgraded", "rebuilt"]);
    let nobody = Caller::unattributed(Why::Orphan);
    let policy =
        policy("mode = \"enforce\"\ncloud = \"aws\"\nv1 = \"upgrade\"\n[unattributed]\nallow = \"config\"\n");
    assert_eq!(fate(&policy, &nobody, CONFIG, &[]), "rebuilt");
}

#[test]
fn who_shows_a_token_or_tries_to_is_never_upgraded() {
    let policy = aws("enforce", "", &agent("a", "v1 = \"upgrade\""));
    assert_eq!(fate(&policy, &caller("a"), KEYS, &[]), "upgraded");
    assert_eq!(fate(&policy, &caller("a"), KEYS, &[TOKEN]), "rebuilt");
    assert_eq!(fate(&policy, &caller("a"), KEYS, &["X-aws-ec2-metadata-token: "]), "rebuilt");
    assert_eq!(fate(&policy, &caller("a"), "PUT /latest/api/token", &[]), "rebuilt");
    assert!(!policy.decide(&caller("a"), &ask(&policy, "GET /latest/api/token", &[])).upgrades());
    // What is denied stays denied.
    assert_eq!(fate(&policy, &caller("a"), "GET /latest/user-data", &[]), "agent-lacks-class");
    // Two tokens are none, whichever of them a service takes.
    let twice = ask(&policy, KEYS, &[TOKEN, TOKEN]);
    assert_eq!(twice.spoken.as_ref().map(|spoken| &spoken.how), Some(&How::Malformed));
    assert_eq!(twice.token(), None);
}

#[test]
fn only_a_read_has_a_token_lent() {
    let agent = agent("a", "v1 = \"upgrade\"").replace("\"credentials\"", "[\"write\", \"credentials\"]");
    let policy = aws("enforce", "", &agent);
    assert_eq!(fate(&policy, &caller("a"), CONFIG, &[]), "upgraded");
    assert_eq!(fate(&policy, &caller("a"), "POST /latest/meta-data/instance-id", &[]), "rebuilt");
}

#[test]
fn audit_changes_and_refuses_nothing() {
    for keys in ["v1 = \"deny\"\nbind-tokens = \"on\"", "v1 = \"upgrade\"\nbind-tokens = \"on\""] {
        let policy = aws("audit", keys, &agent("a", ""));
        let mut asked = ask(&policy, KEYS, &[TOKEN]);
        asked.speaks(How::Shows(TokenHolder::Foreign));
        assert_eq!(fate(&policy, &caller("a"), KEYS, &[]), "as it came");
        assert_eq!(fate_of(&policy, &caller("a"), &asked), "as it came");
        let decision = policy.decide(&caller("a"), &asked);
        assert!(decision.would_deny() && decision.reason() == Reason::TokenOfAnother);
    }
    let policy = aws("audit", "v1 = \"deny\"", "");
    assert!(policy.decide(&caller("x"), &ask(&policy, CONFIG, &[])).would_deny());
}

#[test]
fn a_rule_on_trial_lets_nothing_pass_that_lacks_a_token() {
    let trial = "[[rule]]\nname = \"trial\"\nclass = \"config\"\naction = \"deny\"\nmode = \"audit\"\n";
    let policy = aws("enforce", "v1 = \"deny\"\nbind-tokens = \"on\"", trial);
    assert_eq!(fate(&policy, &caller("x"), CONFIG, &[]), "token-required");
    let mut asked = ask(&policy, CONFIG, &[TOKEN]);
    assert_eq!(fate_of(&policy, &caller("x"), &asked), "as it came");
    asked.speaks(How::Shows(TokenHolder::Unknown));
    assert_eq!(fate_of(&policy, &caller("x"), &asked), "token-unknown");
}

#[test]
fn a_token_works_for_whom_it_is() {
    for (bind, foreign, unknown) in [
        ("off", "rebuilt", "rebuilt"),
        ("audit", "rebuilt", "rebuilt"),
        ("on", "token-of-another", "token-unknown"),
    ] {
        let policy = aws("enforce", &format!("bind-tokens = \"{bind}\""), &agent("a", ""));
        for (holder, wanted) in [
            (TokenHolder::Own, "rebuilt"),
            (TokenHolder::Older, "rebuilt"),
            (TokenHolder::Unchecked, "rebuilt"),
            (TokenHolder::Foreign, foreign),
            (TokenHolder::Unknown, unknown),
        ] {
            let mut asked = ask(&policy, KEYS, &[TOKEN]);
            asked.speaks(How::Shows(holder));
            assert_eq!(fate_of(&policy, &caller("a"), &asked), wanted, "{bind} {holder}");
            let decision = policy.decide(&caller("a"), &asked);
            if decision.verdict() == Verdict::Deny {
                assert_eq!(policy.catalogue().token_refusal(&asked).status, 401);
            }
        }
    }
}

/// A legacy program in the same unit as others: the executable decides who has a token lent.
#[test]
fn doubt_about_an_executable_lends_nothing_and_frees_from_nothing() {
    let bound = |v1: &str| agent("a", &format!("exe = \"/bin/a\"\nv1 = \"{v1}\""));
    let lending = aws("enforce", "", &bound("upgrade"));
    assert!(lending.needs_processes(&caller("a"), &ask(&lending, CONFIG, &[])));
    assert!(!lending.needs_processes(&caller("a"), &ask(&lending, CONFIG, &[TOKEN])));
    assert_eq!(fate(&lending, &running("a", "/bin/a"), CONFIG, &[]), "upgraded");
    assert_eq!(fate(&lending, &running("a", "/bin/b"), CONFIG, &[]), "rebuilt");
    assert_eq!(fate(&lending, &caller("a"), CONFIG, &[]), "rebuilt");
    let denying = aws("enforce", "", &bound("deny"));
    assert_eq!(fate(&denying, &running("a", "/bin/a"), CONFIG, &[]), "token-required");
    assert_eq!(fate(&denying, &caller("a"), CONFIG, &[]), "token-required");
    assert_eq!(fate(&denying, &running("a", "/bin/b"), CONFIG, &[]), "rebuilt");
    let before = lending.decide(&running("a", "/bin/a"), &ask(&lending, CONFIG, &[]));
    let after = lending.decide(&running("a", "/bin/b"), &ask(&lending, CONFIG, &[]));
    assert!(
        !before.does_the_same_as(&after),
        "an answer that was fetched with a lent token would be released"
    );
}

#[test]
fn clouds_without_a_version_1_have_nothing_to_upgrade() {
    for (cloud, line) in [("linode", "GET /v1/instance"), ("ibm", "GET /metadata/v1/instance")] {
        let text = |keys: &str| {
            format!(
                "mode = \"enforce\"\ncloud = \"{cloud}\"\n{keys}\n[everyone]\nallow = [\"config\"]\n[[agent]]\nname = \"a\"\nunit = \"a.service\"\nallow = \"config\"\n"
            )
        };
        assert_eq!(fate(&policy(&text("v1 = \"upgrade\"")), &caller("a"), line, &[]), "rebuilt");
        assert_eq!(fate(&policy(&text("v1 = \"deny\"")), &caller("a"), line, &[]), "token-required");
    }
}

const AGENTS: [&str; 4] = [
    "unit = \"a.service\"",
    "unit = [\"a.service\", \"b.service\"]\nexe = \"/bin/a\"",
    "user = 1",
    "unit = \"b.service\"\nuser = 2",
];

const WORDS: [Option<V1>; 4] = [None, Some(V1::Allow), Some(V1::Upgrade), Some(V1::Deny)];

fn callers() -> Vec<Caller> {
    let units = ["a", "b", "c"];
    let known = units.map(caller).into_iter().chain(units.map(|unit| running(unit, "/bin/a")));
    known
        .chain(units.map(|unit| running(unit, "/bin/b")))
        .chain([Caller::unattributed(Why::Orphan)])
        .collect()
}

/// The strictest word of all agents, each looked at; else the policy's, which lends to the listed alone.
fn slow_v1(policy: &Policy, caller: &Caller) -> V1 {
    let (mut word, mut is_listed) = (None, false);
    for agent in &policy.agents {
        let Some(stamps) = caller.stamps() else { continue };
        let fit = agent.fit(stamps, caller.origin, View::Actual(&caller.processes));
        is_listed |= fit.grants;
        word = match agent.v1 {
            Some(V1::Deny) if fit.denies => Some(V1::Deny),
            Some(v1) if v1 != V1::Deny && fit.grants => word.max(Some(v1)),
            _ => word,
        };
    }
    match (word, policy.v1) {
        (Some(word), _) => word,
        (None, V1::Upgrade) if !is_listed => V1::Allow,
        (None, general) => general,
    }
}

proptest! {
    /// Tokens take and never add, the order of agents means nothing, and nobody has a token lent but by a word.
    #[test]
    fn tokens_take_from_what_is_granted_and_add_nothing(
        general in prop::sample::select(&WORDS[..]),
        bind in prop::sample::select(vec!["off", "audit", "on"]),
        mode in prop::sample::select(vec!["audit", "enforce"]),
        words in prop::collection::vec(prop::sample::select(&WORDS[..]), 4),
        turn in 0..4_usize,
    ) {
        let word = |v1: &Option<V1>| v1.map(|v1| format!("v1 = \"{}\"\n", v1.name())).unwrap_or_default();
        let table = |(at, (who, v1)): (usize, (&&str, &Option<V1>)), with: bool| {
            let v1 = if with { word(v1) } else { String::new() };
            format!("[[agent]]\nname = \"{at}\"\n{who}\nallow = \"credentials\"\n{v1}")
        };
        let tables = |with: bool| -> Vec<String> {
            AGENTS.iter().zip(&words).enumerate().map(|one| table(one, with)).collect()
        };
        let keys = format!("{}bind-tokens = \"{bind}\"\n", word(&general));
        let with = aws(mode, &keys, &tables(true).concat());
        let mut turned = tables(true);
        turned.rotate_left(turn);
        let turned = aws(mode, &keys, &turned.concat());
        let without = aws(mode, "", &tables(false).concat());
        for line in [CONFIG, KEYS, "PUT /latest/api/token", "GET /latest/user-data"] {
            for (headers, how) in [
                (&[][..], How::Without),
                (&[TOKEN][..], How::Shows(TokenHolder::Own)),
                (&[TOKEN][..], How::Shows(TokenHolder::Foreign)),
                (&[TOKEN][..], How::Shows(TokenHolder::Unknown)),
            ] {
                let mut asked = ask(&with, line, headers);
                if line != "PUT /latest/api/token" {
                    asked.speaks(how);
                }
                for caller in callers() {
                    let (is, was) = (with.decide(&caller, &asked), without.decide(&caller, &asked));
                    prop_assert_eq!(&is, &turned.decide(&caller, &asked));
                    prop_assert!(was.verdict() == Verdict::Allow || !is.upgrades() && is.verdict() == Verdict::Deny);
                    let v1 = slow_v1(&with, &caller);
                    let is_v1 = asked.session_version() == Some("v1");
                    prop_assert_eq!(is.reason() == Reason::TokenRequired, is_v1 && v1 == V1::Deny && was.verdict() == Verdict::Allow);
                    let lends = is_v1 && v1 == V1::Upgrade && mode == "enforce" && was.verdict() == Verdict::Allow;
                    prop_assert_eq!(is.upgrades(), lends);
                    if !with.needs_processes(&caller, &asked) {
                        let unseen = Caller { processes: Processes::Unknown, ..caller.clone() };
                        prop_assert!(is.does_the_same_as(&with.decide(&unseen, &asked)));
                    }
                }
            }
        }
    }
}
