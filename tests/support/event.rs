//! Reading the guard's audit log: one JSON event a line, Elastic Common Schema names with their dots.

use std::path::Path;

use serde_json::Value;

/// One audit event.
#[derive(Debug, Clone)]
pub struct Event(pub Value);

impl Event {
    /// The value of a field.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field)
    }

    /// A field as text; empty if it isn't there. Numbers come as they are written.
    pub fn text(&self, field: &str) -> String {
        match self.get(field) {
            Some(Value::String(text)) => text.clone(),
            None => String::new(),
            Some(other) => other.to_string(),
        }
    }
}

/// Every event in the file so far. A last line that is still being written is left out.
pub fn read(log: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}")))
        .map(Event)
        .collect()
}
