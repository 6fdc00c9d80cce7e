//! Agents of this node that answer on a metadata address themselves: the ECS agent, the EKS Pod Identity agent, GKE's metadata
//! server, kube2iam and their like. What they lead to themselves is left to them (see [`crate::redirect::Guests`]); here it
//! is found out and told.
//!
//! Looking takes a listing of all rules, which may be long: a thread has it made, and not more often than every few seconds.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::redirect::apply::Nft;
use crate::redirect::interfaces;
use crate::verify::firewall;

/// How often the rules are looked at while they change.
const PAUSE: Duration = Duration::from_secs(5);

/// How soon it is asked whether a look has ended.
const SOON: Duration = Duration::from_millis(20);

/// How many findings are kept, and how long each may be.
const MOST: usize = 32;
const TEXT_BYTES: usize = 240;

/// What is known of such agents.
#[derive(Debug)]
pub(super) struct NodeAgents {
    known: BTreeSet<String>,
    look: Option<JoinHandle<BTreeSet<String>>>,
    /// When to look, if something has changed since the last time.
    due: Option<Instant>,
    last: Option<Instant>,
}

/// What a look has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) came: Vec<String>,
    pub(super) went: Vec<String>,
}

impl NodeAgents {
    /// Nothing is known; the first turn looks.
    pub(super) fn new() -> Self {
        Self { known: BTreeSet::new(), look: None, due: Some(Instant::now()), last: None }
    }

    /// Somebody changed rules or addresses.
    pub(super) fn may_have_changed(&mut self) {
        let now = Instant::now();
        let due = self.last.map_or(now, |last| (last + PAUSE).max(now));
        self.due.get_or_insert(due);
    }

    /// How long until there is something to do, if ever.
    pub(super) fn next_turn(&self) -> Option<Duration> {
        if self.look.is_some() {
            return Some(SOON);
        }
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Looks if it is time to; what has changed if a look has ended.
    pub(super) fn turn(&mut self, nft: &Nft, endpoints: &[IpAddr]) -> Change {
        if let Some(look) = self.look.take_if(|look| look.is_finished()) {
            return look.join().map_or_else(|_| Change::default(), |found| self.learn(found));
        }
        let now = Instant::now();
        if self.look.is_none() && self.due.is_some_and(|due| due <= now) {
            (self.due, self.last) = (None, Some(now));
            let (nft, endpoints) = (nft.clone(), endpoints.to_vec());
            self.look = std::thread::Builder::new()
                .name("node-agents".into())
                .spawn(move || found(&nft, &endpoints).into_iter().take(MOST).collect())
                .inspect_err(|error| tracing::warn!(%error, "other tools' rules are not looked at"))
                .ok();
        }
        Change::default()
    }

    /// All that is known.
    pub(super) fn all(&self) -> Vec<String> {
        self.known.iter().cloned().collect()
    }

    fn learn(&mut self, found: BTreeSet<String>) -> Change {
        let change = Change {
            came: found.difference(&self.known).cloned().collect(),
            went: self.known.difference(&found).cloned().collect(),
        };
        self.known = found;
        change
    }
}

/// What leads these addresses to an agent of this node, one line each.
#[must_use]
pub fn found(nft: &Nft, endpoints: &[IpAddr]) -> Vec<String> {
    let own = interfaces::addresses().unwrap_or_default();
    let here = endpoints.iter().filter(|address| own.contains(address));
    let mut found: Vec<String> =
        here.map(|address| format!("{address} is an address of this host")).collect();
    match nft.ruleset() {
        Ok(listing) => found.extend(firewall::led(&listing, endpoints).into_iter().map(|led| {
            let mut text = format!("{} is led by {}: {}", led.address, led.chain, led.rule);
            text.truncate(text.floor_char_boundary(TEXT_BYTES));
            text
        })),
        Err(error) => tracing::warn!(%error, "other tools' rules cannot be read"),
    }
    // nft does not show those.
    let legacy = fs::read_to_string("/proc/self/net/ip_tables_names").unwrap_or_default();
    if legacy.lines().any(|table| table == "nat") {
        found.push("there are NAT rules of iptables-legacy, which cannot be read here".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn each_agent_is_told_once_when_it_comes_and_once_when_it_goes() {
        let mut agents = NodeAgents::new();
        assert_eq!(agents.learn(set(&["a", "b"])).came, ["a", "b"]);
        assert_eq!(agents.learn(set(&["a", "b"])), Change::default());
        let change = agents.learn(set(&["b", "c"]));
        assert_eq!((change.came, change.went), (vec!["c".to_owned()], vec!["a".to_owned()]));
        assert_eq!(agents.all(), ["b", "c"]);
    }

    #[test]
    fn changes_that_follow_each_other_cost_one_look() {
        let mut agents = NodeAgents::new();
        assert_eq!(agents.next_turn(), Some(Duration::ZERO), "the first look is at once");
        (agents.due, agents.last) = (None, Some(Instant::now()));
        assert_eq!(agents.next_turn(), None, "nothing changes, nothing is looked at");
        agents.may_have_changed();
        let due = agents.due;
        agents.may_have_changed();
        assert_eq!(agents.due, due);
        assert!(agents.next_turn().is_some_and(|turn| turn > Duration::from_secs(3)));
    }
}
