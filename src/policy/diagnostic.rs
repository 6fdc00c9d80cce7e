//! What is wrong or doubtful in a policy: a code, a message, a place and help, rendered like rustc does.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

use super::lines::Lines;
use super::source::Source;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The policy is not usable.
    Error,
    /// The policy is usable, and probably not what its author meant.
    Warning,
}

/// One finding about a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The stable code, in kebab-case.
    pub code: &'static str,
    /// What is wrong, in one line.
    pub message: String,
    /// The name of the source that it is about.
    pub source: String,
    /// The bytes of the source that it is about, if it is about a place.
    pub span: Option<Range<usize>>,
    /// The line of the place, from 1.
    pub line: Option<usize>,
    /// The column of the place in characters, from 1.
    pub column: Option<usize>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// Renders one finding. The source's text is looked up by name; without it, only its name is shown.
    #[must_use]
    pub fn render(&self, sources: &[Source], colour: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let group = level.primary_title(self.message.as_str()).id(self.code);
        let text =
            sources.iter().find(|source| source.name == self.source).map(|source| printable(&source.text));
        let mut group: Group<'_> = match (&text, &self.span) {
            (Some(text), Some(span)) => group.element(
                Snippet::source(text.as_str())
                    .path(self.source.as_str())
                    .annotation(AnnotationKind::Primary.span(clamp(text, span))),
            ),
            (Some(_), None) | (None, _) => group.element(Origin::path(self.source.as_str())),
        };
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }
}

/// Renders findings one after the other, an empty line between them.
#[must_use]
pub fn render(diagnostics: &[Diagnostic], sources: &[Source], colour: bool) -> String {
    let rendered: Vec<String> = diagnostics.iter().map(|one| one.render(sources, colour)).collect();
    rendered.join("\n\n")
}

/// The text with every character that could move a terminal's cursor or turn its text round replaced by a visible
/// one of the same length, so that places stay right.
fn printable(text: &str) -> String {
    let shown = |c: char| match (c, c.len_utf8()) {
        ('\n' | '\t', _) => c,
        (_, 1) if c.is_control() => ' ',
        (_, 2) if c.is_control() => '\u{bf}',
        ('\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}', _) => {
            '\u{fffd}'
        }
        (_, _) => c,
    };
    text.chars().map(shown).collect()
}

/// A span inside the text and on its characters' bounds, whatever a parser said.
fn clamp(text: &str, span: &Range<usize>) -> Range<usize> {
    let start = text.floor_char_boundary(span.start);
    let end = text.ceil_char_boundary(span.end.max(start));
    start..end
}

/// A place in one of the sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The index of the source.
    pub(super) source: usize,
    /// The bytes; `None` for the whole source.
    pub(super) span: Option<Range<usize>>,
}

/// Collects findings while a policy is read, so that all are told at once.
pub(super) struct Report<'a> {
    sources: &'a [Source],
    lines: Vec<Lines<'a>>,
    found: Vec<Diagnostic>,
}

impl<'a> Report<'a> {
    pub(super) fn new(sources: &'a [Source]) -> Self {
        let lines = sources.iter().map(|source| Lines::of(&source.text)).collect();
        Self { sources, lines, found: Vec::new() }
    }

    pub(super) fn error(
        &mut self,
        code: &'static str,
        message: impl Into<String>,
        place: &Place,
    ) -> Added<'_> {
        self.add(Severity::Error, code, &message.into(), place)
    }

    pub(super) fn warning(
        &mut self,
        code: &'static str,
        message: impl Into<String>,
        place: &Place,
    ) -> Added<'_> {
        self.add(Severity::Warning, code, &message.into(), place)
    }

    fn add(&mut self, severity: Severity, code: &'static str, message: &str, place: &Place) -> Added<'_> {
        let one = Diagnostic { message: printable(message), ..self.located(severity, code, place) };
        self.found.push(one);
        Added(self.found.last_mut())
    }

    /// A warning that is yet to be given, by somebody who can look at what is named there.
    pub(super) fn at(&self, place: &Place) -> Diagnostic {
        self.located(Severity::Warning, "", place)
    }

    fn located(&self, severity: Severity, code: &'static str, place: &Place) -> Diagnostic {
        let lines = self.lines.get(place.source).zip(place.span.as_ref());
        let at = lines.map(|(lines, span)| lines.position(span.start));
        Diagnostic {
            severity,
            code,
            message: String::new(),
            source: self.sources.get(place.source).map_or_else(String::new, |source| source.name.clone()),
            span: place.span.clone(),
            line: at.map(|(line, _)| line),
            column: at.map(|(_, column)| column),
            help: None,
        }
    }

    pub(super) fn has_errors(&self) -> bool {
        self.found.iter().any(|one| one.severity == Severity::Error)
    }

    /// All findings: errors first, then by source and place.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        let order = |name: &str| self.sources.iter().position(|source| source.name == name);
        self.found
            .sort_by_key(|one| (one.severity, order(&one.source), one.span.as_ref().map(|span| span.start)));
        self.found
    }
}

/// A finding just added, for its help.
pub(super) struct Added<'a>(Option<&'a mut Diagnostic>);

impl Added<'_> {
    pub(super) fn help(self, help: impl Into<String>) {
        if let Some(one) = self.0 {
            one.help = Some(help.into());
        }
    }

    pub(super) fn maybe_help(self, help: Option<String>) {
        if let Some(one) = self.0 {
            one.help = help;
        }
    }
}

/// "did you mean `x`?" for the nearest known name, if one is near.
pub(super) fn did_you_mean<'n>(wrong: &str, known: impl Iterator<Item = &'n str>) -> Option<String> {
    let near = known.map(|name| (distance(wrong, name), name)).min()?;
    let (steps, name) = near;
    (steps <= wrong.chars().count().max(3) / 3).then(|| format!("did you mean `{name}`?"))
}

/// Levenshtein's distance; both names are short, and longer ones are cut so that a hostile file costs little.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().take(64).enumerate() {
        let mut diagonal = i;
        let mut previous = i + 1;
        for (cell, right) in row.iter_mut().skip(1).zip(&b) {
            let next = (diagonal + usize::from(left != *right)).min(previous + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = next;
            previous = next;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("allow", "alow"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(
            did_you_mean("alow", ["deny", "allow"].into_iter()),
            Some("did you mean `allow`?".to_owned())
        );
        assert_eq!(did_you_mean("zzz", ["deny", "allow"].into_iter()), None);
    }

    #[test]
    fn a_span_beyond_the_text_renders() {
        let sources = [Source { name: "a".to_owned(), text: "é".to_owned() }];
        let mut report = Report::new(&sources);
        report.error("x", "message", &Place { source: 0, span: Some(1..99) }).help("help");
        let rendered = render(&report.finish(), &sources, false);
        assert!(rendered.contains("message") && rendered.contains("help"), "{rendered}");
        assert!(!rendered.contains('\x1b'));
    }
}
