//! When the metadata service is down, slow or broken, the client sees what it would see without the guard.

use std::time::Duration;

use crate::support::bed::in_both_modes;
use crate::support::connection::End;
use crate::support::simulator::Fault;
use crate::support::wait;

const METADATA: &str = "169.254.169.254:80";
const PATH: &str = "/latest/meta-data/instance-id";
const URL: &str = "http://169.254.169.254/latest/meta-data/instance-id";

#[test]
#[ignore = "needs root: make test runs it"]
fn a_service_that_is_down_looks_down() {
    // A status of the guard's own would tell some clients that they are on a cloud.
    in_both_modes(|bed| {
        bed.cloud.stop();
        let mut connection = bed.agent().connect(METADATA);
        connection.get(PATH, &[]);
        assert!(connection.answer().is_none());
        assert_eq!(connection.end(), End::Reset);
        let curl = bed.agent().curl(&[URL]);
        assert_ne!(curl.exit, 0);
        assert!(curl.took < Duration::from_secs(2), "no later than a refused connection: {:?}", curl.took);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_reset_before_the_answer_is_a_reset() {
    in_both_modes(|bed| {
        bed.cloud.set_fault(Fault::Reset);
        let mut connection = bed.agent().connect(METADATA);
        connection.get(PATH, &[]);
        assert!(connection.answer().is_none());
        assert_eq!(connection.end(), End::Reset);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_reset_in_the_body_does_not_look_like_its_end() {
    in_both_modes(|bed| {
        bed.cloud.set_fault(Fault::ResetMidBody);
        let curl = bed.agent().curl(&[URL]);
        assert_ne!(curl.exit, 0, "a torn body passed for a whole one");
        assert_eq!(curl.answer.status, 200);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_service_comes_back_and_so_does_everything() {
    in_both_modes(|bed| {
        bed.cloud.set_fault(Fault::Reset);
        assert_ne!(bed.agent().curl(&[URL]).exit, 0);
        bed.cloud.set_fault(Fault::None);
        assert_eq!(bed.agent().get(URL).status, 200);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_client_that_leaves_ends_its_upstream_request() {
    in_both_modes(|bed| {
        bed.cloud.set_fault(Fault::Hang);
        let mut connection = bed.agent().connect(METADATA);
        connection.get(PATH, &[]);
        wait::until_true("the request arrives", Duration::from_secs(5), || !bed.cloud.received().is_empty());
        assert_eq!(bed.cloud.abandoned(), 0);
        drop(connection);
        wait::until_true("the upstream request ends", Duration::from_secs(5), || bed.cloud.abandoned() == 1);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_hanging_service_holds_up_nobody_else() {
    in_both_modes(|bed| {
        bed.cloud.set_fault(Fault::Hang);
        let mut stuck: Vec<_> = (0..16).map(|_| bed.agent().connect(METADATA)).collect();
        for connection in &mut stuck {
            connection.get(PATH, &[]);
        }
        wait::until_true("all arrive", Duration::from_secs(10), || bed.cloud.received().len() == 16);
        bed.cloud.set_fault(Fault::None);
        let curl = bed.person().curl(&[URL]);
        assert_eq!((curl.exit, curl.answer.status), (0, 200), "{}", curl.message);
        assert!(curl.took < Duration::from_secs(2), "{:?}", curl.took);
    });
}
