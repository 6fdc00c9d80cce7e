//! The version of an answer (`ETag`), marked so that a redacted form and the full one never stand for each other.
//!
//! A marked version is the service's own with a suffix that names the form. What a client sends back is unmarked before
//! it goes upstream if it names this very form; anything else is a version of something that this caller does not get,
//! and is not sent.

/// Stands before the form's fingerprint.
const MARK: &str = "-part-";

/// Longer versions are not kept.
const VERSION_BYTES: usize = 256;

/// How the versions of one form are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    suffix: String,
}

impl Marker {
    /// The marker of the form with that fingerprint.
    #[must_use]
    pub fn new(fingerprint: &str) -> Self {
        Self { suffix: format!("{MARK}{fingerprint}") }
    }

    /// The service's version as this form's; `None` if it is no version that could be written so.
    #[must_use]
    pub fn mark(&self, version: &str) -> Option<String> {
        if version.len() > VERSION_BYTES || !version.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        match version.strip_suffix('"') {
            Some(open) if open.contains('"') => Some(format!("{open}{}\"", self.suffix)),
            Some(_) => None,
            None if version.contains('"') || version.is_empty() => None,
            None => Some(format!("{version}{}", self.suffix)),
        }
    }

    /// The service's version in one of this form's; `None` for a version of anything else.
    #[must_use]
    pub fn unmark(&self, version: &str) -> Option<String> {
        match version.strip_suffix('"') {
            Some(open) => open.strip_suffix(&self.suffix).map(|own| format!("{own}\"")),
            None => version.strip_suffix(&self.suffix).filter(|own| !own.is_empty()).map(str::to_owned),
        }
    }

    /// The same for a list of versions as `If-None-Match` holds it; `None` if none of them is this form's.
    #[must_use]
    pub fn unmark_list(&self, list: &str) -> Option<String> {
        let own: Vec<String> = list.split(',').filter_map(|version| self.unmark(version.trim())).collect();
        (!own.is_empty()).then(|| own.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_version_comes_back_as_it_was() {
        let marker = Marker::new("0a1b2c3d");
        for version in ["\"abc\"", "W/\"abc\"", "411261ca6c9e4991", "\"\""] {
            let own = marker.mark(version).unwrap();
            assert_ne!(own, version);
            assert_eq!(marker.unmark(&own).unwrap(), version);
        }
        assert_eq!(marker.mark("\"abc\"").unwrap(), "\"abc-part-0a1b2c3d\"");
    }

    #[test]
    fn another_form_s_version_stands_for_nothing() {
        let (marker, other) = (Marker::new("0a1b2c3d"), Marker::new("ffffffff"));
        for foreign in ["\"abc\"", "*", "", "-part-0a1b2c3d", &other.mark("\"abc\"").unwrap()] {
            assert_eq!(marker.unmark(foreign), None, "{foreign}");
        }
        let list = format!("\"full\", {}, {}", other.mark("\"a\"").unwrap(), marker.mark("\"b\"").unwrap());
        assert_eq!(marker.unmark_list(&list).unwrap(), "\"b\"");
        assert_eq!(marker.unmark_list("*"), None);
    }

    #[test]
    fn what_is_no_version_is_dropped() {
        let marker = Marker::new("0a1b2c3d");
        for odd in ["", "\"", "a\"b", "a b", "\u{e9}", &"x".repeat(300)] {
            assert_eq!(marker.mark(odd), None, "{odd}");
        }
    }
}
