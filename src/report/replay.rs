//! Decides a recorded log again by another policy, and collects where the verdicts differ.

use std::collections::HashMap;

use serde::Serialize;

use super::caller::Who;
use super::rebuild;
use super::record::Record;
use crate::policy::{Policy, Verdict};

/// More differences than this are counted and not listed.
const LISTED: usize = 10_000;

/// Alike requests of one caller of which the policy thinks otherwise than the one that recorded them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Who asks.
    pub caller: Who,
    /// The method.
    pub method: String,
    /// What for.
    pub path: String,
    /// What was decided.
    pub before: &'static str,
    /// Why.
    pub before_reason: String,
    /// What would be decided.
    pub after: &'static str,
    /// Why.
    pub after_reason: &'static str,
    /// The rule that would decide, if one would.
    pub rule: Option<String>,
    /// The agent that the caller would be.
    pub agent: Option<String>,
    /// Whether the log lacks something that the new verdict may depend on.
    pub uncertain: bool,
    /// How many requests.
    pub count: u64,
    /// The id of the first of them.
    pub event: String,
}

/// What a replay came to.
#[derive(Debug, Default, Serialize)]
pub struct Replay {
    /// Requests that were decided again.
    pub requests: u64,
    /// Requests that were allowed and would be denied.
    pub newly_denied: u64,
    /// Requests that were denied and would be allowed.
    pub newly_allowed: u64,
    /// Requests whose new verdict the log alone cannot tell for sure.
    pub uncertain: u64,
    /// Where the verdicts differ.
    pub differences: Vec<Difference>,
    #[serde(skip)]
    index: HashMap<(Who, String, String, Verdict), usize>,
}

impl Replay {
    /// Decides one more event.
    pub fn add(&mut self, record: &Record<'_>, policy: &Policy) {
        let Some(rebuilt) = rebuild::decide(record, policy) else { return };
        let weight = record.weight();
        self.requests += weight;
        self.uncertain += if rebuilt.uncertain { weight } else { 0 };
        let decision = rebuilt.decision;
        let before = if record.is_denied() { Verdict::Deny } else { Verdict::Allow };
        if decision.verdict() == before {
            return;
        }
        match decision.verdict() {
            Verdict::Allow => self.newly_allowed += weight,
            Verdict::Deny => self.newly_denied += weight,
        }
        let who = Who::of(record);
        let path = record.asked_path().to_owned();
        let key = (who.clone(), record.method.to_string(), path.clone(), before);
        if let Some(known) = self.index.get(&key).and_then(|at| self.differences.get_mut(*at)) {
            known.count += weight;
            known.uncertain |= rebuilt.uncertain;
            return;
        }
        if self.differences.len() >= LISTED {
            return;
        }
        self.index.insert(key, self.differences.len());
        self.differences.push(Difference {
            caller: who,
            method: record.method.to_string(),
            path,
            before: crate::cases::verdict_name(before),
            before_reason: record.reason.to_string(),
            after: crate::cases::verdict_name(decision.verdict()),
            after_reason: decision.reason().code(),
            rule: decision.rule().map(ToString::to_string),
            agent: decision.agent().map(ToString::to_string),
            uncertain: rebuilt.uncertain,
            count: weight,
            event: record.id.to_string(),
        });
    }

    /// The differences, what would break before what would open, the most frequent first.
    #[must_use]
    pub fn sorted(&self) -> Vec<&Difference> {
        let mut sorted: Vec<&Difference> = self.differences.iter().collect();
        sorted.sort_by(|a, b| {
            let key = |one: &Difference| (one.after == "allow", std::cmp::Reverse(one.count));
            (key(a), &a.caller, &a.path, &a.method).cmp(&(key(b), &b.caller, &b.path, &b.method))
        });
        sorted
    }

    /// Whether both policies say the same of every request.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.newly_allowed == 0 && self.newly_denied == 0
    }
}
