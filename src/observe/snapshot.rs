//! The guard at one moment, as JSON. docs/status.md tells the fields; they may grow, none changes its meaning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cloud::{Classes, Endpoint};
use crate::policy::{Mode, Verdict, system_unit};

use super::counters::{Caller, Denial, Labels, RESULTS, Reached, Tally, Who};
use super::histogram::Histogram;
use super::moment::Moment;

/// The version of this form.
pub const SCHEMA: u32 = 1;

/// How many callers a snapshot names.
const TOP: usize = 20;

/// What the keeper knows and the proxy does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether the redirect is loaded, as far as the keeper has been told.
    pub in_place: bool,
    /// Since when that is so.
    pub since: Moment,
    /// How often somebody else changed or removed it.
    pub tampered: u64,
    /// How often it could not be loaded.
    pub failed: u64,
    /// Reloads that were refused because the new policy is wrong.
    pub refused_reloads: u64,
    /// Whether the policy in force is older than the files, because those are wrong: the last reload was refused, or the
    /// guard started by the last good policy.
    pub is_outdated: bool,
    /// Whether the kernel names no units here (cgroup v1 alone).
    #[serde(default)]
    pub degraded: bool,
    /// What leads an endpoint's address to an agent of this node, one line each.
    #[serde(default)]
    pub node_agents: Vec<String>,
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyState {
    /// Its mode.
    pub mode: String,
    /// The beginning of a digest of its files' names and texts: the same version is the same policy.
    pub version: String,
    /// When it came into force.
    pub loaded: Moment,
    /// Reloads since the guard started.
    pub reloads: u64,
    /// Reloads that were refused because the new policy is wrong.
    pub refused_reloads: u64,
    /// Whether the last reload was refused.
    pub is_outdated: bool,
}

/// The redirect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedirectState {
    /// Whether it is loaded.
    pub in_place: bool,
    /// Since when that is so.
    pub since: Moment,
    /// How often somebody else changed or removed it.
    pub tampered: u64,
    /// How often it could not be loaded.
    pub failed: u64,
    /// What leads an endpoint's address to an agent of this node, one line each: what it takes from containers is left to it.
    #[serde(default)]
    pub node_agents: Vec<String>,
}

/// One endpoint of the service, as its traffic shows it: the guard asks nothing of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    /// Address and port.
    pub endpoint: String,
    /// Whether it answered the last request that reached it; absent if nobody has asked yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reachable: Option<bool>,
    /// Requests for it, the refused ones included.
    pub requests: u64,
    /// Requests that it did not answer.
    pub failures: u64,
    /// When it last answered.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_answer: Option<Moment>,
    /// When it last did not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_failure: Option<Moment>,
}

/// Client connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// At this moment.
    pub open: u32,
    /// Since the start, by the kernel's answer: `stamped`, or why nobody is known.
    pub by_attribution: BTreeMap<String, u64>,
    /// Reset because there were too many in all.
    pub over_limit: u64,
    /// Reset because one uid had too many.
    pub over_limit_of_uid: u64,
}

/// Decisions with the same labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decisions {
    /// The first cloud that knows the path; empty if none does, `(others)` for what has no row of its own.
    pub cloud: String,
    /// What the requests touch.
    pub classes: Classes,
    /// `allow` or `deny`.
    pub verdict: String,
    /// The mode that held: in `audit`, denied requests passed.
    pub mode: String,
    /// The code of the reason.
    pub reason: String,
    /// The agent that the caller is; empty if it is none.
    pub agent: String,
    /// How many.
    pub count: u64,
}

/// One caller, by the kernel's stamp.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerState {
    /// The uid; absent if it is not known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uid: Option<u32>,
    /// The cgroup's path, or why it is not known.
    pub cgroup: String,
    /// The unit, if it is one of the system's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unit: Option<String>,
    /// Its requests.
    pub requests: u64,
    /// Those that were denied.
    pub denied: u64,
    /// Reads without a session token where the cloud has such tokens.
    pub v1: u64,
    /// When it last asked.
    pub last: Moment,
}

/// The last request that was denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastDenial {
    /// When.
    pub time: Moment,
    /// The id of its event in the audit log.
    pub event: String,
    /// The caller's uid.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uid: Option<u32>,
    /// The caller's cgroup, or why it is not known.
    pub cgroup: String,
    /// Method and path, as the event has them.
    pub request: String,
    /// The code of the reason.
    pub reason: String,
    /// Whether it passed all the same, because of audit mode.
    pub passed: bool,
}

/// How long things took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Finding out who calls, for each connection.
    pub attribution: Histogram,
    /// The service's answers.
    pub upstream: Histogram,
}

