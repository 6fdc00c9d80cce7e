//! Reads what lies in other processes' memory, without waiting for it.
//!
//! A command line and a list of mappings are in the memory of the process that they belong to, and reading them can take for
//! ever: they wait for the lock of its mappings, which the process itself can hold (one thread reads, by `/proc/self/mem`, a
//! page whose file system never answers, another waits to map something). The keeper must not be stopped, so a helper
//! thread looks for it. The helper has no capability; the files that it reads were opened before.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

/// How many helpers may be stopped at one time, in all and by one uid. Beyond that nothing of the kind is read until one
/// of them goes on, for that uid or for anybody.
const STOPPED: usize = 16;
const STOPPED_BY_UID: usize = 2;

/// A helper reads one file at a time.
const STACK_BYTES: usize = 64 << 10;

/// A reader of other processes' memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    helper: Option<Helper>,
    stopped: Vec<Stopped>,
}

#[derive(Debug)]
struct Helper {
    asks: SyncSender<Ask>,
    answers: Receiver<io::Result<Vec<u8>>>,
    lives: Weak<()>,
}

/// A helper that somebody's memory stopped.
#[derive(Debug)]
struct Stopped {
    uid: u32,
    lives: Weak<()>,
}

struct Ask {
    file: File,
    limit: u64,
}

impl Memory {
    /// The first bytes of a file, at most `limit`, on account of the user whose process it belongs to.
    pub(super) fn read(&mut self, file: File, limit: u64, uid: u32, until: Instant) -> io::Result<Vec<u8>> {
        self.stopped.retain(|stopped| stopped.lives.strong_count() > 0);
        let by_uid = self.stopped.iter().filter(|stopped| stopped.uid == uid).count();
        if by_uid >= STOPPED_BY_UID || self.stopped.len() >= STOPPED {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let helper = match self.helper.take() {
            Some(helper) => helper,
            None => Helper::start()?,
        };
        helper.asks.send(Ask { file, limit }).map_err(io::Error::other)?;
        let patience = until.saturating_duration_since(Instant::now());
        if let Ok(answer) = helper.answers.recv_timeout(patience) {
            self.helper = Some(helper);
            return answer;
        }
        self.stopped.push(Stopped { uid, lives: helper.lives });
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl Helper {
    fn start() -> io::Result<Self> {
        let (asks, asked) = sync_channel::<Ask>(1);
        let (answer, answers) = sync_channel(1);
        let life = Arc::new(());
        let lives = Arc::downgrade(&life);
        thread::Builder::new().name("memory".into()).stack_size(STACK_BYTES).spawn(move || {
            give_up_capabilities();
            // Ends with the first answer that nobody waits for.
            while let Ok(Ask { file, limit }) = asked.recv() {
                let mut bytes = Vec::new();
                let read = file.take(limit).read_to_end(&mut bytes).map(|_| bytes);
                if answer.send(read).is_err() {
                    break;
                }
            }
            drop(life);
        })?;
        Ok(Self { asks, answers, lives })
    }
}

/// Of this thread alone. In vain, the thread is as able as the keeper, which it serves.
fn give_up_capabilities() {
    use caps::CapSet::{Effective, Inheritable, Permitted};
    for set in [Effective, Permitted, Inheritable] {
        let _ = caps::clear(None, set);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _, pipe};
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use super::*;

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn what_never_answers_stops_nobody_else() {
        let mut memory = Memory::default();
        let mut writers = Vec::new();
        for _ in 0..STOPPED_BY_UID {
            let (reader, writer) = pipe().unwrap();
            writers.push(writer);
            let now = Instant::now() + Duration::from_millis(5);
            let stopped = memory.read(OwnedFd::from(reader).into(), 9, 1000, now);
            assert_eq!(stopped.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        let same = memory.read(file("text"), 9, 1000, soon());
        assert_eq!(same.unwrap_err().kind(), io::ErrorKind::ResourceBusy, "it has used up its share");
        assert_eq!(memory.read(file("text"), 2, 1001, soon()).unwrap(), b"te", "others are read");
        drop(writers);
        while memory.stopped.iter().any(|stopped| stopped.lives.strong_count() > 0) {
            thread::yield_now();
        }
        assert_eq!(
            memory.read(file("text"), 9, 1000, soon()).unwrap(),
            b"text",
            "and it, too, once that ends"
        );
    }
}
