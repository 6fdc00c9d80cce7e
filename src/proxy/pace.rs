//! Turns. Where several ask, none of them gets all: a user who asks faster than its pace waits for its turn, while its
//! connection is not even read. Nobody is refused for it, and where one user asks alone it is never held back.
//!
//! A service of a cloud answers about a thousand packets a second and drops the rest, so a pace of a thousand requests a
//! second takes nothing from anybody who could have had it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::limits::Client;

/// For how long somebody who has asked is there to be considered.
const PRESENT: Duration = Duration::from_secs(1);

/// What a user may ask at once after a while of silence, as time at its pace.
const BURST: Duration = Duration::from_millis(250);

/// How many users' next turns are remembered.
const REMEMBERED: usize = 4096;

/// When each user's next turn is, in all workers together.
#[derive(Debug, Default)]
pub struct Pace(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    next: HashMap<Client, Instant>,
    /// Who asked last.
    last: Option<(Client, Instant)>,
    /// Who, other than that one, asked last.
    other: Option<(Client, Instant)>,
}

impl Pace {
    /// Notes a request that waits for nothing, so that others are not taken to be alone.
    pub fn note(&self, client: Client, now: Instant) {
        self.book().note(client, now);
    }

    /// How long this request has to wait for its turn, at a pace of so many a second. Root's never does: what a machine
    /// cannot do without runs as root.
    pub fn wait(&self, client: Client, per_second: u32, now: Instant) -> Duration {
        let mut book = self.book();
        book.note(client, now);
        if client == Client::User(Some(0)) || !book.has_others(client, now) {
            return Duration::ZERO;
        }
        book.take_turn(client, Duration::from_secs(1) / per_second.max(1), now)
    }

    /// A thread that failed in here left nothing half done that would matter.
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn note(&mut self, client: Client, now: Instant) {
        if self.last.is_some_and(|(last, _)| last != client) {
            self.other = self.last;
        }
        self.last = Some((client, now));
    }

    fn has_others(&self, client: Client, now: Instant) -> bool {
        let is_other = |(who, when): (Client, Instant)| who != client && now.duration_since(when) < PRESENT;
        self.last.is_some_and(is_other) || self.other.is_some_and(is_other)
    }

    /// Turns follow each other at the pace; those that were not taken in a while are lost.
    fn take_turn(&mut self, client: Client, step: Duration, now: Instant) -> Duration {
        let long_ago = now.checked_sub(BURST).unwrap_or(now);
        if self.next.len() >= REMEMBERED && !self.next.contains_key(&client) {
            self.next.retain(|_, next| *next > long_ago);
            if self.next.len() >= REMEMBERED {
                self.next.clear();
            }
        }
        let next = self.next.entry(client).or_insert(long_ago);
        *next = (*next).max(long_ago) + step;
        next.duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: Client = Client::User(Some(1000));
    const OTHER: Client = Client::User(Some(33));
    const ROOT: Client = Client::User(Some(0));

    #[test]
    fn whoever_asks_alone_is_never_held_back() {
        let (pace, now) = (Pace::default(), Instant::now());
        assert!((0..100_000).all(|_| pace.wait(APP, 1000, now) == Duration::ZERO));
    }

    #[test]
    fn beside_others_one_user_gets_its_pace_and_they_wait_for_nothing() {
        let (pace, start) = (Pace::default(), Instant::now());
        let mut served = 0;
        for millisecond in 0..2000_u64 {
            let now = start + Duration::from_millis(millisecond);
            if millisecond.is_multiple_of(100) {
                assert_eq!(pace.wait(ROOT, 1000, now), Duration::ZERO);
                assert_eq!(pace.wait(OTHER, 1000, now), Duration::ZERO);
            }
            let waits = (0..10).map(|_| pace.wait(APP, 1000, now));
            served += waits.filter(|wait| now + *wait < start + Duration::from_secs(2)).count();
        }
        assert!((2000..=2251).contains(&served), "{served} in two seconds at a thousand each");
    }

    #[test]
    fn root_is_never_held_back() {
        let (pace, now) = (Pace::default(), Instant::now());
        pace.wait(APP, 1, now);
        assert!((0..10_000).all(|_| pace.wait(ROOT, 1, now) == Duration::ZERO));
    }

    #[test]
    fn who_went_long_ago_holds_up_nobody() {
        let (pace, start) = (Pace::default(), Instant::now());
        pace.wait(OTHER, 1, start);
        let later = start + PRESENT;
        assert!((0..1000).all(|_| pace.wait(APP, 1, later) == Duration::ZERO));
    }

    #[test]
    fn a_crowd_of_users_does_not_fill_the_memory() {
        let (pace, now) = (Pace::default(), Instant::now());
        for uid in 1..20_000 {
            pace.wait(Client::User(Some(uid)), 1, now);
        }
        assert!(pace.book().next.len() <= REMEMBERED);
    }
}
