//! Attackers name processes, cgroups and paths, and an operator's terminal, spreadsheet and browser act on some
//! characters. Each writer has its own function here, and nothing is shown without one.

use std::borrow::Cow;
use std::fmt::Write as _;

/// For a terminal: control characters could move its cursor or set its title, bidirectional and invisible ones could
/// show other words than are there. They become `\u{…}`; a backslash stays, so the text is for reading only.
#[must_use]
pub fn terminal(text: &str) -> Cow<'_, str> {
    if !text.contains(is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if is_dangerous(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// Characters that do something, or that nobody can see.
fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// For HTML, in text and in quoted attributes alike; dangerous characters are made visible first.
#[must_use]
pub fn html(text: &str) -> String {
    let text = terminal(text);
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// For one field of CSV (RFC 4180). A spreadsheet takes a field that starts with `=`, `+`, `-`, `@` for a formula, so
/// such a field gets an apostrophe before it.
#[must_use]
pub fn csv(text: &str) -> String {
    let text = terminal(text);
    let formula = text.starts_with(['=', '+', '-', '@']);
    let quoted = formula || text.contains(['"', ',', ' ', ';']);
    let mut field = String::with_capacity(text.len() + 3);
    if formula {
        field.push('\'');
    }
    field.push_str(&text);
    if quoted { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
}

/// For a comment in TOML, where a line break would end the comment and start a policy of the attacker's.
#[must_use]
pub fn comment(text: &str) -> Cow<'_, str> {
    terminal(text)
}

/// As a basic string of TOML, quotes included.
#[must_use]
pub fn toml_string(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            dangerous if is_dangerous(dangerous) => {
                // Writing to a String cannot fail.
                let _ = write!(quoted, "\\U{:08X}", u32::from(dangerous));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{1b}]0;owned\u{7}\r\n\u{202e}cod.exe\u{200b}<script>\"'&=";

    #[test]
    fn nothing_reaches_a_terminal_that_moves_it() {
        let shown = terminal(HOSTILE);
        assert!(!shown.contains(is_dangerous), "{shown}");
        assert!(shown.contains("\\u{1b}") && shown.contains("\\u{202e}"), "{shown}");
        assert!(matches!(terminal("/usr/bin/curl ü"), Cow::Borrowed("/usr/bin/curl ü")));
    }

    #[test]
    fn nothing_leaves_its_place_in_html() {
        let escaped = html(HOSTILE);
        assert!(!escaped.contains(['<', '>', '"', '\'']), "{escaped}");
        assert!(escaped.contains("&lt;script&gt;&quot;&#39;&amp;="));
    }

    #[test]
    fn no_field_is_a_formula_or_a_second_field() {
        assert_eq!(csv("plain"), "plain");
        assert_eq!(csv("=cmd|' /C calc'!A0"), "\"'=cmd|' /C calc'!A0\"");
        assert_eq!(csv("a\"b,c"), "\"a\"\"b,c\"");
        assert!(!csv("a\nb").contains('\n'));
    }

    #[test]
    fn toml_strings_read_back() {
        for text in [HOSTILE, "", "\\", "plain", "\u{7f}"] {
            let read: toml::Table = format!("x = {}", toml_string(text)).parse().unwrap();
            assert_eq!(read["x"].as_str(), Some(text));
        }
    }
}
