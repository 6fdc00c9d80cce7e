//! Policy files and audit logs, opened with care.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::audit::{Destination, JOURNAL};
use crate::policy::{AuditLog, Source};

/// The largest policy file, in bytes.
const POLICY_BYTES: u64 = 8 << 20;

/// How long the journal may take for one event.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(1);

/// Why a file could not be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// The file could not be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Somebody other than root could have written it.
    #[error("{} {what}: it must be owned by root and writable by nobody else", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Somebody other than root can read it.
    #[error("{} is readable by others: it holds secrets, so only root may read it (mode 0600)", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// The file is too large.
    #[error("{} is larger than {} KiB", path.display(), limit >> 10)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// How large it may be, in bytes.
        limit: u64,
    },
    /// The audit log could not be opened.
    #[error("cannot open the audit log {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

impl FileError {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Read { cause, .. } if cause.kind() == io::ErrorKind::NotFound)
    }
}

/// Whether files must be owned by root: they must for a guard that runs, and need not for a check of a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Owned by root and writable by nobody else, checked on the open descriptor.
    RootOnly,
    /// Anybody's.
    Anybody,
}

/// The policy at `main`, followed by the drop-ins `policy.d/*.toml` beside it in the order of their names.
pub fn policy(main: &Path, trust: Trust) -> Result<Vec<Source>, FileError> {
    let mut sources = vec![read_policy(main, trust)?];
    for drop_in in drop_ins(main)? {
        sources.push(read_policy(&drop_in, trust)?);
    }
    Ok(sources)
}

fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, FileError> {
    let directory = main.with_file_name("policy.d");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(FileError::Read { path: directory, cause }),
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    paths.sort();
    Ok(paths)
}

fn read_policy(path: &Path, trust: Trust) -> Result<Source, FileError> {
    Ok(Source { name: path.display().to_string(), text: read_text(path, trust, POLICY_BYTES)? })
}

/// The text of a file of root's that nobody else can write.
pub fn trusted_text(path: &Path, limit: u64) -> Result<String, FileError> {
    read_text(path, Trust::RootOnly, limit)
}

/// The same, of a file that nobody else can read either.
pub fn secret_text(path: &Path, limit: u64) -> Result<String, FileError> {
    read_checked(path, Trust::RootOnly, limit, |metadata| {
        let others = if metadata.gid() == 0 { 0o007 } else { 0o077 };
        if metadata.mode() & others == 0 { Ok(()) } else { Err(FileError::Exposed { path: path.to_owned() }) }
    })
}

fn read_text(path: &Path, trust: Trust, limit: u64) -> Result<String, FileError> {
    read_checked(path, trust, limit, |_| Ok(()))
}

fn read_checked(
    path: &Path,
    trust: Trust,
    limit: u64,
    check: impl FnOnce(&fs::Metadata) -> Result<(), FileError>,
) -> Result<String, FileError> {
    let unreadable = |cause| FileError::Read { path: path.to_owned(), cause };
    let mut options = OpenOptions::new();
    options.read(true);
    if trust == Trust::RootOnly {
        // A guard that waits for somebody to write into a named pipe guards nothing.
        options.custom_flags(nonblocking());
    }
    let file = options.open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if trust == Trust::RootOnly {
        // On the open descriptor: between a check of the path and its opening the file could be exchanged.
        trusted(&metadata).map_err(|what| FileError::Untrusted { path: path.to_owned(), what })?;
    }
    check(&metadata)?;
    if metadata.len() > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    let mut text = String::new();
    let read = file.take(limit + 1).read_to_string(&mut text).map_err(unreadable)?;
    // A device says that it has no length.
    if u64::try_from(read).is_ok_and(|read| read > limit) {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(text)
}

fn nonblocking() -> i32 {
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default()
}

fn trusted(metadata: &fs::Metadata) -> Result<(), &'static str> {
    const GROUP_WRITE: u32 = 0o020;
    const OTHERS_WRITE: u32 = 0o002;
    if !metadata.is_file() {
        return Err("is not a regular file");
    }
    if metadata.uid() != 0 {
        return Err("is not owned by root");
    }
    if metadata.mode() & OTHERS_WRITE != 0 || (metadata.gid() != 0 && metadata.mode() & GROUP_WRITE != 0) {
        return Err("is writable by others");
    }
    Ok(())
}

/// Opens the audit log for appending, so that whoever holds the descriptor can add to history and not rewrite it.
pub fn audit_log(log: &AuditLog) -> Result<Destination, FileError> {
    let (path, opened) = match log {
        AuditLog::Stdout => ("stdout", standard_output()),
        AuditLog::Journald => (JOURNAL, journal()),
        AuditLog::File(path) => (path.as_str(), append_to(path)),
    };
    opened.map_err(|cause| FileError::Log { path: path.into(), cause })
}

/// Standard output, for what has to be told while no policy says where to.
pub fn standard_output() -> io::Result<Destination> {
    let stdout = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    Ok(Destination::Stream(stdout.into()))
}

fn journal() -> io::Result<Destination> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(JOURNAL)?;
    // A journal that hangs must not hang the writer: what it does not take is tried again.
    socket.set_write_timeout(Some(JOURNAL_PATIENCE))?;
    Ok(Destination::Journal(socket))
}

/// A link in place of the file is refused: the keeper would append to whatever file it names.
fn append_to(path: &str) -> io::Result<Destination> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).custom_flags(nix::libc::O_NOFOLLOW);
    options.open(path).map(Destination::Stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn draft(text: &str, mode: u32) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        directory
    }

    #[test]
    fn a_policy_that_others_may_write_is_refused() {
        let directory = draft("", 0o666);
        let error = policy(&directory.path().join("policy.toml"), Trust::RootOnly).unwrap_err();
        assert!(matches!(error, FileError::Untrusted { .. }), "{error}");
    }

    #[test]
    fn drop_ins_follow_in_the_order_of_their_names() {
        let directory = draft("mode = \"audit\"", 0o644);
        fs::create_dir(directory.path().join("policy.d")).unwrap();
        for name in ["20-team.toml", "10-image.toml", "README"] {
            fs::write(directory.path().join("policy.d").join(name), "").unwrap();
        }
        let sources = policy(&directory.path().join("policy.toml"), Trust::Anybody).unwrap();
        let names: Vec<&str> = sources.iter().map(|source| source.name.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["policy.toml", "10-image.toml", "20-team.toml"]);
    }

    #[test]
    fn a_missing_policy_is_told_with_its_path() {
        let error = policy(Path::new("/nonexistent/policy.toml"), Trust::Anybody).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nonexistent/policy.toml");
    }
}
