//! From a cgroup's id to its path, and to the processes in it.
//!
//! The id that the kernel stamps on a socket is the inode number of the cgroup's directory. Ids are not reused
//! within a boot, so a path once found stays right for as long as anybody can ask.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirEntryExt, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::CgroupPath;

/// How many directories one search may visit: far above any real host, so that a caller who makes cgroups in its
/// own delegated subtree cannot keep the search busy for ever.
const SEARCH_LIMIT: usize = 100_000;

/// Where users' own managers live.
const USERS: &str = "/user.slice";

/// The id of the tree's root. Older kernels also report it for every socket where `net_cls` or `net_prio` took the
/// socket's cgroup over (kernel commit 6e3a401fc8af).
pub const ROOT: u64 = 1;

/// How deep the tree may be.
const DEPTH_LIMIT: usize = 64;

/// The cgroup2 hierarchy.
#[derive(Debug)]
pub struct CgroupTree {
    mount: PathBuf,
    /// Keeps a mount alive that has no place in the file system.
    _detached: Option<OwnedFd>,
}

impl CgroupTree {
    /// Finds the cgroup2 hierarchy of this host: where it is mounted (unified, or beside cgroup v1 on a hybrid
    /// host), or, in a mount namespace that does not show it, by a mount of the guard's own that nobody else sees.
    ///
    /// Fails if the kernel has none, as on a pure cgroup v1 host.
    pub fn find() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        match mount_point(&mounts) {
            Some(mount) => Ok(Self { mount, _detached: None }),
            None => Self::detached(),
        }
    }

    /// Needs `CAP_SYS_ADMIN`.
    fn detached() -> io::Result<Self> {
        let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        Ok(Self { mount: path, _detached: Some(mount) })
    }

    /// The path of the cgroup with this id, or `None` if there is no such cgroup (any more).
    ///
    /// Walks the tree and fills `known` with all that it meets, so that the next question for a sibling is a
    /// look-up. A walk costs about 10 us per cgroup.
    pub fn resolve(&self, id: u64, known: &mut HashMap<u64, CgroupPath>) -> io::Result<Option<CgroupPath>> {
        if let Some(path) = known.get(&id) {
            return Ok(Some(path.clone()));
        }
        known.clear();
        self.walk(id, known)?;
        Ok(known.get(&id).cloned())
    }

    /// The process ids in the cgroup at `path` (not in those below it). More than `limit` are an error.
    pub fn processes(&self, path: &CgroupPath, limit: usize) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        members(&self.directory(path), &mut pids, limit)?;
        Ok(pids)
    }

    /// The process ids in the cgroup at `path` and in all below it. More than `limit`, of processes or of cgroups, are an
    /// error.
    pub fn processes_below(&self, path: &CgroupPath, limit: usize) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        let mut pending = vec![self.directory(path)];
        let mut seen = 0;
        while let Some(directory) = pending.pop() {
            seen += 1;
            match members(&directory, &mut pids, limit) {
                Ok(()) => {}
                // A cgroup below may vanish meanwhile. A threaded one does not list its processes, because the one
                // above it does.
                Err(error)
                    if seen > 1
                        && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Unsupported) => {}
                Err(error) => return Err(error),
            }
            // A directory's links are two and one for each below it, so most units need not be listed.
            if fs::metadata(&directory).map_or(0, |directory| directory.nlink()) == 2 {
                continue;
            }
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    pending.push(entry.path());
                }
                if pending.len() + seen > limit {
                    return Err(io::ErrorKind::QuotaExceeded.into());
                }
            }
        }
        Ok(pids)
    }

    fn directory(&self, path: &CgroupPath) -> PathBuf {
        self.mount.join(path.as_str().trim_start_matches('/'))
    }

    fn walk(&self, wanted: u64, known: &mut HashMap<u64, CgroupPath>) -> io::Result<()> {
        let mut pending = vec![(self.mount.clone(), String::new(), 0)];
        if let Some(root) = CgroupPath::new("/") {
            known.insert(inode(&self.mount)?, root);
        }
        while let Some((directory, path, depth)) = pending.pop() {
            if known.contains_key(&wanted) {
                break;
            }
            // A cgroup that vanishes while the walk is on it is simply not there.
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || known.len() >= SEARCH_LIMIT {
                    continue;
                }
                let child = format!("{path}/{}", entry.file_name().to_string_lossy());
                known.extend(CgroupPath::new(child.as_str()).map(|path| (entry.ino(), path)));
                // Users make cgroups of their own below theirs: those are looked at last, so that nobody can keep a
                // system unit from being found.
                if child == USERS {
                    pending.insert(0, (entry.path(), child, depth + 1));
                } else if depth < DEPTH_LIMIT {
                    pending.push((entry.path(), child, depth + 1));
                }
            }
        }
        Ok(())
    }
}

/// Adds the processes of one cgroup. A process that this pid namespace does not show is 0 here.
fn members(directory: &Path, pids: &mut Vec<u32>, limit: usize) -> io::Result<()> {
    let mut text = String::new();
    // Room for the longest numbers, and one more.
    let room = (limit as u64 + 1) * 11;
    fs::File::open(directory.join("cgroup.procs"))?.take(room).read_to_string(&mut text)?;
    for line in text.lines() {
        pids.push(line.parse().map_err(io::Error::other)?);
        if pids.len() > limit {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
    }
    Ok(())
}

fn inode(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

/// The mount point of the cgroup2 file system in the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5): the
/// fifth field is the mount point, the file system type follows the lone hyphen).
pub(super) fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_on_unified_and_hybrid_hosts() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        let hybrid = "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert_eq!(mount_point(unified).unwrap(), Path::new("/sys/fs/cgroup"));
        assert_eq!(mount_point(hybrid).unwrap(), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(mount_point("31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
    }

    #[test]
    fn a_directory_is_found_by_its_inode_number() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("system.slice/web.service")).unwrap();
        let tree = CgroupTree { mount: root.path().to_owned(), _detached: None };
        let id = inode(&root.path().join("system.slice/web.service")).unwrap();
        let mut known = HashMap::new();
        assert_eq!(tree.resolve(id, &mut known).unwrap().unwrap().as_str(), "/system.slice/web.service");
        assert_eq!(tree.resolve(u64::MAX, &mut known).unwrap(), None);
    }

    #[test]
    fn the_processes_of_a_unit_are_those_of_its_whole_branch_or_an_error() {
        let root = tempfile::tempdir().unwrap();
        let tree = CgroupTree { mount: root.path().to_owned(), _detached: None };
        let put = |place: &str, text: &str| {
            fs::create_dir_all(root.path().join(place)).unwrap();
            fs::write(root.path().join(place).join("cgroup.procs"), text).unwrap();
        };
        put("a.service", "1\n2\n");
        put("a.service/sub/deep", "3\n");
        put("a.service/sub", "");
        let unit = CgroupPath::new("/a.service").unwrap();
        let mut below = tree.processes_below(&unit, 4).unwrap();
        below.sort_unstable();
        assert_eq!(below, [1, 2, 3]);
        assert_eq!(tree.processes(&unit, 4).unwrap(), [1, 2]);
        assert!(tree.processes_below(&unit, 2).is_err(), "a shorter list would be a wrong one");
        assert!(tree.processes(&unit, 1).is_err());
        assert!(tree.processes_below(&CgroupPath::new("/gone.service").unwrap(), 4).is_err());
    }
}
