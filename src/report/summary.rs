//! What was seen, added up: one row for each caller, executable, class, path and verdict. Bounded, however long the
//! log and however many names an attacker thinks up.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::caller::{Home, Who};
use super::record::Record;
use super::signals::{Evidence, Signal};
use crate::cloud::Classes;

/// Above this many rows, new paths and executables of a caller are counted together.
const ROWS: usize = 20_000;

/// Above this many callers, new ones are counted together.
const CALLERS: usize = 5_000;

/// The timeline's grain, in seconds, and how many grains it may hold.
const GRAIN: i64 = 300;
const GRAINS: usize = 50_000;

/// What stands in a row for more than the row can hold apart.
const OTHERS: &str = "(others)";

/// One row: alike requests of one caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Who asked, as an index into the callers.
    #[serde(skip)]
    pub caller: usize,
    /// The executable of a process that held the socket, if one was seen.
    pub executable: String,
    /// The agent that the policy took the caller for.
    pub agent: String,
    /// The cloud that knows the path.
    pub cloud: String,
    /// What the requests touched.
    pub classes: Classes,
    /// The method.
    pub method: String,
    /// What was asked for.
    pub path: String,
    /// `allow` or `deny`.
    pub verdict: String,
    /// The code of the reason.
    pub reason: String,
    /// The first fault of the requests.
    pub fault: String,
    /// Which version of the session protocol was spoken, if that was seen.
    pub session: String,
    /// How many requests were refused.
    pub refused: u64,
    /// How many requests passed that enforce would have refused.
    pub would_deny: u64,
    /// How many of the refused were given decoys.
    pub decoys: u64,
    /// How many there were.
    pub count: u64,
    /// When the first came, in seconds since 1970; 0 if that is not known.
    pub first: i64,
    /// When the last came.
    pub last: i64,
    /// The id of the last event.
    pub event: String,
}

/// One caller.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who it is.
    pub who: Who,
    /// What speaks against it.
    pub evidence: Evidence,
    /// How many requests it made.
    pub count: u64,
    /// How many of them were denied.
    pub denied: u64,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub struct Summary {
    /// The callers, in the order in which they were first seen.
    pub callers: Vec<Caller>,
    /// The rows.
    pub rows: Vec<Row>,
    /// Requests allowed and denied, by the start of each five minutes.
    pub timeline: BTreeMap<i64, (u64, u64)>,
    /// Requests.
    pub requests: u64,
    /// Requests that were denied.
    pub denied: u64,
    /// Requests that were denied and passed all the same, as audit mode lets them.
    pub would_deny: u64,
    /// Decoys that were given.
    pub decoys: u64,
    /// Events that the guard lost, as it told itself.
    pub lost: u64,
    who_index: HashMap<Who, usize>,
    row_index: HashMap<Vec<u8>, usize>,
    key: Vec<u8>,
}

impl Summary {
    /// Adds one event.
    pub fn add(&mut self, record: &Record<'_>) {
        if &*record.reason == "events-lost" {
            self.lost += record.weight();
        }
        if !record.is_decision() {
            return;
        }
        let (weight, seconds) = (record.weight(), record.seconds().unwrap_or(0));
        let (denied, would_deny) = (record.is_denied(), record.would_deny && record.is_denied());
        self.requests += weight;
        self.denied += if denied { weight } else { 0 };
        self.would_deny += if would_deny { weight } else { 0 };
        let decoys = if record.decoy && denied && !would_deny { weight } else { 0 };
        self.decoys += decoys;
        self.time(seconds, weight, denied);
        let at = self.caller(record);
        if let Some(caller) = self.callers.get_mut(at) {
            caller.evidence.add(&caller.who.home, record);
            caller.count += weight;
            caller.denied += if denied { weight } else { 0 };
        }
        let row = self.row(at, record);
        if let Some(row) = self.rows.get_mut(row) {
            row.count += weight;
            row.would_deny += if would_deny { weight } else { 0 };
            row.decoys += decoys;
            row.refused += if denied && !would_deny { weight } else { 0 };
            if seconds > 0 {
                row.first = if row.first == 0 { seconds } else { row.first.min(seconds) };
            }
            if seconds >= row.last {
                row.last = seconds;
                (*record.id).clone_into(&mut row.event);
            }
        }
    }

    fn time(&mut self, seconds: i64, weight: u64, denied: bool) {
        let grain = seconds.div_euclid(GRAIN) * GRAIN;
        if seconds > 0 && (self.timeline.len() < GRAINS || self.timeline.contains_key(&grain)) {
            let (allowed, refused) = self.timeline.entry(grain).or_default();
            *(if denied { refused } else { allowed }) += weight;
        }
    }

    fn caller(&mut self, record: &Record<'_>) -> usize {
        let mut who = Who::of(record);
        if self.callers.len() >= CALLERS && !self.who_index.contains_key(&who) {
            who = Who { home: Home::Others, uid: None };
        }
        if let Some(at) = self.who_index.get(&who) {
            return *at;
        }
        let at = self.callers.len();
        self.who_index.insert(who.clone(), at);
        self.callers.push(Caller { who, evidence: Evidence::default(), count: 0, denied: 0 });
        at
    }

