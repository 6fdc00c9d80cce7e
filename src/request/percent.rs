//! Percent-decoding, once.

use std::borrow::Cow;

/// Why a text cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undecodable {
    /// A percent sign without two hexadecimal digits after it.
    Malformed,
    /// The decoded bytes are not UTF-8: overlong forms of `/` and `.` are such.
    Utf8,
}

/// Decodes one layer.
pub(super) fn decode(text: &str) -> Result<Cow<'_, str>, Undecodable> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = bytes.next().and_then(hex).ok_or(Undecodable::Malformed)?;
            let low = bytes.next().and_then(hex).ok_or(Undecodable::Malformed)?;
            decoded.push(high << 4 | low);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| Undecodable::Utf8)
}

/// The text with everything encoded that is not harmless anywhere in a query.
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// Whether a decoded text could be decoded again.
pub(super) fn has_another_layer(decoded: &str) -> bool {
    decoded.as_bytes().windows(3).any(
        |window| matches!(window, [b'%', high, low] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit()),
    )
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Undecodable, decode, has_another_layer};

    #[test]
    fn decodes_one_layer_only() {
        assert_eq!(decode("a%2Db%2d%41").unwrap(), "a-b-A");
        assert_eq!(decode("%252e").unwrap(), "%2e");
        assert_eq!(decode("%c3%a9").unwrap(), "\u{e9}");
    }

    #[test]
    fn refuses_what_has_no_single_decoding() {
        for text in ["%", "%2", "%zz", "a%2", "%u002e", "%%32", "%+2"] {
            assert_eq!(decode(text), Err(Undecodable::Malformed), "{text}");
        }
        for text in ["%c0%af", "%c0%ae", "%e0%80%af", "%ff", "%ed%a0%80", "%f4%90%80%80", "%80"] {
            assert_eq!(decode(text), Err(Undecodable::Utf8), "{text}");
        }
    }

    #[test]
    fn sees_a_second_layer() {
        assert!(has_another_layer("x%2f"));
        assert!(!has_another_layer("100%"));
        assert!(!has_another_layer("100% of"));
    }
}
