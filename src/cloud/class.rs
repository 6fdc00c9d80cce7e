//! What a request touches: the seven classes, and sets of them.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One kind of thing that a metadata service holds or does.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Ord, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Keys, tokens, passwords: whoever reads them can act as the machine.
    Credentials,
    /// Signed proof of which machine this is.
    Identity,
    /// What the owner handed to the machine at launch, often with secrets inside.
    UserData,
    /// Listed as safe: addresses, names, public keys, placement.
    Config,
    /// A session token that later reads must show.
    Session,
    /// Anything that changes the service's state.
    Write,
    /// Known to none of the chosen catalogues.
    Unknown,
}

impl Class {
    /// Every class, the most sensitive first.
    pub const ALL: [Self; 7] = [
        Self::Credentials,
        Self::Identity,
        Self::UserData,
        Self::Session,
        Self::Write,
        Self::Config,
        Self::Unknown,
    ];

    /// The name that policies, catalogues and audit events use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Identity => "identity",
            Self::UserData => "user-data",
            Self::Config => "config",
            Self::Session => "session",
            Self::Write => "write",
            Self::Unknown => "unknown",
        }
    }

    /// The class of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of classes, as small as a number.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Default)]
pub struct Classes(u8);

impl Classes {
    /// No class at all.
    pub const EMPTY: Self = Self(0);

    /// The set of one class.
    #[must_use]
    pub const fn of(class: Class) -> Self {
        Self(class.bit())
    }

    /// Whether the class is in the set.
    #[must_use]
    pub const fn contains(self, class: Class) -> bool {
        self.0 & class.bit() != 0
    }

    /// What is in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set with one class more.
    #[must_use]
    pub const fn with(self, class: Class) -> Self {
        self.union(Self::of(class))
    }

    /// What is in this set and not in the other.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the sets share a class.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the other set holds all of this one.
    #[must_use]
    pub const fn is_subset_of(self, other: Self) -> bool {
        self.minus(other).is_empty()
    }

    /// The classes in it, the most sensitive first.
    pub fn iter(self) -> impl Iterator<Item = Class> {
        Class::ALL.into_iter().filter(move |class| self.contains(*class))
    }
}

impl FromIterator<Class> for Classes {
    fn from_iter<I: IntoIterator<Item = Class>>(classes: I) -> Self {
        classes.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Display for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, class) in self.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            f.write_str(class.name())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl Serialize for Classes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Classes {
    /// One name or a list of them; a wrong one is told with the right ones.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrMore)
    }
}

#[derive(Clone, Copy)]
struct OneOrMore;

impl<'de> Visitor<'de> for OneOrMore {
    type Value = Classes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a class, or a list of them")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Classes, E> {
        let known = || Class::ALL.into_iter().map(Class::name).collect::<Vec<_>>().join(", ");
        let class = Class::from_name(name);
        class
            .map(Classes::of)
            .ok_or_else(|| E::custom(format!("there is no class `{name}`; classes are {}", known())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Classes, A::Error> {
        let mut classes = Classes::EMPTY;
        while let Some(name) = names.next_element::<String>()? {
            classes = classes.union(self.visit_str(&name)?);
        }
        Ok(classes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_read_back() {
        for class in Class::ALL {
            assert_eq!(Class::from_name(class.name()), Some(class));
            assert_eq!(serde_json::to_string(&class).unwrap(), format!("\"{}\"", class.name()));
        }
        assert_eq!(Class::from_name("Credentials"), None);
    }

    #[test]
    fn sets_behave_like_sets() {
        let two: Classes = [Class::Config, Class::Credentials].into_iter().collect();
        assert!(two.contains(Class::Config) && !two.contains(Class::Write));
        assert!(
            Classes::of(Class::Config).is_subset_of(two) && !two.is_subset_of(Classes::of(Class::Config))
        );
        assert_eq!(two.minus(Classes::of(Class::Config)), Classes::of(Class::Credentials));
        assert_eq!(two.to_string(), "credentials, config");
        assert_eq!(Class::ALL.into_iter().collect::<Classes>().iter().count(), 7);
        assert!(Classes::EMPTY.is_empty() && Classes::EMPTY.is_subset_of(Classes::EMPTY));
    }

    #[test]
    fn one_name_or_a_list_reads_as_a_set() {
        let one: Classes = serde_json::from_str("\"user-data\"").unwrap();
        let two: Classes = serde_json::from_str("[\"user-data\", \"config\"]").unwrap();
        assert_eq!(one, Classes::of(Class::UserData));
        assert_eq!(two, one.with(Class::Config));
        for wrong in ["\"secrets\"", "[\"config\", \"secrets\"]"] {
            let error = serde_json::from_str::<Classes>(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("there is no class `secrets`; classes are credentials, identity"),
                "{error}"
            );
        }
        assert!(serde_json::from_str::<Classes>("7").is_err());
    }
}
