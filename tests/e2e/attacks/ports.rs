//! Source ports: two connections from one of them must not be taken for one another.

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::caller::{Caller, PYTHON};
use crate::support::connection::Connection;
use crate::support::netns::VM;
use crate::support::policy::Policy;
use crate::support::simulator::SECRET_MARK;

const METADATA: &str = "169.254.169.254:80";
const SAME_PORT: &str = include_str!("../../support/same_port.py");

/// One request for the credentials from a source port.
pub(super) struct Attempt<'a> {
    /// The source port.
    pub port: u16,
    /// Where another connection from the same port leads at the same time.
    pub first: Option<(&'a str, u16)>,
}

/// What came of it, as the caller tells it.
pub(super) fn attempt(caller: &Caller<'_>, attempt: &Attempt<'_>) -> String {
    attempts(caller, &attempt.port.to_string(), attempt.first)
}

/// The same from a range of ports, for two seconds at most.
fn attempts(caller: &Caller<'_>, ports: &str, first: Option<(&str, u16)>) -> String {
    let mut command = caller.command(PYTHON);
    command.args(["-I", "-S", "-c", SAME_PORT, ports, "2"]);
    if let Some((address, port)) = first {
        command.args([address, &port.to_string()]);
    }
    let output = command.output().expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn two_endpoints_from_one_source_port_both_work() {
    for policy in [Policy::enforce(), Policy::audit()] {
        let bed = Bed::new();
        let _guard = bed.guard(&policy);
        // Aliyun's endpoint and, where the cloud listens on it too, Scaleway's.
        let told = attempt(&bed.agent(), &Attempt { port: 21_000, first: Some(("169.254.42.42", 80)) });
        assert!(!told.contains("first:"), "the first connection failed: {told}");
        assert!(told.contains(SECRET_MARK), "the second connection failed: {told}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_source_port_shared_with_another_endpoint_gives_a_stranger_nothing() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    // Connections of the agent to be mistaken for, their source ports in the kernel's range.
    let agents: Vec<Connection> = (0..20).map(|_| bed.agent().connect(METADATA)).collect();
    for first in [("169.254.42.42", 80), ("168.63.129.16", 80), ("169.254.169.254", 8080)] {
        let told = attempts(&bed.person(), "20000-28000", Some(first));
        assert!(told.contains("answer:"), "nothing was tried: {told}");
        assert!(!told.contains(SECRET_MARK), "{first:?}: {told}");
    }
    assert!(bed.reached(ROLE_PATH).is_empty());
    drop(agents);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_rewritten_source_port_is_reset() {
    // The kernel rewrites a port that would clash; here a rule does, so that it surely happens.
    for policy in [Policy::enforce(), Policy::audit()] {
        let bed = Bed::new();
        let guard = bed.guard(&policy);
        let untouched = attempt(&bed.agent(), &Attempt { port: 21_001, first: None });
        assert!(untouched.contains(SECRET_MARK), "{untouched}");
        let rule = "add table ip rewrite; \
                    add chain ip rewrite post { type nat hook postrouting priority 100; }; \
                    add rule ip rewrite post ip daddr 10.99.0.2 tcp sport 21002 snat to 10.99.0.2:22002";
        assert!(bed.nft(&[rule]).0);
        for caller in [bed.agent(), bed.person()] {
            let told = attempt(&caller, &Attempt { port: 21_002, first: None });
            assert!(told.contains("error:"), "it was served under another's port: {told}");
        }
        assert_eq!(bed.reached(ROLE_PATH).len(), 1, "only the request whose port was its own");
        drop(guard);
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn connecting_to_a_listener_does_not_poison_the_source_port() {
    // A stranger could otherwise shut the agent out by connecting from each port that the agent may get.
    for policy in [Policy::enforce(), Policy::audit()] {
        let bed = Bed::new();
        let guard = bed.guard(&policy);
        let mut tried = 0;
        for (number, listener) in (0_u16..).zip(guard.listening_ports()) {
            let port = 21_100 + number;
            attempt(&bed.person(), &Attempt { port, first: Some((VM[0], listener)) });
            let told = attempt(&bed.agent(), &Attempt { port, first: None });
            assert!(told.contains(SECRET_MARK), "listener {listener}: {told}");
            tried += 1;
        }
        assert!(tried > 0, "the guard listens nowhere");
    }
}
