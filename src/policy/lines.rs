//! Lines and columns of a text, found for any number of places without reading the text again for each.

/// A text, and where its lines begin.
pub(super) struct Lines<'t> {
    text: &'t str,
    /// The offset behind each line feed, in order.
    breaks: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        Self { text, breaks: text.match_indices('\n').map(|(at, _)| at + 1).collect() }
    }

    /// Line and column of a byte, both from 1, the column in characters.
    pub(super) fn position(&self, offset: usize) -> (usize, usize) {
        let offset = self.text.floor_char_boundary(offset);
        let before = self.breaks.partition_point(|start| *start <= offset);
        let start = before.checked_sub(1).and_then(|last| self.breaks.get(last)).copied().unwrap_or(0);
        let column = self.text.get(start..offset).unwrap_or_default().chars().count();
        (before + 1, column + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The obvious reference: everything before the place is read.
    fn slow(text: &str, offset: usize) -> (usize, usize) {
        let before = &text[..text.floor_char_boundary(offset)];
        let last = before.rsplit('\n').next().unwrap_or_default();
        (before.matches('\n').count() + 1, last.chars().count() + 1)
    }

    proptest! {
        #[test]
        fn a_place_is_where_reading_all_before_it_finds_it(text in "[a\u{e9}\u{1f980}\n]{0,12}", offset in 0_usize..64) {
            prop_assert_eq!(Lines::of(&text).position(offset), slow(&text, offset));
        }
    }
}
