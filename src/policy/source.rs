//! The text of a policy as tables with places: what was written, not yet what it means.
//!
//! Everything is optional here and nothing is looked up, so that `compile` can tell all errors at once.

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

use super::containers::ContainerTable;

/// One file of a policy. The first source given to the compiler is the main file; the others are drop-ins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file's name, for diagnostics.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// A name with its place.
pub(super) type Name = Spanned<String>;

/// One name or a list of them, each with its place.
#[derive(Debug, Clone, Default)]
pub(super) struct Names(pub(super) Vec<Name>);

/// Like [`Names`], and numbers may stand for names.
#[derive(Debug, Clone, Default)]
pub(super) struct Ids(pub(super) Vec<Name>);

/// What containers an agent is: engines' names and tables, one or a list.
#[derive(Debug, Default)]
pub(super) struct ContainerTables(pub(super) Vec<Spanned<ContainerTable>>);

/// `[guard]`
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct GuardTable {
    pub(super) user: Option<Ids>,
    pub(super) audit_log: Option<Name>,
    pub(super) audit_log_max: Option<Name>,
    pub(super) audit_log_keep: Option<Spanned<i64>>,
    pub(super) upstream_mark: Option<Spanned<i64>>,
    pub(super) cache: Option<Name>,
    pub(super) port: Option<Spanned<i64>>,
    pub(super) workers: Option<Spanned<i64>>,
    pub(super) self_heal: Option<bool>,
    pub(super) watch_commands: Option<bool>,
    pub(super) issued_key: Option<bool>,
    pub(super) decoys: Option<Name>,
    pub(super) status_socket: Option<Name>,
    pub(super) status_group: Option<Ids>,
    pub(super) metrics: Option<Name>,
    pub(super) upstream_tls: Option<Name>,
    pub(super) limits: Option<LimitsTable>,
}

/// `[guard.limits]`
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct LimitsTable {
    pub(super) connections: Option<Spanned<i64>>,
    pub(super) connections_per_uid: Option<Spanned<i64>>,
    pub(super) requests_per_uid: Option<Spanned<i64>>,
    pub(super) head_bytes: Option<Spanned<i64>>,
    pub(super) headers: Option<Spanned<i64>>,
    pub(super) head_seconds: Option<Spanned<i64>>,
    pub(super) idle_seconds: Option<Spanned<i64>>,
}

/// `[everyone]` and `[unattributed]`
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct GrantTable {
    #[serde(default)]
    pub(super) allow: Names,
}

/// `[containers]`
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ContainersTable {
    pub(super) interfaces: Option<Names>,
    pub(super) judge: Option<bool>,
    #[serde(default)]
    pub(super) allow: Names,
}

/// `[[agent]]`
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct AgentTable {
    pub(super) name: Option<Name>,
    pub(super) unit: Option<Names>,
    pub(super) subtree: Option<Spanned<bool>>,
    pub(super) cgroup: Option<Names>,
    pub(super) container: Option<ContainerTables>,
    pub(super) user: Option<Ids>,
    pub(super) group: Option<Ids>,
    pub(super) exe: Option<Names>,
    pub(super) sha256: Option<Names>,
    pub(super) weak: Option<Spanned<bool>>,
    pub(super) v1: Option<Name>,
    #[serde(default)]
    pub(super) allow: Names,
}

/// `[[rule]]`
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RuleTable {
    pub(super) name: Option<Name>,
    pub(super) agent: Option<Names>,
    pub(super) user: Option<Ids>,
    pub(super) path: Option<Names>,
    pub(super) method: Option<Names>,
    pub(super) query: Option<Names>,
    pub(super) class: Option<Names>,
    pub(super) cloud: Option<Names>,
    pub(super) header: Option<Names>,
    pub(super) action: Option<Name>,
    pub(super) mode: Option<Name>,
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        many::<D, false>(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        many::<D, true>(deserializer).map(Self)
    }
}

/// One value, kept apart from a list of them.
enum ContainerItems {
    One(ContainerTable),
    Many(Vec<Spanned<ContainerItem>>),
}

struct ContainerItem(ContainerTable);

struct ContainersVisitor;
struct ContainerVisitor;

impl<'de> Deserialize<'de> for ContainerTables {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = Spanned::<ContainerItems>::deserialize(deserializer)?;
        let span = read.span();
        Ok(Self(match read.into_inner() {
            ContainerItems::One(table) => vec![Spanned::new(span, table)],
            ContainerItems::Many(items) => {
                items.into_iter().map(|item| Spanned::new(item.span(), item.into_inner().0)).collect()
            }
        }))
    }
}

impl<'de> Deserialize<'de> for ContainerItems {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContainersVisitor)
    }
}

impl<'de> Deserialize<'de> for ContainerItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContainerVisitor).map(Self)
    }
}

impl<'de> Visitor<'de> for ContainersVisitor {
    type Value = ContainerItems;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a container engine, a table, or a list of them")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(ContainerItems::One(ContainerTable::of(text)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        ContainerVisitor.visit_map(map).map(ContainerItems::One)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(ContainerItems::Many(items))
    }
}

impl<'de> Visitor<'de> for ContainerVisitor {
    type Value = ContainerTable;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a container engine or a table")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(ContainerTable::of(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        ContainerTable::deserialize(MapAccessDeserializer::new(map))
    }
}

fn many<'de, D: Deserializer<'de>, const NUMBERS: bool>(deserializer: D) -> Result<Vec<Name>, D::Error> {
    let read = Spanned::<OneOrMany<NUMBERS>>::deserialize(deserializer)?;
    let span = read.span();
    Ok(match read.into_inner() {
        OneOrMany::One(text) => vec![Spanned::new(span, text)],
        OneOrMany::Many(names) => {
            names.into_iter().map(|name| Spanned::new(name.span(), name.into_inner().0)).collect()
        }
    })
}

/// Not an untagged enum: those lose the places of what is inside.
enum OneOrMany<const NUMBERS: bool> {
    One(String),
    Many(Vec<Spanned<Text<NUMBERS>>>),
}

struct Text<const NUMBERS: bool>(String);

struct OneOrManyVisitor<const NUMBERS: bool>;
struct TextVisitor<const NUMBERS: bool>;

impl<'de, const NUMBERS: bool> Deserialize<'de> for OneOrMany<NUMBERS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor)
    }
}

impl<'de, const NUMBERS: bool> Deserialize<'de> for Text<NUMBERS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

impl<'de, const NUMBERS: bool> Visitor<'de> for OneOrManyVisitor<NUMBERS> {
    type Value = OneOrMany<NUMBERS>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if NUMBERS {
            "a name or a number, or a list of them"
        } else {
            "a string or a list of strings"
        })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(OneOrMany::One(text.to_owned()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        if !NUMBERS {
            return Err(E::invalid_type(de::Unexpected::Signed(number), &self));
        }
        Ok(OneOrMany::One(number.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = list.next_element()? {
            names.push(name);
        }
        Ok(OneOrMany::Many(names))
    }
}

impl<const NUMBERS: bool> Visitor<'_> for TextVisitor<NUMBERS> {
    type Value = Text<NUMBERS>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if NUMBERS { "a name or a number" } else { "a string" })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(text.to_owned()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        if !NUMBERS {
            return Err(E::invalid_type(de::Unexpected::Signed(number), &self));
        }
        Ok(Text(number.to_string()))
    }
}
