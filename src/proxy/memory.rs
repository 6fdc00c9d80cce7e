//! Answers that cannot change while the machine runs, kept to be given again (`cache = "constants"`).
//!
//! Metadata services allow a machine about a thousand packets a second and share them with its name resolution, so a
//! library that asks for the region before every call starves both. What is kept here the catalogue calls constant, and
//! it is nobody's secret: each request is judged as ever before anything is looked up, and a session token must be one
//! whose owner and lifetime the guard knows.
//!
//! Equal reads that are under way at one time are one: the first asks the service, the others wait for its answer.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{DATE, HeaderMap, SET_COOKIE, USER_AGENT};
use http::response::Parts;
use http::{Request, Response, StatusCode};
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::cloud::Endpoint;

/// The longest answer, in bytes, that is kept.
pub const ANSWER_BYTES: u64 = 4096;

/// How many answers are kept. A cloud has some dozens of constants; the rest is for what callers write into headers.
const ANSWERS: usize = 512;

/// How long an answer is kept: an operator who changes a tag or moves a machine does not wait for longer.
const LIFETIME: Duration = Duration::from_hours(1);

/// How long the others wait for the one who asks.
const PATIENCE: Duration = Duration::from_secs(2);

/// By how much the machine may have slept before it could be another machine.
const NAP: Duration = Duration::from_secs(1);

/// What makes two reads equal: where, what, and every header but those that change no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of a request that shows a good token or none; `token_header` is where it would show one.
    pub fn of<B>(endpoint: Endpoint, request: &Request<B>, token_header: Option<&str>) -> Self {
        let mut digest = Sha256::new();
        let mut part = |bytes: &[u8]| {
            digest.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
            digest.update(bytes);
        };
        part(endpoint.to_string().as_bytes());
        part(request.method().as_str().as_bytes());
        part(request.uri().to_string().as_bytes());
        for (name, value) in request.headers() {
            let shows_token = token_header.is_some_and(|header| header.eq_ignore_ascii_case(name.as_str()));
            part(name.as_str().as_bytes());
            // That there is a token tells the answers apart; which one does not, nor does the client's name for itself.
            part(if shows_token || name == USER_AGENT { b"" } else { value.as_bytes() });
        }
        Self(digest.finalize().into())
    }
}

/// One answer that is kept.
#[derive(Debug)]
pub struct Kept {
    headers: HeaderMap,
    body: Bytes,
}

impl Kept {
    /// The answer, to be given once more.
    #[must_use]
    pub fn response(&self) -> Response<Bytes> {
        let mut response = Response::new(self.body.clone());
        *response.headers_mut() = self.headers.clone();
        response
    }
}

/// What is known of a key.
pub enum Recall {
    /// The answer.
    Known(Arc<Kept>),
    /// Somebody else is asking.
    Coming(watch::Receiver<Option<Arc<Kept>>>),
    /// It is up to this request to ask.
    Ask(Turn),
}

/// The answers that are kept, for all workers together.
pub struct Memory {
    places: Mutex<Places>,
}

struct Places {
    known: HashMap<Key, Place>,
    slept: Duration,
}

enum Place {
    Kept(Arc<Kept>, Instant),
    Coming(watch::Receiver<Option<Arc<Kept>>>),
}

/// The duty to ask the service for what others wait for. Dropped without an answer, it is the next one's.
pub struct Turn {
    memory: Arc<Memory>,
    key: Key,
    others: watch::Sender<Option<Arc<Kept>>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { places: Mutex::new(Places { known: HashMap::new(), slept: slept() }) }
    }
}

impl Memory {
    /// What is known at this moment.
    #[must_use]
    pub fn recall(self: &Arc<Self>, key: Key, now: Instant) -> Recall {
        let mut places = self.places();
        places.forget_what_was_before(slept());
        match places.known.get(&key) {
            Some(Place::Kept(kept, since)) if now.duration_since(*since) < LIFETIME => {
                return Recall::Known(Arc::clone(kept));
            }
            // Its sender is gone if the one who asked has given up.
            Some(Place::Coming(answer)) if answer.has_changed().is_ok() => {
                return Recall::Coming(answer.clone());
            }
            _ => {}
        }
        if places.known.len() >= ANSWERS {
            places
                .known
                .retain(|_, place| matches!(place, Place::Coming(answer) if answer.has_changed().is_ok()));
        }
        let (others, answer) = watch::channel(None);
        if places.known.len() < ANSWERS {
            places.known.insert(key, Place::Coming(answer));
        }
        Recall::Ask(Turn { memory: Arc::clone(self), key, others })
    }

    /// Forgets everything: the policy has changed.
    pub fn clear(&self) {
        self.places().known.clear();
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("places", &self.places().known.len()).finish()
    }
}

impl Places {
    /// A machine that slept may have been moved, or copied from an image.
    fn forget_what_was_before(&mut self, slept: Duration) {
        if slept > self.slept + NAP {
            self.known.clear();
        }
        self.slept = slept;
    }
}

impl Turn {
    /// Whether an answer of this kind may be kept: the thing itself, whole and short.
    #[must_use]
    pub fn keeps(parts: &Parts, length: Option<u64>) -> bool {
        parts.status == StatusCode::OK
            && length.is_some_and(|length| length <= ANSWER_BYTES)
            && !parts.headers.contains_key(SET_COOKIE)
    }

