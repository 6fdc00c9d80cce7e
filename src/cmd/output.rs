//! Files that are there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::anyhow;

use super::{Complaint, Exit};

/// Writes a file beside its place and renames it there: whoever reads it meanwhile, and a full disk, leave the old one
/// as it was. What is no file (`/dev/stdout`, a pipe) is written to: root's rename would put a file in a device's place.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let cannot = |why: &dyn std::fmt::Display| {
        anyhow!(Complaint::new(Exit::CannotCreate, format!("cannot write {}: {why}", path.display())))
    };
    let name = name.ok_or_else(|| cannot(&"it names no file"))?;
    if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        let written =
            OpenOptions::new().write(true).open(path).and_then(|mut device| device.write_all(bytes));
        return written.map_err(|error| cannot(&error));
    }
    let beside = path.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&beside)
        .and_then(|mut file: File| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&beside);
        cannot(&error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_stays_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        fs::write(&path, "old").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(replace(&directory.path().join("no/such/place"), b"x").is_err());
        assert!(replace(directory.path(), b"x").is_err());
        // As root, on a device made for this: a rename would take its place.
        let device = directory.path().join("null");
        let null = rustix::fs::makedev(1, 3);
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            &device,
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::from_raw_mode(0o666),
            null,
        );
        if made.is_ok() {
            replace(&device, b"x").unwrap();
            assert!(!fs::metadata(&device).unwrap().is_file());
            fs::remove_file(&device).unwrap();
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
