//! The path of a request target: one list of segments, and the spelling of them that goes upstream.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use super::fault::Fault;
use super::percent::{Undecodable, decode};

/// A path in its normal form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Path {
    segments: Vec<String>,
    text: String,
    trailing_slash: bool,
    doubled: bool,
}

impl Path {
    /// The segments: decoded, dot segments resolved, empty ones dropped, ASCII letters in lower case.
    #[must_use]
    pub fn segments(&self) -> &[String] {
        &self.segments
    }

    /// Whether the path ends with a slash (the root does). Clients append one to leaves, so it names nothing
    /// else.
    #[must_use]
    pub fn has_trailing_slash(&self) -> bool {
        self.trailing_slash
    }

    /// A slash before each segment, decoded, letters as they came; `/` for the root.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether what goes upstream starts with a double slash, so that a server may take the first segment for a host
    /// and serve what follows it.
    #[must_use]
    pub fn may_begin_with_authority(&self) -> bool {
        self.doubled
    }

    /// Whether every character is ASCII. Others may be folded to ASCII by a server, so no rule should grant
    /// them.
    #[must_use]
    pub fn is_ascii(&self) -> bool {
        self.text.is_ascii()
    }

    /// Reads an encoded path that starts with a slash. Returns the path and the spelling that goes upstream:
    /// dot segments resolved and slashes collapsed, everything else as the caller wrote it.
    pub(super) fn read(raw: &str) -> Result<(Self, String), Fault> {
        let mut walk = Walk::default();
        let mut rest = raw.strip_prefix('/').unwrap_or(raw);
        while let Some((segment, after)) = rest.split_once('/') {
            walk.step(segment)?;
            rest = after;
            walk.empty |= segment.is_empty();
        }
        walk.step(rest)?;
        walk.finish(raw.starts_with("//"))
    }
}

/// The segments so far.
#[derive(Default)]
struct Walk<'a> {
    kept: Vec<(Cow<'a, str>, &'a str)>,
    trailing_slash: bool,
    empty: bool,
    climbed: bool,
}

impl<'a> Walk<'a> {
    fn step(&mut self, spelling: &'a str) -> Result<(), Fault> {
        let segment = decode_segment(spelling)?;
        self.trailing_slash = true;
        match segment.as_ref() {
            "" | "." => {}
            ".." => {
                self.climbed = true;
                self.kept.pop().ok_or(Fault::AboveRoot)?;
            }
            _ => {
                self.trailing_slash = false;
                self.kept.push((segment, spelling));
            }
        }
        Ok(())
    }

    fn finish(self, doubled: bool) -> Result<(Path, String), Fault> {
        // RFC 3986 lets a dot-dot remove an empty segment; servers that collapse slashes first remove a name.
        if self.climbed && self.empty {
            return Err(Fault::DotDotAndEmptySegment);
        }
        if doubled && self.kept.first().is_some_and(|(first, _)| looks_like_authority(first)) {
            return Err(Fault::DoubleSlashAuthority);
        }
        // Some clients join a base that ends with a slash and a path that starts with one, and are served.
        let doubled = doubled && !self.kept.is_empty();
        let mut sent = String::from(if doubled { "/" } else { "" });
        let mut text = String::new();
        let mut segments = Vec::with_capacity(self.kept.len());
        for (segment, spelling) in &self.kept {
            sent.push('/');
            sent.push_str(spelling);
            text.push('/');
            text.push_str(segment);
            segments.push(segment.to_ascii_lowercase());
        }
        if self.trailing_slash {
            sent.push('/');
        }
        if text.is_empty() {
            text.push('/');
        }
        Ok((Path { segments, text, trailing_slash: self.trailing_slash, doubled }, sent))
    }
}

/// Decodes one segment and refuses whatever some server would read as more than the name it is.
fn decode_segment(spelling: &str) -> Result<Cow<'_, str>, Fault> {
    let segment = decode(spelling).map_err(|undecodable| match undecodable {
        Undecodable::Malformed => Fault::PercentMalformed,
        Undecodable::Utf8 => Fault::Utf8Invalid,
    })?;
    for character in segment.chars() {
        match character {
            '\0' => return Err(Fault::EncodedNul),
            '/' => return Err(Fault::EncodedSlash),
            '\\' => return Err(Fault::Backslash),
            '%' => return Err(Fault::DoubleEncoding),
            '?' | '#' => return Err(Fault::EncodedDelimiter),
            // Servlet containers strip what follows, before or after they resolve dot segments.
            ';' => return Err(Fault::PathParameter),
            control if control.is_control() => return Err(Fault::EncodedControl),
            _ => {}
        }
    }
    // Windows drops dots and spaces at a name's end, and some servers trim: `.. ` would climb, `token.` be
    // `token`.
    let edge = segment.ends_with('.')
        || segment.ends_with(char::is_whitespace)
        || segment.starts_with(char::is_whitespace);
    if edge && segment != "." && segment != ".." {
        return Err(Fault::SegmentEdge);
    }
    Ok(segment)
}

/// Whether a parser of network-path references would take the first segment after `//` for a host.
fn looks_like_authority(segment: &str) -> bool {
    segment.contains([':', '@', '[']) || segment.parse::<Ipv4Addr>().is_ok()
}