    /// Keeps the answer, and gives it to those who wait.
    pub fn keep(self, mut headers: HeaderMap, body: Bytes, now: Instant) -> Arc<Kept> {
        headers.remove(DATE); // it tells when the service spoke
        let kept = Arc::new(Kept { headers, body });
        let mut places = self.memory.places();
        // A reload may have come between: then this answer is for those who waited, and for nobody after them.
        if let Some(place) = places.known.get_mut(&self.key)
            && matches!(place, Place::Coming(answer) if answer.same_channel(&self.others.subscribe()))
        {
            *place = Place::Kept(Arc::clone(&kept), now);
        }
        drop(places);
        self.others.send_replace(Some(Arc::clone(&kept)));
        kept
    }
}

/// Waits for another's answer; `None` if it gives up, or takes too long.
pub async fn wait(mut answer: watch::Receiver<Option<Arc<Kept>>>) -> Option<Arc<Kept>> {
    let coming = tokio::time::timeout(PATIENCE, answer.wait_for(Option::is_some)).await;
    coming.ok()?.ok()?.clone()
}

/// How long the machine has slept since it booted: the one clock runs on meanwhile, the other stands still.
fn slept() -> Duration {
    let since_boot = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    since_boot(ClockId::Boottime).saturating_sub(since_boot(ClockId::Monotonic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> Key {
        Key::of(Endpoint::new(Endpoint::SHARED, 80), &Request::get(path).body(()).unwrap(), None)
    }

    fn turn(recall: Recall) -> Turn {
        match recall {
            Recall::Ask(turn) => turn,
            Recall::Known(_) | Recall::Coming(_) => panic!("it is this one's turn"),
        }
    }

    #[test]
    fn one_asks_and_the_others_wait_and_later_nobody_asks() {
        let (memory, now) = (Arc::new(Memory::default()), Instant::now());
        let first = turn(memory.recall(key("/a"), now));
        let Recall::Coming(second) = memory.recall(key("/a"), now) else { panic!("somebody asks already") };
        first.keep(HeaderMap::new(), Bytes::from_static(b"x"), now);
        assert_eq!(second.borrow().as_ref().unwrap().body, "x");
        assert!(matches!(memory.recall(key("/a"), now), Recall::Known(_)));
        assert!(matches!(memory.recall(key("/b"), now), Recall::Ask(_)));
    }

    #[test]
    fn the_next_one_asks_when_the_first_gives_up() {
        let (memory, now) = (Arc::new(Memory::default()), Instant::now());
        drop(turn(memory.recall(key("/a"), now)));
        assert!(matches!(memory.recall(key("/a"), now), Recall::Ask(_)));
    }

    #[test]
    fn an_answer_is_forgotten_after_an_hour_a_reload_and_a_sleep() {
        let (memory, now) = (Arc::new(Memory::default()), Instant::now());
        turn(memory.recall(key("/a"), now)).keep(HeaderMap::new(), Bytes::new(), now);
        assert!(matches!(memory.recall(key("/a"), now + LIFETIME), Recall::Ask(_)));
        turn(memory.recall(key("/b"), now)).keep(HeaderMap::new(), Bytes::new(), now);
        memory.places().forget_what_was_before(slept() + NAP + NAP);
        memory.places().slept = slept();
        assert!(matches!(memory.recall(key("/b"), now), Recall::Ask(_)));
        let under_way = turn(memory.recall(key("/c"), now));
        memory.clear();
        under_way.keep(HeaderMap::new(), Bytes::new(), now);
        assert!(matches!(memory.recall(key("/c"), now), Recall::Ask(_)), "asked under the policy before");
    }

    #[test]
    fn headers_tell_answers_apart_but_not_the_token_nor_the_clients_name() {
        let of = |name: &str, value: &str| {
            let request = Request::get("/a").header(name, value).body(()).unwrap();
            Key::of(Endpoint::new(Endpoint::SHARED, 80), &request, Some("X-Token"))
        };
        assert_eq!(of("x-token", "one"), of("x-token", "two"));
        assert_eq!(of("user-agent", "one"), of("user-agent", "two"));
        assert_ne!(of("accept", "one"), of("accept", "two"));
        assert_ne!(of("x-token", "one"), key("/a"), "with and without a token are two questions");
    }

    #[test]
    fn what_callers_write_cannot_fill_the_memory() {
        let (memory, now) = (Arc::new(Memory::default()), Instant::now());
        let turns: Vec<Turn> =
            (0..2 * ANSWERS).map(|number| turn(memory.recall(key(&format!("/{number}")), now))).collect();
        assert!(memory.places().known.len() <= ANSWERS);
        for turn in turns {
            turn.keep(HeaderMap::new(), Bytes::new(), now);
        }
        assert!(memory.places().known.len() <= ANSWERS);
    }

    #[test]
    fn only_the_thing_itself_is_kept() {
        let parts = |status: u16| Response::builder().status(status).body(()).unwrap().into_parts().0;
        assert!(Turn::keeps(&parts(200), Some(ANSWER_BYTES)));
        assert!(!Turn::keeps(&parts(200), Some(ANSWER_BYTES + 1)));
        assert!(!Turn::keeps(&parts(200), None));
        assert!(!Turn::keeps(&parts(404), Some(1)));
    }
}
