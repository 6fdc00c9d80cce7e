//! What is allowed in a policy and probably not meant: one warning each, with a code.

use super::agent::{Agent, Cgroups};
use super::containers::Containers;
use super::decision::Mode;
use super::decoy::Canaries;
use super::diagnostic::{Place, Report};
use super::draft::{Draft, DraftAgent, DraftRule};
use super::rule::{RuleAction, both};
use super::session::V1;
use super::settings::{Settings, TlsUse};
use super::shape::Document;
use crate::cloud::tls::TlsAt;
use crate::cloud::{Catalogue, Class, Classes, PathPattern, Selection};

mod decoy;
mod v1;

/// A policy just before its pieces lose their places.
pub(super) struct Lint<'a> {
    pub(super) mode: Mode,
    pub(super) everyone: Classes,
    pub(super) v1: V1,
    pub(super) containers: Option<&'a Containers>,
    pub(super) canaries: Option<&'a Canaries>,
    pub(super) settings: &'a Settings,
    pub(super) selection: &'a Selection,
    pub(super) chosen: &'a [&'a str],
    pub(super) catalogue: &'a Catalogue,
    pub(super) documents: &'a [Document],
    pub(super) draft: &'a Draft,
}

impl Lint<'_> {
    pub(super) fn run(&self, report: &mut Report<'_>) {
        self.grants(report);
        self.v1(report);
        self.upstream_tls(report);
        self.decoys(report);
        for (id, drafted) in (0..).zip(&self.draft.agents) {
            let used =
                self.draft.rules.iter().any(|rule| rule.agents.as_ref().is_some_and(|ids| ids.contains(&id)));
            self.agent(drafted, used, report);
        }
        for drafted in &self.draft.rules {
            self.rule(drafted, report);
            self.shadowed(drafted, report);
        }
    }

    fn grants(&self, report: &mut Report<'_>) {
        for document in self.documents {
            let tables = [
                ("[everyone]", "any process of the machine", "credentials-for-everyone", &document.everyone),
                ("[unattributed]", "whom nobody knows", "secrets-for-unattributed", &document.unattributed),
            ];
            let tables = tables.map(|(name, whom, code, table)| {
                (name, whom, code, table.as_ref().map(|table| &table.get_ref().allow))
            });
            let containers = document.containers.as_ref().map(|table| &table.get_ref().allow);
            let containers = ("[containers]", "any container", "secrets-for-containers", containers);
            for (name, whom, code, allow) in tables.into_iter().chain([containers]) {
                let Some(allow) = allow else { continue };
                let named = allow.0.iter().find(|allowed| {
                    Class::from_name(allowed.get_ref()).is_some_and(|class| secrets().contains(class))
                });
                if let Some(named) = named {
                    let message = format!("{name} gives `{}` to {whom}", named.get_ref());
                    report
                        .warning(code, message, &document.place(named.span()))
                        .help("a web application that can be made to fetch a URL is one of them; name the agents instead");
                }
            }
        }
    }

    /// A machine that is detected when it boots cannot be told from here.
    fn upstream_tls(&self, report: &mut Report<'_>) {
        let key = self.documents.first().and_then(|main| {
            let key = main.guard.as_ref()?.get_ref().upstream_tls.as_ref()?;
            Some(main.place(key.span()))
        });
        let Some(place) = key.filter(|_| *self.selection != Selection::Auto) else { return };
        let endpoints = self.catalogue.endpoints();
        let any = |wanted: fn(TlsAt<'_>) -> bool| {
            endpoints.iter().any(|endpoint| wanted(self.catalogue.upstream_tls(*endpoint)))
        };
        match self.settings.upstream_tls {
            TlsUse::Off => {}
            TlsUse::Require if any(|at| at == TlsAt::Uncertain) => report
                .warning(
                    "upstream-tls-uncertain",
                    "several clouds may be meant, so nothing can be sent as required",
                    &place,
                )
                .help("name the one cloud that this machine runs on"),
            TlsUse::Prefer if any(|at| at == TlsAt::Uncertain) => report
                .warning(
                    "upstream-tls-uncertain",
                    "several clouds may be meant, so TLS is not spoken where they are",
                    &place,
                )
                .help("name the one cloud that this machine runs on"),
            TlsUse::Prefer | TlsUse::Require if any(|at| at != TlsAt::Nowhere) => {}
            TlsUse::Prefer | TlsUse::Require => {
                report.warning("upstream-tls-has-no-effect", "no chosen cloud can be asked over TLS", &place);
            }
        }
    }

    fn agent(&self, drafted: &DraftAgent, used: bool, report: &mut Report<'_>) {
        let DraftAgent { agent, place, weak, .. } = drafted;
        let name = &agent.name;
        if !agent.containers.is_empty() {
            self.agent_in_container(agent, place, report);
        }
        if agent.is_weak() && agent.binds_exe() && weak.is_none() {
            report
                .warning("weak-identity", format!("agent `{name}` is known by its executable alone, so it gets no credentials"), place)
                .help("any local user can run that file under a debugger or with LD_PRELOAD: add `unit` and `user`, or accept it with weak = true");
        }
        if let Some(weak) = weak
            && !agent.is_weak()
        {
            report.warning(
                "weak-has-no-effect",
                format!("agent `{name}` has a unit, cgroup or user, so it is not weak"),
                weak,
            );
        }
        if matches!(agent.place, Cgroups::Units(_))
            && agent.uids.is_none()
            && (used || !agent.allow.is_subset_of(self.everyone))
        {
            report
                .warning("unit-without-user", format!("agent `{name}` is any user in that unit"), place)
                .help("an agent's sessions and scripts run in its own unit under other users: add `user`");
        }
        if let Cgroups::Units(units) = &agent.place
            && let Some(unit) = units.iter().find(|unit| unit.is_open_to_users())
            && agent.uids.as_ref().is_none_or(|uids| uids.iter().any(|uid| *uid != 0))
        {
            report
                .warning("unit-of-anybody", format!("agent `{name}` lives in `{unit}`, where any user can have programs started as itself"), place)
                .help("whoever may write a crontab or an at job as that user is this agent: give the program a unit of its own");
        }
        if !used && agent.allow.is_empty() {
            report.warning(
                "unused-agent",
                format!("agent `{name}` may nothing, and no rule names it"),
                place,
            );
        }
        self.agent_place(agent, place, report);
    }

    fn agent_in_container(&self, agent: &Agent, place: &Place, report: &mut Report<'_>) {
        let name = &agent.name;
        if self.containers.is_none() {
            report
                .warning(
                    "containers-not-led",
                    format!("agent `{name}` is a container, and the policy has no [containers]"),
                    place,
                )
                .help("only containers in the host's own network namespace reach the guard without it");
        }
        if agent.binds_exe() {
            report
                .warning(
                    "agent-matches-nobody",
                    format!("agent `{name}` is bound to an executable inside a container"),
                    place,
                )
                .help(
                    "a container's files are not the host's, so their names prove nothing and grant nothing",
                );
        }
    }

    fn agent_place(&self, agent: &Agent, place: &Place, report: &mut Report<'_>) {
        let name = &agent.name;
        if let Cgroups::Units(units) = &agent.place
            && !agent.subtree
            && let Some(slice) = units.iter().find(|unit| unit.is_slice())
        {
            report
                .warning(
                    "agent-matches-nobody",
                    format!("agent `{name}` names `{slice}`, which holds no process itself"),
                    place,
                )
                .help("add subtree = true for the units below it");
        }
        if let Cgroups::Units(units) = &agent.place
            && let Some(unit) = units.iter().find(|unit| unit.is_of_users())
        {
            report
                .warning("agent-matches-nobody", format!("agent `{name}` names `{unit}`, which lives in user.slice"), place)
                .help("users' own managers name their children as they like, so `unit` never matches there: use `user`");
        }
        if let Cgroups::Literal(paths) = &agent.place
            && agent.uids.is_none()
            && paths.iter().any(|path| path.starts_with("/user.slice"))
        {
            report
                .warning(
                    "cgroup-of-users",
                    format!("agent `{name}` lives where users make cgroups themselves"),
                    place,
                )
                .help("add `user`, so that the name of the cgroup is not all that is known");
        }
        let guard = self.settings.user.uid;
        if agent.uids.as_ref().is_some_and(|uids| uids.len() == 1 && uids.first().copied() == guard) {
            report
                .warning(
                    "agent-matches-nobody",
                    format!("agent `{name}` is the guard's own user, which is never redirected"),
                    place,
                )
                .help("run the agent as a user of its own");
        }
    }

    fn rule(&self, drafted: &DraftRule, report: &mut Report<'_>) {
        let DraftRule { rule, place, agents } = drafted;
        let name = &rule.name;
        if self.mode == Mode::Audit && rule.mode == Some(Mode::Enforce) {
            report
                .warning("enforce-fails-open", format!("rule `{name}` is enforced only while the guard runs"), place)
                .help("the policy's mode says what happens when the guard dies, and in audit traffic then flows");
        }
        let anybody = agents.is_none() && rule.uids.is_none();
        let credentials = match rule.classes {
            Some(classes) => classes.contains(Class::Credentials),
            None => rule.paths.is_empty(),
        };
        if rule.action == RuleAction::Allow && anybody && credentials {
            report
                .warning(
                    "credentials-for-everyone",
                    format!("rule `{name}` gives credentials to any process of the machine"),
                    place,
                )
                .help("name an agent or a user");
        }
        if let Some(why) = self.never_matches(drafted) {
            report.warning("rule-never-matches", format!("rule `{name}` can never match: {why}"), place);
        }
    }

    fn never_matches(&self, drafted: &DraftRule) -> Option<&'static str> {
        let rule = &drafted.rule;
        // A user that this machine lacks has its own warning.
        let known_users = rule.uids.as_ref().filter(|uids| !uids.is_empty());
        let agents = drafted.agents.iter().flatten().filter_map(|id| {
            usize::try_from(*id).ok().and_then(|at| self.draft.agents.get(at)).map(|one| &one.agent)
        });
        if let (Some(users), Some(_)) = (known_users, &drafted.agents)
            && agents.clone().all(|agent| agent.uids.as_ref().is_some_and(|uids| uids.is_disjoint(users)))
        {
            return Some("none of its agents runs as one of its users");
        }
        if drafted.agents.is_some()
            && rule.action == RuleAction::Allow
            && rule
                .classes
                .is_some_and(|classes| agents.clone().all(|agent| both(classes, agent.ceiling).is_empty()))
        {
            return Some("its agents are known by their executables alone, and those get no credentials");
        }
        // An image's policy speaks of clouds that this machine is not on; only a named choice is a contradiction.
        if let (Some(clouds), Selection::Named(_)) = (&rule.clouds, self.selection)
            && !clouds.iter().any(|cloud| self.chosen.contains(cloud))
        {
            return Some("the policy's `cloud` leaves its clouds out");
        }
        if let Some(classes) = rule.classes
            && !rule.paths.is_empty()
            && !rule.paths.iter().any(|path| self.could_touch(path, classes))
        {
            return Some("nothing at its paths touches its classes");
        }
        None
    }

    /// Whether a path may touch one of the classes: by the chosen clouds, or, where the machine's firmware chooses, by any
    /// that is known.
    fn could_touch(&self, path: &PathPattern, classes: Classes) -> bool {
        let by_any = || *self.selection == Selection::Auto && Catalogue::builtin().could_touch(path, classes);
        self.catalogue.could_touch(path, classes) || by_any()
    }

    /// An allow rule all of whose requests a deny rule takes.
    fn shadowed(&self, allow: &DraftRule, report: &mut Report<'_>) {
        if allow.rule.action != RuleAction::Allow {
            return;
        }
        let by = self
            .draft
            .rules
            .iter()
            .find(|deny| deny.rule.action == RuleAction::Deny && self.covers(deny, allow));
        if let Some(deny) = by {
            let message = format!(
                "rule `{}` has no effect: `{}` denies all that it allows",
                allow.rule.name, deny.rule.name
            );
            report
                .warning("rule-shadowed", message, &allow.place)
                .help("a matching deny beats any allow, whatever the order");
        }
    }

    fn covers(&self, deny: &DraftRule, allow: &DraftRule) -> bool {
        let carried_out = deny.rule.mode.unwrap_or(self.mode) == self.mode || self.mode == Mode::Audit;
        let (d, a) = (&deny.rule, &allow.rule);
        carried_out
            && wider(deny.agents.as_ref(), allow.agents.as_ref(), |d, a| a.is_subset(d))
            && wider(d.uids.as_ref(), a.uids.as_ref(), |d, a| a.is_subset(d))
            && wider(d.methods.as_ref(), a.methods.as_ref(), |d, a| d == a)
            && wider(d.classes, a.classes, |d, a| a.is_subset_of(d))
            && wider(d.clouds.as_ref(), a.clouds.as_ref(), |d, a| a.iter().all(|cloud| d.contains(cloud)))
            && (d.paths.is_empty()
                || !a.paths.is_empty() && a.paths.iter().all(|path| d.paths.contains(path)))
            && (d.query.is_empty() || d.query == a.query)
            && (d.headers.is_empty() || d.headers == a.headers)
    }
}

/// Whether one condition takes in all that another does; no condition takes in everything.
fn wider<T>(deny: Option<T>, allow: Option<T>, covers: impl Fn(T, T) -> bool) -> bool {
    match (deny, allow) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(deny), Some(allow)) => covers(deny, allow),
    }
}

/// What no process should have without a name.
fn secrets() -> Classes {
    [Class::Credentials, Class::Identity, Class::UserData].into_iter().collect()
}
