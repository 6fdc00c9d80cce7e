//! What the kernel itself must refuse to somebody without privileges, and what a number is worth.

use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{PINNED_UID, PINNED_UNIT, Stage, insider, pinned, play, scratch, start, stranger};
use crate::support::bed::{PERSON_UID, ROLE_PATH};
use crate::support::connection::{Connection, Kind};
use crate::support::guard;
use crate::support::simulator::SECRET_MARK;

const METADATA: &str = "169.254.169.254:80";
const REFUSED: &str = "refused by the kernel";

#[test]
#[ignore = "needs root: make test runs it"]
fn the_link_to_the_executable_cannot_be_changed_without_privilege() {
    Stage::new().fools_nobody(|bed| {
        let told = play(&insider(bed), "changed_exe_link", &[])?;
        assert!(told.contains(REFUSED), "{told}");
        Some(told)
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_source_port_of_a_root_listener_is_no_identity() {
    // The kernel answers a question about a connection that it does not know with a listener at that port.
    for listening in ["127.0.0.1:0", "[::1]:0", "10.99.0.2:0", "0.0.0.0:0"] {
        let stage = Stage::new();
        let listener = stage.bed.network.vm.enter(|| TcpListener::bind(listening)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port().to_string();
        let play = || play(&stranger(&stage.bed), "source_port_of_a_listener", &[&port]).unwrap_or_default();
        let watched = play();
        assert!(watched.contains(SECRET_MARK) || watched.contains(REFUSED), "{listening}: {watched}");
        let before = stage.bed.reached(ROLE_PATH).len();
        stage.enforce();
        let judged = play();
        assert!(!judged.contains(SECRET_MARK), "{listening}: {judged}");
        assert_eq!(stage.bed.reached(ROLE_PATH).len(), before, "{listening}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_twin_of_the_same_ends_does_not_lend_its_identity() {
    // A socket that is bound to its interface, and one that is not, may have the same two ends. While the guard is held
    // still a stranger asks by the first, and the agent begins to connect by the second: the kernel then names the agent
    // as the client of the stranger's connection, which the agent's own kernel may reset.
    let stage = Stage::new();
    stage.enforce();
    let bed = &stage.bed;
    guard::send(stage.guard.proxy(), Signal::SIGSTOP);
    let (ends, port) = (scratch(PERSON_UID), "21012");
    let mut asks = start(&stranger(bed), "twin_bound_to_the_interface", &ends, &[port]);
    let mut asks = asks.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_a_line(&mut asks);
    let place = scratch(PINNED_UID);
    let mut agent =
        start(&pinned(bed), "twin_that_connects", &place, &[port]).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_a_line(&mut agent);
    guard::send(stage.guard.proxy(), Signal::SIGCONT);
    let told = asks.wait_with_output().unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(!told.contains(SECRET_MARK), "the stranger was taken for the agent: {told}");
    assert!(bed.reached(ROLE_PATH).is_empty());
}

fn wait_for_a_line(child: &mut Child) {
    let mut line = [0_u8; 1];
    let stderr = child.stderr.as_mut().unwrap();
    while stderr.read_exact(&mut line).is_ok() && line != *b"\n" {}
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_process_number_used_again_is_no_identity() {
    let stage = Stage::new();
    stage.enforce();
    let bed = &stage.bed;
    let first = pinned(bed).connect(METADATA);
    let number = first.pid();
    let ask = |mut connection: Connection| {
        connection.get(ROLE_PATH, &[]);
        connection.answer().map(|answer| answer.is_refusal())
    };
    assert_eq!(ask(first), Some(false), "the agent");
    let again = with_number(number, || stranger(bed).connect(METADATA));
    assert_eq!(again.map(ask), Some(Some(true)), "a stranger with the agent's number");
    let again = with_number(number, || pinned(bed).connect(METADATA));
    assert_eq!(again.map(ask), Some(Some(false)), "the agent with a stranger's number");
    assert_eq!(bed.reached(ROLE_PATH).len(), 2);
}

/// Starts connections until one's process has this number. Other tests start processes, too, so that may take a while.
fn with_number(number: u32, start: impl Fn() -> Connection) -> Option<Connection> {
    let limit = Instant::now() + Duration::from_secs(5);
    while Instant::now() < limit {
        // The number that the kernel gave last; the next one is the one above.
        fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string()).ok()?;
        let connection = start();
        if connection.pid() == number {
            return Some(connection);
        }
    }
    None
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_agents_number_in_a_user_namespace_is_not_the_agents_user() {
    let uid = PINNED_UID.to_string();
    // In the agent's own unit, so that the number alone would be missing.
    Stage::new().fools_nobody(|bed| {
        play(&bed.caller(PINNED_UNIT, 63_209), "agents_number_in_a_user_namespace", &[&uid])
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_sockets_owner_cannot_be_changed_to_the_agents_user() {
    let uid = PINNED_UID.to_string();
    Stage::new().fools_nobody(|bed| {
        let told = play(&bed.caller(PINNED_UNIT, 63_209), "socket_given_to_the_agents_user", &[&uid])?;
        assert!(told.contains(REFUSED), "{told}");
        Some(told)
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn nobody_moves_himself_into_the_agents_cgroup() {
    // The agent's own user, outside its unit.
    Stage::new().fools_nobody(|bed| {
        let procs = pinned(bed).cgroup.dir.join("cgroup.procs");
        let told = play(
            &bed.caller("session-7.scope", PINNED_UID),
            "moved_into_the_agents_cgroup",
            &[procs.to_str()?],
        )?;
        assert!(told.contains(REFUSED), "{told}");
        Some(told)
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_connection_that_was_reset_does_not_become_the_next_one_from_its_port() {
    // While the guard is held still, a stranger asks and resets, and the agent connects from the same port: the kernel
    // then names the agent as the client of the stranger's connection, too.
    let stage = Stage::new();
    stage.enforce();
    let bed = &stage.bed;
    guard::send(stage.guard.proxy(), Signal::SIGSTOP);
    play(&stranger(bed), "ask_and_reset", &["41010"]).expect("it needs nothing special");
    let mut agent = pinned(bed).connect_as(METADATA, Kind::From(21_010));
    guard::send(stage.guard.proxy(), Signal::SIGCONT);
    agent.get("/latest/meta-data/instance-id", &[]);
    assert_eq!(agent.answer().map(|answer| answer.status), Some(200));
    assert!(bed.reached(ROLE_PATH).is_empty(), "the stranger's request was taken for the agent's");
}
