//! What the policy says is what happens, whatever the spelling.

use crate::support::bed::{Bed, ROLE_PATH, WEB_UID};
use crate::support::caller::Caller;
use crate::support::cgroup::SystemUnit;
use crate::support::policy::{AGENT, Policy};
use crate::support::simulator::SECRET_MARK;

const METADATA: &str = "http://169.254.169.254";

fn role() -> String {
    format!("{METADATA}{ROLE_PATH}")
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_listed_agent_is_allowed() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    assert_eq!(bed.agent().get(&role()).status, 200);
    let event = guard.event_for(ROLE_PATH);
    assert_eq!(event.text("imds_guard.verdict"), "allow");
    assert_eq!(event.text("imds_guard.agent"), "agent");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_unlisted_caller_is_refused() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    for caller in [bed.webapp(), bed.person()] {
        assert!(caller.get(&role()).is_refusal());
    }
    let event = guard.event_for(ROLE_PATH);
    assert_eq!(event.text("imds_guard.verdict"), "deny");
    assert!(bed.reached(ROLE_PATH).is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn another_user_in_the_agents_unit_is_refused() {
    // The shell of an SSM session runs in the agent's own unit.
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    assert!(bed.caller(AGENT, WEB_UID).get(&role()).is_refusal());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn root_in_another_unit_is_refused() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    assert!(bed.caller("cron.service", 0).get(&role()).is_refusal());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_agents_name_below_a_users_own_manager_is_refused() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let forged = format!("user.slice/user-1000.slice/user@1000.service/app.slice/{AGENT}");
    assert!(bed.caller(&forged, 0).get(&role()).is_refusal());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_unit_of_the_system_slice_is_known() {
    let bed = Bed::new();
    let unit = SystemUnit::new(&format!("{}-backup.service", bed.name));
    let policy = Policy::enforce().with(&format!(
        "[[agent]]\nname = \"backup\"\nunit = \"{}-backup.service\"\nuser = {WEB_UID}\nallow = [\"credentials\"]",
        bed.name
    ));
    let guard = bed.guard(&policy);
    let caller = Caller::new(&bed.network.vm, unit.cgroup.clone(), WEB_UID);
    assert_eq!(caller.get(&role()).status, 200);
    assert_eq!(guard.event_for(ROLE_PATH).text("imds_guard.agent"), "backup");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn deny_beats_allow() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce().with(
        "[[rule]]\nname = \"nobody reads the role\"\naction = \"deny\"\n\
         path = \"/*/meta-data/iam/security-credentials/decoy-role\"",
    ));
    assert!(bed.agent().get(&role()).is_refusal());
    assert_eq!(guard.event_for(ROLE_PATH).text("rule.name"), "nobody reads the role");
    let other = bed.agent().get(&format!(
        "{METADATA}/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance"
    ));
    assert_eq!(other.status, 200, "the rule denies one path, not the class");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_rule_grants_one_path_to_one_agent() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce().with(&format!(
        "[[agent]]\nname = \"web\"\nunit = \"webapp.service\"\nuser = {WEB_UID}\nallow = []\n\n\
         [[rule]]\nname = \"web reads its own role\"\nagent = \"web\"\naction = \"allow\"\n\
         path = \"/*/meta-data/iam/security-credentials/decoy-role\"\nmethod = [\"GET\", \"HEAD\"]"
    )));
    assert_eq!(bed.webapp().get(&role()).status, 200);
    let listing = bed.webapp().get(&format!("{METADATA}/latest/meta-data/iam/security-credentials/"));
    assert!(listing.is_refusal(), "{listing:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_exe_rule_needs_the_executable() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce().without_agent().with(&format!(
        "[[agent]]\nname = \"curl\"\nunit = \"{AGENT}\"\nuser = \"root\"\nexe = \"/usr/bin/curl\"\n\
         allow = [\"credentials\"]"
    )));
    assert_eq!(bed.agent().get(&role()).status, 200);
    let mut python = bed.agent().connect("169.254.169.254:80");
    python.get(ROLE_PATH, &[]);
    assert!(
        python.answer().is_some_and(|answer| answer.is_refusal()),
        "another program of the same unit got it"
    );
}

