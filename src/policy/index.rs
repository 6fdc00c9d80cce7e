//! Finding the few agents and rules that can matter for a request among a thousand.
//!
//! An index may only leave out what cannot match; everything that it finds is compared in full.

use std::collections::{HashMap, HashSet};

use super::agent::{Agent, Cgroups};
use super::rule::{QueryTest, Rule};
use super::unit::index_keys;
use crate::caller::Stamps;
use crate::cloud::{NameClue, PathPattern};
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

/// Rules that share a subject, each filed under what a request must show for it to be worth comparing.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    /// By a whole name somewhere in the path.
    names: Filed,
    /// By how a name begins, and by how one ends: the lengths that occur, each with the rules.
    starts: Vec<(usize, Filed)>,
    ends: Vec<(usize, Filed)>,
    /// By a key of the query, or by `key=value`, in lower case.
    queries: Filed,
    /// By the name of a header, in lower case.
    headers: Filed,
    /// By the caller.
    uids: HashMap<u32, Vec<Id>>,
    /// Rules that promise nothing of the kind.
    others: Vec<Id>,
    /// All of them, each once.
    all: Vec<Id>,
}

type Filed = HashMap<Box<str>, Vec<Id>>;

/// What every request that a rule matches shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Clue<'a> {
    Path(NameClue<'a>),
    Query(&'a QueryTest),
    Header(&'a str),
    User(u32),
}

impl RuleSet {
    /// Indexes the rules with these ids, which come in order.
    pub(super) fn new(ids: Vec<Id>, rules: &[&Rule]) -> Self {
        let rule = |id: Id| usize::try_from(id).ok().and_then(|at| rules.get(at)).copied();
        // Whatever matches, of rules that are alike the first speaks for the others.
        let mut essences = HashSet::new();
        let distinct: Vec<(Id, &Rule)> = ids
            .iter()
            .filter_map(|id| Some((*id, rule(*id)?)))
            .filter(|(_, rule)| essences.insert(rule.essence()))
            .collect();
        // The rarest clue tells most: `latest` stands in every rule for AWS, the role's name in one.
        let mut seen: HashMap<Clue<'_>, usize> = HashMap::new();
        for clue in distinct.iter().flat_map(|(_, rule)| conditions(rule)).flatten().flatten() {
            *seen.entry(clue).or_default() += 1;
        }
        let mut set = Self::default();
        for (id, rule) in distinct {
            match telling(rule, &seen) {
                Some(clues) => clues.into_iter().for_each(|clue| set.file(clue, id)),
                None => set.others.push(id),
            }
        }
        Self { all: ids, ..set }
    }

    fn file(&mut self, clue: Clue<'_>, id: Id) {
        match clue {
            Clue::Path(NameClue::Is(name)) => self.names.entry(name.into()).or_default().push(id),
            Clue::Path(NameClue::Begins(start)) => file_by_length(&mut self.starts, start, id),
            Clue::Path(NameClue::Ends(end)) => file_by_length(&mut self.ends, end, id),
            Clue::Query(test) => {
                let value = test.value.as_deref();
                let key = value.map_or_else(|| test.key.to_string(), |value| format!("{}={value}", test.key));
                self.queries.entry(key.to_ascii_lowercase().into()).or_default().push(id);
            }
            Clue::Header(name) => {
                self.headers.entry(name.to_ascii_lowercase().into()).or_default().push(id);
            }
            Clue::User(uid) => self.uids.entry(uid).or_default().push(id),
        }
    }

    /// Every rule that may match the target and the user; one may come twice.
    pub(super) fn candidates<'a>(
        &'a self,
        target: &'a Target,
        uid: Option<u32>,
    ) -> impl Iterator<Item = Id> + 'a {
        let by_name = target.path().segments().iter().flat_map(|name| {
            let whole = self.names.get(name.as_str());
            let starts = self.starts.iter().filter_map(|(length, rules)| rules.get(name.get(..*length)?));
            let ends = self
                .ends
                .iter()
                .filter_map(|(length, rules)| rules.get(name.get(name.len().checked_sub(*length)?..)?));
            whole.into_iter().chain(starts).chain(ends)
        });
        let pairs = target.query().pairs().iter().chain(target.query().hidden());
        let pairs = pairs.take(if self.queries.is_empty() { 0 } else { usize::MAX });
        let by_query = pairs.flat_map(|(key, value)| {
            let with_value = self.queries.get(format!("{key}={value}").to_ascii_lowercase().as_str());
            self.queries.get(key.as_str()).into_iter().chain(with_value)
        });
        let headers = target.head().headers().take(if self.headers.is_empty() { 0 } else { usize::MAX });
        let by_header =
            headers.filter_map(|header| self.headers.get(header.name.to_ascii_lowercase().as_str()));
        let by_uid = uid.and_then(|uid| self.uids.get(&uid));
        let filed = by_name.chain(by_query).chain(by_header).chain(by_uid).flatten();
        filed.chain(&self.others).copied()
    }

    /// All rules, whatever the target.
    pub(super) fn all(&self) -> impl Iterator<Item = Id> {
        self.all.iter().copied()
    }
}

