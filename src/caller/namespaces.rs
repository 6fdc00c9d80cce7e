//! Who is calling from another network namespace: the same question as in the host's own, asked of each of them.
//!
//! A netlink socket asks about the namespace in which it was opened, for ever. So one is opened in each namespace that
//! some process lives in, by a thread that ends there, and kept: a question then costs microseconds for each namespace.
//! All of them are asked, since an answer from one means nothing while another knows the same connection: a container
//! may give itself any address. Found in none or in several, the caller is unattributed.
//!
//! A kept socket keeps its namespace alive. It is dropped when the process is gone through which it was found, or when
//! nobody has asked for a while.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::Why;
use super::container;
use super::stamps::{Flow, RawStamps, SockDiag};

/// How many namespaces are asked. Above that those of containers come first: who may make namespaces of its own (every
/// user, on many hosts) shall not crowd out the others.
const LIMIT: usize = 1024;

/// How long one search may take, and how much longer than the last one the next search is put off: a caller who makes
/// questions that nobody can answer gets a tenth of the keeper's time at most.
const SEARCH_PATIENCE: Duration = Duration::from_millis(300);
const PAUSE_FACTOR: u32 = 9;
const LEAST_PAUSE: Duration = Duration::from_millis(20);

/// How long namespaces are kept that nobody asked about.
const KEPT: Duration = Duration::from_mins(1);

/// How often it has to be seen whether they are still inhabited.
pub const REVIEW: Duration = Duration::from_secs(2);

/// What is known of the client's end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// One namespace knows it.
    Stamps(RawStamps),
    /// It is not known, for this reason.
    Unknown(Why),
    /// No known namespace knows it, and it is too early to look for more: ask again.
    Later,
}

/// The network namespaces of this machine but one's own.
pub struct Namespaces {
    own: u64,
    known: HashMap<u64, Known>,
    searched: Option<(Instant, Duration)>,
    asked: Instant,
}

struct Known {
    diag: SockDiag,
    /// A process that lives there.
    inhabitant: OwnedFd,
}

impl Namespaces {
    /// Knows none yet. Its own is that of this process.
    pub fn new() -> io::Result<Self> {
        let own = fs::metadata("/proc/self/ns/net")?.ino();
        Ok(Self { own, known: HashMap::new(), searched: None, asked: Instant::now() })
    }

    /// Who created the client's end of this flow, in whichever namespace.
    pub fn stamps(&mut self, flow: Flow) -> Found {
        self.asked = Instant::now();
        self.drop_deserted();
        match self.ask(flow) {
            Err(Why::NoNamespace) => {}
            answer => return answer.map_or_else(Found::Unknown, Found::Stamps),
        }
        if self.is_too_early() {
            return Found::Later;
        }
        if let Err(error) = self.search() {
            tracing::warn!(%error, "network namespaces cannot be searched");
            return Found::Unknown(Why::LookupFailed);
        }
        self.ask(flow).map_or_else(Found::Unknown, Found::Stamps)
    }

    /// Whether any namespace is kept alive at the moment.
    #[must_use]
    pub fn has_any(&self) -> bool {
        !self.known.is_empty()
    }

    /// Drops those whose inhabitant is gone, and all if nobody asked for long. Whether any are left, to be seen to again
    /// after [`REVIEW`].
    pub fn review(&mut self) -> bool {
        if self.asked.elapsed() > KEPT {
            self.known.clear();
        }
        self.drop_deserted();
        !self.known.is_empty()
    }

    fn ask(&mut self, flow: Flow) -> Result<RawStamps, Why> {
        let mut found = Err(Why::NoNamespace);
        for known in self.known.values_mut() {
            match (known.diag.stamps(flow), found) {
                // A namespace that has the very connection and cannot say whose it is counts as one that has it.
                (Ok(_) | Err(Why::Orphan | Why::State), Ok(_) | Err(Why::Orphan | Why::State)) => {
                    return Err(Why::SeveralNamespaces);
                }
                (answer @ (Ok(_) | Err(Why::Orphan | Why::State)), _) => found = answer,
                (Err(_), _) => {}
            }
        }
        found
    }

    fn is_too_early(&self) -> bool {
        self.searched.is_some_and(|(ended, took)| ended.elapsed() < (took * PAUSE_FACTOR).max(LEAST_PAUSE))
    }

    /// Finds the namespaces of all processes, and opens a socket in each that is new.
    fn search(&mut self) -> io::Result<()> {
        let started = Instant::now();
        let until = started + SEARCH_PATIENCE;
        let mut met: HashSet<u64> = self.known.keys().copied().chain([self.own]).collect();
        let mut new = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            if Instant::now() > until {
                break;
            }
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let Some(inode) = namespace_of(pid) else { continue };
            if met.insert(inode) {
                new.push((rank(pid), inode, pid));
            }
        }
        new.sort_unstable();
        new.truncate(LIMIT.saturating_sub(self.known.len()));
        let opened = thread::scope(|scope| {
            scope
                .spawn(|| {
                    new.into_iter()
                        .filter_map(|(_, inode, pid)| Some((inode, enter(inode, pid)?)))
                        .collect::<Vec<_>>()
                })
                .join()
        });
        self.known.extend(opened.map_err(|_| io::Error::other("the searching thread failed"))?);
        self.searched = Some((Instant::now(), started.elapsed()));
        Ok(())
    }

    fn drop_deserted(&mut self) {
        self.known.retain(|_, known| is_alive(&known.inhabitant));
    }
}

impl std::fmt::Debug for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Namespaces({} known)", self.known.len())
    }
}

/// The number in `net:[4026531840]`. Reading the link is much cheaper than opening what it leads to.
fn namespace_of(pid: i32) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// Which namespaces come first where there are too many: those of containers, then those of anything that no user's own
/// manager started.
fn rank(pid: i32) -> u8 {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    match container::of(path) {
        Some(container) if !container.rootless => 0,
        _ if path.starts_with("/user.slice") => 2,
        _ => 1,
    }
}

/// Opens a socket in a process's namespace. The calling thread stays there: it must be one that ends.
fn enter(inode: u64, pid: i32) -> Option<Known> {
    let inhabitant = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let namespace = fs::File::open(Path::new("/proc").join(pid.to_string()).join("ns/net")).ok()?;
    // The process may have ended and its number be another's by now.
    if namespace.metadata().ok()?.ino() != inode || !is_alive(&inhabitant) {
        return None;
    }
    setns(&namespace, CloneFlags::CLONE_NEWNET).ok()?;
    SockDiag::open().ok().map(|diag| Known { diag, inhabitant })
}

fn is_alive(pidfd: &OwnedFd) -> bool {
    let mut ended = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count == 0)
}