/// The proxy's threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workers {
    /// How many there are.
    pub count: usize,
    /// How many did not answer: their figures are those of an earlier moment.
    pub silent: usize,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The version of this form.
    pub schema: u32,
    /// The program's version.
    pub version: String,
    /// Now.
    pub time: Moment,
    /// When the guard started.
    pub started: Moment,
    /// The policy in force.
    pub policy: PolicyState,
    /// The redirect.
    pub redirect: RedirectState,
    /// Whether the kernel names no units here (cgroup v1 alone).
    #[serde(default)]
    pub degraded: bool,
    /// The service's endpoints.
    pub endpoints: Vec<EndpointState>,
    /// Client connections.
    pub connections: Connections,
    /// Decisions.
    pub decisions: Vec<Decisions>,
    /// What became of requests, as `imds_guard.result` in events.
    pub results: BTreeMap<String, u64>,
    /// Reads without a session token and with one.
    pub sessions: BTreeMap<String, u64>,
    /// How long things took.
    pub latency: Latency,
    /// The callers that ask the most.
    pub callers: Vec<CallerState>,
    /// Requests of callers that are not remembered.
    pub forgotten: u64,
    /// Decoys that were given.
    #[serde(default)]
    pub decoys: u64,
    /// The last request that was denied.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_denial: Option<LastDenial>,
    /// Audit events that were lost.
    pub lost_events: u64,
    /// Whether the audit log cannot be written at this moment.
    #[serde(default)]
    pub log_failing: bool,
    /// The proxy's threads.
    pub workers: Workers,
}

/// What the proxy knows apart from its workers' counters.
#[derive(Debug, Clone)]
pub struct Facts {
    /// When the guard started.
    pub started: Moment,
    /// The policy in force, as far as the proxy knows it.
    pub mode: Mode,
    /// Its version.
    pub policy_version: String,
    /// When it came into force.
    pub policy_loaded: Moment,
    /// Reloads that succeeded.
    pub reloads: u64,
    /// What the keeper said.
    pub health: Health,
    /// The endpoints of the policy.
    pub endpoints: Vec<Endpoint>,
    /// Open connections.
    pub open_connections: u32,
    /// Audit events that were lost.
    pub lost_events: u64,
    /// Whether the audit log cannot be written at this moment.
    pub log_failing: bool,
    /// The proxy's threads.
    pub workers: Workers,
}

impl Snapshot {
    /// Adds up what all workers have counted.
    #[must_use]
    pub fn of(facts: &Facts, tallies: &[Tally], now: Moment) -> Self {
        let health = &facts.health;
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time: now,
            started: facts.started,
            policy: PolicyState {
                mode: facts.mode.name().to_owned(),
                version: facts.policy_version.clone(),
                loaded: facts.policy_loaded,
                reloads: facts.reloads,
                refused_reloads: health.refused_reloads,
                is_outdated: health.is_outdated,
            },
            redirect: RedirectState {
                in_place: health.in_place,
                since: health.since,
                tampered: health.tampered,
                failed: health.failed,
                node_agents: health.node_agents.clone(),
            },
            degraded: health.degraded,
            endpoints: endpoints(&facts.endpoints, tallies),
            connections: connections(facts.open_connections, tallies),
            decisions: decisions(tallies),
            results: results(tallies),
            sessions: sessions(tallies),
            latency: latency(tallies),
            callers: callers(tallies),
            forgotten: tallies.iter().map(|tally| tally.forgotten).sum(),
            decoys: tallies.iter().map(|tally| tally.decoys).sum(),
            last_denial: last_denial(tallies),
            lost_events: facts.lost_events,
            log_failing: facts.log_failing,
            workers: facts.workers,
        }
    }

    /// How many decisions fit.
    pub fn decided(&self, fits: impl Fn(&Decisions) -> bool) -> u64 {
        self.decisions.iter().filter(|decisions| fits(decisions)).map(|decisions| decisions.count).sum()
    }

    /// Whether the guard does what it is there for.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.redirect.in_place && self.workers.silent == 0 && !self.log_failing
    }
}

fn endpoints(of_policy: &[Endpoint], tallies: &[Tally]) -> Vec<EndpointState> {
    let mut all: BTreeMap<Endpoint, Reached> =
        of_policy.iter().map(|endpoint| (*endpoint, Reached::default())).collect();
    for (endpoint, more) in tallies.iter().flat_map(|tally| &tally.endpoints) {
        let reached = all.entry(*endpoint).or_default();
        reached.requests += more.requests;
        reached.failures += more.failures;
        reached.answered = reached.answered.max(more.answered);
        reached.failed = reached.failed.max(more.failed);
    }
    let state = |(endpoint, reached): (Endpoint, Reached)| EndpointState {
        endpoint: endpoint.to_string(),
        reachable: (reached.answered.is_some() || reached.failed.is_some())
            .then(|| reached.answered >= reached.failed),
        requests: reached.requests,
        failures: reached.failures,
        last_answer: reached.answered,
        last_failure: reached.failed,
    };
    all.into_iter().map(state).collect()
}

