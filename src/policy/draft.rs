//! Agents and rules, read from their tables and kept with their places until the lints have seen them.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::accounts::Accounts;
use super::agent::Agent;
use super::compile::{empty_list, uid};
use super::diagnostic::{Place, Report};
use super::index::Id;
use super::rule::Rule;
use super::shape::Document;
use super::source::{Ids, Name, Names};

mod agents;
mod rules;

/// All agents and rules of a policy, sorted.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) agents: Vec<DraftAgent>,
    pub(super) rules: Vec<DraftRule>,
}

/// An agent with what only lints need.
#[derive(Debug)]
pub(super) struct DraftAgent {
    pub(super) agent: Agent,
    pub(super) place: Place,
    pub(super) weak: Option<Place>,
    pub(super) v1: Option<Place>,
    /// Where each of its executables is named.
    pub(super) exes: Vec<(Box<str>, Place)>,
}

/// A rule with what only lints need, and the agents that it names.
#[derive(Debug)]
pub(super) struct DraftRule {
    pub(super) rule: Rule,
    pub(super) place: Place,
    pub(super) agents: Option<BTreeSet<Id>>,
}

/// What reading a table needs.
struct Reader<'d, 'r, 's> {
    document: &'d Document,
    accounts: &'d Accounts,
    report: &'r mut Report<'s>,
}

impl Draft {
    pub(super) fn read(documents: &[Document], accounts: &Accounts, report: &mut Report<'_>) -> Self {
        let mut agents = Vec::new();
        for document in documents {
            let mut reader = Reader { document, accounts, report };
            agents.extend(document.agents.iter().filter_map(|table| reader.agent(table)));
        }
        agents.sort_by(|a, b| a.agent.order().cmp(&b.agent.order()));
        duplicates("agent", agents.iter().map(|one| (&*one.agent.name, &one.place)), report);
        // An agent whose own table is wrong is still a name that rules may use.
        let ids: HashMap<&str, Id> = (0..).zip(&agents).map(|(id, one)| (&*one.agent.name, id)).collect();
        let mut rules = Vec::new();
        for document in documents {
            let mut reader = Reader { document, accounts, report };
            rules.extend(document.rules.iter().filter_map(|table| reader.rule(table, &ids)));
        }
        rules.sort_by(|a, b| a.rule.name.cmp(&b.rule.name));
        duplicates("rule", rules.iter().map(|one| (&*one.rule.name, &one.place)), report);
        Self { agents, rules }
    }
}

/// Names are what events and other tables refer to, so each stands for one thing.
fn duplicates<'a>(kind: &str, named: impl Iterator<Item = (&'a str, &'a Place)>, report: &mut Report<'_>) {
    let mut named: Vec<_> = named.collect();
    named.sort_by(|(a, at), (b, bt)| (a, at.source).cmp(&(b, bt.source)));
    for ((previous, _), (name, place)) in named.iter().zip(named.iter().skip(1)) {
        if previous == name {
            report
                .error("duplicate-name", format!("there is another {kind} named `{name}`"), place)
                .help("give each a name of its own; drop-ins share their names with the main file");
        }
    }
}

impl Reader<'_, '_, '_> {
    fn error(&mut self, code: &'static str, message: impl Into<String>, span: Range<usize>) {
        self.report.error(code, message, &self.document.place(span));
    }

    fn name<'n>(&mut self, kind: &str, name: Option<&'n Name>, whole: Range<usize>) -> Option<&'n Name> {
        let Some(name) = name else {
            self.error("no-name", format!("every {kind} needs a name"), whole);
            return None;
        };
        // Names go to logs and terminals.
        if name.get_ref().trim().is_empty() || name.get_ref().contains(char::is_control) {
            self.error("bad-name", "a name must be visible text", name.span());
            return None;
        }
        Some(name)
    }

    /// A list that is given must not be empty.
    fn given<'n>(&mut self, key: &str, names: Option<&'n Vec<Name>>, whole: &Range<usize>) -> &'n [Name] {
        match names {
            Some(names) => {
                if names.is_empty() {
                    empty_list(key, &self.document.place(whole.clone()), self.report);
                }
                names
            }
            None => &[],
        }
    }

    fn users(&mut self, key: &str, users: &Ids, whole: &Range<usize>) -> BTreeSet<u32> {
        let users = self.given(key, Some(&users.0), whole);
        users.iter().filter_map(|user| uid(self.document, user, self.accounts, self.report)).collect()
    }
}

fn names(names: &Names) -> &Vec<Name> {
    &names.0
}
