//! The chains for connections out of other network namespaces. Pure.
//!
//! They arrive by prerouting, and only through interfaces that the policy names: what came in through an uplink would
//! make this machine a metadata service for its neighbours. They are led by `dnat` to one of this host's own addresses
//! (a loopback address would take `route_localnet`) and to listeners of their own, so that the guard knows by the
//! listener in which namespaces it has to ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::policy::containers::interface_fits;

use super::ruleset::{Block, FILTER_PRIORITY, FIRST_PACKET, Family, Interface, Led};

/// The counter of connections that were left alone.
pub const COUNTER: &str = "containers";

/// Behind everybody else's destination NAT (-100): the kernel rewrites a connection's destination once, so what an agent of
/// this node (ECS, EKS, GKE, kube2iam) leads to itself stays with it, whatever the guard knows of it.
const GUEST_PRIORITY: i32 = -90;

/// Before anybody's NAT, so that what is counted still shows where it means to go.
const COUNT_PRIORITY: i32 = -150;

/// Other network namespaces that the table is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guests {
    /// Interfaces behind which they are: names, the last character perhaps `*`.
    pub interfaces: Vec<Box<str>>,
    /// Interfaces that lead outwards: nothing that comes in there is touched, whatever they are called.
    pub uplinks: Vec<String>,
    /// Endpoints' addresses that are this host's own: an agent of this node answers there, and nothing is led away from it.
    pub own: Vec<IpAddr>,
    /// The listeners to which their connections are led; `None` if they are counted and left alone.
    pub doors: Option<Vec<Led>>,
}

/// The addresses of this host to which containers' connections are led, one of each IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Here {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl Guests {
    /// The blocks of the table that are about them. `families` are those that have endpoints; only those that are routed
    /// can be reached through this host.
    pub(super) fn blocks(&self, families: &[&'static Family], interfaces: &[Interface]) -> Vec<Block> {
        let routed: Vec<_> = families.iter().copied().filter(|family| family.loopback).collect();
        match &self.doors {
            Some(doors) => self.led(doors, &routed, interfaces),
            None => self.counted(&routed),
        }
    }

    fn led(&self, doors: &[Led], families: &[&'static Family], interfaces: &[Interface]) -> Vec<Block> {
        let here = self.here(interfaces);
        let doors: Vec<Led> =
            doors.iter().filter(|door| !self.own.contains(&door.endpoint.addr)).copied().collect();
        let doors = &*doors;
        let mut blocks: Vec<Block> = families
            .iter()
            .map(|family| Block::chain(family.guests, None, lead(family, doors, here)))
            .collect();
        let jumps = families
            .iter()
            .map(|Family { key, set, guests, .. }| format!("{key} @{set} {FIRST_PACKET} jump {guests}"));
        blocks.push(Block::chain("guests", None, jumps.collect()));
        let hook = format!("type nat hook prerouting priority {GUEST_PRIORITY}; policy accept;");
        blocks.push(Block::chain(
            "redirect_prerouting",
            Some(hook),
            self.by_interface("accept", "jump guests"),
        ));
        let mut only: Vec<String> = vec!["ct status snat reject with tcp reset".to_owned()];
        only.extend(self.by_interface("meta l4proto tcp reject with tcp reset", "jump guests_led"));
        only.push("meta l4proto tcp reject with tcp reset".to_owned());
        let led = families.iter().map(|Family { set, original, .. }| {
            format!("meta l4proto tcp ct status dnat {original} @{set} accept")
        });
        blocks.push(Block::chain("guests_led", None, led.collect()));
        blocks.push(Block::chain("only_guests", None, only));
        let ports = super::ruleset::ports(doors);
        let hook = |hook| Some(format!("type filter hook {hook} priority {FILTER_PRIORITY}; policy accept;"));
        let input = vec![format!("tcp dport {{ {ports} }} jump only_guests")];
        blocks.push(Block::chain("guests_input", hook("input"), input));
        // No connection of this host's own is ever led there.
        let output =
            vec![format!("oifname \"lo\" tcp dport {{ {ports} }} meta l4proto tcp reject with tcp reset")];
        blocks.push(Block::chain("guests_output", hook("output"), output));
        blocks
    }

    fn counted(&self, families: &[&'static Family]) -> Vec<Block> {
        let hook = format!("type filter hook prerouting priority {COUNT_PRIORITY}; policy accept;");
        let count = families
            .iter()
            .map(|Family { key, set, .. }| format!("{key} @{set} {FIRST_PACKET} counter name {COUNTER}"));
        vec![
            Block { kind: "counter", name: COUNTER, head: None, rules: Vec::new() },
            Block::chain("guests", None, count.collect()),
            Block::chain("count_prerouting", Some(hook), self.by_interface("accept", "jump guests")),
        ]
    }

    /// One rule for each uplink that a pattern would take in, then one for each pattern.
    fn by_interface(&self, uplink: &str, guest: &str) -> Vec<String> {
        let uplinks = self.uplinks.iter().filter(|name| self.is_guest(name));
        let uplinks = uplinks.map(|name| format!("iifname \"{name}\" {uplink}"));
        uplinks.chain(self.interfaces.iter().map(|name| format!("iifname \"{name}\" {guest}"))).collect()
    }

    /// Whether containers are behind an interface of this name.
    #[must_use]
    pub fn is_guest(&self, name: &str) -> bool {
        self.interfaces.iter().any(|pattern| interface_fits(pattern, name))
    }

    /// An address that stays while containers come and go, if there is one; else one of a bridge.
    fn here(&self, interfaces: &[Interface]) -> Here {
        let (bridges, others): (Vec<_>, Vec<_>) =
            interfaces.iter().partition(|interface| self.is_guest(&interface.name));
        let all = || others.iter().chain(&bridges);
        Here { v4: all().find_map(|interface| interface.v4), v6: all().find_map(|interface| interface.v6) }
    }
}

fn lead(family: &Family, doors: &[Led], here: Here) -> Vec<String> {
    let is_of_family = |door: &&Led| super::ruleset::family_of(door.endpoint.addr) == family.index;
    let led = doors.iter().filter(is_of_family).filter_map(|Led { endpoint, port }| {
        let target = match endpoint.addr {
            IpAddr::V4(_) => format!("ip to {}", here.v4?),
            IpAddr::V6(_) => format!("ip6 to [{}]", here.v6?),
        };
        Some(format!(
            "{} {} tcp dport {} dnat {target}:{port}",
            family.address_key, endpoint.addr, endpoint.port
        ))
    });
    led.collect()
}
