//! Waits for news of files by inotify, so that a keeper whose files rest is never woken for them.
//!
//! What inotify says is not read: it only tells that it is time to look. Where it is not to be had (all instances of root's
//! are in use), the files are looked at again and again instead.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

/// How much is read of the notifications at a time, in bytes.
const BUFFER_BYTES: usize = 4096;

/// A descriptor that becomes readable when something happens to what is watched.
#[derive(Debug)]
pub(super) struct News {
    descriptor: OwnedFd,
}

impl News {
    /// Nothing is watched yet.
    pub(super) fn start() -> io::Result<Self> {
        Ok(Self { descriptor: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)? })
    }

    /// Tells of the next write to this file, and only of that one: a log that is written all day is told of once for
    /// each look.
    pub(super) fn of_the_next_write(&self, file: &Path) -> io::Result<()> {
        self.watch(file, WatchFlags::MODIFY | WatchFlags::ONESHOT)
    }

    /// Tells of whatever comes into this directory, goes, or is changed in it, and of the end of the directory itself.
    pub(super) fn of_directory(&self, directory: &Path) -> io::Result<()> {
        let inside = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::ATTRIB;
        self.watch(directory, inside | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR)
    }

    fn watch(&self, path: &Path, what: WatchFlags) -> io::Result<()> {
        inotify::add_watch(&self.descriptor, path, what)?;
        Ok(())
    }

    /// Takes all waiting notifications; whether there was any.
    pub(super) fn drain(&self) -> bool {
        let mut any = false;
        let mut buffer = [0; BUFFER_BYTES];
        loop {
            match rustix::io::read(&self.descriptor, &mut buffer) {
                Ok(0) => return any,
                Ok(_) | Err(Errno::INTR) => any = true,
                Err(_) => return any,
            }
        }
    }

    /// What becomes readable.
    #[must_use]
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_of_many_writes_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "").unwrap();
        let news = News::start().unwrap();
        assert!(!news.drain());
        for _ in 0..2 {
            news.of_the_next_write(&path).unwrap();
            fs::write(&path, "one").unwrap();
            assert!(news.drain());
            fs::write(&path, "two").unwrap();
            assert!(!news.drain());
        }
    }

    #[test]
    fn what_happens_in_a_directory_is_told_and_the_directorys_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("client.key");
        let news = News::start().unwrap();
        news.of_directory(directory.path()).unwrap();
        for what in ["comes", "is written", "is replaced", "goes"] {
            match what {
                "comes" | "is written" => fs::write(&path, what).unwrap(),
                "is replaced" => {
                    fs::write(path.with_extension("new"), what).unwrap();
                    news.drain();
                    fs::rename(path.with_extension("new"), &path).unwrap();
                }
                _ => fs::remove_file(&path).unwrap(),
            }
            assert!(news.drain(), "it {what}");
            assert!(!news.drain());
        }
        directory.close().unwrap();
        assert!(news.drain());
    }
}
