//! The audit log's file: put aside by size, and never the proxy's to rewrite.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::bed::Bed;
use crate::support::event;
use crate::support::guard::Guard;
use crate::support::policy::Policy;
use crate::support::wait;

const PATH: &str = "/latest/meta-data/instance-id";

/// The log and what was put aside of it.
fn files(guard: &Guard) -> Vec<PathBuf> {
    (0..10)
        .map(
            |number| {
                if number == 0 { guard.log() } else { format!("{}.{number}", guard.log().display()).into() }
            },
        )
        .filter(|path| path.exists())
        .collect()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_log_that_grows_too_large_is_put_aside_and_no_event_is_lost() {
    let bed = Bed::new();
    let policy = Policy::enforce().guard_key("audit-log-max = \"64 KiB\"\naudit-log-keep = 9");
    let guard = bed.guard(&policy);
    let mut connection = bed.agent().connect("169.254.169.254:80");
    let mut asked = 0;
    wait::until_true("two files are put aside", Duration::from_mins(1), || {
        for _ in 0..20 {
            connection.get(PATH, &[]);
            assert!(connection.answer().is_some());
            asked += 1;
        }
        files(&guard).len() > 2
    });
    wait::until_true("every request is told", Duration::from_secs(10), || {
        let files = files(&guard);
        let told =
            files.iter().flat_map(|path| event::read(path)).filter(|event| event.text("url.path") == PATH);
        told.count() == asked
    });
    let mode = fs::metadata(format!("{}.1", guard.log().display())).map(|file| file.len()).unwrap();
    assert!(mode >= 64 << 10, "it was put aside too early");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_proxy_holds_the_log_for_appending_and_no_policy_file() {
    const O_WRONLY: u32 = 0o1;
    const O_APPEND: u32 = 0o2000;
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    let proxy = guard.proxy();
    let mut logs = 0;
    for entry in fs::read_dir(format!("/proc/{proxy}/fd")).unwrap().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let info = fs::read_to_string(format!("/proc/{proxy}/fdinfo/{}", entry.file_name().display()))
            .unwrap_or_default();
        let flags =
            info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or_default().trim().to_owned();
        if target == guard.log() {
            let flags = u32::from_str_radix(&flags, 8).unwrap();
            assert_eq!((flags & 0o3, flags & O_APPEND), (O_WRONLY, O_APPEND), "{info}");
            logs += 1;
        }
        assert_ne!(target, guard.config(), "the proxy holds the policy's file");
    }
    assert!(logs > 0, "the proxy holds no log");
}
