//! Bytes that are passed on unread: what audit mode cannot judge, and what goes through opaque doors.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional_with_sizes,
};
use tokio::net::TcpStream;

use crate::audit::event::Outcome;
use crate::caller::Why;
use crate::cloud::{Door, Endpoint};
use crate::policy::{Mode, Passage, Policy};

use super::connection::{linger, policy_now, reset, route};
use super::identity::Identity;
use super::record;
use super::stream::Stream;
use super::upstream::{self, Route};
use super::worker::Worker;

/// The port on which a refusal is a TLS alert.
const HTTPS: u16 = 443;

/// A fatal TLS alert, `handshake_failure` (RFC 8446, section 6): clients that know a plain door fall back to it,
/// where they would take a reset for the end of the service.
const TLS_ALERT: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x28];

/// Buffers of a tunnel, in bytes for each direction.
const BUFFER: usize = 16 << 10;

/// How old a look at the client's processes may be for bytes to pass, where the passage rests on them. What passes unread
/// has no requests at which to look again.
const FRESH: Duration = Duration::from_millis(200);

/// A passage that rests on which processes hold the client's socket.
#[derive(Clone, Copy)]
struct Watched<'a> {
    worker: &'a Worker,
    identity: &'a Identity,
}

impl Watched<'_> {
    /// Whether the policy in force would give the passage to whoever holds the socket now.
    async fn holds(self) -> bool {
        let policy = policy_now(self.worker);
        let caller = self.identity.caller_with_processes(self.worker, policy.needs_digest()).await;
        policy.knock(caller).1.is_some()
    }
}

/// When the client's processes were last looked at, and whether the passage held.
struct Look<'a> {
    watched: Option<Watched<'a>>,
    last: Cell<Instant>,
}

impl Look<'_> {
    /// Whether bytes that have come may pass.
    async fn lets_pass(&self) -> bool {
        let Some(watched) = self.watched.filter(|_| self.last.get().elapsed() > FRESH) else { return true };
        let holds = watched.holds().await;
        self.last.set(Instant::now());
        if !holds {
            record::closed(watched.worker, watched.identity, "caller-changed");
        }
        holds
    }
}

/// Why bytes pass no further, though neither end has ended.
enum Stopped {
    /// The passage holds no longer.
    Cut,
    Failed(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Passes bytes on until their source ends, which is passed on, too.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    look: &Look<'_>,
) -> Result<(), Stopped> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        if !look.lets_pass().await {
            return Err(Stopped::Cut);
        }
        to.write_all(buffer.get(..length).unwrap_or_default()).await?;
        to.flush().await?;
    }
}

/// Both directions, until both have ended or one is stopped.
async fn pass_both(client: &mut TcpStream, service: &mut Stream, look: &Look<'_>) -> Result<(), Stopped> {
    let (from_client, to_client) = client.split();
    let (from_service, to_service) = tokio::io::split(service);
    let (out, back) = (pass(from_client, to_service, look), pass(from_service, to_client, look));
    tokio::try_join!(out, back).map(drop)
}

