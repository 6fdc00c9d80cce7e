//! Containers as Docker and Podman make them: a bridge in the vm with the rules of iptables-nft, and behind it network
//! namespaces, each with a first process in a control group of the engine's name.

use std::fs;
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::bed::Bed;
use super::caller::Caller;
use super::cgroup::{Cgroup, SystemUnit};
use super::netns::{Namespace, unique};
use super::wait;

/// A bridge of the vm, with the subnet of its containers.
pub struct Bridge {
    /// Its name.
    pub name: String,
    v4: String,
    v6: String,
}

impl Bridge {
    /// Makes it, and lets the vm forward what comes from there under its own address, as Docker does.
    pub fn new(bed: &Bed, name: &str) -> Self {
        let bridge = Self::of_this_name(name);
        let Self { v4, v6, .. } = &bridge;
        bed.network.vm.ip(&format!(
            "link add {name} type bridge\nlink set {name} addrgenmode none\nlink set {name} up\n\
             addr add {v4}.1/24 dev {name}\naddr add {v6}::1/64 dev {name} nodad\n"
        ));
        bridge.forward(bed);
        bridge
    }

    /// A cable to one namespace instead of a bridge: its end in the vm has this name. See [`Container::at_cable`].
    pub fn cable(bed: &Bed, name: &str) -> Self {
        let cable = Self::of_this_name(name);
        cable.forward(bed);
        cable
    }

    /// A subnet that no other test has: the guard looks into every namespace of the machine.
    fn of_this_name(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id() % 1200, NEXT.fetch_add(1, Ordering::Relaxed) % 40);
        let subnet = process * 40 + number;
        let (high, low) = (subnet / 250 + 20, subnet % 250);
        Self { name: name.to_owned(), v4: format!("10.{high}.{low}"), v6: format!("fd17:{high:x}:{low:x}") }
    }

    /// The address of a container of this number, of both IP versions.
    pub fn addresses(&self, number: u8) -> [String; 2] {
        [format!("{}.{number}", self.v4), format!("{}::{number:x}", self.v6)]
    }

    fn forward(&self, bed: &Bed) {
        bed.sysctl("net/ipv4/ip_forward", "1");
        bed.sysctl("net/ipv6/conf/all/forwarding", "1");
        let Self { name, v4, v6 } = self;
        for (family, subnet) in [("ip", format!("{v4}.0/24")), ("ip6", format!("{v6}::/64"))] {
            let rules = format!(
                "add table {family} nat; \
                 add chain {family} nat DOCKER; \
                 add chain {family} nat PREROUTING {{ type nat hook prerouting priority dstnat; policy accept; }}; \
                 add rule {family} nat PREROUTING fib daddr type local counter jump DOCKER; \
                 add chain {family} nat OUTPUT {{ type nat hook output priority -100; policy accept; }}; \
                 add chain {family} nat POSTROUTING {{ type nat hook postrouting priority srcnat; policy accept; }}; \
                 add rule {family} nat POSTROUTING oifname != \"{name}\" {family} saddr {subnet} counter masquerade; \
                 add table {family} filter; \
                 add chain {family} filter FORWARD {{ type filter hook forward priority filter; policy drop; }}; \
                 add rule {family} filter FORWARD iifname \"{name}\" counter accept; \
                 add rule {family} filter FORWARD oifname \"{name}\" ct state established,related counter accept"
            );
            assert!(bed.nft(&[&rules]).0, "nft takes Docker's rules");
        }
    }
}

/// A container: its network namespace, its control group, its first process.
pub struct Container {
    /// Its id.
    pub id: String,
    pause: Child,
    scope: SystemUnit,
    namespace: Namespace,
}

/// An id like an engine's: 64 hexadecimal digits.
pub fn id() -> String {
    let digits: Vec<String> = unique().bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{:0<64}", digits.concat())
}

impl Container {
    /// One of Docker's on this bridge, with the address of this number.
    pub fn docker(bed: &Bed, bridge: &Bridge, number: u8) -> Self {
        let id = id();
        Self::of(bed, bridge, number, &format!("docker-{id}.scope"), id)
    }

