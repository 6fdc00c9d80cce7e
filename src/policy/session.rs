//! Session tokens: what becomes of a read that shows none (`v1`), and of one that shows another caller's
//! (`bind-tokens`).
//!
//! Both are steps behind the grants: they take from what was allowed, and add nothing to it. A missing token opens
//! nothing that is denied, and a good one neither.

use super::agent::{Agent, View};
use super::compile::Policy;
use super::decision::{Decision, Mode, Verdict};
use super::diagnostic::{Report, did_you_mean};
use super::reason::Reason;
use super::shape::Document;
use super::source::Name;
use crate::caller::Caller;
use crate::cloud::{Asked, Classes, How, Spoken, TokenHolder};

/// What becomes of a request without a session token (IMDSv1) where the service hands such tokens out; the strictest
/// last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum V1 {
    /// It goes to the service as it is, which may take it or not.
    #[default]
    Allow,
    /// It goes to the service with a token of the guard's own.
    Upgrade,
    /// It is answered as by a service that requires tokens.
    Deny,
}

/// What becomes of a session token in the hands of a caller that did not fetch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BindTokens {
    /// Nobody looks.
    #[default]
    Off,
    /// It is recorded.
    Audit,
    /// It is denied.
    On,
}

impl V1 {
    const ALL: [Self; 3] = [Self::Allow, Self::Upgrade, Self::Deny];

    /// The name that policies use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Upgrade => "upgrade",
            Self::Deny => "deny",
        }
    }

    pub(super) fn read(document: &Document, name: Option<&Name>, report: &mut Report<'_>) -> Option<Self> {
        one_of(
            document,
            name?,
            "unknown-v1",
            "`v1` is \"allow\", \"deny\" or \"upgrade\"",
            &Self::ALL,
            Self::name,
            report,
        )
    }
}

impl BindTokens {
    const ALL: [Self; 3] = [Self::Off, Self::Audit, Self::On];

    /// The name that policies use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Audit => "audit",
            Self::On => "on",
        }
    }

    pub(super) fn read(document: &Document, name: Option<&Name>, report: &mut Report<'_>) -> Option<Self> {
        let message = "`bind-tokens` is \"off\", \"audit\" or \"on\"";
        one_of(document, name?, "unknown-bind-tokens", message, &Self::ALL, Self::name, report)
    }
}

/// Reads one of a few words.
fn one_of<T: Copy>(
    document: &Document,
    word: &Name,
    code: &'static str,
    message: &str,
    known: &[T],
    name: impl Fn(T) -> &'static str,
    report: &mut Report<'_>,
) -> Option<T> {
    let found = known.iter().copied().find(|one| name(*one) == word.get_ref());
    if found.is_none() {
        let help = did_you_mean(word.get_ref(), known.iter().map(|one| name(*one)));
        report.error(code, message, &document.place(word.span())).maybe_help(help);
    }
    found
}

/// How a policy treats a caller's requests without a session token, and why.
#[derive(Debug, Clone, Copy)]
pub(super) struct V1Step<'a> {
    pub(super) v1: V1,
    /// The agent that says so; without one, the policy as a whole.
    pub(super) agent: Option<&'a Agent>,
}

impl Policy {
    /// What becomes of requests without a session token where no agent says otherwise.
    #[must_use]
    pub fn v1(&self) -> V1 {
        self.v1
    }

    /// What becomes of a session token in the hands of another caller.
    #[must_use]
    pub fn bind_tokens(&self) -> BindTokens {
        self.bind_tokens
    }

    /// What the session protocol makes of a decision about a request without faults.
    pub(super) fn with_session(
        &self,
        decision: Decision,
        caller: &Caller,
        asked: &Asked,
        view: View<'_>,
    ) -> Decision {
        let Some(spoken) = &asked.spoken else { return decision };
        match spoken.how {
            How::Without | How::Malformed => match self.v1_of(caller, view).v1 {
                V1::Deny => self.for_lack_of_a_token(decision, Reason::TokenRequired),
                V1::Upgrade => Decision { upgrades: can_be_upgraded(spoken, asked), ..decision },
                V1::Allow => decision,
            },
            How::Shows(TokenHolder::Foreign) if self.bind_tokens == BindTokens::On => {
                self.for_lack_of_a_token(decision, Reason::TokenOfAnother)
            }
            How::Shows(TokenHolder::Unknown) if self.bind_tokens == BindTokens::On => {
                self.for_lack_of_a_token(decision, Reason::TokenUnknown)
            }
            How::Shows(_) | How::Asks => decision,
        }
    }

    /// A denial that is carried out stays as it is. One that is only recorded must not let pass what the policy's own
    /// mode refuses here: a rule on trial makes nothing looser.
    fn for_lack_of_a_token(&self, decision: Decision, reason: Reason) -> Decision {
        let passes = decision.verdict == Verdict::Allow;
        let is_on_trial = decision.mode == Mode::Audit && self.mode == Mode::Enforce;
        if passes || is_on_trial {
            let agent = decision.agent;
            let (verdict, withheld) = (Verdict::Deny, Classes::EMPTY);
            return Decision {
                verdict,
                reason,
                rule: None,
                agent,
                mode: self.mode,
                upgrades: false,
                withheld,
                bait: None,
            };
        }
        decision
    }

    /// Of several agents that the caller is, the strictest word counts, so that their order means nothing. As with
    /// grants and denials, doubt about an executable gives nobody an exception, and takes nobody out of a denial.
    ///
    /// A policy that upgrades in general means the callers that it lists: whoever is none of them, a web application
    /// that was talked into a plain GET among them, has no token lent to him.
    pub(super) fn v1_of(&self, caller: &Caller, view: View<'_>) -> V1Step<'_> {
        let general = V1Step { v1: self.v1, agent: None };
        if !self.speaks_of_v1 {
            return general;
        }
        let mut said: Option<V1Step<'_>> = None;
        let mut is_listed = false;
        if let Some(stamps) = caller.stamps() {
            for agent in self.agent_index.candidates(stamps).filter_map(|id| self.agent(id)) {
                let fit = agent.fit(stamps, caller.origin, view);
                is_listed |= fit.grants;
                let Some(v1) = agent.v1 else { continue };
                let counts = if v1 == V1::Deny { fit.denies } else { fit.grants };
                if counts && said.is_none_or(|known| known.v1 < v1) {
                    said = Some(V1Step { v1, agent: Some(agent) });
                }
            }
        }
        match said {
            Some(said) => said,
            None if self.v1 == V1::Upgrade && !is_listed => V1Step { v1: V1::Allow, agent: None },
            None => general,
        }
    }
}

/// Only a read of a service that has a version 1, and only one whose caller did not try to show a token itself: what a
/// malformed header means, the service shall say.
fn can_be_upgraded(spoken: &Spoken, asked: &Asked) -> bool {
    let is_read = asked.head.as_ref().is_some_and(|head| head.method().is_read());
    spoken.how == How::Without && spoken.session.fetch.is_some() && is_read
}

#[cfg(test)]
mod tests;
