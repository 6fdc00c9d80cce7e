//! Waiting for something that another process does, with a limit instead of a guess.

use std::thread;
use std::time::{Duration, Instant};

/// Asks again and again until there is an answer; panics, naming `what`, when the time is over.
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} for: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The same, for a condition.
pub fn until_true(what: &str, limit: Duration, mut ask: impl FnMut() -> bool) {
    until(what, limit, || ask().then_some(()));
}
