//! Whose session token is it? A token that one caller fetched is worth nothing to another.
//!
//! A metadata service binds a token to the machine, not to a process: whoever reads it in a log, in another process's
//! memory or in the answer to a forged request may use it until it expires. The guard sees who fetches a token and who
//! shows it, and remembers that, for all workers together and across reloads.
//!
//! * What is kept is a digest under a key that this run made up and never tells: neither memory that leaks nor the
//!   owner of a token tells a token.
//! * It is bounded. When it is full, the oldest token of the user with the most of them goes, so that no user can push
//!   out the tokens of all others.
//! * Tokens that were fetched before the guard started are not in it. Until the longest lifetime after that start has
//!   passed, such a token is let through, and from then on belongs to the first caller whom the service took it from:
//!   refusing it would break programs that run, and whoever stole it before cannot share it with its owner any more.
//!   An owner who comes second is told what an expired token is told, and fetches another.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::caller::Stamps;
use crate::cloud::{Session, TokenHolder};
use crate::policy::unit_path;

/// How many tokens are remembered. A machine's agents have some dozens; each takes about 200 bytes.
pub const REMEMBERED: usize = 4096;

/// The longest answer to a token request that is read for its token. Signed tokens have up to 4 KiB.
const ANSWER_BYTES: usize = 16 << 10;

/// To whom a token belongs: a unit that is started again still is itself, whatever else made a socket is its cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    uid: u32,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A unit of the system's own manager, by its path. Users cannot make such paths up, so they stay short.
    Unit(Arc<str>),
    /// Any other cgroup, by its id.
    Cgroup(u64),
    /// The guard itself: a token that it fetched for others is nobody's.
    Guard,
}

impl Owner {
    /// The owner that these stamps make.
    #[must_use]
    pub fn of(stamps: &Stamps) -> Self {
        let place = match unit_path(stamps.cgroup.path.as_str()) {
            Some(unit) => Place::Unit(unit.into()),
            None => Place::Cgroup(stamps.cgroup.id),
        };
        Self { uid: stamps.uid, place }
    }

    /// The guard, whose own tokens no caller may show.
    #[must_use]
    pub const fn guard() -> Self {
        Self { uid: u32::MAX, place: Place::Guard }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Unit(path) => {
                write!(f, "uid {} in {}", self.uid, path.rsplit('/').next().unwrap_or_default())
            }
            Place::Cgroup(id) => write!(f, "uid {} in cgroup {id}", self.uid),
            Place::Guard => f.write_str("the guard itself"),
        }
    }
}

/// What was found out about a token that somebody shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whose it is.
    pub holder: TokenHolder,
    /// Who fetched it, if that was another.
    pub fetched_by: Option<Owner>,
}

/// The tokens that are known, and to whom they belong.
pub struct Tokens {
    key: [u8; 32],
    started: Instant,
    capacity: usize,
    table: Mutex<Table>,
}

type Fingerprint = [u8; 32];

#[derive(Default)]
struct Table {
    known: HashMap<Fingerprint, Entry>,
    /// Per uid, its tokens from the oldest on.
    queues: HashMap<u32, VecDeque<Fingerprint>>,
}

struct Entry {
    owner: Owner,
    expires: Instant,
}

impl Tokens {
    /// An empty table that began at this moment, with the key of this run.
    #[must_use]
    pub fn new(key: [u8; 32], started: Instant, capacity: usize) -> Self {
        Self { key, started, capacity, table: Mutex::default() }
    }

    /// Remembers who fetched a token, for its lifetime.
    pub fn learn(&self, token: &[u8], owner: Owner, lifetime: Duration, now: Instant) {
        let entry = Entry { owner, expires: now + lifetime };
        self.table().remember(self.fingerprint(token), entry, self.capacity);
    }

    /// Whose token it is that a caller shows. Nobody has to be known: what an unattributed caller shows is never its own.
    #[must_use]
    pub fn look_up(&self, token: &[u8], caller: Option<&Owner>, session: &Session, now: Instant) -> Finding {
        let fingerprint = self.fingerprint(token);
        let table = self.table();
        let (holder, fetched_by) = match table.owner(&fingerprint, now) {
            Some(owner) if caller == Some(owner) => (TokenHolder::Own, None),
            Some(owner) => (TokenHolder::Foreign, Some(owner.clone())),
            None if now < self.end_of_grace(session) => (TokenHolder::Older, None),
            None => (TokenHolder::Unknown, None),
        };
        Finding { holder, fetched_by }
    }

