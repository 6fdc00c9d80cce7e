//! Shows what the proxy is doing: asks each worker for a copy of its counters, adds what is known elsewhere, and serves
//! that from a thread of its own.

use std::cell::RefCell;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};

use crate::observe::snapshot::{Facts, Workers};
use crate::observe::{Health, Moment, Snapshot, Tally, socket};

use super::worker::{Shared, Worker};

/// How long a worker is waited for. One that is busy answers within microseconds; one that hangs, never.
const PATIENCE: Duration = Duration::from_millis(500);

/// A request for a copy of one worker's counters.
pub type Ask = oneshot::Sender<Tally>;

/// What the proxy knows about its policy and from its keeper.
#[derive(Debug, Clone)]
pub struct Known {
    /// When the guard started.
    pub started: Moment,
    /// The version of the policy in force.
    pub policy_version: String,
    /// When it came into force.
    pub policy_loaded: Moment,
    /// Reloads that succeeded.
    pub reloads: u64,
    /// What the keeper said last.
    pub health: Health,
}

impl Known {
    /// At the start, with the first policy.
    #[must_use]
    pub fn at_start(policy_version: String) -> Self {
        let now = Moment::now();
        Self { started: now, policy_version, policy_loaded: now, reloads: 0, health: Health::default() }
    }
}

/// Where readers come in.
#[derive(Debug, Default)]
pub struct Doors {
    /// The unix socket, if the policy names one.
    pub unix: Option<StdUnixListener>,
    /// The loopback port, if it names one.
    pub loopback: Option<StdTcpListener>,
}

/// Starts the thread; `None` if nobody could read what it says.
pub fn start(
    shared: &Arc<Shared>,
    workers: Vec<mpsc::Sender<Ask>>,
    doors: Doors,
) -> io::Result<Option<JoinHandle<()>>> {
    if doors.unix.is_none() && doors.loopback.is_none() {
        return Ok(None);
    }
    let shared = Arc::clone(shared);
    let observe = move || {
        if let Err(error) = run(shared, workers, doors) {
            tracing::error!(%error, "the status is not shown any more");
        }
    };
    thread::Builder::new().name("observer".into()).stack_size(256 << 10).spawn(observe).map(Some)
}

fn run(shared: Arc<Shared>, workers: Vec<mpsc::Sender<Ask>>, doors: Doors) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let unix = doors.unix.map(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        });
        let loopback = doors.loopback.map(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        });
        let mut draining = shared.draining.clone();
        let last = RefCell::new(vec![Tally::default(); workers.len()]);
        let observer = Observer { shared, workers, last };
        tokio::select! {
            () = socket::serve(observer, unix.transpose()?, loopback.transpose()?) => {}
            _ = draining.wait_for(Option::is_some) => {}
        }
        Ok(())
    })
}

struct Observer {
    shared: Arc<Shared>,
    workers: Vec<mpsc::Sender<Ask>>,
    /// What each worker said last: the figures of one that hangs must not seem to begin anew.
    last: RefCell<Vec<Tally>>,
}

impl socket::Source for Observer {
    async fn snapshot(&self) -> Snapshot {
        let mut silent = 0;
        for (at, worker) in self.workers.iter().enumerate() {
            match tokio::time::timeout(PATIENCE, copy_of(worker)).await {
                Ok(Some(tally)) => {
                    if let Some(last) = self.last.borrow_mut().get_mut(at) {
                        *last = tally;
                    }
                }
                Ok(None) | Err(_) => silent += 1,
            }
        }
        let (known, policy) = (self.shared.known.load(), self.shared.policy.load());
        let facts = Facts {
            started: known.started,
            mode: policy.mode(),
            policy_version: known.policy_version.clone(),
            policy_loaded: known.policy_loaded,
            reloads: known.reloads,
            health: known.health.clone(),
            endpoints: policy.catalogue().endpoints(),
            open_connections: self.shared.census.total(),
            lost_events: self.shared.sink.dropped(),
            log_failing: self.shared.sink.is_failing(),
            workers: Workers { count: self.workers.len(), silent },
        };
        Snapshot::of(&facts, &self.last.borrow(), Moment::now())
    }
}

async fn copy_of(worker: &mpsc::Sender<Ask>) -> Option<Tally> {
    let (ask, answer) = oneshot::channel();
    worker.send(ask).await.ok()?;
    answer.await.ok()
}

/// A worker's side: gives a copy to whoever asks.
pub async fn tell(worker: Rc<Worker>, mut asks: mpsc::Receiver<Ask>) {
    while let Some(ask) = asks.recv().await {
        // Whoever asked may have given up meanwhile.
        let _ = ask.send(worker.counters.copy());
    }
}
