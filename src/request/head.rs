//! One request's head, kept exactly as it came and known to have one meaning.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::fault::Fault;
use super::gate::{Gate, Limits, Step, Strictness};
use super::names::Found;

/// The request's method.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`
    Head,
    /// `PUT`
    Put,
    /// `POST`
    Post,
    /// `PATCH`
    Patch,
    /// `DELETE`
    Delete,
    /// Any other upper-case token.
    Other(Box<str>),
}

impl Method {
    /// The method as it stands in the request line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Other(name) => name,
        }
    }

    /// Whether the method only reads.
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(self, Self::Get | Self::Head)
    }
}

/// The request's version; the gate passes no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// Where the request's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BodyKind {
    /// Nothing announces a body.
    None,
    /// `Content-Length`
    Length(u64),
    /// `Transfer-Encoding: chunked`
    Chunked,
}

/// One header line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The name as it was spelt.
    pub name: &'a str,
    /// The value without the white space around it.
    pub value: &'a [u8],
}

/// A head that passed the gate: its own bytes, and where its parts are. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct RawHead(Arc<Parts>);

/// What the parser found; ranges point into `bytes`.
#[derive(PartialEq, Eq)]
pub(super) struct Parts {
    pub bytes: Bytes,
    pub method: Method,
    pub target: Range<usize>,
    pub version: Version,
    pub fields: Vec<Field>,
    pub body: BodyKind,
    pub hygiene: Vec<Fault>,
}

/// Where one header line's name and value are, and what is known of the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub name: Range<usize>,
    pub value: Range<usize>,
    pub known: Option<Found>,
}

impl Parts {
    /// The bytes of one part.
    fn part(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).unwrap_or_default()
    }

    fn header(&self, field: &Field) -> Header<'_> {
        // A name is a token, hence ASCII.
        let name = std::str::from_utf8(self.part(&field.name)).unwrap_or_default();
        Header { name, value: self.part(&field.value) }
    }

    /// The header lines whose names mean something, in order.
    pub(super) fn known_headers(&self) -> impl Iterator<Item = (Header<'_>, Found)> {
        self.fields.iter().filter_map(|field| Some((self.header(field), field.known?)))
    }
}

impl RawHead {
    /// A head of these parts; only the parser makes one.
    pub(super) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Reads exactly one head, as the gate would.
    pub fn read(bytes: &[u8], limits: Limits) -> Result<Self, Fault> {
        match Gate::new(Strictness::Enforce, limits).step(bytes) {
            Step::Head { head, consumed } if consumed == bytes.len() => Ok(head),
            Step::Refused(fault) => Err(fault),
            Step::Head { .. } | Step::NeedMore | Step::Body(_) | Step::RequestComplete | Step::Hold => {
                Err(Fault::HeadIncomplete)
            }
        }
    }

    /// The head exactly as it came, from the method up to and including the empty line.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.0.method
    }

    /// The request target as it came: visible ASCII that is a URI in one of HTTP's forms.
    #[must_use]
    pub fn target(&self) -> &[u8] {
        self.0.part(&self.0.target)
    }

    /// The version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.0.version
    }

    /// The header lines in order.
    pub fn headers(&self) -> impl Iterator<Item = Header<'_>> {
        self.0.fields.iter().map(|field| self.0.header(field))
    }

    /// The values of every header of that name, whatever its case.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.headers().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// Where the body ends.
    #[must_use]
    pub fn body(&self) -> BodyKind {
        self.0.body
    }

    /// Faults that leave the head one meaning, yet which no client of a metadata service needs: enforce
    /// refuses them, audit records them. Each occurs once.
    #[must_use]
    pub fn hygiene(&self) -> &[Fault] {
        &self.0.hygiene
    }
}

impl std::fmt::Debug for RawHead {
    /// Without values: headers and targets hold secrets, and debug output ends up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawHead")
            .field("method", self.method())
            .field("version", &self.version())
            .field("body", &self.body())
            .field("hygiene", &self.hygiene())
            .finish_non_exhaustive()
    }
}
