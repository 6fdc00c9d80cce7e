//! Control groups that a user may name as it likes, such as those below its own service manager.

use std::fs;
use std::path::PathBuf;

use super::{PINNED_UID, PINNED_UNIT, Stage};
use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::caller::Caller;
use crate::support::cgroup::{Cgroup, mount};

const URL: &str = "http://169.254.169.254/latest/meta-data/iam/security-credentials/decoy-role";

/// Cgroups from the tree's root, removed when dropped, deepest first; what others have made stays.
struct Branch {
    made: Vec<PathBuf>,
    cgroup: Cgroup,
}

impl Branch {
    fn new(path: &str) -> Self {
        let mut dir = mount();
        let mut made = Vec::new();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            dir.push(name);
            if fs::create_dir(&dir).is_ok() {
                made.push(dir.clone());
            }
        }
        Self { made, cgroup: Cgroup { dir, path: path.to_owned() } }
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        self.cgroup.remove();
        for dir in self.made.iter().rev() {
            // The one that is gone already, and one in which somebody else has made himself at home.
            let _ = fs::remove_dir(dir);
        }
    }
}

fn is_refused(bed: &Bed, path: &str) {
    let branch = Branch::new(path);
    let caller = Caller::new(&bed.network.vm, branch.cgroup.clone(), PINNED_UID);
    assert!(caller.get(URL).is_refusal(), "{path} was taken for the agent's unit");
    assert!(bed.reached(ROLE_PATH).is_empty(), "{path}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_unit_of_a_users_own_manager_is_not_the_systems() {
    // Even of the agent's own user: whoever logs in as it is not the unit.
    let stage = Stage::new();
    stage.enforce();
    let user = format!("/user.slice/user-{PINNED_UID}.slice");
    for place in [
        format!("{user}/user@{PINNED_UID}.service/app.slice"),
        format!("{user}/user@{PINNED_UID}.service/system.slice"),
        format!("{user}/user@{PINNED_UID}.service"),
        format!("{user}/session-9.scope"),
        user,
    ] {
        is_refused(&stage.bed, &format!("{place}/{PINNED_UNIT}"));
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_delegated_branch_cannot_hold_the_agents_unit() {
    let stage = Stage::new();
    stage.enforce();
    let slice = stage.bed.name.replace('-', "_");
    for place in ["delegated.service", "machine.scope", "delegated.service/system.slice"] {
        is_refused(&stage.bed, &format!("/{slice}_delegate.slice/{place}/{PINNED_UNIT}"));
    }
    is_refused(&stage.bed, &format!("/{slice}_delegate.slice/{PINNED_UNIT}/below.service"));
}
