//! What one worker counts: plain numbers in its own memory. A copy goes to whoever asks.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use crate::audit::event::{Event, Outcome};
use crate::caller::Attribution;
use crate::cloud::{Asked, Class, Classes, Endpoint};
use crate::policy::{Decision, Mode, Verdict};

use super::histogram::{ATTRIBUTION_US, Histogram, UPSTREAM_US};
use super::moment::Moment;

/// How many sets of labels are counted apart. Agents come from the policy and the rest from fixed lists, but their
/// product is more than anybody wants to store.
pub const SERIES: usize = 2048;

/// How many callers are remembered.
pub const CALLERS: usize = 128;

/// What stands for all that has no place of its own.
pub const OTHERS: &str = "(others)";

/// One worker's counters.
#[derive(Debug, Default)]
pub struct Counters(RefCell<Inner>);

#[derive(Debug, Default)]
struct Inner {
    tally: Tally,
    /// Places in `tally.series`, by the hash of their labels.
    series: HashMap<u64, usize>,
    /// Places in `tally.callers`.
    callers: HashMap<Key, usize>,
}

/// A uid and the id of a cgroup; of callers who are not known, only why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Stamped(u32, u64),
    Unattributed(&'static str),
}

/// What was counted so far.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Decisions, by labels.
    pub series: Vec<Series>,
    /// What became of requests, in the order of [`RESULTS`].
    pub results: [u64; RESULTS.len()],
    /// Reads with a session token (`v2`) and without (`v1`), where the cloud has such tokens.
    pub sessions: [u64; 2],
    /// Connections, by how the kernel answered.
    pub attributions: Vec<(&'static str, u64)>,
    /// How long it took to find out who calls.
    pub attribution: Histogram,
    /// How long it took until the service answered.
    pub upstream: Histogram,
    /// By endpoint.
    pub endpoints: Vec<(Endpoint, Reached)>,
    /// The callers that ask the most.
    pub callers: Vec<Caller>,
    /// Requests of callers that have made room for others.
    pub forgotten: u64,
    /// Connections that were reset because of the limit for all, and of that for one uid.
    pub over_limit: [u64; 2],
    /// Decoys that were given.
    pub decoys: u64,
    /// The last denial.
    pub last_denial: Option<Denial>,
}

/// Decisions with the same labels.
#[derive(Debug, Clone)]
pub struct Series {
    /// The labels.
    pub labels: Arc<Labels>,
    /// How many.
    pub count: u64,
}

/// What tells decisions apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Labels {
    /// The first cloud that knows the path; empty if none does.
    pub cloud: &'static str,
    /// What the request touches.
    pub classes: Classes,
    /// Allowed or denied.
    pub verdict: Verdict,
    /// The mode that held.
    pub mode: Mode,
    /// The code of the reason.
    pub reason: &'static str,
    /// The agent that the caller is.
    pub agent: Option<Arc<str>>,
}

/// The results that are counted, and how events name them.
pub const RESULTS: [(Outcome, &str); 6] = [
    (Outcome::Forwarded, "forwarded"),
    (Outcome::Refused, "refused"),
    (Outcome::Tunnelled, "tunnelled"),
    (Outcome::UpstreamFailed, "upstream-failed"),
    (Outcome::CallerLeft, "caller-left"),
    (Outcome::Closed, "closed"),
];

/// What was seen of one endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// Requests for it.
    pub requests: u64,
    /// Requests that it did not answer.
    pub failures: u64,
    /// When it last answered.
    pub answered: Option<Moment>,
    /// When it last did not.
    pub failed: Option<Moment>,
}

/// What was seen of one caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub who: Who,
    /// Its requests since it is remembered.
    pub requests: u64,
    /// Those that were denied.
    pub denied: u64,
    /// Reads without a session token where the cloud has such tokens.
    pub v1: u64,
    /// When it last asked.
    pub last: Moment,
}

/// A caller, by the kernel's stamp.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Who {
    /// The uid; `None` if it is not known.
    pub uid: Option<u32>,
    /// The path of its cgroup, or why that is not known.
    pub home: Arc<str>,
}

