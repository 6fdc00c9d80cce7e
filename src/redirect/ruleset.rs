//! The wanted state of the redirect, and its nftables text. Pure.
//!
//! * Exact addresses and TCP ports only. Never all of 169.254.0.0/16: DNS, time, block storage and service meshes
//!   live there.
//! * The guard's own connections are exempt by its uid, which no unprivileged process can forge: a mark could be
//!   set by anybody with `CAP_NET_RAW`, and a cgroup match goes stale when the unit restarts.
//! * The listeners' ports answer only connections that the redirect brought: anything else is reset.
//! * In enforce mode filter chains reset whatever still aims at the endpoints: connections that are older than the
//!   table, what containers send through this host, and everything when the guard is dead. The text names no owner, so the table outlives the guard.
//! * In audit mode there is no such chain, and the table belongs to the process that loaded it: when that process
//!   ends, however it ends, the kernel removes the table, and traffic flows as if the guard had never been there.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sha2::{Digest as _, Sha256};

use crate::cloud::Endpoint;
use crate::hex;
use crate::policy::{Mode, OWN_BIT};

use super::TABLE;
use super::containers::Guests;

/// Before iptables' own NAT rules (-100), with which Docker and the ECS agent redirect.
const NAT_PRIORITY: i32 = -110;

/// After destination NAT (-100): what still aims at an endpoint here was not redirected.
pub(super) const FILTER_PRIORITY: i32 = -5;

/// The connection-mark bit that remembers the guard's own upstream connections once their socket is orphaned and
/// has no uid any more, honoured only for established connections that began as the guard's; and the packet-mark bit
/// of the few that the keeper opens as root, honoured for root alone.
pub const MARK_BIT: u32 = OWN_BIT;

/// A TCP connection's first packet.
pub(super) const FIRST_PACKET: &str = "tcp flags & (fin | syn | rst | ack) == syn";

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

/// An endpoint and the listener to which its connections are led.
///
/// Each endpoint has a port of its own: led to one, two connections of a client from the same source port to two
/// endpoints would be one connection to the kernel, which then rewrites the second's source port. The guard would ask
/// who holds a port that is not the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Led {
    /// What is caught.
    pub endpoint: Endpoint,
    /// The local TCP port on which the guard listens for it.
    pub port: u16,
}

/// Local ports that other services are known for: BGP and SNMP's multiplexer.
const TAKEN_PORTS: [u16; 2] = [179, 199];

/// Gives each endpoint a listener's port, from `base` upwards, in the order of the endpoints.
#[must_use]
pub fn lead(endpoints: &[Endpoint], base: u16) -> Vec<Led> {
    let ports = (base..=u16::MAX).filter(|port| !TAKEN_PORTS.contains(port) || *port == base);
    endpoints.iter().zip(ports).map(|(endpoint, port)| Led { endpoint: *endpoint, port }).collect()
}

/// Gives each endpoint that can be reached through this host a second listener's port, above all of the first ones.
#[must_use]
pub fn lead_guests(doors: &[Led]) -> Vec<Led> {
    let endpoints: Vec<Endpoint> = doors.iter().map(|door| door.endpoint).collect();
    let base = doors.iter().map(|door| door.port).max().unwrap_or(0).saturating_add(1);
    // A port of the list of others' is skipped even where it would be the first.
    let base = if TAKEN_PORTS.contains(&base) { base + 1 } else { base };
    lead(&endpoints, base).into_iter().filter(|led| is_routed(led.endpoint)).collect()
}

/// Whether an endpoint can be reached through a host: link-local addresses of IPv6 cannot.
#[must_use]
pub fn is_routed(endpoint: Endpoint) -> bool {
    FAMILIES.get(family_of(endpoint.addr)).is_some_and(|family| family.loopback)
}

