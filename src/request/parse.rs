//! Bytes of one head to its parts.
//!
//! The gate has already seen that every line ends in CRLF and that no control byte is inside; here the
//! grammar is checked, at least as strictly as the HTTP library behind the gate does.

use std::ops::Range;

use bytes::Bytes;

use super::fault::Fault;
use super::head::{BodyKind, Field, Method, Parts, RawHead, Version};
use super::hygiene;
use super::names::{Role, find};

/// The longest request target that the HTTP library accepts.
const LONGEST_TARGET: usize = u16::MAX as usize - 1;

/// A request line's parts, as ranges into the line.
pub(super) struct RequestLine {
    method: Method,
    target: Range<usize>,
    version: Version,
}

/// Whether a byte may stand in a method. Lower case is refused: servers that ignore case would read a method
/// that the policy does not.
pub(super) fn is_method_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_'
}

/// Reads a request line without its line end.
pub(super) fn request_line(line: &[u8]) -> Result<RequestLine, Fault> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(Fault::RequestLineMalformed);
    };
    if method.is_empty() || target.is_empty() {
        return Err(Fault::RequestLineMalformed);
    }
    if !method.iter().copied().all(is_method_byte) {
        return Err(Fault::MethodInvalid);
    }
    let (Some(version), None) = (words.next(), words.next()) else {
        return Err(Fault::RequestLineMalformed);
    };
    if line == b"PRI * HTTP/2.0" {
        return Err(Fault::Http2Preface);
    }
    let version = match version {
        b"HTTP/1.1" => Version::Http11,
        b"HTTP/1.0" => Version::Http10,
        _ => return Err(Fault::VersionUnsupported),
    };
    let start = method.len() + 1;
    Ok(RequestLine { method: read_method(method)?, target: start..start + target.len(), version })
}

fn read_method(name: &[u8]) -> Result<Method, Fault> {
    Ok(match name {
        b"GET" => Method::Get,
        b"HEAD" => Method::Head,
        b"PUT" => Method::Put,
        b"POST" => Method::Post,
        b"PATCH" => Method::Patch,
        b"DELETE" => Method::Delete,
        b"CONNECT" => return Err(Fault::ConnectMethod),
        b"TRACE" | b"TRACK" => return Err(Fault::TraceMethod),
        other => Method::Other(String::from_utf8_lossy(other).into()),
    })
}

/// Reads a whole head, from the method up to and including the empty line.
pub(super) fn head(bytes: Bytes) -> Result<RawHead, Fault> {
    let mut lines = Lines { rest: &bytes, offset: 0 };
    let first = lines.next().unwrap_or_default();
    let line = request_line(bytes.get(first).unwrap_or_default())?;
    check_target(&bytes, &line.target)?;
    let mut fields = Vec::with_capacity(16);
    for range in lines.filter(|range| !range.is_empty()) {
        fields.push(field(&bytes, range)?);
    }
    let RequestLine { method, target, version } = line;
    let mut parts =
        Parts { bytes, method, target, version, fields, body: BodyKind::None, hygiene: Vec::new() };
    parts.body = body(&parts)?;
    parts.hygiene = hygiene::faults(&parts);
    Ok(RawHead::new(parts))
}

/// The lines of a head as ranges without their line ends.
struct Lines<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl Iterator for Lines<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let end = self.rest.iter().position(|byte| *byte == b'\n')?;
        let start = self.offset;
        self.rest = self.rest.get(end + 1..)?;
        self.offset = start + end + 1;
        // The gate has seen that a carriage return comes before every line feed.
        Some(start..start + end.saturating_sub(1))
    }
}

/// The HTTP library answers a target that it cannot read by itself, past policy and audit; so it must never
/// see one.
fn check_target(bytes: &Bytes, target: &Range<usize>) -> Result<(), Fault> {
    if target.len() > LONGEST_TARGET {
        return Err(Fault::HeadTooLarge);
    }
    let target = bytes.slice(target.clone());
    if !target.iter().all(u8::is_ascii_graphic) {
        return Err(Fault::TargetUnacceptable);
    }
    http::Uri::from_maybe_shared(target).map(drop).map_err(|_| Fault::TargetUnacceptable)
}

/// Reads one header line.
fn field(bytes: &[u8], line: Range<usize>) -> Result<Field, Fault> {
    let text = bytes.get(line.clone()).unwrap_or_default();
    if text.first().is_some_and(|byte| is_blank(*byte)) {
        return Err(Fault::LineFolding);
    }
    let colon = text.iter().position(|byte| *byte == b':').ok_or(Fault::HeaderWithoutColon)?;
    let (name, value) = text.split_at_checked(colon).ok_or(Fault::HeaderWithoutColon)?;
    if name.is_empty() {
        return Err(Fault::HeaderNameEmpty);
    }
    if name.last().is_some_and(|byte| is_blank(*byte)) {
        return Err(Fault::SpaceBeforeColon);
    }
    if !name.iter().copied().all(is_token_byte) {
        return Err(Fault::HeaderNameInvalid);
    }
    let value = value.get(1..).unwrap_or_default();
    let before = value.iter().take_while(|byte| is_blank(**byte)).count();
    let after = value.iter().rev().take_while(|byte| is_blank(**byte)).count();
    let start = line.start + colon + 1;
    // A value of blanks alone is empty, counted from either side.
    let value = start + before..(line.end - after).max(start + before);
    Ok(Field { name: line.start..line.start + colon, value, known: find(name) })
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The bytes of a token (RFC 9110, 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Where the body ends, if every parser must agree on it. Request smuggling lives on the cases refused here.
fn body(parts: &Parts) -> Result<BodyKind, Fault> {
    let mut length = None;
    let mut chunked = false;
    for (header, known) in parts.known_headers() {
        // An offer to go on in HTTP/2 may be ignored (RFC 9110, section 7.8), and is: it ends here.
        if known.role == Role::Upgrade && !header.value.eq_ignore_ascii_case(b"h2c") {
            return Err(Fault::Upgrade);
        }
        if known.role != Role::Framing {
            continue;
        }
        if !known.exact {
            return Err(Fault::ConfusableFramingHeader);
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let previous = length.replace(content_length(header.value)?);
            if previous.is_some() {
                return Err(Fault::ContentLengthRepeated);
            }
        } else {
            if chunked {
                return Err(Fault::TransferEncodingRepeated);
            }
            chunked = transfer_encoding(parts.version, header.value)?;
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err(Fault::LengthAndEncoding),
        (None, true) => Ok(BodyKind::Chunked),
        (Some(length), false) => Ok(BodyKind::Length(length)),
        (None, false) => Ok(BodyKind::None),
    }
}

/// A plain number without sign, list or leading zero, which fits a signed word of any server.
fn content_length(value: &[u8]) -> Result<u64, Fault> {
    let plain = value.iter().all(u8::is_ascii_digit) && (value.len() == 1 || !value.starts_with(b"0"));
    let number = std::str::from_utf8(value).ok().filter(|_| plain).and_then(|text| text.parse::<i64>().ok());
    number.and_then(|number| u64::try_from(number).ok()).ok_or(Fault::ContentLengthInvalid)
}

/// Exactly `chunked`, on HTTP/1.1.
fn transfer_encoding(version: Version, value: &[u8]) -> Result<bool, Fault> {
    if version == Version::Http10 {
        return Err(Fault::TransferEncodingOld);
    }
    if value.eq_ignore_ascii_case(b"chunked") { Ok(true) } else { Err(Fault::TransferEncodingUnsupported) }
}
