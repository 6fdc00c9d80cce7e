//! What becomes of an answer that mixes classes of which the caller lacks some.

use super::diagnostic::{Report, did_you_mean};
use super::shape::Document;

/// What becomes of such an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Aggregate {
    /// The caller gets nothing of it.
    #[default]
    Refuse,
    /// The caller gets it without what it lacks, where the catalogue knows the parts.
    Redact,
}

impl Aggregate {
    /// The name that policies use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Redact => "redact",
        }
    }
}

/// Reads `aggregate` of the main file.
pub(super) fn read(main: &Document, report: &mut Report<'_>) -> Aggregate {
    let Some(name) = &main.aggregate else { return Aggregate::default() };
    let known = [Aggregate::Refuse, Aggregate::Redact];
    let found = known.into_iter().find(|known| known.name() == name.get_ref());
    if found.is_none() {
        let help = did_you_mean(name.get_ref(), known.into_iter().map(Aggregate::name));
        let message = "`aggregate` is \"refuse\" or \"redact\"";
        report.error("unknown-aggregate", message, &main.place(name.span())).maybe_help(help);
    }
    found.unwrap_or_default()
}
