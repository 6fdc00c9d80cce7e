//! Which file a process runs, and whether its name may be believed.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};
use sha2::{Digest as _, Sha256};

use super::Exe;
use super::process_dir::{Image, ProcessDir, Status};
use crate::hex;

/// How much of an executable's path is told.
const PATH_CHARS: usize = 512;

/// Executables above this size are not digested (256 MiB takes about a quarter of a second).
const DIGEST_LIMIT: u64 = 256 << 20;

/// How many digests, and how many programs seen to be mapped, are remembered.
const REMEMBERED: usize = 4096;

/// How long the policy's names are taken to lead where they led: links change when packages are upgraded.
const NAMES_HOLD: Duration = Duration::from_secs(1);

/// How many symbolic links one name may lead through (the kernel's own limit).
const LINKS: usize = 40;

/// How much of a list of mappings is read. The program's own come early; only a process that means to hide them has this
/// much before them.
pub(super) const MAPS_BYTES: u64 = 1 << 20;

/// One state of one file: it has another when its content changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileState {
    file: FileId,
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

/// One file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    dev: (u32, u32),
    inode: u64,
}

impl FileId {
    fn of(file: &Statx) -> Self {
        Self { dev: (file.stx_dev_major, file.stx_dev_minor), inode: file.stx_ino }
    }
}

impl FileState {
    fn of(file: &Statx) -> Self {
        Self {
            file: FileId::of(file),
            size: file.stx_size,
            modified: (file.stx_mtime.tv_sec, file.stx_mtime.tv_nsec),
            changed: (file.stx_ctime.tv_sec, file.stx_ctime.tv_nsec),
        }
    }
}

/// One program in one process, as it was seen to run.
pub(super) type Program = (u32, Image, FileId);

/// What is asked about a process's executable.
pub(super) struct Question<'a> {
    /// The process.
    pub(super) pid: u32,
    /// Its directory in procfs.
    pub(super) dir: &'a ProcessDir,
    /// Which program in it.
    pub(super) image: Image,
    /// What procfs says of its users and its tracer.
    pub(super) status: Status,
    /// The uid on the socket.
    pub(super) uid: u32,
    /// Whether the policy wants a digest.
    pub(super) digest: bool,
}

/// What is known of the host's executables.
#[derive(Debug)]
pub(super) struct Executables {
    host: World,
    /// The policy's names for executables.
    known: Vec<PathBuf>,
    names: Names,
    digests: HashMap<FileState, String>,
    /// Programs that were seen to have their file mapped.
    ///
    /// The list of mappings is long and the kernel slow to write it, so it is read once for each program of a process.
    /// What it guards against is an executable's link that was changed by `PR_SET_MM_EXE_FILE`, which takes
    /// CAP_SYS_RESOURCE, in a process that runs something else. Another program comes by exec, and with it another
    /// place of code and stack, which is another key here.
    mapped: HashSet<Program>,
}

/// Where the policy's names lead.
#[derive(Debug, Default)]
struct Names {
    since: Option<Instant>,
    by_file: HashMap<FileId, Vec<String>>,
}

impl Executables {
    pub(super) fn new(known: Vec<PathBuf>) -> io::Result<Self> {
        let own = ProcessDir::open(std::process::id())?.ok_or(io::ErrorKind::NotFound)?;
        let host = World::of(&own)?.ok_or(io::ErrorKind::NotFound)?;
        let (names, digests, mapped) = (Names::default(), HashMap::new(), HashSet::new());
        Ok(Self { host, known, names, digests, mapped })
    }

    /// What runs, and whether its name may be believed. `maps` reads the list of the process's mappings.
    pub(super) fn of(
        &mut self,
        question: &Question<'_>,
        maps: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> io::Result<Exe> {
        let path = question.dir.link("exe")?.unwrap_or_default();
        let doubt = self.doubt(question, &path, maps)?;
        let names = if doubt.is_none() { self.names(question.dir, &path)? } else { Vec::new() };
        let wants_digest = doubt.is_none() && question.digest;
        Ok(Exe {
            names,
            doubt: doubt.unwrap_or_default().to_owned(),
            sha256: if wants_digest { self.digest(question.dir)? } else { None },
            path: path.to_string_lossy().chars().take(PATH_CHARS).collect(),
        })
    }

    /// Why the name of a process's executable must not be believed; each reason stops one forgery.
    fn doubt(
        &mut self,
        question: &Question<'_>,
        path: &Path,
        maps: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> io::Result<Option<&'static str>> {
        let Some(running) = question.dir.metadata("exe")? else { return Ok(Some("unreadable")) };
        if running.stx_nlink == 0 {
            return Ok(Some("deleted")); // also memfd: a file that no directory names any more
        }
        // A bind mount in the caller's own mount namespace shows any name it likes; the inode stays the file's.
        let Ok(host) = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS) else {
            return Ok(Some("not-on-host"));
        };
        if FileId::of(&host) != FileId::of(&running) {
            return Ok(Some("other-file"));
        }
        if host.stx_uid != 0 || host.stx_mode & 0o022 != 0 {
            return Ok(Some("writable"));
        }
        // Whoever may rename things in a directory on the way puts another of root's files in this one's place.
        if !roots_alone(path) {
            return Ok(Some("replaceable"));
        }
        if World::of(question.dir)?.as_ref() != Some(&self.host) {
            return Ok(Some("foreign-namespace")); // other libraries may stand behind the same executable
        }
        if question.status.tracer != 0 {
            return Ok(Some("traced")); // its tracer speaks through it
        }
        if question.status.uids != (question.uid, question.uid) {
            return Ok(Some("other-uid")); // the socket was handed to it, or by it
        }
        let program = (question.pid, question.image, FileId::of(&running));
        if !self.mapped.contains(&program) {
            // What the kernel cannot list in time, nobody vouches for.
            if !maps().is_ok_and(|maps| maps_file(&maps, running.stx_ino)) {
                return Ok(Some("not-mapped")); // the link was changed by prctl(PR_SET_MM_EXE_FILE)
            }
            if self.mapped.len() >= REMEMBERED {
                self.mapped.clear();
            }
            self.mapped.insert(program);
        }
        Ok(None)
    }

