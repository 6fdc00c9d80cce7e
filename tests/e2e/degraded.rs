//! Hosts of cgroup v1. Their sockets are stamped with the root of a cgroup2 tree that nobody uses, and their units stand in
//! another hierarchy: here, too, the callers stay in that root, and are in a unit by systemd's own v1 hierarchy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::identity::play;
use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::caller::Caller;
use crate::support::cgroup::{self, Cgroup};
use crate::support::guard::{self, Guard};
use crate::support::policy::{AGENT, Policy};
use crate::support::simulator::SECRET_MARK;
use crate::support::wait;

const ROLE_URL: &str = "http://169.254.169.254/latest/meta-data/iam/security-credentials/decoy-role";
const CONFIG_URL: &str = "http://169.254.169.254/latest/meta-data/instance-id";

/// Units in systemd's v1 hierarchy; removed when dropped.
struct V1 {
    slice: PathBuf,
    name: String,
}

impl V1 {
    /// `None` where this machine has no such hierarchy, or the test itself is in a cgroup of the other one.
    fn new(bed: &Bed) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup ") && line.contains("name=systemd"));
        let (Some(mount), true) = (mount, own.lines().any(|line| line == "0::/")) else {
            eprintln!("SKIPPED: this machine has no cgroup v1 beside cgroup2, or the test is in a cgroup");
            return None;
        };
        let name = format!("{}.slice", bed.name.replace('-', "_"));
        let slice = Path::new(mount.split(' ').nth(4).unwrap()).join(&name);
        fs::create_dir(&slice).unwrap();
        Some(Self { slice, name })
    }

    fn unit(&self, unit: &str) -> Cgroup {
        let dir = self.slice.join(unit);
        fs::create_dir_all(&dir).unwrap();
        Cgroup { dir, path: format!("/{}/{unit}", self.name) }
    }

    fn caller<'a>(&self, bed: &'a Bed, unit: &str, uid: u32) -> Caller<'a> {
        Caller::new(&bed.network.vm, self.unit(unit), uid)
    }
}

impl Drop for V1 {
    fn drop(&mut self) {
        wait::until_true("its processes are gone", std::time::Duration::from_secs(10), || {
            let units: Vec<PathBuf> =
                fs::read_dir(&self.slice).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            units.iter().filter(|path| path.is_dir()).for_each(|path| drop(fs::remove_dir(path)));
            fs::remove_dir(&self.slice).is_ok()
        });
    }
}

