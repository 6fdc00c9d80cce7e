//! Cuts a connection's bytes into heads and bodies, and refuses every framing on which two parsers could
//! disagree.
//!
//! The gate stands under the HTTP library's server: bytes in, bounds out, no I/O. Behind it the library never
//! sees a malformed head, which it would answer by itself, nor a pipelined request before the response to the
//! one before is out. What the gate passes, the library must read in the same way.

use bytes::Bytes;

use super::chunked::{Chunked, Progress};
use super::fault::Fault;
use super::head::{BodyKind, RawHead};
use super::parse;

/// What a chunked body may carry besides its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Chunk extensions and trailers are refused: nothing that was not judged goes upstream.
    Enforce,
    /// Chunk extensions and trailers pass, bounded: what worked without the guard works with it.
    Audit,
}

/// How large a head may be. The HTTP library's own limits must not be lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest head, the empty line included.
    pub head_bytes: usize,
    /// The most header lines, and the most trailer lines.
    pub headers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head_bytes: 32 * 1024, headers: 100 }
    }
}

/// What to do with the unread bytes.
#[derive(Debug, Clone)]
pub enum Step {
    /// Nothing can be said before more bytes come; the unread ones stay unread.
    NeedMore,
    /// The next `consumed` unread bytes are this head (and at most one empty line before it).
    Head {
        /// The head.
        head: RawHead,
        /// How many unread bytes it takes.
        consumed: usize,
    },
    /// The next so many unread bytes (never 0) belong to this request's body: all of them are to be passed
    /// on.
    Body(usize),
    /// The request is complete; said once, takes no bytes.
    RequestComplete,
    /// Unread bytes, if any, are another request's and wait until [`Gate::response_done`].
    Hold,
    /// The connection has no single meaning from here on; final.
    Refused(Fault),
}

/// The state of one connection's requests.
#[derive(Debug)]
pub struct Gate {
    strictness: Strictness,
    limits: Limits,
    state: State,
    /// The response to the request whose body is still coming is already out.
    answered: bool,
}

#[derive(Debug)]
enum State {
    Head(Search),
    Length(u64),
    Chunked(Chunked),
    Complete,
    Holding,
    Refused(Fault),
}

impl Gate {
    /// A gate at the start of a connection.
    #[must_use]
    pub fn new(strictness: Strictness, limits: Limits) -> Self {
        Self { strictness, limits, state: State::Head(Search::default()), answered: false }
    }

    /// Says what the unread bytes are. The caller keeps presenting the same bytes, and more, until a step
    /// takes them; every byte of a head is looked at once however finely it is split.
    pub fn step(&mut self, unread: &[u8]) -> Step {
        match &mut self.state {
            State::Head(search) => match search.run(unread, self.limits) {
                Ok(None) => Step::NeedMore,
                Ok(Some(found)) => self.head(unread, &found),
                Err(fault) => self.refuse(fault),
            },
            State::Length(left) => {
                let available = u64::try_from(unread.len()).unwrap_or(u64::MAX);
                let taken = available.min(*left);
                *left -= taken;
                if *left == 0 {
                    self.state = State::Complete;
                }
                // `taken` is at most `unread.len()`.
                if taken == 0 { Step::NeedMore } else { Step::Body(usize::try_from(taken).unwrap_or(0)) }
            }
            State::Chunked(chunked) => {
                let Progress { taken, fault } = chunked.advance(unread, self.strictness, self.limits);
                // Bytes before a fault are handed out first, so that no split of the stream changes what is
                // seen.
                if let Some(fault) = fault {
                    self.state = State::Refused(fault);
                    return if taken == 0 { Step::Refused(fault) } else { Step::Body(taken) };
                }
                if chunked.is_done() {
                    self.state = State::Complete;
                }
                if taken == 0 { Step::NeedMore } else { Step::Body(taken) }
            }
            State::Complete => {
                self.state = if self.answered { State::Head(Search::default()) } else { State::Holding };
                self.answered = false;
                Step::RequestComplete
            }
            State::Holding => Step::Hold,
            State::Refused(fault) => Step::Refused(*fault),
        }
    }

    /// The response to the current request is out: the next request may come. Without a request it does
    /// nothing.
    pub fn response_done(&mut self) {
        match self.state {
            State::Holding => self.state = State::Head(Search::default()),
            State::Length(_) | State::Chunked(_) | State::Complete => self.answered = true,
            State::Head(_) | State::Refused(_) => {}
        }
    }

    /// Changes the strictness, from the next unread byte on.
    pub fn set_strictness(&mut self, strictness: Strictness) {
        self.strictness = strictness;
    }

