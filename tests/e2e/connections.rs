//! One connection, several requests: each is judged for itself.

use std::time::Duration;

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::policy::Policy;

const METADATA: &str = "169.254.169.254:80";
const HARMLESS: &str = "/latest/meta-data/instance-id";

#[test]
#[ignore = "needs root: make test runs it"]
fn the_second_request_of_a_connection_is_refused() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let mut connection = bed.webapp().connect(METADATA);
    connection.get(HARMLESS, &[]);
    assert_eq!(connection.answer().map(|answer| answer.text()).as_deref(), Some("i-0decoy"));
    connection.get(ROLE_PATH, &[]);
    assert!(connection.answer().is_some_and(|answer| answer.is_refusal()));
    assert!(bed.reached(ROLE_PATH).is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn pipelined_requests_are_judged_and_answered_in_order() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let mut connection = bed.webapp().connect(METADATA);
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
    let both = request(HARMLESS) + &request("/latest/meta-data/instance-type") + &request(ROLE_PATH);
    connection.send(both.as_bytes());
    assert_eq!(connection.answer().map(|answer| answer.text()).as_deref(), Some("i-0decoy"));
    assert_eq!(connection.answer().map(|answer| answer.text()).as_deref(), Some("t3.small"));
    assert!(connection.answer().is_some_and(|answer| answer.is_refusal()));
    assert!(bed.reached(ROLE_PATH).is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_request_smuggled_in_a_body_is_not_a_request() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce().everyone(r#""config", "session", "write", "unknown""#));
    let mut connection = bed.webapp().connect(METADATA);
    let inner = format!("GET {ROLE_PATH} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
    let length = inner.len();
    connection.send(
        format!(
            "POST {HARMLESS} HTTP/1.1\r\nHost: 169.254.169.254\r\nContent-Length: {length}\r\n\r\n{inner}"
        )
        .as_bytes(),
    );
    connection.answer();
    connection.send(
        format!(
            "POST {HARMLESS} HTTP/1.1\r\nHost: 169.254.169.254\r\nContent-Length: 4\r\n\
             Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"
        )
        .as_bytes(),
    );
    let ambiguous = connection.answer().unwrap_or_default();
    assert!(ambiguous.status == 0 || ambiguous.is_refusal(), "{ambiguous:?}");
    assert!(bed.reached(ROLE_PATH).is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_slow_head_is_given_up() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce().with("[guard.limits]\nhead-seconds = 1"));
    let mut connection = bed.person().connect(METADATA);
    connection.send(b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169");
    let answer = connection.answer_within(Duration::from_secs(5)).unwrap_or_default();
    assert!(answer.status == 0 || (400..500).contains(&answer.status), "{answer:?}");
    assert!(bed.cloud.received().is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_idle_connection_is_closed() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce().with("[guard.limits]\nidle-seconds = 1"));
    let mut connection = bed.person().connect(METADATA);
    connection.get(HARMLESS, &[]);
    assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    assert!(connection.answer_within(Duration::from_secs(5)).is_none(), "it should have been closed");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn one_user_cannot_take_all_connections() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce().with("[guard.limits]\nconnections-per-uid = 4"));
    let mut greedy: Vec<_> = (0..8).map(|_| bed.webapp().connect(METADATA)).collect();
    let mut served = 0;
    for connection in &mut greedy {
        connection.get(HARMLESS, &[]);
        served += usize::from(connection.answer().is_some_and(|answer| answer.status == 200));
    }
    assert_eq!(served, 4, "connections of one uid that were served");
    assert_eq!(bed.person().get("http://169.254.169.254/latest/meta-data/instance-id").status, 200);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_oversized_head_is_refused() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let padding = format!("X-Padding: {}", "a".repeat(40_000));
    let mut connection = bed.agent().connect(METADATA);
    connection.get(HARMLESS, &[&padding]);
    let answer = connection.answer().unwrap_or_default();
    assert!(answer.status == 0 || answer.is_refusal(), "{answer:?}");
    assert!(bed.cloud.received().is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn callers_do_not_share_connections_to_the_service() {
    // The service may keep state by connection; what one caller left there is not another's.
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let url = "http://169.254.169.254/latest/meta-data/instance-id";
    for _ in 0..3 {
        for caller in [bed.agent(), bed.webapp(), bed.person()] {
            assert_eq!(caller.get_with(url, &[&format!("X-Caller: {}", caller.uid)]).status, 200);
        }
    }
    let mut owners = std::collections::HashMap::new();
    for received in bed.cloud.received() {
        let head = received.text();
        let caller = head.lines().find(|line| line.starts_with("X-Caller")).unwrap_or("").to_owned();
        let owner = owners.entry(received.peer).or_insert_with(|| caller.clone());
        assert_eq!(*owner, caller, "one connection served both");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn many_callers_at_once_are_all_served_and_all_told() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    let (agent, webapp) = (bed.agent(), bed.webapp());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let url = format!("http://169.254.169.254{ROLE_PATH}");
                for _ in 0..10 {
                    assert_eq!(agent.get(&url).status, 200);
                    assert!(webapp.get(&url).is_refusal());
                }
            });
        }
    });
    assert_eq!(bed.reached(ROLE_PATH).len(), 40);
    let counted = |verdict: &str| {
        let of_one = |event: &crate::support::event::Event| {
            let fits = event.text("url.path") == ROLE_PATH && event.text("imds_guard.verdict") == verdict;
            if fits { event.text("imds_guard.count").parse().unwrap_or(1) } else { 0 }
        };
        guard.events().iter().map(of_one).sum::<u64>()
    };
    crate::support::wait::until_true("an account of each request", Duration::from_secs(10), || {
        counted("allow") == 40 && counted("deny") == 40
    });
}
