//! `[[agent]]`, read from its table.

use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;

use super::{DraftAgent, Reader, names};
use crate::cloud::{Class, Classes};
use crate::policy::agent::{Agent, Cgroups};
use crate::policy::compile::{classes, empty_list, shared};
use crate::policy::containers::{self, ContainerPattern};
use crate::policy::diagnostic::did_you_mean;
use crate::policy::evaluate::all_classes;
use crate::policy::index::RuleSet;
use crate::policy::session::V1;
use crate::policy::source::{AgentTable, Ids, Name};
use crate::policy::unit::{UnitFault, UnitPattern};

impl Reader<'_, '_, '_> {
    pub(super) fn agent(&mut self, table: &Spanned<AgentTable>) -> Option<DraftAgent> {
        let whole = table.span();
        let table = table.get_ref();
        let name = self.name("agent", table.name.as_ref(), whole.clone());
        let place = self.cgroups(table, &whole);
        let uids = self.agent_uids(table, &whole);
        let containers = self.containers(table, &place, uids.is_some(), &whole);
        let exes: Vec<_> = self
            .given("exe", table.exe.as_ref().map(names), &whole)
            .iter()
            .filter_map(|exe| Some((self.exe(exe)?, self.document.place(exe.span()))))
            .collect();
        let sha256 = self
            .given("sha256", table.sha256.as_ref().map(names), &whole)
            .iter()
            .filter_map(|hex| self.digest(hex))
            .collect();
        let allow = classes(self.document, &table.allow.0, self.report);
        let mut agent = Agent {
            name: shared(name?),
            place,
            containers,
            subtree: table.subtree.as_ref().is_some_and(|subtree| *subtree.get_ref()),
            uids,
            exe: exes.iter().map(|(exe, _)| exe.clone()).collect(),
            sha256,
            allow,
            ceiling: all_classes(),
            v1: V1::read(self.document, table.v1.as_ref(), self.report),
            rules: RuleSet::default(),
        };
        let name_place = self.document.place(name?.span());
        if agent.is_weak() && !agent.binds_exe() {
            self.report
                .error(
                    "agent-is-anybody",
                    format!("agent `{}` says nothing about who it is", agent.name),
                    &name_place,
                )
                .help("give it a unit and a user, or a cgroup, group or exe");
        }
        let weak =
            table.weak.as_ref().filter(|weak| *weak.get_ref()).map(|weak| self.document.place(weak.span()));
        if agent.is_weak() && weak.is_none() {
            agent.ceiling = agent.ceiling.minus(Classes::of(Class::Credentials));
        }
        if let (Cgroups::Anywhere, Some(subtree)) = (&agent.place, &table.subtree) {
            self.error("subtree-of-nothing", "`subtree` needs a `unit` or a `cgroup`", subtree.span());
        }
        let v1 = table.v1.as_ref().map(|v1| self.document.place(v1.span()));
        Some(DraftAgent { agent, place: name_place, weak, v1, exes })
    }

    fn cgroups(&mut self, table: &AgentTable, whole: &Range<usize>) -> Cgroups {
        let units = self.given("unit", table.unit.as_ref().map(names), whole);
        let paths = self.given("cgroup", table.cgroup.as_ref().map(names), whole);
        if let ([_, ..], [path, ..]) = (units, paths) {
            self.error(
                "unit-and-cgroup",
                "`unit` and `cgroup` both say where the agent lives: give one",
                path.span(),
            );
        }
        let subtree = table.subtree.as_ref().is_some_and(|subtree| *subtree.get_ref());
        if !units.is_empty() {
            return Cgroups::Units(units.iter().filter_map(|unit| self.unit(unit)).collect());
        }
        if !paths.is_empty() {
            return Cgroups::Literal(paths.iter().filter_map(|path| self.cgroup(path, subtree)).collect());
        }
        Cgroups::Anywhere
    }

    /// What containers the agent is. Those that users or units name need a user or a unit beside the name.
    fn containers(
        &mut self,
        table: &AgentTable,
        place: &Cgroups,
        has_user: bool,
        whole: &Range<usize>,
    ) -> Vec<ContainerPattern> {
        let Some(tables) = &table.container else { return Vec::new() };
        if tables.0.is_empty() {
            empty_list("container", &self.document.place(whole.clone()), self.report);
        }
        let mut patterns = Vec::new();
        for table in &tables.0 {
            let span = table.span();
            let Some(pattern) = containers::pattern(table, &self.document.place(span.clone()), self.report)
            else {
                continue;
            };
            match (pattern.is_quadlet(), place) {
                (true, Cgroups::Units(_)) | (false, Cgroups::Anywhere) => {}
                (true, _) => self.error(
                    "container-needs-unit",
                    "a Quadlet container stands inside a unit: add that `unit`, since units name their children",
                    span.clone(),
                ),
                (false, _) => self.error(
                    "container-and-place",
                    "only a Quadlet container has a `unit`, and none has a `cgroup`: `container` says where it is",
                    span.clone(),
                ),
            }
            if pattern.rootless && !has_user {
                self.error(
                    "container-needs-user",
                    "users name the cgroups of their own containers: add the `user`",
                    span,
                );
            }
            patterns.push(pattern);
        }
        patterns
    }

    fn unit(&mut self, unit: &Name) -> Option<UnitPattern> {
        let (message, help) = match UnitPattern::parse(unit.get_ref()) {
            Ok(pattern) => return Some(pattern),
            Err(UnitFault::Suffix) => {
                ("this is no unit's full name", "write the suffix, as in `sshd.service`")
            }
            Err(UnitFault::Star) => (
                "`*` may stand only for an instance",
                "as in `policy-routes@*.service`; list other units by name",
            ),
            Err(UnitFault::Name) => ("this is no unit's name", "for a path use `cgroup`"),
        };
        self.report.error("bad-unit", message, &self.document.place(unit.span())).help(help);
        None
    }

    fn cgroup(&mut self, path: &Name, subtree: bool) -> Option<Box<str>> {
        let text = path.get_ref().as_str();
        let well_formed = text == "/"
            || text.starts_with('/') && text.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
        if !well_formed || text.contains('*') {
            self.report
                .error(
                    "bad-cgroup",
                    "a cgroup is an absolute path without `*`, dots and a trailing slash",
                    &self.document.place(path.span()),
                )
                .help("it is compared letter by letter, as in `/system.slice/x.service`");
            return None;
        }
        if text == "/" && subtree {
            self.error("agent-is-anybody", "the subtree of `/` is every process", path.span());
            return None;
        }
        Some(text.into())
    }

    /// The uids that both `user` and `group` allow.
    fn agent_uids(&mut self, table: &AgentTable, whole: &Range<usize>) -> Option<BTreeSet<u32>> {
        let users = table.user.as_ref().map(|users| self.users("user", users, whole));
        let groups = table.group.as_ref().map(|groups| self.members(groups, whole));
        match (users, groups) {
            (Some(users), Some(groups)) => Some(users.intersection(&groups).copied().collect()),
            (users, groups) => users.or(groups),
        }
    }

    fn members(&mut self, groups: &Ids, whole: &Range<usize>) -> BTreeSet<u32> {
        let mut uids = BTreeSet::new();
        for group in self.given("group", Some(&groups.0), whole) {
            if let Some(members) = self.accounts.members(group.get_ref()) {
                uids.extend(members);
            } else {
                let help = did_you_mean(group.get_ref(), self.accounts.group_names());
                let message = format!("this machine has no group `{}`", group.get_ref());
                self.report
                    .warning("unknown-group", message, &self.document.place(group.span()))
                    .maybe_help(help);
            }
        }
        uids
    }

    fn exe(&mut self, exe: &Name) -> Option<Box<str>> {
        let text = exe.get_ref().as_str();
        let well_formed =
            text.starts_with('/') && text.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
        if !well_formed || text.contains("**") {
            self.report
                .error(
                    "bad-exe",
                    "an executable is an absolute path; `*` stands for anything inside one segment",
                    &self.document.place(exe.span()),
                )
                .help("as in `/snap/amazon-ssm-agent/*/amazon-ssm-agent`");
            return None;
        }
        Some(text.into())
    }

    fn digest(&mut self, hex: &Name) -> Option<Box<str>> {
        let text = hex.get_ref();
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            self.error("bad-sha256", "a SHA-256 is 64 hexadecimal digits", hex.span());
            return None;
        }
        Some(text.to_ascii_lowercase().into())
    }
}