    /// The file's own path, and whichever of the policy's names lead to it.
    fn names(&mut self, dir: &ProcessDir, path: &Path) -> io::Result<Vec<String>> {
        if self.names.since.is_none_or(|since| since.elapsed() > NAMES_HOLD) {
            self.names = Names { since: Some(Instant::now()), by_file: lead(&self.known) };
        }
        let own = path.to_string_lossy().into_owned();
        let Some(file) = dir.metadata("exe")? else { return Ok(Vec::new()) };
        let others = self.names.by_file.get(&FileId::of(&file)).into_iter().flatten();
        let others: Vec<String> = others.filter(|name| **name != own).cloned().collect();
        Ok(std::iter::once(own).chain(others).collect())
    }

    /// The SHA-256 of the file that a process runs, in lower-case hex; read through the process's own link, so that it
    /// is the file that runs and not the one that stands at its path by now. Remembered for as long as the file stays as
    /// it was: its changes show in its times, which nobody but root could turn back.
    fn digest(&mut self, dir: &ProcessDir) -> io::Result<Option<String>> {
        let Some(file) = dir.open_file("exe")? else { return Ok(None) };
        let state = FileState::of(&statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?);
        if let Some(known) = self.digests.get(&state) {
            return Ok(Some(known.clone()));
        }
        if state.size > DIGEST_LIMIT {
            return Ok(None);
        }
        let digest = sha256(file)?;
        if self.digests.len() >= REMEMBERED {
            self.digests.clear();
        }
        self.digests.insert(state, digest.clone());
        Ok(Some(digest))
    }
}

/// Which files the policy's names lead to. A link of somebody else's could lend the policy's name to any of root's
/// programs, so only root's links on root's ways count.
fn lead(known: &[PathBuf]) -> HashMap<FileId, Vec<String>> {
    let mut by_file: HashMap<FileId, Vec<String>> = HashMap::new();
    for name in known {
        let Some(target) = roots_way(name) else { continue };
        if let Ok(file) = statx(CWD, &target, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS) {
            by_file.entry(FileId::of(&file)).or_default().push(name.to_string_lossy().into_owned());
        }
    }
    by_file
}

/// Where an absolute path leads, if root alone says where: every link on the way is root's, and so is every directory.
fn roots_way(path: &Path) -> Option<PathBuf> {
    let mut way = PathBuf::from("/");
    let mut ahead: Vec<PathBuf> = vec![path.to_owned()];
    let mut links = 0;
    while let Some(next) = ahead.pop() {
        let mut parts = next.components();
        let Some(part) = parts.next() else { continue };
        ahead.push(parts.as_path().to_owned());
        match part {
            Component::RootDir => way = PathBuf::from("/"),
            Component::ParentDir => {
                way.pop();
            }
            Component::CurDir | Component::Prefix(_) => {}
            Component::Normal(name) => {
                if !may_only_root_change(&way) {
                    return None;
                }
                way.push(name);
                let entry = statx(CWD, &way, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS).ok()?;
                if kind(&entry) == LINK {
                    links += 1;
                    if entry.stx_uid != 0 || links > LINKS {
                        return None;
                    }
                    ahead.push(std::fs::read_link(&way).ok()?);
                    way.pop();
                }
            }
        }
    }
    Some(way)
}

/// Whether nobody but root can write the file at this path, or put another in its place: only then is it believed.
#[must_use]
pub fn may_only_root_replace(path: &Path) -> bool {
    let file = roots_way(path)
        .and_then(|file| statx(CWD, file, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS).ok());
    file.is_some_and(|file| file.stx_uid == 0 && file.stx_mode & 0o022 == 0)
}

/// Whether root alone says what stands at this path, which has no links in it.
fn roots_alone(path: &Path) -> bool {
    path.ancestors().skip(1).all(may_only_root_change)
}

