//! Which rows speak about a path, found without looking at most of them.
//!
//! Every request is classified, so the cost counts: rows lie in buckets by the first segment that they spell
//! out and by its place, and nothing is allocated while looking.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::request::Target;

use super::catalogue::Touched;
use super::class::{Class, Classes};
use super::endpoint::{Door, Endpoint, Proof};
use super::members::Members;
use super::pattern::{Branch, Specificity};
use super::service::{Cloud, Resource};

/// More catalogues than this cannot be judged at once.
pub(super) const MAX_CLOUDS: usize = 64;

/// The clouds at one endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doorway {
    /// A bit per cloud, by its position among the chosen ones.
    pub serving: u64,
    pub door: Door,
    pub intercept: bool,
    pub proof: Proof,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    doors: HashMap<Endpoint, Doorway>,
    /// By the place of the first spelled-out segment, then by its text.
    anchored: Vec<HashMap<Box<str>, Vec<Entry>>>,
    loose: Vec<Entry>,
}

/// One pattern without alternatives, of one row, of one cloud.
#[derive(Debug, Clone, Copy)]
struct Entry {
    cloud: u8,
    row: u16,
    branch: u16,
    /// The place of its specificity among all of them: a number compares faster than a list.
    rank: u16,
}

/// The closest rows so far.
#[derive(Debug, Clone, Copy)]
struct Best {
    /// One more than the rank, so that 0 means that there is none.
    rank: u16,
    classes: Classes,
    constant: bool,
    secret_path: bool,
    /// The classes whose members can be told from the rest of the answer, and those that cannot.
    listed: Classes,
    mixed_in: Classes,
}

impl Best {
    const NONE: Self = Self {
        rank: 0,
        classes: Classes::EMPTY,
        constant: true,
        secret_path: false,
        listed: Classes::EMPTY,
        mixed_in: Classes::EMPTY,
    };

    fn take(&mut self, rank: u16, row: &Resource, method: &str) {
        if rank > self.rank {
            *self = Self { rank, ..Self::NONE };
        }
        self.classes = self.classes.union(row.classes);
        if !row.methods.iter().any(|allowed| **allowed == *method) {
            self.classes = self.classes.with(Class::Write);
            self.constant = false;
        }
        self.constant &= row.constant;
        self.secret_path |= row.secret_path;
        let listed = row.aggregate.as_ref().map_or(Classes::EMPTY, Members::classes);
        self.listed = self.listed.union(listed);
        self.mixed_in = self.mixed_in.union(row.classes.minus(listed));
    }
}

impl Index {
    /// `None` if there are more clouds or rows than the numbers can hold.
    pub(super) fn new(clouds: &[Arc<Cloud>], doors: HashMap<Endpoint, Doorway>) -> Option<Self> {
        if clouds.len() > MAX_CLOUDS {
            return None;
        }
        let ranks = ranks(clouds)?;
        let mut index = Self { doors, ..Self::default() };
        for (at, cloud) in clouds.iter().enumerate() {
            for (row, resource) in cloud.resources.iter().enumerate() {
                for (branch, pattern) in resource.pattern.branches().iter().enumerate() {
                    let entry = Entry {
                        cloud: u8::try_from(at).ok()?,
                        row: u16::try_from(row).ok()?,
                        branch: u16::try_from(branch).ok()?,
                        rank: *ranks.get(pattern.specificity())?,
                    };
                    index.insert(pattern, entry);
                }
            }
        }
        Some(index)
    }

    fn insert(&mut self, pattern: &Branch, entry: Entry) {
        let Some((place, text)) = pattern.anchor() else {
            self.loose.push(entry);
            return;
        };
        if self.anchored.len() <= place {
            self.anchored.resize_with(place + 1, HashMap::new);
        }
        if let Some(bucket) = self.anchored.get_mut(place) {
            bucket.entry(text.into()).or_default().push(entry);
        }
    }

    pub(super) fn doorway(&self, endpoint: Endpoint) -> Option<&Doorway> {
        self.doors.get(&endpoint)
    }

    pub(super) fn doors(&self) -> impl Iterator<Item = (&Endpoint, &Doorway)> {
        self.doors.iter()
    }

    /// What the target touches in the eyes of every cloud that answers at the endpoint.
    pub(super) fn classify(&self, clouds: &[Arc<Cloud>], endpoint: Endpoint, target: &Target) -> Touched {
        let path = target.path();
        let mut touched = self.classify_path(clouds, endpoint, target, path.segments());
        if path.may_begin_with_authority()
            && let [_, rest @ ..] = path.segments()
        {
            let other = self.classify_path(clouds, endpoint, target, rest);
            touched.classes = touched.classes.union(other.classes.minus(Classes::of(Class::Unknown)));
            touched.secret_path |= other.secret_path;
            touched.withholdable = Classes::EMPTY;
        }
        // A server that normalises Unicode would read some of these letters as dots and slashes.
        if !path.is_ascii() {
            touched.classes = touched.classes.with(Class::Unknown);
        }
        touched
    }

