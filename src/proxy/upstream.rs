//! The way to the metadata service. Nothing gets there without a [`Permit`], or a [`Passage`] for bytes that nobody
//! reads.
//!
//! A connection is driven by the request that uses it, in the same task: a task of its own would cost a wake-up for
//! every request. Idle connections wait in a pool, last in first out, and are never shared between callers of
//! different identity: whatever the service thinks of a connection belongs to one caller.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderName, TE, UPGRADE};
use http::{Method as HttpMethod, Request, Response, Uri};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;

use crate::cloud::Proof;
use crate::policy::{Form, Passage, Permit};
use crate::request::{BodyKind, names};

use super::worker::Worker;

/// How many idle connections one caller may leave behind, and all callers of a worker together.
const IDLE_PER_CALLER: usize = 32;
const IDLE_IN_ALL: usize = 256;

/// How long an idle connection is kept. Metadata services close theirs after 15 seconds or more.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// Why the metadata service did not answer.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// No connection.
    #[error("cannot connect to the metadata service")]
    Connect(#[source] io::Error),
    /// The connection failed before there was a response.
    #[error("the metadata service did not answer")]
    Exchange(#[source] hyper::Error),
    /// The request has no head that could be sent.
    #[error("the request has no head")]
    Unreadable,
    /// The request cannot be written as HTTP.
    #[error("the request cannot be written")]
    Unwritable(#[source] http::Error),
}

/// Whom an idle connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The caller's uid.
    pub uid: u32,
    /// The caller's cgroup.
    pub cgroup_id: u64,
    /// How it was opened: what a service takes as proof in one connection it must not find in another.
    pub route: Route,
}

/// How the guard connects to the metadata service for one caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// Where to, with the scope of a link-local address.
    pub to: SocketAddr,
    /// What the connection has to show, because the caller's own would have shown it.
    pub proof: Proof,
}

