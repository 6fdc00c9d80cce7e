//! Start, stop and sudden death: enforce fails closed, audit fails open.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::caller::PYTHON;
use crate::support::event::Event;
use crate::support::guard::{self, Guard};
use crate::support::policy::Policy;
use crate::support::simulator::{Fault, SECRET_MARK};
use crate::support::wait;

const URL: &str = "http://169.254.169.254/latest/meta-data/iam/security-credentials/decoy-role";
const V6: &str = "http://[fd00:ec2::254]/latest/meta-data/iam/security-credentials/decoy-role";

/// Nothing of anybody gets through, not even the listed agent's.
fn assert_closed(bed: &Bed) {
    let before = bed.cloud.received().len();
    for url in [URL, V6] {
        for caller in [bed.agent(), bed.webapp()] {
            let curl = caller.curl(&["--max-time", "3", url]);
            assert!(!curl.answer.text().contains(SECRET_MARK), "{url}: {curl:?}");
            assert!(curl.exit != 0 || curl.answer.is_refusal(), "{url}: {curl:?}");
        }
    }
    assert_eq!(bed.cloud.received().len(), before, "something reached the cloud");
}

/// Traffic flows again, for everybody, within two seconds.
fn assert_open(bed: &Bed) {
    wait::until_true("traffic flows", Duration::from_secs(2), || {
        bed.webapp().curl(&["--max-time", "2", URL]).answer.status == 200
    });
    assert_eq!(bed.webapp().get(V6).status, 200);
    assert!(!bed.has_redirect(), "the redirect is still there");
}

