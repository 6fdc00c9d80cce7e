//! Property tests: random policies, callers and requests out of small sets, so that they meet often.

use proptest::prelude::*;

use super::agent::View;
use super::rule::{RuleAction, both, overlap};
use super::{Accounts, Action, Context, Decision, Mode, Policy, Source, Verdict};
use crate::caller::{Attribution, Caller, Cgroup, CgroupPath, Exe, Origin, Process, Processes, Stamps, Why};
use crate::cloud::{Asked, Classes, Endpoint};
use crate::request::{Limits, RawHead};

const CGROUPS: [&str; 6] = [
    "/system.slice/a.service",
    "/system.slice/b.service",
    "/system.slice/system-i.slice/i@1.service",
    "/system.slice/a.service/child",
    "/system.slice/docker-1.scope",
    "/user.slice/user-1.slice/user@1.service/app.slice/a.service",
];

const REQUESTS: [&str; 12] = [
    "GET /latest/meta-data/iam/security-credentials/r",
    "GET /latest/meta-data/iam/security-credentials/s?x=1",
    "GET /latest/dynamic/instance-identity/document",
    "GET /latest/user-data",
    "GET /latest/meta-data/instance-id",
    "GET /nobody/knows",
    "PUT /latest/api/token",
    "GET /latest/%2566",
    "GET /latest/meta-data/iam/security-credentials/s?X=1&y",
    "GET /latest/meta-data/iam/info?z=%26X=1",
    // With a header of their own.
    "GET /latest/user-data X-One",
    "GET /latest/meta-data/iam/security-credentials/r?y x-two",
];

const AGENTS: [&str; 8] = [
    "unit = \"a.service\"",
    "unit = \"a.service\"\nsubtree = true\nuser = 1",
    "unit = [\"b.service\", \"i@*.service\"]\nuser = [0, 1]",
    "cgroup = \"/system.slice/docker-1.scope\"",
    "cgroup = \"/system.slice/a.service\"\nsubtree = true",
    "user = 1",
    "unit = \"a.service\"\nexe = \"/bin/a\"",
    "exe = \"/bin/a\"\nweak = true",
];

const CLASSES: [&str; 5] = ["credentials", "identity", "user-data", "config", "unknown"];

const CONDITIONS: [&str; 18] = [
    "",
    "path = \"/latest/meta-data/iam/security-credentials/r\"",
    "path = [\"/*/dynamic/**\", \"/latest/user-data\"]",
    "path = \"/{latest,1.0}/meta-data/**\"\nmethod = \"GET\"",
    "class = \"credentials\"",
    "class = [\"identity\", \"config\"]\nuser = 1",
    "user = [0, 1]",
    "query = \"x=1\"",
    "query = [\"Y\", \"z=2\"]",
    "path = \"/**/r\"",
    "path = [\"/**/*-data\", \"/*/meta-data/{iam/info,instance-id}\"]",
    "path = \"/*/*/i*m/**\"",
    "path = \"/**/secur*-cred*/*\"",
    "path = \"/**\"",
    "header = \"x-one\"",
    "header = [\"X-Two\", \"x-three\"]\nclass = \"credentials\"",
    "path = \"/latest/**\"\nheader = \"x-one\"\nuser = [1, 2]",
    "path = \"/*/meta-data/**\"\nquery = [\"x=1\", \"y\"]",
];

/// Pieces of a policy that may stand in any order and in any file.
#[derive(Debug, Clone)]
struct Pieces {
    mode: &'static str,
    everyone: Vec<&'static str>,
    tables: Vec<String>,
}

impl Pieces {
    fn compile(&self, files: usize) -> Policy {
        let mut sources: Vec<Source> =
            (0..files).map(|at| Source { name: at.to_string(), text: String::new() }).collect();
        sources[0].text =
            format!("mode = {:?}\ncloud = \"aws\"\n[everyone]\nallow = {:?}\n", self.mode, self.everyone);
        for (at, table) in self.tables.iter().enumerate() {
            sources[at % files].text += table;
        }
        let context = Context { accounts: Accounts::parse("imds-guard:x:990:990", ""), ..Context::default() };
        match Policy::compile(&sources, &context) {
            Ok(compiled) => compiled.policy,
            Err(errors) => panic!("{}", super::diagnostic::render(&errors, &sources, false)),
        }
    }
}

