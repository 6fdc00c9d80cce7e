//! The audit trail as a table.

use super::paint::Paint;
use super::support::event::Event;

const COLUMNS: [&str; 6] = ["mode", "uid", "unit", "asked for", "class", "verdict"];

/// What one event says, in as many words as fit into a line.
fn row(event: &Event) -> [String; 6] {
    let unit = match event.text("service.name") {
        name if name.is_empty() => {
            event.text("imds_guard.cgroup").rsplit('/').next().unwrap_or("").to_owned()
        }
        name => name,
    };
    let classes: Vec<&str> = event
        .get("imds_guard.classes")
        .and_then(|classes| classes.as_array())
        .map(|classes| classes.iter().filter_map(|class| class.as_str()).collect())
        .unwrap_or_default();
    let verdict = match (event.text("imds_guard.verdict").as_str(), event.text("imds_guard.mode").as_str()) {
        ("allow", _) => format!("allowed: {}", event.text("imds_guard.reason")),
        (_, "audit") => format!("would be refused: {}", event.text("imds_guard.reason")),
        _ => format!("refused: {}", event.text("imds_guard.reason")),
    };
    [
        event.text("imds_guard.mode"),
        event.text("user.id"),
        unit,
        shortened(&event.text("url.path"), 46),
        classes.join("+"),
        verdict,
    ]
}

/// A text's end, which tells more than its beginning, with an ellipsis where something is missing.
fn shortened(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let end: String = text.chars().skip(length - width + 3).collect();
    format!("...{end}")
}

/// Prints the events as a table, one line each.
pub fn print(events: &[Event], paint: &Paint) {
    let rows: Vec<[String; 6]> = events.iter().map(row).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([COLUMNS[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let line = |cells: &[&str]| -> String {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    println!("  {}", paint.bold(&line(&COLUMNS)));
    for row in &rows {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        let text = line(&cells);
        println!("  {}", paint.by(row[5].starts_with("allowed"), &text));
    }
}
