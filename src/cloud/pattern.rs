//! Path patterns, for the catalogues' resources and for a policy's rules alike.
//!
//! A pattern is compared with a path's segments after the request has been brought to its one normal form, so
//! there is nothing here about encodings, dots or doubled slashes. `*` is one segment, `**` is any number of
//! segments, none included; `*` inside a segment is any run of characters; `{a,b}` offers alternatives, which
//! may span slashes or be empty. Matching never backtracks further than the last `**`, so its cost is bounded
//! by the product of the two lengths: a caller cannot slow the guard down with a long path.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// More alternatives than this are refused: they multiply.
const MAX_BRANCHES: usize = 256;
/// No metadata service has deeper trees than this.
const MAX_SEGMENTS: usize = 32;

mod meet;

/// Why a text is not a path pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It does not start at the root.
    #[error("a path pattern starts with `/`")]
    NotAbsolute,
    /// A query, a fragment, an escape or something else that no path segment can hold.
    #[error("`{0}` cannot stand in a path pattern")]
    Character(char),
    /// Nothing between two slashes.
    #[error("there is an empty segment")]
    EmptySegment,
    /// A segment of dots would never match: the request's dots are resolved before.
    #[error("`.` and `..` never match, because paths are resolved before they are compared")]
    DotSegment,
    /// `**` next to something else.
    #[error("`**` stands for whole segments and cannot share one")]
    PartialRest,
    /// A brace without its partner, or one inside another.
    #[error("braces must come in pairs and cannot be nested")]
    Braces,
    /// The alternatives multiply to more than anybody meant.
    #[error("more than {MAX_BRANCHES} alternatives")]
    TooMany,
    /// Too many segments.
    #[error("more than {MAX_SEGMENTS} segments")]
    TooDeep,
}

/// A pattern over the segments of a path.
#[derive(Debug, Clone)]
pub struct PathPattern {
    text: String,
    branches: Vec<Branch>,
}

/// A pattern without alternatives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Branch {
    segments: Vec<Segment>,
    specificity: Specificity,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Segment {
    Literal(Box<str>),
    /// The runs of characters between the stars; the first and the last are anchored and may be empty.
    Glob(Box<[Box<str>]>),
    Any,
    Rest,
}

