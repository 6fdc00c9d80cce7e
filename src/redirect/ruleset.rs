//! The wanted state of the redirect, and its nftables text. Pure.
//!
//! * Exact addresses and TCP ports only. Never all of 169.254.0.0/16: DNS, time, block storage and service meshes
//!   live there.
//! * The guard's own connections are exempt by its uid, which no unprivileged process can forge: a mark could be
//!   set by anybody with `CAP_NET_RAW`, and a cgroup match goes stale when the unit restarts.
//! * The listener's port answers only connections that the redirect brought: anything else is reset.
//! * In enforce mode a filter chain resets whatever still aims at the endpoints: connections that are older than
//!   the table, and everything when the guard is dead. The text names no owner, so the table outlives the guard.
//! * In audit mode there is no such chain, and the table belongs to the process that loaded it: when that process
//!   ends, however it ends, the kernel removes the table, and traffic flows as if the guard had never been there.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sha2::{Digest as _, Sha256};

use crate::cloud::Endpoint;
use crate::policy::Mode;

use super::TABLE;

/// Before iptables' own NAT rules (-100), with which Docker and the ECS agent redirect.
const NAT_PRIORITY: i32 = -110;

/// After destination NAT (-100): what still aims at an endpoint here was not redirected.
const FILTER_PRIORITY: i32 = -5;

/// The connection-mark bit that remembers the guard's own upstream connections once their socket is orphaned and
/// has no uid any more, honoured only for established connections that began as the guard's; and the packet-mark bit
/// of the few that the keeper opens as root, honoured for root alone.
pub const MARK_BIT: u32 = 0x0040_0000;

/// A TCP connection's first packet.
const FIRST_PACKET: &str = "tcp flags & (fin | syn | rst | ack) == syn";

/// What happens to traffic when the guard is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It flows: the table goes with the guard (audit).
    Open,
    /// It is reset: the table stays (enforce).
    Closed,
}

impl From<Mode> for Direction {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Audit => Self::Open,
            Mode::Enforce => Self::Closed,
        }
    }
}

/// One network interface's own addresses, to which connections that leave through it are led.
///
/// A redirect to loopback would not do for a socket that is bound to its interface (`curl --interface`), nor for an
/// address that is scoped to one (`fe80::`): their packets must stay with the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number, which the kernel asks for when such a socket is looked up.
    pub index: u32,
    /// An IPv4 address of its own.
    pub v4: Option<Ipv4Addr>,
    /// An IPv6 address of its own that is not link-local.
    pub v6: Option<Ipv6Addr>,
    /// Its link-local IPv6 address.
    pub link_local: Option<Ipv6Addr>,
}

/// The state that the guard wants the kernel's table to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What becomes of traffic when the guard dies.
    pub direction: Direction,
    /// The addresses and TCP ports to redirect.
    pub endpoints: Vec<Endpoint>,
    /// The local TCP port on which the guard listens.
    pub port: u16,
    /// The uid of the guard's own upstream connections.
    pub guard_uid: u32,
    /// The interfaces that have addresses, in a stable order.
    pub interfaces: Vec<Interface>,
    /// Whether root's marked connections are the guard's too: some services answer to root alone.
    pub as_root: bool,
}

/// One IP version's words in nftables' language.
struct Family {
    set: &'static str,
    set_type: &'static str,
    key: &'static str,
    original: &'static str,
    /// The chain that leads a connection to the listener.
    lead: &'static str,
    /// The address of an interface to which it leads.
    address: fn(&Interface) -> Option<IpAddr>,
    /// Whether the listener's loopback address will do where an interface has no address of its own.
    loopback: bool,
}

const FAMILIES: [Family; 3] = [
    Family {
        set: "endpoints4",
        set_type: "ipv4_addr . inet_service",
        key: "ip daddr . tcp dport",
        original: "ct original ip daddr . ct original proto-dst",
        lead: "lead4",
        address: |interface| interface.v4.map(IpAddr::V4),
        loopback: true,
    },
    Family {
        set: "endpoints6",
        set_type: "ipv6_addr . inet_service",
        key: "ip6 daddr . tcp dport",
        original: "ct original ip6 daddr . ct original proto-dst",
        lead: "lead6",
        address: |interface| interface.v6.map(IpAddr::V6),
        loopback: true,
    },
    Family {
        set: "endpoints6_link",
        set_type: "ipv6_addr . inet_service",
        key: "ip6 daddr . tcp dport",
        original: "ct original ip6 daddr . ct original proto-dst",
        lead: "lead6_link",
        address: |interface| interface.link_local.map(IpAddr::V6),
        loopback: false,
    },
];

