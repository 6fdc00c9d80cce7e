//! `[[rule]]`, read from its table.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use toml::Spanned;

use super::{DraftRule, Reader, names};
use crate::cloud::{Classes, PathPattern};
use crate::policy::compile::{classes, cloud_ids, read_mode, shared};
use crate::policy::diagnostic::did_you_mean;
use crate::policy::index::Id;
use crate::policy::rule::{Methods, QueryTest, Rule, RuleAction};
use crate::policy::source::{Name, Names, RuleTable};

impl Reader<'_, '_, '_> {
    pub(super) fn rule(&mut self, table: &Spanned<RuleTable>, ids: &HashMap<&str, Id>) -> Option<DraftRule> {
        let whole = table.span();
        let table = table.get_ref();
        let name = self.name("rule", table.name.as_ref(), whole.clone());
        let agents = table.agent.as_ref().map(|agents| self.agents(agents, ids, &whole));
        let action = self.action(table.action.as_ref(), &whole);
        if let (Some((_, true)), Some(named)) = (action, &table.agent) {
            let span = named.0.first().map_or(whole.clone(), Spanned::span);
            self.report
                .error(
                    "decoy-for-agent",
                    "a rule that gives decoys names no agent",
                    &self.document.place(span),
                )
                .help("an agent takes them for credentials that do not work: deny it instead");
        }
        let uids = table.user.as_ref().map(|users| self.users("user", users, &whole));
        let mode = table.mode.as_ref().and_then(|mode| read_mode(self.document, mode, self.report));
        let paths = self
            .given("path", table.path.as_ref().map(names), &whole)
            .iter()
            .filter_map(|path| self.path(path))
            .collect();
        let methods = table.method.as_ref().map(|methods| self.methods(methods, &whole));
        let query = self
            .given("query", table.query.as_ref().map(names), &whole)
            .iter()
            .filter_map(|test| self.query(test))
            .collect();
        let classes = self.rule_classes(table, &whole);
        let clouds = table.cloud.as_ref().map(|clouds| {
            let clouds = self.given("cloud", Some(&clouds.0), &whole);
            clouds.iter().flat_map(|cloud| cloud_ids(self.document, cloud, self.report)).collect()
        });
        let headers = self
            .given("header", table.header.as_ref().map(names), &whole)
            .iter()
            .filter_map(|header| self.header(header))
            .collect();
        let name = name?;
        let (action, decoy) = action?;
        let rule = Rule {
            name: shared(name),
            action,
            decoy,
            mode,
            uids,
            paths,
            methods,
            query,
            classes,
            clouds,
            headers,
        };
        Some(DraftRule { rule, place: self.document.place(name.span()), agents })
    }

    fn agents(&mut self, agents: &Names, ids: &HashMap<&str, Id>, whole: &Range<usize>) -> BTreeSet<Id> {
        let mut found = BTreeSet::new();
        for agent in self.given("agent", Some(&agents.0), whole) {
            if let Some(id) = ids.get(agent.get_ref().as_str()) {
                found.insert(*id);
            } else {
                let help = did_you_mean(agent.get_ref(), ids.keys().copied());
                let message = format!("there is no agent `{}`", agent.get_ref());
                self.report
                    .error("unknown-agent", message, &self.document.place(agent.span()))
                    .maybe_help(help);
            }
        }
        found
    }

    /// The action, and whether it gives decoys: to whom they may not be given, such a rule is a deny rule.
    fn action(&mut self, action: Option<&Name>, whole: &Range<usize>) -> Option<(RuleAction, bool)> {
        match action.map(|action| (action.get_ref().as_str(), action.span())) {
            Some(("allow", _)) => Some((RuleAction::Allow, false)),
            Some(("deny", _)) => Some((RuleAction::Deny, false)),
            Some(("decoy", _)) => Some((RuleAction::Deny, true)),
            Some((_, span)) => {
                self.error("bad-action", "the action is \"allow\", \"deny\" or \"decoy\"", span);
                None
            }
            None => {
                self.error(
                    "no-action",
                    "every rule needs an action: \"allow\", \"deny\" or \"decoy\"",
                    whole.clone(),
                );
                None
            }
        }
    }

    fn path(&mut self, path: &Name) -> Option<PathPattern> {
        match PathPattern::parse(path.get_ref()) {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                self.error("bad-path", error.to_string(), path.span());
                None
            }
        }
    }

    fn methods(&mut self, methods: &Names, whole: &Range<usize>) -> Methods {
        let mut set = Methods::NONE;
        for method in self.given("method", Some(&methods.0), whole) {
            if let Some(with) = set.with(method.get_ref()) {
                set = with;
            } else {
                let help = format!("methods are {}, in capitals", Methods::NAMES.join(", "));
                self.report
                    .error(
                        "unknown-method",
                        format!("there is no method `{}`", method.get_ref()),
                        &self.document.place(method.span()),
                    )
                    .help(help);
            }
        }
        set
    }

    /// Keys are compared as requests bring them: decoded, in lower case.
    fn query(&mut self, condition: &Name) -> Option<QueryTest> {
        let text = condition.get_ref().as_str();
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
        if key.is_empty() || text.contains(['&', '#', ';']) || key.contains(['?', '%', '+']) {
            self.report
                .error(
                    "bad-query",
                    "a query condition is `key` or `key=value`, without percent signs",
                    &self.document.place(condition.span()),
                )
                .help("it is compared with the decoded query; a list means any of its entries");
            return None;
        }
        Some(QueryTest { key: key.to_ascii_lowercase().into(), value: value.map(Into::into) })
    }

    fn rule_classes(&mut self, table: &RuleTable, whole: &Range<usize>) -> Option<Classes> {
        let names = &table.class.as_ref()?.0;
        let names = self.given("class", Some(names), whole);
        Some(classes(self.document, names, self.report))
    }

    fn header(&mut self, header: &Name) -> Option<Box<str>> {
        let text = header.get_ref().as_str();
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if text.is_empty() || !text.bytes().all(token) {
            self.error(
                "bad-header",
                "this is no header's name; a rule asks only whether a header is there",
                header.span(),
            );
            return None;
        }
        Some(text.into())
    }
}