fn connections(open: u32, tallies: &[Tally]) -> Connections {
    let mut connections = Connections { open, ..Connections::default() };
    for tally in tallies {
        for (code, count) in &tally.attributions {
            *connections.by_attribution.entry((*code).to_owned()).or_default() += count;
        }
        let [all, of_uid] = tally.over_limit;
        connections.over_limit += all;
        connections.over_limit_of_uid += of_uid;
    }
    connections
}

fn decisions(tallies: &[Tally]) -> Vec<Decisions> {
    type Key<'a> = (&'a str, Vec<crate::cloud::Class>, &'a str, &'a str, &'a str, &'a str);
    let mut all: BTreeMap<Key<'_>, (&Labels, u64)> = BTreeMap::new();
    for series in tallies.iter().flat_map(|tally| &tally.series) {
        let labels = &*series.labels;
        let agent = labels.agent.as_deref().unwrap_or_default();
        let key = (
            labels.cloud,
            labels.classes.iter().collect(),
            verdict_name(labels.verdict),
            labels.mode.name(),
            labels.reason,
            agent,
        );
        all.entry(key).or_insert((labels, 0)).1 += series.count;
    }
    let row =
        |((cloud, _, verdict, mode, reason, agent), (labels, count)): (Key<'_>, (&Labels, u64))| Decisions {
            cloud: cloud.to_owned(),
            classes: labels.classes,
            verdict: verdict.to_owned(),
            mode: mode.to_owned(),
            reason: reason.to_owned(),
            agent: agent.to_owned(),
            count,
        };
    all.into_iter().map(row).collect()
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}

fn results(tallies: &[Tally]) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for tally in tallies {
        for ((_, name), count) in RESULTS.iter().zip(tally.results) {
            *all.entry((*name).to_owned()).or_default() += count;
        }
    }
    all
}

fn sessions(tallies: &[Tally]) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for tally in tallies {
        for (name, count) in ["v1", "v2"].into_iter().zip(tally.sessions) {
            *all.entry(name.to_owned()).or_default() += count;
        }
    }
    all
}

fn latency(tallies: &[Tally]) -> Latency {
    let none = Tally::default();
    let mut latency = Latency { attribution: none.attribution, upstream: none.upstream };
    for tally in tallies {
        latency.attribution.merge(&tally.attribution);
        latency.upstream.merge(&tally.upstream);
    }
    latency
}

fn callers(tallies: &[Tally]) -> Vec<CallerState> {
    let mut all: BTreeMap<&Who, Caller> = BTreeMap::new();
    for caller in tallies.iter().flat_map(|tally| &tally.callers) {
        let sum = all.entry(&caller.who).or_default();
        sum.requests += caller.requests;
        sum.denied += caller.denied;
        sum.v1 += caller.v1;
        sum.last = sum.last.max(caller.last);
    }
    let mut all: Vec<(&Who, Caller)> = all.into_iter().collect();
    all.sort_by(|(a, x), (b, y)| y.requests.cmp(&x.requests).then_with(|| a.cmp(b)));
    let state = |(who, caller): (&Who, Caller)| CallerState {
        uid: who.uid,
        cgroup: who.home.to_string(),
        unit: who.uid.and_then(|_| system_unit(&who.home)).map(str::to_owned),
        requests: caller.requests,
        denied: caller.denied,
        v1: caller.v1,
        last: caller.last,
    };
    // Whoever speaks version 1 is named however little it asks: that is a list to be worked through.
    let (top, rest) = all.split_at(all.len().min(TOP));
    let old = rest.iter().filter(|(_, caller)| caller.v1 > 0).take(TOP);
    top.iter().chain(old).cloned().map(state).collect()
}

