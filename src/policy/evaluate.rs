//! `decide`: everything that speaks about a request is added up, then one verdict is read off the sum.
//!
//! Sums do not depend on the order of what is added, and neither does the verdict. Nothing is allocated here.

use std::sync::Arc;

use super::agent::{Agent, View};
use super::aggregate::Aggregate;
use super::compile::Policy;
use super::decision::{Decision, Mode, Verdict};
use super::index::{Id, RuleSet};
use super::reason::{ExeDoubt, Reason, Standing};
use super::rule::{Rule, RuleAction, both};
use super::unit::holds_container;
use crate::caller::{Attribution, Caller, Origin, Stamps};
use crate::cloud::{Asked, Class, Classes};
use crate::request::{Fault, Target};

/// What speaks for and against one request.
#[derive(Default)]
struct Sum {
    /// What `[everyone]` or `[unattributed]` grants.
    base: Classes,
    /// For each class, the first agent by name that grants it.
    agents: PerClass,
    /// For each class, the first allow rule by name that grants it.
    rules: PerClass,
    /// The first agent by name that the caller is.
    agent: Option<Id>,
    /// What agents would grant if there were no doubt about executables.
    doubted: Classes,
    /// The strongest of those doubts.
    doubt: Option<ExeDoubt>,
    /// The first matching deny rule by name that is carried out.
    enforced: Option<Id>,
    /// The first matching deny rule by name that is only recorded.
    recorded: Option<Id>,
    /// Of those, the first that gives decoys.
    enforced_decoy: Option<Id>,
    recorded_decoy: Option<Id>,
}

/// The smallest id for each class.
#[derive(Default)]
struct PerClass([Option<Id>; Class::ALL.len()]);

impl PerClass {
    fn add(&mut self, classes: Classes, id: Id) {
        for (slot, class) in self.0.iter_mut().zip(Class::ALL) {
            if classes.contains(class) {
                least(slot, id);
            }
        }
    }

    fn classes(&self) -> Classes {
        Class::ALL.into_iter().zip(&self.0).filter(|(_, id)| id.is_some()).map(|(class, _)| class).collect()
    }

    fn first(&self, among: Classes) -> Option<Id> {
        let ids = Class::ALL.into_iter().zip(&self.0).filter(|(class, _)| among.contains(*class));
        ids.filter_map(|(_, id)| *id).min()
    }

    /// The ids that grant one of these classes.
    fn ids(&self, among: Classes) -> impl Iterator<Item = Id> {
        Class::ALL
            .into_iter()
            .zip(&self.0)
            .filter(move |(class, _)| among.contains(*class))
            .filter_map(|(_, id)| *id)
    }
}

fn least(slot: &mut Option<Id>, id: Id) {
    *slot = Some(slot.map_or(id, |known| known.min(id)));
}

impl Policy {
    /// Decides whether a caller may have what it asked for. Pure, and the same for any order of the policy's parts.
    pub fn decide(&self, caller: &Caller, asked: &Asked) -> Decision {
        self.decide_with(caller, asked, View::Actual(&caller.processes))
    }

    /// Whether the verdict depends on which processes hold the caller's socket: true only if an agent whose
    /// stamps fit is bound to executables, and it matters.
    #[must_use]
    pub fn needs_processes(&self, caller: &Caller, asked: &Asked) -> bool {
        let Some(stamps) = caller.stamps() else { return false };
        if !self.agent_index.candidates(stamps).filter_map(|id| self.agent(id)).any(Agent::binds_exe) {
            return false;
        }
        let best = self.decide_with(caller, asked, View::Hopeful);
        let worst = self.decide_with(caller, asked, View::Wary);
        !best.does_the_same_as(&worst)
    }

    /// Whether some request of this caller may depend on which processes hold its socket: an agent whose stamps fit is
    /// bound to executables.
    #[must_use]
    pub fn may_need_processes(&self, caller: &Caller) -> bool {
        caller.stamps().is_some_and(|stamps| {
            let mut agents = self.agent_index.candidates(stamps).filter_map(|id| self.agent(id));
            agents.any(|agent| agent.binds_exe() && agent.fit(stamps, caller.origin, View::Hopeful).grants)
        })
    }

    /// Whether the caller may be one of the policy's agents, as far as its stamps tell.
    #[must_use]
    pub fn may_be_agent(&self, caller: &Caller) -> bool {
        caller.stamps().is_some_and(|stamps| {
            let mut agents = self.agent_index.candidates(stamps).filter_map(|id| self.agent(id));
            agents.any(|agent| agent.fit(stamps, caller.origin, View::Hopeful).grants)
        })
    }

