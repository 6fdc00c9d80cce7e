//! Rotation of an audit log in a file by its size. The keeper does it: the proxy can add to the file that it was given
//! and knows no path.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, renameat, statat};
use rustix::io::Errno;

use crate::policy::{AuditLog, Settings};

/// How often the size is looked at, where the policy sets a largest one.
pub const LOOK: Duration = Duration::from_secs(1);

/// When a log's file is to be put aside, and how many of those are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    path: PathBuf,
    largest: u64,
    keep: u32,
}

impl Rotation {
    /// What the policy asks for; `None` if its log is no file or may grow for ever.
    #[must_use]
    pub fn of(settings: &Settings) -> Option<Self> {
        let AuditLog::File(path) = &settings.audit_log else { return None };
        let largest = settings.audit_log_max?;
        Some(Self { path: path.into(), largest, keep: settings.audit_log_keep })
    }

    /// Puts the file aside if it has become too large; whether it did, so that a new one has to be opened. `NAME` becomes
    /// `NAME.1`, that `NAME.2`, and the oldest goes.
    pub fn turn(&self) -> io::Result<bool> {
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

    fn is_root() -> bool {
        nix::unistd::getuid().is_root()
    }

    #[test]
    fn a_log_that_is_large_enough_is_put_aside_and_the_oldest_goes() {
        if !is_root() {
            return;
        }
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
    fn in_a_directory_that_others_may_write_nothing_is_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let rotation = rotation(directory.path());
        fs::write(&rotation.path, "long enough for it").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(rotation.turn().is_err());
        assert!(rotation.path.exists());
    }
}