    /// One in a cgroup of this name below `/system.slice`.
    pub fn of(bed: &Bed, bridge: &Bridge, number: u8, scope: &str, id: String) -> Self {
        let namespace = Namespace::new(format!("{}-{}-{number}", bed.name, bridge.name));
        let port = format!("{}v{number}", bridge.name);
        bed.network.vm.ip(&format!(
            "link add {port} type veth peer name eth0 netns {}\nlink set {port} addrgenmode none\n\
             link set {port} master {}\nlink set {port} up\n",
            namespace.name(),
            bridge.name
        ));
        let container = Self::inside(namespace, bridge, number, scope, id);
        // A bridge forwards nothing of a new port until the kernel has got round to noticing that it is up.
        wait::until_true("the bridge forwards", Duration::from_secs(30), || {
            let shown = bed.network.vm.command("bridge").args(["link", "show", "dev", &port]).output();
            String::from_utf8_lossy(&shown.expect("bridge runs").stdout).contains("state forwarding")
        });
        container
    }

    /// One of Docker's at the far end of a cable, which has an address of its own in the vm.
    pub fn at_cable(bed: &Bed, cable: &Bridge, number: u8) -> Self {
        let namespace = Namespace::new(format!("{}-{}-{number}", bed.name, cable.name));
        let Bridge { name, v4, v6 } = cable;
        bed.network.vm.ip(&format!(
            "link add {name} type veth peer name eth0 netns {}\nlink set {name} addrgenmode none\n\
             link set {name} up\naddr add {v4}.1/24 dev {name}\naddr add {v6}::1/64 dev {name} nodad\n",
            namespace.name()
        ));
        let id = id();
        Self::inside(namespace, cable, number, &format!("docker-{id}.scope"), id)
    }

    fn inside(namespace: Namespace, bridge: &Bridge, number: u8, scope: &str, id: String) -> Self {
        let Bridge { v4, v6, .. } = bridge;
        namespace.ip(&format!(
            "link set eth0 addrgenmode none\nlink set eth0 up\n\
             addr add {v4}.{number}/24 dev eth0\naddr add {v6}::{number:x}/64 dev eth0 nodad\n\
             route add default via {v4}.1\nroute add ::/0 via {v6}::1\n"
        ));
        let scope = SystemUnit::new(scope);
        let pause = Caller::new(&namespace, scope.cgroup.clone(), 0).command("sleep").arg("900").spawn();
        Self { id, pause: pause.expect("sleep runs"), scope, namespace }
    }

    /// Its cgroup's path.
    pub fn cgroup(&self) -> &str {
        &self.scope.cgroup.path
    }

    /// A program inside, as root: many containers have nobody else.
    pub fn root(&self) -> Caller<'_> {
        self.user(0)
    }

    /// A program inside, as this user of the host.
    pub fn user(&self, uid: u32) -> Caller<'_> {
        Caller::new(&self.namespace, self.scope.cgroup.clone(), uid)
    }

    /// A program in its network namespace, in another cgroup.
    pub fn in_cgroup(&self, cgroup: Cgroup) -> Caller<'_> {
        Caller::new(&self.namespace, cgroup, 0)
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.pause.kill();
        let _ = self.pause.wait();
    }
}

/// A cgroup at any path of the tree, for one that an engine's cgroupfs driver would make. Removed when dropped.
pub struct Place {
    /// It.
    pub cgroup: Cgroup,
    made: Vec<std::path::PathBuf>,
}

impl Place {
    /// Makes it, and what is missing above it.
    pub fn new(path: &str) -> Self {
        let dir = super::cgroup::mount().join(path.trim_start_matches('/'));
        let missing = dir.ancestors().take_while(|dir| !dir.exists()).map(Into::into).collect();
        fs::create_dir_all(&dir).expect("root may make a cgroup");
        Self { cgroup: Cgroup { dir, path: path.to_owned() }, made: missing }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.cgroup.remove();
        for dir in &self.made {
            // Another test may have put something there meanwhile.
            let _ = fs::remove_dir(dir);
        }
    }
}
