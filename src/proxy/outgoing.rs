//! Requests on their way to the metadata service: what a permit allows and nothing else.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TE, UPGRADE};
use http::request::Parts;
use http::{Method as HttpMethod, Request, Uri};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::cloud::{Session, Withholding};
use crate::policy::{Form, PartialPermit, Permit};
use crate::request::{BodyKind, names};

use super::partial;
use super::upstream::UpstreamError;

/// A request that may go upstream: what a permit allows, or the guard asking for a session token of its own.
pub(super) struct Outgoing(pub(super) Request<RequestBody>);

impl Outgoing {
    /// What a permit allows and nothing else: made anew from what was judged, or in audit mode the caller's own.
    pub(super) fn permitted(permit: &Permit<'_>, client: Request<Incoming>) -> Result<Self, UpstreamError> {
        let (mut parts, incoming) = client.into_parts();
        let head = match permit.form() {
            Form::Rebuilt(target) | Form::Upgraded(target, _) => {
                rebuild(&mut parts, target.sent())?;
                target.head()
            }
            Form::AsItCame(head) => head,
            // hyper was shown a stand-in for a head that could not be read: there is nothing to send.
            Form::Tunnel => return Err(UpstreamError::Unreadable),
        };
        strip_hop_by_hop(&mut parts.headers);
        let body =
            if head.body() == BodyKind::None { RequestBody::Empty } else { RequestBody::Client(incoming) };
        Ok(Self(Request::from_parts(parts, body)))
    }

    /// The request for the whole of what the caller may have a part of.
    pub(super) fn for_part(
        permit: &PartialPermit<'_>,
        withholding: &Withholding,
        client: Request<Incoming>,
    ) -> Result<Self, UpstreamError> {
        let (mut parts, _) = client.into_parts();
        rebuild(&mut parts, &partial::target_of(permit, withholding))?;
        partial::ask_for_the_whole(&mut parts.headers, withholding);
        strip_hop_by_hop(&mut parts.headers);
        Ok(Self(Request::from_parts(parts, RequestBody::Empty)))
    }

    /// The guard's own request for a token, with the longest lifetime. `None` where there is nothing to ask for.
    pub(super) fn for_token(session: &Session, to: SocketAddr) -> Option<Self> {
        let lifetime = HeaderName::try_from(session.ttl_header.as_ref()?).ok()?;
        let host = match to {
            SocketAddr::V4(to) => to.ip().to_string(),
            SocketAddr::V6(to) => format!("[{}]", to.ip()),
        };
        let host = if to.port() == 80 { host } else { format!("{host}:{}", to.port()) };
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = session.method.parse().ok()?;
        *request.uri_mut() = session.fetch.as_ref()?.parse().ok()?;
        request.headers_mut().insert(HOST, HeaderValue::try_from(host).ok()?);
        request.headers_mut().insert(lifetime, HeaderValue::from(session.ttl.1));
        Some(Self(request))
    }

    /// The same with a session token, in place of any other.
    pub(super) fn with_token(mut self, header: &HeaderName, token: &HeaderValue) -> Self {
        self.0.headers_mut().insert(header.clone(), token.clone());
        self
    }

    /// The request, to be compared with others.
    pub(super) fn request(&self) -> &Request<RequestBody> {
        &self.0
    }

    /// Whether it is a GET that ends with its head.
    pub(super) fn is_plain_read(&self) -> bool {
        *self.0.method() == HttpMethod::GET && matches!(self.0.body(), RequestBody::Empty)
    }

    /// A copy, if the request may be sent twice: a read without a body.
    pub(super) fn again(&self) -> Option<Self> {
        let request = &self.0;
        let is_read = matches!(*request.method(), HttpMethod::GET | HttpMethod::HEAD);
        if !is_read || !matches!(request.body(), RequestBody::Empty) {
            return None;
        }
        let mut copy = Request::new(RequestBody::Empty);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        *copy.extensions_mut() = request.extensions().clone();
        Some(Self(copy))
    }
}

/// The body of a request on its way upstream.
pub enum RequestBody {
    /// None.
    Empty,
    /// The client's, as it arrives.
    Client(Incoming),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Client(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(body) => body.size_hint(),
        }
    }
}

/// Makes a head anew from what was judged.
fn rebuild(parts: &mut Parts, sent: &str) -> Result<(), UpstreamError> {
    if parts.uri != sent {
        parts.uri = Uri::try_from(sent).map_err(|error| UpstreamError::Unwritable(error.into()))?;
    }
    retain(&mut parts.headers, |name| is_framing(name) || !names::is_dropped_in_enforce(name));
    Ok(())
}

/// hyper writes these anew from what they say; without them it would choose a framing of its own.
fn is_framing(name: &str) -> bool {
    [http::header::CONTENT_LENGTH.as_str(), http::header::TRANSFER_ENCODING.as_str()].contains(&name)
}

/// Headers that speak about one connection end at the guard (RFC 9110, section 7.6.1). Forwarding a client's
/// `Connection: close` would moreover close the pooled connection. How a body is framed stays as it was.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
    for name in [CONNECTION, TE, UPGRADE, HTTP2_SETTINGS, KEEP_ALIVE, PROXY_CONNECTION] {
        if headers.contains_key(&name) {
            retain(headers, |other| other != name.as_str());
        }
    }
}

/// Keeps the headers that `keep` wants, in their order: `HeaderMap::remove` would move the last into the gap.
pub(super) fn retain(headers: &mut HeaderMap, keep: impl Fn(&str) -> bool) {
    if headers.keys().all(|name| keep(name.as_str())) {
        return;
    }
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| keep(name.as_str())) {
        kept.append(name, value.clone());
    }
    *headers = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::Catalogue;

    #[test]
    fn the_guard_asks_for_a_token_as_clients_do() {
        let session = Catalogue::builtin().cloud("aws-ec2").unwrap().session().unwrap();
        for (to, host) in [
            ("169.254.169.254:80", "169.254.169.254"),
            ("[fd00:ec2::254]:80", "[fd00:ec2::254]"),
            ("169.254.169.254:8080", "169.254.169.254:8080"),
        ] {
            let Outgoing(request) = Outgoing::for_token(session, to.parse().unwrap()).unwrap();
            assert_eq!((request.method().as_str(), request.uri().path()), ("PUT", "/latest/api/token"));
            assert_eq!(request.headers()["host"], host);
            assert_eq!(request.headers()["x-aws-ec2-metadata-token-ttl-seconds"], "21600");
        }
        let ibm = Catalogue::builtin().cloud("ibm-vpc").unwrap().session().unwrap();
        assert!(Outgoing::for_token(ibm, "169.254.169.254:80".parse().unwrap()).is_none());
    }
}
