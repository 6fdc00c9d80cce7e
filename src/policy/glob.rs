//! `*` inside one name: an instance of a unit, or one segment of an executable's path.

/// Whether the whole text matches the pattern, in which `*` stands for any run of characters and everything
/// else for itself.
///
/// Bytes are compared as they are: unit names and paths have no case folding. The scan remembers only the last
/// `*`, so that a hostile name costs at most its length times the pattern's, never exponential time.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (mut rest, mut text) = (pattern.as_bytes(), text.as_bytes());
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match (rest.split_first(), text.split_first()) {
            (Some((b'*', after)), _) => {
                retry = Some((after, text));
                rest = after;
            }
            (Some((wanted, after)), Some((got, left))) if wanted == got => {
                rest = after;
                text = left;
            }
            (None, None) => return true,
            (Some(_) | None, _) => {
                let Some((after, tail)) = retry else { return false };
                let Some((_, shorter)) = tail.split_first() else { return false };
                retry = Some((after, shorter));
                rest = after;
                text = shorter;
            }
        }
    }
}

/// Whether a path matches a pattern segment by segment: `*` never crosses a `/`, so that
/// `/snap/agent/*/agent` cannot be satisfied by a file deeper down that somebody else placed there.
pub(super) fn matches_path(pattern: &str, path: &str) -> bool {
    let (mut wanted, mut got) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), got.next()) {
            (None, None) => return true,
            (Some(pattern), Some(segment)) if matches(pattern, segment) => {}
            (Some(_) | None, _) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The obvious reference: exponential, and easy to believe.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), None) => slow(rest, text),
            (Some((b'*', rest)), Some((_, shorter))) => slow(rest, text) || slow(pattern, shorter),
            (Some((a, rest)), Some((b, left))) => a == b && slow(rest, left),
            _ => false,
        }
    }

    #[test]
    fn stars_stay_inside_one_segment() {
        assert!(matches_path("/snap/x/*/agent", "/snap/x/12/agent"));
        assert!(!matches_path("/snap/x/*/agent", "/snap/x/12/evil/agent"));
        assert!(!matches_path("/snap/x/*", "/snap/x/12/agent"));
        assert!(!matches_path("/snap/x/agent", "/snap/x/agent/"));
        assert!(matches_path("/opt/ruby-*/bin/*d", "/opt/ruby-3.3/bin/fluentd"));
    }

    proptest! {
        #[test]
        fn agrees_with_the_slow_reference(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(matches(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
