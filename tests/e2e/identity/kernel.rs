//! What the kernel itself must refuse to somebody without privileges, and what a number is worth.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::{Stage, insider, pinned, play, stranger};
use crate::support::bed::ROLE_PATH;
use crate::support::connection::Connection;
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
