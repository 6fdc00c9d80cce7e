//! Two network namespaces joined by a cable: the "cloud", which owns the metadata addresses, and the "vm".
//!
//! All metadata traffic of the tests stays inside; the machine's own network is never touched. Names carry the prefix
//! and the process id, so that parallel runs don't meet and leftovers of a killed run can be told from live ones.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::sched::{CloneFlags, setns};

/// What the names of everything that a test bed makes begin with.
pub const PREFIX: &str = "imdsg";

/// The addresses at which the decoy cloud answers.
pub const METADATA: &[&str] =
    &["169.254.169.254", "168.63.129.16", "169.254.42.42", "fd00:ec2::254", "fd20:ce::254"];

/// The vm's own addresses.
pub const VM: &[&str] = &["10.99.0.2", "fd99::2"];

/// A name that no other test bed has.
pub fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A network namespace; removed when dropped.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one of this name.
    pub fn new(name: String) -> Self {
        // The first `ip netns add` of all prepares /run/netns, and two at once would do it twice.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        namespace.ip("link set lo up\n");
        namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that names this namespace.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs lines of `ip` commands inside.
    pub fn ip(&self, lines: &str) {
        let mut child = Command::new("ip")
            .args(["-netns", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip (package iproute2) runs");
        child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("ip reads its batch");
        assert!(child.wait().expect("ip ends").success(), "ip refused a line of:\n{lines}");
    }

    /// A command that runs inside; the process that it becomes is the program itself, not a parent of it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).args(["--", program]);
        command
    }

    /// Runs `work` on a thread of its own inside; the sockets that it opens stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("the namespace exists");
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// The two namespaces.
pub struct Network {
    /// Where the metadata addresses live.
    pub cloud: Namespace,
    /// Where the guard and its callers live.
    pub vm: Namespace,
}

impl Network {
    /// Makes both and the cable between them. Duplicate address detection is off, or IPv6 would need a second.
    pub fn new(name: &str) -> Self {
        let cloud = Namespace::new(format!("{name}-cloud"));
        let vm = Namespace::new(format!("{name}-vm"));
        vm.ip(&format!("link add eth0 type veth peer name eth0 netns {name}-cloud\n"));
        let mut cloud_lines = String::from(
            "link set eth0 addrgenmode none\nlink set eth0 up\n\
             addr add 10.99.0.1/24 dev eth0\naddr add fd99::1/64 dev eth0 nodad\n",
        );
        let mut vm_lines = String::from(
            "link set eth0 addrgenmode none\nlink set eth0 up\n\
             addr add 10.99.0.2/24 dev eth0\naddr add fd99::2/64 dev eth0 nodad\n",
        );
        for address in METADATA {
            let v6 = address.contains(':');
            let _ = writeln!(cloud_lines, "addr add {address} dev lo{}", if v6 { " nodad" } else { "" });
            let _ =
                writeln!(vm_lines, "route add {address} via {}", if v6 { "fd99::1" } else { "10.99.0.1" });
        }
        cloud.ip(&cloud_lines);
        vm.ip(&vm_lines);
        Self { cloud, vm }
    }

    /// Every metadata address with the given port.
    pub fn metadata(port: u16) -> Vec<SocketAddr> {
        METADATA
            .iter()
            .map(|address| address.parse::<IpAddr>().expect("an address"))
            .map(|address| SocketAddr::new(address, port))
            .collect()
    }
}

/// Runs a command that must succeed.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
