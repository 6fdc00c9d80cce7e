//! The filter, asked about every system call there is. What the whole sandbox refuses, `tests/sandbox.rs` tries.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use seccompiler::sock_filter;

use super::*;

/// Calls above the highest number that any architecture has.
const CALLS: i64 = 1024;

/// What the kernel would do: runs a filter's program over one call (linux/seccomp.h, struct seccomp_data).
fn run(program: &[sock_filter], call: i64, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(u32::try_from(call).unwrap().to_ne_bytes());
    data.extend(ARCH.to_ne_bytes());
    data.extend([0; 8]);
    data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
    let word = |at: u32| u32::from_ne_bytes(data[at as usize..at as usize + 4].try_into().unwrap());
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let step = &program[at];
        let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
        at += 1 + match step.code {
            0x20 => {
                accumulator = word(step.k);
                0
            }
            0x54 => {
                accumulator &= step.k;
                0
            }
            0x05 => step.k as usize,
            0x15 => jump(accumulator == step.k),
            0x25 => jump(accumulator > step.k),
            0x35 => jump(accumulator >= step.k),
            0x06 => return step.k,
            code => panic!("an instruction that seccompiler did not use to write: {code:#x}"),
        };
    }
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;

fn allows(call: i64, arguments: [u64; 6]) -> bool {
    match run(&filter().unwrap(), call, arguments) {
        ALLOW => true,
        EPERM => false,
        other => panic!("{call}: {other:#x}"),
    }
}

fn with(index: usize, value: i32) -> [u64; 6] {
    let mut arguments = [0; 6];
    arguments[index] = u64::from(value.unsigned_abs());
    arguments
}

#[test]
fn every_system_call_that_is_not_listed_is_refused() {
    let by_argument = [
        libc::SYS_socket,
        libc::SYS_clone,
        libc::SYS_fcntl,
        libc::SYS_ioctl,
        libc::SYS_prctl,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
    ];
    for call in (0..CALLS).filter(|call| !by_argument.contains(call)) {
        let is_listed = ALLOWED.contains(&call);
        for arguments in [[0; 6], [u64::MAX; 6], [1, 2, 3, 4, 5, 6]] {
            assert_eq!(allows(call, arguments), is_listed, "system call {call}");
        }
    }
    for call in [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_openat,
        libc::SYS_ptrace,
        libc::SYS_kill,
        libc::SYS_pidfd_getfd,
        libc::SYS_process_vm_readv,
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_mount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_unlinkat,
        libc::SYS_renameat2,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_memfd_create,
        libc::SYS_keyctl,
        libc::SYS_perf_event_open,
    ] {
        assert!(!ALLOWED.contains(&call), "{call}");
    }
    assert_eq!(run(&without_clone3().unwrap(), libc::SYS_clone3, [0; 6]), 0x0005_0026, "ENOSYS");
}

#[test]
fn new_sockets_are_tcp_alone() {
    let socket = |family: i32, kind: i32, protocol: i32| {
        let word = |number: i32| u64::from(number.unsigned_abs());
        allows(libc::SYS_socket, [word(family), word(kind), word(protocol), 0, 0, 0])
    };
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    for family in 0..64 {
        let is_inet = family == libc::AF_INET || family == libc::AF_INET6;
        for kind in 0..16 {
            for protocol in [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_RAW, libc::IPPROTO_MPTCP]
            {
                let is_tcp = kind == libc::SOCK_STREAM && [0, libc::IPPROTO_TCP].contains(&protocol);
                assert_eq!(
                    socket(family, kind | flags, protocol),
                    is_inet && is_tcp,
                    "{family} {kind} {protocol}"
                );
            }
        }
    }
}

#[test]
fn threads_are_made_and_no_processes_or_namespaces() {
    let thread =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    assert!(allows(libc::SYS_clone, with(0, thread)));
    for flags in [libc::SIGCHLD, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, 0] {
        assert!(!allows(libc::SYS_clone, with(0, flags)), "{flags:#x}");
    }
    for namespace in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ] {
        assert!(!allows(libc::SYS_clone, with(0, thread | namespace)), "{namespace:#x}");
    }
}

#[test]
fn calls_with_many_meanings_keep_the_harmless_ones() {
    assert!(allows(libc::SYS_fcntl, with(1, libc::F_GETFL)));
    assert!(!allows(libc::SYS_fcntl, with(1, libc::F_SETFL)), "append-only is to stay");
    assert!(!allows(libc::SYS_fcntl, with(1, libc::F_SETOWN)));
    assert!(allows(libc::SYS_ioctl, with(1, 0x5421)));
    assert!(!allows(libc::SYS_ioctl, with(1, 0x5412)), "TIOCSTI");
    assert!(allows(libc::SYS_prctl, with(0, libc::PR_SET_NAME)));
    assert!(!allows(libc::SYS_prctl, with(0, libc::PR_SET_PDEATHSIG)));
    for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2)] {
        assert!(allows(call, with(flags, libc::MSG_NOSIGNAL)));
        assert!(!allows(call, with(flags, libc::MSG_NOSIGNAL | libc::MSG_FASTOPEN)));
    }
}

/// Whether the system refused; a call that does not exist at all would prove nothing.
fn is_refused<T, E: Into<io::Error>>(result: Result<T, E>) -> bool {
    result.is_err_and(|error| error.into().kind() == io::ErrorKind::PermissionDenied)
}

#[test]
fn whoever_takes_the_proxy_over_can_add_to_the_history_and_not_rewrite_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let policy = directory.path().join("policy.toml");
    fs::write(&policy, "mode = \"enforce\"").unwrap();
    fs::write(&path, "history\n").unwrap();
    let mut log = OpenOptions::new().append(true).open(&path).unwrap();
    let attacks = (path.clone(), policy.clone());
    // The filter holds for the thread that sets it.
    let tried = std::thread::spawn(move || {
        let (path, policy) = attacks;
        rustix::thread::set_no_new_privs(true).unwrap();
        lock_in([80]).unwrap();
        let tried = [
            ("truncate", is_refused(log.set_len(0))),
            ("write in the middle", is_refused(log.write_at(b"X", 0))),
            ("take O_APPEND off", is_refused(fcntl(&log, FcntlArg::F_SETFL(OFlag::empty())))),
            ("punch a hole", is_refused(fallocate(&log, FallocateFlags::FALLOC_FL_ZERO_RANGE, 0, 4))),
            ("open it anew", is_refused(OpenOptions::new().write(true).open(&path))),
            ("remove it", is_refused(fs::remove_file(&path))),
            ("rename it", is_refused(fs::rename(&path, path.with_extension("old")))),
            ("replace the policy", is_refused(File::create(&policy))),
            ("read the policy", is_refused(File::open(&policy))),
        ];
        log.write_all(b"more\n").unwrap();
        tried
    });
    for (what, was_refused) in tried.join().unwrap() {
        assert!(was_refused, "the proxy may {what}");
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "history\nmore\n");
    assert_eq!(fs::read_to_string(&policy).unwrap(), "mode = \"enforce\"");
}
