//! Which processes hold a socket, and what may be believed about them.
//!
//! Only the processes of the socket's own cgroup are searched, so the cost grows with the unit and not with the
//! host. What is found narrows a grant and tells the log; it never widens one, because a process can arrange to be
//! seen as another (exec with an inherited descriptor, descriptor passing, a private descriptor table).

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use procfs::process::Process as Proc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sha2::{Digest as _, Sha256};

use crate::hex;

use super::cgroup::CgroupTree;
use super::{CgroupPath, Exe, Process};

/// How many bytes of a command line are kept.
const COMMAND_LINE_BYTES: u64 = 512;

/// How much of an executable's path is told.
const PATH_CHARS: usize = 512;

/// How many processes of a unit, and threads of a process, are searched.
const PROCESS_LIMIT: usize = 4096;
const THREAD_LIMIT: usize = 512;

/// Executables above this size are not digested (256 MiB takes about a quarter of a second).
const DIGEST_LIMIT: u64 = 256 << 20;

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search<'a> {
    /// The cgroup in which the socket was created.
    pub cgroup: &'a CgroupPath,
    /// The socket's inode number.
    pub inode: u32,
    /// The uid that the kernel stamped on the socket; holders with another uid are not believed.
    pub uid: u32,
    /// Whether to digest executables.
    pub digest: bool,
    /// When to give up: a process can have a million descriptors in each of a thousand threads, and the keeper has
    /// more to do.
    pub until: Instant,
}

/// Searches procfs on behalf of one policy.
#[derive(Debug)]
pub struct ProcessTable {
    host: World,
    known: Vec<PathBuf>,
}

impl ProcessTable {
    /// A table that knows executables by these absolute paths, besides the name that procfs shows: a policy may
    /// name a file by a symlink such as `/usr/bin/python3`.
    pub fn new(known: Vec<PathBuf>) -> io::Result<Self> {
        Ok(Self { host: World::of("self")?, known })
    }

    /// Every process of the cgroup that visibly holds the socket. Empty if none does.
    pub fn holders(&self, tree: &CgroupTree, search: &Search<'_>) -> io::Result<Vec<Process>> {
        let link = format!("socket:[{}]", search.inode);
        let pids = tree.processes(search.cgroup)?;
        let mut holders = Vec::new();
        for pid in pids.into_iter().take(PROCESS_LIMIT) {
            if holds(pid, &link, search.until)? {
                holders.extend(self.identify(pid, search));
            }
        }
        Ok(holders)
    }

    /// Reads a process's identity between opening its pidfd and seeing that it still lives, so that the answer is
    /// about one process even if its number is used again meanwhile.
    #[must_use]
    pub fn identify(&self, pid: u32, search: &Search<'_>) -> Option<Process> {
        let pidfd = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
        let proc = Proc::new(i32::try_from(pid).ok()?).ok()?;
        let stat = proc.stat().ok()?;
        let status = proc.status().ok()?;
        let process = Process {
            pid,
            start_ticks: stat.starttime,
            parent: u32::try_from(stat.ppid).unwrap_or(0),
            uid: status.ruid,
            comm: stat.comm.chars().take(16).collect(),
            command_line: command_line(pid),
            exe: self.executable(pid, &status, search),
        };
        alive(&pidfd).then_some(process)
    }

    fn executable(&self, pid: u32, status: &procfs::process::Status, search: &Search<'_>) -> Exe {
        let link = PathBuf::from(format!("/proc/{pid}/exe"));
        let path = fs::read_link(&link).unwrap_or_default();
        let doubt = self.doubt(pid, &link, &path, status, search).err();
        let genuine = doubt.is_none();
        Exe {
            names: if genuine { self.names(&path) } else { Vec::new() },
            doubt: doubt.unwrap_or_default().to_owned(),
            sha256: (genuine && search.digest).then(|| digest(&link)).flatten(),
            path: path.to_string_lossy().chars().take(PATH_CHARS).collect(),
        }
    }

