//! Answers that mix classes: which of their members hold which class, and what is to be withheld of one answer.
//!
//! A member is named by its path in the document, `/compute/userData`, in the language of the path patterns; lists add
//! nothing to it. The closest pattern says what a member is. What no pattern speaks of is the rest, which is `config`.

use sha2::{Digest as _, Sha256};

use super::class::{Class, Classes};
use super::pattern::PathPattern;
use crate::hex;

/// How a mixed answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// One JSON object.
    #[default]
    Json,
    /// One YAML mapping in block style, of which only the outermost keys are told apart.
    Yaml,
}

/// Which members of a resource's answer hold which class.
#[derive(Debug, Clone)]
pub struct Members {
    format: Format,
    patterns: Vec<(PathPattern, Class)>,
}

/// What is wrong with a list of members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// No class is told apart from the rest.
    #[error("names no member that could be withheld")]
    Nothing,
    /// The answer as a whole, or a class that is no member's.
    #[error("the member `{0}` is the whole answer, or called unknown, session or write")]
    Whole(String),
    /// Two classes for one member.
    #[error("the member `{0}` has two classes")]
    Twice(String),
    /// What stands inside a withheld member goes with it.
    #[error("the member `{inner}` lies inside `{outer}`, which is withheld as a whole")]
    Inside {
        /// The pattern that can never keep anything.
        inner: String,
        /// The one that takes it along.
        outer: String,
    },
    /// Only JSON is read below its outermost keys.
    #[error("the member `{0}` lies deeper than the format is read")]
    TooDeep(String),
}

impl Members {
    /// Takes a list of members, if it says one thing of each.
    pub fn new(format: Format, patterns: Vec<(PathPattern, Class)>) -> Result<Self, MembersError> {
        let members = Self { format, patterns };
        if members.classes().is_empty() {
            return Err(MembersError::Nothing);
        }
        members.check()?;
        Ok(members)
    }

    fn check(&self) -> Result<(), MembersError> {
        let branches = || {
            self.patterns
                .iter()
                .flat_map(|(pattern, class)| pattern.branches().iter().map(move |branch| (branch, *class)))
        };
        for (at, (branch, class)) in branches().enumerate() {
            let text = || branch.to_string();
            let example = branch.example();
            if example.is_empty() || matches!(class, Class::Unknown | Class::Session | Class::Write) {
                return Err(MembersError::Whole(text()));
            }
            if self.format == Format::Yaml && (example.len() > 1 || example.iter().any(|name| name == "**")) {
                return Err(MembersError::TooDeep(text()));
            }
            if branches().skip(at + 1).any(|(other, _)| other == branch) {
                return Err(MembersError::Twice(text()));
            }
            let taken = |above: &[String]| {
                branches().find(|(outer, other)| {
                    *other != class && *other != Class::Config && *outer != branch && outer.matches(above)
                })
            };
            let above = (1..example.len()).filter_map(|length| example.get(..length));
            if let Some((outer, _)) = above.into_iter().find_map(taken) {
                return Err(MembersError::Inside { inner: text(), outer: outer.to_string() });
            }
        }
        Ok(())
    }

    /// The classes whose members are told apart from the rest. `config` is the rest, and never among them.
    #[must_use]
    pub fn classes(&self) -> Classes {
        self.patterns.iter().map(|(_, class)| *class).filter(|class| *class != Class::Config).collect()
    }

    /// What the closest patterns say of a member; nothing if none speaks of it.
    fn of(&self, member: &[String]) -> Classes {
        let speaking = || {
            self.patterns
                .iter()
                .filter_map(|(pattern, class)| pattern.closeness(member).map(|closeness| (closeness, *class)))
        };
        let Some(closest) = speaking().map(|(closeness, _)| closeness).max() else { return Classes::EMPTY };
        speaking().filter(|(closeness, _)| *closeness == closest).map(|(_, class)| class).collect()
    }

    /// The same for a value that is no object: what stands where members were expected counts as an unnamed one.
    fn of_leaf(&self, member: &[String]) -> Classes {
        let own = self.of(member);
        if !own.is_empty() {
            return own;
        }
        let mut unnamed = member.to_vec();
        unnamed.push(String::new());
        self.of(&unnamed)
    }
}

/// What is to be withheld of one answer.
#[derive(Debug, Clone)]
pub struct Withholding {
    format: Format,
    members: Vec<Members>,
    withheld: Classes,
    version_keys: Vec<String>,
}

impl Withholding {
    /// Withholds these classes of an answer in which each of these lists finds members. `None` if the lists disagree on
    /// how it is written, or do not find all the classes.
    #[must_use]
    pub fn new(members: Vec<Members>, withheld: Classes, version_keys: Vec<String>) -> Option<Self> {
        let format = members.first()?.format;
        let found = members.iter().map(Members::classes).fold(Classes::EMPTY, Classes::union);
        let agreed = members.iter().all(|one| one.format == format);
        (agreed && withheld.is_subset_of(found) && !withheld.is_empty()).then_some(Self {
            format,
            members,
            withheld,
            version_keys,
        })
    }

    /// How the answer is written.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The classes that the caller lacks.
    #[must_use]
    pub fn classes(&self) -> Classes {
        self.withheld
    }

    /// The query keys in which clients send back the version of the answer that they have.
    #[must_use]
    pub fn version_keys(&self) -> &[String] {
        &self.version_keys
    }

    /// Whether a member goes, by its path in lower case.
    #[must_use]
    pub fn takes(&self, member: &[String]) -> bool {
        self.members.iter().any(|one| one.of(member).overlaps(self.withheld))
    }

    /// The same for a value that is no object.
    #[must_use]
    pub fn takes_leaf(&self, member: &[String]) -> bool {
        self.members.iter().any(|one| one.of_leaf(member).overlaps(self.withheld))
    }

    /// Eight hexadecimal digits that no other form of the same answer has: they change with the classes that are
    /// withheld and with what the catalogue knows of the members.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(format!("{:?} {}", self.format, self.withheld));
        for (pattern, class) in self.members.iter().flat_map(|one| &one.patterns) {
            digest.update(format!("\n{pattern} {class}"));
        }
        let digest = digest.finalize();
        hex::encode(digest.get(..4).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
