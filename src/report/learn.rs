//! Learns from a log what each caller needs, and whether it may be trusted to need it.

use std::collections::{BTreeMap, BTreeSet};

use super::caller::{Home, Who};
use super::rebuild;
use super::record::Record;
use super::signals::{Evidence, is_tool};
use crate::cloud::{Class, Classes};
use crate::policy::{Policy, Reason, Verdict};

/// Above this many callers, paths of a caller, or hosts, no more are remembered.
const CALLERS: usize = 5_000;
const PATHS: usize = 64;
const HOSTS: usize = 1_000;

/// As often as this an executable must have been seen before a policy relies on it.
const STABLE: u64 = 20;

/// What was seen of all callers.
#[derive(Debug, Default)]
pub struct Learner {
    /// By caller, in a stable order.
    pub callers: BTreeMap<Who, Seen>,
    /// Requests of callers that were too many to remember.
    pub forgotten: u64,
    /// The clouds that knew the paths.
    pub clouds: BTreeSet<String>,
}

/// What was seen of one caller.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// What speaks against it.
    pub evidence: Evidence,
    /// Its requests.
    pub count: u64,
    /// The first and last of them, in seconds since 1970.
    pub span: Option<(i64, i64)>,
    /// The machines, where the events name them.
    pub hosts: BTreeSet<String>,
    /// What it needs to be granted, by class.
    pub needs: BTreeMap<Class, Need>,
    /// Requests that no policy can allow, because they have a fault.
    pub faulty: u64,
    /// Requests through opaque doors, which only a grant of every class passes.
    pub opaque: u64,
    /// Requests that a deny rule of the policy to merge with forbids.
    pub forbidden: u64,
    /// The id of its last event.
    pub event: String,
    /// Whether it asked from another network namespace.
    pub is_led: bool,
    executable: Executable,
}

/// What a caller needs of one class.
#[derive(Debug, Clone, Default)]
pub struct Need {
    /// How often.
    pub count: u64,
    /// The paths in lower case, each as it was spelt and with its methods.
    pub paths: BTreeMap<String, (String, BTreeSet<String>)>,
    /// Whether there were more paths than are remembered.
    pub more: bool,
}

#[derive(Debug, Clone, Default)]
struct Executable {
    path: Option<String>,
    seen: u64,
    doubtful: bool,
}

impl Learner {
    /// Looks at one more event. With a policy, only what that policy would not allow is needed.
    pub fn add(&mut self, record: &Record<'_>, base: Option<&Policy>) {
        if !record.is_decision() {
            return;
        }
        if !record.cloud.is_empty() && self.clouds.len() < PATHS {
            self.clouds.insert(record.cloud.to_string());
        }
        let who = Who::of(record);
        if self.callers.len() >= CALLERS && !self.callers.contains_key(&who) {
            self.forgotten += record.weight();
            return;
        }
        let seen = self.callers.entry(who.clone()).or_default();
        seen.evidence.add(&who.home, record);
        seen.note(record);
        let needed = match &*record.action {
            "opaque" => {
                seen.opaque += record.weight();
                return;
            }
            _ if !record.faults.is_empty() || record.path.is_empty() => {
                seen.faulty += record.weight();
                return;
            }
            _ => match missing(record, base) {
                Missing::Classes(classes) => classes,
                Missing::Forbidden => {
                    seen.forbidden += record.weight();
                    return;
                }
            },
        };
        for class in needed.iter() {
            seen.needs.entry(class).or_default().add(record);
        }
    }

    /// The callers that may be proposed: a unit, nothing against it, and something that it needs.
    pub fn accepted(&self) -> impl Iterator<Item = (&Who, &Seen)> {
        self.callers.iter().filter(|(who, seen)| seen.is_accepted(who) && !seen.needs.is_empty())
    }

    /// The callers that are not proposed.
    pub fn refused(&self) -> impl Iterator<Item = (&Who, &Seen)> {
        self.callers.iter().filter(|(who, seen)| !seen.is_accepted(who))
    }
}

enum Missing {
    Classes(Classes),
    Forbidden,
}

fn missing(record: &Record<'_>, base: Option<&Policy>) -> Missing {
    let touched = match record.touched() {
        none if none.is_empty() => Classes::of(Class::Unknown),
        some => some,
    };
    let Some(base) = base else { return Missing::Classes(touched) };
    let Some(rebuilt) = rebuild::decide(record, base) else { return Missing::Classes(Classes::EMPTY) };
    match (rebuilt.decision.verdict(), rebuilt.decision.reason()) {
        (Verdict::Allow, _) => Missing::Classes(Classes::EMPTY),
        (Verdict::Deny, Reason::RuleDenies) => Missing::Forbidden,
        (Verdict::Deny, Reason::NotGranted { missing, .. }) => Missing::Classes(missing),
        // No grant makes up for a session token.
        (Verdict::Deny, reason) if reason.is_about_tokens() => Missing::Classes(Classes::EMPTY),
        (Verdict::Deny, _) => Missing::Classes(touched),
    }
}