/// Whether nobody but root can rename what is in this directory, or take it away. In a directory with the sticky bit
/// others can do so only with what is theirs.
fn may_only_root_change(dir: &Path) -> bool {
    let Ok(dir) = statx(CWD, dir, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS) else { return false };
    dir.stx_uid == 0 && (dir.stx_mode & 0o022 == 0 || dir.stx_mode & 0o1000 != 0)
}

/// The bits of a mode that tell the kind of file, and what they are for a symbolic link (inode(7)).
const LINK: u16 = 0o120_000;

fn kind(file: &Statx) -> u16 {
    file.stx_mode & 0o170_000
}

/// Whether a list of mappings (proc_pid_maps(5)) holds one of this file that may be executed. The fields: addresses,
/// permissions, offset, device, inode, and a path that the process may have chosen.
fn maps_file(maps: &[u8], inode: u64) -> bool {
    maps.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        let is_code = fields.nth(1).is_some_and(|permissions| permissions.get(2) == Some(&b'x'));
        let number = fields.nth(2).and_then(|number| OsStr::from_bytes(number).to_str()?.parse::<u64>().ok());
        is_code && number == Some(inode)
    })
}

fn sha256(mut file: File) -> io::Result<String> {
    struct Writer(Sha256);
    impl io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut hasher = Writer(Sha256::new());
    io::copy(&mut file, &mut hasher)?;
    Ok(hex::encode(&hasher.0.finalize()))
}

/// The world in which a process's names mean what they mean to the keeper.
///
/// Not the mount namespace itself: systemd gives every hardened unit one of its own, with the same root. Another
/// user namespace is what an unprivileged process needs before it can mount anything; another root directory is
/// what a container has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct World {
    user_namespace: PathBuf,
    root: FileId,
}

impl World {
    /// `None` if the process is gone.
    fn of(dir: &ProcessDir) -> io::Result<Option<Self>> {
        let (Some(root), Some(user_namespace)) = (dir.metadata("root")?, dir.link("ns/user")?) else {
            return Ok(None);
        };
        Ok(Some(Self { user_namespace, root: FileId::of(&root) }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn only_code_of_the_very_file_is_its_mapping() {
        let maps = b"55d0-55d8 r--p 00000000 fe:00 77   /usr/bin/agent\n\
                     55d8-55e0 r-xp 00001000 fe:00 78   /tmp/r-xp 0 fe:00 79\n\
                     7f00-7f10 r-xp 00000000 00:00 0    [vdso]\n";
        assert!(maps_file(maps, 78));
        for other in [77, 79, 0, 8] {
            assert!(!maps_file(maps, other) || other == 0, "{other}");
        }
        assert!(!maps_file(b"55d0-55d8 r-xp 00000000 fe:00", 0), "a line that was cut off");
    }

    #[test]
    fn a_digest_is_taken_again_when_the_file_changes() {
        let own = ProcessDir::open(std::process::id()).unwrap().unwrap();
        let mut executables = Executables::new(Vec::new()).unwrap();
        let digest = executables.digest(&own).unwrap().unwrap();
        let file = fs::read("/proc/self/exe").unwrap();
        assert_eq!(digest, hex::encode(&Sha256::digest(&file)));
        let (state, _) = executables.digests.drain().next().unwrap();
        executables.digests.insert(state, "remembered".into());
        assert_eq!(executables.digest(&own).unwrap().unwrap(), "remembered");
        let other = [
            FileState { size: state.size + 1, ..state },
            FileState { modified: (0, 0), ..state },
            FileState { changed: (0, 0), ..state },
            FileState { file: FileId { dev: (9, 9), ..state.file }, ..state },
            FileState { file: FileId { inode: 1, ..state.file }, ..state },
        ];
        for other in other {
            executables.digests = HashMap::from([(other, "of another".into())]);
            assert_eq!(executables.digest(&own).unwrap().unwrap(), digest);
        }
    }

    #[test]
    #[ignore = "needs root: make test runs it"]
    fn a_way_through_what_others_can_change_leads_nowhere() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("dir");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        symlink("dir", place.path().join("way")).unwrap();
        symlink("../way/file", dir.join("link")).unwrap();
        let real = dir.join("file").canonicalize().unwrap();
        let leads = || roots_way(&place.path().join("way/link"));
        assert_eq!(leads(), Some(real.clone()));
        assert!(roots_alone(&real));
        for mode in [0o777, 0o775] {
            fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
            assert_eq!((leads(), roots_alone(&real)), (None, false), "{mode:o}");
        }
        fs::set_permissions(&dir, Permissions::from_mode(0o1777)).unwrap();
        assert_eq!((leads(), roots_alone(&real)), (Some(real.clone()), true), "sticky");
        std::os::unix::fs::chown(&dir, Some(1000), None).unwrap();
        assert_eq!((leads(), roots_alone(&real)), (None, false), "somebody else's directory");
        std::os::unix::fs::chown(&dir, Some(0), None).unwrap();
        std::os::unix::fs::lchown(place.path().join("way"), Some(1000), None).unwrap();
        assert_eq!(leads(), None, "somebody else's link");
        symlink("loop", place.path().join("loop")).unwrap();
        assert_eq!(roots_way(&place.path().join("loop")), None);
    }
}