fn kill_and_look(policy: &Policy, victim: fn(&Guard) -> u32, look: fn(&Bed)) {
    let bed = Bed::new();
    let mut guard = bed.guard(policy);
    let works = bed.agent().get(URL);
    assert_eq!(works.status, 200);
    let (keeper, proxy) = (guard.keeper(), guard.proxy());
    guard::send(victim(&guard), Signal::SIGKILL);
    guard.wait_for_end();
    wait::until_true("both processes end", Duration::from_secs(2), || {
        [keeper, proxy]
            .iter()
            .all(|pid| guard::status_field(*pid, "State").is_none_or(|state| state.starts_with('Z')))
    });
    look(&bed);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn enforce_is_closed_when_the_keeper_is_killed() {
    kill_and_look(&Policy::enforce(), Guard::keeper, assert_closed);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn enforce_is_closed_when_the_proxy_is_killed() {
    kill_and_look(&Policy::enforce(), Guard::proxy, assert_closed);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_is_open_when_the_keeper_is_killed() {
    kill_and_look(&Policy::audit(), Guard::keeper, assert_open);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_is_open_when_the_proxy_is_killed() {
    kill_and_look(&Policy::audit(), Guard::proxy, assert_open);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_request_under_way_ends_with_the_guard() {
    // A client whose connection just falls silent would wait for its own time limit, and a long poll has none.
    for (policy, victim) in [
        (Policy::enforce(), Guard::keeper as fn(&Guard) -> u32),
        (Policy::enforce(), Guard::proxy),
        (Policy::audit(), Guard::proxy),
    ] {
        let bed = Bed::new();
        let guard = bed.guard(&policy);
        bed.cloud.set_fault(Fault::Hang);
        let mut connection = bed.agent().connect("169.254.169.254:80");
        connection.get(ROLE_PATH, &[]);
        wait::until_true("it is under way", Duration::from_secs(5), || !bed.cloud.received().is_empty());
        guard::send(victim(&guard), Signal::SIGKILL);
        assert!(connection.answer_within(Duration::from_secs(5)).is_none());
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn sigterm_in_enforce_leaves_the_redirect() {
    let bed = Bed::new();
    let mut guard = bed.guard(&Policy::enforce());
    guard.signal(Signal::SIGTERM);
    assert!(guard.wait_for_end().success());
    assert!(bed.has_redirect());
    assert_closed(&bed);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn sigterm_in_audit_removes_the_redirect() {
    let bed = Bed::new();
    let mut guard = bed.guard(&Policy::audit());
    guard.signal(Signal::SIGTERM);
    assert!(guard.wait_for_end().success());
    assert_open(&bed);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn sigterm_lets_a_request_end() {
    for policy in [Policy::enforce(), Policy::audit()] {
        let bed = Bed::new();
        let mut guard = bed.guard(&policy);
        bed.cloud.set_fault(Fault::Slow(Duration::from_secs(1)));
        let mut connection = bed.agent().connect("169.254.169.254:80");
        connection.get(ROLE_PATH, &[]);
        wait::until_true("it is under way", Duration::from_secs(5), || !bed.cloud.received().is_empty());
        guard.signal(Signal::SIGTERM);
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
        assert!(guard.wait_for_end().success());
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn enforce_starts_again_over_its_own_redirect() {
    let bed = Bed::new();
    let mut first = bed.guard(&Policy::enforce());
    guard::send(first.keeper(), Signal::SIGKILL);
    first.wait_for_end();
    let _second = bed.guard(&Policy::enforce());
    assert_eq!(bed.agent().get(URL).status, 200);
    assert!(bed.webapp().get(URL).is_refusal());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_starts_again_after_enforce() {
    // Going back to audit must not leave the closed door behind.
    let bed = Bed::new();
    let mut first = bed.guard(&Policy::enforce());
    first.signal(Signal::SIGTERM);
    first.wait_for_end();
    let mut second = bed.guard(&Policy::audit());
    assert_eq!(bed.webapp().get(URL).status, 200);
    guard::send(second.keeper(), Signal::SIGKILL);
    second.wait_for_end();
    assert_open(&bed);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_redirect_that_was_removed_or_altered_is_put_back() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce().cloud("aws"));
    let table = || {
        let nft = bed.network.vm.command("nft").args(["list", "table", "inet", "imds_guard"]).output();
        nft.unwrap().stdout
    };
    let whole = table();
    for (nth, change) in [
        "flush ruleset",
        "delete table inet imds_guard",
        "flush chain inet imds_guard redirect_output",
        "insert rule inet imds_guard redirect_output accept",
        "add rule inet imds_guard only_guard accept",
        "flush set inet imds_guard endpoints4",
        "add element inet imds_guard endpoints4 { 192.0.2.1 . 80 }",
        "add chain inet imds_guard another",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(bed.nft(&[change]).0, "{change}");
        let told = || {
            let events = guard.events();
            events.iter().filter(|event| event.text("imds_guard.reason") == "redirect-tampered").count() > nth
        };
        wait::until_true(change, Duration::from_secs(5), told);
        wait::until_true(change, Duration::from_secs(5), || table() == whole);
        assert!(bed.webapp().get(URL).is_refusal());
    }
    let critical = |event: &Event| event.text("event.severity") == "2";
    assert!(guard.events().iter().filter(|event| event.text("event.action") == "guard").all(critical));
}

/// The guard ends for it, in its mode's direction; the service manager starts the next (`listener-closed` in
/// tests/image/guest.py).
#[test]
#[ignore = "needs root: make test runs it"]
fn a_listener_that_somebody_closes_is_noticed() {
    for policy in [Policy::enforce(), Policy::audit()] {
        let bed = Bed::new();
        let mut guard = bed.guard(&policy.cloud("aws"));
        let kill = ["--kill", "--listening", "--tcp", "sport", "=", ":169"];
        assert!(bed.network.vm.command("ss").args(kill).status().unwrap().success());
        guard.event("the closed listener's", |event| event.text("imds_guard.reason") == "listener-closed");
        assert!(!guard.wait_for_end().success());
    }
}

/// Asks again and again while something else happens; every single request must succeed.
fn ask_throughout(bed: &Bed, happening: impl FnOnce()) {
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for caller in [bed.agent(), bed.webapp()] {
            let over = &over;
            scope.spawn(move || {
                while !over.load(std::sync::atomic::Ordering::SeqCst) {
                    let curl = caller.curl(&[URL]);
                    assert_eq!((curl.exit, curl.answer.status), (0, 200), "{}", curl.message);
                }
            });
        }
        std::thread::sleep(Duration::from_millis(200));
        happening();
        std::thread::sleep(Duration::from_millis(200));
        over.store(true, std::sync::atomic::Ordering::SeqCst);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn starting_in_audit_is_not_noticed() {
    let bed = Bed::new();
    let mut guard = None;
    ask_throughout(&bed, || guard = Some(bed.guard(&Policy::audit())));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn reloading_in_audit_is_not_noticed() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::audit());
    ask_throughout(&bed, || (0..5).for_each(|_| guard.reload(&Policy::audit())));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn stopping_in_audit_is_not_noticed() {
    // Requests that are under way must be answered: their packets still need the redirect's translation, so the table
    // may not go before they end.
    let bed = Bed::new();
    bed.cloud.set_fault(Fault::Slow(Duration::from_millis(50)));
    let mut guard = bed.guard(&Policy::audit());
    ask_throughout(&bed, || {
        guard.signal(Signal::SIGTERM);
        assert!(guard.wait_for_end().success());
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_rotated_log_is_followed() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    assert_eq!(bed.agent().get(URL).status, 200);
    guard.event_for(ROLE_PATH);
    let old = guard.log().with_extension("old");
    std::fs::rename(guard.log(), &old).unwrap();
    guard.signal(Signal::SIGUSR1);
    wait::until_true("a new log", Duration::from_secs(5), || guard.log().exists());
    assert_eq!(bed.agent().get(URL).status, 200);
    guard.event_for(ROLE_PATH);
    assert_eq!(
        crate::support::event::read(&old).iter().filter(|event| event.text("url.path") == ROLE_PATH).count(),
        1
    );
}

/// Asks from a source port that was used before, and prints the first bytes of the answer.
const FROM_THE_SAME_PORT: &str = "
import socket, sys
with socket.socket() as connection:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.bind(('0.0.0.0', 20321))
    connection.connect((sys.argv[1], 80))
    connection.sendall(b'GET ' + sys.argv[2].encode() + b' HTTP/1.1\\r\\nHost: ' + sys.argv[1].encode() + b'\\r\\n\\r\\n')
    print(connection.recv(8).decode())
";

/// A client gets the same source port again, and the kernel still remembers what it did with it before the restart.
#[test]
#[ignore = "needs root: make test runs it"]
fn other_clouds_after_a_restart_refuse_no_source_port_that_was_used_before() {
    let bed = Bed::new();
    let asks = |cloud, address, path| {
        let _guard = bed.guard(&Policy::enforce().cloud(cloud));
        let asked = bed.agent().command(PYTHON).args(["-c", FROM_THE_SAME_PORT, address, path]).output();
        let asked = asked.expect("python3 runs");
        (
            String::from_utf8_lossy(&asked.stdout).into_owned(),
            String::from_utf8_lossy(&asked.stderr).into_owned(),
        )
    };
    let answered = ("HTTP/1.1\n".to_owned(), String::new());
    assert_eq!(asks("aws", "169.254.169.254", ROLE_PATH), answered);
    assert_eq!(asks("scaleway", "169.254.42.42", "/user_data/key"), answered);
}