/// Which of [`FAMILIES`] an address belongs to.
fn family_of(addr: IpAddr) -> usize {
    match addr {
        IpAddr::V4(_) => 0,
        IpAddr::V6(v6) => 1 + usize::from(v6.is_unicast_link_local()),
    }
}

impl Wanted {
    /// The whole transaction as nft reads it from a file: create-or-replace without a gap.
    #[must_use]
    pub fn script(&self) -> String {
        format!("table inet {TABLE}\ndelete table inet {TABLE}\n{}", self.table())
    }

    /// The table alone, as a human reads it.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("table inet {TABLE} {{\n\tcomment \"{}\";\n", self.mark());
        if self.direction == Direction::Open {
            text.push_str("\tflags owner;\n");
        }
        text.push_str(&self.body());
        text.push_str("}\n");
        text
    }

    fn body(&self) -> String {
        self.blocks().iter().map(Block::render).collect()
    }

    /// A comment in the table that no other wanted state has: nft's words for a rule differ between its versions, so a
    /// loaded table is recognised by it.
    #[must_use]
    pub fn mark(&self) -> String {
        let digest = Sha256::digest(self.body());
        let short: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        format!("imds-guard {short}")
    }

    /// The transaction as one line, as an interactive nft takes it. `replaces` says whether it has a table already.
    #[must_use]
    pub fn line(&self, replaces: bool) -> String {
        let text =
            if replaces { format!("delete table inet {TABLE}; {}", self.table()) } else { self.table() };
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// How many rules each chain of the loaded table must have.
    #[must_use]
    pub fn chains(&self) -> Vec<(&'static str, usize)> {
        self.blocks()
            .into_iter()
            .filter(|block| block.kind == "chain")
            .map(|block| (block.name, block.rules.len()))
            .collect()
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> =
            self.families().map(|(family, elements)| set(family, &elements)).collect();
        blocks.extend(self.families().map(|(family, _)| self.lead(family)));
        blocks.push(self.redirect_output());
        blocks.push(self.listener_input());
        if self.direction == Direction::Closed {
            blocks.push(self.enforce_output());
            blocks.push(self.only_guard());
        }
        blocks
    }

    /// The IP versions that have endpoints at all, with their set elements in a stable order.
    fn families(&self) -> impl Iterator<Item = (&'static Family, Vec<String>)> {
        let mut sorted = self.endpoints.clone();
        sorted.sort_unstable();
        sorted.dedup();
        FAMILIES.iter().enumerate().filter_map(move |(index, family)| {
            let elements: Vec<String> = sorted
                .iter()
                .filter(|endpoint| family_of(endpoint.addr) == index)
                .map(|endpoint| format!("{} . {}", endpoint.addr, endpoint.port))
                .collect();
            (!elements.is_empty()).then_some((family, elements))
        })
    }

    fn redirect_output(&self) -> Block {
        let hook = format!("type nat hook output priority {NAT_PRIORITY}; policy accept;");
        let mut rules = Vec::new();
        for (Family { set, key, lead, .. }, _) in self.families() {
            let remember = match self.direction {
                Direction::Closed => format!("ct mark set ct mark or {MARK_BIT:#010x} "),
                Direction::Open => String::new(),
            };
            for own in self.own_sockets() {
                rules.push(format!("{own} {key} @{set} {remember}accept"));
            }
            // Only a connection's first packet: one that is older than the table would be torn by a redirect in the
            // middle, which audit mode must not do and enforce mode does by a reset.
            rules.push(format!("{key} @{set} {FIRST_PACKET} jump {lead}"));
        }
        Block::chain("redirect_output", Some(hook), rules)
    }

    /// How the guard's own connections are told from others: by the proxy's uid, and by root's with the mark.
    fn own_sockets(&self) -> Vec<String> {
        let mut own = vec![format!("meta skuid {}", self.guard_uid)];
        if self.as_root {
            own.push(format!("meta skuid 0 meta mark and {MARK_BIT:#010x} == {MARK_BIT:#010x}"));
        }
        own
    }

    fn lead(&self, family: &Family) -> Block {
        let mut rules = Vec::new();
        for interface in &self.interfaces {
            match (family.address)(interface) {
                Some(IpAddr::V4(own)) => {
                    rules.push(format!(
                        "oifname \"{}\" meta l4proto tcp dnat ip to {own}:{}",
                        interface.name, self.port
                    ));
                }
                Some(IpAddr::V6(own)) => rules.push(format!(
                    "oifname \"{}\" meta l4proto tcp dnat ip6 to [{own}]:{}",
                    interface.name, self.port
                )),
                None => {}
            }
        }
        if family.loopback {
            rules.push(format!("meta l4proto tcp redirect to :{}", self.port));
        }
        Block::chain(family.lead, None, rules)
    }

    fn listener_input(&self) -> Block {
        let hook = format!("type filter hook input priority {FILTER_PRIORITY}; policy accept;");
        let mut rules: Vec<String> = self
            .families()
            .map(|(Family { set, original, .. }, _)| {
                format!("tcp dport {} ct status dnat {original} @{set} accept", self.port)
            })
            .collect();
        rules.push(format!("tcp dport {} reject with tcp reset", self.port));
        Block::chain("listener_input", Some(hook), rules)
    }

    fn enforce_output(&self) -> Block {
        let hook = format!("type filter hook output priority {FILTER_PRIORITY}; policy accept;");
        let rules =
            self.families().map(|(Family { set, key, .. }, _)| format!("{key} @{set} jump only_guard"));
        Block::chain("enforce_output", Some(hook), rules.collect())
    }

    fn only_guard(&self) -> Block {
        let mut rules: Vec<String> =
            self.own_sockets().into_iter().map(|own| format!("{own} accept")).collect();
        rules.extend([
            format!("ct state established ct mark and {MARK_BIT:#010x} == {MARK_BIT:#010x} accept"),
            "meta l4proto tcp reject with tcp reset".to_owned(),
        ]);
        Block::chain("only_guard", None, rules)
    }
}

