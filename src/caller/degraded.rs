//! Where the kernel names no unit: hosts of cgroup v1, on which every socket is stamped with the root of a cgroup2 tree that
//! nobody uses, or with none at all.
//!
//! The uid is the kernel's word there as everywhere. The unit is not: it is the place in systemd's own v1 hierarchy at which
//! *all* processes are that visibly hold the socket. Any other holder, or a process that cannot be looked into, and there is
//! none. A second reference that nobody sees (in flight, in io_uring) passes unnoticed, so whoever runs as an agent's user may
//! pass for the agent's unit: credentials are given on this only where the policy says so (`degraded = "allow"`).

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::time::Instant;

use super::process_dir::{Place, ProcessDir, SYSTEMD};
use super::{Cgroup, CgroupPath};

/// How many processes are searched: the whole host's, since nothing says where to look.
pub(super) const PROCESS_LIMIT: usize = 65_536;

/// Ids that stand for paths have this bit, which no kernel's id has: inode numbers of control groups count from 1.
const NOT_THE_KERNELS: u64 = 1 << 63;

/// Whether this host names units in a v1 hierarchy, wherever else it does.
#[must_use]
pub fn has_v1_units() -> bool {
    let own = fs::read("/proc/self/cgroup").unwrap_or_default();
    own.split(|byte| *byte == b'\n').any(|line| SYSTEMD.path_in(line).is_some())
}

/// Whether this host names units in a v1 hierarchy and nowhere else: no cgroup2 is mounted.
#[must_use]
pub fn is_degraded_host() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    has_v1_units() && super::cgroup::mount_point(&mounts).is_none()
}

/// The cgroup of that path, with a number of its own: callers of different units must not be taken for one another.
#[must_use]
pub fn cgroup(path: CgroupPath) -> Cgroup {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    Cgroup { id: hasher.finish() | NOT_THE_KERNELS, path }
}

/// Where every process is that visibly holds the socket, by systemd's v1 hierarchy; `None` if none does, if they are in
/// different places, or if that is the root of the hierarchy. A search that could not be finished is an error.
pub fn place_of_holders(inode: u32, until: Instant) -> io::Result<Option<CgroupPath>> {
    let socket = format!("socket:[{inode}]").into_bytes();
    let mut place: Option<CgroupPath> = None;
    for pid in all_processes()? {
        let Some(dir) = ProcessDir::open(pid)? else { continue };
        if find(&dir, &socket, until)?.is_none() {
            continue;
        }
        let Some(cgroup) = dir.cgroup_of(SYSTEMD)? else { continue };
        if cgroup.is_root() || place.as_ref().is_some_and(|known| *known != cgroup) {
            return Ok(None);
        }
        place = Some(cgroup);
    }
    Ok(place)
}

/// Where a process has the socket. One of root's that nobody may look into (the first one, in some containers) is root's
/// own affair.
pub(super) fn find(dir: &ProcessDir, socket: &[u8], until: Instant) -> io::Result<Option<Place>> {
    match dir.find(socket, until) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_roots(dir)? => Ok(None),
        found => found,
    }
}

fn is_roots(dir: &ProcessDir) -> io::Result<bool> {
    Ok(dir.status()?.is_some_and(|status| status.uids == (0, 0)))
}

/// The numbers of all processes of this pid namespace. More than the limit are an error.
pub(super) fn all_processes() -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        if pids.len() > PROCESS_LIMIT {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn cgroups_known_by_their_path_alone_have_numbers_of_their_own() {
        let of = |path: &str| cgroup(CgroupPath::new(path).unwrap()).id;
        assert_eq!(of("/system.slice/a.service"), of("/system.slice/a.service"));
        assert_ne!(of("/system.slice/a.service"), of("/system.slice/b.service"));
        assert!(of("/") > u64::MAX / 2);
    }

    #[test]
    fn a_socket_that_nobody_holds_has_no_place() {
        let until = Instant::now() + Duration::from_secs(20);
        // Not root, some other process cannot be looked into, which is an error.
        assert!(matches!(place_of_holders(0, until), Ok(None) | Err(_)));
    }
}