    fn refuse(&mut self, fault: Fault) -> Step {
        self.state = State::Refused(fault);
        Step::Refused(fault)
    }

    fn head(&mut self, unread: &[u8], found: &Found) -> Step {
        let bytes = Bytes::copy_from_slice(unread.get(found.start..found.end).unwrap_or_default());
        match parse::head(bytes) {
            Ok(head) => {
                self.state = match head.body() {
                    BodyKind::None | BodyKind::Length(0) => State::Complete,
                    BodyKind::Length(length) => State::Length(length),
                    BodyKind::Chunked => State::Chunked(Chunked::default()),
                };
                Step::Head { head, consumed: found.end }
            }
            Err(fault) => self.refuse(fault),
        }
    }
}

/// Where a head is within the unread bytes.
struct Found {
    start: usize,
    end: usize,
}

/// The search for a head's end. It stops at the first byte that settles a fault, so that a client which ends
/// its lines in another way, or speaks another protocol, is not left waiting.
#[derive(Debug, Default)]
struct Search {
    /// How many unread bytes have been looked at.
    at: usize,
    /// Where the head starts: after an empty line, if one came first.
    start: usize,
    line_start: usize,
    after_cr: bool,
    part: Part,
    fields: usize,
}

/// Which part of the head the search is in.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Part {
    #[default]
    Method,
    RequestLine,
    Fields,
}

/// Whether a byte is of no interest to the search once the request line is over: nearly all of a head is.
fn is_plain(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f
}

/// No method is longer; without a bound a stream without spaces would only end at the head's limit.
const LONGEST_METHOD: usize = 24;

impl Search {
    fn run(&mut self, unread: &[u8], limits: Limits) -> Result<Option<Found>, Fault> {
        loop {
            let rest = unread.get(self.at..).unwrap_or_default();
            if self.part == Part::Fields && !self.after_cr {
                self.at += rest.iter().take_while(|byte| is_plain(**byte)).count();
            }
            let index = self.at;
            // No fault beyond the limit counts, so that none depends on how many bytes came at once.
            let limit = self.start.saturating_add(limits.head_bytes);
            if index >= limit && unread.len() > limit {
                return Err(Fault::HeadTooLarge);
            }
            let Some(byte) = unread.get(index).copied() else { return Ok(None) };
            self.at += 1;
            if !self.after_cr {
                self.byte(byte, index)?;
            } else if byte != b'\n' {
                return Err(Fault::BareCr);
            } else {
                self.after_cr = false;
                let line = unread.get(self.line_start..index.saturating_sub(1)).unwrap_or_default();
                if self.line(line, index + 1, limits)? {
                    return Ok(Some(Found { start: self.start, end: index + 1 }));
                }
            }
        }
    }

    /// One byte inside a line.
    fn byte(&mut self, byte: u8, index: usize) -> Result<(), Fault> {
        match (byte, self.part) {
            (b'\r', _) => self.after_cr = true,
            (b'\n', _) => return Err(Fault::BareLf),
            (b' ', Part::Method) if index == self.line_start => return Err(Fault::RequestLineMalformed),
            (b' ', Part::Method) => self.part = Part::RequestLine,
            (0x00..=0x08 | 0x0b..=0x1f | 0x7f, _) => return Err(Fault::ControlByte),
            (b'\t', Part::Method | Part::RequestLine) => return Err(Fault::RequestLineMalformed),
            (0x80..=0xff, Part::RequestLine) => return Err(Fault::TargetUnacceptable),
            (_, Part::Method) => {
                if !parse::is_method_byte(byte) || index - self.line_start >= LONGEST_METHOD {
                    return Err(Fault::MethodInvalid);
                }
            }
            (_, Part::RequestLine | Part::Fields) => {}
        }
        Ok(())
    }

    /// One whole line; says whether it ends the head.
    fn line(&mut self, line: &[u8], next: usize, limits: Limits) -> Result<bool, Fault> {
        self.line_start = next;
        match (line.is_empty(), self.part) {
            (true, Part::Fields) => return Ok(true),
            (false, Part::Fields) => {
                self.fields += 1;
                if self.fields > limits.headers {
                    return Err(Fault::TooManyHeaders);
                }
            }
            // Some old clients send one empty line after a body.
            (true, Part::Method | Part::RequestLine) if self.start == 0 => self.start = next,
            (true, Part::Method | Part::RequestLine) => return Err(Fault::LeadingBlankLines),
            (false, Part::Method | Part::RequestLine) => {
                parse::request_line(line)?;
                self.part = Part::Fields;
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests;