fn file_by_length(filed: &mut Vec<(usize, Filed)>, text: &str, id: Id) {
    let at = filed.iter().position(|(length, _)| *length == text.len()).unwrap_or_else(|| {
        filed.push((text.len(), Filed::new()));
        filed.len() - 1
    });
    if let Some((_, rules)) = filed.get_mut(at) {
        rules.entry(text.into()).or_default().push(id);
    }
}

/// The clues of one condition, for each way in which it may hold: one of each list is enough.
type Ways<'a> = Vec<Vec<Clue<'a>>>;

/// What each of a rule's conditions must find in a request: the alternatives of its paths, the tests of its query, its
/// headers, its users. A condition that the rule lacks has no ways.
fn conditions(rule: &Rule) -> [Ways<'_>; 4] {
    let branches = rule.paths.iter().flat_map(PathPattern::branches);
    [
        branches.map(|branch| branch.name_clues().map(Clue::Path).collect()).collect(),
        rule.query.iter().map(|test| vec![Clue::Query(test)]).collect(),
        rule.headers.iter().map(|name| vec![Clue::Header(name)]).collect(),
        rule.uids.iter().flatten().map(|uid| vec![Clue::User(*uid)]).collect(),
    ]
}

/// The clues under which a rule is found, whichever way it matches: those of the condition that tells it best from the
/// others. `None` if some way of each condition leaves no clue.
fn telling<'a>(rule: &'a Rule, seen: &HashMap<Clue<'a>, usize>) -> Option<Vec<Clue<'a>>> {
    let often = |clue: &Clue<'a>| seen.get(clue).copied();
    let rarest = |ways: Ways<'a>| {
        let clues = ways.into_iter().map(|clues| clues.into_iter().min_by_key(often));
        clues.collect::<Option<Vec<_>>>().filter(|clues| !clues.is_empty())
    };
    conditions(rule).into_iter().filter_map(rarest).min_by_key(|clues| clues.iter().map(often).max())
}

#[cfg(test)]
mod tests {
    use crate::cloud::PathPattern;

    #[test]
    fn every_alternative_leaves_its_own_clues() {
        let of = |pattern: &str| {
            let pattern = PathPattern::parse(pattern).unwrap();
            let clues = pattern
                .branches()
                .iter()
                .map(|branch| format!("{:?}", branch.name_clues().collect::<Vec<_>>()));
            clues.collect::<Vec<_>>()
        };
        assert_eq!(of("/a/**/b"), [r#"[Is("a"), Is("b")]"#]);
        assert_eq!(of("/*/x*/*y/u*v/**"), [r#"[Begins("x"), Ends("y"), Begins("u"), Ends("v")]"#]);
        assert_eq!(of("/{a,b/c}/*"), [r#"[Is("a")]"#, r#"[Is("b"), Is("c")]"#]);
        assert_eq!(of("/*/**"), ["[]"]);
        assert_eq!(of("/"), ["[]"]);
    }
}
