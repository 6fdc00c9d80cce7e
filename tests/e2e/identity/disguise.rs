//! A program that looks like the agent's.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::{BOUND_UID, Stage, fools_nobody, insider, scratch, stranger};
use crate::support::caller::Caller;
use crate::support::simulator::SECRET_MARK;

/// One named test a trick, so that a failure says which disguise was believed.
macro_rules! disguises {
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

disguises! {
    the_agents_program_in_other_hands_is_not_the_agent: "agent_itself" by stranger;
    a_renamed_copy_is_not_the_agent: "renamed_copy_of_the_agent" by stranger, insider;
    another_program_of_that_name_is_not_the_agent: "another_program_of_that_name" by insider;
    forged_comm_and_argv_are_not_believed: "forged_name_and_arguments" by stranger, insider;
    a_symlink_of_that_name_is_not_the_agent: "symlink_of_that_name" by insider;
    a_hardlink_of_that_name_is_not_the_agent: "hardlink_of_that_name" by insider;
    a_hardlink_of_the_agent_is_another_name: "hardlink_of_the_agent" by insider;
    a_deleted_program_is_not_the_agent: "deleted_program" by insider;
    a_program_replaced_by_a_link_to_the_agent_is_not_the_agent: "replaced_program" by insider;
    a_name_that_ends_in_deleted_is_not_the_agent: "path_with_deleted_in_it" by insider;
    a_memfd_of_the_agents_bytes_is_not_the_agent: "memfd" by stranger, insider;
    the_agent_started_by_ld_so_is_not_the_agent: "started_by_ld_so" by insider;
    a_script_of_that_name_is_its_interpreter: "script_of_that_name" by insider;
    a_preloaded_library_does_not_make_a_stranger_the_agent: "preloaded_agent" by stranger;
    a_traced_agent_is_not_believed: "traced_agent" by stranger, insider;
    a_fake_mounted_over_the_agent_is_not_the_agent: "fake_mounted_over_the_agent" by stranger, insider;
    the_agent_in_namespaces_of_its_own_is_not_believed: "agent_in_own_namespaces" by stranger, insider;
}

/// The library that is preloaded: it asks for the credentials by itself, before the program's own code runs.
const LIBRARY: &str = include_str!("../../support/preloaded.c");

#[test]
#[ignore = "needs root: make test runs it"]
fn an_insider_who_preloads_into_the_agent_is_the_agent() {
    // What the threat model says cannot be told apart: the agent's own user in its own unit, who runs the genuine file.
    let place = scratch(BOUND_UID);
    let (source, library) = (place.path().join("preloaded.c"), place.path().join("preloaded.so"));
    fs::write(&source, LIBRARY).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.expect("a C compiler").success());
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let stage = Stage::new();
    stage.enforce();
    let asks = |caller: &Caller<'_>| {
        let mut command = caller.command("env");
        command.arg(format!("LD_PRELOAD={}", library.display())).args(["/usr/bin/curl", "--version"]);
        let output = command.output().expect("env runs");
        String::from_utf8_lossy(&output.stdout).contains(SECRET_MARK)
    };
    assert!(!asks(&stranger(&stage.bed)), "a stranger's stamp stays a stranger's");
    assert!(asks(&insider(&stage.bed)));
}
