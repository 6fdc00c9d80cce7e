//! A slow and obvious reading of a chunked body, to compare the gate with.

use super::Strictness;

fn line(bytes: &[u8]) -> Option<(&str, usize)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    let plain = text.chars().all(|c| c == '\t' || (' '..='~').contains(&c));
    plain.then_some((text, end + 2))
}

/// The body's length, if it is complete and plain.
pub(super) fn body(bytes: &[u8], strictness: Strictness) -> Option<usize> {
    let mut at = 0;
    loop {
        let (text, length) = line(&bytes[at..])?;
        at += length;
        let (digits, extension) = text.split_once(';').map_or((text, None), |(a, b)| (a, Some(b)));
        let hex = digits.bytes().all(|b| b.is_ascii_hexdigit()) && (1..=15).contains(&digits.len());
        if !hex || (extension.is_some() && strictness == Strictness::Enforce) {
            return None;
        }
        // Every chunk that httparse would read has the size that was read here.
        let size = u64::from_str_radix(digits, 16).ok()?;
        if extension.is_none() {
            let line = format!("{digits}\r\n");
            let httparse::Status::Complete((_, same)) = httparse::parse_chunk_size(line.as_bytes()).unwrap()
            else {
                panic!("a whole line")
            };
            assert_eq!(same, size);
        }
        if size == 0 {
            break;
        }
        at += usize::try_from(size).ok()?;
        if bytes.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let (text, length) = line(&bytes[at..])?;
        at += length;
        if text.is_empty() {
            return Some(at);
        }
        let (name, _) = text.split_once(':')?;
        let token =
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-_".contains(&b));
        if !token || strictness == Strictness::Enforce {
            return None;
        }
    }
}
