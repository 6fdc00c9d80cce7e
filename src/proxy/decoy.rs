//! A canary's credentials in place of a refusal. Unlike every other answer of the guard's own it is not marked as one.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use jiff::Timestamp;

use crate::policy::Bait;

use super::record::Exchange;
use super::reply::ReplyBody;
use super::service::Service;

/// The decoy; the exchange comes back where it cannot be given.
pub fn give(
    service: &Service<'_>,
    bait: &Bait,
    mut exchange: Exchange,
) -> Result<Response<ReplyBody>, Exchange> {
    let date = |seconds| Timestamp::from_second(seconds).unwrap_or_default().strftime("%FT%T").to_string();
    let body = bait.body(Timestamp::now().as_second(), date);
    // Nobody would learn of a decoy that has no event.
    let Some(body) = body.filter(|_| exchange.can_be_told()) else { return Err(exchange) };
    let mut response = Response::new(());
    let headers = response.headers_mut();
    for (name, value) in bait.headers() {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    let body = Bytes::from(body);
    // Its name, by which the cloud's own log tells who uses it.
    let issued = service.watch(headers).map(|mut watch| {
        watch.see(&body);
        watch.finish()
    });
    exchange.gave_decoy(StatusCode::OK.as_u16(), issued);
    Ok(response.map(|()| ReplyBody::own(body, exchange)))
}
