//! One process as procfs shows it.
//!
//! Everything is read through one descriptor of the process's own directory: it stays that process's, and reads
//! nothing once the process is gone, even if its number is used again. What cannot be read is an error and never
//! "nothing there": a holder of whom procfs does not want to tell must not count as no holder.

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::time::Instant;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RawDir, Statx, StatxFlags, openat, readlinkat, readlinkat_raw, statx,
};
use rustix::io::Errno;

use super::CgroupPath;

/// How many threads of a process are searched. A process with more is not searched to the end, which is an error: the
/// thread behind the last one could have the socket in a table of its own.
const THREAD_LIMIT: usize = 4096;

/// After how many descriptors the time is looked at.
const BREATH: usize = 32;

/// Room for `/proc/PID/stat` and `/proc/PID/status`, which are about 400 and 1500 bytes.
const TEXT_BYTES: usize = 8192;

/// Room for a batch of directory entries.
const ENTRIES_BYTES: usize = 8192;

/// One process's directory in procfs.
#[derive(Debug)]
pub(super) struct ProcessDir {
    dir: OwnedFd,
}

/// A hierarchy of control groups, by what stands between the colons of its line in `/proc/PID/cgroup` (cgroups(7)).
#[derive(Debug, Clone, Copy)]
pub(super) struct Hierarchy(&'static [u8]);

/// The one of cgroup2.
const UNIFIED: Hierarchy = Hierarchy(b"");

/// The one of cgroup v1 in which systemd keeps its units.
pub(super) const SYSTEMD: Hierarchy = Hierarchy(b"name=systemd");

impl Hierarchy {
    /// The path in a line (`4:name=systemd:/system.slice/a.service`), if the line is this hierarchy's.
    pub(super) fn path_in(self, line: &[u8]) -> Option<&[u8]> {
        let mut parts = line.splitn(3, |byte| *byte == b':');
        let (_number, name, path) = (parts.next()?, parts.next()?, parts.next()?);
        (name == self.0).then_some(path)
    }
}

/// Where in a process a descriptor was found: a path below the process's directory, such as `fd/7`.
#[derive(Debug)]
pub(super) struct Place(CString);

/// What `/proc/PID/stat` tells (proc_pid_stat(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    /// The command name, which the process chooses itself and which need not be text.
    pub(super) comm: Vec<u8>,
    /// The parent's process id.
    pub(super) parent: u32,
    /// What tells one program in one process from any other.
    pub(super) image: Image,
}

/// One program in one process: the process by its start time, the program by where exec has put its code and stack,
/// which the kernel chooses anew each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Image {
    /// Start time of the process in clock ticks since boot; exec does not change it.
    pub(super) start_ticks: u64,
    /// First and last address of the program's code.
    code: (u64, u64),
    /// The bottom of its stack.
    stack: u64,
}

/// What `/proc/PID/status` tells (proc_pid_status(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    /// Real and effective user id.
    pub(super) uids: (u32, u32),
    /// The process that traces this one, or 0.
    pub(super) tracer: u32,
}

impl ProcessDir {
    /// The process with this number; `None` if there is none. Number 0 stands for processes that this pid namespace does
    /// not show, and is an error.
    pub(super) fn open(pid: u32) -> io::Result<Option<Self>> {
        if pid == 0 {
            return Err(io::Error::other("a process of another pid namespace"));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(if_there(openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()))?.map(|dir| Self { dir }))
    }