/// The state that the guard wants the kernel's table to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What becomes of traffic when the guard dies.
    pub direction: Direction,
    /// What to redirect, and where to.
    pub doors: Vec<Led>,
    /// The uid of the guard's own upstream connections.
    pub guard_uid: u32,
    /// The interfaces that have addresses, in a stable order.
    pub interfaces: Vec<Interface>,
    /// Whether root's marked connections are the guard's too: some services answer to root alone.
    pub as_root: bool,
    /// Whose connections out of other network namespaces are led here, or counted.
    pub guests: Option<Guests>,
}

/// One IP version's words in nftables' language.
pub(super) struct Family {
    /// Its place in [`FAMILIES`].
    pub(super) index: usize,
    pub(super) set: &'static str,
    set_type: &'static str,
    pub(super) key: &'static str,
    pub(super) address_key: &'static str,
    pub(super) original: &'static str,
    /// The chain that leads a connection to the listener.
    lead: &'static str,
    /// The one that leads a connection out of another network namespace.
    pub(super) guests: &'static str,
    /// The address of an interface to which it leads.
    address: fn(&Interface) -> Option<IpAddr>,
    /// Whether the listener's loopback address will do where an interface has no address of its own.
    pub(super) loopback: bool,
}

const FAMILIES: [Family; 3] = [
    Family {
        index: 0,
        set: "endpoints4",
        set_type: "ipv4_addr . inet_service",
        key: "ip daddr . tcp dport",
        address_key: "ip daddr",
        original: "ct original ip daddr . ct original proto-dst",
        lead: "lead4",
        guests: "guests4",
        address: |interface| interface.v4.map(IpAddr::V4),
        loopback: true,
    },
    Family {
        index: 1,
        set: "endpoints6",
        set_type: "ipv6_addr . inet_service",
        key: "ip6 daddr . tcp dport",
        address_key: "ip6 daddr",
        original: "ct original ip6 daddr . ct original proto-dst",
        lead: "lead6",
        guests: "guests6",
        address: |interface| interface.v6.map(IpAddr::V6),
        loopback: true,
    },
    Family {
        index: 2,
        set: "endpoints6_link",
        set_type: "ipv6_addr . inet_service",
        key: "ip6 daddr . tcp dport",
        address_key: "ip6 daddr",
        original: "ct original ip6 daddr . ct original proto-dst",
        lead: "lead6_link",
        guests: "guests6_link",
        address: |interface| interface.link_local.map(IpAddr::V6),
        loopback: false,
    },
];

