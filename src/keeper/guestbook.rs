//! What the keeper remembers of callers in other network namespaces: their listeners, what was counted of them, and
//! when it has to see to either again. Where no containers are configured it has no turn, and an idle keeper sleeps.

use std::time::{Duration, Instant};

use crate::cloud::Endpoint;
use crate::policy::Policy;
use crate::redirect::Led;

use super::error::KeeperError;

/// How often connections that were left alone are told.
const COUNT_PERIOD: Duration = Duration::from_mins(1);

/// The keeper's memory of containers.
#[derive(Debug)]
pub(super) struct Guestbook {
    /// The listeners that were opened for them; `None` if the guard was started without.
    doors: Option<Vec<Led>>,
    counted: u64,
    count_at: Option<Instant>,
    due: Option<Instant>,
}

impl Guestbook {
    pub(super) fn new(doors: Option<Vec<Led>>) -> Self {
        let due = doors.is_some().then(Instant::now);
        Self { doors, counted: 0, count_at: None, due }
    }

    /// The listeners of a reloaded policy's endpoints, empty if it speaks of no containers. The proxy gets none after its
    /// start.
    pub(super) fn doors_of(&self, policy: &Policy) -> Result<Vec<Led>, KeeperError> {
        if policy.containers().is_none() {
            return Ok(Vec::new());
        }
        let doors = self.doors.as_ref().ok_or(KeeperError::ContainersNeedRestart)?;
        let wanted: Vec<Endpoint> = policy.catalogue().endpoints();
        Ok(doors.iter().filter(|door| wanted.contains(&door.endpoint)).copied().collect())
    }

    /// How long until there is something to do, if ever.
    pub(super) fn next_turn(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    pub(super) fn is_due(&self) -> bool {
        self.doors.is_some() && self.due.is_none_or(|due| due <= Instant::now())
    }

    pub(super) fn is_time_to_count(&self) -> bool {
        self.count_at.is_none_or(|at| at <= Instant::now())
    }

    /// Takes what the kernel has counted since the table was loaded; how many of them have not been told yet.
    pub(super) fn counted(&mut self, now: u64) -> Option<u64> {
        let new = now.saturating_sub(self.counted);
        self.counted = now;
        (new > 0).then_some(new)
    }

    /// A table that is loaded anew starts with zero.
    pub(super) fn counts_from_zero(&mut self) {
        self.counted = 0;
    }

    /// When to look again: at what is kept for a while, and at the counter.
    pub(super) fn plan(&mut self, review: Option<Duration>, is_counting: bool) {
        let now = Instant::now();
        if is_counting && self.is_time_to_count() {
            self.count_at = Some(now + COUNT_PERIOD);
        }
        let count = is_counting.then_some(self.count_at).flatten();
        self.due = review.map(|after| now + after).into_iter().chain(count).min();
    }
}
