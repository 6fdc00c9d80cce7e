//! `imds-guard test`: the cases that stand beside a policy.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use serde::Serialize;

use super::{Complaint, Exit, input};
use crate::cases::{Case, Cases};
use crate::cli::TestArgs;
use crate::cloud::Catalogue;
use crate::keeper::files::{self, Trust};
use crate::keeper::host;
use crate::policy::{Context, Policy, Source};
use crate::report::escape::terminal;

/// What came of one case.
#[derive(Debug, Serialize)]
struct Outcome {
    file: String,
    case: String,
    passed: bool,
    why: Option<String>,
}

/// Runs all cases; fails if one does.
pub fn run(args: &TestArgs) -> anyhow::Result<Exit> {
    let files = if args.files.is_empty() { vec![beside(&args.config.config)] } else { args.files.clone() };
    let mut outcomes = Vec::new();
    for file in &files {
        run_file(file, args, &mut outcomes)?;
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&outcomes)?)?;
    } else {
        for outcome in outcomes.iter().filter(|outcome| !outcome.passed) {
            let told = format!(
                "FAILED {}: {}: {}",
                outcome.file,
                outcome.case,
                outcome.why.as_deref().unwrap_or_default()
            );
            writeln!(out, "{}", terminal(&told))?;
        }
        writeln!(out, "{} cases, {} passed, {failed} failed", outcomes.len(), outcomes.len() - failed)?;
    }
    Ok(if failed > 0 || outcomes.is_empty() { Exit::Failure } else { Exit::Success })
}

/// `policy.toml` has its cases in `policy.cases.toml`.
fn beside(policy: &Path) -> PathBuf {
    policy.with_extension("cases.toml")
}

fn run_file(file: &Path, args: &TestArgs, outcomes: &mut Vec<Outcome>) -> anyhow::Result<()> {
    let name = file.display().to_string();
    let text = fs::read_to_string(file).map_err(|error| {
        anyhow!(Complaint::new(Exit::NoInput, format!("cannot read the cases {name}: {error}")))
    })?;
    let cases = Cases::parse(&text).map_err(|error| {
        anyhow!(Complaint::new(Exit::Config, format!("{name}: {}", place(&error, &text))))
    })?;
    let sources = sources(&cases, file, args)?;
    let policy = sources.first().map_or(name.as_str(), |source| source.name.as_str());
    let (passwd, group) = host::accounts();
    let accounts = cases.accounts(&passwd, &group);
    let here: Vec<String> = Catalogue::detect(&host::dmi()).into_iter().map(str::to_owned).collect();
    // One policy for each set of clouds that the cases speak of.
    let mut compiled: BTreeMap<&[String], Policy> = BTreeMap::new();
    for case in &cases.case {
        let detected = match cases.detected_for(case) {
            [] => here.as_slice(),
            some => some,
        };
        if !compiled.contains_key(detected) {
            let context =
                Context { accounts: accounts.clone(), detected: detected.to_vec(), ..Context::default() };
            let fresh = input::compile(&sources, &context, policy)?;
            if let Some(miss) = warnings(&cases, &fresh.warnings) {
                let case = "the policy's warnings".to_owned();
                outcomes.push(Outcome { file: name.clone(), case, passed: false, why: Some(miss) });
            }
            compiled.insert(detected, fresh.policy);
        }
        let result = compiled.get(detected).map_or(Ok(()), |policy| case.check(policy, &accounts));
        outcomes.push(outcome(&name, case, result.err().map(|miss| miss.to_string())));
    }
    Ok(())
}

fn outcome(file: &str, case: &Case, why: Option<String>) -> Outcome {
    Outcome { file: file.to_owned(), case: case.name.clone(), passed: why.is_none(), why }
}

fn warnings(cases: &Cases, given: &[crate::policy::Diagnostic]) -> Option<String> {
    let wanted = cases.warnings.as_ref()?;
    let mut codes: Vec<&str> = given.iter().map(|warning| warning.code).collect();
    codes.sort_unstable();
    (codes != *wanted).then(|| format!("wanted {wanted:?}, got {codes:?}"))
}

fn sources(cases: &Cases, file: &Path, args: &TestArgs) -> anyhow::Result<Vec<Source>> {
    let mut sources = match &cases.policy {
        None => files::policy(&args.config.config, Trust::Anybody)?,
        // A policy's text has more than one line, or at least a key and its value; a path has neither.
        Some(text) if text.contains(['\n', '=']) => {
            vec![Source { name: "policy".to_owned(), text: text.clone() }]
        }
        Some(path) => files::policy(&file.with_file_name(path), Trust::Anybody)?,
    };
    let drop_ins = cases.drop_ins.iter().enumerate();
    sources.extend(drop_ins.map(|(at, text)| Source { name: format!("drop-in {at}"), text: text.clone() }));
    Ok(sources)
}

/// Where in the file, and what.
fn place(error: &toml::de::Error, text: &str) -> String {
    let line = error.span().map(|span| text.get(..span.start).unwrap_or_default().matches('\n').count() + 1);
    match line {
        Some(line) => format!("line {line}: {}", error.message()),
        None => error.message().to_owned(),
    }
}