fn mode() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["audit", "enforce"])
}

fn agents() -> impl Strategy<Value = Vec<String>> {
    let one = (prop::sample::select(&AGENTS[..]), prop::sample::subsequence(&CLASSES[..], 0..=3));
    prop::collection::vec(one, 1..5).prop_map(|agents| {
        let tables = agents.into_iter().enumerate();
        tables
            .map(|(at, (who, allow))| format!("[[agent]]\nname = \"{at}\"\n{who}\nallow = {allow:?}\n"))
            .collect()
    })
}

/// A rule about an agent, if there is one of that number.
fn rule(name: &str, agents: usize, parts: &(Option<usize>, &str, Option<&str>, bool)) -> String {
    let (agent, condition, mode, deny) = parts;
    let agent = agent.filter(|agent| *agent < agents).map(|agent| format!("agent = \"{agent}\"\n"));
    let mode = mode.map(|mode| format!("mode = {mode:?}\n"));
    let action = if *deny { "deny" } else { "allow" };
    let (agent, mode) = (agent.unwrap_or_default(), mode.unwrap_or_default());
    format!("[[rule]]\nname = {name:?}\n{agent}{condition}\naction = {action:?}\n{mode}")
}

fn rule_parts() -> impl Strategy<Value = (Option<usize>, &'static str, Option<&'static str>, bool)> {
    (
        prop::option::of(0..5_usize),
        prop::sample::select(&CONDITIONS[..]),
        prop::option::of(mode()),
        any::<bool>(),
    )
}

fn pieces() -> impl Strategy<Value = (Pieces, usize)> {
    let everyone = prop::sample::subsequence(&CLASSES[..], 0..=2);
    (mode(), everyone, agents(), prop::collection::vec(rule_parts(), 0..6)).prop_map(
        |(mode, everyone, agents, rules)| {
            let count = agents.len();
            let rules = rules.iter().enumerate().map(|(at, parts)| rule(&format!("r{at}"), count, parts));
            (Pieces { mode, everyone, tables: agents.into_iter().chain(rules).collect() }, count)
        },
    )
}

fn processes() -> Vec<Processes> {
    let process = |names: &[&str]| Process {
        pid: 1,
        start_ticks: 1,
        parent: 0,
        uid: 0,
        comm: String::new(),
        command_line: String::new(),
        exe: Exe {
            path: String::new(),
            names: names.iter().map(ToString::to_string).collect(),
            doubt: String::new(),
            sha256: None,
        },
    };
    vec![
        Processes::Skipped,
        Processes::Unknown,
        Processes::Holders(vec![process(&["/bin/a"])]),
        Processes::Holders(vec![process(&["/bin/b"])]),
        Processes::Holders(vec![process(&["/bin/a"]), process(&["/bin/b"])]),
        Processes::Holders(vec![process(&[])]),
    ]
}

fn callers() -> Vec<Caller> {
    let mut callers = vec![Caller::unattributed(Why::Orphan)];
    for uid in [0, 1, 2] {
        for path in CGROUPS {
            for processes in processes() {
                let cgroup = Cgroup { id: 1, path: CgroupPath::new(path).unwrap() };
                let stamps = Stamps { uid, cgroup, inode: 1, cookie: 1 };
                for origin in [Origin::Host, Origin::Container] {
                    let (attribution, processes) = (Attribution::Stamped(stamps.clone()), processes.clone());
                    callers.push(Caller { origin, attribution, processes });
                }
            }
        }
    }
    callers
}

fn requests(policy: &Policy) -> Vec<Asked> {
    let endpoint = Endpoint::new(Endpoint::SHARED, 80);
    let read = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let header = words.next().map(|name| format!("{name}: a\r\n")).unwrap_or_default();
        let head = format!("{method} {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n{header}\r\n");
        let head = RawHead::read(head.as_bytes(), Limits { head_bytes: 4096, headers: 16 }).unwrap();
        Asked::read(policy.catalogue(), endpoint, head)
    };
    REQUESTS.iter().map(|line| read(line)).collect()
}

