//! Decoys that nobody would ever be given.

use std::collections::BTreeSet;

use super::Lint;
use crate::cloud::{Class, Selection};
use crate::policy::diagnostic::{Place, Report};
use crate::policy::draft::DraftRule;

impl Lint<'_> {
    pub(super) fn decoys(&self, report: &mut Report<'_>) {
        let file = self.documents.first().and_then(|main| {
            let key = main.guard.as_ref()?.get_ref().decoys.as_ref()?;
            Some(main.place(key.span()))
        });
        let mut rules = self.draft.rules.iter().filter(|drafted| drafted.rule.decoy).peekable();
        if let (Some(place), None) = (&file, rules.peek()) {
            report.warning("decoys-unused", "no rule has action = \"decoy\"", place);
        }
        for drafted in rules {
            self.decoy(drafted, file.as_ref(), report);
        }
    }

    fn decoy(&self, drafted: &DraftRule, file: Option<&Place>, report: &mut Report<'_>) {
        let DraftRule { rule, place, .. } = drafted;
        let name = &rule.name;
        if file.is_none() {
            report
                .warning(
                    "decoy-without-file",
                    format!("rule `{name}` has no decoys to give, so it refuses"),
                    place,
                )
                .help("name the file of canaries: [guard] decoys = \"/etc/imds-guard/decoys.toml\"");
            return;
        }
        if rule.classes.is_some_and(|classes| !classes.contains(Class::Credentials)) {
            report
                .warning(
                    "decoy-has-no-effect",
                    format!("rule `{name}` is not about credentials, so it refuses"),
                    place,
                )
                .help("decoys answer reads of credentials alone");
            return;
        }
        let clouds: BTreeSet<&str> = match &rule.clouds {
            Some(clouds) => clouds.iter().copied().collect(),
            None => self.chosen.iter().copied().collect(),
        };
        let with_forms =
            |cloud: &&&str| self.catalogue.cloud(cloud).is_some_and(|cloud| !cloud.decoys().is_empty());
        let able: Vec<&str> = clouds.iter().filter(with_forms).copied().collect();
        // An image's policy speaks of clouds that this machine is not on.
        if able.is_empty() && (rule.clouds.is_none() || matches!(self.selection, Selection::Named(_))) {
            report
                .warning(
                    "decoy-has-no-effect",
                    format!("rule `{name}`: its clouds have no decoys, so it refuses"),
                    place,
                )
                .help("`imds-guard clouds` shows which have");
        }
        let Some(canaries) = self.canaries else { return };
        let certain = rule.clouds.is_some() || *self.selection != Selection::All;
        for cloud in able.iter().filter(|cloud| certain && !canaries.has(cloud)) {
            report
                .warning(
                    "decoy-without-canary",
                    format!("rule `{name}` has no canary for {cloud}, so it refuses there"),
                    place,
                )
                .help("add its table to the file of decoys");
        }
    }
}