/// One request that was denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// When.
    pub at: Moment,
    /// Its event's id.
    pub event: String,
    /// Who asked.
    pub who: Who,
    /// The method and the path as the event has them: cut, and without secrets.
    pub asked: String,
    /// The code of the reason.
    pub reason: String,
    /// Whether it passed all the same, because of audit mode.
    pub passed: bool,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            series: Vec::new(),
            results: [0; RESULTS.len()],
            sessions: [0; 2],
            attributions: Vec::new(),
            attribution: Histogram::new(&ATTRIBUTION_US),
            upstream: Histogram::new(&UPSTREAM_US),
            endpoints: Vec::new(),
            callers: Vec::new(),
            forgotten: 0,
            over_limit: [0; 2],
            decoys: 0,
            last_denial: None,
        }
    }
}

impl Counters {
    /// A copy of what was counted.
    #[must_use]
    pub fn copy(&self) -> Tally {
        self.0.borrow().tally.clone()
    }

    /// A connection was accepted, and the kernel asked who it is.
    pub fn connected(&self, attribution: &Attribution, took: Duration) {
        let tally = &mut self.0.borrow_mut().tally;
        tally.attribution.add(took);
        let code = attribution.code();
        match tally.attributions.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count += 1,
            None => tally.attributions.push((code, 1)),
        }
    }

    /// A connection was reset because of a limit: of all, or of one uid.
    pub fn over_limit(&self, of_one_uid: bool) {
        let [all, per_uid] = &mut self.0.borrow_mut().tally.over_limit;
        *(if of_one_uid { per_uid } else { all }) += 1;
    }

    /// A decoy was given.
    pub fn gave_decoy(&self) {
        self.0.borrow_mut().tally.decoys += 1;
    }

    /// A connection was closed before a request was read.
    pub fn closed(&self) {
        self.0.borrow_mut().result(Outcome::Closed);
    }

    /// A request was decided about.
    pub fn decided(&self, asked: &Asked, decision: &Decision) {
        let cloud = asked.touched.clouds.iter().next().unwrap_or_default();
        self.0.borrow_mut().decided(cloud, asked.touched.classes, decision);
    }

    /// Somebody at an opaque door was decided about.
    pub fn decided_unread(&self, decision: &Decision) {
        self.0.borrow_mut().decided("", Classes::EMPTY, decision);
    }

    /// A connection whose bytes have no meaning was passed on.
    pub fn unjudged(&self, reason: &'static str) {
        let labels = Labels {
            cloud: "",
            classes: Classes::of(Class::Unknown),
            verdict: Verdict::Deny,
            mode: Mode::Audit,
            reason,
            agent: None,
        };
        self.0.borrow_mut().count(labels);
    }

    /// A request is over; the event tells what became of it.
    pub fn ended(&self, who: &Attribution, endpoint: Endpoint, event: &Event<'_>) {
        self.0.borrow_mut().ended(who, endpoint, event, Moment::now());
    }
}

impl Inner {
    fn decided(&mut self, cloud: &'static str, classes: Classes, decision: &Decision) {
        let labels = Labels {
            cloud,
            classes,
            verdict: decision.verdict(),
            mode: decision.mode(),
            reason: decision.reason().code(),
            agent: decision.agent().cloned(),
        };
        self.count(labels);
    }

    fn count(&mut self, labels: Labels) {
        let mut hasher = DefaultHasher::new();
        labels.hash(&mut hasher);
        let hash = hasher.finish();
        let at = self.series.get(&hash).copied();
        if let Some(series) = at.and_then(|at| self.tally.series.get_mut(at)) {
            if *series.labels == labels {
                series.count += 1;
                return;
            }
        } else if self.tally.series.len() < SERIES {
            self.series.insert(hash, self.tally.series.len());
            self.tally.series.push(Series { labels: Arc::new(labels), count: 1 });
            return;
        }
        // Another one's hash, or no place any more.
        self.count_together(&labels);
    }