/// Everything that a policy decides about everybody.
fn decisions(policy: &Policy) -> Vec<(Decision, bool)> {
    let requests = requests(policy);
    let all = callers();
    let pairs = all.iter().flat_map(|caller| requests.iter().map(move |asked| (caller, asked)));
    pairs
        .map(|(caller, asked)| {
            let decision = policy.decide(caller, asked);
            let refused = matches!(decision.clone().act(asked), Action::Refuse(_));
            (decision, refused)
        })
        .collect()
}

/// The verdict without any index: every agent and every rule is looked at. And the first deny rule by name that is
/// carried out, if any is.
fn slow_verdict(policy: &Policy, caller: &Caller, asked: &Asked) -> (Verdict, Option<String>) {
    let (Ok(target), true) = (&asked.target, asked.faults.is_empty()) else { return (Verdict::Deny, None) };
    let touched = asked.touched.classes;
    let local = caller.origin == Origin::Host;
    let mut granted = match (local, caller.stamps().is_some()) {
        (true, true) => policy.everyone,
        (true, false) => policy.unattributed,
        (false, _) => Classes::EMPTY, // no policy here has [containers]
    };
    let grants = local && caller.stamps().is_some();
    let mut groups = vec![(&policy.rules_for_all, grants, true, super::evaluate::all_classes())];
    for agent in &policy.agents {
        let Some(stamps) = caller.stamps() else { continue };
        let fit = agent.fit(stamps, caller.origin, View::Actual(&caller.processes));
        groups.push((&agent.rules, fit.grants, fit.denies, agent.ceiling));
        if fit.grants {
            granted = granted.union(both(agent.allow, agent.ceiling));
        }
    }
    if let Some(stamps) = caller.stamps() {
        let host = local && !super::unit::holds_container(stamps.cgroup.path.as_str());
        let by_uid = policy.rules_by_uid.get(&stamps.uid).into_iter();
        groups.extend(by_uid.map(|rules| (rules, host, true, super::evaluate::all_classes())));
    }
    let uid = caller.stamps().map(|stamps| stamps.uid);
    let (mut denied, mut first) = (false, None::<String>);
    for (rules, grants, denies, ceiling) in groups {
        for rule in rules.all().map(|id| &policy.rules[id as usize]) {
            let meant = rule.uids.as_ref().is_none_or(|uids| uid.is_some_and(|uid| uids.contains(&uid)));
            if !meant || !rule.matches(asked, target, touched) {
                continue;
            }
            if denies && rule.action == RuleAction::Deny {
                denied = true;
                let name = (policy.mode_of(rule) == Mode::Enforce).then(|| rule.name.to_string());
                first = first.into_iter().chain(name).min();
            }
            if grants && rule.action == RuleAction::Allow {
                granted = granted.union(both(rule.grants(touched), ceiling));
            }
        }
    }
    let verdict = if denied || !touched.is_subset_of(granted) { Verdict::Deny } else { Verdict::Allow };
    (verdict, first)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn order_means_nothing((pieces, _) in pieces(), shuffled in any::<prop::sample::Index>(), files in 1..4_usize) {
        let mut other = pieces.clone();
        let by = shuffled.index(other.tables.len());
        other.tables.rotate_left(by);
        if by % 2 == 0 {
            other.tables.reverse();
        }
        prop_assert_eq!(decisions(&pieces.compile(1)), decisions(&other.compile(files)));
    }

    #[test]
    fn a_deny_more_never_allows_more((pieces, agents) in pieces(), parts in rule_parts()) {
        let mut stricter = pieces.clone();
        let (agent, condition, mode, _) = parts;
        stricter.tables.push(rule("a deny more", agents, &(agent, condition, mode, true)));
        let (before, after) = (pieces.compile(1), stricter.compile(1));
        for ((was, refused), (is, still_refused)) in decisions(&before).into_iter().zip(decisions(&after)) {
            prop_assert!(was.verdict() == Verdict::Allow || is.verdict() == Verdict::Deny, "{was:?} became {is:?}");
            prop_assert!(!refused || still_refused, "{was:?} was refused, {is:?} is not");
        }
    }

    #[test]
    fn processes_are_asked_for_whenever_they_matter((pieces, _) in pieces()) {
        let policy = pieces.compile(1);
        for asked in requests(&policy) {
            for one in callers() {
                if policy.needs_processes(&one, &asked) {
                    continue;
                }
                let known = policy.decide(&one, &asked);
                for processes in processes() {
                    let other = policy.decide(&Caller { processes, ..one.clone() }, &asked);
                    prop_assert_eq!((known.verdict(), known.mode()), (other.verdict(), other.mode()));
                }
            }
        }
    }

    #[test]
    fn the_indices_leave_nothing_out((pieces, _) in pieces()) {
        let policy = pieces.compile(1);
        for asked in requests(&policy) {
            for caller in callers() {
                let decision = policy.decide(&caller, &asked);
                let (verdict, first) = slow_verdict(&policy, &caller, &asked);
                prop_assert_eq!(decision.verdict(), verdict);
                if let Some(first) = first {
                    prop_assert_eq!(decision.rule().map(|name| &**name), Some(&*first));
                }
            }
        }
    }

    #[test]
    fn nothing_passes_under_enforce_without_a_grant((pieces, _) in pieces()) {
        let policy = Pieces { mode: "enforce", ..pieces }.compile(1);
        for asked in requests(&policy) {
            for caller in callers() {
                let decision = policy.decide(&caller, &asked);
                let audited = decision.mode() == Mode::Audit;
                let refused = matches!(decision.clone().act(&asked), Action::Refuse(_));
                prop_assert!(refused || decision.verdict() == Verdict::Allow || audited);
                // Only a rule on trial may let a denial pass, and then something granted the request.
                prop_assert!(!(audited && decision.verdict() == Verdict::Deny) || decision.rule().is_some());
                prop_assert!(asked.target.is_ok() || refused, "an unclear target passed");
            }
        }
    }

    /// Whatever is asked, by whomever: an answer, and the same one again.
    #[test]
    fn decide_never_panics((pieces, _) in pieces(), lines in prop::collection::vec("[A-Z]{1,7} /[a-z/.%0-9*;?&=-]{0,40}", 1..6)) {
        let policy = pieces.compile(1);
        for line in lines {
            let mut words = line.splitn(3, ' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let header = words.next().map(|name| format!("{name}: a\r\n")).unwrap_or_default();
        let head = format!("{method} {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n{header}\r\n");
            let Ok(head) = RawHead::read(head.as_bytes(), Limits::default()) else { continue };
            let asked = Asked::read(policy.catalogue(), Endpoint::new(Endpoint::SHARED, 80), head);
            for caller in callers() {
                prop_assert_eq!(policy.decide(&caller, &asked), policy.decide(&caller, &asked));
                drop(policy.trace(&caller, &asked));
            }
        }
    }

    #[test]
    fn any_text_gives_a_policy_or_errors(text in "(\\[\\[?(agent|rule|guard|everyone)\\]?\\]\n|(name|unit|user|exe|path|action|mode|allow|port) ?= ?(\"[a-z/*.@é]{0,9}\"|[0-9]{1,6}|\\[\\]|true|\\[\"x\", 3\\])\n|[ -~é]{0,3}\n){0,12}") {
        let sources = [Source { name: "policy.toml".to_owned(), text }];
        match Policy::compile(&sources, &Context::default()) {
            Ok(compiled) => drop(super::diagnostic::render(&compiled.warnings, &sources, true)),
            Err(errors) => {
                prop_assert!(errors.iter().any(|one| one.severity == super::Severity::Error));
                drop(super::diagnostic::render(&errors, &sources, false));
            }
        }
    }
}

#[test]
fn sets_of_classes() {
    let of = |names: &[&str]| names.iter().filter_map(|name| crate::cloud::Class::from_name(name)).collect();
    assert_eq!(both(of(&["config", "write"]), of(&["write", "session"])), of(&["write"]));
    assert!(!overlap(of(&["config"]), of(&["write"])));
}
