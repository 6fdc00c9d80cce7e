//! Sizes as people write them: `"64 MiB"`.

/// The bytes that a text such as `"64 MiB"`, `"1GiB"` or `"4096"` means; `None` if it means none.
#[must_use]
pub(super) fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let read = [("64 MiB", 64 << 20), ("1GiB", 1 << 30), ("4096", 4096), ("8 KiB", 8192), ("7 B", 7)];
        for (text, size) in read {
            assert_eq!(bytes(text), Some(size), "{text}");
        }
        for text in ["", "MiB", "64 MB", "-1", "1.5 GiB", "99999999999999 GiB", "64 MiB more"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
