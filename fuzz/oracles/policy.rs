//! Policies: any text compiles or tells why not; whatever compiles decides about anybody without panic, and a deny more
//! never allows more.

use imds_guard::caller::{
    Attribution, Caller, Cgroup, CgroupPath, Exe, Origin, Process, Processes, Stamps, Why,
};
use imds_guard::cloud::{Asked, Endpoint};
use imds_guard::policy::{Accounts, Action, Context, Decision, Policy, Source, Verdict, diagnostic};
use imds_guard::request::{Limits, RawHead};

const ACCOUNTS: &str = "root:x:0:0::/:/\nimds-guard:x:990:990::/:/\napp:x:1000:1000::/:/\n";

/// A request target up to the first line feed, a policy behind it.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (target, policy) = text.split_once('\n').unwrap_or(("/", text));
    let Some(before) = compile(policy) else { return };
    let deny = "\n[[rule]]\nname = \"a deny more, and no other has its name\"\npath = \"/latest/**\"\naction = \"deny\"\n";
    let stricter = compile(&format!("{policy}{deny}"));
    for line in ["GET", "PUT"] {
        let head = format!("{line} {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
        let Ok(head) = RawHead::read(head.as_bytes(), Limits::default()) else { return };
        for caller in callers() {
            let asked = Asked::read(before.catalogue(), Endpoint::new(Endpoint::SHARED, 80), head.clone());
            let was = before.decide(&caller, &asked);
            let asks = before.needs_processes(&caller, &asked);
            assert_eq!(was, before.decide(&caller, &asked), "a decision is the same twice");
            assert!(!(asks && caller.stamps().is_none()), "nobody's processes are asked for");
            drop(before.trace(&caller, &asked));
            if asked.target.is_err() || !asked.faults.is_empty() {
                assert_eq!(was.verdict(), Verdict::Deny, "a fault is a denial");
            }
            if let Some(stricter) = &stricter {
                let is = stricter.decide(&caller, &asked);
                assert!(
                    was.verdict() == Verdict::Allow || is.verdict() == Verdict::Deny,
                    "{was:?} became {is:?}"
                );
                assert!(!refuses(was, &asked) || refuses(is, &asked), "a refusal went away");
            }
        }
    }
}

fn refuses(decision: Decision, asked: &Asked) -> bool {
    matches!(decision.act(asked), Action::Refuse(_))
}

/// `None` if there are errors, each of which can be shown.
fn compile(text: &str) -> Option<Policy> {
    let sources = [Source { name: "policy.toml".to_owned(), text: text.to_owned() }];
    let context = Context { accounts: Accounts::parse(ACCOUNTS, ""), ..Context::default() };
    match Policy::compile(&sources, &context) {
        Ok(compiled) => {
            drop(diagnostic::render(&compiled.warnings, &sources, false));
            Some(compiled.policy)
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            drop(diagnostic::render(&errors, &sources, false));
            None
        }
    }
}

fn callers() -> Vec<Caller> {
    let program = Process {
        pid: 1,
        start_ticks: 1,
        parent: 0,
        uid: 0,
        comm: String::new(),
        command_line: String::new(),
        exe: Exe {
            path: "/usr/bin/a".to_owned(),
            names: vec!["/usr/bin/a".to_owned()],
            doubt: String::new(),
            sha256: None,
        },
    };
    let mut callers = vec![Caller::unattributed(Why::Orphan)];
    for (uid, path) in [
        (0, "/system.slice/a.service"),
        (1000, "/system.slice/a.service"),
        (1000, "/user.slice/user-1000.slice/session-1.scope"),
        (0, "/system.slice/docker-0.scope"),
    ] {
        for processes in [Processes::Skipped, Processes::Unknown, Processes::Holders(vec![program.clone()])] {
            let path = CgroupPath::new(path).expect("a path");
            let stamps = Stamps { uid, cgroup: Cgroup { id: 1, path }, inode: 1, cookie: 1 };
            callers.push(Caller {
                origin: Origin::Host,
                attribution: Attribution::Stamped(stamps),
                processes,
            });
        }
    }
    callers
}
