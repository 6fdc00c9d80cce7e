//! One client's connection, from accept to close.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::caller::{Caller, Origin, Processes, Why};
use crate::cloud::{Asked, Door, Endpoint, How, Proof};
use crate::policy::{BindTokens, Decision, Policy};
use crate::request::{Fault, Gate, Limits as GateLimits, Strictness};

use super::identity::{self, Identity};
use super::limits::{Arrival, Client};
use super::socket::Socket;
use super::tokens::Owner as TokenOwner;
use super::upstream::{Owner, Route};
use super::wire::{Admitted, Ending, Wire};
use super::worker::Worker;
use super::{descriptors, farewell, flow, pipeline, record, tunnel};

/// How long a client may go on sending after a refusal, so that closing does not destroy the answer on its way.
const LINGER: Duration = Duration::from_millis(500);

/// How much is read and thrown away meanwhile.
const LINGER_BYTES: usize = 256 << 10;

/// hyper's buffer holds a head and what follows it; its own limit must never be the one that is met.
const BUFFER_SLACK: usize = 16 << 10;
const LEAST_BUFFER: usize = 400 << 10;

/// One client's connection.
pub struct Connection {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// Who is at the other end.
    pub identity: Rc<Identity>,
    /// The service that the client meant to reach.
    pub endpoint: Endpoint,
    /// How the guard reaches it on the client's behalf.
    pub route: Route,
    /// The bytes.
    pub wire: Wire,
}

/// Serves an accepted connection to its end.
pub async fn serve(
    worker: Rc<Worker>,
    stream: TcpStream,
    client: SocketAddr,
    origin: Origin,
    arrival: Arrival,
) -> io::Result<()> {
    let Some(flow) = flow::of(&stream, client, &worker.shared.interfaces.load())? else {
        return reset(&stream); // somebody connected to the listener itself: this is no open relay
    };
    let policy = worker.shared.policy.load_full();
    let original = flow.original.0;
    let endpoint = Endpoint::new(original.ip(), original.port());
    let started = Instant::now();
    // Of a container's socket this namespace knows nothing, and one of the same ends here would be another's.
    let raw = (origin == Origin::Host).then(|| worker.diag.borrow_mut().stamps(flow));
    // A client that had reset this connection could have given its port to the one that the kernel has just named.
    if stream.take_error()?.is_some() {
        return Ok(());
    }
    let uid = raw.and_then(Result::ok).map(|stamps| stamps.uid);
    if uid == Some(worker.shared.own_uid) {
        return Box::pin(tunnel::lead_on(stream, original)).await;
    }
    // Counted before the keeper is asked for anything: a flood costs the flooder its own connections.
    let client = raw.map_or(Client::Container(flow.client.0.ip()), |_| Client::User(uid));
    let limits = descriptors::within(policy.settings().limits, worker.shared.places);
    let counted = worker.shared.census.admit(client, &limits);
    if let Err(exceeded) = counted {
        record::flood(&worker, flow, uid, exceeded);
        return turn_away(&stream);
    }
    let raw = match raw {
        Some(raw) => raw,
        None => identity::foreign_stamps(&worker, &stream, flow).await,
    };
    let identity = Rc::new(Identity::of(&worker, origin, flow, raw, started).await);
    worker.counters.connected(&identity.attribution, identity.took);
    if !policy.catalogue().serves(endpoint) {
        record::closed(&worker, &identity, "not-an-endpoint");
        return reset(&stream);
    }
    if policy.may_need_processes(&identity.caller()) {
        identity.look_at_first(&worker, policy.needs_digest()).await;
    } else {
        identity.look_up_for_the_log(&worker);
    }
    // Who is silent, and whose bytes pass unread, may be so for long: a guard that ends does not wait for them.
    let mut arrival = Some(arrival);
    let door = match policy.catalogue().door(endpoint) {
        Door::Either => {
            drop(arrival.take());
            match tokio::time::timeout(first_byte_patience(&policy), tunnel::spoken(&stream)).await {
                Ok(door) => door?,
                Err(_) => return Ok(()), // as silent as an idle connection, and ended like one
            }
        }
        door @ (Door::Http | Door::Opaque) => door,
    };
    match door {
        Door::Opaque | Door::Either => {
            drop(arrival);
            Box::pin(tunnel::opaque(&worker, &identity, &policy, endpoint, stream)).await
        }
        Door::Http => {
            let arrival = arrival.unwrap_or_else(|| worker.roll.arrive());
            http(worker, identity, &policy, endpoint, stream, arrival, client).await
        }
    }
}

