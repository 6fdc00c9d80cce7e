//! What the proxy gives up before it reads a caller's first byte, and for good.
//!
//! Whoever takes the proxy over by a crafted request finds a process without a capability, without a file system,
//! and with system calls enough to serve HTTP: it can reach the metadata endpoints, which it could anyway, and ask
//! the keeper four small questions.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, NetPort, RestrictionStatus, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use nix::libc;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use thiserror::Error;

/// Why the proxy could not be locked in. It must not run then.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The user could not be changed.
    #[error("cannot become uid {uid}")]
    User {
        /// The uid.
        uid: u32,
        /// What the system said.
        #[source]
        cause: nix::Error,
    },
    /// A capability could not be dropped.
    #[error("cannot drop capabilities")]
    Capabilities(#[source] caps::errors::CapsError),
    /// `no_new_privs` or the parent-death signal could not be set.
    #[error("prctl failed")]
    Prctl(#[source] io::Error),
    /// Landlock refused a rule set.
    #[error("landlock refused")]
    Landlock(#[from] landlock::RulesetError),
    /// The system-call filter could not be built.
    #[error("the system-call filter could not be built")]
    Filter(#[from] seccompiler::BackendError),
    /// The system-call filter could not be installed.
    #[error("the system-call filter could not be installed")]
    Install(#[from] seccompiler::Error),
}

/// Becomes the guard's user with no group but its own and no capability, now or later.
pub fn drop_privileges(uid: u32, gid: u32) -> Result<(), SandboxError> {
    let user = |cause| SandboxError::User { uid, cause };
    caps::clear(None, caps::CapSet::Ambient).map_err(SandboxError::Capabilities)?;
    drop_bounding_set()?;
    setgroups(&[]).map_err(user)?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(gid, gid, gid).map_err(user)?;
    setresuid(uid, uid, uid).map_err(user)?;
    for set in [caps::CapSet::Effective, caps::CapSet::Permitted, caps::CapSet::Inheritable] {
        caps::clear(None, set).map_err(SandboxError::Capabilities)?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|errno| SandboxError::Prctl(errno.into()))?;
    // After the change of user, which clears it: a proxy whose keeper is gone has nobody to answer to.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|errno| SandboxError::Prctl(errno.into()))
}

/// Without `CAP_SETPCAP` (in a service that was not given it) the set stays; a process with `no_new_privs` and no
/// capability cannot use what is in it.
fn drop_bounding_set() -> Result<(), SandboxError> {
    let may = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SETPCAP)
        .map_err(SandboxError::Capabilities)?;
    if may { caps::clear(None, caps::CapSet::Bounding).map_err(SandboxError::Capabilities) } else { Ok(()) }
}

/// What the kernel could enforce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// Landlock: no file can be opened, and only the endpoints' ports be connected to.
    pub landlock: bool,
}

/// Locks the calling thread in, and every thread that it starts from now on.
///
/// `ports` are those of the endpoints: the only TCP ports to which it may connect.
pub fn lock_in(ports: impl IntoIterator<Item = u16>) -> Result<Fence, SandboxError> {
    let status = landlock(ports)?;
    seccompiler::apply_filter(&without_clone3()?)?;
    seccompiler::apply_filter(&filter()?)?;
    Ok(Fence { landlock: status.ruleset != RulesetStatus::NotEnforced })
}

/// Nothing of the file system, no TCP port but the endpoints', no abstract sockets and no signals outwards. Kernels
/// without Landlock, or with an older one, enforce what they can.
fn landlock(ports: impl IntoIterator<Item = u16>) -> Result<RestrictionStatus, SandboxError> {
    let abi = ABI::V6;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    for port in ports {
        ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
    }
    Ok(ruleset.restrict_self()?)
}

/// The system calls of a server that was handed its descriptors. All else fails with EPERM: killing would make a
/// library's harmless curiosity an outage.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_socket, vec![tcp_over(libc::AF_INET)?, tcp_over(libc::AF_INET6)?]);
    rules.insert(libc::SYS_clone, vec![threads_only()?]);
    // Not F_SETFL, which could take O_APPEND off the audit log.
    rules.insert(libc::SYS_fcntl, one_of(1, &FCNTL_COMMANDS)?);
    // Not TIOCSTI, which types on the terminal from which the guard was started.
    rules.insert(libc::SYS_ioctl, one_of(1, &IOCTL_REQUESTS)?);
    // Not PR_SET_PDEATHSIG, by which the proxy would outlive its keeper.
    rules.insert(libc::SYS_prctl, one_of(0, &PRCTL_OPTIONS)?);
    // Not MSG_FASTOPEN, which connects without connect(), and so without Landlock.
    rules.insert(libc::SYS_sendto, vec![without_fast_open(3)?]);
    rules.insert(libc::SYS_sendmsg, vec![without_fast_open(2)?]);
    compile(rules, libc::EPERM, false)
}

/// `clone3` keeps its flags in memory, where no filter can look. ENOSYS makes the C library use `clone`.
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    compile(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS, true)
}

