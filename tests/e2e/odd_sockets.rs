//! Sockets that a plain redirect to loopback would break, and connections in which privilege shows.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use crate::support::bed::{Bed, ROLE_PATH, WEB_UID, in_both_modes};
use crate::support::policy::{AGENT, Policy};
use crate::support::simulator::{Options, Simulator};
use crate::support::wait;

const ROLE_URL: &str = "http://169.254.169.254/latest/meta-data/iam/security-credentials/decoy-role";
const WIRESERVER: &str = "http://168.63.129.16/machine?comp=goalstate";

/// What waagent puts between everybody but root and WireServer.
const WAAGENT_RULES: &str = "add table ip security; \
    add chain ip security out { type filter hook output priority 50; policy accept; }; \
    add rule ip security out ip daddr 168.63.129.16 meta skuid 0 accept; \
    add rule ip security out ip daddr 168.63.129.16 ct state invalid,new drop";

#[test]
#[ignore = "needs root: make test runs it"]
fn a_socket_bound_to_its_interface_is_served() {
    in_both_modes(|bed| {
        let curl = bed.agent().curl(&["--interface", "eth0", ROLE_URL]);
        assert_eq!((curl.exit, curl.answer.status), (0, 200), "{}", curl.message);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_bound_socket_of_an_unlisted_caller_is_refused() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    let curl = bed.caller("webapp.service", 0).curl(&["--interface", "eth0", ROLE_URL]);
    assert_eq!((curl.exit, curl.answer.status), (0, 404), "{}", curl.message);
    assert_eq!(guard.event_for(ROLE_PATH).text("imds_guard.attribution"), "stamped");
    assert!(bed.reached(ROLE_PATH).is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_address_that_comes_later_is_followed() {
    let bed = Bed::new();
    bed.network.vm.ip("addr del 10.99.0.2/24 dev eth0\n");
    let _guard = bed.guard(&Policy::enforce());
    bed.network.vm.ip("addr add 10.99.0.3/24 dev eth0\nroute add 169.254.169.254 via 10.99.0.1\n");
    is_led_to(&bed, "lead4", "10.99.0.3");
    let curl = bed.agent().curl(&["--interface", "eth0", ROLE_URL]);
    assert_eq!((curl.exit, curl.answer.status), (0, 200), "{}", curl.message);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_link_local_address_of_hetzner_and_openstack_is_guarded() {
    in_both_modes(|bed| {
        let link_local = link_local_cloud(bed);
        is_led_to(bed, "lead6_link", "fe80::2");
        let url = "http://[fe80::a9fe:a9fe%25eth0]/hetzner/v1/metadata/instance-id";
        let curl = bed.agent().curl(&[url]);
        assert_eq!(curl.exit, 0, "{}", curl.message);
        assert_eq!(link_local.received().len(), 1, "the cloud was asked once");
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_unlisted_caller_gets_no_user_data_by_the_link_local_address() {
    let bed = Bed::new();
    let link_local = link_local_cloud(&bed);
    let guard = bed.guard(&Policy::enforce());
    let curl = bed.webapp().curl(&["http://[fe80::a9fe:a9fe%25eth0]/hetzner/v1/userdata"]);
    assert!(curl.answer.is_refusal(), "{curl:?}");
    assert_eq!(guard.event_for("/hetzner/v1/userdata").text("imds_guard.attribution"), "stamped");
    assert!(link_local.received().is_empty());
}

/// Waits until the guard has seen an address that came after its start.
fn is_led_to(bed: &Bed, chain: &str, address: &str) {
    wait::until_true("the new address is led to", Duration::from_secs(5), || {
        bed.nft(&["list", "chain", "inet", "imds_guard", chain]).1.contains(address)
    });
}

/// A cloud at the link-local address, on the other end of the vm's cable.
fn link_local_cloud(bed: &Bed) -> Simulator {
    bed.network.cloud.ip("addr add fe80::a9fe:a9fe/64 dev eth0 nodad\n");
    bed.network.vm.ip("addr add fe80::2/64 dev eth0 nodad\n");
    let address: Ipv6Addr = "fe80::a9fe:a9fe".parse().unwrap();
    bed.network
        .cloud
        .enter(|| {
            let index = nix::net::if_::if_nametoindex("eth0").unwrap();
            let to = SocketAddr::V6(SocketAddrV6::new(address, 80, 0, index));
            Simulator::start(&[to], Options::default())
        })
        .unwrap()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn root_reaches_wireserver_through_the_agent_s_own_firewall() {
    in_both_modes(|bed| {
        assert!(bed.nft(&[WAAGENT_RULES]).0);
        let curl = bed.agent().curl(&["-H", "x-ms-version: 2012-11-30", WIRESERVER]);
        assert_eq!(curl.exit, 0, "{}", curl.message);
        assert_eq!(bed.reached("/machine").len(), 1);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn others_stay_as_shut_out_of_wireserver_as_the_agent_meant_them_to_be() {
    for policy in [Policy::audit(), Policy::enforce()] {
        let bed = Bed::new();
        let _guard = bed.guard(&policy);
        assert!(bed.nft(&[WAAGENT_RULES]).0);
        let arguments = ["--max-time", "1", "-H", "x-ms-version: 2012-11-30", WIRESERVER];
        let _ = bed.caller(AGENT, WEB_UID).curl(&arguments);
        assert!(bed.reached("/machine").is_empty(), "the guard lent root's place to another");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn hostgaplugin_is_reached_as_wireserver_is() {
    in_both_modes(|bed| {
        assert!(bed.nft(&[WAAGENT_RULES]).0);
        let at = ["168.63.129.16:32526".parse().unwrap()];
        let plugin = bed.network.cloud.enter(|| Simulator::start(&at, Options::default())).unwrap();
        let url = "http://168.63.129.16:32526/vmSettings";
        let other = bed.caller(AGENT, WEB_UID).curl(&["--max-time", "1", url]);
        assert!(plugin.received().is_empty(), "the guard lent root's place to another: {other:?}");
        let curl = bed.agent().curl(&[url]);
        assert_eq!(curl.exit, 0, "{}", curl.message);
        assert_eq!(plugin.received().len(), 1);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_source_port_below_1024_is_shown_upstream_only_where_the_caller_s_was() {
    in_both_modes(|bed| {
        let url = "http://169.254.42.42/user_data/key";
        let low = bed.agent().curl(&["--local-port", "700-800", url]);
        let high = bed.agent().curl(&[url]);
        assert_eq!((low.exit, high.exit), (0, 0), "{} {}", low.message, high.message);
        let ports: Vec<u16> = bed.reached("/user_data").iter().map(|request| request.peer.port()).collect();
        assert!(ports.len() == 2 && ports[0] < 1024 && ports[1] >= 1024, "{ports:?}");
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn root_s_mark_opens_nothing_where_no_service_asks_for_root() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    let has_exception = || bed.nft(&["list", "table", "inet", "imds_guard"]).1.contains("meta skuid 0");
    assert!(has_exception(), "every cloud is judged by, WireServer among them");
    guard.reload(&Policy::enforce().cloud("aws"));
    wait::until_true("the exception goes", Duration::from_secs(5), || !has_exception());
    assert_eq!(bed.agent().get(ROLE_URL).status, 200);
}