async fn http(
    worker: Rc<Worker>,
    identity: Rc<Identity>,
    policy: &Policy,
    endpoint: Endpoint,
    stream: TcpStream,
    arrival: Arrival,
    client: Client,
) -> io::Result<()> {
    let route = route(&identity, policy, endpoint);
    let strictness = strictness(policy);
    let gate = Gate::new(strictness, gate_limits(policy));
    let still_there = {
        let (worker, flow) = (Rc::clone(&worker), identity.flow);
        // Of whom the kernel never knew anything, it cannot tell that he is gone; nor here of one in another namespace.
        let is_known = identity.uid().is_some() && identity.origin == Origin::Host;
        Box::new(move || {
            let now = worker.diag.borrow_mut().stamps(flow);
            !is_known || !matches!(now, Err(Why::NoSocket | Why::Orphan))
        })
    };
    let wire = Wire::new(Socket::new(stream, Rc::clone(&worker.outbox)), gate, strictness, still_there);
    let connection =
        Rc::new(Connection { worker: Rc::clone(&worker), identity, endpoint, route, wire: wire.clone() });
    let enrolled = worker.roll.enrol(&wire);
    drop(arrival);
    let asked = Cell::new(false);
    let is_agent = policy.may_be_agent(&connection.identity.caller());
    let service = {
        let (connection, asked) = (Rc::clone(&connection), &asked);
        service_fn(move |request| {
            asked.set(true);
            let connection = Rc::clone(&connection);
            async move {
                connection.wait_for_its_turn(client, is_agent).await;
                pipeline::answer(connection, request).await
            }
        })
    };
    // hyper's part must be gone when it has ended: it holds the connection, which may go on as a tunnel or be reset.
    let served = {
        let serving = http1::Builder::new()
            .preserve_header_case(true)
            .auto_date_header(false)
            .max_headers(policy.settings().limits.headers as usize + 1)
            .max_buf_size((policy.settings().limits.head_bytes as usize + BUFFER_SLACK).max(LEAST_BUFFER))
            .serve_connection(wire.clone(), service);
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            served = serving.as_mut() => served,
            () = farewell::is_last_request(&worker.shared, &asked) => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        }
    };
    drop(enrolled);
    let ending = wire.ending();
    drop(wire);
    if let Err(error) = served {
        tracing::debug!(%error, "a client connection ended early");
    }
    let connection = Rc::into_inner(connection).ok_or(io::ErrorKind::Other)?;
    connection.finish(ending).await
}

impl Connection {
    /// Holds the request back if its user asks faster than others should have to bear. The policy's agents may.
    async fn wait_for_its_turn(&self, client: Client, is_agent: bool) {
        let shared = &self.worker.shared;
        if is_agent {
            return shared.pace.note(client, Instant::now());
        }
        let per_second = shared.policy.load().settings().limits.requests_per_uid;
        let wait = shared.pace.wait(client, per_second, Instant::now());
        if !wait.is_zero() {
            Box::pin(tokio::time::sleep(wait)).await;
        }
    }

    /// What the caller asks in the request that hyper has just delivered.
    #[must_use]
    pub fn asked(&self, policy: &Policy) -> Asked {
        match self.wire.admitted() {
            Some(Admitted::Head(head)) => {
                let mut asked = Asked::read(policy.catalogue(), self.endpoint, head);
                if policy.bind_tokens() != BindTokens::Off {
                    self.look_up_token(&mut asked);
                }
                asked
            }
            Some(Admitted::Faulty(fault)) => Asked::unclear(self.endpoint, None, fault),
            // hyper found one more request in the bytes than the gate did: nothing of it may pass.
            None => Asked::unclear(self.endpoint, None, Fault::RequestLineMalformed),
        }
    }

    /// Notes whose session token the request shows.
    fn look_up_token(&self, asked: &mut Asked) {
        let Some((token, spoken)) = asked.token().zip(asked.spoken.as_ref()) else { return };
        let owner = self.identity.stamps().map(TokenOwner::of);
        let tokens = &self.worker.shared.tokens;
        let finding = tokens.look_up(token, owner.as_ref(), &spoken.session, Instant::now());
        asked.speaks(How::Shows(finding.holder));
        asked.token_of = finding.fetched_by.map(|owner| owner.to_string());
    }

    /// Who asks it, with the processes if the verdict depends on them.
    pub async fn caller(&self, policy: &Policy, asked: &Asked) -> Caller {
        let caller = self.identity.caller();
        if policy.needs_processes(&caller, asked) {
            return self.identity.caller_with_processes(&self.worker, policy.needs_digest()).await;
        }
        caller
    }

