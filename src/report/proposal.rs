//! Writes what was learnt as a policy, with the evidence beside it as comments. The same log gives the same text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::caller::{Home, Who};
use super::escape::{comment, toml_string};
use super::learn::{Learner, Need, Seen};
use super::table::{count, moment};
use crate::cloud::{Class, Classes, PathPattern};

/// Up to so many unknown paths are listed one by one; above, nobody would read them.
const UNKNOWN_PATHS: usize = 8;

/// What the text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A policy of its own.
    Whole,
    /// A drop-in beside another policy: only what that one lacks.
    DropIn,
}

/// Writes the proposal. Names that `taken` knows are the other policy's.
#[must_use]
pub fn write(learner: &Learner, purpose: Purpose, taken: &dyn Fn(&str) -> bool) -> String {
    let mut text = String::new();
    heading(learner, purpose, &mut text);
    let names = names(learner, taken);
    for ((who, seen), name) in learner.accepted().zip(&names) {
        agent(who, seen, name, taken, &mut text);
    }
    refused(learner, &mut text);
    text
}

fn heading(learner: &Learner, purpose: Purpose, text: &mut String) {
    let agents = learner.accepted().count();
    let refused = learner.refused().count();
    let spans = learner.callers.values().filter_map(|seen| seen.span);
    let span = spans.reduce(|(a, b), (c, d)| (a.min(c), b.max(d)));
    let when = span.map_or("at times that are not known".to_owned(), |(first, last)| {
        format!("from {} to {} (UTC)", moment(first), moment(last))
    });
    line(text, &format!("# Proposed by imds-guard learn, from what was seen {when}."));
    line(
        text,
        &format!(
            "# {agents} callers are proposed; {refused} are not, and stand at the end with the reasons."
        ),
    );
    if learner.forgotten > 0 {
        line(
            text,
            &format!("# {} requests came from more callers than could be remembered.", learner.forgotten),
        );
    }
    line(text, "# Read every agent before you use this: what was seen is not always what should be.");
    if purpose == Purpose::Whole {
        line(text, "mode = \"audit\"");
        line(text, "cloud = \"auto\"");
        if learner.clouds.contains("gcp") {
            text.push('\n');
            line(
                text,
                "# On Google Cloud, OS Login asks for config from inside every process that looks up a user:",
            );
            line(text, "# [everyone]");
            line(text, "# allow = [\"config\"]");
        }
        containers(learner, text);
    }
}

/// Where containers are, as far as their engines tell: agents in containers mean nothing without.
fn containers(learner: &Learner, text: &mut String) {
    let contained = learner.accepted().filter_map(|(who, seen)| {
        if let Home::Contained(contained) = &who.home { Some((contained, seen)) } else { None }
    });
    let contained: Vec<_> = contained.collect();
    if contained.is_empty() {
        return;
    }
    let names: BTreeSet<&str> = contained.iter().flat_map(|(one, _)| one.interfaces()).copied().collect();
    text.push('\n');
    line(
        text,
        "# The names that the engines give: compare them with `ip link`. An uplink must not be among them.",
    );
    line(text, "[containers]");
    line(
        text,
        &format!("interfaces = [{}]", names.into_iter().map(toml_string).collect::<Vec<_>>().join(", ")),
    );
    if contained.iter().any(|(_, seen)| seen.is_led) {
        line(text, "judge = true");
    }
}

/// A name for each accepted caller: its unit's, with the uid where several run in one unit.
fn names(learner: &Learner, taken: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut wanted: BTreeMap<String, usize> = BTreeMap::new();
    for (who, _) in learner.accepted() {
        *wanted.entry(stem(&who.home)).or_default() += 1;
    }
    let mut used = BTreeSet::new();
    let mut names = Vec::new();
    for (who, _) in learner.accepted() {
        let stem = stem(&who.home);
        let uid = who.uid.unwrap_or_default();
        let several = wanted.get(&stem).is_some_and(|count| *count > 1);
        let mut name = if several { format!("{stem}-{uid}") } else { stem };
        while taken(&name) || used.contains(&name) {
            name += "-learned";
        }
        used.insert(name.clone());
        names.push(name);
    }
    names
}

fn stem(home: &Home) -> String {
    let unit = if let Home::Contained(contained) = home { contained.place() } else { home.text() };
    let stem = unit.rsplit_once('.').map_or(unit, |(stem, _)| stem);
    stem.trim_end_matches('*').trim_end_matches('@').to_owned()
}