    fn row(&mut self, caller: usize, record: &Record<'_>) -> usize {
        let full = self.rows.len() >= ROWS;
        let one = Grain::of(record, false);
        one.key(caller, &mut self.key);
        if let Some(at) = self.row_index.get(&self.key) {
            return *at;
        }
        let one = if full { Grain::of(record, true) } else { one };
        one.key(caller, &mut self.key);
        if let Some(at) = self.row_index.get(&self.key) {
            return *at;
        }
        let at = self.rows.len();
        self.row_index.insert(self.key.clone(), at);
        self.rows.push(one.row(caller));
        at
    }

    /// The rows, the most alarming and then the most frequent first.
    #[must_use]
    pub fn sorted(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by(|a, b| {
            let rank = |row: &Row| (row.verdict != "deny", std::cmp::Reverse(row.count));
            (rank(a), &a.path, &a.executable, a.caller).cmp(&(rank(b), &b.path, &b.executable, b.caller))
        });
        rows
    }

    /// The signals of a caller.
    pub fn signals(&self, caller: usize) -> impl Iterator<Item = Signal> {
        self.callers.get(caller).into_iter().flat_map(|caller| caller.evidence.signals())
    }

    /// Whether a caller looks like an attacker: something alarming was seen, and it was denied something.
    #[must_use]
    pub fn is_suspect(&self, caller: usize) -> bool {
        self.signals(caller).any(Signal::is_alarming)
            && self.callers.get(caller).is_some_and(|caller| caller.denied > 0)
    }
}

/// What tells rows apart.
struct Grain<'a> {
    texts: [&'a str; 9],
    classes: Classes,
}

impl<'a> Grain<'a> {
    fn of(record: &'a Record<'_>, coarse: bool) -> Self {
        let fine = |text: &'a str| if coarse { OTHERS } else { text };
        let texts = [
            fine(&record.executable),
            &record.agent,
            &record.cloud,
            if coarse { "" } else { &record.method },
            fine(record.asked_path()),
            if record.is_denied() { "deny" } else { "allow" },
            if coarse { "" } else { &record.reason },
            if coarse { "" } else { record.faults.first().map_or("", |fault| fault) },
            if coarse { "" } else { &record.session },
        ];
        Self { texts, classes: record.touched() }
    }

    /// Each text with its length before it, so that no text can end another.
    fn key(&self, caller: usize, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(&caller.to_le_bytes());
        for class in self.classes.iter() {
            key.push(class as u8);
        }
        for text in self.texts {
            key.extend_from_slice(&text.len().to_le_bytes());
            key.extend_from_slice(text.as_bytes());
        }
    }

    fn row(&self, caller: usize) -> Row {
        let [executable, agent, cloud, method, path, verdict, reason, fault, session] =
            self.texts.map(str::to_owned);
        Row {
            caller,
            executable,
            agent,
            cloud,
            classes: self.classes,
            method,
            path,
            verdict,
            reason,
            fault,
            session,
            refused: 0,
            decoys: 0,
            would_deny: 0,
            count: 0,
            first: 0,
            last: 0,
            event: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(lines: impl Iterator<Item = String>) -> Summary {
        let mut summary = Summary::default();
        for line in lines {
            summary.add(&Record::read(line.as_bytes()).unwrap());
        }
        summary
    }

    fn line(path: &str, verdict: &str, more: &str) -> String {
        format!(
            r#"{{"@timestamp":"2026-11-24T09:00:00Z","event.dataset":"imds-guard.audit","imds_guard.schema":1,"event.action":"request","imds_guard.verdict":"{verdict}","imds_guard.attribution":"stamped","user.id":"0","imds_guard.cgroup":"/system.slice/a.service","url.path":"{path}"{more}}}"#
        )
    }

    #[test]
    fn alike_requests_are_one_row_and_aggregates_count_as_many() {
        let lines = [
            line("/a", "allow", ""),
            line("/a", "allow", r#","imds_guard.count":5"#),
            line("/a", "deny", r#","imds_guard.would_deny":true"#),
        ];
        let summary = summary(lines.into_iter());
        assert_eq!((summary.rows.len(), summary.callers.len()), (2, 1));
        assert_eq!((summary.requests, summary.denied, summary.would_deny), (7, 1, 1));
        assert_eq!(summary.sorted()[0].verdict, "deny");
        assert_eq!(summary.timeline.values().copied().collect::<Vec<_>>(), [(6, 1)]);
    }

    #[test]
    fn what_an_attacker_can_think_up_does_not_fill_the_memory() {
        let lines = (0..ROWS + 1000).map(|number| line(&format!("/{number}"), "deny", ""));
        let summary = summary(lines);
        assert!(summary.rows.len() <= ROWS + 1, "{}", summary.rows.len());
        assert_eq!(summary.rows.iter().map(|row| row.count).sum::<u64>(), (ROWS + 1000) as u64);
    }

    #[test]
    fn no_text_reaches_into_its_neighbour() {
        let one = line("/a", "deny", r#","process.executable":"b\u0000c""#);
        let other = line("/a", "deny", r#","process.executable":"b","imds_guard.agent":"c""#);
        assert_eq!(summary([one, other].into_iter()).rows.len(), 2);
    }
}
