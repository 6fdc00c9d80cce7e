//! A socket whose visible holder is not who speaks through it.

use super::{Stage, fools_nobody, insider, play, stranger};

/// One named test a trick.
macro_rules! possessions {
    ($($test:ident: $trick:literal by $($caller:ident),+;)+) => {
        $(
            #[test]
            #[ignore = "needs root: make test runs it"]
            fn $test() {
                fools_nobody($trick, &[$($caller),+]);
            }
        )+
    };
}

possessions! {
    becoming_the_agent_after_connecting_is_too_late: "connect_then_exec" by stranger, insider;
    the_agent_as_sole_visible_holder_does_not_help_a_stranger: "send_then_exec" by stranger;
    a_socket_in_flight_has_no_holder: "in_flight" by stranger, insider;
    a_socket_shared_with_the_agent_is_not_the_agents: "shared_with_the_agent" by stranger, insider;
    a_dead_leader_hides_no_holder: "dead_leader" by stranger, insider;
    a_descriptor_registered_with_io_uring_has_no_holder: "registered_with_io_uring" by stranger, insider;
}

#[test]
#[ignore = "needs root: make test runs it"]
fn exiting_before_the_look_up_gives_no_grant() {
    // Nobody is left to read an answer, so it is about what reaches the cloud.
    let stage = Stage::new();
    stage.enforce();
    for caller in [stranger(&stage.bed), insider(&stage.bed)] {
        play(&caller, "exit_before_the_look_up", &[]).expect("it needs nothing special");
    }
    assert!(stage.bed.cloud.received().is_empty());
    let unserved = |event: &crate::support::event::Event| event.text("imds_guard.verdict") != "allow";
    stage.guard.event("of a caller that was gone", unserved);
}
