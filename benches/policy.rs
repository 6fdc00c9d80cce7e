//! What a policy of a thousand rules costs: compiled in under 50 ms, a request decided in under 5 µs.
//!
//! The policies are as different as their shapes are; docs/performance.md has the figures.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark, not a library")]

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use imds_guard::caller::{Attribution, Caller, Cgroup, CgroupPath, Origin, Processes, Stamps};
use imds_guard::cloud::{Asked, Endpoint};
use imds_guard::policy::{Accounts, Context, Policy, Source, diagnostic};
use imds_guard::request::{Limits, RawHead};

const RULES: usize = 1000;

/// A policy of a thousand rules, one of them made for each number, in the shape of its name.
fn policies() -> Vec<(&'static str, String)> {
    let policy = |rule: &dyn Fn(usize) -> String| {
        let mut text = String::from(
            "mode = \"enforce\"\ncloud = \"all\"\n[everyone]\nallow = [\"config\", \"session\"]\n",
        );
        let _ = writeln!(
            text,
            "[[agent]]\nname = \"app\"\nunit = \"app.service\"\nuser = 1000\nallow = [\"config\"]"
        );
        for at in 0..RULES {
            let _ = writeln!(text, "[[rule]]\nname = \"{at}\"\naction = \"{}\"\n{}", action(at), rule(at));
        }
        text
    };
    let role = |at: usize| format!("/*/meta-data/iam/security-credentials/role-{at}");
    vec![
        ("a role for each agent's rule", policy(&|at| format!("agent = \"app\"\npath = \"{}\"", role(at)))),
        ("a role for everybody's rule", policy(&|at| format!("path = \"{}\"", role(at)))),
        ("anywhere below the root", policy(&|at| format!("path = \"/**/role-{at}\""))),
        ("tails of any depth", policy(&|at| format!("path = \"/**/security-credentials/role-{at}/**\""))),
        ("globs inside names", policy(&|at| format!("path = \"/*/meta-data/iam/security-*/role-{at}-*\""))),
        ("globs that begin alike", policy(&|at| format!("path = \"/*/*/role-*-{at}\""))),
        ("globs anywhere", policy(&|at| format!("path = \"/**/role-{at}-*\""))),
        (
            "alternatives",
            policy(&|at| format!("path = \"/{{latest,1.0,2021-03-23}}/meta-data/{{iam,ram}}/role-{at}\"")),
        ),
        ("by header", policy(&|at| format!("header = \"x-client-{at}\""))),
        (
            "the same path, by query",
            policy(&|at| format!("path = \"/*/meta-data/iam/**\"\nquery = \"client_id={at}\"")),
        ),
        (
            "an agent's rules by user",
            policy(&|at| format!("agent = \"app\"\nuser = {}\nclass = \"credentials\"", 1000 + at)),
        ),
        ("by query", policy(&|at| format!("query = \"client_id={at}\""))),
        (
            "by class and method",
            policy(&|at| {
                format!("class = \"credentials\"\nmethod = \"{}\"", if at % 2 == 0 { "PUT" } else { "POST" })
            }),
        ),
        ("by user", policy(&|at| format!("user = {}\nclass = \"credentials\"", 2000 + at))),
        (
            "the same path for one user each",
            policy(&|at| format!("user = {}\npath = \"/latest/user-data\"", 2000 + at)),
        ),
    ]
}

fn action(at: usize) -> &'static str {
    if at.is_multiple_of(10) { "deny" } else { "allow" }
}

fn compile(text: &str) -> Policy {
    let sources = [Source { name: "policy.toml".to_owned(), text: text.to_owned() }];
    let context =
        Context { accounts: Accounts::parse("imds-guard:x:990:990::/:/", ""), ..Context::default() };
    match Policy::compile(&sources, &context) {
        Ok(compiled) => compiled.policy,
        Err(errors) => panic!("{}", diagnostic::render(&errors, &sources, false)),
    }
}

fn caller() -> Caller {
    let path = CgroupPath::new("/system.slice/app.service").unwrap();
    let stamps = Stamps { uid: 1000, cgroup: Cgroup { id: 7, path }, inode: 1, cookie: 1 };
    Caller { origin: Origin::Host, attribution: Attribution::Stamped(stamps), processes: Processes::Skipped }
}

fn head(target: &str) -> RawHead {
    let text = format!("GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: a/1\r\n\r\n");
    RawHead::read(text.as_bytes(), Limits::default()).unwrap()
}

const TARGETS: [(&str, &str); 3] = [
    ("hit", "/latest/meta-data/iam/security-credentials/role-997"),
    ("miss", "/latest/meta-data/iam/security-credentials/role-x"),
    ("config", "/latest/meta-data/instance-id"),
];

fn benches(criterion: &mut Criterion) {
    let endpoint = Endpoint::new(Endpoint::SHARED, 80);
    let caller = caller();
    for (shape, text) in policies() {
        criterion.bench_function(&format!("compile 1,000 rules: {shape}"), |bencher| {
            bencher.iter(|| compile(black_box(&text)));
        });
        let policy = compile(&text);
        for (what, target) in TARGETS {
            let asked = Asked::read(policy.catalogue(), endpoint, head(target));
            criterion.bench_function(&format!("decide among 1,000 rules: {shape}, {what}"), |bencher| {
                bencher.iter(|| policy.decide(black_box(&caller), black_box(&asked)));
            });
        }
    }
    let policy = compile("mode = \"enforce\"\ncloud = \"all\"");
    for (what, target) in TARGETS {
        let head = head(target);
        criterion.bench_function(&format!("read and class a target by every cloud, {what}"), |bencher| {
            bencher.iter(|| Asked::read(policy.catalogue(), endpoint, black_box(head.clone())));
        });
    }
}

criterion_group! { name = policy; config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(300)).measurement_time(std::time::Duration::from_secs(1)); targets = benches }
criterion_main!(policy);
