//! Finding the few agents and rules that can matter for a request among a thousand.
//!
//! An index may only leave out what cannot match; everything that it finds is compared in full.

use std::collections::HashMap;

use super::agent::{Agent, Cgroups};
use super::rule::Rule;
use super::unit::index_keys;
use crate::caller::Stamps;
use crate::request::Target;

/// A rule's or an agent's position in the policy, where both are sorted by name.
pub(super) type Id = u32;

/// Agents by the part of their identity that a caller's stamps answer directly.
#[derive(Debug, Default)]
pub(super) struct AgentIndex {
    units: HashMap<Box<str>, Vec<Id>>,
    cgroups: HashMap<Box<str>, Vec<Id>>,
    uids: HashMap<u32, Vec<Id>>,
    exes: Vec<Id>,
}

impl AgentIndex {
    pub(super) fn new(agents: &[Agent]) -> Self {
        let mut index = Self::default();
        for (id, agent) in (0..).zip(agents) {
            match (&agent.place, &agent.uids) {
                (Cgroups::Units(units), _) => {
                    for unit in units {
                        index.units.entry(unit.index_key().into()).or_default().push(id);
                    }
                }
                (Cgroups::Literal(paths), _) => {
                    for path in paths {
                        index.cgroups.entry(path.trim_end_matches('/').into()).or_default().push(id);
                    }
                }
                (Cgroups::Anywhere, Some(uids)) => {
                    for uid in uids {
                        index.uids.entry(*uid).or_default().push(id);
                    }
                }
                (Cgroups::Anywhere, None) => index.exes.push(id),
            }
        }
        index
    }

    /// Every agent that these stamps may fit; one may come twice.
    pub(super) fn candidates<'a>(&'a self, stamps: &'a Stamps) -> impl Iterator<Item = Id> + 'a {
        let path = stamps.cgroup.path.as_str();
        let by_unit = index_keys(path).filter_map(|key| self.units.get(key)).flatten();
        let ancestors =
            path.match_indices('/').filter_map(|(at, _)| path.get(..at)).chain([path.trim_end_matches('/')]);
        let by_cgroup = ancestors.filter_map(|ancestor| self.cgroups.get(ancestor)).flatten();
        let by_uid = self.uids.get(&stamps.uid).into_iter().flatten();
        by_unit.chain(by_cgroup).chain(by_uid).chain(&self.exes).copied()
    }
}

/// Rules that share a subject, found by one literal segment of their paths.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    /// For each position in a path: the rules that want a certain segment there.
    by_segment: Vec<HashMap<Box<str>, Vec<Id>>>,
    /// Rules whose paths promise no literal segment at a fixed position.
    others: Vec<Id>,
    /// All of them, each once.
    all: Vec<Id>,
}

type Key = (usize, Box<str>);

impl RuleSet {
    /// Indexes the rules with these ids.
    pub(super) fn new(ids: Vec<Id>, rules: &[&Rule]) -> Self {
        let rule = |id: &Id| usize::try_from(*id).ok().and_then(|at| rules.get(at)).copied();
        // The rarest literal tells most: `latest` stands in every rule for AWS, the role's name in one.
        let mut seen: HashMap<Key, usize> = HashMap::new();
        for key in
            ids.iter().filter_map(rule).flat_map(|rule| &rule.paths).flat_map(|path| literals(path.as_str()))
        {
            *seen.entry(key).or_default() += 1;
        }
        let mut set = Self::default();
        for id in &ids {
            let Some(rule) = rule(id) else { continue };
            let keys: Option<Vec<Key>> = rule
                .paths
                .iter()
                .map(|path| literals(path.as_str()).min_by_key(|key| seen.get(key).copied()))
                .collect();
            match keys {
                Some(keys) if !keys.is_empty() => keys.into_iter().for_each(|key| set.file(key, *id)),
                Some(_) | None => set.others.push(*id),
            }
        }
        Self { all: ids, ..set }
    }

    fn file(&mut self, (position, segment): Key, id: Id) {
        if self.by_segment.len() <= position {
            self.by_segment.resize_with(position + 1, HashMap::new);
        }
        if let Some(segments) = self.by_segment.get_mut(position) {
            segments.entry(segment).or_default().push(id);
        }
    }

    /// Every rule that may match the target; one may come twice.
    pub(super) fn candidates<'a>(&'a self, target: &'a Target) -> impl Iterator<Item = Id> + 'a {
        let segments = self.by_segment.iter().zip(target.path().segments());
        let filed = segments.filter_map(|(known, segment)| known.get(segment.as_str())).flatten();
        filed.chain(&self.others).copied()
    }

    /// All rules, whatever the target.
    pub(super) fn all(&self) -> impl Iterator<Item = Id> {
        self.all.iter().copied()
    }
}

/// The segments of a pattern that every path it matches has at the same position: the literals before the first
/// `**`. Alternatives may change the number of segments, so a pattern that has any promises nothing.
fn literals(pattern: &str) -> impl Iterator<Item = Key> {
    let pattern = if pattern.contains(['{', '}']) { "" } else { pattern };
    let segments =
        pattern.split('/').filter(|segment| !segment.is_empty()).take_while(|segment| *segment != "**");
    segments
        .enumerate()
        .filter(|(_, segment)| !segment.contains('*'))
        .map(|(at, segment)| (at, segment.into()))
}

#[cfg(test)]
mod tests {
    use super::literals;

    #[test]
    fn literals_end_where_positions_do() {
        let of = |pattern| literals(pattern).map(|(at, text)| format!("{at}:{text}")).collect::<Vec<_>>();
        assert_eq!(of("/latest/*/iam/x*/y"), ["0:latest", "2:iam", "4:y"]);
        assert_eq!(of("/a/**/b"), ["0:a"]);
        assert!(of("/{a,b/c}/d").is_empty());
        assert!(of("/").is_empty());
    }
}
