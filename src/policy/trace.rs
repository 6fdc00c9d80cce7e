//! What speaks for and against one request, part by part: for `explain`, where [`Policy::decide`] gives the sum.

use std::sync::Arc;

use super::agent::{Agent, Cgroups, View};
use super::compile::Policy;
use super::decision::Mode;
use super::evaluate::all_classes;
use super::reason::ExeDoubt;
use super::rule::{Rule, RuleAction, both};
use super::session::V1;
use super::unit::{UnitPattern, holds_container};
use crate::caller::{Caller, Origin, Stamps};
use crate::cloud::{Asked, Class, Classes};

/// Everything that speaks about one request of one caller.
#[derive(Debug, Clone)]
pub struct Trace {
    /// What the request touches.
    pub touched: Classes,
    /// What can be withheld of the answer, so that the rest may pass; nothing if the policy refuses mixed answers.
    pub withholdable: Classes,
    /// What `[everyone]`, or of an unattributed caller `[unattributed]`, grants.
    pub base: Classes,
    /// What is held back of all grants, because only processes tell the caller's unit.
    pub held_back: Classes,
    /// The agents that the caller is, or would be but for its executable or its user.
    pub agents: Vec<AgentStep>,
    /// The rules that match the request, whether or not they count for this caller.
    pub rules: Vec<RuleStep>,
    /// What becomes of a request without a session token, for one that has none; and who says so.
    pub v1: Option<V1Trace>,
}

/// What becomes of a request without a session token.
#[derive(Debug, Clone)]
pub struct V1Trace {
    /// What.
    pub v1: V1,
    /// The agent that says so; without one, the policy as a whole.
    pub agent: Option<Arc<str>>,
}

/// How one agent bears on the caller.
#[derive(Debug, Clone)]
pub struct AgentStep {
    /// Its name.
    pub name: Arc<str>,
    /// What it grants if the caller is it.
    pub allow: Classes,
    /// Whether the caller is it.
    pub fit: AgentFit,
}

/// Whether a caller is an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentFit {
    /// It is.
    Is,
    /// Its cgroup and user are the agent's, and there is doubt about its executable.
    Doubt(ExeDoubt),
    /// It lives where the agent lives, as another user.
    OtherUser,
    /// A container's number is not the host's user.
    Container,
}

/// How one matching rule bears on the request.
#[derive(Debug, Clone)]
pub struct RuleStep {
    /// Its name.
    pub name: Arc<str>,
    /// The agent through which it speaks about the caller, if it names agents.
    pub agent: Option<Arc<str>>,
    /// Whether it denies.
    pub denies: bool,
    /// Whether it counts: doubt about an executable takes the force from an allow rule, never from a deny rule.
    pub counts: bool,
    /// What it grants, for an allow rule.
    pub grants: Classes,
    /// Its own mode, or the policy's.
    pub mode: Mode,
}

impl Trace {
    /// What all parts together grant.
    #[must_use]
    pub fn granted(&self) -> Classes {
        let agents = self.agents.iter().filter(|step| step.fit == AgentFit::Is).map(|step| step.allow);
        let rules = self.rules.iter().filter(|step| step.counts && !step.denies).map(|step| step.grants);
        agents.chain(rules).fold(self.base, Classes::union).minus(self.held_back)
    }

    /// A rule on trial is not tried where a part of the answer is withheld: it would let the whole pass.
    fn settle_trials(mut self, policy: &Policy) -> Self {
        let is_partial = !self.withholdable.minus(self.granted()).is_empty();
        if policy.mode() == Mode::Enforce && is_partial {
            self.rules.iter_mut().for_each(|step| step.counts &= !(step.denies && step.mode == Mode::Audit));
        }
        self
    }
}

impl Policy {
    /// Looks at each part of the policy that could speak about the request. Slower than deciding, and of no
    /// consequence: the verdict is [`Policy::decide`]'s.
    #[must_use]
    pub fn trace(&self, caller: &Caller, asked: &Asked) -> Trace {
        let touched = match asked.touched.classes {
            none if none.is_empty() => Classes::of(Class::Unknown),
            some => some,
        };
        let target = asked.target.as_ref();
        let withholdable = target.map_or(Classes::EMPTY, |target| self.withholdable(asked, target));
        let Some(stamps) = caller.stamps() else {
            let rules = self.steps(None, asked, None, (false, true)).collect();
            let v1 = self.v1_trace(caller, asked, View::Actual(&caller.processes));
            let base = self.base(caller);
            let (held_back, agents) = (Classes::EMPTY, Vec::new());
            return Trace { touched, withholdable, base, held_back, agents, rules, v1 }.settle_trials(self);
        };
        let view = View::Actual(&caller.processes);
        let in_container = caller.origin == Origin::Container || holds_container(stamps.cgroup.path.as_str());
        let grants = caller.origin == Origin::Host;
        let mut rules: Vec<RuleStep> = self.steps(Some(stamps), asked, None, (grants, true)).collect();
        // A rule about users alone does not mean a container's users.
        for step in &mut rules {
            let by_uid = self.rules.iter().any(|rule| rule.name == step.name && rule.uids.is_some());
            step.counts &= step.denies || !(by_uid && in_container);
        }
        let mut agents = Vec::new();
        for (id, agent) in (0..).zip(&self.agents) {
            agents.extend(agent_step(agent, stamps, caller.origin, view));
            let fit = agent.fit(stamps, caller.origin, view);
            if fit.grants || fit.denies || fit.doubt.is_some() {
                rules.extend(self.steps(Some(stamps), asked, Some(id), (fit.grants, fit.denies)));
            }
        }
        rules.sort_by(|a, b| (b.denies, &a.name).cmp(&(a.denies, &b.name)));
        let v1 = self.v1_trace(caller, asked, view);
        let (base, held_back) = (self.base(caller), self.degraded.held_back(all_classes(), caller));
        Trace { touched, withholdable, base, held_back, agents, rules, v1 }.settle_trials(self)
    }

