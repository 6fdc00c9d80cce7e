//! `--since`: a span such as `24h` or `7d`, or a moment such as `2026-11-24` or `2026-11-24T09:00:00Z`.

use jiff::Timestamp;

/// Since when events count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// In seconds since 1970.
    pub seconds: i64,
}

/// Neither a span nor a moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write a span such as 90m, 24h, 7d or 2w, or a moment such as 2026-11-24 or 2026-11-24T09:00:00Z")]
pub struct SinceError;

impl Since {
    /// Reads it, counted back from `now`.
    pub fn parse(text: &str, now: Timestamp) -> Result<Self, SinceError> {
        if let Ok(moment) = text.parse::<Timestamp>() {
            return Ok(Self { seconds: moment.as_second() });
        }
        if let Ok(moment) = format!("{text}T00:00:00Z").parse::<Timestamp>() {
            return Ok(Self { seconds: moment.as_second() });
        }
        let unit = text.chars().next_back().ok_or(SinceError)?;
        let number: i64 = text.strip_suffix(unit).and_then(|digits| digits.parse().ok()).ok_or(SinceError)?;
        let each = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return Err(SinceError),
        };
        let span = number.checked_mul(each).filter(|span| *span >= 0).ok_or(SinceError)?;
        Ok(Self { seconds: now.as_second().checked_sub(span).ok_or(SinceError)? })
    }

    /// For clap: counted back from this moment.
    pub fn from_now(text: &str) -> Result<Self, SinceError> {
        Self::parse(text, Timestamp::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_moments_are_read() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        for (text, wanted) in [
            ("24h", "2026-11-23T12:00:00Z"),
            ("7d", "2026-11-17T12:00:00Z"),
            ("90m", "2026-11-24T10:30:00Z"),
            ("2026-11-24", "2026-11-24T00:00:00Z"),
            ("2026-11-24T09:00:00Z", "2026-11-24T09:00:00Z"),
        ] {
            let wanted: Timestamp = wanted.parse().unwrap();
            assert_eq!(Since::parse(text, now), Ok(Since { seconds: wanted.as_second() }), "{text}");
        }
        for text in ["", "h", "24", "-1h", "24y", "9999999999999999d", "yesterday", "7ü"] {
            assert_eq!(Since::parse(text, now), Err(SinceError), "{text}");
        }
    }
}
