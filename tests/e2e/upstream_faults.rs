//! A metadata service on a bad day: what it sends is passed on if it is an answer, and is never taken for another one.

use std::time::Duration;

use crate::support::bed::{Bed, in_both_modes};
use crate::support::policy::Policy;
use crate::support::simulator::Fault;

const METADATA: &str = "169.254.169.254:80";
const PATH: &str = "/latest/meta-data/instance-id";
const URL: &str = "http://169.254.169.254/latest/meta-data/instance-id";

#[test]
#[ignore = "needs root: make test runs it"]
fn an_answer_that_is_none_is_passed_on_as_none() {
    in_both_modes(|bed| {
        bed.cloud.set_fault(Fault::Raw(b"\x16\x03\x01 this is not HTTP\r\n\r\n".to_vec()));
        let curl = bed.agent().curl(&["--max-time", "10", URL]);
        assert_ne!(curl.exit, 0, "{:?}", curl.answer);
        assert!(!curl.answer.text().contains("not HTTP"));
        bed.cloud.set_fault(Fault::None);
        assert_eq!(bed.agent().get(URL).text(), "i-0decoy");
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn errors_of_the_service_are_the_services_own() {
    in_both_modes(|bed| {
        for status in [500, 502, 503, 504] {
            bed.cloud.set_fault(Fault::Status(status));
            let answer = bed.agent().get(URL);
            assert_eq!(answer.status, status);
            assert!(!answer.is_refusal(), "{answer:?}");
        }
        assert_eq!(bed.cloud.received().len(), 4, "nothing is asked twice because the answer is an error");
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn retry_after_reaches_the_client() {
    in_both_modes(|bed| {
        let answer = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nslow";
        bed.cloud.set_fault(Fault::Raw(answer.into()));
        let answer = bed.agent().get(URL);
        assert_eq!((answer.status, answer.header("retry-after"), &*answer.text()), (429, Some("7"), "slow"));
        assert_eq!(bed.cloud.received().len(), 1);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_second_answer_is_nobodys() {
    in_both_modes(|bed| {
        let one = |text: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        bed.cloud.set_fault(Fault::Raw((one("first") + &one("smuggled")).into()));
        let mut connection = bed.agent().connect(METADATA);
        connection.get(PATH, &[]);
        assert_eq!(connection.answer().map(|answer| answer.text()).as_deref(), Some("first"));
        bed.cloud.set_fault(Fault::None);
        for _ in 0..3 {
            connection.get(PATH, &[]);
            assert_eq!(connection.answer().map(|answer| answer.text()).as_deref(), Some("i-0decoy"));
        }
        assert_eq!(bed.person().get(URL).text(), "i-0decoy");
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_head_without_an_end_is_given_up() {
    in_both_modes(|bed| {
        let line = format!("X-Endless: {}\r\n", "a".repeat(1000));
        bed.cloud.set_fault(Fault::Raw(format!("HTTP/1.1 200 OK\r\n{}", line.repeat(2000)).into()));
        let curl = bed.agent().curl(&["--max-time", "20", URL]);
        assert_ne!(curl.exit, 0, "{:?}", curl.answer);
        assert!(curl.took < Duration::from_secs(15), "it is not waited for: {:?}", curl.took);
        bed.cloud.set_fault(Fault::None);
        assert_eq!(bed.agent().get(URL).status, 200);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_may_have_been_done_is_not_done_again() {
    // The service takes the request and closes: who knows what it did. A read is asked again, a write never.
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce().everyone(r#""config", "session", "write""#));
    let mut connection = bed.agent().connect(METADATA);
    connection.get(PATH, &[]);
    assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    bed.cloud.set_fault(Fault::Close);
    let before = bed.cloud.received().len();
    connection.send(
        b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\
          X-aws-ec2-metadata-token-ttl-seconds: 60\r\nContent-Length: 0\r\n\r\n",
    );
    assert!(connection.answer().is_none());
    assert_eq!(bed.cloud.received().len() - before, 1, "sent once");
}