/// How some name in a path must be for a pattern to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum NameClue<'a> {
    Is(&'a str),
    Begins(&'a str),
    Ends(&'a str),
}

/// How closely a pattern describes what it matches: at the first difference from the left, a literal is more
/// than a glob, a glob more than `*`, `*` more than the end of the pattern, and the end more than `**`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Specificity(Box<[u16]>);

impl PathPattern {
    /// Reads a pattern. Letters are folded to lower case, as paths are when they are compared.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let text = text.to_ascii_lowercase();
        if let Some(odd) = text.chars().find(|c| c.is_control() || "?#%[]\\ ".contains(*c)) {
            return Err(PatternError::Character(odd));
        }
        let mut branches = Vec::new();
        for flat in alternatives(&text)? {
            let branch = Branch::parse(&flat)?;
            if !branches.contains(&branch) {
                branches.push(branch);
            }
        }
        Ok(Self { text, branches })
    }

    /// Whether the path, given as its lower-case segments, is one that the pattern describes.
    #[must_use]
    pub fn matches(&self, path: &[String]) -> bool {
        self.branches.iter().any(|branch| branch.matches(path))
    }

    /// How closely the pattern describes this path, if it does.
    #[must_use]
    pub fn closeness(&self, path: &[String]) -> Option<&Specificity> {
        self.branches.iter().filter(|branch| branch.matches(path)).map(|branch| &branch.specificity).max()
    }

    /// How closely its closest alternative describes a path.
    #[must_use]
    pub fn specificity(&self) -> Option<&Specificity> {
        self.branches.iter().map(|branch| &branch.specificity).max()
    }

    /// The pattern as it was written, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn branches(&self) -> &[Branch] {
        &self.branches
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for PathPattern {}

impl PartialOrd for PathPattern {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// By specificity, the vaguest first; patterns that are equally close are ordered by their text.
impl Ord for PathPattern {
    fn cmp(&self, other: &Self) -> Ordering {
        self.specificity().cmp(&other.specificity()).then_with(|| self.text.cmp(&other.text))
    }
}

impl FromStr for PathPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl<'de> Deserialize<'de> for PathPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// The texts that remain when each pair of braces is replaced by one of its alternatives.
fn alternatives(text: &str) -> Result<Vec<String>, PatternError> {
    let mut done = vec![String::new()];
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (inside, behind) = after.split_once('}').ok_or(PatternError::Braces)?;
        if before.contains('}') || inside.contains('{') {
            return Err(PatternError::Braces);
        }
        let choices: Vec<&str> = inside.split(',').collect();
        if done.len() * choices.len() > MAX_BRANCHES {
            return Err(PatternError::TooMany);
        }
        done = done
            .iter()
            .flat_map(|start| choices.iter().map(move |choice| format!("{start}{before}{choice}")))
            .collect();
        rest = behind;
    }
    if rest.contains('}') {
        return Err(PatternError::Braces);
    }
    for start in &mut done {
        start.push_str(rest);
    }
    Ok(done)
}

impl Branch {
    fn parse(text: &str) -> Result<Self, PatternError> {
        let inner = text.strip_prefix('/').ok_or(PatternError::NotAbsolute)?;
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        let mut segments = Vec::new();
        if !inner.is_empty() {
            for part in inner.split('/') {
                segments.push(Segment::parse(part)?);
            }
        }
        // `**/**` says no more than `**`.
        segments.dedup_by(|a, b| *a == Segment::Rest && *b == Segment::Rest);
        if segments.len() > MAX_SEGMENTS {
            return Err(PatternError::TooDeep);
        }
        Ok(Self::new(segments))
    }

    fn new(segments: Vec<Segment>) -> Self {
        let specificity = Specificity(segments.iter().map(Segment::weight).chain([Segment::END]).collect());
        Self { segments, specificity }
    }

    pub(crate) fn specificity(&self) -> &Specificity {
        &self.specificity
    }

    /// The last segment that is spelled out at a fixed place, and that place; an index by it spares nearly
    /// every comparison, because the deepest names differ most. `None` if nothing is spelled out before a
    /// `**`.
    pub(crate) fn anchor(&self) -> Option<(usize, &str)> {
        let certain = self.segments.iter().take_while(|segment| **segment != Segment::Rest);
        let spelled = certain.enumerate().filter_map(|(at, segment)| match segment {
            Segment::Literal(text) => Some((at, &**text)),
            Segment::Glob(_) | Segment::Any | Segment::Rest => None,
        });
        spelled.last()
    }

    pub(crate) fn matches(&self, path: &[String]) -> bool {
        // Where to go on after a mismatch: behind the last `**`, which then swallows one segment more.
        let mut resume: Option<(&[Segment], &[String])> = None;
        let (mut pattern, mut left) = (self.segments.as_slice(), path);
        loop {
            match (pattern, left) {
                ([Segment::Rest], _) | ([], []) => return true,
                ([Segment::Rest, behind @ ..], _) => {
                    resume = Some((behind, left));
                    pattern = behind;
                }
                ([wanted, behind @ ..], [segment, others @ ..]) if wanted.accepts(segment) => {
                    (pattern, left) = (behind, others);
                }
                _ => match resume {
                    Some((behind, [_, others @ ..])) => {
                        resume = Some((behind, others));
                        (pattern, left) = (behind, others);
                    }
                    _ => return false,
                },
            }
        }
    }

    /// The patterns of the directories above what this one matches, from the top, as far as they are certain:
    /// none behind a `**`, and none that spell nothing out, because they would call any path known.
    pub(crate) fn ancestors(&self) -> Vec<Self> {
        let certain = self.segments.iter().take_while(|segment| **segment != Segment::Rest).count();
        let deepest = if certain == self.segments.len() { certain.saturating_sub(1) } else { certain };
        (1..=deepest)
            .filter_map(|length| self.segments.get(..length))
            .filter(|prefix| prefix.iter().any(|segment| matches!(segment, Segment::Literal(_))))
            .map(|prefix| Self::new(prefix.to_vec()))
            .collect()
    }

    /// What every path that the pattern matches has somewhere among its names.
    pub(crate) fn name_clues(&self) -> impl Iterator<Item = NameClue<'_>> {
        self.segments.iter().flat_map(|segment| {
            let clues = match segment {
                Segment::Literal(name) => [Some(NameClue::Is(name)), None],
                Segment::Glob(runs) => [
                    runs.first().filter(|run| !run.is_empty()).map(|run| NameClue::Begins(run)),
                    runs.last().filter(|run| !run.is_empty()).map(|run| NameClue::Ends(run)),
                ],
                Segment::Any | Segment::Rest => [None, None],
            };
            clues.into_iter().flatten()
        })
    }

    /// A path that the pattern matches: its own text.
    pub(crate) fn example(&self) -> Vec<String> {
        self.segments.iter().map(ToString::to_string).collect()
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segments.is_empty() {
            return f.write_str("/");
        }
        self.segments.iter().try_for_each(|segment| write!(f, "/{segment}"))
    }
}

impl Segment {
    /// What the end of a pattern weighs: less than one more segment, more than a `**` that may match nothing.
    const END: u16 = 0x100;

    fn parse(text: &str) -> Result<Self, PatternError> {
        match text {
            "" => Err(PatternError::EmptySegment),
            "." | ".." => Err(PatternError::DotSegment),
            "*" => Ok(Self::Any),
            "**" => Ok(Self::Rest),
            _ if text.contains("**") => Err(PatternError::PartialRest),
            _ if text.contains('*') => Ok(Self::Glob(text.split('*').map(Into::into).collect())),
            _ => Ok(Self::Literal(text.into())),
        }
    }

    fn weight(&self) -> u16 {
        match self {
            Self::Literal(_) => 0x400,
            Self::Glob(runs) => {
                let spelled: usize = runs.iter().map(|run| run.len()).sum();
                0x300 + u16::try_from(spelled.min(0xff)).unwrap_or(0xff)
            }
            Self::Any => 0x200,
            Self::Rest => 0,
        }
    }

    fn accepts(&self, segment: &str) -> bool {
        match self {
            Self::Literal(text) => **text == *segment,
            Self::Glob(runs) => glob(runs, segment),
            Self::Any | Self::Rest => true,
        }
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(text) => f.write_str(text),
            Self::Glob(runs) => f.write_str(&runs.join("*")),
            Self::Any => f.write_str("*"),
            Self::Rest => f.write_str("**"),
        }
    }
}

/// The first run at the start, the last at the end, those between in order and each as early as it goes.
fn glob(runs: &[Box<str>], segment: &str) -> bool {
    let [first, middle @ .., last] = runs else { return false };
    let Some(rest) = segment.strip_prefix(&**first) else { return false };
    let Some(mut rest) = rest.strip_suffix(&**last) else { return false };
    for run in middle {
        let Some((_, behind)) = rest.split_once(&**run) else { return false };
        rest = behind;
    }
    true
}

#[cfg(test)]
mod tests;
