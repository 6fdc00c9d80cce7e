//! Where each part of a policy stands in its files, so that an explanation can point at it.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use super::diagnostic::Report;
use super::lines::Lines;
use super::shape;
use super::source::Source;

/// A line of a policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The file, as the source names it.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// The lines where a policy's parts stand.
#[derive(Debug, Default)]
pub struct Places {
    /// `mode`
    pub mode: Option<Line>,
    /// `v1`
    pub v1: Option<Line>,
    /// `bind-tokens`
    pub bind_tokens: Option<Line>,
    /// Every `[everyone]`.
    pub everyone: Vec<Line>,
    /// `[unattributed]`
    pub unattributed: Option<Line>,
    agents: HashMap<String, Line>,
    rules: HashMap<String, Line>,
}

impl Places {
    /// Finds them. What does not read is left out: the compiler tells errors, and better.
    #[must_use]
    pub fn read(sources: &[Source]) -> Self {
        let mut report = Report::new(sources);
        let mut places = Self::default();
        for (at, source) in sources.iter().enumerate() {
            let document = shape::read(at, source, &mut report);
            let lines = Lines::of(&source.text);
            let line = |offset| Line { file: source.name.clone(), line: lines.position(offset).0 };
            if let Some(mode) = &document.mode {
                places.mode = Some(line(mode.span().start));
            }
            if let Some(v1) = &document.v1 {
                places.v1 = Some(line(v1.span().start));
            }
            if let Some(bind_tokens) = &document.bind_tokens {
                places.bind_tokens = Some(line(bind_tokens.span().start));
            }
            places.everyone.extend(document.everyone.iter().map(|table| line(table.span().start)));
            if let Some(table) = &document.unattributed {
                places.unattributed = Some(line(table.span().start));
            }
            for name in document.agents.iter().filter_map(|table| table.get_ref().name.as_ref()) {
                places.agents.insert(name.get_ref().clone(), line(name.span().start));
            }
            for name in document.rules.iter().filter_map(|table| table.get_ref().name.as_ref()) {
                places.rules.insert(name.get_ref().clone(), line(name.span().start));
            }
        }
        places
    }

    /// Where the agent of that name is.
    #[must_use]
    pub fn agent(&self, name: &str) -> Option<&Line> {
        self.agents.get(name)
    }

    /// Where the rule of that name is.
    #[must_use]
    pub fn rule(&self, name: &str) -> Option<&Line> {
        self.rules.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_in_their_files() {
        let text =
            "mode = \"audit\"\n\n[everyone]\nallow = \"config\"\n\n[[agent]]\nname = \"a\"\nuser = 1\n";
        let drop_in = "[[rule]]\nname = \"r\"\naction = \"deny\"\n";
        let sources = [("policy.toml", text), ("policy.d/1.toml", drop_in)]
            .map(|(name, text)| Source { name: name.to_owned(), text: text.to_owned() });
        let places = Places::read(&sources);
        let shown = |line: Option<&Line>| line.map(ToString::to_string);
        assert_eq!(shown(places.mode.as_ref()).as_deref(), Some("policy.toml:1"));
        assert_eq!(shown(places.everyone.first()).as_deref(), Some("policy.toml:3"));
        assert_eq!(shown(places.agent("a")).as_deref(), Some("policy.toml:7"));
        assert_eq!(shown(places.rule("r")).as_deref(), Some("policy.d/1.toml:2"));
        assert_eq!(places.rule("a"), None);
    }
}
