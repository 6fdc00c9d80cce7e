//! How the workers end: nobody who is being served is cut off, and nobody who comes meanwhile is turned away.
//!
//! Until the requests of before are answered the workers go on accepting. Then all of them stop at the same moment: a
//! worker that stopped before the others would leave connections waiting in its listeners for as long as those take.
//! What connects after that waits in the listeners, which the service manager keeps for the next guard.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::worker::{Shared, Worker};

/// How long the workers go on accepting at least: connections that the redirect has already led here are theirs.
const LAST_CALL: Duration = Duration::from_millis(50);

/// What is left of the time for the requests that came last.
const FINISH: Duration = Duration::from_secs(1);

/// How long a new connection may take to ask something, once the guard ends.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// How often it is looked who is still there.
const STEP: Duration = Duration::from_millis(5);

/// What the workers agree on.
#[derive(Debug)]
pub struct Farewell {
    /// Workers with requests of before.
    busy: AtomicUsize,
    /// Whether nothing is accepted any more.
    closed: watch::Sender<bool>,
}

impl Farewell {
    /// An agreement between that many workers.
    #[must_use]
    pub fn between(workers: usize) -> Self {
        Self { busy: AtomicUsize::new(workers), closed: watch::Sender::new(false) }
    }

    /// Waits until no worker has a request of before, but not for longer than the deadline allows; then nothing is
    /// accepted any more. Blocks.
    pub fn close(&self, deadline: Instant) {
        while self.busy.load(Ordering::Acquire) > 0 && Instant::now() + FINISH < deadline {
            thread::sleep(STEP);
        }
        self.closed.send_replace(true);
    }

    /// Returns when nothing is to be accepted any more.
    pub async fn closed(&self) {
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }
}

/// Returns when a guard that ends has taken a connection's first request: what is under way is answered, and so is
/// whoever has just come; the answer tells that it is the last one. Before its first request hyper would close it.
pub async fn is_last_request(shared: &Shared, asked: &Cell<bool>) {
    drop(shared.draining.clone().wait_for(Option::is_some).await);
    while !asked.get() {
        tokio::time::sleep(STEP).await;
    }
}

/// One worker's part: to finish what is under way, but not beyond the deadline.
pub async fn take_part(worker: &Worker, deadline: Instant) {
    let told = Instant::now();
    let before = worker.roll.next();
    while told.elapsed() < LAST_CALL || (worker.roll.has_before(before) && Instant::now() < deadline) {
        worker.roll.dismiss(FIRST_REQUEST, Instant::now());
        tokio::time::sleep(STEP).await;
    }
    let farewell = &worker.shared.farewell;
    farewell.busy.fetch_sub(1, Ordering::AcqRel);
    farewell.closed().await;
    while !worker.roll.is_quiet() && Instant::now() < deadline {
        worker.roll.dismiss(FIRST_REQUEST, Instant::now());
        tokio::time::sleep(STEP).await;
    }
    worker.roll.end();
    tokio::task::yield_now().await;
}
