//! The way to the metadata service. Nothing gets there without a [`Permit`](crate::policy::Permit), a
//! [`PartialPermit`](crate::policy::PartialPermit) for an answer of which the caller gets a part, or a [`Passage`] for bytes
//! that nobody reads; but for the guard's own requests for session tokens. [`outgoing`](super::outgoing) makes the requests.
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

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use thiserror::Error;
use tokio::net::TcpStream;

use crate::audit::event::UpstreamTls as Told;
use crate::cloud::{Endpoint, Proof};
use crate::policy::Passage;

use super::outgoing::{Outgoing, RequestBody, strip_hop_by_hop};
use super::stream::{Carrier, Stream};
use super::tls::{self, TlsError, Way};
use super::tokens::Learner;
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
    /// The policy wants TLS, and there is none.
    #[error(transparent)]
    Tls(#[from] TlsError),
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
    /// Opens a connection, and gives the way that it took. Private to this room, which takes permits.
    async fn open(self, worker: &Worker, way: Way) -> Result<(Stream, Way), UpstreamError> {
        let way = match way {
            Way::Plain(_) => way,
            Way::Tls(tls) => {
                let door = Self { to: tls.door_of(self.to), ..self };
                match Box::pin(tls.shake(door.dial(worker))).await {
                    Ok(stream) => return Ok((Stream::Tls(Box::new(stream)), Way::Tls(tls))),
                    Err(TlsError::NotOffered) if tls.has_another_way() => tls.decline(self.to),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let stream = self.dial(worker).await.map_err(UpstreamError::Connect)?;
        Ok((Stream::Plain(stream), way))
    }

    /// The guard's own connection, or one that the keeper opens.
    async fn dial(&self, worker: &Worker) -> io::Result<TcpStream> {
        let stream = match self.proof {
            Proof::None if self.needs_mark(worker) => worker.keeper.connect(self.to, false).await?,
            Proof::None => TcpStream::connect(self.to).await?,
            Proof::Root => worker.keeper.connect(self.to, false).await?,
            Proof::PrivilegedPort => worker.keeper.connect(self.to, true).await?,
        };
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Whether this host's routes let only marked connections get there. Never where root's connection would be a proof
    /// that this caller has not given.
    fn needs_mark(&self, worker: &Worker) -> bool {
        let policy = worker.shared.policy.load();
        let endpoint = Endpoint::new(self.to.ip(), self.to.port());
        policy.settings().upstream_mark.is_some() && policy.catalogue().proof(endpoint) != Proof::Root
    }
}

/// Whose connections may be used for a request, and over which TLS: [`Way::generation`].
type Key = (Owner, Option<u64>);

/// Idle upstream connections of one worker.
pub struct Pool {
    idle: HashMap<Key, Vec<(Link, Instant)>>,
    count: usize,
    room: usize,
}

impl Pool {
    /// A pool for so many connections at most.
    #[must_use]
    pub fn for_at_most(share: usize) -> Self {
        Self { idle: HashMap::new(), count: 0, room: share.clamp(1, IDLE_IN_ALL) }
    }

    /// The connection of this owner and this way that was used last, if one is still open.
    fn take(&mut self, owner: Owner, way: &Way) -> Option<Link> {
        let links = self.idle.get_mut(&(owner, way.generation()))?;
        while let Some((mut link, _)) = links.pop() {
            self.count -= 1;
            if link.is_open() {
                return Some(link);
            }
        }
        None
    }

    fn put(&mut self, owner: Owner, link: Link) {
        if self.count >= self.room {
            return;
        }
        let links = self.idle.entry((owner, link.way.generation())).or_default();
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

type Driver = Connection<Carrier, RequestBody>;

/// One connection to the metadata service.
struct Link {
    sender: SendRequest<RequestBody>,
    driver: Option<Pin<Box<Driver>>>,
    way: Way,
}

impl Link {
    async fn connect(worker: &Worker, route: Route, way: Way) -> Result<Self, UpstreamError> {
        let (stream, way) = route.open(worker, way).await?;
        let (sender, driver) = http1::Builder::new()
            .preserve_header_case(true)
            .handshake(stream.carried_by(&worker.outbox))
            .await
            .map_err(UpstreamError::Exchange)?;
        Ok(Self { sender, driver: Some(Box::pin(driver)), way })
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
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, (UpstreamError, Option<Request<RequestBody>>)> {
        let host = self.way.tls().and_then(|tls| tls.address(&mut request));
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
        let outcome = outcome.await.map(|mut response| {
            if let Some(tls) = self.way.tls() {
                tls.lead_back(response.headers_mut(), host.as_ref());
            }
            response
        });
        outcome.map_err(|mut error| {
            let unsent = error.take_message();
            (UpstreamError::Exchange(error.into_error()), unsent)
        })
    }
}

/// Opens a connection of its own for bytes that are passed on unread.
pub async fn open_unread(worker: &Worker, _: &Passage, route: Route) -> Result<Stream, UpstreamError> {
    let way = tls::way(worker, route.to, None)?;
    Ok(route.open(worker, way).await?.0)
}

/// Opens a connection for what had a permit when it left and came back to the guard; from another source port.
pub(super) async fn open_again(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a request and waits for the head of its response.
///
/// `owner` says whose idle connections may be used; `None` for a caller who is not known, who gets a fresh one.
pub(super) async fn send(
    worker: &Rc<Worker>,
    route: Route,
    owner: Option<Owner>,
    mut request: Outgoing,
) -> Result<Response<UpstreamBody>, UpstreamError> {
    let way = tls::way(worker, route.to, Some(request.0.uri().path()))?;
    // A service that does not expect a body may take it for the next request, and would answer whoever is next: such a
    // connection serves nobody else.
    let owner_after = owner.filter(|_| request.0.body().is_end_stream());
    let idle = owner.and_then(|owner| worker.pool.borrow_mut().take(owner, &way));
    if let Some(mut link) = idle {
        let again = request.again();
        match link.exchange(request.0).await {
            Ok(response) => return Ok(streamed(worker, owner_after, link, response)),
            // The service closed the idle connection just as it was used. Only a request of which nothing was sent,
            // or which does the same twice, is sent again, and on a fresh connection.
            Err((error, unsent)) => request = unsent.map(Outgoing).or(again).ok_or(error)?,
        }
    }
    let again = if way.may_change() { request.again() } else { None };
    let mut link = Link::connect(worker, route, way).await?;
    let error = match link.exchange(request.0).await {
        Ok(response) => return Ok(streamed(worker, owner_after, link, response)),
        Err((error, _)) => error,
    };
    // The service would not have this machine's certificate, and the policy leaves another way.
    let (Some(request), Some(way)) = (again, link.way.left_after(&error, route.to)) else {
        return Err(error);
    };
    let mut link = Link::connect(worker, route, way).await?;
    match link.exchange(request.0).await {
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
    Response::from_parts(parts, UpstreamBody { incoming, link: Some(link), home, learner: None })
}

/// A response's body as it streams in. When it is complete the connection goes back to the pool; when it is dropped
/// before, the connection is closed, so that a client who leaves ends the upstream request at once.
pub struct UpstreamBody {
    incoming: Incoming,
    link: Option<Link>,
    home: Option<(Rc<Worker>, Owner)>,
    learner: Option<Learner>,
}

impl UpstreamBody {
    /// Lets somebody see what passes.
    pub(super) fn watch(&mut self, learner: Learner) {
        self.learner = Some(learner);
    }

    /// Whether it comes over TLS; `None` where the policy does not want that, or the body has ended.
    #[must_use]
    pub fn tls(&self) -> Option<Told> {
        self.link.as_ref()?.way.told()
    }

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
        self.show(&frame);
        if matches!(frame, Poll::Ready(None)) {
            self.settle();
        }
        frame
    }

    fn show(&mut self, frame: &Poll<Option<Result<Frame<Bytes>, hyper::Error>>>) {
        let Some(learner) = &mut self.learner else { return };
        if let Poll::Ready(Some(Ok(frame))) = frame
            && let Some(data) = frame.data_ref()
        {
            learner.see(data);
        }
        if matches!(frame, Poll::Ready(None)) || self.incoming.is_end_stream() {
            self.learner.take().into_iter().for_each(Learner::finish);
        }
    }

    /// Reads a body whose length was announced to its end.
    pub(super) async fn read(mut self) -> Result<Bytes, hyper::Error> {
        let mut whole = BytesMut::new();
        while let Some(frame) = std::future::poll_fn(|cx| self.poll_frame(cx)).await {
            if let Ok(data) = frame?.into_data() {
                whole.extend_from_slice(&data);
            }
        }
        Ok(whole.freeze())
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
