//! A decision, what the mode makes of it, and the permit without which nothing is forwarded.

use std::sync::Arc;

use super::decoy::Bait;
use super::reason::Reason;
use crate::cloud::{Answer, Asked, Catalogue, Classes, Session};
use crate::request::{RawHead, Target};

/// Whether a denial is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing is refused; what would have been is recorded.
    Audit,
    /// What is denied is refused.
    Enforce,
}

impl Mode {
    /// The name that policies and events use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Enforce => "enforce",
        }
    }
}

/// What the policy says about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It may not.
    Deny,
}

/// The policy's answer for one request of one caller.
///
/// Its fields are private, so that no code outside this room can turn a denial into a permit by writing to one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a decision means nothing until `act` makes it a permit or a refusal"]
pub struct Decision {
    pub(super) verdict: Verdict,
    pub(super) reason: Reason,
    pub(super) rule: Option<Arc<str>>,
    pub(super) agent: Option<Arc<str>>,
    pub(super) mode: Mode,
    /// Whether the guard shows a session token of its own.
    pub(super) upgrades: bool,
    pub(super) withheld: Classes,
    /// What a stranger is given instead of a refusal.
    pub(super) bait: Option<Bait>,
}

impl Decision {
    /// Allow or deny.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The rule that decided, if one did.
    #[must_use]
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rule.as_ref()
    }

    /// The agent that the caller is, if it is one; of several, one that was needed for the verdict, then one that
    /// lives in a certain cgroup, then the first by name.
    #[must_use]
    pub fn agent(&self) -> Option<&Arc<str>> {
        self.agent.as_ref()
    }

    /// The mode that holds for this decision: the deciding rule's own, or the policy's.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The classes that the answer is given without, because the caller lacks them and the policy says `redact`.
    /// Audit mode withholds nothing and only tells.
    #[must_use]
    pub fn withheld(&self) -> Classes {
        self.withheld
    }

    /// Whether the denial is given as a decoy, or under enforce would be.
    #[must_use]
    pub fn is_decoy(&self) -> bool {
        self.verdict == Verdict::Deny && self.bait.is_some()
    }

    /// Whether enforce mode would give a decoy where this one passes.
    #[must_use]
    pub fn would_give_decoy(&self) -> bool {
        self.would_deny() && self.bait.as_ref().is_some_and(Bait::is_ready)
    }

    /// Whether the request is denied and passes all the same.
    #[must_use]
    pub fn would_deny(&self) -> bool {
        self.verdict == Verdict::Deny && self.mode == Mode::Audit
    }

    /// Whether the request lacks a session token and is to be sent with the guard's own; in audit mode, as in all
    /// else, nothing is changed.
    #[must_use]
    pub fn upgrades(&self) -> bool {
        self.upgrades && self.verdict == Verdict::Allow && self.mode == Mode::Enforce
    }

    /// Whether the other decision comes to the same for the same request.
    #[must_use]
    pub fn does_the_same_as(&self, other: &Self) -> bool {
        let same = (self.verdict, self.mode, self.withheld) == (other.verdict, other.mode, other.withheld);
        same && self.upgrades() == other.upgrades() && self.is_decoy() == other.is_decoy()
    }

    /// Makes the decision an action. The only place where a [`Permit`] comes from.
    ///
    /// Under enforce what was judged is what is sent, so without a target there is nothing to send, and the
    /// answer is a refusal whatever the verdict says.
    #[must_use = "dropping the action answers nobody"]
    pub fn act(mut self, asked: &Asked) -> Action<'_> {
        match (self.mode, self.verdict, &asked.target) {
            (Mode::Enforce, Verdict::Allow, Ok(target)) if !self.withheld.is_empty() => {
                let session = asked.spoken.as_ref().filter(|_| self.upgrades()).map(|spoken| &spoken.session);
                Action::Withhold(PartialPermit { decision: self, target, session })
            }
            (Mode::Enforce, Verdict::Allow, Ok(target)) => {
                let form = match &asked.spoken {
                    Some(spoken) if self.upgrades() => Form::Upgraded(target, &spoken.session),
                    Some(_) | None => Form::Rebuilt(target),
                };
                Action::Forward(Permit { decision: self, form })
            }
            (Mode::Enforce, Verdict::Allow | Verdict::Deny, _) => {
                let bait = self.bait.take().filter(|bait| self.verdict == Verdict::Deny && bait.is_ready());
                let refusal = Refusal { decision: self };
                bait.map_or(Action::Refuse(refusal.clone()), |bait| Action::Decoy(bait, refusal))
            }
            (Mode::Audit, Verdict::Allow | Verdict::Deny, _) => {
                let form = asked.head.as_ref().map_or(Form::Tunnel, Form::AsItCame);
                Action::Forward(Permit { decision: self, form })
            }
        }
    }
}

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Action<'a> {
    /// It goes upstream.
    Forward(Permit<'a>),
    /// It goes upstream, and the answer is given without a part of it.
    Withhold(PartialPermit<'a>),
    /// The caller is told no.
    Refuse(Refusal),
    /// The caller is given a canary's credentials; where that cannot be recorded, it is told no.
    Decoy(Bait, Refusal),
}

/// The right to send one request upstream.
#[derive(Debug, Clone)]
pub struct Permit<'a> {
    decision: Decision,
    form: Form<'a>,
}

/// The right to a part of an answer: no [`Permit`], so that nothing can pass the whole on by mistake.
#[derive(Debug, Clone)]
pub struct PartialPermit<'a> {
    decision: Decision,
    target: &'a Target,
    session: Option<&'a Arc<Session>>,
}

impl<'a> PartialPermit<'a> {
    /// What was judged, and may be sent.
    #[must_use]
    pub fn target(&self) -> &'a Target {
        self.target
    }

    /// Which session's token the guard shows in place of the caller, if it does.
    #[must_use]
    pub fn session(&self) -> Option<&'a Arc<Session>> {
        self.session
    }

    /// The classes that must not reach the caller.
    #[must_use]
    pub fn withheld(&self) -> Classes {
        self.decision.withheld
    }

    /// The decision that made it.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }
}

/// What a permit lets go upstream.
#[derive(Debug, Clone, Copy)]
pub enum Form<'a> {
    /// A head made anew from the meaning that was judged.
    Rebuilt(&'a Target),
    /// The same, with a session token of the guard's own.
    Upgraded(&'a Target, &'a Arc<Session>),
    /// The caller's own bytes: audit mode changes nothing.
    AsItCame(&'a RawHead),
    /// The caller's own bytes, of which not even a head could be made: the connection becomes a tunnel.
    Tunnel,
}

impl<'a> Permit<'a> {
    /// What may be sent.
    #[must_use]
    pub fn form(&self) -> Form<'a> {
        self.form
    }

    /// The decision that made it.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }
}

/// The duty to tell a caller no.
#[derive(Debug, Clone)]
pub struct Refusal {
    decision: Decision,
}

impl Refusal {
    /// The decision that made it.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// What to tell the caller.
    #[must_use]
    pub fn answer(&self, catalogue: &Catalogue, asked: &Asked) -> Answer {
        if self.decision.reason.is_about_tokens() {
            catalogue.token_refusal(asked)
        } else {
            catalogue.refusal(asked)
        }
    }

    /// One line for the caller: why, without names from the policy or anything that the caller sent.
    #[must_use]
    pub fn line(&self) -> String {
        self.decision.reason.to_string()
    }
}