/// A set or a chain of the table.
struct Block {
    kind: &'static str,
    name: &'static str,
    head: Option<String>,
    rules: Vec<String>,
}

impl Block {
    fn chain(name: &'static str, hook: Option<String>, rules: Vec<String>) -> Self {
        Self { kind: "chain", name, head: hook, rules }
    }

    /// Every statement ends with a semicolon, so that the text means the same on one line.
    fn render(&self) -> String {
        let mut text = format!("\n\t{} {} {{\n", self.kind, self.name);
        if let Some(head) = &self.head {
            let _ = writeln!(text, "\t\t{head}");
        }
        for rule in &self.rules {
            let _ = writeln!(text, "\t\t{rule};");
        }
        text.push_str("\t};\n");
        text
    }
}

fn set(family: &Family, elements: &[String]) -> Block {
    Block {
        kind: "set",
        name: family.set,
        head: Some(format!("type {};", family.set_type)),
        rules: vec![format!("elements = {{ {} }}", elements.join(", "))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(direction: Direction) -> Wanted {
        let endpoint = |addr: &str, port| Endpoint { addr: addr.parse().unwrap(), port };
        Wanted {
            direction,
            endpoints: vec![
                endpoint("fd00:ec2::254", 80),
                endpoint("169.254.169.254", 443),
                endpoint("169.254.169.254", 80),
                endpoint("fe80::a9fe:a9fe", 80),
            ],
            port: 169,
            guard_uid: 990,
            interfaces: vec![Interface {
                name: "ens5".into(),
                index: 2,
                v4: Some("10.0.0.5".parse().unwrap()),
                v6: None,
                link_local: Some("fe80::5".parse().unwrap()),
            }],
            as_root: false,
        }
    }

    #[test]
    fn enforce_outlives_the_guard_and_rejects_what_was_not_redirected() {
        insta::assert_snapshot!(wanted(Direction::Closed).script());
    }

    #[test]
    fn audit_belongs_to_its_process_and_filters_nothing() {
        insta::assert_snapshot!(wanted(Direction::Open).line(true));
    }

    #[test]
    fn a_host_without_v6_endpoints_has_no_v6_rules() {
        let mut v4 = wanted(Direction::Closed);
        v4.endpoints.retain(|endpoint| endpoint.addr.is_ipv4());
        assert!(!v4.table().contains("ip6"));
        assert_eq!(
            v4.chains(),
            [
                ("lead4", 2),
                ("redirect_output", 2),
                ("listener_input", 2),
                ("enforce_output", 1),
                ("only_guard", 3)
            ]
        );
    }

    #[test]
    fn root_s_connections_are_the_guard_s_only_where_a_service_asks_for_root() {
        assert!(!wanted(Direction::Closed).table().contains("skuid 0"));
        let as_root = Wanted { as_root: true, ..wanted(Direction::Closed) };
        assert!(as_root.table().contains("meta skuid 0 meta mark and 0x00400000 == 0x00400000 accept"));
    }

    #[test]
    fn the_order_of_the_endpoints_does_not_matter() {
        let mut reversed = wanted(Direction::Closed);
        reversed.endpoints.reverse();
        assert_eq!(reversed.script(), wanted(Direction::Closed).script());
    }
}