    fn count_together(&mut self, labels: &Labels) {
        let others = Labels {
            cloud: OTHERS,
            classes: Classes::EMPTY,
            verdict: labels.verdict,
            mode: labels.mode,
            reason: OTHERS,
            agent: None,
        };
        match self.tally.series.iter_mut().find(|series| *series.labels == others) {
            Some(series) => series.count += 1,
            None => self.tally.series.push(Series { labels: Arc::new(others), count: 1 }),
        }
    }

    fn result(&mut self, result: Outcome) {
        let counted = self.tally.results.iter_mut().zip(RESULTS).find(|(_, (known, _))| *known == result);
        if let Some((count, _)) = counted {
            *count += 1;
        }
    }

    fn ended(&mut self, who: &Attribution, endpoint: Endpoint, event: &Event<'_>, now: Moment) {
        let result = event.result.unwrap_or(Outcome::CallerLeft);
        self.result(result);
        let tally = &mut self.tally;
        if let Some(micros) = event.upstream_us {
            tally.upstream.add_us(micros);
        }
        let [v1, v2] = &mut tally.sessions;
        match event.session {
            Some("v1") => *v1 += 1,
            Some(_) => *v2 += 1,
            None => {}
        }
        let place = tally.endpoints.iter().position(|(known, _)| *known == endpoint);
        let place = place.unwrap_or_else(|| {
            tally.endpoints.push((endpoint, Reached::default()));
            tally.endpoints.len() - 1
        });
        if let Some((_, reached)) = tally.endpoints.get_mut(place) {
            reached.requests += 1;
            match result {
                Outcome::Forwarded => reached.answered = Some(now),
                Outcome::UpstreamFailed => {
                    reached.failures += 1;
                    reached.failed = Some(now);
                }
                Outcome::Refused | Outcome::Tunnelled | Outcome::CallerLeft | Outcome::Closed => {}
            }
        }
        let denied = event.verdict == Some("deny");
        let caller = self.caller(who);
        if let Some(caller) = self.tally.callers.get_mut(caller) {
            caller.requests += 1;
            caller.denied += u64::from(denied);
            caller.v1 += u64::from(event.session == Some("v1"));
            caller.last = now;
            if denied {
                self.tally.last_denial = Some(denial(event, caller.who.clone(), now));
            }
        }
    }

    /// The caller's place. When there is none, whoever asked the least makes room: a flood of new callers must not push
    /// out those that matter.
    fn caller(&mut self, who: &Attribution) -> usize {
        let key = match who {
            Attribution::Stamped(stamps) | Attribution::Degraded(stamps) => {
                Key::Stamped(stamps.uid, stamps.cgroup.id)
            }
            Attribution::Unattributed(why) => Key::Unattributed(why.code()),
        };
        if let Some(at) = self.callers.get(&key) {
            return *at;
        }
        let (uid, home) = match who {
            Attribution::Stamped(stamps) | Attribution::Degraded(stamps) => {
                (Some(stamps.uid), stamps.cgroup.path.as_str())
            }
            Attribution::Unattributed(why) => (None, why.code()),
        };
        let fresh = Caller { who: Who { uid, home: home.into() }, ..Caller::default() };
        let callers = &mut self.tally.callers;
        let at = if callers.len() < CALLERS {
            callers.push(fresh);
            callers.len() - 1
        } else {
            let least = callers.iter().enumerate().min_by_key(|(_, caller)| (caller.requests, caller.last));
            let at = least.map_or(0, |(at, _)| at);
            if let Some(caller) = callers.get_mut(at) {
                self.tally.forgotten += caller.requests;
                *caller = fresh;
            }
            self.callers.retain(|_, place| *place != at);
            at
        };
        self.callers.insert(key, at);
        at
    }
}

