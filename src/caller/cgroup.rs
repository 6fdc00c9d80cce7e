//! From a cgroup's id to its path, and to the processes in it.
//!
//! The id that the kernel stamps on a socket is the inode number of the cgroup's directory. Ids are not reused
//! within a boot, so a path once found stays right for as long as anybody can ask.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::CgroupPath;

/// How many directories one search may visit: far above any real host, so that a caller who makes cgroups in its
/// own delegated subtree cannot keep the search busy for ever.
const SEARCH_LIMIT: usize = 100_000;

/// Where users' own managers live.
const USERS: &str = "/user.slice";

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

    /// The process ids in the cgroup at `path` (not in those below it).
    pub fn processes(&self, path: &CgroupPath) -> io::Result<Vec<u32>> {
        let procs = self.directory(path).join("cgroup.procs");
        Ok(fs::read_to_string(procs)?.lines().filter_map(|line| line.parse().ok()).collect())
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

fn inode(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(fs::metadata(path)?.ino())
}

/// The mount point of the cgroup2 file system in the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5): the
/// fifth field is the mount point, the file system type follows the lone hyphen).
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
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
}
