//! The decoy cloud: a metadata service that answers as AWS, GCP, Azure, DigitalOcean and some others do, and remembers
//! every request that reached it.
//!
//! It is the project's own test double and is no part of the product. It normalises paths generously (one percent
//! decoding, doubled slashes, dot segments), because the real services must be assumed to do so: a spelling that
//! slips past the guard gets real-looking credentials here, and the test that sent it fails. Everything secret that
//! it hands out contains [`SECRET_MARK`], so that a test can look for leaks with one search.

mod aws;
mod azure;
mod digitalocean;
mod documents;
mod fault;
mod gcp;
mod http;
mod kin;

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use fault::Fault;
pub use http::{Request, Response};

/// Part of every secret value that the decoy cloud hands out.
pub const SECRET_MARK: &str = "decoy-secret";

/// How the decoy cloud is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// AWS answers 401 to every read without a session token (IMDSv2 only).
    pub v2_only: bool,
    /// No token lives longer than so many seconds, whatever is asked for.
    pub token_seconds: Option<u64>,
    /// Answers bring back the token that the request showed, as a careless service's might.
    pub echoes_token: bool,
    /// `/metadata/v1.json` is UpCloud's, not DigitalOcean's.
    pub is_upcloud: bool,
}

/// One request as it reached the decoy cloud.
#[derive(Debug, Clone)]
pub struct Received {
    /// The decoy cloud's own address that was asked.
    pub listener: SocketAddr,
    /// Who asked: the guard, or the client itself where nothing stands between.
    pub peer: SocketAddr,
    /// The head's bytes exactly as they came, up to and including the empty line.
    pub head: Vec<u8>,
    /// The body's length, framing removed.
    pub body: usize,
}

impl Received {
    /// The head as text, each byte one character, so that no byte is lost.
    pub fn text(&self) -> String {
        self.head.iter().map(|&byte| char::from(byte)).collect()
    }
}

type Watcher = Box<dyn Fn(&Received) + Send + Sync>;

/// What all connections share.
pub struct State {
    options: Options,
    received: Mutex<Vec<Received>>,
    fault: Mutex<Fault>,
    tokens: Mutex<HashMap<String, Instant>>,
    next_token: AtomicU64,
    /// Counts changes of the metadata; a waiting long poll is answered when it grows.
    version: Mutex<u64>,
    changed: Condvar,
    abandoned: AtomicUsize,
    /// Open connections by number, so that stopping can cut them.
    streams: Mutex<HashMap<u64, TcpStream>>,
    next_stream: AtomicU64,
    watcher: Watcher,
}

