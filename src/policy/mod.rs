//! Who may touch what: `decide(&Caller, &Asked) -> Decision`, a pure function of a compiled policy.
//!
//! ```text
//! policy.toml, policy.d/*.toml -- source (shapes, places) --> compile (names, patterns, indices) --> Policy
//!                                        \-- diagnostics: every error at once --/     \-- lint: warnings
//! Caller + Asked -- Policy::decide (evaluate) --> Decision -- act --> Permit | Refusal
//! ```
//!
//! What holds whatever a policy says:
//!
//! * A fault in the request is a denial, and no rule can allow it.
//! * A matching deny rule beats every allow; what nothing allows is denied. So the order of rules, agents and
//!   files means nothing.
//! * An unattributed caller has what `[unattributed]` says, never what `[everyone]` says.
//! * Doubt about an executable never grants, and never lets a caller slip out of a deny rule.
//! * What is said of session tokens takes from what was allowed, and adds nothing.
//! * A decoy is given to nobody for whom anything speaks that he is an agent ([`decoy`]).
//! * Only [`Decision::act`] makes a [`Permit`], and only [`Policy::knock`] and [`Policy::pass_unjudged`] a [`Passage`].
//!
//! No I/O, no clock: users, groups and detected clouds are data that somebody else read ([`Context`]).

pub mod accounts;
pub mod agent;
pub mod aggregate;
pub mod compile;
pub mod containers;
pub mod decision;
pub mod decoy;
pub mod degraded;
pub mod diagnostic;
mod door;
pub mod places;
pub mod reason;
pub mod rule;
pub mod session;
pub mod settings;
mod size;
pub mod source;
pub mod trace;

mod draft;
mod evaluate;
mod glob;
mod index;
mod lines;
mod lint;
mod shape;
mod unit;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use accounts::{Accounts, Context};
pub use aggregate::Aggregate;
pub use compile::{Compiled, NamedFile, Policy, Programs};
pub use containers::Containers;
pub use decision::{Action, Decision, Form, Mode, PartialPermit, Permit, Refusal, Verdict};
pub use decoy::{Bait, Canaried, CanaryFile, canary_file};
pub use degraded::Degraded;
pub use diagnostic::{Diagnostic, Severity};
pub use door::Passage;
pub use places::{Line, Places};
pub use reason::{ExeDoubt, Reason, Standing};
pub use session::{BindTokens, V1};
pub(crate) use settings::OWN_BIT;
pub use settings::{AuditLog, GuardUser, Limits, Settings, TlsUse};
pub use source::Source;
pub use trace::{AgentFit, Trace, in_container, system_unit};
pub use unit::unit_path;
