//! Tables for terminals: columns as wide as what is in them, every text escaped.

use std::io::{self, Write};

use super::escape;

/// A column is not made wider than this for a single long cell, which then sticks out.
const WIDTH: usize = 80;

/// A table under way.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: &'static [usize],
}

impl Table {
    /// A table with these headings; the columns with these numbers are aligned to the right.
    #[must_use]
    pub fn new(headings: &[&str], right: &'static [usize]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()], right }
    }

    /// A table without headings: names and what they stand for.
    #[must_use]
    pub fn headless() -> Self {
        Self { rows: Vec::new(), right: &[] }
    }

    /// Adds a row.
    pub fn row<'a>(&mut self, cells: impl IntoIterator<Item = &'a str>) {
        self.rows.push(cells.into_iter().map(|cell| escape::terminal(cell).into_owned()).collect());
    }

    /// Whether it has no row but its headings.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// Writes it, two spaces between columns and none at a line's end.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).filter(|width| *width <= WIDTH).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let space = " ".repeat(width.saturating_sub(cell.chars().count()));
                let parts = if self.right.contains(&column) { [&space, cell] } else { [cell, &space] };
                line.extend(parts.into_iter().map(String::as_str));
                line.push_str("  ");
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A moment for people, in UTC; a dash if it is not known.
#[must_use]
pub fn moment(seconds: i64) -> String {
    match jiff::Timestamp::from_second(seconds) {
        Ok(moment) if seconds > 0 => moment.strftime("%Y-%m-%d %H:%M").to_string(),
        Ok(_) | Err(_) => "-".to_owned(),
    }
}

/// A count with its thousands apart.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_texts_are_escaped() {
        let mut table = Table::new(&["name", "count"], &[1]);
        table.row(["a\u{1b}[2J", "7"]);
        table.row(["b", "1,000"]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "name        count\na\\u{1b}[2J      7\nb           1,000\n"
        );
    }

    #[test]
    fn numbers_and_moments_are_for_people() {
        assert_eq!((count(0).as_str(), count(1_234_567).as_str()), ("0", "1,234,567"));
        assert_eq!((moment(0).as_str(), moment(1_795_510_800).as_str()), ("-", "2026-11-24 09:00"));
    }
}
