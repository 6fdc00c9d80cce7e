//! Callers of whom the kernel says nothing that may be believed.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::connection::Kind;
use crate::support::guard;
use crate::support::policy::Policy;
use crate::support::wait;

const METADATA: &str = "169.254.169.254:80";

#[test]
#[ignore = "needs root: make test runs it"]
fn a_caller_whose_cgroup_is_gone_is_unattributed_and_refused() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    // The socket is stamped with the agent's cgroup; then the process moves away and the cgroup goes, so that the id
    // on the stamp names nothing.
    let agent = bed.agent();
    let mut connection = agent.connect_as(METADATA, Kind::Held);
    let elsewhere = bed.slice.unit("elsewhere.service");
    std::fs::write(elsewhere.dir.join("cgroup.procs"), connection.pid().to_string()).unwrap();
    agent.cgroup.remove();
    connection.release();
    connection.get(ROLE_PATH, &[]);
    assert!(connection.answer().is_some_and(|answer| answer.is_refusal()));
    let event = guard.event_for(ROLE_PATH);
    assert_eq!(event.text("imds_guard.attribution"), "unknown-cgroup");
    assert_eq!(event.text("user.id"), "", "a stamp that is not believed must not be told as a fact");
    assert!(bed.cloud.received().is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_orphaned_socket_is_not_taken_for_root() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    // The guard is held still while root's agent asks and dies: what it finds then is a socket without an owner, which
    // the kernel reports as uid 0.
    guard::send(guard.proxy(), Signal::SIGSTOP);
    let mut connection = bed.agent().connect(METADATA);
    connection.get(ROLE_PATH, &[]);
    std::thread::sleep(Duration::from_millis(200));
    drop(connection);
    guard::send(guard.proxy(), Signal::SIGCONT);
    // Either event is right: of the request, or of a connection that was closed before it was read.
    let event =
        guard.event("an event of the orphan", |event| !event.text("imds_guard.attribution").is_empty());
    assert!(matches!(event.text("imds_guard.attribution").as_str(), "orphan" | "no-socket"), "{event:?}");
    assert!(bed.cloud.received().is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_stamp_is_of_the_sockets_creation_not_of_the_present() {
    // A process that moves into the agent's cgroup after creating its socket is still what it was.
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let other = bed.caller("cron.service", 0);
    let mut connection = other.connect_as(METADATA, Kind::Held);
    let agent = bed.agent();
    std::fs::write(agent.cgroup.dir.join("cgroup.procs"), connection.pid().to_string()).unwrap();
    connection.release();
    connection.get(ROLE_PATH, &[]);
    assert!(connection.answer().is_some_and(|answer| answer.is_refusal()));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn multipath_and_fast_open_clients_are_caught_and_known() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    for (number, kind) in [Kind::Mptcp, Kind::FastOpen, Kind::Mapped].into_iter().enumerate() {
        let mut refused = bed.webapp().connect_as(METADATA, kind);
        refused.get(ROLE_PATH, &[]);
        assert!(refused.answer().is_some_and(|answer| answer.is_refusal()), "{kind:?}");
        let mut granted = bed.agent().connect_as(METADATA, kind);
        granted.get(ROLE_PATH, &[]);
        assert_eq!(granted.answer().map(|answer| answer.status), Some(200), "{kind:?}");
        assert_eq!(bed.reached(ROLE_PATH).len(), number + 1, "{kind:?}");
    }
    let count = |event: &&crate::support::event::Event| event.text("url.path") == ROLE_PATH;
    wait::until_true("six events", Duration::from_secs(5), || {
        guard.events().iter().filter(count).count() == 6
    });
    for event in guard.events().iter().filter(count) {
        assert_eq!(event.text("imds_guard.attribution"), "stamped", "{event:?}");
    }
}