/// A program that refuses what the rules match, or what they do not.
fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: i32,
    refuses_matches: bool,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let (matched, unmatched) =
        if refuses_matches { (refuse, SeccompAction::Allow) } else { (SeccompAction::Allow, refuse) };
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, unmatched, matched, arch)?.try_into()
}

/// A condition on one argument of a system call.
fn argument(
    index: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
}

/// Threads of this process alone. A process of its own would outlive the proxy, and in a user namespace of its own it would
/// have every capability there.
fn threads_only() -> Result<SeccompRule, seccompiler::BackendError> {
    let looked_at = NEW_NAMESPACES | THREAD;
    SeccompRule::new(vec![argument(0, SeccompCmpOp::MaskedEq(looked_at), THREAD)?])
}

/// One of these values, and no other.
fn one_of(index: u8, values: &[u32]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let rule = |value: &u32| SeccompRule::new(vec![argument(index, SeccompCmpOp::Eq, u64::from(*value))?]);
    values.iter().map(rule).collect()
}

fn without_fast_open(flags: u8) -> Result<SeccompRule, seccompiler::BackendError> {
    let fast_open = u64::from(libc::MSG_FASTOPEN.unsigned_abs());
    SeccompRule::new(vec![argument(flags, SeccompCmpOp::MaskedEq(fast_open), 0)?])
}

/// New sockets are plain TCP, for connections to the endpoints; whatever else the proxy needs it was handed. Other
/// protocols over the same families (MPTCP, SCTP) would be none of Landlock's business.
fn tcp_over(family: i32) -> Result<SeccompRule, seccompiler::BackendError> {
    const KIND: u64 = 0xf; // the rest of the second argument are flags
    const TCP_OR_DEFAULT: u64 = !6; // no bit but those of IPPROTO_TCP
    SeccompRule::new(vec![
        argument(0, SeccompCmpOp::Eq, u64::from(family.unsigned_abs()))?,
        argument(1, SeccompCmpOp::MaskedEq(KIND), u64::from(libc::SOCK_STREAM.unsigned_abs()))?,
        argument(2, SeccompCmpOp::MaskedEq(TCP_OR_DEFAULT & 0xffff_ffff), 0)?,
    ])
}

/// The flags of `clone` that make namespaces (linux/sched.h: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET).
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// The flags of `clone` that make a thread and not a process: CLONE_THREAD and CLONE_VM.
const THREAD: u64 = 0x0001_0100;

const FCNTL_COMMANDS: [u32; 4] = [
    libc::F_GETFD.unsigned_abs(),
    libc::F_SETFD.unsigned_abs(),
    libc::F_GETFL.unsigned_abs(),
    libc::F_DUPFD_CLOEXEC.unsigned_abs(),
];

/// Non-blocking and close-on-exec: FIONBIO and FIOCLEX, which are the same on every architecture.
const IOCTL_REQUESTS: [u32; 2] = [0x5421, 0x5451];

/// A thread's name, and an anonymous mapping's.
const PRCTL_OPTIONS: [u32; 2] = [libc::PR_SET_NAME.unsigned_abs(), libc::PR_SET_VMA.unsigned_abs()];

const ALLOWED: &[i64] = &[
    // connections
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // descriptors
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fstat,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    // waiting
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // memory
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // threads and the end; clone3 is the other filter's
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_get_robust_list,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // clocks and chance
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    // calls that only older architectures have
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

#[cfg(test)]
mod tests;
