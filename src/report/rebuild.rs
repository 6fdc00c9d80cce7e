//! From an event back to what was decided about: the caller and the request, as far as the event tells them.
//!
//! An event holds no header but the user agent. Of the others it tells whether a session token was shown, and the rule that
//! decided, whose header then was there. It holds the executable of one process that held the socket. Where what it does not
//! hold may matter, the rebuilt decision is called uncertain.

use std::fmt::Write as _;

use super::record::Record;
use crate::caller::{Attribution, Caller, Cgroup, CgroupPath, Exe, Origin, Process, Processes, Stamps, Why};
use crate::cases::{described, request};
use crate::cloud::{Asked, Class, Endpoint, How, TokenHolder};
use crate::policy::{BindTokens, Decision, Policy};
use crate::request::Fault;

/// A decision about a recorded request by some policy.
#[derive(Debug)]
pub struct Rebuilt {
    /// The caller.
    pub caller: Caller,
    /// What it asked; `None` for a knock at an opaque door.
    pub asked: Option<Asked>,
    /// What the policy says.
    pub decision: Decision,
    /// Whether the event lacks something that the decision may depend on.
    pub uncertain: bool,
}

/// Decides a recorded request again. `None` for events that are not about a request.
#[must_use]
pub fn decide(record: &Record<'_>, policy: &Policy) -> Option<Rebuilt> {
    if !record.is_decision() {
        return None;
    }
    let caller = caller(record);
    let sure = record.holders == Some(1) && record.doubt.is_empty();
    if &*record.action == "opaque" {
        let decision = policy.decide_opaque(&caller);
        let uncertain = !sure && policy.opaque_needs_processes(&caller);
        return Some(Rebuilt { caller, asked: None, decision, uncertain });
    }
    let (asked, faults_known) = asked(record, policy, &known_headers(record, policy));
    let decision = policy.decide(&caller, &asked);
    // A guard that does not bind tokens does not look whose they are.
    let token_unknown =
        policy.bind_tokens() == BindTokens::On && asked.token_holder() == Some(TokenHolder::Unchecked);
    let uncertain = !faults_known
        || token_unknown
        || (!sure && policy.needs_processes(&caller, &asked))
        || may_depend_on_headers(record, policy, &caller, &decision);
    Some(Rebuilt { caller, asked: Some(asked), decision, uncertain })
}

/// The header of the session tokens of the cloud that was asked.
fn token_header<'a>(record: &Record<'_>, policy: &'a Policy) -> Option<&'a str> {
    policy.catalogue().cloud(&record.cloud)?.session().map(|session| session.token_header.as_str())
}

/// Headers that must have been there: a session token's, and one that the rule which decided asks for.
fn known_headers<'a>(record: &'a Record<'_>, policy: &'a Policy) -> Vec<&'a str> {
    let token = token_header(record, policy).filter(|_| &*record.session == "v2");
    let rule = (!record.rule.is_empty()).then(|| policy.headers(Some(&record.rule))).into_iter().flatten();
    token.into_iter().chain(rule).collect()
}

/// Whether headers that may have been there would make another decision.
fn may_depend_on_headers(record: &Record<'_>, policy: &Policy, caller: &Caller, decision: &Decision) -> bool {
    let absent = token_header(record, policy).filter(|_| &*record.session == "v1");
    let is_absent = |name: &str| absent.is_some_and(|absent| absent.eq_ignore_ascii_case(name));
    let possible: Vec<&str> = policy.headers(None).filter(|name| !is_absent(name)).collect();
    !possible.is_empty()
        && policy.decide(caller, &asked(record, policy, &possible).0).verdict() != decision.verdict()
}