    /// Why the name of a process's executable must not be believed; each reason stops one forgery.
    fn doubt(
        &self,
        pid: u32,
        link: &Path,
        path: &Path,
        status: &procfs::process::Status,
        search: &Search<'_>,
    ) -> Result<(), &'static str> {
        let running = fs::metadata(link).map_err(|_| "unreadable")?;
        if running.nlink() == 0 {
            return Err("deleted"); // also memfd: a file that no directory names any more
        }
        // A bind mount in the caller's own mount namespace shows any name it likes; the inode stays the file's.
        let host = fs::metadata(path).map_err(|_| "not-on-host")?;
        if (host.dev(), host.ino()) != (running.dev(), running.ino()) {
            return Err("other-file");
        }
        if host.uid() != 0 || host.mode() & 0o022 != 0 {
            return Err("writable");
        }
        if World::of(&pid.to_string()).map_err(|_| "unreadable")? != self.host {
            return Err("foreign-namespace"); // other libraries may stand behind the same executable
        }
        if status.tracerpid != 0 {
            return Err("traced"); // its tracer speaks through it
        }
        if status.ruid != search.uid || status.euid != search.uid {
            return Err("other-uid"); // the socket was handed to it, or by it
        }
        if !maps_executable(pid, &running) {
            return Err("not-mapped"); // the link was changed by prctl(PR_SET_MM_EXE_FILE)
        }
        Ok(())
    }

    fn names(&self, path: &Path) -> Vec<String> {
        let same = |known: &&PathBuf| {
            // A link of somebody else's could lend the policy's name to any of root's programs.
            let is_roots = fs::symlink_metadata(known).is_ok_and(|link| link.uid() == 0);
            known.as_path() != path && is_roots && fs::canonicalize(known).is_ok_and(|target| target == path)
        };
        std::iter::once(path)
            .chain(self.known.iter().filter(same).map(PathBuf::as_path))
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }
}

/// The world in which a process's names mean what they mean to the keeper.
///
/// Not the mount namespace itself: systemd gives every hardened unit one of its own, with the same root. Another
/// user namespace is what an unprivileged process needs before it can mount anything; another root directory is
/// what a container has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct World {
    user_namespace: PathBuf,
    root: (u64, u64),
}

impl World {
    fn of(process: &str) -> io::Result<Self> {
        let root = fs::metadata(format!("/proc/{process}/root"))?;
        Ok(Self {
            user_namespace: fs::read_link(format!("/proc/{process}/ns/user"))?,
            root: (root.dev(), root.ino()),
        })
    }
}

/// A pidfd becomes readable when its process exits.
fn alive(pidfd: &OwnedFd) -> bool {
    let mut exits = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(poll(&mut exits, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

/// Whether any thread of the process has the socket in its descriptor table. Threads may have tables of their own
/// (unshare with `CLONE_FILES`), and may outlive the leader.
fn holds(pid: u32, link: &str, until: Instant) -> io::Result<bool> {
    let leader = format!("/proc/{pid}/task/{pid}/fd");
    if table_has(Path::new(&leader), link, until)? {
        return Ok(true);
    }
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Ok(false) };
    for thread in threads.flatten().take(THREAD_LIMIT) {
        if table_has(&thread.path().join("fd"), link, until)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A table that cannot be read belongs to a process that is gone.
fn table_has(table: &Path, link: &str, until: Instant) -> io::Result<bool> {
    let Ok(descriptors) = fs::read_dir(table) else { return Ok(false) };
    for descriptor in descriptors.flatten() {
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if fs::read_link(descriptor.path()).is_ok_and(|target| target.as_os_str() == link) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn command_line(pid: u32) -> String {
    let mut bytes = Vec::new();
    let read = File::open(format!("/proc/{pid}/cmdline"))
        .and_then(|file| file.take(COMMAND_LINE_BYTES).read_to_end(&mut bytes));
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    text.split('\0').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Whether the process runs code from this very file.
fn maps_executable(pid: u32, file: &fs::Metadata) -> bool {
    let Ok(maps) = Proc::new(i32::try_from(pid).unwrap_or(0)).and_then(|proc| proc.maps()) else {
        return false;
    };
    maps.iter()
        .any(|map| map.inode == file.ino() && map.perms.contains(procfs::process::MMPermissions::EXECUTE))
}

/// The SHA-256 of the file that a process runs, in lower-case hex; read through the process's own link, so that it
/// is the file that runs and not the one that stands at its path by now.
fn digest(link: &Path) -> Option<String> {
    let mut file = File::open(link).ok()?;
    if file.metadata().ok()?.len() > DIGEST_LIMIT {
        return None;
    }
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut HashWriter(&mut hasher)).ok()?;
    Some(hex::encode(&hasher.finalize()))
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
