//! Replays `tests/cases/policy/*.toml` and the shipped policy's own cases: callers, requests, what must be decided.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of a test may fail the test, like the test itself"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use imds_guard::cases::Cases;
use imds_guard::policy::{Accounts, AgentFit, Compiled, Context, Policy, Source, Verdict, diagnostic};

const PASSWD: &str = include_str!("cases/policy/passwd");
const GROUP: &str = include_str!("cases/policy/group");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shipped() -> String {
    fs::read_to_string(root().join("policy.toml")).unwrap()
}

fn compile(main: &str, drop_ins: &[String], detected: &[String]) -> Compiled {
    compile_for(main, drop_ins, detected, Accounts::parse(PASSWD, GROUP))
}

fn compile_for(main: &str, drop_ins: &[String], detected: &[String], accounts: Accounts) -> Compiled {
    let text = if main == "shipped" { shipped() } else { main.to_owned() };
    let mut sources = vec![Source { name: "policy.toml".to_owned(), text }];
    sources.extend(
        drop_ins
            .iter()
            .enumerate()
            .map(|(at, text)| Source { name: format!("policy.d/{at}.toml"), text: text.clone() }),
    );
    let context = Context { accounts, detected: detected.to_vec(), ..Context::default() };
    Policy::compile(&sources, &context)
        .unwrap_or_else(|errors| panic!("{}", diagnostic::render(&errors, &sources, false)))
}

fn files() -> Vec<PathBuf> {
    let directory = fs::read_dir(root().join("tests/cases/policy")).unwrap();
    let mut files: Vec<PathBuf> = directory.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.push(root().join("policy.cases.toml"));
    files.sort();
    files
}

/// Every case with its policy; `each` gets the name of the file, too.
fn each_case(mut each: impl FnMut(&str, &Cases, &imds_guard::cases::Case, &Compiled, &Accounts)) {
    for file in files() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let cases = Cases::parse(&fs::read_to_string(&file).unwrap())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let accounts = cases.accounts(PASSWD, GROUP);
        let main = cases.policy.as_deref().unwrap_or("shipped");
        for case in &cases.case {
            let compiled = compile_for(main, &cases.drop_ins, cases.detected_for(case), accounts.clone());
            each(&name, &cases, case, &compiled, &accounts);
        }
    }
}

#[test]
fn every_case_is_decided_as_written() {
    let mut failures = Vec::new();
    let mut replayed = 0;
    each_case(|name, cases, case, compiled, accounts| {
        let mut warnings: Vec<&str> = compiled.warnings.iter().map(|warning| warning.code).collect();
        warnings.sort_unstable();
        if warnings != cases.warnings.clone().unwrap_or_default() {
            failures.push(format!("{name}: warnings are {warnings:?}"));
        }
        replayed += 1;
        if let Err(miss) = case.check(&compiled.policy, accounts) {
            failures.push(format!("{name}: {}: {miss}", case.name));
        }
    });
    assert!(failures.is_empty(), "{} of {replayed} failed:\n{}", failures.len(), failures.join("\n"));
    assert!(replayed > 100, "only {replayed} cases were found");
}

/// An explanation that disagrees with the verdict would be worse than none.
#[test]
fn what_explain_adds_up_is_what_is_decided() {
    let mut compared = 0;
    each_case(|name, _, case, compiled, accounts| {
        let caller = case.caller.caller(accounts).unwrap();
        let asked = case.asked(&compiled.policy).unwrap();
        if !asked.faults.is_empty() {
            return;
        }
        let decision = compiled.policy.decide(&caller, &asked);
        let trace = compiled.policy.trace(&caller, &asked);
        let denies = trace.rules.iter().any(|step| step.denies && step.counts);
        let granted = trace.touched.minus(trace.withholdable).is_subset_of(trace.granted());
        let withheld = trace.withholdable.minus(trace.granted());
        let verdict = if granted && !denies { Verdict::Allow } else { Verdict::Deny };
        assert_eq!(verdict, decision.verdict(), "{name}: {}: {trace:?}", case.name);
        if verdict == Verdict::Allow {
            assert_eq!(withheld, decision.withheld(), "{name}: {}: {trace:?}", case.name);
        }
        if let Some(agent) = decision.agent() {
            let named = trace.agents.iter().any(|step| step.name == *agent && step.fit == AgentFit::Is);
            assert!(named, "{name}: {}: {trace:?}", case.name);
        }
        compared += 1;
    });
    assert!(compared > 100, "only {compared} cases were compared");
}