fn denial(event: &Event<'_>, who: Who, at: Moment) -> Denial {
    let path = event.path.as_deref().or(event.original.as_deref()).unwrap_or("(unreadable)");
    let asked = match event.method.as_deref() {
        Some(method) => format!("{method} {path}"),
        None => path.to_owned(),
    };
    Denial {
        at,
        event: event.id.to_string(),
        who,
        asked,
        reason: event.reason.as_deref().unwrap_or_default().to_owned(),
        passed: event.would_deny == Some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::event::Action;
    use crate::caller::{Cgroup, CgroupPath, Stamps, Why};

    fn caller(uid: u32, id: u64) -> Attribution {
        let path = CgroupPath::new(format!("/system.slice/unit-{id}.service")).unwrap();
        Attribution::Stamped(Stamps { uid, cgroup: Cgroup { id, path }, inode: 1, cookie: 1 })
    }

    fn event(verdict: &'static str, result: Outcome) -> Event<'static> {
        let mut event = Event::now("id", Action::Request);
        (event.verdict, event.result) = (Some(verdict), Some(result));
        event
    }

    const ENDPOINT: Endpoint = Endpoint::new(Endpoint::SHARED, 80);

    #[test]
    fn what_attackers_think_up_does_not_fill_the_memory() {
        let mut inner = Inner::default();
        for number in 0..SERIES * 2 {
            inner.count(Labels {
                cloud: "aws-ec2",
                classes: Classes::EMPTY,
                verdict: Verdict::Deny,
                mode: Mode::Audit,
                reason: "no-agent",
                agent: Some(number.to_string().into()),
            });
        }
        assert_eq!(inner.tally.series.len(), SERIES + 1);
        assert_eq!(inner.tally.series.iter().map(|series| series.count).sum::<u64>(), SERIES as u64 * 2);
        let counters = Counters::default();
        counters.ended(&caller(0, 7), ENDPOINT, &event("allow", Outcome::Forwarded));
        for _ in 0..2 {
            counters.ended(&caller(0, 7), ENDPOINT, &event("allow", Outcome::Forwarded));
        }
        for id in 1000..2000 {
            counters.ended(&caller(1000, id), ENDPOINT, &event("deny", Outcome::Refused));
        }
        let tally = counters.copy();
        assert_eq!(tally.callers.len(), CALLERS);
        assert!(tally.callers.iter().any(|caller| caller.requests == 3), "a flood of others pushed it out");
        let remembered: u64 = tally.callers.iter().map(|caller| caller.requests).sum();
        assert_eq!(remembered + tally.forgotten, 1003);
    }

    #[test]
    fn a_request_is_counted_once_in_each_way() {
        let counters = Counters::default();
        let mut read = event("allow", Outcome::Forwarded);
        (read.session, read.upstream_us) = (Some("v1"), Some(700));
        counters.ended(&caller(33, 1), ENDPOINT, &read);
        let mut denied = event("deny", Outcome::Refused);
        (denied.path, denied.method) = (Some("/latest/user-data".into()), Some("GET".into()));
        (denied.reason, denied.would_deny) = (Some("no-agent".into()), Some(false));
        counters.ended(&Attribution::Unattributed(Why::Orphan), ENDPOINT, &denied);
        counters.ended(&caller(33, 1), ENDPOINT, &event("allow", Outcome::UpstreamFailed));
        counters.connected(&caller(33, 1), Duration::from_micros(7));
        counters.over_limit(true);
        let tally = counters.copy();
        assert_eq!(tally.results, [1, 1, 0, 1, 0, 0]);
        assert_eq!((tally.sessions, tally.upstream.count(), tally.attribution.count()), ([1, 0], 1, 1));
        let (endpoint, reached) = tally.endpoints[0];
        assert_eq!((endpoint, reached.requests, reached.failures), (ENDPOINT, 3, 1));
        assert!(reached.answered.is_some() && reached.failed.is_some());
        let web = &tally.callers[0];
        assert_eq!(
            (&*web.who.home, web.requests, web.denied, web.v1),
            ("/system.slice/unit-1.service", 2, 0, 1)
        );
        let last = tally.last_denial.unwrap();
        assert_eq!((last.asked.as_str(), &*last.who.home), ("GET /latest/user-data", "orphan"));
        assert_eq!((tally.over_limit, tally.attributions), ([0, 1], vec![("stamped", 1)]));
    }
}