    /// Gives a token that is older than the guard to the first caller whom the service took it from.
    pub fn adopt(&self, token: &[u8], owner: Owner, session: &Session, now: Instant) {
        let (fingerprint, end) = (self.fingerprint(token), self.end_of_grace(session));
        let mut table = self.table();
        if now < end && table.owner(&fingerprint, now).is_none() {
            // It is at least as old as the guard, so it does not outlive the grace.
            table.remember(fingerprint, Entry { owner, expires: end }, self.capacity);
        }
    }

    /// Until when a token may be older than the guard.
    fn end_of_grace(&self, session: &Session) -> Instant {
        self.started + Duration::from_secs(session.ttl.1.into())
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table().known.len()
    }

    /// Whether none is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key stands before the token and has a fixed length, and no digest ever leaves the process: more than that
    /// (HMAC) would guard against questions that nobody can ask.
    fn fingerprint(&self, token: &[u8]) -> Fingerprint {
        Sha256::new().chain_update(self.key).chain_update(token).finalize().into()
    }

    /// A thread that failed in here left nothing half done that would matter.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tokens {
    /// Neither the key nor a digest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("known", &self.len()).finish_non_exhaustive()
    }
}

impl Table {
    /// Who fetched a token. Once it has expired, the service is right to say so.
    fn owner(&self, fingerprint: &Fingerprint, now: Instant) -> Option<&Owner> {
        self.known.get(fingerprint).filter(|entry| now < entry.expires).map(|entry| &entry.owner)
    }

    fn remember(&mut self, fingerprint: Fingerprint, entry: Entry, capacity: usize) {
        self.forget(&fingerprint);
        while self.known.len() >= capacity.max(1) {
            self.forget_oldest_of_the_richest();
        }
        self.queues.entry(entry.owner.uid).or_default().push_back(fingerprint);
        self.known.insert(fingerprint, entry);
    }

    fn forget(&mut self, fingerprint: &Fingerprint) {
        let Some(entry) = self.known.remove(fingerprint) else { return };
        if let Some(queue) = self.queues.get_mut(&entry.owner.uid) {
            queue.retain(|known| known != fingerprint);
        }
    }

    fn forget_oldest_of_the_richest(&mut self) {
        let richest = self.queues.iter().max_by_key(|(uid, queue)| (queue.len(), **uid)).map(|(uid, _)| *uid);
        let Some(queue) = richest.and_then(|uid| self.queues.get_mut(&uid)) else { return };
        if let Some(oldest) = queue.pop_front() {
            self.known.remove(&oldest);
        }
        self.queues.retain(|_, queue| !queue.is_empty());
    }
}

/// Reads a token out of the answer to a token request while that streams to its caller, who waits for nothing.
pub struct Learner {
    tokens: Arc<Tokens>,
    session: Arc<Session>,
    owner: Owner,
    lifetime: Duration,
    seen: Vec<u8>,
    is_too_long: bool,
}

impl Learner {
    /// A learner for one answer. The lifetime is what was asked for, within the service's bounds.
    #[must_use]
    pub fn new(tokens: Arc<Tokens>, session: Arc<Session>, owner: Owner, asked_seconds: Option<u32>) -> Self {
        let (least, most) = session.ttl;
        let seconds = asked_seconds.unwrap_or(most).clamp(least, most);
        let lifetime = Duration::from_secs(seconds.into());
        Self { tokens, session, owner, lifetime, seen: Vec::new(), is_too_long: false }
    }

    /// Sees a piece of the answer's body pass.
    pub fn see(&mut self, piece: &[u8]) {
        self.is_too_long |= self.seen.len() + piece.len() > ANSWER_BYTES;
        if !self.is_too_long {
            self.seen.extend_from_slice(piece);
        }
    }

    /// The body has ended, and its last byte has not been passed on yet: who has the token is known before anybody can
    /// show it.
    pub fn finish(self) {
        if self.is_too_long {
            return;
        }
        if let Some(token) = self.session.token_in(&self.seen) {
            self.tokens.learn(token.as_bytes(), self.owner, self.lifetime, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