fn allowing() -> Policy {
    Policy::enforce().key("degraded = \"allow\"")
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_unit_of_cgroup_v1_is_known_by_its_processes_and_gets_no_credentials() {
    let bed = Bed::new();
    let Some(v1) = V1::new(&bed) else { return };
    let guard = bed.guard(&Policy::enforce());
    let agent = v1.caller(&bed, AGENT, 0);
    assert_eq!(agent.get(CONFIG_URL).status, 200);
    assert!(agent.get(ROLE_URL).is_refusal());
    let event = guard.event_for(ROLE_PATH);
    assert_eq!(event.text("imds_guard.attribution"), "degraded");
    assert_eq!(event.text("imds_guard.reason"), "degraded");
    assert_eq!(event.text("imds_guard.agent"), "agent");
    assert_eq!(event.text("service.name"), AGENT);
    assert_eq!(event.text("imds_guard.cgroup"), v1.unit(AGENT).path);
    assert_eq!(event.text("user.id"), "0");
    assert!(bed.reached(ROLE_PATH).is_empty());
    // Audit mode tells it, and lets it pass.
    guard.reload(&Policy::audit());
    assert_eq!(agent.get(ROLE_URL).status, 200);
    guard.event("of what would be refused", |event| {
        event.text("imds_guard.reason") == "degraded" && event.text("imds_guard.would_deny") == "true"
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn where_the_policy_allows_it_a_unit_of_cgroup_v1_gets_credentials() {
    let bed = Bed::new();
    let Some(v1) = V1::new(&bed) else { return };
    let guard = bed.guard(&allowing());
    assert_eq!(v1.caller(&bed, AGENT, 0).get(ROLE_URL).status, 200);
    assert_eq!(guard.event_for(ROLE_PATH).text("imds_guard.attribution"), "degraded");
    for (unit, uid) in [(AGENT, 63_033), ("webapp.service", 0), ("webapp.service", 63_033)] {
        assert!(v1.caller(&bed, unit, uid).get(ROLE_URL).is_refusal(), "uid {uid} in {unit}");
    }
    assert_eq!(bed.reached(ROLE_PATH).len(), 1);
    // Whoever the kernel itself names is known by that alone.
    assert_eq!(bed.agent().get(ROLE_URL).status, 200);
    guard.event("of the other", |event| event.text("imds_guard.attribution") == "stamped");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_socket_held_in_two_places_is_in_no_unit() {
    let bed = Bed::new();
    let Some(v1) = V1::new(&bed) else { return };
    let guard = bed.guard(&allowing());
    let (agent, elsewhere) = (v1.caller(&bed, AGENT, 0), v1.unit("webapp.service"));
    let held = |procs: &str| play(&agent, "held_in_two_places", &[procs]).unwrap();
    let told = held("");
    assert!(told.contains(SECRET_MARK), "both holders are in the unit: {told}");
    let told = held(elsewhere.dir.join("cgroup.procs").to_str().unwrap());
    assert!(!told.contains(SECRET_MARK), "one holder is elsewhere: {told}");
    assert_eq!(bed.reached(ROLE_PATH).len(), 1);
    guard.event("of nobody's", |event| {
        event.text("imds_guard.verdict") == "deny" && event.text("imds_guard.agent").is_empty()
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_agent_bound_to_its_program_is_so_on_cgroup_v1_too() {
    let bed = Bed::new();
    let Some(v1) = V1::new(&bed) else { return };
    let agent = "[[agent]]\nname = \"bound\"\nunit = \"bound.service\"\nuser = \"root\"\n\
                 exe = \"/usr/bin/curl\"\nallow = \"credentials\"";
    let _guard = bed.guard(&allowing().with(agent));
    let caller = v1.caller(&bed, "bound.service", 0);
    assert_eq!(caller.get(ROLE_URL).status, 200);
    let told = play(&caller, "plain", &[]).unwrap();
    assert!(!told.contains(SECRET_MARK), "{told}");
}

/// Runs a program where no cgroup2 is to be seen, as on a host of cgroup v1 alone.
fn without_cgroup2(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "umount \"$0\" && exec \"$@\""]).arg(cgroup::mount()).arg(program);
    command
}

#[test]
#[ignore = "needs root: make test runs it"]
fn check_and_status_tell_a_host_of_cgroup_v1() {
    let bed = Bed::new();
    if V1::new(&bed).is_none() {
        return;
    }
    let dir = Guard::prepare(&Policy::enforce());
    let check = |program: &mut Command| {
        let output = program.arg("check").arg(Guard::config_in(&dir)).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let said = check(&mut without_cgroup2(&guard::binary()));
    assert!(said.contains("degraded-host"), "{said}");
    let said = check(&mut Command::new(guard::binary()));
    assert!(!said.contains("degraded-host"), "{said}");

    let policy = Policy::enforce().guard_key("status-socket = \"{dir}/status.sock\"");
    let guard = Guard::start_by(&bed.network.vm, &policy, |command| {
        command.args(["unshare", "--mount", "sh", "-c", "umount \"$0\" && exec \"$@\""]).arg(cgroup::mount());
    });
    guard.event("of the host", |event| event.text("imds_guard.reason") == "degraded");
    let output =
        Command::new(guard::binary()).arg("status").arg("--config").arg(guard.config()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("degraded"), "{said}");
    assert_eq!(bed.agent().get(ROLE_URL).status, 200, "what the kernel names all the same is known");
}
