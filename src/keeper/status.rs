//! The doors at which the guard shows its status. The keeper opens them, because their places are root's; the proxy serves
//! them, because whoever comes there writes bytes.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, getegid, setegid};

use crate::policy::Settings;

/// Who may open the unix socket: its owner root, and its group.
const MODE: u32 = 0o660;

/// The open doors.
#[derive(Debug, Default)]
pub struct StatusDoors {
    /// The unix socket.
    pub unix: Option<UnixListener>,
    /// The loopback port.
    pub loopback: Option<TcpListener>,
    path: Option<PathBuf>,
}

impl StatusDoors {
    /// Opens what the policy names. A door that cannot be opened is told and left out: any local user can take a port,
    /// and that must not keep the guard from guarding.
    #[must_use]
    pub fn open(settings: &Settings, guard_gid: u32) -> Self {
        let gid = settings.status_gid.unwrap_or(guard_gid);
        let unix = settings.status_socket.as_ref().and_then(|path| {
            let opened = bind(Path::new(path), gid);
            opened
                .inspect_err(|error| tracing::error!(%error, path, "the status socket could not be opened"))
                .ok()
        });
        let loopback = settings.metrics.and_then(|addr| {
            let opened = listen(addr);
            opened
                .inspect_err(|error| tracing::error!(%error, %addr, "the metrics port could not be opened"))
                .ok()
        });
        let path = unix.is_some().then(|| settings.status_socket.as_ref().map(PathBuf::from)).flatten();
        Self { unix, loopback, path }
    }

    /// Takes the socket's name away, so that nobody waits at a door that nobody serves.
    pub fn close(&self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    if !addr.ip().is_loopback() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    TcpListener::bind(addr)
}

fn bind(path: &Path, gid: u32) -> io::Result<UnixListener> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    if let Err(error) = fs::create_dir(directory)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    if !is_roots_alone(&fs::symlink_metadata(directory)?) {
        let why = "its directory must be root's and writable by nobody else: another could put a socket of theirs there";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    // What a guard that was killed has left. Anything but a socket is somebody's file.
    if fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    // The file gets its group and its mode when it is made: to change the group takes a capability more, and between
    // the making and a change of the mode anybody could come in.
    let before = umask(Mode::from_bits_truncate(0o777 & !MODE));
    let opened = as_group(gid, || UnixListener::bind(path));
    umask(before);
    let listener = opened?;
    let made = fs::symlink_metadata(path)?;
    if made.gid() != gid || made.permissions().mode() & 0o777 != MODE {
        let _ = fs::remove_file(path);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it did not get its group and mode"));
    }
    Ok(listener)
}

fn is_roots_alone(directory: &fs::Metadata) -> bool {
    const OTHERS_WRITE: u32 = 0o022;
    directory.is_dir() && directory.uid() == 0 && directory.mode() & OTHERS_WRITE == 0
}

/// Does something as a member of this group.
fn as_group<T>(gid: u32, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = getegid();
    setegid(Gid::from_raw(gid))?;
    let done = act();
    setegid(own)?;
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_the_network_could_reach_is_not_opened() {
        assert!(listen("0.0.0.0:0".parse().unwrap()).is_err());
        assert!(listen("127.0.0.1:0".parse().unwrap()).is_ok());
    }

    #[test]
    fn a_directory_that_others_may_write_is_no_place_for_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let refused = bind(&directory.path().join("status.sock"), getegid().as_raw()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{refused}");
    }

    #[test]
    fn somebodys_file_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes");
        fs::write(&path, "mine").unwrap();
        assert!(bind(&path, getegid().as_raw()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