fn last_denial(tallies: &[Tally]) -> Option<LastDenial> {
    let last: &Denial =
        tallies.iter().filter_map(|tally| tally.last_denial.as_ref()).max_by_key(|one| one.at)?;
    Some(LastDenial {
        time: last.at,
        event: last.event.clone(),
        uid: last.who.uid,
        cgroup: last.who.home.to_string(),
        request: last.asked.clone(),
        reason: last.reason.clone(),
        passed: last.passed,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cloud::Class;
    use crate::observe::counters::Series;

    /// A snapshot with something in every part of it, of two workers.
    pub(in crate::observe) fn example() -> Snapshot {
        let labels = |agent: Option<&str>, reason| {
            Arc::new(Labels {
                cloud: "aws-ec2",
                classes: [Class::Credentials, Class::UserData].into_iter().collect(),
                verdict: if agent.is_some() { Verdict::Allow } else { Verdict::Deny },
                mode: Mode::Enforce,
                reason,
                agent: agent.map(Into::into),
            })
        };
        let who = |uid, home: &str| Who { uid, home: home.into() };
        let at = Moment::from_millis;
        let mut one = Tally::default();
        one.series.push(Series { labels: labels(Some("say \"hi\"\n\\"), "agent-allows"), count: 2 });
        one.series.push(Series { labels: labels(None, "no-agent"), count: 1 });
        one.results = [2, 1, 0, 0, 0, 0];
        one.sessions = [1, 2];
        one.attributions.push(("stamped", 3));
        one.attribution.add_us(7);
        one.upstream.add_us(700);
        let endpoint = Endpoint::new(Endpoint::SHARED, 80);
        let reached = Reached { requests: 3, failures: 1, answered: Some(at(2000)), failed: Some(at(1000)) };
        one.endpoints.push((endpoint, reached));
        let web = who(Some(33), "/system.slice/web.service");
        let caller = Caller { who: web.clone(), requests: 3, denied: 1, v1: 1, last: at(2000) };
        one.callers.push(caller.clone());
        one.last_denial = Some(Denial {
            at: at(1500),
            event: "e-1".to_owned(),
            who: web,
            asked: "GET /latest/user-data".to_owned(),
            reason: "no-agent".to_owned(),
            passed: false,
        });
        let mut two = one.clone();
        two.callers.push(Caller { who: who(None, "orphan"), requests: 9, ..caller });
        two.last_denial = None;
        two.decoys = 3;
        two.over_limit = [4, 5];
        let facts = Facts {
            started: at(0),
            mode: Mode::Enforce,
            policy_version: "0123456789ab".to_owned(),
            policy_loaded: at(500),
            reloads: 1,
            health: Health { in_place: true, since: at(400), tampered: 2, ..Health::default() },
            endpoints: vec![endpoint, Endpoint::new("fd00:ec2::254".parse().unwrap(), 80)],
            open_connections: 6,
            lost_events: 7,
            log_failing: false,
            workers: Workers { count: 2, silent: 0 },
        };
        Snapshot::of(&facts, &[one, two], at(3000))
    }

    #[test]
    fn workers_are_added_up() {
        let snapshot = example();
        assert_eq!(snapshot.decided(|_| true), 6);
        assert_eq!(snapshot.decisions.len(), 2);
        assert_eq!(snapshot.results["forwarded"], 4);
        assert_eq!((snapshot.sessions["v1"], snapshot.sessions["v2"]), (2, 4));
        assert_eq!(snapshot.latency.upstream.count(), 2);
        assert_eq!(snapshot.connections.by_attribution["stamped"], 6);
        assert_eq!((snapshot.connections.over_limit, snapshot.connections.over_limit_of_uid), (4, 5));
        let callers: Vec<(Option<u32>, u64, Option<&str>)> =
            snapshot.callers.iter().map(|one| (one.uid, one.requests, one.unit.as_deref())).collect();
        assert_eq!(callers, [(None, 9, None), (Some(33), 6, Some("web.service"))]);
        assert_eq!(snapshot.last_denial.as_ref().unwrap().event, "e-1");
        let reachable: Vec<Option<bool>> = snapshot.endpoints.iter().map(|one| one.reachable).collect();
        assert_eq!(reachable, [Some(true), None]);
        assert_eq!(snapshot.decoys, 3);
        assert!(snapshot.is_healthy());
    }

    /// The file that tests of the documentation read.
    #[test]
    fn the_example_in_the_tests_is_this_one() {
        let mut file: Snapshot =
            serde_json::from_str(include_str!("../../tests/status/snapshot.json")).unwrap();
        file.version = example().version;
        assert_eq!(file, example(), "{}", serde_json::to_string_pretty(&example()).unwrap());
    }

    #[test]
    fn a_snapshot_reads_back() {
        let snapshot = example();
        let text = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
    }

    #[test]
    fn a_reader_of_this_version_takes_what_a_later_one_adds() {
        let mut value = serde_json::to_value(example()).unwrap();
        value["of_the_future"] = 1.into();
        value["policy"]["of_the_future"] = 1.into();
        assert!(serde_json::from_value::<Snapshot>(value).is_ok());
    }
}
