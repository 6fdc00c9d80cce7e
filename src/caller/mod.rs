//! Who is calling: what the kernel stamped on the socket when it was created, and which processes hold it now.
//!
//! The stamps (uid and cgroup) decide, because no unprivileged process could forge them in any attack that was
//! tried. Processes only narrow a grant further and tell the log: which process holds a socket is forgeable by
//! exec, descriptor passing and io_uring. Not knowing is a value here ([`Attribution::Unattributed`]), so that a
//! policy can speak about it.

use std::fmt;

pub mod cgroup;
pub mod container;
pub mod degraded;
pub mod executable;
mod memory;
pub mod namespaces;
mod process_dir;
pub mod processes;
pub mod stamps;

/// Everything that is known about the process at the client's end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// From where the connection came.
    pub origin: Origin,
    /// What the kernel stamped on the client's socket, or why that is not known.
    pub attribution: Attribution,
    /// The processes that hold the client's socket, if anybody looked.
    pub processes: Processes,
}

impl Caller {
    /// A caller of this host of whom nothing is known, for the given reason.
    #[must_use]
    pub fn unattributed(why: Why) -> Self {
        Self {
            origin: Origin::Host,
            attribution: Attribution::Unattributed(why),
            processes: Processes::Skipped,
        }
    }

    /// The stamps, if the kernel's answer passed every check.
    #[must_use]
    pub fn stamps(&self) -> Option<&Stamps> {
        self.attribution.stamps()
    }
}

/// From where a connection came to the guard: the listener that accepted it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Origin {
    /// This host's own network namespace.
    #[default]
    Host,
    /// Another one, through an interface behind which containers are. What a policy says of every local process does not
    /// mean whoever is there.
    Container,
}

/// Whether the kernel could say who created the client's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribution {
    /// The answer passed every check.
    Stamped(Stamps),
    /// The answer passed every check and names no unit, as on hosts of cgroup v1. The user is the kernel's word; the cgroup
    /// is the one in which all processes are that visibly hold the socket, which says less (see [`degraded`]).
    Degraded(Stamps),
    /// There was no answer that may be believed.
    Unattributed(Why),
}

impl Attribution {
    /// The stamps, if there are any.
    #[must_use]
    pub fn stamps(&self) -> Option<&Stamps> {
        match self {
            Self::Stamped(stamps) | Self::Degraded(stamps) => Some(stamps),
            Self::Unattributed(_) => None,
        }
    }

    /// The stable code that audit events carry.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Stamped(_) => "stamped",
            Self::Degraded(_) => "degraded",
            Self::Unattributed(why) => why.code(),
        }
    }
}

/// What the kernel recorded when the client's socket was created; it cannot change while the connection lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamps {
    /// The user id of the socket's creator, in the initial user namespace.
    pub uid: u32,
    /// The cgroup in which the socket was created.
    pub cgroup: Cgroup,
    /// The socket's inode number, never 0.
    pub inode: u32,
    /// The socket's cookie: unique among all sockets since boot.
    pub cookie: u64,
}

/// A cgroup of the unified hierarchy: its id (not reused within a boot) and its path from the root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cgroup {
    /// The kernel's id, which is the inode number of the cgroup's directory.
    pub id: u64,
    /// The absolute path below the cgroup2 mount, such as `/system.slice/amazon-ssm-agent.service`.
    pub path: CgroupPath,
}

