//! The genuine agent gets what it asks for; and only while it is the agent.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

use super::{BOUND_UID, PINNED_UNIT, Stage, insider, pinned, play, scratch, stranger};
use crate::support::bed::ROLE_PATH;
use crate::support::simulator::SECRET_MARK;

const URL: &str = "http://169.254.169.254/latest/meta-data/iam/security-credentials/decoy-role";

#[test]
#[ignore = "needs root: make test runs it"]
fn the_genuine_agents_are_served() {
    let stage = Stage::new();
    stage.enforce();
    assert_eq!(insider(&stage.bed).get(URL).status, 200, "the right file, unit and user");
    assert_eq!(pinned(&stage.bed).get(URL).status, 200, "the right unit and user");
    assert!(play(&pinned(&stage.bed), "plain", &[]).is_some_and(|told| told.contains(SECRET_MARK)));
    assert_eq!(stage.bed.reached(ROLE_PATH).len(), 3);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn unit_user_and_file_are_all_needed() {
    let stage = Stage::new();
    stage.enforce();
    let bed = &stage.bed;
    for (what, caller) in [
        ("neither", stranger(bed)),
        ("the unit alone", bed.caller(PINNED_UNIT, BOUND_UID)),
        ("the user alone", bed.caller("other.service", BOUND_UID)),
        ("a unit below it", bed.caller("bound.service/below.service", BOUND_UID)),
        ("root in the unit", bed.caller(PINNED_UNIT, 0)),
    ] {
        assert!(caller.get(URL).is_refusal(), "{what} was enough");
    }
    assert!(bed.reached(ROLE_PATH).is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_symlink_to_the_genuine_agent_is_the_agent() {
    let stage = Stage::new();
    stage.enforce();
    let place = scratch(BOUND_UID);
    let link = place.path().join("fetch");
    symlink("/usr/bin/curl", &link).unwrap();
    let output = insider(&stage.bed).command(link.to_str().unwrap()).args(["-q", "-s", URL]).output();
    assert!(String::from_utf8_lossy(&output.unwrap().stdout).contains(SECRET_MARK));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_executable_that_its_user_can_write_or_replace_is_not_believed() {
    let place = scratch(0);
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = place.path().join("agentd");
    let install = |owner: u32, mode: u32| {
        let fresh = place.path().join("fresh");
        fs::copy("/usr/bin/curl", &fresh).unwrap();
        chown(&fresh, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&fresh, &path).unwrap();
    };
    let program = path.to_str().unwrap();
    let stage = Stage::with_exe(program);
    stage.enforce();
    let asks = || {
        let output = insider(&stage.bed).command(program).args(["-q", "-s", URL]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains(SECRET_MARK)
    };
    install(0, 0o755);
    assert!(asks(), "root's file, which nobody else can write, is the agent");
    for (what, owner, mode) in
        [("its own", BOUND_UID, 0o755), ("writable by all", 0, 0o777), ("writable by a group", 0, 0o775)]
    {
        install(owner, mode);
        assert!(!asks(), "a file that is {what} was believed");
    }
    // Whoever may rename things there puts another of root's programs in the agent's place.
    install(0, 0o755);
    for (what, owner, mode) in
        [("its user's", BOUND_UID, 0o755), ("everybody's", 0, 0o777), ("a group's", 0, 0o775)]
    {
        chown(place.path(), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(mode)).unwrap();
        assert!(!asks(), "a file in {what} directory was believed");
    }
    chown(place.path(), Some(0), Some(0)).unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(asks(), "in a directory with the sticky bit nobody replaces what is root's");
}
