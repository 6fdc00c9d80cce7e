//! The query of a request target, split wherever any server would split it.

use super::fault::Fault;
use super::percent::{Undecodable, decode, has_another_layer};

/// A query's keys and values. Repeated keys stay visible: servers differ in which one they take.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Whether a key occurs, with a value or without.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.values(key).next().is_some()
    }

    /// Every value of a key; a bare key has the empty value.
    pub fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.pairs
            .iter()
            .filter(move |(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.as_str())
    }

    /// Keys (decoded, trimmed, lower case, without `[…]`) and values (decoded once), in order.
    #[must_use]
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// Whether there is no key at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Reads an encoded query, without its question mark.
    pub(super) fn read(raw: &str) -> Result<Self, Fault> {
        let mut pairs = Vec::new();
        for piece in raw.split(['&', ';']).filter(|piece| !piece.is_empty()) {
            pairs.push(pair(piece)?);
            // A server that cuts at another question mark sees other keys; a policy that forbids them must,
            // too.
            let (first, hidden) = piece.split_once('?').unwrap_or((piece, ""));
            if first.len() < piece.len() && !first.contains('=') {
                pairs.push(pair(first)?);
            }
            for hidden in hidden.split('?').filter(|hidden| !hidden.is_empty()) {
                pairs.push(pair(hidden)?);
            }
        }
        Ok(Self { pairs })
    }
}

fn pair(piece: &str) -> Result<(String, String), Fault> {
    let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
    Ok((read_key(key)?, read_text(value)?))
}

fn read_key(raw: &str) -> Result<String, Fault> {
    let text = read_text(raw)?;
    if text.contains('%') {
        return Err(Fault::QueryDoubleEncoding);
    }
    // Servers that fold case would fold some non-ASCII letters to ASCII, and make another key of this one.
    if !text.is_ascii() {
        return Err(Fault::QueryKeyNotAscii);
    }
    let name = text.split_once('[').map_or(text.as_str(), |(name, _)| name);
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
    text.contains(['/', '\\']) && text.split(['/', '\\', '?']).any(|segment| segment.trim() == "..")
}
