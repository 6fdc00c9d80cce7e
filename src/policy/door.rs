//! Bytes that nobody reads: opaque doors (TLS and gRPC), where the caller alone decides and only one who may have
//! everything passes, and what audit mode cannot judge. They go upstream by a [`Passage`], as requests go by a permit.

use std::sync::Arc;

use super::agent::{Agent, View};
use super::compile::Policy;
use super::decision::{Decision, Verdict};
use super::reason::{Reason, Standing};
use super::rule::both;
use crate::caller::{Attribution, Caller, Origin};
use crate::cloud::{Class, Classes};

/// What can be behind an opaque door. Its cloud is known, so nothing there is unknown, and session tokens open nothing.
fn behind_doors() -> Classes {
    [Class::Credentials, Class::Identity, Class::UserData, Class::Config, Class::Write].into_iter().collect()
}

/// The right to pass a connection's bytes on unread. Only this room makes one: from a decision at an opaque door, or
/// for a policy that refuses nothing.
#[derive(Debug)]
pub struct Passage(Grounds);

#[derive(Debug)]
enum Grounds {
    /// The decision about this caller at an opaque door.
    Caller(Box<Caller>),
    /// Audit mode: what cannot be judged passes all the same.
    Unjudged,
}

impl Passage {
    /// Whether this policy would give it again: a passage must not outlive the policy that gave it.
    #[must_use]
    pub fn holds(&self, policy: &Policy) -> bool {
        match &self.0 {
            Grounds::Caller(caller) => passes(&policy.decide_opaque(caller)),
            Grounds::Unjudged => !policy.can_refuse(),
        }
    }
}

fn passes(decision: &Decision) -> bool {
    decision.verdict() == Verdict::Allow || decision.would_deny()
}

impl Policy {
    /// Decides about a caller at an opaque door, and lets it pass or not.
    pub fn knock(&self, caller: Caller) -> (Decision, Option<Passage>) {
        let decision = self.decide_opaque(&caller);
        let passage = passes(&decision).then(|| Passage(Grounds::Caller(Box::new(caller))));
        (decision, passage)
    }

    /// Lets pass what could not be judged, if this policy refuses nothing.
    #[must_use]
    pub fn pass_unjudged(&self) -> Option<Passage> {
        (!self.can_refuse()).then_some(Passage(Grounds::Unjudged))
    }

    /// Decides whether a caller may pass an opaque door: if its grants cover every class, and no deny rule that is
    /// carried out speaks of it.
    pub fn decide_opaque(&self, caller: &Caller) -> Decision {
        self.decide_opaque_with(caller, View::Actual(&caller.processes))
    }

    /// Whether that depends on which processes hold the caller's socket.
    #[must_use]
    pub fn opaque_needs_processes(&self, caller: &Caller) -> bool {
        let verdict = |view| self.decide_opaque_with(caller, view).verdict;
        verdict(View::Hopeful) != verdict(View::Wary)
    }

    fn decide_opaque_with(&self, caller: &Caller, view: View<'_>) -> Decision {
        let agents = || self.agents_of(caller, view);
        let granted =
            agents().fold(self.base(caller), |sum, agent| sum.union(both(agent.allow, agent.ceiling)));
        let held_back = self.degraded.held_back(granted, caller);
        let missing = behind_doors().minus(granted.minus(held_back));
        let agent = agents().next().map(|agent| Arc::clone(&agent.name));
        let denied = self.watches(caller, view).and_then(|id| self.rule(id));
        let standing = match (&caller.attribution, &agent) {
            (Attribution::Unattributed(why), _) => Standing::Unattributed(*why),
            _ if !held_back.is_empty() => Standing::Degraded,
            (_, Some(_)) => Standing::Agent,
            (_, None) if caller.origin == Origin::Container => Standing::Container,
            (_, None) => Standing::NoAgent,
        };
        let (verdict, reason, mode) = match denied {
            Some(rule) => (Verdict::Deny, Reason::RuleDenies, self.mode_of(rule)),
            None if missing.is_empty() => (Verdict::Allow, Reason::AgentAllows, self.mode),
            None => (Verdict::Deny, Reason::NotGranted { missing, caller: standing }, self.mode),
        };
        let rule = denied.map(|rule| Arc::clone(&rule.name));
        Decision { verdict, reason, rule, agent, mode, upgrades: false, withheld: Classes::EMPTY, bait: None }
    }

    /// The agents that a caller is, in the order of preference.
    fn agents_of(&self, caller: &Caller, view: View<'_>) -> impl Iterator<Item = &Agent> {
        let ids = caller.stamps().into_iter().flat_map(|stamps| {
            let mut ids: Vec<_> = self.agent_index.candidates(stamps).collect();
            ids.sort_unstable();
            ids.into_iter().map(move |id| (id, stamps))
        });
        ids.filter_map(move |(id, stamps)| {
            self.agent(id).filter(|agent| agent.fit(stamps, caller.origin, view).grants)
        })
    }
}
