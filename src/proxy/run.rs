//! The proxy's life: take the keeper's order, drop everything, serve.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustix::net::RecvFlags;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::audit::{Destination, Sink};
use crate::caller::Origin;
use crate::caller::stamps::SockDiag;
use crate::keeper::bundle::{self, Bundle};
use crate::keeper::certificates::Certificates;
use crate::keeper::protocol::{self, LogKind, MESSAGE_BYTES, Order, Question};
use crate::observe::{Counters, Moment};
use crate::policy::Policy;

use super::connection;
use super::descriptors;
use super::farewell::{self, Farewell};
use super::flood::Floods;
use super::keeper_line::KeeperLine;
use super::limits::{Census, LookupBudget, Roll};
use super::observer::{self, Ask, Doors, Known};
use super::pace::Pace;
use super::sandbox::{self, SandboxError};
use super::tls::Tls;
use super::tokens::{self, Tokens};
use super::upgrade::OwnTokens;
use super::upstream::Pool;
use super::worker::{Shared, Worker};
use super::{partial, record};

/// How often overdue connections are looked for, while there are any.
const SWEEP: Duration = Duration::from_secs(1);

/// How long a worker waits after a failed accept: descriptors that are used up do not come back by asking.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// How many connections a worker accepts before those that it has get their turn.
const ACCEPTS_PER_TURN: u32 = 8;

/// How many questions about other network namespaces a worker has under way, of the places that its line has.
const FOREIGN_TURNS: usize = 16;

/// Why the proxy cannot serve.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// Somebody started it by hand, or the keeper is of another version.
    #[error("imds-guard proxy is started by imds-guard run, with its orders on standard input")]
    Orders,
    /// The keeper checked the policy, and yet it does not compile.
    #[error("the policy that the keeper sent does not compile")]
    Policy,
    /// The sandbox could not be closed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The system failed.
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
}

/// Runs the proxy until the keeper orders it to end, or is gone.
pub fn run() -> Result<(), ProxyError> {
    let orders = io::stdin().as_fd().try_clone_to_owned()?;
    let start = Start::receive(&orders)?;
    sandbox::drop_privileges(start.uid, start.gid)?;
    let policy = start.bundle.compile().map_err(|_| ProxyError::Policy)?.policy;
    let diags = start.channels.iter().map(|_| SockDiag::open()).collect::<io::Result<Vec<_>>>()?;
    // While the sandbox still lets it be asked for.
    let places = descriptors::places(&policy.settings().limits);
    let ports: BTreeSet<u16> = policy.catalogue().endpoints().iter().map(|endpoint| endpoint.port).collect();
    let fence = sandbox::lock_in(ports)?;
    if !fence.landlock {
        tracing::warn!(
            "this kernel has no Landlock: the proxy is held by its uid and the system-call filter alone"
        );
    }
    let tls = Tls::new(&policy, start.bundle.certificates(), None).map(Arc::new);
    serve(&orders, start, diags, policy, tls, places)
}

/// A listener, and from where its connections come.
type Listener = (StdListener, Origin);

/// The first order with everything that came along.
struct Start {
    uid: u32,
    gid: u32,
    bundle: Bundle,
    log: Destination,
    listeners: Vec<StdListener>,
    doors: Doors,
    for_containers: Vec<StdListener>,
    channels: Vec<OwnedFd>,
    alive_ms: u64,
}

