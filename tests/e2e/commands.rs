//! Programs that name a metadata service when they start.

use crate::support::bed::{Bed, PERSON_UID};
use crate::support::event::Event;
use crate::support::guard::Guard;
use crate::support::policy::Policy;

fn watching() -> Policy {
    Policy::audit().guard_key("watch-commands = true")
}

/// Whether the guard, which lives in a namespace of the test's, may look from the kernel's first one here.
fn watches(guard: &Guard) -> bool {
    let unwatched = |event: &Event| event.text("imds_guard.reason") == "commands-unwatched";
    let refused = guard.events().into_iter().find(unwatched);
    if let Some(event) = &refused {
        eprintln!("SKIPPED, `what_programs_name_is_found_and_told` shows it: {}", event.text("message"));
    }
    refused.is_none()
}

fn is_command(event: &Event) -> bool {
    event.text("event.action") == "command"
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_program_that_names_the_service_is_told_with_who_started_it() {
    let bed = Bed::new();
    let guard = bed.guard(&watching());
    if !watches(&guard) {
        return;
    }
    let marker = format!("{}-told", bed.name);
    // It runs until it is looked at.
    let script = format!("exec tail -f /dev/null 'http://0xa9fea9fe/{marker}?token=hidden' 2>/dev/null");
    let mut child = bed.person().command("sh").args(["-c", "sh -c \"$0\" & wait", &script]).spawn().unwrap();
    let event = guard.event("of the command line", |event| {
        is_command(event) && event.text("process.command_line").contains(&marker)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(event.text("imds_guard.reason"), "names-metadata-address");
    assert_eq!(event.text("user.id"), PERSON_UID.to_string());
    assert_eq!(event.text("service.name"), "session-7.scope");
    assert!(event.text("imds_guard.process.ancestors").contains("sh"), "{event:?}");
    assert!(!event.text("process.command_line").contains("hidden"), "{event:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn known_agents_may_name_the_service() {
    let bed = Bed::new();
    let guard = bed.guard(&watching());
    if !watches(&guard) {
        return;
    }
    let marker = bed.name.clone();
    let run = |caller: &crate::support::caller::Caller<'_>, which: &str| {
        let argument = format!("/latest/meta-data/{marker}-{which}");
        caller.command("tail").args(["-f", "/dev/null", &argument]).spawn().unwrap()
    };
    let mut agent = run(&bed.agent(), "agent");
    let mut person = run(&bed.person(), "person");
    let told = |event: &Event, which: &str| {
        is_command(event) && event.text("process.command_line").contains(&format!("{marker}-{which}"))
    };
    guard.event("of the other", |event| told(event, "person"));
    for child in [&mut agent, &mut person] {
        let _ = child.kill();
        let _ = child.wait();
    }
    // The programs that start it on its way are the test's own, which are nobody's agents; the agent's own is not told.
    let of_agent = guard.events().into_iter().filter(|event| told(event, "agent"));
    for event in of_agent {
        assert_ne!(event.text("process.name"), "tail", "{event:?}");
    }
}
