//! What outlives the guard: the last policy that it accepted, and the direction of failure.
//!
//! * `last-good.json`: that policy's files. A guard whose policy has become wrong starts with them.
//! * `closed.nft`: the table of enforce mode. It is there while the last accepted policy enforces, and the service loads
//!   it before it starts the guard, so that a guard that cannot start at all leaves nothing open.
//!
//! Both are root's alone, written beside and renamed. A directory that is not there, or that others may write, is not
//! used: the guard must start without it, and must not take a policy from a stranger.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::redirect::{Direction, Wanted};

use super::bundle::Bundle;

/// The last policy that was accepted.
const LAST_GOOD: &str = "last-good.json";

/// The table that closes the endpoints.
const CLOSED: &str = "closed.nft";

/// The largest file that is read back, in bytes: a policy's files may have 8 MiB each.
const LARGEST: u64 = 64 << 20;

/// The directory in which the guard keeps what outlives it.
#[derive(Debug, Clone)]
pub struct State(Option<PathBuf>);

impl State {
    /// The directory that was named, else the service manager's (`STATE_DIRECTORY`), else none: then nothing is kept.
    #[must_use]
    pub fn at(named: Option<&Path>) -> Self {
        let given = std::env::var_os("STATE_DIRECTORY").filter(|given| !given.is_empty()).map(PathBuf::from);
        Self(named.map(Path::to_owned).or(given))
    }

    /// Keeps a policy that was accepted and the direction that it has. A state that cannot be written is told, and is
    /// no reason not to guard.
    pub fn remember(&self, bundle: &Bundle, wanted: &Wanted) {
        if let Err(error) = self.try_remember(bundle, wanted) {
            tracing::warn!(%error, "what is to outlive the guard could not be written");
        }
    }

    fn try_remember(&self, bundle: &Bundle, wanted: &Wanted) -> io::Result<()> {
        let Some(directory) = self.open()? else { return Ok(()) };
        replace(&directory, LAST_GOOD, &bundle.to_bytes()?)?;
        match wanted.direction {
            // Without the lead for containers: the address that it names could be another machine's by then. What they
            // send is reset where it is forwarded.
            Direction::Closed => {
                let closing = Wanted { guests: None, ..wanted.clone() };
                replace(&directory, CLOSED, closing.script().as_bytes())
            }
            Direction::Open => remove(&directory, CLOSED),
        }
    }

    /// The last policy that was accepted, if one was kept.
    pub fn last_good(&self) -> io::Result<Option<Bundle>> {
        let Some(directory) = self.open()? else { return Ok(None) };
        read(&directory, LAST_GOOD)?.map(|bytes| Bundle::kept(&bytes)).transpose()
    }

    /// The table that closes the endpoints, if the last accepted policy enforced.
    pub fn closing_table(&self) -> io::Result<Option<String>> {
        let Some(directory) = self.open()? else { return Ok(None) };
        read(&directory, CLOSED)?.map(|bytes| String::from_utf8(bytes).map_err(io::Error::other)).transpose()
    }

    /// The directory, if there is one; checked on the open descriptor.
    fn open(&self) -> io::Result<Option<File>> {
        let Some(path) = &self.0 else { return Ok(None) };
        let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
        let directory = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        root_s_alone(&directory.metadata()?)?;
        Ok(Some(directory))
    }
}

/// Fails where somebody other than root could have written.
fn root_s_alone(metadata: &fs::Metadata) -> io::Result<()> {
    const OTHERS_WRITE: u32 = 0o022;
    if metadata.uid() == 0 && metadata.mode() & OTHERS_WRITE == 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the guard's state must be root's alone to write"))
}

/// A file's content, or `None` if there is no such file.
fn read(directory: &File, name: &str) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match openat(directory, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    root_s_alone(&file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Writes a file beside the old one and renames it, so that there is always a whole one.
fn replace(directory: &File, name: &str, content: &[u8]) -> io::Result<()> {
    if read(directory, name).is_ok_and(|old| old.is_some_and(|old| old == content)) {
        return Ok(());
    }
    let new = format!("{name}.new");
    remove(directory, &new)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(directory, &new, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(content)?;
    file.sync_all()?;
    renameat(directory, &new, directory, name)?;
    directory.sync_all()
}

fn remove(directory: &File, name: &str) -> io::Result<()> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::keeper::files::Trust;

    fn bundle() -> Bundle {
        let directory = tempfile::tempdir().unwrap();
        let policy = directory.path().join("policy.toml");
        fs::write(&policy, "mode = \"enforce\"\n").unwrap();
        Bundle::read(&policy, Trust::Anybody).unwrap()
    }

    fn wanted(direction: Direction) -> Wanted {
        Wanted {
            direction,
            doors: Vec::new(),
            guard_uid: 990,
            interfaces: Vec::new(),
            as_root: false,
            guests: None,
        }
    }

    #[test]
    #[ignore = "needs root: make test runs it"]
    fn what_was_kept_is_read_back_and_root_s_alone() {
        let directory = tempfile::tempdir().unwrap();
        let state = State(Some(directory.path().to_owned()));
        state.try_remember(&bundle(), &wanted(Direction::Closed)).unwrap();
        assert_eq!(state.last_good().unwrap().unwrap().sources()[0].text, "mode = \"enforce\"\n");
        assert!(state.closing_table().unwrap().unwrap().contains("table inet imds_guard"));
        for name in [LAST_GOOD, CLOSED] {
            let mode = fs::metadata(directory.path().join(name)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        state.try_remember(&bundle(), &wanted(Direction::Open)).unwrap();
        assert_eq!(state.closing_table().unwrap(), None);
    }

    #[test]
    fn a_directory_that_others_may_write_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let state = State(Some(directory.path().to_owned()));
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(state.last_good().is_err());
        assert!(state.try_remember(&bundle(), &wanted(Direction::Closed)).is_err());
    }

    #[test]
    #[ignore = "needs root: make test runs it"]
    fn a_file_that_others_may_write_or_a_link_is_not_taken_for_the_guard_s() {
        let directory = tempfile::tempdir().unwrap();
        let state = State(Some(directory.path().to_owned()));
        let path = directory.path().join(LAST_GOOD);
        state.try_remember(&bundle(), &wanted(Direction::Closed)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(state.last_good().is_err());
        let elsewhere = directory.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(state.last_good().is_err());
    }

    #[test]
    fn without_a_directory_nothing_is_kept_and_nothing_fails() {
        for state in [State(None), State(Some("/nonexistent/imds-guard".into()))] {
            state.try_remember(&bundle(), &wanted(Direction::Closed)).unwrap();
            assert!(state.last_good().unwrap().is_none());
        }
    }
}