impl Start {
    fn receive(orders: &OwnedFd) -> Result<Self, ProxyError> {
        let (order, descriptors) = receive(orders).ok_or(ProxyError::Orders)?;
        let Order::Start { uid, gid, log, listeners, status, metrics, workers, alive_ms, containers } = order
        else {
            return Err(ProxyError::Orders);
        };
        if descriptors.len() != 2 + listeners + usize::from(status) + usize::from(metrics) + workers {
            return Err(ProxyError::Orders);
        }
        let for_containers = if containers { listeners_for_containers(orders)? } else { Vec::new() };
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(ProxyError::Orders);
        Ok(Self {
            uid,
            gid,
            bundle: Bundle::unseal(next()?)?,
            log: destination(log, next()?),
            listeners: (0..listeners).map(|_| Ok(next()?.into())).collect::<Result<_, ProxyError>>()?,
            doors: Doors {
                unix: status.then(&mut next).transpose()?.map(Into::into),
                loopback: metrics.then(&mut next).transpose()?.map(Into::into),
            },
            for_containers,
            channels: descriptors.collect(),
            alive_ms,
        })
    }
}

fn receive(orders: &OwnedFd) -> Option<(Order, Vec<OwnedFd>)> {
    let mut buffer = vec![0; MESSAGE_BYTES];
    let (length, descriptors) = protocol::receive(orders, &mut buffer, RecvFlags::empty()).ok()?;
    Some((serde_json::from_slice(buffer.get(..length)?).ok()?, descriptors))
}

fn listeners_for_containers(orders: &OwnedFd) -> Result<Vec<StdListener>, ProxyError> {
    match receive(orders) {
        Some((Order::Containers, listeners)) => Ok(listeners.into_iter().map(StdListener::from).collect()),
        _ => Err(ProxyError::Orders),
    }
}

fn destination(kind: LogKind, descriptor: OwnedFd) -> Destination {
    match kind {
        LogKind::Stream => Destination::Stream(File::from(descriptor)),
        LogKind::Journal => Destination::Journal(descriptor.into()),
    }
}

fn serve(
    orders: &OwnedFd,
    start: Start,
    diags: Vec<SockDiag>,
    policy: Policy,
    tls: Option<Arc<Tls>>,
    places: u32,
) -> Result<(), ProxyError> {
    let Start { uid, bundle, log, listeners, for_containers, doors, channels, alive_ms, .. } = start;
    let listeners = listeners.into_iter().map(|listener| (listener, Origin::Host));
    let listeners = listeners.chain(for_containers.into_iter().map(|listener| (listener, Origin::Container)));
    let (sink, writer) = Sink::start(log)?;
    let (drain, draining) = watch::channel(None);
    let count = channels.len();
    let shared = Arc::new(Shared {
        policy: ArcSwap::from_pointee(policy),
        known: ArcSwap::from_pointee(Known::at_start(bundle.version())),
        tls: ArcSwapOption::new(tls),
        interfaces: ArcSwap::default(),
        reloads: watch::Sender::new(0),
        answered: watch::Sender::new(false),
        alive_every: Duration::from_millis(alive_ms),
        sink: sink.clone(),
        memory: Arc::default(),
        tokens: Arc::new(Tokens::new(random()?, Instant::now(), tokens::REMEMBERED)),
        census: Arc::new(Census::default()),
        pace: Pace::default(),
        own_uid: uid,
        places,
        draining,
        farewell: Farewell::between(count),
        run_id: u32::from_le_bytes(random()?),
    });
    let mut workers = Vec::new();
    let mut asked = Vec::new();
    let mut dealt: Vec<Vec<Listener>> = (0..count).map(|_| Vec::new()).collect();
    for (listener, worker) in listeners.into_iter().zip((0..count).cycle()) {
        if let Some(hand) = dealt.get_mut(worker) {
            hand.push(listener);
        }
    }
    for (index, ((channel, diag), listeners)) in channels.into_iter().zip(diags).zip(dealt).enumerate() {
        let shared = Arc::clone(&shared);
        let (ask, asks) = mpsc::channel(1);
        asked.push(ask);
        let worker = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || work(index, shared, channel, diag, listeners, asks, count))?;
        workers.push(worker);
    }
    let observer = observer::start(&shared, asked, doors)?;
    protocol::send(orders, &Question::Ready.encode(0), &[])?;
    let patience = obey(orders, &shared);
    let deadline = Instant::now() + patience;
    // Workers that have already ended hear nothing, which is what they are told.
    let _ = drain.send(Some(deadline));
    shared.farewell.close(deadline);
    for worker in workers {
        if !matches!(worker.join(), Ok(Ok(()))) {
            tracing::error!("a worker failed");
        }
    }
    let _ = observer.map(thread::JoinHandle::join);
    sink.close();
    let _ = writer.join();
    Ok(())
}