    /// The decision about a caller whose processes were decisive, if it is another now that the answer is about to be
    /// released: it could have passed its socket on, or become another program, while the service was asked.
    pub async fn changed_meanwhile(
        &self,
        policy: &Policy,
        before: &Caller,
        asked: &Asked,
    ) -> Option<Decision> {
        if before.processes == Processes::Skipped {
            return None;
        }
        let now = policy.decide(&self.caller(policy, asked).await, asked);
        (!now.does_the_same_as(&policy.decide(before, asked))).then_some(now)
    }

    /// Whose idle upstream connections this client may use.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        let stamps = self.identity.stamps()?;
        Some(Owner { uid: stamps.uid, cgroup_id: stamps.cgroup.id, route: self.route })
    }

    async fn finish(self, ending: Ending) -> io::Result<()> {
        match ending {
            Ending::Ordinary | Ending::Expired => {
                if self.wire.has_unread()
                    && let Some((stream, _)) = self.wire.into_tunnel().await
                {
                    Box::pin(linger(stream)).await;
                }
                Ok(())
            }
            Ending::Reset => self.wire.into_tunnel().await.map_or(Ok(()), |(stream, _)| reset(&stream)),
            Ending::Tunnel(fault) => {
                let passage = policy_now(&self.worker).pass_unjudged();
                let Some(passage) = passage else {
                    // A reload came between the head that cannot be read and here.
                    record::closed(&self.worker, &self.identity, "unreadable");
                    return self.wire.into_tunnel().await.map_or(Ok(()), |(stream, _)| reset(&stream));
                };
                record::unjudged(&self.worker, &self.identity, self.endpoint, fault);
                let Some((stream, unread)) = self.wire.into_tunnel().await else { return Ok(()) };
                Box::pin(tunnel::run(&self.worker, passage, stream, &unread, self.route)).await
            }
        }
    }
}

/// The guard's connection shows what the caller's own would have shown: root's to a service that root alone may reach,
/// and a port below 1024 where the caller's was. For anybody else it is the guard's own, which is nobody's.
pub(super) fn route(identity: &Identity, policy: &Policy, endpoint: Endpoint) -> Route {
    let (client, to) = (identity.flow.client.0, identity.flow.original.0);
    // A container's root is not the host's, and its low ports are its own.
    let proof = match policy.catalogue().proof(endpoint) {
        _ if identity.origin == Origin::Container => Proof::None,
        Proof::Root if identity.uid() == Some(0) => Proof::Root,
        Proof::PrivilegedPort if client.port() < 1024 => Proof::PrivilegedPort,
        Proof::None | Proof::Root | Proof::PrivilegedPort => Proof::None,
    };
    Route { to, proof }
}

/// How strictly bytes are read: a policy that may refuse anything never tunnels what it cannot read.
#[must_use]
pub fn strictness(policy: &Policy) -> Strictness {
    if policy.can_refuse() { Strictness::Enforce } else { Strictness::Audit }
}

/// How long a client may keep silent where its first bytes decide what it speaks.
fn first_byte_patience(policy: &Policy) -> Duration {
    Duration::from_secs(policy.settings().limits.idle_seconds.into())
}

fn gate_limits(policy: &Policy) -> GateLimits {
    let limits = &policy.settings().limits;
    GateLimits { head_bytes: limits.head_bytes as usize, headers: limits.headers as usize }
}

/// Closes a connection whose client may still be sending.
pub(super) async fn linger(mut stream: TcpStream) {
    let drain = async {
        stream.shutdown().await?;
        let mut scratch = [0; 4096];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match stream.read(&mut scratch).await? {
                0 => break,
                length => left = left.saturating_sub(length),
            }
        }
        io::Result::Ok(())
    };
    // Whatever happens, the connection closes now.
    let _ = tokio::time::timeout(LINGER, drain).await;
}

/// Makes the close a reset: what a client sees whose connection the service itself refused.
pub(super) fn reset(stream: &TcpStream) -> io::Result<()> {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    Ok(nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger)?)
}

/// Closes a connection that is not served, without waiting for its client: by an end, and a reset behind it.
///
/// Not by a reset alone. Connection tracking keeps a connection that its server has reset under its addresses for some
/// seconds, redirect included, and would lead the guard's own next connection from the same source port back to the
/// guard: a flood of refused connections would take the service away from everybody. Of one that was ended it lets go.
fn turn_away(stream: &TcpStream) -> io::Result<()> {
    rustix::net::shutdown(stream, rustix::net::Shutdown::Write)?;
    reset(stream)
}

/// The policy in force at this moment.
#[must_use]
pub fn policy_now(worker: &Worker) -> Arc<Policy> {
    worker.shared.policy.load_full()
}