/// Which of [`FAMILIES`] an address belongs to.
pub(super) fn family_of(addr: IpAddr) -> usize {
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
        format!("imds-guard {}", hex::encode(digest.get(..6).unwrap_or(&digest)))
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
        let mut blocks: Vec<Block> = self.families().map(|(family, doors)| set(family, &doors)).collect();
        blocks.extend(self.families().map(|(family, doors)| self.lead(family, &doors)));
        blocks.push(self.redirect_output());
        blocks.push(self.only_redirected());
        blocks.push(self.listener_input());
        blocks.extend(self.listener_output());
        if let Some(guests) = &self.guests {
            let families: Vec<_> = self.families().map(|(family, _)| family).collect();
            blocks.extend(guests.blocks(&families, &self.interfaces));
        }
        if self.direction == Direction::Closed {
            blocks.push(self.only_guard());
            blocks.push(self.enforce_output());
            blocks.push(self.enforce_forward());
        }
        blocks
    }

    /// The families that have endpoints at all, with their doors in a stable order.
    fn families(&self) -> impl Iterator<Item = (&'static Family, Vec<Led>)> {
        let mut sorted = self.doors.clone();
        sorted.sort_unstable();
        FAMILIES.iter().enumerate().filter_map(move |(index, family)| {
            let doors: Vec<Led> =
                sorted.iter().filter(|door| family_of(door.endpoint.addr) == index).copied().collect();
            (!doors.is_empty()).then_some((family, doors))
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

    fn lead(&self, family: &Family, doors: &[Led]) -> Block {
        let mut rules = Vec::new();
        for Led { endpoint, port } in doors {
            let to = format!("{} {} tcp dport {}", family.address_key, endpoint.addr, endpoint.port);
            for interface in &self.interfaces {
                let (name, own) = (&interface.name, (family.address)(interface));
                let target = match own {
                    Some(IpAddr::V4(own)) => format!("ip to {own}"),
                    Some(IpAddr::V6(own)) => format!("ip6 to [{own}]"),
                    None => continue,
                };
                rules.push(format!("oifname \"{name}\" {to} dnat {target}:{port}"));
            }
            if family.loopback {
                rules.push(format!("{to} redirect to :{port}"));
            }
        }
        Block::chain(family.lead, None, rules)
    }

    fn listener_input(&self) -> Block {
        let hook = format!("type filter hook input priority {FILTER_PRIORITY}; policy accept;");
        let rules = vec![format!("tcp dport {{ {} }} jump only_redirected", ports(&self.doors))];
        Block::chain("listener_input", Some(hook), rules)
    }

    /// This host's own connections to the listeners are reset before they leave: on arrival connection tracking would
    /// know them already, and for a while rewrite the source port of whoever uses theirs for a redirected connection.
    fn listener_output(&self) -> Vec<Block> {
        let hook = format!("type filter hook output priority {FILTER_PRIORITY}; policy accept;");
        let to_listener = format!("oifname \"lo\" tcp dport {{ {} }} jump only_led", ports(&self.doors));
        let only_led =
            vec!["ct status dnat accept".to_owned(), "meta l4proto tcp reject with tcp reset".to_owned()];
        vec![
            Block::chain("only_led", None, only_led),
            Block::chain("listener_output", Some(hook), vec![to_listener]),
        ]
    }

    /// What the redirect did not bring is reset; and so is a connection whose source port the kernel had to rewrite,
    /// since that port could belong to another caller's socket.
    fn only_redirected(&self) -> Block {
        let mut rules = vec!["ct status snat reject with tcp reset".to_owned()];
        rules.extend(self.families().map(|(Family { set, original, .. }, _)| {
            format!("meta l4proto tcp ct status dnat {original} @{set} accept")
        }));
        rules.push("meta l4proto tcp reject with tcp reset".to_owned());
        Block::chain("only_redirected", None, rules)
    }

    /// Other namespaces' traffic through this host (containers) gets nothing.
    fn enforce_forward(&self) -> Block {
        let hook = format!("type filter hook forward priority {FILTER_PRIORITY}; policy accept;");
        let rules = self.families().map(|(Family { set, key, .. }, _)| {
            format!("{key} @{set} meta l4proto tcp reject with tcp reset")
        });
        Block::chain("enforce_forward", Some(hook), rules.collect())
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
            // The mark speaks for connections that began as the guard's. A first packet begins one, and must not
            // borrow the mark of an entry that the guard's closed connection left behind at the same source port.
            format!("{FIRST_PACKET} reject with tcp reset"),
            format!("ct state established ct mark and {MARK_BIT:#010x} == {MARK_BIT:#010x} accept"),
            "meta l4proto tcp reject with tcp reset".to_owned(),
        ]);
        Block::chain("only_guard", None, rules)
    }
}

