//! Answers of which the caller gets a part: how they are asked for, and how they are opened.
//!
//! The service's answer comes [`Sealed`]: there is no way to a body that could be passed on but [`Sealed::open`], which
//! takes out of it what the caller lacks. A redacted form and the full one never stand for each other: the versions are
//! marked ([`Marker`]), whatever else could validate one by the other goes, in both directions.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::cloud::Withholding;
use crate::policy::PartialPermit;
use crate::redact::version::Marker;
use crate::redact::{ANSWER_BYTES, Unredactable, redact};
use crate::request::Method;

use super::outgoing::retain;
use super::upstream::{UpstreamBody, UpstreamError};
use super::worker::Worker;

/// How many answers a worker takes apart at one time: each of them is held in memory.
pub const AT_A_TIME: usize = 8;

/// How long an answer's body may take. Long polls wait for the head.
const BODY_PATIENCE: Duration = Duration::from_secs(20);

/// What a query that sends back the version of another form says instead: that it has none. Google's own agent starts
/// with this word.
const NO_VERSION: &str = "NONE";

/// What asks for a part of the answer, for another coding of it, or for none if an earlier one is still good.
const ASKS_FOR_LESS: [HeaderName; 7] = [
    header::RANGE,
    header::IF_RANGE,
    header::ACCEPT_ENCODING,
    header::IF_NONE_MATCH,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
];

/// What speaks about the bytes of the full form.
const SPEAKS_OF_THE_WHOLE: [HeaderName; 9] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TRAILER,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

/// The path and query that ask for the full form, where the caller asked for its own form.
pub(super) fn target_of(permit: &PartialPermit<'_>, withholding: &Withholding) -> String {
    let marker = Marker::new(&withholding.fingerprint());
    permit.target().sent_with(withholding.version_keys(), |version| {
        marker.unmark(version).unwrap_or_else(|| NO_VERSION.to_owned())
    })
}

/// Makes a request's headers ask for the whole answer, unencoded, unless the caller has this very form already.
pub(super) fn ask_for_the_whole(headers: &mut HeaderMap, withholding: &Withholding) {
    let marker = Marker::new(&withholding.fingerprint());
    let known = headers.get_all(header::IF_NONE_MATCH);
    let known: Vec<&str> = known.iter().filter_map(|value| value.to_str().ok()).collect();
    let known = marker.unmark_list(&known.join(","));
    retain(headers, |name| !ASKS_FOR_LESS.iter().any(|asks| asks == name));
    if let Some(value) = known.and_then(|known| HeaderValue::try_from(known).ok()) {
        headers.insert(header::IF_NONE_MATCH, value);
    }
}

/// The service's whole answer, which nobody can pass on.
pub struct Sealed {
    response: Response<UpstreamBody>,
    is_head: bool,
}

/// What became of it.
pub enum Opened {
    /// The caller's part.
    Part(Response<Bytes>),
    /// No answer to what was asked: an error, a redirect, or word that nothing has changed.
    Aside(Response<UpstreamBody>),
}

/// Why there is nothing for the caller.
#[derive(Debug)]
pub enum Unopened {
    /// The answer cannot be taken apart.
    Unredactable(Unredactable),
    /// The service broke off.
    Broken(UpstreamError),
}

impl From<Unredactable> for Unopened {
    fn from(why: Unredactable) -> Self {
        Self::Unredactable(why)
    }
}

impl Sealed {
    pub(super) fn new(response: Response<UpstreamBody>, permit: &PartialPermit<'_>) -> Self {
        Self { response, is_head: *permit.target().method() == Method::Head }
    }

    /// Takes out what is withheld.
    pub async fn open(self, worker: &Worker, withholding: &Withholding) -> Result<Opened, Unopened> {
        let (mut parts, body) = self.response.into_parts();
        let version = marked_version(&parts.headers, withholding);
        let is_encoded =
            parts.headers.get_all(header::CONTENT_ENCODING).iter().any(|coding| coding != "identity");
        let is_aside = parts.status >= StatusCode::MULTIPLE_CHOICES || parts.status == StatusCode::NO_CONTENT;
        let validates = |name: &str| header::LAST_MODIFIED == name || header::ETAG == name;
        let speaks = |name: &str| SPEAKS_OF_THE_WHOLE.iter().any(|speaks| speaks == name);
        retain(&mut parts.headers, |name| !validates(name) && (is_aside || !speaks(name)));
        if let Some(version) = version {
            parts.headers.insert(header::ETAG, version);
        }
        if is_aside {
            return Ok(Opened::Aside(Response::from_parts(parts, body)));
        }
        if parts.status != StatusCode::OK {
            return Err(Unredactable::Partial.into());
        }
        if is_encoded {
            return Err(Unredactable::Encoded.into());
        }
        if self.is_head {
            return Ok(Opened::Part(Response::from_parts(parts, Bytes::new())));
        }
        let Ok(_place) = worker.redactions.acquire().await else { return Err(Unredactable::TooSlow.into()) };
        let whole = tokio::time::timeout(BODY_PATIENCE, read(body)).await;
        let part = redact(&whole.map_err(|_| Unredactable::TooSlow)??, withholding)?;
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(part.len()));
        Ok(Opened::Part(Response::from_parts(parts, Bytes::from(part))))
    }
}

fn marked_version(headers: &HeaderMap, withholding: &Withholding) -> Option<HeaderValue> {
    let marker = Marker::new(&withholding.fingerprint());
    let version = headers.get(header::ETAG)?.to_str().ok()?;
    HeaderValue::try_from(marker.mark(version)?).ok()
}

/// Reads a body to its end.
async fn read(mut body: UpstreamBody) -> Result<BytesMut, Unopened> {
    let mut whole = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
        let frame = frame.map_err(|error| Unopened::Broken(UpstreamError::Exchange(error)))?;
        let Some(data) = frame.data_ref() else { continue };
        if whole.len() + data.len() > ANSWER_BYTES {
            return Err(Unredactable::TooLarge.into());
        }
        whole.extend_from_slice(data);
    }
    Ok(whole)
}