fn caller(record: &Record<'_>) -> Caller {
    let stamped = || {
        let uid = record.uid()?;
        let path = CgroupPath::new(&*record.cgroup)?;
        Some(Stamps { uid, cgroup: Cgroup { id: 1, path }, inode: 1, cookie: 1 })
    };
    let attribution = match &*record.attribution {
        "stamped" => stamped().map_or(Attribution::Unattributed(Why::LookupFailed), Attribution::Stamped),
        "degraded" => stamped().map_or(Attribution::Unattributed(Why::LookupFailed), Attribution::Degraded),
        code => Attribution::Unattributed(described::why(code).unwrap_or(Why::LookupFailed)),
    };
    let processes = match (record.holders, &*record.executable) {
        (None, _) if &*record.process_source == "skipped" || record.process_source.is_empty() => {
            Processes::Skipped
        }
        (None, _) => Processes::Unknown,
        // Of several holders the event names one; the others are taken to be like it.
        (Some(_), executable) => Processes::Holders(vec![process(record, executable)]),
    };
    let origin = if &*record.origin == "container" { Origin::Container } else { Origin::Host };
    Caller { origin, attribution, processes }
}

fn process(record: &Record<'_>, executable: &str) -> Process {
    let trusted = record.doubt.is_empty() && !executable.is_empty();
    Process {
        pid: record.pid.unwrap_or(1),
        start_ticks: 0,
        parent: 0,
        uid: record.uid().unwrap_or(0),
        comm: String::new(),
        command_line: String::new(),
        exe: Exe {
            path: executable.to_owned(),
            names: trusted.then(|| executable.to_owned()).into_iter().collect(),
            doubt: record.doubt.to_string(),
            sha256: (!record.sha256.is_empty()).then(|| record.sha256.to_string()),
        },
    }
}

/// The request with these headers, and whether all of its faults are known to this program.
fn asked(record: &Record<'_>, policy: &Policy, headers: &[&str]) -> (Asked, bool) {
    let addr = record.destination_ip.unwrap_or(Endpoint::SHARED);
    let endpoint = Endpoint::new(addr, record.destination_port.unwrap_or(80));
    let known = |code: &str| Fault::ALL.iter().copied().find(|fault| fault.code() == code);
    let faults: Vec<Fault> = record.faults.iter().filter_map(|code| known(code)).collect();
    let all_known = faults.len() == record.faults.len();
    if record.path.is_empty() {
        let fault = faults.first().copied().unwrap_or(Fault::HeadIncomplete);
        let mut asked = Asked::unclear(endpoint, None, fault);
        asked.faults = if faults.is_empty() { vec![fault] } else { faults };
        return (asked, all_known);
    }
    let mut target = encoded(&record.path, false);
    if !record.query.is_empty() {
        target.push('?');
        target += &encoded(&record.query, true);
    }
    let method = if record.method.is_empty() { "GET" } else { &*record.method };
    let headers: Vec<String> = headers.iter().map(|name| format!("{name}: (not recorded)")).collect();
    let mut asked = request::ask(policy.catalogue(), endpoint, &format!("{method} {target}"), &headers);
    if asked.target.is_ok() {
        asked.faults = faults;
    }
    // Events hold no headers, but they tell whether a token was shown, and whose it was.
    match &*record.session {
        "v1" => asked.speaks(How::Without),
        "v2" => {
            let holder = TokenHolder::from_name(&record.token_holder).unwrap_or_default();
            asked.speaks(How::Shows(holder));
        }
        _ => {}
    }
    // What was seen on its own cloud, with all of its headers, is better known than what this policy's catalogue
    // makes of the path alone; unless that catalogue knows more.
    let recorded = record.touched();
    let added = asked.touched.clouds.iter().any(|cloud| cloud == "policy");
    if !recorded.is_empty() && !recorded.contains(Class::Unknown) {
        asked.touched.classes = if added { recorded.union(asked.touched.classes) } else { recorded };
    }
    (asked, all_known)
}