    fn classify_path(
        &self,
        clouds: &[Arc<Cloud>],
        endpoint: Endpoint,
        target: &Target,
        path: &[String],
    ) -> Touched {
        let (mut plain, mut conditional) = ([Best::NONE; MAX_CLOUDS], [Best::NONE; MAX_CLOUDS]);
        let method = target.method().as_str();
        let mut ambiguous = false;
        self.each_row(clouds, endpoint, target, path, |entry, row, speaks| {
            let board = if row.condition.is_empty() { &mut plain } else { &mut conditional };
            let Some(best) = board.get_mut(usize::from(entry.cloud)) else { return };
            if entry.rank >= best.rank && speaks() {
                ambiguous |= row.condition.is_ambiguous(target);
                best.take(entry.rank, row, method);
            }
        });
        let mut touched = sum(clouds, target, plain.iter().zip(&conditional));
        if ambiguous {
            touched.classes = touched.classes.with(Class::Unknown);
            touched.withholdable = Classes::EMPTY;
        }
        touched
    }

    /// What the rows that gave a target its classes say about the members of its answer.
    pub(super) fn members(&self, clouds: &[Arc<Cloud>], endpoint: Endpoint, target: &Target) -> Vec<Members> {
        // In one order, always: the answer's version depends on it.
        let mut closest: BTreeMap<(u8, bool), (u16, Vec<&Members>)> = BTreeMap::new();
        self.each_row(clouds, endpoint, target, target.path().segments(), |entry, row, speaks| {
            let (rank, members) = closest.entry((entry.cloud, row.condition.is_empty())).or_default();
            if entry.rank < *rank || !speaks() {
                return;
            }
            if entry.rank > *rank {
                (*rank, *members) = (entry.rank, Vec::new());
            }
            members.extend(&row.aggregate);
        });
        closest.into_values().flat_map(|(_, members)| members).cloned().collect()
    }

    /// Shows every row that may speak about a target, and lets the visitor ask whether it does: the answer costs more
    /// than to see that a closer row has spoken.
    fn each_row<'a>(
        &'a self,
        clouds: &'a [Arc<Cloud>],
        endpoint: Endpoint,
        target: &Target,
        path: &[String],
        mut visit: impl FnMut(Entry, &'a Resource, &dyn Fn() -> bool),
    ) {
        let serving = self.doorway(endpoint).map_or(0, |door| door.serving);
        for entry in self.candidates(path) {
            if serving & (1 << entry.cloud) == 0 {
                continue;
            }
            let Some((cloud, row, branch)) = entry.find(clouds) else { continue };
            visit(*entry, row, &|| {
                branch.matches(path) && cloud.counts_at(row, endpoint.port) && row.condition.holds(target)
            });
        }
    }

    fn candidates<'a, 'p>(&'a self, path: &'p [String]) -> impl Iterator<Item = &'a Entry> + use<'a, 'p> {
        let anchored =
            self.anchored.iter().zip(path).filter_map(|(buckets, segment)| buckets.get(segment.as_str()));
        anchored.flatten().chain(&self.loose)
    }
}

impl Entry {
    fn find(self, clouds: &[Arc<Cloud>]) -> Option<(&Cloud, &Resource, &Branch)> {
        let cloud = clouds.get(usize::from(self.cloud))?;
        let row = cloud.resources.get(usize::from(self.row))?;
        let branch = row.pattern.branches().get(usize::from(self.branch))?;
        Some((cloud, row, branch))
    }
}

/// The union over the clouds that know the path; what none of them knows is unknown.
fn sum<'a>(
    clouds: &[Arc<Cloud>],
    target: &Target,
    boards: impl Iterator<Item = (&'a Best, &'a Best)>,
) -> Touched {
    let mut touched = Touched { constant: true, ..Touched::unknown() };
    let mut classes = Classes::EMPTY;
    let (mut listed, mut mixed_in) = (Classes::EMPTY, Classes::EMPTY);
    for (cloud, (plain, conditional)) in clouds.iter().zip(boards) {
        if plain.rank == 0 && conditional.rank == 0 {
            continue;
        }
        touched.clouds = touched.clouds.with(cloud.number);
        classes = classes.union(plain.classes).union(conditional.classes);
        // A condition is there because the answer depends on more than the path.
        touched.constant &= plain.constant && plain.rank > 0 && conditional.rank == 0;
        touched.secret_path |= plain.secret_path || conditional.secret_path;
        listed = listed.union(plain.listed).union(conditional.listed);
        mixed_in = mixed_in.union(plain.mixed_in).union(conditional.mixed_in);
        touched.long_poll |= cloud.long_poll.iter().any(|key| target.query().has(key));
    }
    if classes.is_empty() {
        return Touched::unknown();
    }
    Touched { classes, withholdable: listed.minus(mixed_in), ..touched }
}

fn ranks(clouds: &[Arc<Cloud>]) -> Option<HashMap<&Specificity, u16>> {
    let mut all: Vec<&Specificity> = clouds
        .iter()
        .flat_map(|cloud| &cloud.resources)
        .flat_map(|row| row.pattern.branches())
        .map(Branch::specificity)
        .collect();
    all.sort_unstable();
    all.dedup();
    all.into_iter().enumerate().map(|(at, one)| Some((one, u16::try_from(at + 1).ok()?))).collect()
}

#[cfg(test)]
mod tests;
