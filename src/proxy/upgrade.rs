//! Session tokens of the guard's own, for callers that cannot fetch one (`v1 = "upgrade"`).
//!
//! Each worker keeps one token for each service, asks for it when the first such caller comes, and asks for another
//! before it expires; one caller at a time asks, and the others wait for it. A caller never gets to see the token: it is
//! put into the request behind the guard, and taken out of an answer that would bring it back.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HeaderName, HeaderValue};
use http::{Response, StatusCode};
use tokio::sync::Mutex;

use crate::cloud::Session;

use super::outgoing::Outgoing;
use super::tokens::Owner as TokenOwner;
use super::upstream::{self, Owner, Route, UpstreamBody, UpstreamError};
use super::worker::Worker;

/// How long a service may take for a token. Callers give an answer one second.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long after a failure nobody asks again: a service without tokens, or one in trouble, is not asked for one with
/// every request.
const PAUSE: Duration = Duration::from_secs(10);

/// How long before a token expires another one is fetched; half of the lifetime, if that is shorter.
const EARLY: Duration = Duration::from_mins(2);

/// The longest answer to a token request.
const ANSWER_BYTES: usize = 16 << 10;

/// The guard's tokens of one worker: one for each service, of which there are as many as listeners.
#[derive(Default)]
pub struct OwnTokens(RefCell<HashMap<Key, Rc<Mutex<Slot>>>>);

/// A service: where it is, and the header that shows its tokens.
type Key = (SocketAddr, String);

#[derive(Default)]
struct Slot {
    held: Option<Held>,
    /// Nobody asks before.
    not_before: Option<Instant>,
}

#[derive(Clone)]
struct Held {
    /// Marked as sensitive, so that no debug output shows it.
    value: HeaderValue,
    renew_at: Instant,
    expires: Instant,
}

/// Sends a request that lacks a token with one of the guard's own. Where there is none to be had it goes as it is, and
/// the service says what it thinks of that.
///
/// Gives the answer, and whether a token went with the request.
pub(super) async fn forward(
    worker: &Rc<Worker>,
    route: Route,
    owner: Option<Owner>,
    session: &Arc<Session>,
    request: Outgoing,
) -> Result<(Response<UpstreamBody>, bool), UpstreamError> {
    let service = Service { worker, route, session };
    let header = HeaderName::try_from(&session.token_header).ok();
    let Some((header, token)) = header.zip(service.token(None).await) else {
        return Ok((upstream::send(worker, route, owner, request).await?, false));
    };
    let again = request.again();
    let mut response = upstream::send(worker, route, owner, request.with_token(&header, &token)).await?;
    // The service restarted, or the machine moved: the token is dropped and renewed, once.
    if response.status() == StatusCode::UNAUTHORIZED
        && let Some(request) = again
        && let Some(renewed) = service.token(Some(&token)).await
    {
        response = upstream::send(worker, route, owner, request.with_token(&header, &renewed)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            service.let_be().await;
        }
    }
    response.headers_mut().remove(&header);
    Ok((response, true))
}

/// One service, as one worker sees it.
struct Service<'a> {
    worker: &'a Rc<Worker>,
    route: Route,
    session: &'a Arc<Session>,
}

impl Service<'_> {
    fn slot(&self) -> Rc<Mutex<Slot>> {
        let key = (self.route.to, self.session.token_header.clone());
        Rc::clone(self.worker.own_tokens.0.borrow_mut().entry(key).or_default())
    }

    /// A token that is good for a while; not the refused one.
    async fn token(&self, refused: Option<&HeaderValue>) -> Option<HeaderValue> {
        let slot = self.slot();
        // Held while the service is asked: whoever comes meanwhile waits for that token instead of asking, too.
        let mut slot = slot.lock().await;
        let now = Instant::now();
        let may_ask = slot.not_before.is_none_or(|moment| moment <= now);
        let is_refused = slot.held.as_ref().is_some_and(|held| Some(&held.value) == refused);
        if is_refused && !may_ask {
            // The one before it was refused, too, so this is not about the token; others may still need it.
            return None;
        }
        if is_refused || slot.held.as_ref().is_some_and(|held| held.expires <= now) {
            slot.held = None;
        }
        if may_ask && slot.held.as_ref().is_none_or(|held| held.renew_at <= now) {
            match tokio::time::timeout(PATIENCE, self.fetch()).await {
                Ok(Some(held)) => slot.held = Some(held),
                // An older token that is still good is better than none.
                Ok(None) | Err(_) => slot.not_before = Some(now + PAUSE),
            }
        }
        slot.held.as_ref().map(|held| held.value.clone())
    }

    /// A token that is brand-new was refused: another one would be, too.
    async fn let_be(&self) {
        self.slot().lock().await.not_before = Some(Instant::now() + PAUSE);
    }

    async fn fetch(&self) -> Option<Held> {
        let request = Outgoing::for_token(self.session, self.route.to)?;
        let now = Instant::now();
        // On a connection of its own, which no caller's request ever sees.
        let response = upstream::send(self.worker, self.route, None, request).await.ok()?;
        if response.status() != StatusCode::OK {
            let status = response.status().as_u16();
            tracing::warn!(status, "the metadata service gives the guard no session token");
            return None;
        }
        let told = self.session.ttl_header.as_ref().and_then(|name| response.headers().get(name));
        let told: Option<u32> = told.and_then(|value| value.to_str().ok()?.parse().ok());
        let body = read(response.into_body()).await?;
        let token = self.session.token_in(&body)?;
        let mut value = HeaderValue::from_str(&token).ok()?;
        value.set_sensitive(true);
        let longest = self.session.ttl.1;
        let lifetime = Duration::from_secs(told.unwrap_or(longest).clamp(1, longest).into());
        // Should it ever come to a caller, it is worth nothing there.
        self.worker.shared.tokens.learn(token.as_bytes(), TokenOwner::guard(), lifetime, now);
        let renew_at = now + lifetime.saturating_sub(EARLY).max(lifetime / 2);
        Some(Held { value, renew_at, expires: now + lifetime })
    }
}

async fn read(mut body: UpstreamBody) -> Option<Vec<u8>> {
    let mut read = Vec::new();
    while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
        if let Ok(data) = frame.ok()?.into_data() {
            read.extend_from_slice(&data);
        }
        if read.len() > ANSWER_BYTES {
            return None;
        }
    }
    Some(read)
}