/// Events hold paths decoded and queries as they came; what a URI cannot hold is encoded.
fn encoded(text: &str, keep_percent: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric()
            || b"-._~/!$'()*,:@+".contains(&byte)
            || (keep_percent && b"%&=?;".contains(&byte));
        if plain {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Context, Source, Verdict};

    fn policy(text: &str) -> Policy {
        let source = Source { name: "policy.toml".to_owned(), text: text.to_owned() };
        Policy::compile(&[source], &Context::default()).unwrap().policy
    }

    fn rebuilt(policy: &Policy, fields: &str) -> Rebuilt {
        let line = format!(
            r#"{{"event.dataset":"imds-guard.audit","imds_guard.schema":1,"event.action":"request","imds_guard.verdict":"deny","imds_guard.attribution":"stamped","user.id":"33","imds_guard.cgroup":"/system.slice/web.service",{fields}}}"#
        );
        decide(&Record::read(line.as_bytes()).unwrap(), policy).unwrap()
    }

    #[test]
    fn a_header_that_an_event_implies_is_there_and_others_make_it_uncertain() {
        let policy = policy(
            "mode = \"enforce\"\ncloud = \"aws\"\n[[agent]]\nname = \"web\"\nunit = \"web.service\"\nuser = 33\n\
             [[rule]]\nname = \"with a token\"\nagent = \"web\"\naction = \"allow\"\n\
             header = \"X-aws-ec2-metadata-token\"\n",
        );
        let asked = |more: &str| {
            let fields = format!(
                r#""cloud.provider":"aws-ec2","url.path":"/latest/meta-data/instance-id","imds_guard.classes":["config"]{more}"#
            );
            let rebuilt = rebuilt(&policy, &fields);
            (rebuilt.decision.verdict(), rebuilt.uncertain)
        };
        assert_eq!(asked(r#","imds_guard.session":"v2""#), (Verdict::Allow, false));
        assert_eq!(asked(r#","imds_guard.session":"v1""#), (Verdict::Deny, false));
        assert_eq!(asked(r#","rule.name":"with a token""#), (Verdict::Allow, false));
        assert_eq!(asked(""), (Verdict::Deny, true), "nobody knows");
    }

    #[test]
    fn an_event_is_decided_as_its_request_would_be() {
        let policy = policy(
            "mode = \"enforce\"\ncloud = \"aws\"\n[everyone]\nallow = \"config\"\n[[agent]]\nname = \"web\"\n\
             unit = \"web.service\"\nuser = 33\nexe = \"/usr/bin/web\"\nallow = \"credentials\"\n",
        );
        let path = r#""url.path":"/latest/meta-data/iam/security-credentials/a b","imds_guard.classes":["credentials"]"#;
        let skipped = rebuilt(&policy, path);
        assert_eq!((skipped.decision.verdict(), skipped.uncertain), (Verdict::Deny, true));
        let seen = format!(r#"{path},"imds_guard.process.holders":1,"process.executable":"/usr/bin/web""#);
        let seen = rebuilt(&policy, &seen);
        assert_eq!((seen.decision.verdict(), seen.uncertain), (Verdict::Allow, false));
        let fault =
            rebuilt(&policy, r#""url.path":"/latest/meta-data/","imds_guard.faults":["forwarding-header"]"#);
        assert_eq!(fault.decision.reason().code(), "forwarding-header");
        let newer =
            rebuilt(&policy, r#""url.path":"/latest/meta-data/","imds_guard.faults":["of-the-future"]"#);
        assert!(newer.uncertain);
        let unread = rebuilt(&policy, r#""url.original":"/%zz","imds_guard.faults":["percent-malformed"]"#);
        assert_eq!(unread.decision.reason().code(), "percent-malformed");
    }

    #[test]
    fn an_event_tells_enough_to_judge_its_session_again() {
        let policy = policy(
            "mode = \"enforce\"\ncloud = \"aws\"\nv1 = \"deny\"\nbind-tokens = \"on\"\n[everyone]\nallow = \"config\"\n",
        );
        let path = r#""url.path":"/latest/meta-data/instance-id""#;
        let reason = |fields: &str| {
            let rebuilt = rebuilt(&policy, &format!("{path},{fields}"));
            (rebuilt.decision.reason().code(), rebuilt.uncertain)
        };
        assert_eq!(reason(r#""imds_guard.session":"v1""#), ("token-required", false));
        assert_eq!(reason(r#""imds_guard.session":"v2""#), ("everyone-allows", true));
        let held =
            |holder: &str| format!(r#""imds_guard.session":"v2","imds_guard.token.holder":"{holder}""#);
        assert_eq!(reason(&held("own")), ("everyone-allows", false));
        assert_eq!(reason(&held("foreign")), ("token-of-another", false));
        assert_eq!(reason(&held("unknown")), ("token-unknown", false));
    }
}