    /// Whether the caller is one of the policy's agents, whatever that one may have.
    #[must_use]
    pub fn is_agent(&self, caller: &Caller) -> bool {
        caller.stamps().is_some_and(|stamps| {
            let mut agents = self.agent_index.candidates(stamps).filter_map(|id| self.agent(id));
            agents.any(|agent| agent.fit(stamps, caller.origin, View::Actual(&caller.processes)).grants)
        })
    }

    fn decide_with(&self, caller: &Caller, asked: &Asked, view: View<'_>) -> Decision {
        let target = match (&asked.target, asked.faults.first()) {
            (Ok(target), None) => target,
            (Err(fault), _) => return self.faulty(*fault, self.watches(caller, view), caller, view),
            (Ok(target), Some(fault)) => {
                let enforced = self.sum(caller, asked, target, view).enforced;
                return self.faulty(*fault, enforced, caller, view);
            }
        };
        self.with_session(self.granted(caller, asked, target, view), caller, asked, view)
    }

    /// What grants and rules say about a request without faults.
    fn granted(&self, caller: &Caller, asked: &Asked, target: &Target, view: View<'_>) -> Decision {
        let touched = touched(asked);
        let sum = self.sum(caller, asked, target, view);
        let granted = sum.base.union(sum.agents.classes()).union(sum.rules.classes());
        let held_back = self.degraded.held_back(granted, caller);
        let granted = granted.minus(held_back);
        let withheld = self.withholdable(asked, target).minus(granted);
        let missing = touched.minus(granted);
        let denied_by = match (sum.enforced, sum.recorded) {
            (Some(rule), _) => Some((rule, Mode::Enforce)),
            // A rule that is only recorded must not hide that nothing grants the request.
            (None, Some(rule)) if self.mode == Mode::Audit || missing.union(withheld).is_empty() => {
                Some((rule, Mode::Audit))
            }
            (None, _) => None,
        };
        match denied_by {
            Some((rule, mode)) => {
                let decoy = match mode {
                    Mode::Enforce => sum.enforced_decoy,
                    Mode::Audit => sum.recorded_decoy,
                };
                let bait = decoy.and_then(|_| self.bait(caller, asked, view));
                let rule = decoy.filter(|_| bait.is_some()).unwrap_or(rule);
                let denied = self.decision(Verdict::Deny, Reason::RuleDenies, Some(rule), sum.agent, mode);
                Decision { bait, ..denied }
            }
            None if missing.union(withheld).is_empty() => self.allowed(&sum, touched, caller),
            // What is missing is not the allowing rule's affair, so its own mode does not hold: on trial it would let
            // the whole answer pass.
            None if missing.is_subset_of(withheld) => {
                Decision { withheld, mode: self.mode, ..self.allowed(&sum, touched.minus(withheld), caller) }
            }
            None => {
                let caller = if both(missing, held_back).is_empty() {
                    standing(&sum, missing, caller)
                } else {
                    Standing::Degraded
                };
                let reason = Reason::NotGranted { missing, caller };
                self.decision(Verdict::Deny, reason, None, sum.agent, self.mode)
            }
        }
    }

    /// What can be withheld of the answer, if the policy says so. Only of a read: what else comes back from a request
    /// that changes something, nobody knows.
    pub(super) fn withholdable(&self, asked: &Asked, target: &Target) -> Classes {
        match self.aggregate {
            Aggregate::Redact if target.method().is_read() => asked.touched.withholdable,
            Aggregate::Redact | Aggregate::Refuse => Classes::EMPTY,
        }
    }

    /// A request with a fault is denied. In audit mode it passes, unless an enforced deny rule matches, or, where
    /// the request has no meaning to compare, could match: else a broken spelling would be the way around it.
    fn faulty(&self, fault: Fault, enforced: Option<Id>, caller: &Caller, view: View<'_>) -> Decision {
        let mode = if enforced.is_some() { Mode::Enforce } else { self.mode };
        let agent = caller.stamps().and_then(|stamps| {
            let ids = self.agent_index.candidates(stamps);
            ids.filter(|id| {
                self.agent(*id).is_some_and(|agent| agent.fit(stamps, caller.origin, view).grants)
            })
            .min()
        });
        self.decision(Verdict::Deny, Reason::Fault(fault), enforced, agent, mode)
    }

