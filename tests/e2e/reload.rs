//! SIGHUP: a good policy takes effect at once, also on open connections; a broken one changes nothing.

use crate::support::bed::{Bed, ROLE_PATH, WEB_UID};
use crate::support::policy::Policy;

const METADATA: &str = "169.254.169.254:80";

fn web_may_read() -> Policy {
    Policy::enforce().with(&format!(
        "[[agent]]\nname = \"web\"\nunit = \"webapp.service\"\nuser = {WEB_UID}\nallow = [\"credentials\"]"
    ))
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_kept_open_connection_is_judged_by_the_reloaded_policy() {
    let bed = Bed::new();
    let guard = bed.guard(&web_may_read());
    let mut connection = bed.webapp().connect(METADATA);
    connection.get(ROLE_PATH, &[]);
    assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    guard.reload(&Policy::enforce());
    connection.get(ROLE_PATH, &[]);
    assert!(connection.answer().is_some_and(|answer| answer.is_refusal()));
    guard.reload(&web_may_read());
    connection.get(ROLE_PATH, &[]);
    assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_broken_reload_is_reported_and_the_old_policy_stays() {
    let bed = Bed::new();
    let guard = bed.guard(&web_may_read());
    guard.reload_text("mode = \"enforce\"\n[everyone]\nalow = [\"config\"]\n");
    let mut connection = bed.webapp().connect(METADATA);
    connection.get(ROLE_PATH, &[]);
    assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    assert!(bed.person().get(&format!("http://{METADATA}{ROLE_PATH}")).is_refusal());
    let output = guard.output();
    assert!(output.contains("alow"), "the error must name what is wrong:\n{output}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_reload_can_change_the_mode() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::audit());
    let url = format!("http://{METADATA}{ROLE_PATH}");
    assert_eq!(bed.webapp().get(&url).status, 200);
    guard.reload(&Policy::enforce());
    assert!(bed.webapp().get(&url).is_refusal());
    guard.reload(&Policy::audit());
    assert_eq!(bed.webapp().get(&url).status, 200);
}