/// Connects the client to where it meant to go, and passes bytes on until both ends are done, until a reloaded policy would
/// not give this passage again, or until another program holds the client's socket where the passage rests on that.
async fn run_watched(
    worker: &Worker,
    passage: Passage,
    mut client: TcpStream,
    unread: &[u8],
    route: Route,
    watched: Option<Watched<'_>>,
) -> io::Result<()> {
    let Ok(mut service) = upstream::open_unread(worker, &passage, route).await else {
        return reset(&client);
    };
    service.write_all(unread).await?;
    let mut reloads = worker.shared.reloads.subscribe();
    let ends = async {
        while passage.holds(&policy_now(worker)) {
            if reloads.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let look = Look { watched, last: Cell::new(Instant::now()) };
    let passed = tokio::select! {
        passed = pass_both(&mut client, &mut service, &look) => passed,
        () = ends => Err(Stopped::Cut),
    };
    match passed {
        Ok(()) => Ok(()),
        Err(Stopped::Failed(error)) => Err(error),
        Err(Stopped::Cut) => reset(&client),
    }
}

/// The same for what audit mode cannot read, whoever the client is.
pub async fn run(
    worker: &Worker,
    passage: Passage,
    client: TcpStream,
    unread: &[u8],
    route: Route,
) -> io::Result<()> {
    run_watched(worker, passage, client, unread, route, None).await
}

/// Leads the guard's own connection on that has come back to it: connection tracking still knew another one from its
/// source port, one that a listener had reset, and treated it alike. What it carries was permitted when it left, and the
/// redirect exempts the same uid.
pub async fn lead_on(mut own: TcpStream, to: SocketAddr) -> io::Result<()> {
    let Ok(mut service) = upstream::open_again(to).await else { return reset(&own) };
    copy_bidirectional_with_sizes(&mut own, &mut service, BUFFER, BUFFER).await.map(drop)
}

/// How long a client may take to say its first word or to leave; a service that speaks first comes this much later.
const FIRST_WORD: Duration = Duration::from_millis(100);

/// Whether the client connected and went away: it has asked nothing, as behind a door where the guard can read. So does
/// `imds-guard verify`. Who only ends its half of the connection is still there.
async fn has_left_without_a_word(worker: &Worker, identity: &Identity, client: &TcpStream) -> bool {
    let first = tokio::time::timeout(FIRST_WORD, client.peek(&mut [0])).await;
    let is_silent = matches!(first, Ok(Ok(0) | Err(_)));
    is_silent && matches!(worker.diag.borrow_mut().stamps(identity.flow), Err(Why::NoSocket | Why::Orphan))
}

/// A door behind which the guard cannot read: the caller alone decides.
pub async fn opaque(
    worker: &Rc<Worker>,
    identity: &Rc<Identity>,
    policy: &Policy,
    endpoint: Endpoint,
    mut client: TcpStream,
) -> io::Result<()> {
    if has_left_without_a_word(worker, identity, &client).await {
        return Ok(());
    }
    let asked_for_processes = policy.opaque_needs_processes(&identity.caller());
    let caller = if asked_for_processes {
        identity.caller_with_processes(worker, policy.needs_digest()).await
    } else {
        identity.caller()
    };
    let (decision, passage) = policy.knock(caller);
    let slot = worker.shared.sink.reserve();
    // Behind the door may be credentials, and in enforce mode none is given out without a record.
    let sink = &worker.shared.sink;
    let is_recorded = slot.is_some() && !sink.is_failing() || decision.mode() == Mode::Audit;
    if let Some(passage) = passage.filter(|_| is_recorded) {
        record::opaque(worker, identity, &decision, Outcome::Tunnelled, slot);
        let watched = asked_for_processes.then_some(Watched { worker, identity });
        let route = route(identity, policy, endpoint);
        return run_watched(worker, passage, client, &[], route, watched).await;
    }
    record::opaque(worker, identity, &decision, Outcome::Refused, slot);
    if endpoint.port != HTTPS {
        return reset(&client);
    }
    client.write_all(&TLS_ALERT).await?;
    linger(client).await;
    Ok(())
}

/// What a client speaks at a door where either may be meant, by the first bytes that it sends: HTTP/1 begins with a
/// method, TLS with a record's type, HTTP/2 with `PRI`. What is not plainly HTTP/1 is opaque, which asks for more. A
/// client that sends less is one that the gate will deal with, whatever follows.
pub async fn spoken(client: &TcpStream) -> io::Result<Door> {
    let mut first = [0; 3];
    let length = client.peek(&mut first).await?;
    let is_method = first.iter().take(length).all(u8::is_ascii_uppercase) && first != *b"PRI";
    Ok(if is_method { Door::Http } else { Door::Opaque })
}
