//! What the guard tells of those who change its redirect: each change once.

use std::time::Duration;

use crate::support::bed::Bed;
use crate::support::guard::Guard;
use crate::support::policy::Policy;
use crate::support::wait;

fn told(guard: &Guard) -> usize {
    let events = guard.events();
    events.iter().filter(|event| event.text("imds_guard.reason") == "redirect-tampered").count()
}

fn change(bed: &Bed, arguments: &[&str]) {
    let (done, said) = bed.nft(arguments);
    assert!(done, "{arguments:?}: {said}");
}

/// Until the redirect is back, every change of any table makes the guard look, and see that it is missing.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_removed_redirect_is_told_once_however_often_the_guard_looks() {
    let bed = Bed::new();
    let policy = Policy::enforce().guard_key("self-heal = false");
    let guard = bed.guard(&policy);
    change(&bed, &["delete", "table", "inet", "imds_guard"]);
    guard.event("the removal", |event| event.text("imds_guard.reason") == "redirect-tampered");
    for table in ["one", "two", "three"] {
        change(&bed, &["add", "table", "inet", table]);
        // The keeper takes its notices before its signals.
        guard.reload(&policy);
    }
    assert_eq!(told(&guard), 1, "{}", guard.output());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn each_change_of_a_redirect_that_heals_is_told() {
    let bed = Bed::new();
    let policy = Policy::enforce();
    let guard = bed.guard(&policy);
    let whole = bed.nft(&["list", "table", "inet", "imds_guard"]).1.lines().count();
    for (time, arguments) in
        [["flush", "table", "inet", "imds_guard"], ["delete", "table", "inet", "imds_guard"]]
            .iter()
            .enumerate()
    {
        change(&bed, arguments);
        wait::until_true("it is told", Duration::from_secs(10), || told(&guard) > time);
        wait::until_true("the redirect is back", Duration::from_secs(10), || {
            bed.nft(&["list", "table", "inet", "imds_guard"]).1.lines().count() == whole
        });
        guard.reload(&policy);
        assert_eq!(told(&guard), time + 1, "{}", guard.output());
    }
}
