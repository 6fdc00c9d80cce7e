//! A program that looks like the agent's.

use super::{fools_nobody, insider, stranger};

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
