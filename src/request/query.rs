//! The query of a request target, split wherever any server would split it.

use super::fault::Fault;
use super::percent::{Undecodable, decode, has_another_layer};

/// A query's keys and values. Repeated keys stay visible: servers differ in which one they take.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
    hidden: Vec<(String, String)>,
}

impl Query {
    /// Whether a key occurs, with a value or without, hidden ones included.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.values(key).next().is_some()
    }

    /// Every value of a key, hidden ones included; a bare key has the empty value.
    pub fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.pairs
            .iter()
            .chain(&self.hidden)
            .filter(move |(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.as_str())
    }

    /// Keys (decoded, trimmed, lower case, without `[…]`) and values (decoded once), in order.
    #[must_use]
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// What only a server sees that decodes before it splits, or splits at other marks: `a=b%26recursive=true` has a
    /// hidden `recursive` (Google's own proxy in front of its service once overlooked one).
    #[must_use]
    pub fn hidden(&self) -> &[(String, String)] {
        &self.hidden
    }

    /// Whether there is no key at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Reads an encoded query, without its question mark.
    pub(super) fn read(raw: &str) -> Result<Self, Fault> {
        let mut query = Self::default();
        for piece in raw.split(['&', ';']).filter(|piece| !piece.is_empty()) {
            let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
            let (key, value) = (read_text(key)?, read_text(value)?);
            query.hidden.extend(hidden(&key, &value)?);
            query.pairs.push((read_key(&key)?, value));
        }
        let overridden = |(key, _): &(String, String)| METHOD_OVERRIDES.contains(&key.as_str());
        if query.pairs.iter().chain(&query.hidden).any(overridden) {
            return Err(Fault::QueryMethodOverride);
        }
        Ok(query)
    }
}

/// Where some server ends a pair, besides those marks at which all queries are split here.
const MARKS: [char; 4] = ['&', ';', '?', ','];

/// Keys by which frameworks see another method than the request's.
const METHOD_OVERRIDES: [&str; 4] =
    ["_method", "x-http-method", "x-http-method-override", "x-method-override"];

/// The pairs inside a decoded one, but for the one that it is itself.
fn hidden(key: &str, value: &str) -> Result<Vec<(String, String)>, Fault> {
    if !key.contains(MARKS) && !key.contains('=') && !value.contains(MARKS) {
        return Ok(Vec::new());
    }
    let whole = format!("{key}={value}");
    let pieces = whole.split(MARKS).map(|piece| piece.split_once('=').unwrap_or((piece, "")));
    let others = pieces.filter(|(inner, _)| !inner.trim().is_empty() && *inner != key);
    others.map(|(inner, value)| Ok((read_key(inner)?, value.to_owned()))).collect()
}

/// A decoded key as servers compare it.
fn read_key(text: &str) -> Result<String, Fault> {
    if text.contains('%') {
        return Err(Fault::QueryDoubleEncoding);
    }
    // Servers that fold case would fold some non-ASCII letters to ASCII, and make another key of this one.
    if !text.is_ascii() {
        return Err(Fault::QueryKeyNotAscii);
    }
    let name = text.split_once('[').map_or(text, |(name, _)| name);
    Ok(name.trim().to_ascii_lowercase())
}

/// Decodes a key or a value and refuses what could be decoded again, or climbs.
fn read_text(raw: &str) -> Result<String, Fault> {
    let spaced = raw.replace('+', " ");
    let text = decode(&spaced).map_err(|undecodable| match undecodable {
        Undecodable::Malformed => Fault::QueryPercentMalformed,
        Undecodable::Utf8 => Fault::QueryUtf8Invalid,
    })?;
    if has_another_layer(&text) {
        return Err(Fault::QueryDoubleEncoding);
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::QueryControl);
    }
    if climbs(&text) {
        return Err(Fault::QueryTraversal);
    }
    Ok(text.into_owned())
}

/// Whether a server that takes the question mark for a part of the path would climb.
fn climbs(text: &str) -> bool {
    let name = |segment: &str| segment.split(';').next().unwrap_or_default().trim() == "..";
    text.contains(['/', '\\']) && text.split(['/', '\\', '?']).any(name)
}