    fn allowed(&self, sum: &Sum, touched: Classes, caller: &Caller) -> Decision {
        let beyond_base = touched.minus(sum.base);
        let beyond_agents = beyond_base.minus(sum.agents.classes());
        let agent = sum.agents.first(beyond_base).or(sum.agent);
        if !beyond_agents.is_empty() {
            let modes =
                sum.rules.ids(beyond_agents).filter_map(|id| self.rule(id)).map(|rule| self.mode_of(rule));
            let mode = modes.max().unwrap_or(self.mode);
            let rule = sum.rules.first(beyond_agents);
            return self.decision(Verdict::Allow, Reason::RuleAllows, rule, agent, mode);
        }
        let reason = match (beyond_base.is_empty(), caller.origin, caller.stamps()) {
            (false, _, _) => Reason::AgentAllows,
            (true, Origin::Container, _) => Reason::ContainersAllow,
            (true, Origin::Host, Some(_)) => Reason::EveryoneAllows,
            (true, Origin::Host, None) => Reason::UnattributedAllows,
        };
        self.decision(Verdict::Allow, reason, None, agent, self.mode)
    }

    fn decision(
        &self,
        verdict: Verdict,
        reason: Reason,
        rule: Option<Id>,
        agent: Option<Id>,
        mode: Mode,
    ) -> Decision {
        let rule = rule.and_then(|id| self.rule(id)).map(|rule| Arc::clone(&rule.name));
        let agent = agent.and_then(|id| self.agent(id)).map(|agent| Arc::clone(&agent.name));
        Decision { verdict, reason, rule, agent, mode, upgrades: false, withheld: Classes::EMPTY, bait: None }
    }

    fn sum(&self, caller: &Caller, asked: &Asked, target: &Target, view: View<'_>) -> Sum {
        let mut sum = Sum::default();
        let touched = touched(asked);
        let reach = touched.union(self.withholdable(asked, target));
        let request = Request { asked, target, touched, reach };
        sum.base = self.base(caller);
        let Some(stamps) = caller.stamps() else {
            self.add_rules(&mut sum, &self.rules_for_all, &request, Subject::unattributed());
            return sum;
        };
        self.add_rules(&mut sum, &self.rules_for_all, &request, Subject::anybody(stamps, caller.origin));
        if let Some(rules) = self.rules_by_uid.get(&stamps.uid) {
            self.add_rules(&mut sum, rules, &request, Subject::by_uid(stamps, caller.origin));
        }
        for id in self.agent_index.candidates(stamps) {
            self.add_agent(&mut sum, id, (caller, stamps), &request, view);
        }
        sum
    }

    /// What the caller has without being any agent. What is said of every local process is not said of containers.
    pub(super) fn base(&self, caller: &Caller) -> Classes {
        let container = self.containers.as_ref().map_or(Classes::EMPTY, |containers| containers.allow);
        match (caller.origin, &caller.attribution) {
            (Origin::Host, Attribution::Stamped(_) | Attribution::Degraded(_)) => self.everyone,
            (Origin::Host, Attribution::Unattributed(_)) => self.unattributed,
            (Origin::Container, Attribution::Stamped(_) | Attribution::Degraded(_)) => container,
            (Origin::Container, Attribution::Unattributed(_)) => both(self.unattributed, container),
        }
    }

    fn add_agent(
        &self,
        sum: &mut Sum,
        id: Id,
        (caller, stamps): (&Caller, &Stamps),
        request: &Request<'_>,
        view: View<'_>,
    ) {
        let Some(agent) = self.agent(id) else { return };
        let fit = agent.fit(stamps, caller.origin, view);
        let subject = Subject {
            uid: Some(stamps.uid),
            grants: fit.grants,
            denies: fit.denies,
            ceiling: agent.ceiling,
            doubt: fit.doubt,
        };
        if fit.grants {
            least(&mut sum.agent, id);
            sum.agents.add(both(agent.allow, agent.ceiling), id);
        }
        if let Some(doubt) = fit.doubt {
            sum.doubted = sum.doubted.union(both(agent.allow, agent.ceiling));
            sum.doubt = sum.doubt.max(Some(doubt));
        }
        if fit.grants || fit.denies || fit.doubt.is_some() {
            self.add_rules(sum, &agent.rules, request, subject);
        }
    }

    fn add_rules(&self, sum: &mut Sum, rules: &RuleSet, request: &Request<'_>, subject: Subject) {
        for id in rules.candidates(request.target, subject.uid) {
            let Some(rule) = self.rule(id) else { continue };
            if !subject.is_meant_by(rule) || !rule.matches(request.asked, request.target, request.touched) {
                continue;
            }
            match rule.action {
                RuleAction::Deny if subject.denies => {
                    let (first, decoy) = match self.mode_of(rule) {
                        Mode::Enforce => (&mut sum.enforced, &mut sum.enforced_decoy),
                        Mode::Audit => (&mut sum.recorded, &mut sum.recorded_decoy),
                    };
                    least(first, id);
                    if rule.decoy {
                        least(decoy, id);
                    }
                }
                RuleAction::Allow if subject.grants => {
                    sum.rules.add(both(rule.grants(request.reach), subject.ceiling), id);
                }
                RuleAction::Allow if subject.doubt.is_some() => {
                    sum.doubted = sum.doubted.union(both(rule.grants(request.reach), subject.ceiling));
                }
                RuleAction::Deny | RuleAction::Allow => {}
            }
        }
    }