/// Carries out orders until the last one; how long requests under way may still take.
fn obey(orders: &OwnedFd, shared: &Shared) -> Duration {
    let mut reloads = 0;
    while let Some((order, mut descriptors)) = receive(orders) {
        match (order, descriptors.pop()) {
            (Order::Reload, Some(memory)) => {
                if reload(memory, shared) {
                    reloads += 1;
                    let _ = protocol::send(orders, &Question::Reloaded { count: reloads }.encode(0), &[]);
                }
            }
            (Order::Renew, Some(memory)) => renew(memory, shared),
            (Order::Interfaces(interfaces), None) => shared.interfaces.store(Arc::new(interfaces)),
            (Order::Health(health), None) => {
                change(&shared.known, |known| known.health = health);
                shared.answered.send_replace(true);
            }
            (Order::Rotate(kind), Some(descriptor)) => shared.sink.redirect(destination(kind, descriptor)),
            (Order::Drain { patience_ms }, _) => return Duration::from_millis(patience_ms),
            (order, _) => tracing::error!(?order, "an order came without what belongs to it"),
        }
    }
    Duration::ZERO
}

/// The keeper has compiled this very policy before; one that fails here would be a difference between two
/// processes of one program, and the old policy stays.
fn reload(memory: OwnedFd, shared: &Shared) -> bool {
    let compiled = Bundle::unseal(memory).ok().and_then(|bundle| Some((bundle.compile().ok()?, bundle)));
    let Some((compiled, bundle)) = compiled else {
        tracing::error!("the reloaded policy does not compile here; the old one stays in force");
        return false;
    };
    change_tls(&compiled.policy, bundle.certificates(), shared);
    shared.policy.store(Arc::new(compiled.policy));
    shared.memory.clear();
    shared.reloads.send_modify(|count| *count += 1);
    change(&shared.known, |known| {
        known.policy_version = bundle.version();
        known.policy_loaded = Moment::now();
        known.reloads += 1;
    });
    true
}

/// Changes what the status tells. Only the thread that obeys orders does.
fn change(known: &ArcSwap<Known>, how: impl FnOnce(&mut Known)) {
    let mut changed = Known::clone(&known.load());
    how(&mut changed);
    known.store(Arc::new(changed));
}

fn renew(memory: OwnedFd, shared: &Shared) {
    match bundle::unseal::<Option<Certificates>>(memory) {
        Ok(certificates) => change_tls(&shared.policy.load(), certificates.as_ref(), shared),
        Err(error) => tracing::error!(%error, "the renewed certificates cannot be read"),
    }
}

fn change_tls(policy: &Policy, certificates: Option<&Certificates>, shared: &Shared) {
    let before = shared.tls.load_full();
    shared.tls.store(Tls::new(policy, certificates, before.as_deref()).map(Arc::new));
}

/// Bytes that no other run is likely to have, and that nobody can guess.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

