//! YAML, as far as one block mapping's outermost keys: a withheld key's lines are left out, the others copied.
//!
//! Whatever would need a real YAML reader to find the end of a value is refused: quotes and brackets that stay open
//! at the line's end, anchors, tags, directives, several documents, quoted or complex keys.

use std::collections::HashSet;

use super::Unredactable;
use crate::cloud::Withholding;

pub(super) fn redact(text: &str, withholding: &Withholding) -> Result<Vec<u8>, Unredactable> {
    let mut out = Vec::with_capacity(text.len());
    let mut names = HashSet::new();
    let mut entry = Entry { goes: false, may_list: false, is_open: false };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end_matches(['\n', '\r']);
        // Some readers end a line where others do not.
        if bare.contains(['\r', '\u{85}', '\u{2028}', '\u{2029}', '\0', '\u{feff}']) || bare.starts_with('\t')
        {
            return Err(Unredactable::Malformed);
        }
        let is_start = number == 0 && bare == "---";
        if !(is_start || entry.continues(bare)) {
            let (name, value) = key(bare).ok_or(Unredactable::Malformed)?;
            if !names.insert(name.clone()) {
                return Err(Unredactable::Repeated);
            }
            ends_on_its_line(value).then_some(()).ok_or(Unredactable::Malformed)?;
            entry =
                Entry { goes: withholding.takes_leaf(&[name]), may_list: value.is_empty(), is_open: true };
        }
        if !entry.goes {
            out.extend_from_slice(line.as_bytes());
        }
    }
    if entry.is_open { Ok(out) } else { Err(Unredactable::Malformed) }
}

/// The key whose lines these are.
struct Entry {
    goes: bool,
    /// A list may stand below a key without being indented.
    may_list: bool,
    /// There is a key at all.
    is_open: bool,
}

impl Entry {
    fn continues(&self, line: &str) -> bool {
        let is_list = self.may_list && (line == "-" || line.starts_with("- "));
        line.trim_start().is_empty()
            || line.starts_with('#')
            || self.is_open && (line.starts_with(' ') || is_list)
    }
}

/// A plain key in lower case, and what stands behind its colon.
fn key(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.split_once(':')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let is_key = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) && name.bytes().all(plain);
    let is_separated = value.is_empty() || value.starts_with(' ');
    (is_key && is_separated).then(|| (name.to_ascii_lowercase(), value.trim()))
}

/// Whether a value that starts on its key's line either ends there or goes on in indented lines only.
fn ends_on_its_line(value: &str) -> bool {
    match value.as_bytes().first() {
        Some(quote @ (b'"' | b'\'')) => {
            let inside = value.get(1..).and_then(|rest| rest.strip_suffix(char::from(*quote)));
            inside.is_some_and(|inside| !inside.contains(['"', '\'', '\\']))
        }
        Some(b'[') => {
            value.ends_with(']') && !value.contains(['"', '\'', '{']) && value.matches('[').count() == 1
        }
        Some(b'{') => {
            value.ends_with('}') && !value.contains(['"', '\'', '[']) && value.matches('{').count() == 1
        }
        Some(b'&' | b'*' | b'!' | b'%' | b'@' | b'`' | b'?') => false,
        _ => true,
    }
}
