//! Bytes as lower-case hexadecimal text.

use std::fmt::Write as _;

/// The bytes as lower-case hexadecimal digits.
#[must_use]
pub(crate) fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_become_digits() {
        assert_eq!(super::encode(&[0, 10, 255]), "000aff");
    }
}