fn agent(who: &Who, seen: &Seen, name: &str, taken: &dyn Fn(&str) -> bool, text: &mut String) {
    let mut classes = Classes::EMPTY;
    let mut rules: Vec<(Class, Vec<&str>, BTreeSet<&str>)> = Vec::new();
    for (class, need) in &seen.needs {
        match paths(*class, need) {
            Some(paths) => rules.push((*class, paths, methods(need))),
            None => classes = classes.with(*class),
        }
    }
    text.push('\n');
    evidence(seen, text);
    line(text, "[[agent]]");
    line(text, &format!("name = {}", toml_string(name)));
    if let Home::Contained(contained) = &who.home {
        contained.keys().iter().for_each(|key| line(text, key));
    } else {
        line(text, &format!("unit = {}", toml_string(who.home.text())));
    }
    let uid = who.uid.unwrap_or_default();
    line(text, &format!("user = {uid}{}", if uid == 0 { "  # root" } else { "" }));
    // A container's files are not the host's, so that their names would match nobody.
    if let (Some(executable), Home::Unit(_)) = (seen.stable_executable(), &who.home) {
        line(text, &format!("exe = {}  # the same in every request", toml_string(executable)));
    }
    let allow: Vec<String> = classes.iter().map(|class| toml_string(class.name())).collect();
    line(text, &format!("allow = [{}]", allow.join(", ")));
    for (class, paths, methods) in rules {
        let mut rule = format!("{name}: {class}");
        while taken(&rule) {
            rule += " (learned)";
        }
        text.push('\n');
        line(text, "[[rule]]");
        line(text, &format!("name = {}", toml_string(&rule)));
        line(text, &format!("agent = {}", toml_string(name)));
        line(text, &format!("path = {}", list(&paths)));
        let methods: Vec<&str> = methods.into_iter().collect();
        line(text, &format!("method = {}", list(&methods)));
        line(text, &format!("class = {}", toml_string(class.name())));
        line(text, "action = \"allow\"");
    }
}

/// What was seen, as comments.
fn evidence(seen: &Seen, text: &mut String) {
    let (first, last) = seen.span.unwrap_or_default();
    let hosts = match seen.hosts.len() {
        0 => String::new(),
        1 => " on 1 host".to_owned(),
        several => format!(" on {several} hosts"),
    };
    let requests = requests(seen.count);
    line(
        text,
        &format!(
            "# {requests}{hosts}, first {}, last {}. Confidence: {}.",
            moment(first),
            moment(last),
            confidence(seen)
        ),
    );
    for (class, need) in &seen.needs {
        let shown: Vec<&str> = need.paths.values().map(|(spelling, _)| spelling.as_str()).take(3).collect();
        let more = if need.paths.len() > shown.len() || need.more { ", …" } else { "" };
        let shown = shown.join(", ");
        line(text, &format!("#   {class}: {} to {}{more}", count(need.count), comment(&shown)));
    }
    if seen.faulty > 0 {
        line(text, &format!("#   {} more had a fault, which no policy can allow.", count(seen.faulty)));
    }
    if seen.opaque > 0 {
        line(
            text,
            &format!(
                "#   {} more came encrypted, which only a grant of every class lets pass.",
                count(seen.opaque)
            ),
        );
    }
    if seen.forbidden > 0 {
        line(
            text,
            &format!(
                "#   {} more are forbidden by a deny rule, which nothing can allow.",
                count(seen.forbidden)
            ),
        );
    }
}

/// How much the evidence is worth: often, and over long enough to have seen a day's and a week's jobs.
fn confidence(seen: &Seen) -> &'static str {
    let span = seen.span.map_or(0, |(first, last)| last - first);
    match (seen.count, span) {
        (100.., 604_800..) => "high",
        (20.., 86_400..) => "medium",
        _ => "low",
    }
}

/// The paths of a rule, where a grant of the whole class would be more than was used: credentials of a single role,
/// and paths that no catalogue knows.
fn paths(class: Class, need: &Need) -> Option<Vec<&str>> {
    let few = match class {
        Class::Credentials => need.leaves().count() == 1,
        Class::Unknown => need.paths.len() <= UNKNOWN_PATHS,
        Class::Identity | Class::UserData | Class::Session | Class::Write | Class::Config => false,
    };
    let literal = |path: &str| {
        let plain = path.strip_prefix("/*/").unwrap_or(path);
        !plain.contains(['*', '{', '}']) && PathPattern::parse(path).is_ok()
    };
    let known = need.paths.values().flat_map(|(_, methods)| methods).all(|method| is_known(method));
    let usable = few && !need.more && known && need.paths.keys().all(|path| literal(path));
    usable.then(|| need.paths.values().map(|(spelling, _)| spelling.as_str()).collect())
}

fn is_known(method: &str) -> bool {
    ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"].contains(&method)
}

fn methods(need: &Need) -> BTreeSet<&str> {
    let mut methods: BTreeSet<&str> =
        need.paths.values().flat_map(|(_, methods)| methods).map(String::as_str).collect();
    if methods.contains("GET") {
        methods.insert("HEAD");
    }
    methods
}

fn list(items: &[&str]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| toml_string(item)).collect();
    match quoted.as_slice() {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}

fn refused(learner: &Learner, text: &mut String) {
    let mut refused = learner.refused().peekable();
    if refused.peek().is_none() {
        return;
    }
    text.push('\n');
    line(text, "# ---- Not proposed ----");
    for (who, seen) in refused {
        text.push('\n');
        let (_, last) = seen.span.unwrap_or_default();
        let (who, event) = (who.to_string(), comment(&seen.event));
        line(
            text,
            &format!(
                "# {}: {}, the last {} (event {event})",
                comment(&who),
                requests(seen.count),
                moment(last)
            ),
        );
        for signal in seen.evidence.signals() {
            line(text, &format!("#   {}: {}", signal.code(), signal.meaning()));
        }
        let wanted: Classes = seen.needs.keys().copied().collect();
        if !wanted.is_empty() {
            line(text, &format!("#   it asked for {wanted}"));
        }
    }
}

fn requests(number: u64) -> String {
    if number == 1 { "1 request".to_owned() } else { format!("{} requests", count(number)) }
}

fn line(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}
