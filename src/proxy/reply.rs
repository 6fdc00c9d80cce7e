//! The answers that the guard gives itself: honest, quick, and in the words that the client understands.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};

use crate::cloud::Answer;

use super::record::Exchange;
use super::upstream::UpstreamBody;

/// Marks an answer as the guard's own, so that a client can tell it from the service's; its value is the event id.
pub const MARK: HeaderName = HeaderName::from_static("x-imds-guard");

/// What a caller is told whose credential could not be recorded.
pub const NO_RECORD: &str = "the audit log cannot take a record of this";

/// What a caller is told who was another by the time that the answer came.
pub const NO_LONGER: &str = "the caller changed while the request was under way";

/// The body of an answer, and the exchange that is complete when the body is.
pub struct ReplyBody {
    content: Content,
    exchange: Exchange,
}

enum Content {
    Own(Option<Bytes>),
    Upstream(UpstreamBody),
}

impl ReplyBody {
    /// A body that the guard has in hand.
    pub(super) fn own(body: Bytes, exchange: Exchange) -> Self {
        Self { content: Content::Own(Some(body)), exchange }
    }

    /// A body that comes from the metadata service.
    pub(super) fn upstream(body: UpstreamBody, exchange: Exchange) -> Self {
        Self { content: Content::Upstream(body), exchange }
    }
}

/// The guard's own answer to a request that it does not forward.
#[must_use]
pub fn refuse(answer: &Answer, reason: &str, closes: bool, mut exchange: Exchange) -> Response<ReplyBody> {
    let body = answer.render(reason, exchange.id());
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::FORBIDDEN);
    let headers = response.headers_mut();
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    if let Ok(id) = HeaderValue::try_from(exchange.id()) {
        headers.insert(MARK, id);
    }
    if closes {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    exchange.refused(answer.status);
    response.map(|()| ReplyBody::own(Bytes::from(body), exchange))
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = match &mut this.content {
            Content::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Upstream(body) => body.poll_frame(cx),
        };
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.exchange.sent(data);
                }
            }
            Poll::Ready(Some(Err(_))) => this.exchange.broken(),
            Poll::Ready(None) => this.exchange.complete(),
            Poll::Pending => {}
        }
        if this.is_end_stream() {
            this.exchange.complete();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Content::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Content::Upstream(body) => body.size_hint(),
        }
    }
}