impl Seen {
    /// Whether it may be proposed.
    #[must_use]
    pub fn is_accepted(&self, who: &Who) -> bool {
        matches!(who.home, Home::Unit(_) | Home::Contained(_))
            && who.uid.is_some()
            && self.evidence.is_clean()
    }

    /// The executable, if it was always the same, could always be believed, and was seen often enough. Shells and
    /// interpreters say nothing about who asks.
    #[must_use]
    pub fn stable_executable(&self) -> Option<&str> {
        let path = self.executable.path.as_deref()?;
        let stable = !self.executable.doubtful
            && self.executable.seen >= STABLE
            && path.starts_with('/')
            && !path.contains(['*', '\\'])
            && !is_tool(path);
        stable.then_some(path)
    }

    fn note(&mut self, record: &Record<'_>) {
        self.count += record.weight();
        self.is_led |= &*record.origin == "container";
        if let Some(now) = record.seconds() {
            let (first, last) = self.span.unwrap_or((now, now));
            self.span = Some((first.min(now), last.max(now)));
            // Of several at one moment the greatest, so that the order of the logs does not matter.
            if now > last || self.event.is_empty() || (now == last && *record.id > *self.event) {
                (*record.id).clone_into(&mut self.event);
            }
        }
        if !record.host.is_empty() && self.hosts.len() < HOSTS {
            self.hosts.insert(record.host.to_string());
        }
        self.executable.note(record);
    }
}

impl Executable {
    /// One event without a look at the processes is one event that a policy with `exe` could not allow.
    fn note(&mut self, record: &Record<'_>) {
        let believed = record.holders == Some(1) && record.doubt.is_empty() && !record.executable.is_empty();
        let same = self.path.as_deref().is_none_or(|path| path == &*record.executable);
        self.doubtful |= !believed || !same;
        self.seen += 1;
        if self.path.is_none() && believed {
            self.path = Some(record.executable.to_string());
        }
    }
}

impl Need {
    fn add(&mut self, record: &Record<'_>) {
        self.count += record.weight();
        let path = generalised(&record.path);
        let key = path.to_ascii_lowercase();
        if self.paths.len() >= PATHS && !self.paths.contains_key(&key) {
            self.more = true;
            return;
        }
        let (spelling, methods) = self.paths.entry(key).or_default();
        if spelling.is_empty() || path < *spelling {
            *spelling = path;
        }
        methods.insert(record.method.to_string());
    }

    /// The paths that lead no further: the listing above a role's keys is no second role.
    pub fn leaves(&self) -> impl Iterator<Item = &str> {
        let below = |path: &str| {
            let prefix = format!("{path}/");
            self.paths.keys().any(|other| other.starts_with(&prefix))
        };
        self.paths.keys().map(String::as_str).filter(move |path| !below(path))
    }
}

/// A path with `*` for the version that EC2's and its likenesses' paths begin with: tomorrow's client asks for
/// another date.
fn generalised(path: &str) -> String {
    let mut segments: Vec<&str> = path.split('/').collect();
    let known = segments.get(2).is_some_and(|second| {
        let second = second.to_ascii_lowercase();
        matches!(second.as_str(), "meta-data" | "user-data" | "dynamic" | "api")
    });
    if let (true, Some(version)) = (known, segments.get_mut(1)) {
        *version = "*";
    }
    segments.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_generalised_and_nothing_else() {
        assert_eq!(generalised("/latest/meta-data/iam/x"), "/*/meta-data/iam/x");
        assert_eq!(generalised("/2021-03-23/user-data"), "/*/user-data");
        assert_eq!(generalised("/computeMetadata/v1/instance/id"), "/computeMetadata/v1/instance/id");
        assert_eq!(generalised("/"), "/");
    }

    #[test]
    fn a_listing_is_no_leaf() {
        let mut need = Need::default();
        for path in ["/a/keys", "/a/keys/role"] {
            need.paths.insert(path.to_owned(), (path.to_owned(), BTreeSet::new()));
        }
        assert_eq!(need.leaves().collect::<Vec<_>>(), ["/a/keys/role"]);
    }
}
