//! As much of the Kusto query language as the queries under docs/detections need: lists, and the conditions of `where`.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a helper of tests may fail the test"
)]

use std::collections::BTreeMap;

use serde_json::Value;

/// A query, taken apart.
pub(crate) struct Query {
    /// The lists that `let` names.
    pub(crate) lists: BTreeMap<String, Vec<String>>,
    /// The table that it reads.
    pub(crate) table: String,
    /// Its steps.
    pub(crate) steps: Vec<String>,
}

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let code = code.join("\n");
        let mut statements: Vec<&str> = code.split(';').map(str::trim).collect();
        let pipeline = statements.pop().unwrap();
        let lists = statements.iter().map(|statement| {
            let (name, list) = statement.strip_prefix("let ").unwrap().split_once('=').unwrap();
            assert!(list.trim().starts_with("dynamic(["), "{statement}");
            (name.trim().to_owned(), quoted(list))
        });
        let mut steps =
            pipeline.split("\n|").map(|step| step.split_whitespace().collect::<Vec<_>>().join(" "));
        Self { lists: lists.collect(), table: steps.next().unwrap(), steps: steps.collect() }
    }

    /// Whether every `where` holds for a row of the table.
    pub(crate) fn finds(&self, row: &Value) -> bool {
        let conditions = self.steps.iter().filter_map(|step| step.strip_prefix("where "));
        let mut conditions = conditions.peekable();
        assert!(conditions.peek().is_some(), "a query without a condition finds everything");
        conditions.all(|condition| condition.split(" or ").any(|term| self.holds(term, row)))
    }

    /// The columns that it gives, each with where it comes from.
    pub(crate) fn columns(&self) -> Vec<(String, String)> {
        let project = self.steps.iter().find_map(|step| step.strip_prefix("project ")).unwrap();
        let mut columns = Vec::new();
        let (mut depth, mut start) = (0, 0);
        for (at, c) in project.char_indices().chain([(project.len(), ',')]) {
            match c {
                '(' | '[' => depth += 1,
                ')' | ']' => depth -= 1,
                ',' if depth == 0 => {
                    let one = project[start..at].trim();
                    let (name, from) = one.split_once(" = ").unwrap_or((one, one));
                    columns.push((name.to_owned(), from.to_owned()));
                    start = at + 1;
                }
                _ => {}
            }
        }
        columns
    }

    fn holds(&self, term: &str, row: &Value) -> bool {
        let (subject, rest) = term.split_once(' ').unwrap_or_else(|| panic!("{term}"));
        let (operator, object) = rest.split_once(' ').unwrap_or_else(|| panic!("{term}"));
        let seen = || field(subject, row);
        let list = || &self.lists[object.trim_matches(['(', ')'])];
        match operator {
            ">" if object.starts_with("ago(") => true,
            "==" => quoted(object).first().is_some_and(|wanted| *wanted == seen()),
            "in" => list().contains(&seen()),
            "!in~" => !list().iter().any(|one| one.eq_ignore_ascii_case(&seen())),
            "has" => quoted(object).first().is_some_and(|wanted| has(&seen(), wanted)),
            "has_any" => list().iter().any(|wanted| has(&seen(), wanted)),
            other => panic!("{other} in {term}"),
        }
    }
}

/// A column, or a member of the event that was parsed from one.
fn field(subject: &str, row: &Value) -> String {
    let name = match subject.strip_prefix("tostring(event[") {
        Some(rest) => rest.trim_end_matches([')', ']']).trim_matches('"'),
        None => subject,
    };
    let value = &row[name];
    let other = || if value.is_null() { String::new() } else { value.to_string() };
    value.as_str().map_or_else(other, str::to_owned)
}

/// The term operator: without regard to case, and not in the middle of a word.
fn has(text: &str, term: &str) -> bool {
    let (text, term) = (text.to_lowercase(), term.to_lowercase());
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(&term).any(|(at, _)| {
        let after = text[at + term.len()..].chars().next();
        let before = text[..at].chars().next_back();
        let inside = (is_word(before) && is_word(term.chars().next()))
            || (is_word(after) && is_word(term.chars().next_back()));
        !inside
    })
}

fn quoted(text: &str) -> Vec<String> {
    text.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}
