//! From text to tables: syntax, unknown keys and wrong types, all of them at once.
//!
//! serde stops at the first error of a table. Here the offending key is taken out and the table read again, so
//! that one run of `check` tells everything.

use std::borrow::Cow;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::diagnostic::{Place, Report, did_you_mean};
use super::source::{AgentTable, ContainersTable, GrantTable, GuardTable, Name, Names, RuleTable, Source};
use crate::cloud::{AddedEndpoint, AddedResource};

/// One file's tables.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) source: usize,
    pub(super) mode: Option<Name>,
    pub(super) cloud: Option<Spanned<Names>>,
    pub(super) v1: Option<Name>,
    pub(super) bind_tokens: Option<Name>,
    pub(super) aggregate: Option<Name>,
    pub(super) degraded: Option<Name>,
    pub(super) guard: Option<Spanned<GuardTable>>,
    pub(super) everyone: Option<Spanned<GrantTable>>,
    pub(super) unattributed: Option<Spanned<GrantTable>>,
    pub(super) containers: Option<Spanned<ContainersTable>>,
    pub(super) agents: Vec<Spanned<AgentTable>>,
    pub(super) rules: Vec<Spanned<RuleTable>>,
    pub(super) endpoints: Vec<Spanned<AddedEndpoint>>,
    pub(super) resources: Vec<Spanned<AddedResource>>,
}

/// What a file may hold at its top level; the flag says whether a drop-in may, too.
const KEYS: [(&str, bool); 14] = [
    ("mode", false),
    ("cloud", false),
    ("v1", false),
    ("bind-tokens", false),
    ("aggregate", false),
    ("degraded", false),
    ("guard", false),
    ("unattributed", false),
    ("containers", false),
    ("everyone", true),
    ("agent", true),
    ("rule", true),
    ("endpoint", true),
    ("resource", true),
];

impl Document {
    /// The place of something in this document.
    pub(super) fn place(&self, span: std::ops::Range<usize>) -> Place {
        Place { source: self.source, span: Some(span) }
    }
}

/// Reads one file. A file with a syntax error yields nothing else: what stands after it cannot be trusted.
pub(super) fn read(index: usize, source: &Source, report: &mut Report<'_>) -> Document {
    let mut document = Document { source: index, ..Document::default() };
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    for error in &errors {
        report.error("syntax", error.message(), &Place { source: index, span: error.span() });
    }
    if !errors.is_empty() {
        return document;
    }
    for (key, value) in table.into_inner() {
        entry(&mut document, &key, value, report);
    }
    document
}

fn entry(
    document: &mut Document,
    key: &Spanned<Cow<'_, str>>,
    value: Spanned<DeValue<'_>>,
    report: &mut Report<'_>,
) {
    let place = document.place(key.span());
    let name = key.get_ref().as_ref();
    let Some((_, drop_in_may)) = KEYS.iter().find(|(known, _)| *known == name) else {
        let known = KEYS.iter().map(|(known, _)| *known);
        report
            .error("unknown-key", format!("unknown key `{name}`"), &place)
            .maybe_help(did_you_mean(name, known));
        return;
    };
    if document.source > 0 && !drop_in_may {
        report
            .error("main-file-only", format!("`{name}` may stand only in the main file"), &place)
            .help("a drop-in may add agents, rules, endpoints, resources and [everyone] allow");
        return;
    }
    let source = document.source;
    match name {
        "mode" => document.mode = one(source, value, report),
        "cloud" => document.cloud = one(source, value, report),
        "v1" => document.v1 = one(source, value, report),
        "bind-tokens" => document.bind_tokens = one(source, value, report),
        "aggregate" => document.aggregate = one(source, value, report),
        "degraded" => document.degraded = one(source, value, report),
        "guard" => document.guard = one(source, value, report),
        "everyone" => document.everyone = one(source, value, report),
        "unattributed" => document.unattributed = one(source, value, report),
        "containers" => document.containers = one(source, value, report),
        "agent" => document.agents = list(source, name, value, report),
        "rule" => document.rules = list(source, name, value, report),
        "endpoint" => document.endpoints = list(source, name, value, report),
        _ => document.resources = list(source, name, value, report),
    }
}

fn list<T: DeserializeOwned>(
    source: usize,
    key: &str,
    value: Spanned<DeValue<'_>>,
    report: &mut Report<'_>,
) -> Vec<Spanned<T>> {
    let span = value.span();
    let DeValue::Array(items) = value.into_inner() else {
        let place = Place { source, span: Some(span) };
        report
            .error("wrong-type", format!("`{key}` is a list of tables"), &place)
            .help(format!("write [[{key}]]"));
        return Vec::new();
    };
    items.into_iter().filter_map(|item| one(source, item, report)).collect()
}

/// Reads one value; what serde refuses is reported, taken out, and the rest read again.
fn one<T: DeserializeOwned>(
    source: usize,
    mut value: Spanned<DeValue<'_>>,
    report: &mut Report<'_>,
) -> Option<Spanned<T>> {
    let whole = value.span();
    let mut taken_out = Vec::new();
    loop {
        let error = match T::deserialize(ValueDeserializer::from(value.clone())) {
            Ok(read) => return Some(Spanned::new(whole, read)),
            Err(error) => error,
        };
        let span = error.span().unwrap_or_else(|| whole.clone());
        // That a key is missing now that it was taken out is no news.
        let missing = error.message().strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        if !missing.is_some_and(|key| taken_out.iter().any(|taken| taken == key)) {
            tell(error.message(), &Place { source, span: Some(span.clone()) }, report);
        }
        taken_out.push(take_out(value.get_mut(), &span)?);
    }
}

fn tell(message: &str, place: &Place, report: &mut Report<'_>) {
    if let Some(rest) = message.strip_prefix("unknown field ") {
        // serde names the key, then those that it knows, each in backticks.
        let mut quoted = rest.split('`').skip(1).step_by(2);
        let key = quoted.next().unwrap_or_default();
        let known: Vec<&str> = quoted.collect();
        let help = did_you_mean(key, known.iter().copied());
        report
            .error("unknown-key", format!("unknown key `{key}`"), place)
            .help(help.unwrap_or_else(|| format!("known here: {}", known.join(", "))));
    } else if let Some((wrong, known)) = message.split_once("; classes are ") {
        report.error("unknown-class", wrong, place).help(format!("classes are {known}"));
    } else if let Some(rest) = message.strip_prefix("missing field ") {
        report.error("missing-key", format!("the key {rest} is missing"), place);
    } else {
        // Rust's words for types mean nothing to whoever writes a policy.
        let message = message.replace("expected i64", "expected a number");
        report.error("wrong-type", message, place);
    }
}

/// Removes the entry that holds the span, from the innermost table that has it; gives its key.
fn take_out(value: &mut DeValue<'_>, span: &Range<usize>) -> Option<String> {
    let DeValue::Table(table) = value else { return None };
    let holds = |outer: &Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let found = table.iter().find(|(key, value)| holds(&key.span()) || holds(&value.span()));
    let name = found.map(|(key, _)| key.clone())?;
    if let Some(inner) = table.get_mut(&name)
        && !holds(&name.span())
        && inner.span() != *span
        && let Some(taken) = take_out(inner.get_mut(), span)
    {
        return Some(taken);
    }
    table.remove(&name).map(|_| name.into_inner().into_owned())
}