#[test]
#[ignore = "needs root: make test runs it"]
fn no_spelling_of_a_secret_slips_through() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let spellings = [
        "/latest/meta-data/iam/security-credentials/decoy-role/",
        "//latest/meta-data/iam/security-credentials/decoy-role",
        "/latest//meta-data/iam///security-credentials/decoy-role",
        "/latest/./meta-data/iam/security-credentials/decoy-role",
        "/latest/meta-data/placement/../iam/security-credentials/decoy-role",
        "/latest/meta-data/iam/security%2Dcredentials/decoy-role",
        "/latest/meta-data/iam%2Fsecurity-credentials/decoy-role",
        "/latest/meta-data/%69am/security-credentials/decoy%2drole",
        "/latest/meta-data/iam/security-credentials/decoy-role?x=/latest/meta-data/instance-id",
        "/2021-03-23/meta-data/iam/security-credentials/decoy-role",
        "/1.0/meta-data/iam/security-credentials/decoy-role#/latest/meta-data/instance-id",
        "/latest/meta-data/iam/security-credentials/decoy-role;/instance-id",
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/decoy-role",
        "/LATEST/meta-data/iam/security-credentials/decoy-role",
        "/latest/user-data",
        "/latest/user-data/",
    ];
    for spelling in spellings {
        let mut connection = bed.webapp().connect("169.254.169.254:80");
        connection.get(spelling, &[]);
        let answer = connection.answer().unwrap_or_default();
        assert!(answer.status == 0 || answer.is_refusal(), "{spelling}: {answer:?}");
        assert!(!answer.text().contains(SECRET_MARK), "{spelling}");
    }
    assert!(bed.cloud.received().is_empty(), "{:?}", bed.cloud.received());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_aggregate_read_touches_the_secrets_in_it() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let google = ["Metadata-Flavor: Google"];
    for url in [
        "/computeMetadata/v1/?recursive=true",
        "/computeMetadata/v1/instance/?recursive=True&alt=json",
        "/computeMetadata/v1/instance/?%72ecursive=true",
        "/computeMetadata/v1/instance/attributes/?recursive",
    ] {
        let answer = bed.webapp().get_with(&format!("{METADATA}{url}"), &google);
        assert!(answer.is_refusal(), "{url}: {answer:?}");
    }
    for (url, header) in [
        ("/metadata/instance?api-version=2021-02-01", "Metadata: true"),
        ("/METADATA/Instance/Compute?api-version=2021-02-01", "Metadata: true"),
        ("/metadata/v1.json", "Accept: */*"),
    ] {
        let answer = bed.webapp().get_with(&format!("{METADATA}{url}"), &[header]);
        assert!(answer.is_refusal(), "{url}: {answer:?}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_foreign_host_is_refused() {
    // DNS rebinding: the browser of a developer's machine believes that it talks to the attacker's site.
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    let mut connection = bed.agent().connect("169.254.169.254:80");
    connection.send(format!("GET {ROLE_PATH} HTTP/1.1\r\nHost: rebind.example\r\n\r\n").as_bytes());
    assert!(connection.answer().is_some_and(|answer| answer.is_refusal()));
    assert!(bed.cloud.received().is_empty());
    let event = guard.event("a fault", |event| event.text("imds_guard.faults").contains("host-foreign"));
    assert_eq!(event.text("imds_guard.verdict"), "deny");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_forwarding_header_is_refused() {
    // A proxy that can be talked into fetching a URL betrays itself by it; the cloud's own check must not be undone.
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    for header in
        ["X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.1", "Via: 1.1 proxy", "X-Real-IP: 192.0.2.1"]
    {
        let answer = bed.agent().get_with(&format!("{METADATA}/latest/meta-data/instance-id"), &[header]);
        assert!(answer.is_refusal(), "{header}: {answer:?}");
    }
    assert!(bed.cloud.received().is_empty());
}
