//! Whether credentials are given where the kernel names no unit, and only procfs says who a caller is.

use super::diagnostic::{Report, did_you_mean};
use super::shape::Document;
use crate::caller::{Attribution, Caller};
use crate::cloud::{Class, Classes};

/// What becomes of credentials on hosts of cgroup v1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Degraded {
    /// Nobody gets any.
    #[default]
    Deny,
    /// Whoever is granted them gets them.
    Allow,
}

impl Degraded {
    /// The name that policies use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
    }

    /// What of these grants is held back from a caller.
    pub(super) fn held_back(self, granted: Classes, caller: &Caller) -> Classes {
        let is_degraded = matches!(caller.attribution, Attribution::Degraded(_));
        if is_degraded && self == Self::Deny && granted.contains(Class::Credentials) {
            Classes::of(Class::Credentials)
        } else {
            Classes::EMPTY
        }
    }
}

/// Reads `degraded` of the main file.
pub(super) fn read(main: &Document, report: &mut Report<'_>) -> Degraded {
    let Some(name) = &main.degraded else { return Degraded::default() };
    let known = [Degraded::Deny, Degraded::Allow];
    let found = known.into_iter().find(|known| known.name() == name.get_ref());
    if found.is_none() {
        let help = did_you_mean(name.get_ref(), known.into_iter().map(Degraded::name));
        let message = "`degraded` is \"deny\" or \"allow\"";
        report.error("unknown-degraded", message, &main.place(name.span())).maybe_help(help);
    }
    found.unwrap_or_default()
}

/// Tells what the machine that compiles the policy makes of it.
pub(super) fn lint(degraded: Degraded, on_degraded_host: bool, main: &Document, report: &mut Report<'_>) {
    let named = main.degraded.as_ref().map(|name| main.place(name.span()));
    let place = named.unwrap_or(super::diagnostic::Place { source: main.source, span: None });
    match (degraded, on_degraded_host) {
        (Degraded::Deny, false) => {}
        (Degraded::Deny, true) => {
            report
                .warning("degraded-host", "this machine has cgroup v1 alone: the kernel names no units here, and nobody gets credentials", &place)
                .help("boot with systemd.unified_cgroup_hierarchy=1, or accept what /proc says of units with degraded = \"allow\"");
        }
        (Degraded::Allow, _) => {
            report
                .warning("degraded-allowed", "where the kernel names no units (cgroup v1), credentials are given by what /proc says of the socket's holders", &place)
                .help("there, whoever runs as an agent's user may pass for its unit: give agents users of their own");
        }
    }
}
