//! Agents of the node that answer on a metadata address themselves: what they lead to themselves is found, told, and left to
//! them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::coexistence::load;
use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::caller::{Caller, Curl};
use crate::support::container::{Bridge, Container};
use crate::support::guard::Guard;
use crate::support::policy::Policy;
use crate::support::wait;

const PATIENCE: Duration = Duration::from_secs(15);

const CONTAINERS: &str = "[containers]\ninterfaces = [\"docker0\"]\njudge = true";

/// Whatever it is asked, it answers this.
const ANSWER: &str = "the agent of this node";

/// A node's agent: an HTTP server in the vm.
struct NodeAgent {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl NodeAgent {
    fn start(bed: &Bed, at: &str) -> Self {
        let at: SocketAddr = at.parse().unwrap();
        let listener =
            Arc::new(bed.network.vm.enter(|| TcpListener::bind(at).expect("the address is there")));
        let accepting = Arc::clone(&listener);
        let thread = thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                let (mut head, mut block) = (Vec::new(), [0; 1024]);
                while !head.ends_with(b"\r\n\r\n")
                    && let Ok(length @ 1..) = stream.read(&mut block)
                {
                    head.extend(&block[..length]);
                }
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{ANSWER}",
                    ANSWER.len()
                );
            }
        });
        Self { listener, thread: Some(thread) }
    }
}

impl Drop for NodeAgent {
    fn drop(&mut self) {
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn ask(caller: &Caller<'_>, url: &str) -> Curl {
    caller.curl(&["--max-time", "5", url])
}

fn is_the_agents(curl: &Curl) -> bool {
    curl.exit == 0 && curl.answer.text() == ANSWER
}

fn told(guard: &Guard, reason: &str, part: &str) {
    guard.event(part, |event| {
        event.text("imds_guard.reason") == reason && event.text("message").contains(part)
    });
}

/// No event of the guard's is about a container.
fn nothing_was_judged(guard: &Guard) {
    let judged = guard.events().into_iter().find(|event| event.text("imds_guard.origin") == "container");
    assert!(judged.is_none(), "it was judged: {judged:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_the_ecs_agent_redirects_is_told_and_left_to_it() {
    for policy in [Policy::enforce(), Policy::audit()] {
        let enforces = policy.text(std::path::Path::new("/")).contains("enforce");
        let bed = Bed::new();
        let bridge = Bridge::new(&bed, "docker0");
        let container = Container::docker(&bed, &bridge, 2);
        bed.sysctl("net/ipv4/conf/docker0/route_localnet", "1");
        bed.network.vm.ip("route add 169.254.170.2 via 10.99.0.1\n");
        let _agent = NodeAgent::start(&bed, "127.0.0.1:51679");
        load(&bed, "ecs.rules");
        let guard = bed.guard(&policy.with(CONTAINERS));
        told(&guard, "node-agent", "169.254.170.2 is led by ip nat PREROUTING");
        let url = "http://169.254.170.2/v2/credentials/0b1c";
        let answer = ask(&container.root(), url);
        assert!(is_the_agents(&answer), "{answer:?}");
        nothing_was_judged(&guard);
        // The rest of what containers ask for is judged as ever.
        let other = ask(&container.root(), &format!("http://169.254.169.254{ROLE_PATH}"));
        assert_eq!(other.answer.is_refusal(), enforces, "{other:?}");
        // This host's own callers are judged, and what may pass ends at the agent all the same.
        assert!(is_the_agents(&ask(&bed.agent(), url)));
        let web = ask(&bed.webapp(), url);
        assert_eq!(web.answer.is_refusal(), enforces, "{web:?}");
        assert_eq!(is_the_agents(&web), !enforces, "{web:?}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_agent_that_has_the_address_itself_is_told_and_left_alone() {
    // EKS Pod Identity: the agent's address is the node's own, and no rule leads there.
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    let guard = bed.guard(&Policy::enforce().with(CONTAINERS));
    bed.network.vm.ip("addr add 169.254.170.23/32 dev lo\n");
    let _agent = NodeAgent::start(&bed, "169.254.170.23:80");
    told(&guard, "node-agent", "169.254.170.23 is an address of this host");
    let url = "http://169.254.170.23/v1/credentials";
    wait::until_true("the agent answers", PATIENCE, || is_the_agents(&ask(&container.root(), url)));
    assert!(is_the_agents(&ask(&bed.agent(), url)), "this host's own agent passes");
    assert!(ask(&bed.webapp(), url).answer.is_refusal(), "and nobody else");
    bed.network.vm.ip("addr del 169.254.170.23/32 dev lo\n");
    told(&guard, "node-agent-gone", "169.254.170.23 is an address of this host");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_gke_s_metadata_server_takes_from_pods_is_told_and_left_to_it() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    bed.network.vm.ip("addr add 169.254.169.252/32 dev lo\n");
    let _agent = NodeAgent::start(&bed, "169.254.169.252:988");
    let guard = bed.guard(&Policy::enforce().with(CONTAINERS));
    let url = format!("http://169.254.169.254{ROLE_PATH}");
    assert!(ask(&container.root(), &url).answer.is_refusal(), "without the rule it is the guard's");
    // The daemon's rules come when it starts, long after the guard.
    let rule = "add table ip nat; \
                add chain ip nat GKE { type nat hook prerouting priority dstnat; }; \
                add rule ip nat GKE iifname \"docker0\" ip daddr 169.254.169.254 tcp dport 80 dnat to 169.254.169.252:988";
    assert!(bed.nft(&[rule]).0);
    told(&guard, "node-agent", "169.254.169.254 is led by ip nat GKE");
    let answer = ask(&container.root(), &url);
    assert!(is_the_agents(&answer), "{answer:?}");
    assert!(ask(&bed.webapp(), &url).answer.is_refusal(), "this host's callers are judged as ever");
    assert_eq!(bed.agent().get(&url).status, 200);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_status_and_verify_name_the_node_s_agents() {
    let bed = Bed::new();
    load(&bed, "ecs.rules");
    let guard = bed.guard(&Policy::enforce().guard_key("status-socket = \"{dir}/status.sock\""));
    told(&guard, "node-agent", "169.254.170.2");
    let run = |arguments: &[&str]| {
        let output =
            bed.guard_command().args(arguments).arg("--config").arg(guard.config()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    wait::until_true("the status names it", PATIENCE, || {
        let said = run(&["status"]);
        said.contains("node agent") && said.contains("169.254.170.2 is led by ip nat OUTPUT")
    });
    let said = run(&["verify"]);
    assert!(said.contains("node-agent") && said.contains("ip nat PREROUTING"), "{said}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn rules_of_iptables_legacy_are_left_and_told_to_be_unreadable() {
    let bed = Bed::new();
    let mut legacy = bed.network.vm.command("iptables-legacy");
    legacy.args(["-t", "nat", "-A", "PREROUTING", "-d", "169.254.170.2/32", "-p", "tcp", "--dport", "80"]);
    legacy.args(["-j", "DNAT", "--to-destination", "127.0.0.1:51679"]);
    if !legacy.status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: this machine has no iptables-legacy");
        return;
    }
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    bed.sysctl("net/ipv4/conf/docker0/route_localnet", "1");
    let _agent = NodeAgent::start(&bed, "127.0.0.1:51679");
    let guard = bed.guard(&Policy::enforce().with(CONTAINERS));
    told(&guard, "node-agent", "iptables-legacy");
    assert!(is_the_agents(&ask(&container.root(), "http://169.254.170.2/v2/credentials/0b1c")));
    nothing_was_judged(&guard);
}