    fn v1_trace(&self, caller: &Caller, asked: &Asked, view: View<'_>) -> Option<V1Trace> {
        let is_v1 = asked.spoken.as_ref().is_some_and(|spoken| spoken.version() == Some("v1"));
        let step = is_v1.then(|| self.v1_of(caller, view))?;
        Some(V1Trace { v1: step.v1, agent: step.agent.map(|agent| Arc::clone(&agent.name)) })
    }

    /// The matching rules among those that name this agent, or among those that name none.
    fn steps<'a>(
        &'a self,
        stamps: Option<&'a Stamps>,
        asked: &'a Asked,
        agent: Option<u32>,
        (grants, denies): (bool, bool),
    ) -> impl Iterator<Item = RuleStep> + 'a {
        let agent = agent.and_then(|id| self.agent(id));
        let named = agent.map(|agent| &agent.rules);
        let by_uid = stamps.and_then(|stamps| self.rules_by_uid.get(&stamps.uid)).filter(|_| agent.is_none());
        let for_all = agent.is_none().then_some(&self.rules_for_all);
        let sets = named.into_iter().chain(by_uid).chain(for_all);
        let rules = sets.flat_map(super::index::RuleSet::all).filter_map(|id| self.rule(id));
        rules.filter(move |rule| speaks(rule, stamps, asked)).map(move |rule| {
            let denies_too = rule.action == RuleAction::Deny;
            let hidden =
                asked.target.as_ref().map_or(Classes::EMPTY, |target| self.withholdable(asked, target));
            let touched = asked.touched.classes.union(hidden);
            let ceiling = agent.map_or(Class::ALL.into_iter().collect(), |agent| agent.ceiling);
            RuleStep {
                name: Arc::clone(&rule.name),
                agent: agent.map(|agent| Arc::clone(&agent.name)),
                denies: denies_too,
                counts: if denies_too { denies } else { grants },
                grants: if denies_too { Classes::EMPTY } else { both(rule.grants(touched), ceiling) },
                mode: self.mode_of(rule),
            }
        })
    }
}

fn speaks(rule: &Rule, stamps: Option<&Stamps>, asked: &Asked) -> bool {
    let of_caller =
        rule.uids.as_ref().is_none_or(|uids| stamps.is_some_and(|stamps| uids.contains(&stamps.uid)));
    of_caller && asked.target.as_ref().is_ok_and(|target| rule.matches(asked, target, asked.touched.classes))
}

fn agent_step(agent: &Agent, stamps: &Stamps, origin: Origin, view: View<'_>) -> Option<AgentStep> {
    let fit = agent.fit(stamps, origin, view);
    let lives_somewhere = agent.place != Cgroups::Anywhere || !agent.containers.is_empty();
    let at_home = || lives_somewhere && agent.is_at_home(stamps.cgroup.path.as_str());
    let fit = match (fit.grants, fit.doubt) {
        (true, _) => AgentFit::Is,
        (false, Some(doubt)) => AgentFit::Doubt(doubt),
        (false, None) if fit.denies => AgentFit::Container,
        (false, None) if at_home() => AgentFit::OtherUser,
        (false, None) => return None,
    };
    Some(AgentStep { name: Arc::clone(&agent.name), allow: both(agent.allow, agent.ceiling), fit })
}

/// The unit of the system's own manager that a cgroup is, as `unit` in a policy means it: nothing but slices above
/// it. `None` for what lies in a user's manager, in a container, or below a unit.
#[must_use]
pub fn system_unit(cgroup: &str) -> Option<&str> {
    let name = cgroup.rsplit('/').next()?;
    let unit = UnitPattern::parse(name).ok()?;
    let is_unit = !unit.is_slice() && !unit.is_of_users() && !name.contains('*');
    (is_unit && unit.matches(cgroup, false) && !holds_container(cgroup)).then_some(name)
}

/// Whether any part of a cgroup's path is one that a container engine makes.
#[must_use]
pub fn in_container(cgroup: &str) -> bool {
    holds_container(cgroup)
}

#[cfg(test)]
mod tests {
    use super::system_unit;

    #[test]
    fn only_the_system_s_own_units_are_units() {
        assert_eq!(system_unit("/system.slice/nginx.service"), Some("nginx.service"));
        assert_eq!(
            system_unit("/system.slice/system-getty.slice/getty@tty1.service"),
            Some("getty@tty1.service")
        );
        for no in [
            "/",
            "/user.slice/user-1000.slice/session-3.scope",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service",
            "/system.slice/docker-0a1b.scope",
            "/system.slice/nginx.service/child",
            "/system.slice",
        ] {
            assert_eq!(system_unit(no), None, "{no}");
        }
    }
}