    /// Where some thread of the process has the socket in its descriptor table, if one does. Threads may have tables of
    /// their own (unshare with `CLONE_FILES`), and may outlive the leader.
    pub(super) fn find(&self, socket: &[u8], until: Instant) -> io::Result<Option<Place>> {
        if let Some(place) = self.find_in(c"fd", socket, until)? {
            return Ok(Some(place));
        }
        let mut threads = 0;
        let mut found = None;
        self.each_entry(c"task", |thread| {
            threads += 1;
            if threads > THREAD_LIMIT {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            let table = [b"task/", thread.to_bytes(), b"/fd"].concat();
            found = self.find_in(&CString::new(table)?, socket, until)?;
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// Whether what was found there is there still.
    pub(super) fn has(&self, place: &Place, socket: &[u8]) -> io::Result<bool> {
        let mut target = [0; 64];
        let length = if_there(readlinkat_raw(&self.dir, &*place.0, &mut target))?;
        Ok(length.and_then(|length| target.get(..length)) == Some(socket))
    }

    fn find_in(&self, table: &CStr, socket: &[u8], until: Instant) -> io::Result<Option<Place>> {
        let Some(dir) = self.directory(table)? else { return Ok(None) };
        let mut seen = 0_usize;
        let mut place = None;
        // Longer than the link that is looked for: a cut link is not taken for it.
        let mut target = [0; 64];
        entries(&dir, |number| {
            if seen.is_multiple_of(BREATH) && Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            seen += 1;
            // By the number alone, from the table's own directory: a walk from the root for each costs thrice as much.
            let length = if_there(readlinkat_raw(&dir, number, &mut target))?;
            if length.and_then(|length| target.get(..length)) == Some(socket) {
                let path = [table.to_bytes(), b"/", number.to_bytes()].concat();
                place = Some(Place(CString::new(path)?));
            }
            Ok(place.is_none())
        })?;
        Ok(place)
    }

    /// `None` if the process or thread is gone.
    fn directory(&self, name: &CStr) -> io::Result<Option<OwnedFd>> {
        if_there(openat(&self.dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()))
    }

    fn each_entry(&self, name: &CStr, each: impl FnMut(&CStr) -> io::Result<bool>) -> io::Result<()> {
        self.directory(name)?.map_or(Ok(()), |dir| entries(&dir, each))
    }

    /// `None` if the process is gone.
    pub(super) fn stat(&self) -> io::Result<Option<Stat>> {
        let mut text = [0; TEXT_BYTES];
        let Some(text) = self.read("stat", &mut text)? else { return Ok(None) };
        Stat::parse(text).map(Some).ok_or_else(unreadable)
    }

    /// `None` if the process is gone.
    pub(super) fn status(&self) -> io::Result<Option<Status>> {
        let mut text = [0; TEXT_BYTES];
        let Some(text) = self.read("status", &mut text)? else { return Ok(None) };
        Status::parse(text).map(Some).ok_or_else(unreadable)
    }

    /// The cgroup of the unified hierarchy that the process is in now; `None` if it is gone, or in none.
    pub(super) fn cgroup(&self) -> io::Result<Option<CgroupPath>> {
        self.cgroup_of(UNIFIED)
    }

    /// The cgroup of this hierarchy that the process is in now; `None` if it is gone, or in none.
    pub(super) fn cgroup_of(&self, hierarchy: Hierarchy) -> io::Result<Option<CgroupPath>> {
        let mut text = [0; TEXT_BYTES];
        let Some(text) = self.read("cgroup", &mut text)? else { return Ok(None) };
        let path = text.split(|byte| *byte == b'\n').find_map(|line| hierarchy.path_in(line));
        Ok(path.and_then(|path| CgroupPath::new(String::from_utf8_lossy(path))))
    }

    /// What a link shows; `None` if it shows nothing (a kernel thread's or a dead leader's executable).
    pub(super) fn link(&self, name: &str) -> io::Result<Option<PathBuf>> {
        let target = if_there(readlinkat(&self.dir, name, Vec::new()))?;
        Ok(target.map(|target| OsString::from_vec(target.into_bytes()).into()))
    }

    /// What is behind a link. Without asking a file system's server, which may be one of the caller's own that never
    /// answers.
    pub(super) fn metadata(&self, name: &str) -> io::Result<Option<Statx>> {
        if_there(statx(&self.dir, name, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS))
    }

    /// Opens a file of the directory, or what a link in it leads to.
    pub(super) fn open_file(&self, name: &str) -> io::Result<Option<File>> {
        let file = if_there(openat(&self.dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))?;
        Ok(file.map(File::from))
    }

    /// One read: the kernel makes these texts whole if there is room for them.
    fn read<'a>(&self, name: &str, room: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let Some(file) = if_there(openat(&self.dir, name, flags, Mode::empty()))? else { return Ok(None) };
        let Some(length) = if_there(rustix::io::read(&file, &mut *room))? else { return Ok(None) };
        if length == room.len() { Err(unreadable()) } else { Ok(room.get(..length)) }
    }
}

impl Stat {
    /// The command name stands in parentheses, and may hold parentheses, spaces and line ends of its own.
    fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let comm = text.get(open + 1..close)?.to_vec();
        let rest = str::from_utf8(text.get(close + 1..)?).ok()?;
        // The first of them is the third field of the manual page.
        let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3)?.parse::<u64>().ok();
        let image = Image { start_ticks: field(22)?, code: (field(26)?, field(27)?), stack: field(28)? };
        Some(Self { comm, parent: u32::try_from(field(4)?).ok()?, image })
    }
}

impl Status {
    /// The kernel escapes line ends in the name, so that no line here is the process's own; the rest of the name need
    /// not be text.
    fn parse(text: &[u8]) -> Option<Self> {
        let field = |name: &[u8]| {
            let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
            str::from_utf8(line).ok()
        };
        let mut uids = field(b"Uid:")?.split_ascii_whitespace().map(|uid| uid.parse().ok());
        let tracer = field(b"TracerPid:")?.trim_ascii().parse().ok()?;
        Some(Self { uids: (uids.next()??, uids.next()??), tracer })
    }
}

/// Hands on each entry but `.` and `..`, until told to stop.
fn entries(dir: impl AsFd, mut each: impl FnMut(&CStr) -> io::Result<bool>) -> io::Result<()> {
    let mut room = [MaybeUninit::uninit(); ENTRIES_BYTES];
    let mut entries = RawDir::new(dir, &mut room);
    while let Some(entry) = entries.next() {
        let Some(entry) = if_there(entry)? else { return Ok(()) };
        let name = entry.file_name();
        if !name.to_bytes().starts_with(b".") && !each(name)? {
            return Ok(());
        }
    }
    Ok(())
}

/// What is gone is no error, everything else that fails is.
fn if_there<T>(result: Result<T, Errno>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT | Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "procfs says something else than it used to")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_name_cannot_forge_the_fields_behind_it() {
        let stat = b"7 (a) S 9 (\n\xff) R 4 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 555 0 0 0 10 20 30 0\n";
        let stat = Stat::parse(stat).unwrap();
        assert_eq!((stat.parent, stat.image.start_ticks), (4, 555));
        assert_eq!(stat.comm, b"a) S 9 (\n\xff");
        let status = b"Name:\t\xff\\nTracerPid:\t0\nState:\tS\nTracerPid:\t42\nUid:\t5\t6\t7\t8\n";
        assert_eq!(Status::parse(status), Some(Status { uids: (5, 6), tracer: 42 }));
    }

