//! Which processes hold a socket, and what may be believed about them.
//!
//! Only the processes of the socket's own unit are searched, so the cost grows with the unit and not with the
//! host. What is found narrows a grant and tells the log; it never widens one, because a process can arrange to be
//! seen as another (exec with an inherited descriptor, descriptor passing, a private descriptor table).
//!
//! A search that could not be finished is an error, never a shorter list: whoever it did not come to might be the one who
//! reads the answer.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup::CgroupTree;
use super::degraded;
use super::executable::{Executables, MAPS_BYTES, Question};
use super::memory::Memory;
use super::process_dir::{Image, ProcessDir, SYSTEMD};
use super::{CgroupPath, Process};

/// How many bytes of a command line are kept.
const COMMAND_LINE_BYTES: u64 = 512;

/// How many processes of a unit are searched.
const PROCESS_LIMIT: usize = 4096;

/// More holders of one socket than this are told as "unknown": nobody shares a connection so widely.
pub const HOLDERS_LIMIT: usize = 64;

/// How many of the processes above one are told.
const ANCESTORS: usize = 5;

/// How many command lines are remembered.
const REMEMBERED: usize = 1024;

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
    /// Whether a verdict depends on it: then the whole unit is searched, not only the cgroup.
    pub decisive: bool,
    /// When to give up: a process can have a million descriptors in each of a thousand threads, and the keeper has
    /// more to do.
    pub until: Instant,
}

/// Searches procfs on behalf of one policy.
#[derive(Debug)]
pub struct ProcessTable {
    executables: Executables,
    /// Command lines by process and program: a process that writes over its own is told as it was first seen.
    command_lines: HashMap<(u32, Image), String>,
    /// Apart, so that a process that stops its reader stops none whose answer a verdict waits for.
    for_the_log: Memory,
    decisive: Memory,
}

impl ProcessTable {
    /// A table that knows executables by these absolute paths, besides the name that procfs shows: a policy may
    /// name a file by a symlink such as `/usr/bin/python3`.
    pub fn new(known: Vec<PathBuf>) -> io::Result<Self> {
        Ok(Self {
            executables: Executables::new(known)?,
            command_lines: HashMap::new(),
            for_the_log: Memory::default(),
            decisive: Memory::default(),
        })
    }

    /// Every process of the unit that visibly holds the socket. Empty if none does. Where units are named elsewhere than in
    /// the tree, a socket that is stamped with its root may be held by any process of the host.
    pub fn holders(&mut self, tree: Option<&CgroupTree>, search: &Search<'_>) -> io::Result<Vec<Process>> {
        let socket = format!("socket:[{}]", search.inode).into_bytes();
        let everywhere = search.decisive && search.cgroup.is_root();
        let pids = match tree {
            _ if everywhere => degraded::all_processes()?,
            None => return Err(io::ErrorKind::Unsupported.into()),
            Some(tree) if search.decisive => tree.processes_below(&search.cgroup.unit(), PROCESS_LIMIT)?,
            Some(tree) => tree.processes(search.cgroup, PROCESS_LIMIT)?,
        };
        let find = if everywhere { degraded::find } else { ProcessDir::find };
        let mut holders = Vec::new();
        for pid in pids {
            let Some(dir) = ProcessDir::open(pid)? else { continue };
            let Some(mut place) = find(&dir, &socket, search.until)? else { continue };
            loop {
                let process = self.identity(pid, &dir, search)?;
                // Identity was read while it held the socket, or is read again: a process that becomes another closes,
                // on its way, what it does not hand on.
                if dir.has(&place, &socket)? {
                    holders.extend(process);
                    break;
                }
                match dir.find(&socket, search.until)? {
                    Some(other) => place = other,
                    None => break,
                }
            }
            if holders.len() > HOLDERS_LIMIT {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
        }
        Ok(holders)
    }

    /// What is known of a process, whatever it holds; `None` if there is none, or if it cannot be told.
    pub fn identify(&mut self, pid: u32, search: &Search<'_>) -> Option<Process> {
        let dir = ProcessDir::open(pid).ok()??;
        self.identity(pid, &dir, search).ok()?
    }

    /// Whom a process belongs to, in which cgroup it is, and what is known of it; `None` if there is none, or if it cannot
    /// be told.
    pub fn who(&mut self, pid: u32, digest: bool, until: Instant) -> Option<(u32, CgroupPath, Process)> {
        let dir = ProcessDir::open(pid).ok()??;
        let (_, uid) = dir.status().ok()??.uids;
        let cgroup = match dir.cgroup().ok()? {
            Some(cgroup) if !cgroup.is_root() => cgroup,
            root => dir.cgroup_of(SYSTEMD).ok()?.or(root)?,
        };
        let search = Search { cgroup: &cgroup, inode: 0, uid, digest, decisive: false, until };
        let process = self.identity(pid, &dir, &search).ok()??;
        Some((uid, cgroup, process))
    }

    /// The processes above one, nearest first: number and name, which the process has chosen itself.
    #[must_use]
    pub fn ancestors(&self, process: &Process) -> Vec<String> {
        let mut above = Vec::new();
        let mut pid = process.parent;
        while pid > 0 && above.len() < ANCESTORS {
            let Some(stat) = ProcessDir::open(pid).ok().flatten().and_then(|dir| dir.stat().ok()?) else {
                break;
            };
            above.push(format!("{pid} {}", String::from_utf8_lossy(&stat.comm)));
            pid = stat.parent;
        }
        above
    }

    /// Reads a process's identity between opening its pidfd and seeing that it still lives, so that the answer is
    /// about one process even if its number is used again meanwhile. `None` if it is gone.
    fn identity(&mut self, pid: u32, dir: &ProcessDir, search: &Search<'_>) -> io::Result<Option<Process>> {
        // A process can have so many mappings, and so many others like it, that looking at all takes seconds.
        if Instant::now() > search.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let Some(pidfd) = pidfd(pid)? else { return Ok(None) };
        let (Some(stat), Some(status)) = (dir.stat()?, dir.status()?) else { return Ok(None) };
        let memory = if search.decisive { &mut self.decisive } else { &mut self.for_the_log };
        let question =
            Question { pid, dir, image: stat.image, status, uid: search.uid, digest: search.digest };
        let mut read = |name: &str, limit| match dir.open_file(name)? {
            Some(file) => memory.read(file, limit, status.uids.0, search.until),
            None => Ok(Vec::new()),
        };
        let exe = self.executables.of(&question, || read("maps", MAPS_BYTES))?;
        let command_line = self.command_lines.get(&(pid, stat.image)).cloned().unwrap_or_else(|| {
            let line = read("cmdline", COMMAND_LINE_BYTES).map(|bytes| words(&bytes));
            if self.command_lines.len() >= REMEMBERED {
                self.command_lines.clear();
            }
            // One that cannot be read is for another time to try.
            line.inspect(|line| drop(self.command_lines.insert((pid, stat.image), line.clone())))
                .unwrap_or_default()
        });
        let process = Process {
            pid,
            start_ticks: stat.image.start_ticks,
            parent: stat.parent,
            uid: status.uids.0,
            comm: String::from_utf8_lossy(&stat.comm).chars().take(16).collect(),
            command_line,
            exe,
        };
        Ok(alive(&pidfd).then_some(process))
    }
}

/// `None` if there is no such process (any more).
fn pidfd(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A pidfd becomes readable when its process exits.
fn alive(pidfd: &OwnedFd) -> bool {
    let mut exits = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(poll(&mut exits, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

/// A command line's words, which are separated by zeros.
fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.split('\0').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}
