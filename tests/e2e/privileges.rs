//! Who the guard is, and what it refuses to be.

use std::process::Output;

use crate::support::bed::Bed;
use crate::support::guard::{Guard, status_field};
use crate::support::policy::{GUARD_UID, Policy};

/// EX_CONFIG: the service manager must not try again.
const CONFIGURATION: i32 = 78;

fn assert_refused(output: &Output, why: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(CONFIGURATION), "{message}");
    assert!(why.iter().any(|word| message.contains(word)), "it must say {why:?}: {message}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_proxy_has_no_privilege() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    let proxy = guard.proxy();
    let field = |name: &str| status_field(proxy, name).expect("a running proxy");
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(name), "0000000000000000", "{name}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    let uid = GUARD_UID.to_string();
    assert!(field("Uid").split_whitespace().all(|id| id == uid), "{}", field("Uid"));
    assert!(field("Gid").split_whitespace().all(|id| id != "0"), "{}", field("Gid"));
    assert_eq!(field("Groups"), "", "supplementary groups");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_keeper_has_only_what_it_needs() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    let held = status_field(guard.keeper(), "CapEff").expect("a running keeper");
    let held = u64::from_str_radix(&held, 16).expect("hexadecimal");
    // CAP_DAC_READ_SEARCH, CAP_KILL, CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_SYS_PTRACE
    let allowed = [2, 5, 10, 12, 19].iter().fold(0_u64, |set, bit| set | 1 << bit);
    assert_eq!(held & !allowed, 0, "more than needed: {held:x}");
    assert_eq!(status_field(guard.keeper(), "NoNewPrivs").as_deref(), Some("1"));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn it_refuses_to_start_as_another_user_than_root() {
    let bed = Bed::new();
    let caller = bed.person();
    let mut command = caller.command(crate::support::guard::binary().to_str().unwrap());
    assert_refused(&Guard::run_to_end(&mut command, &Policy::enforce()), &["root"]);
    assert!(!bed.has_redirect());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn it_refuses_a_guard_user_of_root_or_nobody() {
    let bed = Bed::new();
    for user in ["0", "root", "65534"] {
        let output = Guard::run_to_end(&mut bed.guard_command(), &Policy::enforce().user(user));
        assert_refused(&output, &["user"]);
        assert!(!bed.has_redirect(), "{user}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn it_refuses_a_user_namespace_of_its_own() {
    // There every other user reads as nobody, and the stamps mean nothing.
    let bed = Bed::new();
    let mut command = bed.network.vm.command("unshare");
    command.args(["--user", "--map-root-user", "--"]).arg(crate::support::guard::binary());
    assert_refused(&Guard::run_to_end(&mut command, &Policy::enforce()), &["user namespace"]);
    assert!(!bed.has_redirect());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn it_refuses_a_broken_policy() {
    let bed = Bed::new();
    let output =
        Guard::run_to_end(&mut bed.guard_command(), &Policy::enforce().with("[everyon]\nallow = []"));
    assert_refused(&output, &["everyon"]);
    assert!(!bed.has_redirect());
}