    #[test]
    fn each_hierarchy_has_its_line() {
        let line = b"9:name=systemd:/system.slice/a:b.service";
        assert_eq!(SYSTEMD.path_in(line), Some(&b"/system.slice/a:b.service"[..]));
        assert_eq!(UNIFIED.path_in(line), None);
        assert_eq!(UNIFIED.path_in(b"0::/a"), Some(&b"/a"[..]));
        assert_eq!(SYSTEMD.path_in(b"8:pids:/name=systemd:/a"), None);
        assert_eq!(SYSTEMD.path_in(b""), None);
    }

    #[test]
    fn what_procfs_does_not_say_is_not_made_up() {
        assert_eq!(Stat::parse(b"7 (a) S 1"), None);
        assert_eq!(Stat::parse(b""), None);
        assert_eq!(Status::parse(b"Name:\ta\nUid:\t1\n"), None);
    }

    #[test]
    fn a_descriptor_is_found_in_a_thread_s_own_table() {
        let own = ProcessDir::open(std::process::id()).unwrap().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let link = link.to_string_lossy().into_owned();
        let place = own.find(link.as_bytes(), soon()).unwrap().expect("this process has it");
        assert!(own.has(&place, link.as_bytes()).unwrap());
        drop(socket);
        assert!(own.find(link.as_bytes(), soon()).unwrap().is_none());
        assert!(!own.has(&place, link.as_bytes()).unwrap());
    }

    #[test]
    fn a_search_without_time_is_an_error_and_not_a_no() {
        let own = ProcessDir::open(std::process::id()).unwrap().unwrap();
        let past = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        assert_eq!(own.find(b"socket:[1]", past).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_process_that_is_gone_is_gone_for_good() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dir = ProcessDir::open(child.id()).unwrap().unwrap();
        child.wait().unwrap();
        assert_eq!(dir.stat().unwrap(), None);
        assert!(dir.find(b"socket:[1]", soon()).unwrap().is_none());
        assert!(ProcessDir::open(0).is_err(), "what this pid namespace does not show");
    }
}