/// One worker: a runtime of its own on a thread of its own.
fn work(
    index: usize,
    shared: Arc<Shared>,
    channel: OwnedFd,
    diag: SockDiag,
    listeners: Vec<Listener>,
    asks: mpsc::Receiver<Ask>,
    workers: usize,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let draining = shared.draining.clone();
        let pool = Pool::for_at_most(shared.places as usize / workers.max(1));
        let worker = Rc::new(Worker {
            shared,
            diag: diag.into(),
            keeper: KeeperLine::new(channel)?,
            cgroups: std::cell::RefCell::default(),
            foreign: tokio::sync::Semaphore::new(FOREIGN_TURNS),
            resolving: tokio::sync::Mutex::new(()),
            pool: pool.into(),
            own_tokens: OwnTokens::default(),
            outbox: Rc::default(),
            roll: Rc::new(Roll::default()),
            lookups: LookupBudget::default(),
            resolutions: LookupBudget::default(),
            floods: Floods::default(),
            counters: Counters::default(),
            busy: tokio::sync::Notify::new(),
            redactions: tokio::sync::Semaphore::new(partial::AT_A_TIME),
            index,
            events: std::cell::Cell::new(0),
        });
        tokio::task::spawn_local(sweep(Rc::clone(&worker)));
        tokio::task::spawn_local(observer::tell(Rc::clone(&worker), asks));
        tokio::task::spawn_local(Rc::clone(&worker.outbox).empty_every_turn());
        if !worker.shared.alive_every.is_zero() {
            tokio::task::spawn_local(tell_alive(Rc::clone(&worker)));
        }
        for (listener, origin) in listeners {
            listener.set_nonblocking(true)?;
            tokio::task::spawn_local(accept(Rc::clone(&worker), TcpListener::from_std(listener)?, origin));
        }
        until_drained(&worker, draining).await;
        Ok(())
    })
}

async fn accept(worker: Rc<Worker>, listener: TcpListener, origin: Origin) {
    let shared = Arc::clone(&worker.shared);
    let mut closed = std::pin::pin!(shared.farewell.closed());
    let mut answered = shared.answered.subscribe();
    // Whoever comes earlier waits in the listener: a question that the keeper cannot take yet could run out of time, and
    // on a slow machine the first callers after a restart would count as unknown.
    tokio::select! {
        _ = answered.wait_for(|answered| *answered) => {}
        () = &mut closed => return,
    }
    let mut accepted_in_turn = 0;
    loop {
        if accepted_in_turn == ACCEPTS_PER_TURN {
            accepted_in_turn = 0;
            tokio::task::yield_now().await;
        }
        accepted_in_turn += 1;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // What connects from now on waits in the listener.
            () = &mut closed => return,
        };
        match accepted {
            Ok((stream, client)) => {
                worker.busy.notify_one();
                let (worker, arrival) = (Rc::clone(&worker), worker.roll.arrive());
                tokio::task::spawn_local(async move {
                    if let Err(error) = connection::serve(worker, stream, client, origin, arrival).await {
                        tracing::debug!(%error, "a connection failed");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Tells the keeper again and again that this worker is not stuck; the keeper tells the service manager.
async fn tell_alive(worker: Rc<Worker>) {
    loop {
        // A keeper that does not answer is the service manager's business.
        let _ = worker.keeper.ask(Question::Alive).await;
        tokio::time::sleep(worker.shared.alive_every).await;
    }
}

/// Once a second, while there is anything that could be overdue; an idle guard has no timer.
async fn sweep(worker: Rc<Worker>) {
    loop {
        worker.busy.notified().await;
        loop {
            tokio::time::sleep(SWEEP).await;
            let now = Instant::now();
            let limits = worker.shared.policy.load().settings().limits;
            worker.roll.sweep(&limits, now);
            worker.pool.borrow_mut().sweep(now);
            record::tell_floods(&worker);
            if worker.roll.is_empty() && worker.pool.borrow().is_empty() && worker.floods.is_empty() {
                break;
            }
        }
    }
}

/// Waits for the order to end, then for the requests under way, but not beyond the deadline.
async fn until_drained(worker: &Worker, mut draining: watch::Receiver<Option<Instant>>) {
    if let Ok(deadline) = draining.wait_for(Option::is_some).await.map(|deadline| *deadline) {
        farewell::take_part(worker, deadline.unwrap_or_else(Instant::now)).await;
        record::tell_floods(worker);
    }
}