/// The absolute path of a cgroup below the cgroup2 mount. Always starts with `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// Takes an absolute path; `None` if it does not start with `/`.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Option<Self> {
        let path = path.into();
        path.starts_with('/').then_some(Self(path))
    }

    /// Whether it is the root of the tree, which is no unit.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the service or scope that this cgroup is, or lies below.
    #[must_use]
    pub fn unit_name(&self) -> Option<&str> {
        let is_unit =
            |part: &&str| part.rsplit_once('.').is_some_and(|(_, kind)| matches!(kind, "service" | "scope"));
        self.0.split('/').find(is_unit)
    }

    /// The cgroup of the service or scope that this one is, or lies below; itself, if there is none.
    ///
    /// A unit with a delegated subtree moves its processes about in it, so that a socket's holders need not be in the
    /// cgroup in which the socket was made.
    #[must_use]
    pub fn unit(&self) -> Self {
        let mut end = 0;
        for part in self.0.split('/').skip(1) {
            end += 1 + part.len();
            match part.rsplit_once('.') {
                Some((_, "service" | "scope")) => {
                    return Self(self.0.get(..end).unwrap_or(&self.0).to_owned());
                }
                Some((_, "slice")) => {}
                Some(_) | None => break,
            }
        }
        self.clone()
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the creator of a socket is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Why {
    /// The kernel knows no such socket (the client is gone, or lives in another network namespace).
    NoSocket,
    /// The kernel fell back to a listening socket, which is not the client.
    Listener,
    /// The socket has no owner any more: such sockets report uid 0, which must never be believed.
    Orphan,
    /// The answer names other addresses, ports or another family than the question.
    Mismatch,
    /// The socket is in a state (`SYN_SENT`, `SYN_RECV`, `TIME_WAIT`) whose stamps mean nothing.
    State,
    /// The kernel gave no cgroup id.
    NoCgroup,
    /// No directory of the cgroup tree has that id (the cgroup is gone).
    UnknownCgroup,
    /// The question could not be asked.
    LookupFailed,
    /// No other network namespace knows such a socket, or none that could be asked.
    NoNamespace,
    /// More than one network namespace knows such a socket.
    SeveralNamespaces,
}

impl Why {
    /// The stable code that audit events carry.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::NoSocket => "no-socket",
            Self::Listener => "listener",
            Self::Orphan => "orphan",
            Self::Mismatch => "mismatch",
            Self::State => "state",
            Self::NoCgroup => "no-cgroup",
            Self::UnknownCgroup => "unknown-cgroup",
            Self::LookupFailed => "lookup-failed",
            Self::NoNamespace => "no-namespace",
            Self::SeveralNamespaces => "several-namespaces",
        }
    }
}

/// What is known of the processes that hold the client's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Processes {
    /// Nobody looked.
    Skipped,
    /// Somebody looked, and the look-up failed or no holder was visible.
    Unknown,
    /// Every visible holder; never empty.
    Holders(Vec<Process>),
}

/// One process that holds the client's socket.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot: with the pid it names one process for good.
    pub start_ticks: u64,
    /// The parent's process id.
    pub parent: u32,
    /// Real user id.
    pub uid: u32,
    /// The command name, at most 15 bytes, written by the process itself: for the log only.
    pub comm: String,
    /// The command line, bounded, with secrets scrubbed, written by the process itself: for the log only.
    pub command_line: String,
    /// The executable.
    pub exe: Exe,
}

/// The file that a process runs, and whether its name may be believed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exe {
    /// The path that `/proc/PID/exe` shows, for the log; empty if it cannot be read.
    pub path: String,
    /// Names under which the policy may know this file: non-empty only if the file (by device and inode) is the
    /// host's, owned by root, neither writable nor replaceable by anybody else, neither deleted nor in memory, and the
    /// process is not traced and lives in the host's user namespace, below the host's root directory.
    pub names: Vec<String>,
    /// Why `names` is empty, as a stable code; empty if it is not.
    pub doubt: String,
    /// Lower-case hex SHA-256 of the file, where the policy asks for one.
    pub sha256: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_the_first_service_or_scope_below_slices() {
        for (path, unit) in [
            ("/system.slice/a.service", "/system.slice/a.service"),
            ("/system.slice/a.service/sub/b.service", "/system.slice/a.service"),
            (
                "/user.slice/user-1.slice/user@1.service/app.slice/b.service",
                "/user.slice/user-1.slice/user@1.service",
            ),
            ("/machine.slice/c.scope/init", "/machine.slice/c.scope"),
            ("/docker/0a1b/a.service", "/docker/0a1b/a.service"),
            ("/system.slice", "/system.slice"),
            ("/", "/"),
        ] {
            assert_eq!(CgroupPath::new(path).unwrap().unit().as_str(), unit);
        }
    }
}
