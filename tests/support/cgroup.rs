//! Control groups that look as systemd's do: `/NAME.slice/UNIT.service` at the root of the cgroup2 tree.
//!
//! Every test bed has a slice of its own, so that tests may share unit names and yet never meet, and so that a real
//! unit of the machine is never joined.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// A slice and the units below it; killed and removed when dropped.
pub struct Slice {
    root: PathBuf,
    name: String,
}

impl Slice {
    /// Makes a slice of the given name (without `.slice`) at the root of the tree.
    pub fn new(name: &str) -> Self {
        let slice = Self { root: mount(), name: format!("{}.slice", name.replace('-', "_")) };
        fs::create_dir(slice.dir()).expect("root may make a cgroup");
        slice
    }

    fn dir(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// The cgroup of a unit in this slice, made if it is not there.
    pub fn unit(&self, unit: &str) -> Cgroup {
        let path = format!("/{}/{unit}", self.name);
        let dir = self.dir().join(unit);
        fs::create_dir_all(&dir).expect("root may make a cgroup");
        Cgroup { dir, path }
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        remove(&self.dir());
    }
}

/// A unit right below `/system.slice`, where most real ones live. Removed when dropped, and the slice with it if no
/// other unit is there.
pub struct SystemUnit {
    /// The unit's cgroup.
    pub cgroup: Cgroup,
}

impl SystemUnit {
    /// Makes it; the name must be unique on the machine.
    pub fn new(unit: &str) -> Self {
        let path = format!("/system.slice/{unit}");
        let dir = mount().join("system.slice").join(unit);
        // Another test may remove the empty slice between the two steps of this call.
        while let Err(error) = fs::create_dir_all(&dir) {
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{}", dir.display());
        }
        Self { cgroup: Cgroup { dir, path } }
    }
}

impl Drop for SystemUnit {
    fn drop(&mut self) {
        remove(&self.cgroup.dir);
        if let Some(slice) = self.cgroup.dir.parent() {
            // Fails while other units live there, which is right.
            let _ = fs::remove_dir(slice);
        }
    }
}

/// One control group.
#[derive(Debug, Clone)]
pub struct Cgroup {
    /// Its directory.
    pub dir: PathBuf,
    /// Its path from the root of the tree, as the kernel and the guard name it.
    pub path: String,
}

impl Cgroup {
    /// Removes the directory, while a socket that was created here may live on elsewhere.
    pub fn remove(&self) {
        remove(&self.dir);
    }
}

/// Where the cgroup2 tree is mounted: `/sys/fs/cgroup`, or below it on hybrid hosts.
pub fn mount() -> PathBuf {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("procfs is mounted");
    table
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .find_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .expect("this machine has a cgroup2 tree")
}

/// Kills whatever still runs below and removes the directories, deepest first.
fn remove(dir: &Path) {
    let _ = fs::write(dir.join("cgroup.kill"), "1");
    // A killed process leaves its cgroup a little later.
    for _ in 0..200 {
        if remove_tree(dir).is_ok() || !dir.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}
