//! Takes members out of an answer that mixes classes: bytes and a [`Withholding`] in, bytes or a refusal out.
//!
//! What is withheld never gets out, whatever the answer looks like:
//!
//! * What cannot be read with one meaning is not given out at all: another format, broken text, repeated names, too
//!   deep or too large an answer.
//! * Names are compared decoded and in lower case, so that no spelling of a name hides it.
//! * A withheld member goes with all that is in it.
//!
//! What remains keeps its order, and its numbers and texts their spelling. No I/O.

mod json;
pub mod version;
mod yaml;

use crate::cloud::{Format, Withholding};

/// The largest answer that is taken apart, in bytes. The owner's data of a machine is at most half of that.
pub const ANSWER_BYTES: usize = 2 << 20;

/// Why an answer cannot be taken apart, and is therefore not given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unredactable {
    /// More than [`ANSWER_BYTES`].
    #[error("the answer is too large to take apart")]
    TooLarge,
    /// It did not come to its end in time.
    #[error("the answer did not come in time")]
    TooSlow,
    /// Compressed, or in another coding that was not asked for.
    #[error("the answer is encoded")]
    Encoded,
    /// A part of an answer, or a success of another kind.
    #[error("the answer is no whole document")]
    Partial,
    /// Not UTF-8, or no document of the format.
    #[error("the answer is not in its cloud's format")]
    Malformed,
    /// One name twice in one place: readers differ in which one counts.
    #[error("the answer names a member twice")]
    Repeated,
    /// Nested deeper than anything that a metadata service says.
    #[error("the answer is nested too deeply")]
    TooDeep,
    /// The catalogue does not know how to take this answer apart.
    #[error("nobody knows which parts of the answer to leave out")]
    Unknown,
}

impl Unredactable {
    /// The stable code that audit events carry.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::TooLarge => "answer-too-large",
            Self::TooSlow => "answer-too-slow",
            Self::Encoded => "answer-encoded",
            Self::Partial => "answer-partial",
            Self::Malformed => "answer-malformed",
            Self::Repeated => "answer-repeats-names",
            Self::TooDeep => "answer-too-deep",
            Self::Unknown => "answer-unknown",
        }
    }
}

/// The answer without what is withheld.
pub fn redact(answer: &[u8], withholding: &Withholding) -> Result<Vec<u8>, Unredactable> {
    if answer.len() > ANSWER_BYTES {
        return Err(Unredactable::TooLarge);
    }
    let text = std::str::from_utf8(answer).map_err(|_| Unredactable::Malformed)?;
    match withholding.format() {
        Format::Json => json::redact(text, withholding),
        Format::Yaml => yaml::redact(text, withholding),
    }
}

#[cfg(test)]
mod tests;