/// An agent without a case is one that nobody noticed when it stopped working.
#[test]
fn the_shipped_policy_has_a_case_for_each_of_its_agents() {
    let cases = Cases::parse(&fs::read_to_string(root().join("policy.cases.toml")).unwrap()).unwrap();
    let shown: BTreeSet<&str> = cases.case.iter().filter_map(|case| case.agent.as_deref()).collect();
    let policy: toml::Table = shipped().parse().unwrap();
    let agents = policy.get("agent").and_then(toml::Value::as_array).unwrap();
    for name in agents.iter().map(|agent| agent.get("name").and_then(toml::Value::as_str).unwrap()) {
        assert!(shown.contains(name), "{name}");
    }
}

/// So does every cloud that answers somewhere without a policy's help.
#[test]
fn the_shipped_policy_has_a_case_for_each_cloud() {
    let cases = Cases::parse(&fs::read_to_string(root().join("policy.cases.toml")).unwrap()).unwrap();
    let shown: BTreeSet<&str> =
        cases.case.iter().flat_map(|case| cases.detected_for(case)).map(String::as_str).collect();
    let builtin = imds_guard::cloud::Catalogue::builtin();
    for cloud in builtin.clouds().iter().filter(|cloud| !cloud.served().is_empty()) {
        assert!(shown.contains(cloud.id()), "{}", cloud.id());
    }
}

/// An image is built once and booted anywhere: its policy has nothing to complain about on any cloud.
#[test]
fn the_shipped_policy_is_clean_on_every_cloud() {
    let builtin = imds_guard::cloud::Catalogue::builtin();
    let clouds = builtin.clouds().iter().map(|cloud| vec![cloud.id().to_owned()]);
    for detected in clouds.chain([Vec::new()]) {
        let compiled = compile("shipped", &[], &detected);
        assert!(compiled.warnings.is_empty(), "{detected:?}: {:?}", compiled.warnings);
    }
    for choice in ["\"all\"", "[\"aws\", \"gcp\"]"] {
        let text = fs::read_to_string(root().join("policy.toml")).unwrap();
        let text = text.replace("cloud = \"auto\"", &format!("cloud = {choice}"));
        assert!(text.contains(choice));
        let compiled = compile(&text, &[], &[]);
        assert!(compiled.warnings.is_empty(), "{choice}: {:?}", compiled.warnings);
    }
}

/// What its comments offer must work when somebody uncomments it.
#[test]
fn the_shipped_policy_s_commented_examples_compile() {
    let text = fs::read_to_string(root().join("policy.toml")).unwrap();
    let mut uncommented = String::new();
    let mut inside = false;
    for line in text.lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        inside = line.starts_with("# [[") || inside && line.starts_with('#');
        uncommented += if inside && line != "#" { bare } else { line };
        uncommented.push('\n');
        inside = inside && line != "#";
    }
    let compiled = compile(&uncommented, &[], &[]);
    let codes: Vec<&str> = compiled.warnings.iter().map(|warning| warning.code).collect();
    assert_eq!(codes, ["enforce-fails-open"]);
    for name in [
        "user-data uses the machine's role",
        "billing reads its own role",
        "the web server never has credentials",
    ] {
        assert!(uncommented.contains(&format!("\nname = \"{name}\"")), "{name}");
    }
}

/// Every example of the language reference is a policy, or the part of one.
#[test]
fn the_reference_s_examples_compile() {
    let page = fs::read_to_string(root().join("docs/policy.md")).unwrap();
    let mut found = 0;
    for block in page.split("```toml\n").skip(1) {
        let example = block.split("```").next().unwrap();
        found += 1;
        let text = if example.contains("\nmode =") || example.starts_with("mode =") {
            example.to_owned()
        } else {
            format!("mode = \"audit\"\n{example}")
        };
        let _ = compile(&text, &[], &[]);
    }
    assert!(found >= 10, "only {found} examples were found");
}
