//! `[[agent]]`: a caller that the policy knows, and whether somebody is it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::containers::ContainerPattern;
use super::glob;
use super::index::RuleSet;
use super::reason::ExeDoubt;
use super::session::V1;
use super::unit::{UnitPattern, holds_container, is_cgroup};
use crate::caller::container;
use crate::caller::{Exe, Origin, Processes, Stamps};
use crate::cloud::Classes;

/// An agent, ready to be compared with callers.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) name: Arc<str>,
    pub(super) place: Cgroups,
    /// The containers that it is; empty if it is none.
    pub(super) containers: Vec<ContainerPattern>,
    /// Includes what lies below the named cgroups.
    pub(super) subtree: bool,
    /// `None` for any uid; empty for users that this machine lacks, which nobody is.
    pub(super) uids: Option<BTreeSet<u32>>,
    /// Paths, perhaps with `*` in segments; empty for any.
    pub(super) exe: Vec<Box<str>>,
    /// Lower-case hex; empty for any.
    pub(super) sha256: Vec<Box<str>>,
    /// What it may touch.
    pub(super) allow: Classes,
    /// What neither `allow` nor a rule may go beyond: an agent known by its executable alone has no credentials.
    pub(super) ceiling: Classes,
    /// What becomes of its requests without a session token, if it says so itself.
    pub(super) v1: Option<V1>,
    /// The rules that name it.
    pub(super) rules: RuleSet,
}

/// Where an agent lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cgroups {
    Anywhere,
    Units(Vec<UnitPattern>),
    Literal(Vec<Box<str>>),
}

/// What is known of the processes, or supposed of them to find out whether looking would matter.
#[derive(Debug, Clone, Copy)]
pub(super) enum View<'a> {
    /// As they are.
    Actual(&'a Processes),
    /// As if every executable were the right one for grants and the wrong one for denials.
    Hopeful,
    /// The other way round.
    Wary,
}

/// How far a caller is an agent.
///
/// Grants and denials are not each other's opposite: doubt never grants, and doubt never lets a caller slip out of
/// a deny rule, or exec of another file would be the way around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fit {
    /// What the agent may touch, the caller may.
    pub(super) grants: bool,
    /// What the agent may not, the caller may not.
    pub(super) denies: bool,
    /// Why it does not grant, although the stamps fit.
    pub(super) doubt: Option<ExeDoubt>,
}

impl Fit {
    const NOT: Self = Self { grants: false, denies: false, doubt: None };
    const YES: Self = Self { grants: true, denies: true, doubt: None };
}

impl Agent {
    /// Agents that live somewhere come first: they say more about a caller than a user does.
    pub(super) fn order(&self) -> (bool, &str) {
        (self.place == Cgroups::Anywhere && self.containers.is_empty(), &self.name)
    }

    /// Whether its executable must be looked at.
    pub(super) fn binds_exe(&self) -> bool {
        !self.exe.is_empty() || !self.sha256.is_empty()
    }

    /// Whether only its executable says who it is: uid and cgroup are the kernel's, an executable's name is not.
    pub(super) fn is_weak(&self) -> bool {
        self.place == Cgroups::Anywhere && self.containers.is_empty() && self.uids.is_none()
    }

    /// How far the caller is this agent.
    pub(super) fn fit(&self, stamps: &Stamps, origin: Origin, view: View<'_>) -> Fit {
        if self.uids.as_ref().is_some_and(|uids| !uids.contains(&stamps.uid)) {
            return Fit::NOT;
        }
        let cgroup = stamps.cgroup.path.as_str();
        if !self.is_at_home(cgroup) {
            return Fit::NOT;
        }
        let fit = if self.binds_exe() { self.exe_fit(view) } else { Fit::YES };
        // A container's uid 0 is a number, not the host's root: who is known by uid alone is not known there.
        if self.is_anywhere() && (origin == Origin::Container || holds_container(cgroup)) {
            return Fit { grants: false, ..fit };
        }
        fit
    }

    /// Whether nothing at all speaks for the caller being this agent: neither its stamps nor, of an agent that is known by
    /// its executable alone, its executable. Doubt speaks for it.
    pub(super) fn is_surely_not(&self, stamps: &Stamps, origin: Origin, view: View<'_>) -> bool {
        let fit = self.fit(stamps, origin, view);
        let runs_another =
            matches!(view, View::Wary) || (fit.doubt == Some(ExeDoubt::OtherFile) && !fit.denies);
        fit == Fit::NOT || (self.is_weak() && !fit.grants && runs_another)
    }

    /// Whether nothing says where it lives.
    fn is_anywhere(&self) -> bool {
        self.place == Cgroups::Anywhere && self.containers.is_empty()
    }

    /// Whether a cgroup is where the agent lives.
    pub(super) fn is_at_home(&self, cgroup: &str) -> bool {
        if !self.containers.is_empty() {
            return self.is_container(cgroup);
        }
        match &self.place {
            Cgroups::Units(units) => units.iter().any(|unit| unit.matches(cgroup, self.subtree)),
            Cgroups::Literal(paths) => paths.iter().any(|path| is_cgroup(path, cgroup, self.subtree)),
            Cgroups::Anywhere => true,
        }
    }

    /// Whether a cgroup is one of the agent's containers, inside the agent's unit if it has one.
    fn is_container(&self, cgroup: &str) -> bool {
        let Some(container) = container::of(cgroup) else { return false };
        let in_unit = match (&self.place, container.unit) {
            (Cgroups::Units(units), Some(above)) => units.iter().any(|unit| unit.matches(above, false)),
            (Cgroups::Anywhere, None) => true,
            (Cgroups::Units(_) | Cgroups::Literal(_) | Cgroups::Anywhere, _) => false,
        };
        in_unit && self.containers.iter().any(|pattern| pattern.fits(&container))
    }

    fn exe_fit(&self, view: View<'_>) -> Fit {
        let unseen = |doubt| Fit { grants: false, denies: true, doubt: Some(doubt) };
        let holders = match view {
            View::Hopeful => return Fit { grants: true, denies: false, doubt: None },
            View::Wary | View::Actual(Processes::Skipped) => return unseen(ExeDoubt::NotLooked),
            View::Actual(Processes::Unknown) => return unseen(ExeDoubt::NoHolder),
            View::Actual(Processes::Holders(holders)) if holders.is_empty() => {
                return unseen(ExeDoubt::NoHolder);
            }
            View::Actual(Processes::Holders(holders)) => holders,
        };
        // Every holder must be the right file: one that holds the socket beside the agent can read the answer.
        let (mut any, mut all, mut doubt) = (false, true, ExeDoubt::OtherFile);
        for holder in holders {
            match self.runs(&holder.exe) {
                Ok(true) => any = true,
                Ok(false) => all = false,
                Err(()) => (any, all, doubt) = (true, false, ExeDoubt::Untrusted),
            }
        }
        if all { Fit::YES } else { Fit { grants: false, denies: any, doubt: Some(doubt) } }
    }

    /// Whether it is one of the agent's files; an error if that cannot be told.
    fn runs(&self, exe: &Exe) -> Result<bool, ()> {
        if exe.names.is_empty() {
            return Err(());
        }
        let named = self.exe.is_empty()
            || self.exe.iter().any(|pattern| exe.names.iter().any(|name| glob::matches_path(pattern, name)));
        if !named {
            return Ok(false);
        }
        if self.sha256.is_empty() {
            return Ok(true);
        }
        let digest = exe.sha256.as_ref().ok_or(())?;
        Ok(self.sha256.iter().any(|known| **known == **digest))
    }
}
