//! Rotation of an audit log in a file by its size. The keeper does it: the proxy can add to the file that it was given
//! and knows no path.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, renameat, statat};
use rustix::io::Errno;

use crate::policy::{AuditLog, Settings};

use super::news::News;

/// How often the size of a log that is written is looked at, where the policy sets a largest one.
const LOOK: Duration = Duration::from_secs(1);

/// A rotation and when to look whether it is due: once a second while the log is written, and never while it rests.
#[derive(Debug)]
pub struct Rotor {
    rotation: Rotation,
    news: Option<News>,
    due: Option<Instant>,
}

impl Rotor {
    /// What the policy asks for; `None` if its log is no file or may grow for ever.
    #[must_use]
    pub fn of(settings: &Settings) -> Option<Self> {
        Rotation::of(settings).map(Self::over)
    }

    fn over(rotation: Rotation) -> Self {
        let news =
            News::start().inspect_err(|error| tracing::info!(%error, "the audit log's size is polled"));
        Self { rotation, news: news.ok(), due: Some(Instant::now()) }
    }

    /// How long until the next look; `None` if a write has to come first.
    #[must_use]
    pub fn next_look(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// What becomes readable with the first write after a look.
    #[must_use]
    pub fn wake(&self) -> Option<BorrowedFd<'_>> {
        self.news.as_ref().map(News::wake)
    }

    /// The log is another file now.
    pub fn look_again(&mut self) {
        self.due.get_or_insert(Instant::now() + LOOK);
    }

    /// Puts the file aside if it is time to look and it has become too large; whether it did, so that a new one has to be
    /// opened.
    pub fn turn(&mut self) -> io::Result<bool> {
        if self.news.as_ref().is_some_and(News::drain) {
            self.look_again();
        }
        let now = Instant::now();
        if self.due.is_none_or(|due| now < due) {
            return Ok(false);
        }
        // Watched before it is looked at, so that no write falls between. A file that is not there yet is looked for.
        let is_watched =
            self.news.as_ref().is_some_and(|news| news.of_the_next_write(&self.rotation.path).is_ok());
        let turned = self.rotation.turn()?;
        self.due = (turned || !is_watched).then(|| now + LOOK);
        Ok(turned)
    }
}

/// When a log's file is to be put aside, and how many of those are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rotation {
    path: PathBuf,
    largest: u64,
    keep: u32,
}

impl Rotation {
    fn of(settings: &Settings) -> Option<Self> {
        let AuditLog::File(path) = &settings.audit_log else { return None };
        let largest = settings.audit_log_max?;
        Some(Self { path: path.into(), largest, keep: settings.audit_log_keep })
    }

    /// Puts the file aside if it has become too large; whether it did. `NAME` becomes `NAME.1`, that `NAME.2`, and the
    /// oldest goes.
    fn turn(&self) -> io::Result<bool> {
        let Some((directory, name)) = self.directory()? else { return Ok(false) };
        let size = match statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => u64::try_from(stat.st_size).unwrap_or(0),
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if size < self.largest {
            return Ok(false);
        }
        for number in (1..self.keep).rev() {
            match renameat(&directory, numbered(&name, number), &directory, numbered(&name, number + 1)) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        renameat(&directory, &name, &directory, numbered(&name, 1))?;
        Ok(true)
    }

    /// The log's directory, which must be root's alone to write: in another's the names could be anything's.
    fn directory(&self) -> io::Result<Option<(File, OsString)>> {
        const OTHERS_WRITE: u32 = 0o022;
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Ok(None) };
        let directory = open(parent)?;
        let metadata = directory.metadata()?;
        if metadata.uid() != 0 || metadata.mode() & OTHERS_WRITE != 0 {
            let message = "the audit log is not rotated: its directory must be root's alone to write";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        Ok(Some((directory, name.to_owned())))
    }
}

fn open(directory: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECTORY).open(directory)
}

fn numbered(name: &OsString, number: u32) -> OsString {
    let mut numbered = name.clone();
    numbered.push(format!(".{number}"));
    numbered
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn rotation(directory: &Path) -> Rotation {
        Rotation { path: directory.join("audit.jsonl"), largest: 10, keep: 2 }
    }

    #[test]
    #[ignore = "needs root: make test runs it"]
    fn a_log_that_is_large_enough_is_put_aside_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let rotation = rotation(directory.path());
        assert!(!rotation.turn().unwrap(), "there is no log yet");
        for content in ["first, long enough", "second, long enough", "third, long enough", "short"] {
            fs::write(&rotation.path, content).unwrap();
            assert_eq!(rotation.turn().unwrap(), content != "short");
        }
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read("audit.jsonl"), "short");
        assert_eq!(read("audit.jsonl.1"), "third, long enough");
        assert_eq!(read("audit.jsonl.2"), "second, long enough");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    #[ignore = "needs root: make test runs it"]
    fn a_log_that_rests_is_not_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let mut rotor = Rotor::over(rotation(directory.path()));
        assert!(!rotor.turn().unwrap());
        assert!(rotor.next_look().is_some(), "there is no log yet");
        fs::write(&rotor.rotation.path, "short").unwrap();
        rotor.due = Some(Instant::now());
        assert!(!rotor.turn().unwrap());
        assert_eq!(rotor.next_look(), None, "nothing is written");
        fs::write(&rotor.rotation.path, "long enough").unwrap();
        assert!(!rotor.turn().unwrap());
        assert!(rotor.next_look().is_some(), "it is written");
        rotor.due = Some(Instant::now());
        assert!(rotor.turn().unwrap());
        assert!(rotor.next_look().is_some(), "the next file is another one");
    }

    #[test]
    fn in_a_directory_that_others_may_write_nothing_is_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let rotation = rotation(directory.path());
        fs::write(&rotation.path, "long enough for it").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(rotation.turn().is_err());
        assert!(rotation.path.exists());
    }
}