/// The listeners' ports as the elements of a set.
pub(super) fn ports(doors: &[Led]) -> String {
    let ports: BTreeSet<u16> = doors.iter().map(|door| door.port).collect();
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// A set, a chain or a counter of the table.
pub(super) struct Block {
    pub(super) kind: &'static str,
    pub(super) name: &'static str,
    pub(super) head: Option<String>,
    pub(super) rules: Vec<String>,
}

impl Block {
    pub(super) fn chain(name: &'static str, hook: Option<String>, rules: Vec<String>) -> Self {
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

fn set(family: &Family, doors: &[Led]) -> Block {
    let elements: Vec<String> =
        doors.iter().map(|door| format!("{} . {}", door.endpoint.addr, door.endpoint.port)).collect();
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
        let endpoints = [
            endpoint("169.254.169.254", 80),
            endpoint("169.254.169.254", 443),
            endpoint("fd00:ec2::254", 80),
            endpoint("fe80::a9fe:a9fe", 80),
        ];
        Wanted {
            direction,
            doors: lead(&endpoints, 169),
            guard_uid: 990,
            interfaces: vec![Interface {
                name: "ens5".into(),
                index: 2,
                v4: Some("10.0.0.5".parse().unwrap()),
                v6: None,
                link_local: Some("fe80::5".parse().unwrap()),
            }],
            as_root: false,
            guests: None,
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

    fn with_guests(doors: Option<Vec<Led>>) -> Wanted {
        let guests = Guests {
            interfaces: vec!["docker0".into(), "br-*".into()],
            uplinks: vec!["br-lan".into(), "ens5".into()],
            own: Vec::new(),
            doors,
        };
        let mut wanted = wanted(Direction::Open);
        wanted.interfaces.push(Interface {
            name: "docker0".into(),
            index: 3,
            v4: Some("172.17.0.1".parse().unwrap()),
            v6: Some("fd17::1".parse().unwrap()),
            link_local: None,
        });
        Wanted { guests: Some(guests), ..wanted }
    }

    #[test]
    fn containers_are_led_from_their_interfaces_and_never_from_an_uplink() {
        let doors = lead_guests(&wanted(Direction::Open).doors);
        insta::assert_snapshot!(with_guests(Some(doors)).table());
    }

    #[test]
    fn what_is_this_host_s_own_address_is_not_led_away_from_it() {
        let doors = lead_guests(&wanted(Direction::Open).doors);
        let mut wanted = with_guests(Some(doors));
        let led = |wanted: &Wanted| {
            let rules = |chain| wanted.chains().into_iter().find(|(name, _)| *name == chain).unwrap().1;
            ["guests4", "guests6", "lead4", "lead6"].map(rules)
        };
        let [v4, v6, own4, own6] = led(&wanted);
        wanted.guests.as_mut().unwrap().own.push("fd00:ec2::254".parse().unwrap());
        assert_eq!(led(&wanted), [v4, v6 - 1, own4, own6], "all else is led as ever");
    }

    #[test]
    fn containers_that_are_not_judged_are_counted_and_led_nowhere() {
        let text = with_guests(None).table();
        assert!(text.contains("counter name containers") && !text.contains("nat hook prerouting"));
        insta::assert_snapshot!(text);
    }

    #[test]
    fn containers_have_listeners_of_their_own() {
        let doors = wanted(Direction::Closed).doors;
        let guests = lead_guests(&doors);
        assert_eq!(guests.len(), 3, "link-local endpoints are not routed");
        assert!(guests.iter().all(|guest| doors.iter().all(|door| door.port != guest.port)));
    }

    #[test]
    fn a_host_without_v6_endpoints_has_no_v6_rules() {
        let mut v4 = wanted(Direction::Closed);
        v4.doors.retain(|door| door.endpoint.addr.is_ipv4());
        assert!(!v4.table().contains("ip6"));
        let names: Vec<&str> = v4.chains().into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "lead4",
                "redirect_output",
                "only_redirected",
                "listener_input",
                "only_led",
                "listener_output",
                "only_guard",
                "enforce_output",
                "enforce_forward"
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
    fn every_endpoint_has_a_listener_of_its_own_and_none_that_others_are_known_for() {
        let endpoints: Vec<Endpoint> = (0..40).map(|port| Endpoint::new(Endpoint::SHARED, port)).collect();
        let mut ports: Vec<u16> = lead(&endpoints, 169).iter().map(|door| door.port).collect();
        assert!(!ports.contains(&179) && !ports.contains(&199));
        ports.dedup();
        assert_eq!(ports.len(), 40);
    }

    #[test]
    fn the_order_of_the_endpoints_does_not_matter() {
        let mut reversed = wanted(Direction::Closed);
        reversed.doors.reverse();
        assert_eq!(reversed.script(), wanted(Direction::Closed).script());
    }
}
