//! The connection mark that lets the guard's own late packets out is nobody else's pass.

use std::time::Duration;

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::policy::Policy;
use crate::support::simulator::{Fault, SECRET_MARK};

use super::ports::{Attempt, attempt};

#[test]
#[ignore = "needs root: make test runs it"]
fn a_first_packet_does_not_pass_by_the_mark_of_a_closed_guard_connection() {
    // A closed connection's entry keeps the mark for a while; whoever connects from the same source port meets it.
    for fault in [Fault::Reset, Fault::ResetMidBody, Fault::CloseAfter] {
        let bed = Bed::new();
        let _guard = bed.guard(&Policy::enforce());
        bed.cloud.set_fault(fault.clone());
        let harmless = "/latest/meta-data/instance-id";
        let _ = bed.person().curl(&[&format!("http://169.254.169.254{harmless}")]);
        std::thread::sleep(Duration::from_millis(300));
        bed.cloud.set_fault(Fault::None);
        let ports: Vec<u16> = bed.reached(harmless).iter().map(|request| request.peer.port()).collect();
        assert!(!ports.is_empty(), "the guard connected on the caller's behalf");
        for port in ports {
            let told = attempt(&bed.person(), &Attempt { port, first: None });
            assert!(!told.contains(SECRET_MARK), "{fault:?}, port {port}: {told}");
        }
        assert!(bed.reached(ROLE_PATH).is_empty(), "{fault:?}");
    }
}