    /// The first enforced deny rule by name that speaks about this caller, whatever the request.
    pub(super) fn watches(&self, caller: &Caller, view: View<'_>) -> Option<Id> {
        let Some(stamps) = caller.stamps() else {
            return self.first_enforced(&self.rules_for_all, None);
        };
        let mut first = self.first_enforced(&self.rules_for_all, Some(stamps.uid));
        let by_uid =
            self.rules_by_uid.get(&stamps.uid).and_then(|rules| self.first_enforced(rules, Some(stamps.uid)));
        let agents = self.agent_index.candidates(stamps).filter_map(|id| self.agent(id));
        let by_agent = agents
            .filter(|agent| agent.fit(stamps, caller.origin, view).denies)
            .filter_map(|agent| self.first_enforced(&agent.rules, Some(stamps.uid)));
        by_uid.into_iter().chain(by_agent).for_each(|id| least(&mut first, id));
        first
    }

    fn first_enforced(&self, rules: &RuleSet, uid: Option<u32>) -> Option<Id> {
        rules
            .all()
            .filter(|id| {
                self.rule(*id).is_some_and(|rule| {
                    rule.action == RuleAction::Deny
                        && self.mode_of(rule) == Mode::Enforce
                        && speaks_of(rule, uid)
                })
            })
            .min()
    }

    pub(super) fn mode_of(&self, rule: &Rule) -> Mode {
        rule.mode.unwrap_or(self.mode)
    }

    pub(super) fn agent(&self, id: Id) -> Option<&Agent> {
        usize::try_from(id).ok().and_then(|at| self.agents.get(at))
    }

    pub(super) fn rule(&self, id: Id) -> Option<&Rule> {
        usize::try_from(id).ok().and_then(|at| self.rules.get(at))
    }
}

/// What was asked, with the classes that count.
struct Request<'a> {
    asked: &'a Asked,
    target: &'a Target,
    touched: Classes,
    /// With what is in the answer although it does not count, and can be withheld: a rule for a path grants that, too.
    reach: Classes,
}

/// For whom a set of rules is looked at, and what it can do to them.
#[derive(Clone, Copy)]
struct Subject {
    uid: Option<u32>,
    grants: bool,
    denies: bool,
    ceiling: Classes,
    doubt: Option<ExeDoubt>,
}

impl Subject {
    /// A caller of whom the kernel said nothing: rules about everybody can only deny it.
    fn unattributed() -> Self {
        Self { uid: None, grants: false, denies: true, ceiling: Classes::EMPTY, doubt: None }
    }

    /// Anybody; a rule that names nobody grants nothing to a container.
    fn anybody(stamps: &Stamps, origin: Origin) -> Self {
        let grants = origin == Origin::Host;
        Self { uid: Some(stamps.uid), grants, denies: true, ceiling: all_classes(), doubt: None }
    }

    /// Somebody known by uid alone: in a container the same number is not the same user.
    fn by_uid(stamps: &Stamps, origin: Origin) -> Self {
        let anybody = Self::anybody(stamps, origin);
        Self { grants: anybody.grants && !holds_container(stamps.cgroup.path.as_str()), ..anybody }
    }

    fn is_meant_by(&self, rule: &Rule) -> bool {
        speaks_of(rule, self.uid)
    }
}

fn speaks_of(rule: &Rule, uid: Option<u32>) -> bool {
    rule.uids.as_ref().is_none_or(|uids| uid.is_some_and(|uid| uids.contains(&uid)))
}

/// What the request touches. A catalogue that names nothing knows nothing of it, and that is no permission.
fn touched(asked: &Asked) -> Classes {
    let classes = asked.touched.classes;
    if classes.is_empty() { Classes::of(Class::Unknown) } else { classes }
}

pub(super) fn all_classes() -> Classes {
    Class::ALL.into_iter().collect()
}

fn standing(sum: &Sum, missing: Classes, caller: &Caller) -> Standing {
    match (&caller.attribution, sum.doubt, sum.agent) {
        (Attribution::Unattributed(why), _, _) => Standing::Unattributed(*why),
        (_, Some(doubt), _) if !both(missing, sum.doubted).is_empty() => Standing::ExeDoubt(doubt),
        (_, _, Some(_)) => Standing::Agent,
        (_, _, None) if caller.origin == Origin::Container => Standing::Container,
        (_, _, None) => Standing::NoAgent,
    }
}