impl Route {
    /// Opens a connection: the guard's own, or one that the keeper opens. Private to this room, which takes permits.
    async fn open(&self, worker: &Worker) -> io::Result<TcpStream> {
        let stream = match self.proof {
            Proof::None => TcpStream::connect(self.to).await?,
            Proof::Root => worker.keeper.connect(self.to, false).await?,
            Proof::PrivilegedPort => worker.keeper.connect(self.to, true).await?,
        };
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Idle upstream connections of one worker.
#[derive(Default)]
pub struct Pool {
    idle: HashMap<Owner, Vec<(Link, Instant)>>,
    count: usize,
}

impl Pool {
    /// The connection that was used last, if one is still open.
    fn take(&mut self, owner: &Owner) -> Option<Link> {
        let links = self.idle.get_mut(owner)?;
        while let Some((mut link, _)) = links.pop() {
            self.count -= 1;
            if link.is_open() {
                return Some(link);
            }
        }
        None
    }

    fn put(&mut self, owner: Owner, link: Link) {
        if self.count >= IDLE_IN_ALL {
            return;
        }
        let links = self.idle.entry(owner).or_default();
        if links.len() < IDLE_PER_CALLER {
            links.push((link, Instant::now()));
            self.count += 1;
        }
    }

    /// Whether no connection is idle.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Closes what has been idle for too long.
    pub fn sweep(&mut self, now: Instant) {
        for links in self.idle.values_mut() {
            links.retain(|(_, since)| now.duration_since(*since) < IDLE_TIME);
        }
        self.idle.retain(|_, links| !links.is_empty());
        self.count = self.idle.values().map(Vec::len).sum();
    }
}

type Driver = Connection<TokioIo<TcpStream>, RequestBody>;

/// One connection to the metadata service.
struct Link {
    sender: SendRequest<RequestBody>,
    driver: Option<Pin<Box<Driver>>>,
}

impl Link {
    async fn connect(worker: &Worker, route: Route) -> Result<Self, UpstreamError> {
        let stream = route.open(worker).await.map_err(UpstreamError::Connect)?;
        let (sender, driver) = http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(UpstreamError::Exchange)?;
        Ok(Self { sender, driver: Some(Box::pin(driver)) })
    }

    /// Lets the connection do what it can; whether it has ended.
    fn drive(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(driver) = &mut self.driver else { return true };
        let ended = driver.as_mut().poll(cx).is_ready();
        if ended {
            self.driver = None;
        }
        ended
    }

    /// Whether the service has not closed the connection, as far as can be seen without waiting.
    fn is_open(&mut self) -> bool {
        !self.drive(&mut Context::from_waker(Waker::noop())) && self.sender.is_ready()
    }

    /// Sends one request and waits for the head of its response. Gives the request back if nothing of it was sent.
    async fn exchange(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, (UpstreamError, Option<Request<RequestBody>>)> {
        let mut response = std::pin::pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        let outcome = std::future::poll_fn(|cx| {
            if let Some(running) = driver
                && running.as_mut().poll(cx).is_ready()
            {
                *driver = None;
            }
            response.as_mut().poll(cx)
        });
        outcome.await.map_err(|mut error| {
            let unsent = error.take_message();
            (UpstreamError::Exchange(error.into_error()), unsent)
        })
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

/// Opens a connection of its own for bytes that are passed on unread.
pub async fn open_unread(worker: &Worker, _: &Passage, route: Route) -> io::Result<TcpStream> {
    route.open(worker).await
}

/// Sends what the permit allows, and nothing else, to the endpoint that the caller meant.
///
/// `owner` says whose idle connections may be used; `None` for a caller who is not known, who gets a fresh one.
pub async fn forward(
    worker: &Rc<Worker>,
    permit: &Permit<'_>,
    route: Route,
    owner: Option<Owner>,
    client: Request<Incoming>,
) -> Result<Response<UpstreamBody>, UpstreamError> {
    let mut request = outgoing(permit, client)?;
    // A service that does not expect a body may take it for the next request, and would answer whoever is next: such a
    // connection serves nobody else.
    let owner_after = owner.filter(|_| request.body().is_end_stream());
    let idle = owner.and_then(|owner| worker.pool.borrow_mut().take(&owner));
    if let Some(mut link) = idle {
        let again = repeatable(&request);
        match link.exchange(request).await {
            Ok(response) => return Ok(streamed(worker, owner_after, link, response)),
            // The service closed the idle connection just as it was used. Only a request of which nothing was sent,
            // or which does the same twice, is sent again, and on a fresh connection.
            Err((error, unsent)) => request = unsent.or(again).ok_or(error)?,
        }
    }
    let mut link = Link::connect(worker, route).await?;
    match link.exchange(request).await {
        Ok(response) => Ok(streamed(worker, owner_after, link, response)),
        Err((error, _)) => Err(error),
    }
}

fn streamed(
    worker: &Rc<Worker>,
    owner: Option<Owner>,
    link: Link,
    response: Response<Incoming>,
) -> Response<UpstreamBody> {
    let (mut parts, incoming) = response.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    // The version is the connection's own affair: hyper answers each client in the client's.
    parts.version = http::Version::HTTP_11;
    let home = owner.map(|owner| (Rc::clone(worker), owner));
    Response::from_parts(parts, UpstreamBody { incoming, link: Some(link), home })
}

/// A copy of a request that may be sent twice: a read without a body.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
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
    Some(copy)
}

/// The request as it goes upstream: made anew from what was judged, or in audit mode the caller's own.
fn outgoing(permit: &Permit<'_>, client: Request<Incoming>) -> Result<Request<RequestBody>, UpstreamError> {
    let (mut parts, incoming) = client.into_parts();
    let head = match permit.form() {
        Form::Rebuilt(target) => {
            parts.uri =
                Uri::try_from(target.sent()).map_err(|error| UpstreamError::Unwritable(error.into()))?;
            retain(&mut parts.headers, |name| is_framing(name) || !names::is_dropped_in_enforce(name));
            target.head()
        }
        Form::AsItCame(head) => head,
        // hyper was shown a stand-in for a head that could not be read: there is nothing to send.
        Form::Tunnel => return Err(UpstreamError::Unreadable),
    };
    strip_hop_by_hop(&mut parts.headers);
    let body = if head.body() == BodyKind::None { RequestBody::Empty } else { RequestBody::Client(incoming) };
    Ok(Request::from_parts(parts, body))
}

/// hyper writes these anew from what they say; without them it would choose a framing of its own.
fn is_framing(name: &str) -> bool {
    [http::header::CONTENT_LENGTH.as_str(), http::header::TRANSFER_ENCODING.as_str()].contains(&name)
}

/// Headers that speak about one connection end at the guard (RFC 9110, section 7.6.1). Forwarding a client's
/// `Connection: close` would moreover close the pooled connection. How a body is framed stays as it was.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
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
fn retain(headers: &mut HeaderMap, keep: impl Fn(&str) -> bool) {
    if headers.keys().all(|name| keep(name.as_str())) {
        return;
    }
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| keep(name.as_str())) {
        kept.append(name, value.clone());
    }
    *headers = kept;
}

/// A response's body as it streams in. When it is complete the connection goes back to the pool; when it is dropped
/// before, the connection is closed, so that a client who leaves ends the upstream request at once.
pub struct UpstreamBody {
    incoming: Incoming,
    link: Option<Link>,
    home: Option<(Rc<Worker>, Owner)>,
}

impl UpstreamBody {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(link) = &mut self.link else { return Poll::Ready(None) };
        let mut frame = Pin::new(&mut self.incoming).poll_frame(cx);
        if frame.is_pending() {
            link.drive(cx);
            frame = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        if matches!(frame, Poll::Ready(None)) {
            self.settle();
        }
        frame
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }

    fn settle(&mut self) {
        if let Some(mut link) = self.link.take()
            && let Some((worker, owner)) = self.home.take()
            && link.is_open()
        {
            worker.pool.borrow_mut().put(owner, link);
        }
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.settle();
        }
    }
}
