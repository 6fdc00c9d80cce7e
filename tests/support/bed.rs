//! The whole test bed: a cloud, a vm, and callers. The guard is started by the test, with the policy that it is about.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use super::caller::Caller;
use super::cgroup::Slice;
use super::guard::Guard;
use super::netns::{METADATA, Network, unique};
use super::policy::{AGENT, Policy};
use super::simulator::{Options, Received, Simulator};

/// The web application's user.
pub const WEB_UID: u32 = 63_033;

/// The person's user.
pub const PERSON_UID: u32 = 63_100;

/// Where a role's credentials lie on AWS.
pub const ROLE_PATH: &str = "/latest/meta-data/iam/security-credentials/decoy-role";

/// Runs the same test with each mode: what a client sees of an allowed request is the same in both. The guard must have
/// seen it, or the test would show nothing.
pub fn in_both_modes(test: impl Fn(&mut Bed)) {
    for policy in [Policy::enforce(), Policy::audit()] {
        let mut bed = Bed::new();
        let guard = bed.guard(&policy);
        test(&mut bed);
        guard.event("of the request", |event| event.text("event.action") == "request");
    }
}

/// A cloud, a vm and what they need. The order of the fields is the order in which they go.
pub struct Bed {
    /// The decoy cloud.
    pub cloud: Simulator,
    /// The cgroups of the callers.
    pub slice: Slice,
    /// The two namespaces.
    pub network: Network,
    /// The name that no other test bed has.
    pub name: String,
}

impl Bed {
    /// A bed whose cloud answers on every metadata address.
    pub fn new() -> Self {
        Self::with_options(Options::default())
    }

    /// The same, with a cloud set up so.
    pub fn with_options(options: Options) -> Self {
        let name = unique();
        let network = Network::new(&name);
        let cloud = network.cloud.enter(|| Simulator::start(&Network::metadata(80), options));
        let slice = Slice::new(&name);
        Self { cloud: cloud.expect("the metadata addresses are free"), slice, network, name }
    }

    /// Starts the guard in the vm.
    pub fn guard(&self, policy: &Policy) -> Guard {
        Guard::start(&self.network.vm, policy)
    }

    /// The agent that the policies list: root, in its own unit.
    pub fn agent(&self) -> Caller<'_> {
        self.caller(AGENT, 0)
    }

    /// A web application that an attacker talks into fetching URLs: its own user, its own unit, not listed.
    pub fn webapp(&self) -> Caller<'_> {
        self.caller("webapp.service", WEB_UID)
    }

    /// A person's shell: a session scope, not a unit.
    pub fn person(&self) -> Caller<'_> {
        self.caller("session-7.scope", PERSON_UID)
    }

    /// Any caller.
    pub fn caller(&self, unit: &str, uid: u32) -> Caller<'_> {
        Caller::new(&self.network.vm, self.slice.unit(unit), uid)
    }

    /// Whether the vm has the guard's nft table.
    pub fn has_redirect(&self) -> bool {
        self.nft(&["list", "table", "inet", "imds_guard"]).0
    }

    /// Runs nft inside the vm; whether it succeeded, and what it printed.
    pub fn nft(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.network.vm.command("nft").args(arguments).output().expect("nft runs");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The requests for this path that reached the cloud.
    pub fn reached(&self, path: &str) -> Vec<Received> {
        let asks =
            |received: &Received| received.text().lines().next().is_some_and(|line| line.contains(path));
        self.cloud.received().into_iter().filter(asks).collect()
    }

    /// Answers UDP datagrams at a port of every IPv4 metadata address with the same bytes, as DNS and NTP servers there
    /// answer with others. One datagram, then it ends.
    pub fn echo_udp_once(&self, port: u16) -> std::thread::JoinHandle<SocketAddr> {
        let socket =
            self.network.cloud.enter(|| UdpSocket::bind((METADATA[0], port)).expect("the port is free"));
        std::thread::spawn(move || {
            let mut buffer = [0_u8; 512];
            let (length, peer) = socket.recv_from(&mut buffer).expect("a datagram comes");
            socket.send_to(&buffer[..length], peer).expect("and is answered");
            peer
        })
    }

    /// Sets a kernel setting of the vm's network namespace.
    pub fn sysctl(&self, name: &str, value: &str) {
        let set = format!("echo {value} > /proc/sys/{name}");
        let status = self.network.vm.command("sh").args(["-c", &set]).status();
        assert!(status.expect("sh runs").success(), "{name}");
    }

    /// A command of the guard's binary inside the vm, as root.
    pub fn guard_command(&self) -> Command {
        self.network.vm.command(super::guard::binary().to_str().expect("a path of text"))
    }
}
