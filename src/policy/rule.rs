//! `[[rule]]`: the finer grain. Who, asking what, is allowed or denied.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::sync::Arc;

use super::decision::Mode;
use crate::cloud::{Asked, Classes, PathPattern};
use crate::request::{Method, Target};

/// A rule, ready to be compared with requests.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: Arc<str>,
    pub(super) action: RuleAction,
    /// Whether a denial by it is given as a decoy to whom that may be given.
    pub(super) decoy: bool,
    /// Its own mode, if it has one.
    pub(super) mode: Option<Mode>,
    /// `None` for any uid.
    pub(super) uids: Option<BTreeSet<u32>>,
    /// Empty for any path.
    pub(super) paths: Vec<PathPattern>,
    /// `None` for any method.
    pub(super) methods: Option<Methods>,
    /// Any of these; empty for any query.
    pub(super) query: Vec<QueryTest>,
    /// `None` for any class.
    pub(super) classes: Option<Classes>,
    /// Ids; `None` for any cloud.
    pub(super) clouds: Option<Vec<&'static str>>,
    /// Any of these headers; empty for any.
    pub(super) headers: Vec<Box<str>>,
}

/// What a matching rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum RuleAction {
    Allow,
    Deny,
}

/// A set of methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Methods(u8);

/// `key`, or `key=value`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct QueryTest {
    pub(super) key: Box<str>,
    pub(super) value: Option<Box<str>>,
}

impl Methods {
    pub(super) const NAMES: [&'static str; 6] = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"];
    pub(super) const NONE: Self = Self(0);

    /// The set with the named method added; `None` if there is no such method.
    pub(super) fn with(self, name: &str) -> Option<Self> {
        let bit = Self::NAMES.iter().position(|known| *known == name)?;
        Some(Self(self.0 | 1 << bit))
    }

    fn contains(self, method: &Method) -> bool {
        let bit = match method {
            Method::Get => 0,
            Method::Head => 1,
            Method::Put => 2,
            Method::Post => 3,
            Method::Patch => 4,
            Method::Delete => 5,
            Method::Other(_) => return false,
        };
        self.0 & 1 << bit != 0
    }
}

impl Rule {
    /// Whether the rule speaks about this request; the caller has been looked at already.
    pub(super) fn matches(&self, asked: &Asked, target: &Target, touched: Classes) -> bool {
        let strict = self.action == RuleAction::Allow;
        self.classes.is_none_or(|classes| overlap(classes, touched))
            && self.methods.is_none_or(|methods| methods.contains(target.method()))
            && self
                .clouds
                .as_ref()
                .is_none_or(|clouds| asked.touched.clouds.iter().any(|id| clouds.contains(&id)))
            && (self.paths.is_empty() || self.paths.iter().any(|path| path.matches(target.path().segments())))
            && (self.query.is_empty() || self.query.iter().any(|test| test.holds(target, strict)))
            && (self.headers.is_empty()
                || self.headers.iter().any(|name| target.head().values(name).next().is_some()))
    }

    /// Everything but the name. Of rules that are alike, the first by name says what all of them say.
    pub(super) fn essence(&self) -> impl Eq + Hash + '_ {
        let Self { name: _, action, decoy, mode, uids, paths, methods, query, classes, clouds, headers } =
            self;
        let paths: Vec<&str> = paths.iter().map(PathPattern::as_str).collect();
        (action, decoy, mode, uids, paths, methods, query, classes, clouds, headers)
    }

    /// What a matching allow rule grants: of the classes that the request touches, those that the rule names. A rule
    /// for `config` therefore does not open the user-data that an aggregate holds beside it.
    pub(super) fn grants(&self, touched: Classes) -> Classes {
        self.classes.map_or(touched, |classes| both(classes, touched))
    }
}

impl QueryTest {
    /// Whether the query has the key (and value). Of a repeated key, services read the first, the last or a list:
    /// a deny rule therefore matches if any of its values does, in any case of letters, an allow rule only if all
    /// do, to the letter.
    fn holds(&self, target: &Target, strict: bool) -> bool {
        let query = target.query();
        let Some(wanted) = self.value.as_deref() else { return query.has(&self.key) };
        if strict {
            query.has(&self.key) && query.values(&self.key).all(|value| value == wanted)
        } else {
            query.values(&self.key).any(|value| value.eq_ignore_ascii_case(wanted))
        }
    }
}

/// What is in both sets.
pub(super) fn both(a: Classes, b: Classes) -> Classes {
    a.minus(a.minus(b))
}

/// Whether the sets share a class.
pub(super) fn overlap(a: Classes, b: Classes) -> bool {
    !both(a, b).is_empty()
}