/// A poisoned lock only means that another test thread failed while it held it; the data is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn new(options: Options, watcher: Watcher) -> Self {
        Self {
            options,
            received: Mutex::default(),
            fault: Mutex::default(),
            tokens: Mutex::default(),
            next_token: AtomicU64::new(1),
            version: Mutex::new(1),
            changed: Condvar::new(),
            abandoned: AtomicUsize::new(0),
            streams: Mutex::default(),
            next_stream: AtomicU64::new(0),
            watcher,
        }
    }

    fn record(&self, request: &Request, stream: &TcpStream) -> io::Result<()> {
        let received = Received {
            listener: canonical(stream.local_addr()?),
            peer: canonical(stream.peer_addr()?),
            head: request.head.clone(),
            body: request.body.len(),
        };
        (self.watcher)(&received);
        lock(&self.received).push(received);
        Ok(())
    }

    fn issue_token(&self, lifetime: Duration) -> String {
        let number = self.next_token.fetch_add(1, Ordering::Relaxed);
        let token = format!("{SECRET_MARK}-session-{number:08}==");
        lock(&self.tokens).insert(token.clone(), Instant::now() + lifetime);
        token
    }

    fn token_is_valid(&self, token: &str) -> bool {
        lock(&self.tokens).get(token).is_some_and(|expiry| Instant::now() < *expiry)
    }

    /// Waits until the metadata is newer than `seen`, or the time is over. Returns the version then.
    fn wait_for_change(&self, seen: u64, limit: Option<Duration>) -> u64 {
        let limit = limit.unwrap_or(Duration::from_hours(1));
        let version = lock(&self.version);
        let waited = self.changed.wait_timeout_while(version, limit, |version| *version <= seen);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// A running decoy cloud. Stops when dropped.
pub struct Simulator {
    state: Arc<State>,
    listeners: Vec<Arc<TcpListener>>,
    threads: Vec<JoinHandle<()>>,
}

impl Simulator {
    /// Listens on every address, in the network namespace of the calling thread.
    pub fn start(addresses: &[SocketAddr], options: Options) -> io::Result<Self> {
        Self::start_watched(addresses, options, |_| {})
    }

    /// The same, and tells `watcher` of every request as it arrives.
    pub fn start_watched(
        addresses: &[SocketAddr],
        options: Options,
        watcher: impl Fn(&Received) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let state = Arc::new(State::new(options, Box::new(watcher)));
        let mut simulator = Self { state, listeners: Vec::new(), threads: Vec::new() };
        for address in addresses {
            let listener = Arc::new(TcpListener::bind(address)?);
            simulator.listeners.push(Arc::clone(&listener));
            let state = Arc::clone(&simulator.state);
            simulator.threads.push(thread::spawn(move || accept(&listener, &state)));
        }
        Ok(simulator)
    }

    /// Every request so far, oldest first.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.state.received).clone()
    }

    /// From the next request on, misbehave so.
    pub fn set_fault(&self, fault: Fault) {
        *lock(&self.state.fault) = fault;
    }

    /// The metadata changes: waiting long polls are answered.
    pub fn change(&self) {
        *lock(&self.state.version) += 1;
        self.state.changed.notify_all();
    }

    /// From now on, no token that was handed out is good any more.
    pub fn revoke_tokens(&self) {
        lock(&self.state.tokens).clear();
    }

    /// How many clients left while [`Fault::Hang`] kept them waiting.
    pub fn abandoned(&self) -> usize {
        self.state.abandoned.load(Ordering::SeqCst)
    }

    /// Stops listening: the kernel refuses further connections. Open ones are cut.
    pub fn stop(&mut self) {
        for listener in self.listeners.drain(..) {
            // A shut listening socket wakes its blocked accept; there is no gentler way without polling.
            let _ = nix::sys::socket::shutdown(
                std::os::fd::AsRawFd::as_raw_fd(&*listener),
                nix::sys::socket::Shutdown::Both,
            );
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for (_, stream) in lock(&self.state.streams).drain() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        self.change();
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    while let Ok((stream, _)) = listener.accept() {
        let number = state.next_stream.fetch_add(1, Ordering::Relaxed);
        if let Ok(copy) = stream.try_clone() {
            lock(&state.streams).insert(number, copy);
        }
        let state = Arc::clone(state);
        thread::spawn(move || {
            // A client that breaks the connection is no fault of the decoy cloud.
            let _ = converse(stream, &state);
            lock(&state.streams).remove(&number);
        });
    }
}

fn converse(mut stream: TcpStream, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = Request::read(&mut reader, &mut stream)? {
        state.record(&request, &stream)?;
        let fault = lock(&state.fault).clone();
        match fault {
            Fault::None | Fault::CloseAfter => answer(&request, state).write(&mut stream, &request)?,
            Fault::Hang => {
                wait_for_leave(&mut reader);
                state.abandoned.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
            Fault::Slow(delay) => {
                thread::sleep(delay);
                answer(&request, state).write(&mut stream, &request)?;
            }
            Fault::Reset
            | Fault::Close
            | Fault::ResetMidBody
            | Fault::BigBody(_)
            | Fault::Chunked
            | Fault::Unframed
            | Fault::Raw(_)
            | Fault::Pause(_)
            | Fault::Status(_) => fault.apply(&mut stream, &request)?,
        }
        if request.closes() || lock(&state.fault).closes() {
            break;
        }
    }
    Ok(())
}

fn wait_for_leave(reader: &mut impl Read) {
    // Whether it closes or resets is the same here.
    let _ = io::copy(reader, &mut io::sink());
}

/// The decoy cloud's answer: the first cloud that knows the path gives it.
fn answer(request: &Request, state: &State) -> Response {
    let segments = request.segments();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    if let Some(response) = documents::answer(request, &segments, state) {
        return response;
    }
    if let Some(response) = kin::answer(request, &segments, state) {
        return response;
    }
    match segments.as_slice() {
        [] if request.header("metadata-flavor").is_some() => gcp::root(),
        ["computeMetadata", ..] => gcp::answer(request, &segments, state),
        ["metadata", "v1" | "v1.json", ..] => digitalocean::answer(request, &segments),
        [first, ..] if first.eq_ignore_ascii_case("metadata") => azure::answer(request, &segments),
        _ => aws::answer(request, &segments, state),
    }
}
