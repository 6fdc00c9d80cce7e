//! Watches the command lines of programs that start, and tells of those that name a metadata service.
//!
//! A hint, never a control: a program need not say on its command line what it asks for, and one that ends at once is gone
//! before it is read.
//!
//! Command lines are callers' bytes, and reading them can take for ever (see [`crate::caller`]). So a thread without any
//! capability reads them: it cuts them at a fixed length, looks for a few words, and hands on only what it found. Should
//! a command line stop it, another takes its place.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read as _, pipe};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use caps::CapSet;
use netlink_sys::protocols::NETLINK_CONNECTOR;
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, setns};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::cloud::{Mention, mention};

/// How much of a command line is looked at.
const LOOKED_AT: usize = 4096;

/// How much of it is told.
const TOLD: usize = 512;

/// How many findings may wait for the keeper.
const WAITING: usize = 256;

/// How long one command line may take, and how many may stop their readers for good before the watch gives up.
const STOPPED_AFTER: Duration = Duration::from_secs(1);
const READERS: usize = 8;

/// How many bytes of notifications may wait: a thousand programs started take about 150 KiB.
const QUEUE_BYTES: u32 = 1 << 20;

/// A program that named a metadata service when it started.
#[derive(Debug)]
pub struct Finding {
    /// Its process.
    pub pid: u32,
    /// What it named.
    pub mention: Mention,
    /// The beginning of its command line.
    pub command_line: String,
}

/// The watch, if it is wanted.
#[derive(Debug)]
pub struct CommandWatch {
    shared: Arc<Shared>,
    findings: Receiver<Finding>,
    find: SyncSender<Finding>,
    wake: PipeReader,
    readers: Vec<Arc<Pulse>>,
    started: Instant,
}

struct Shared {
    socket: Socket,
    endpoints: Vec<IpAddr>,
    /// Wakes the keeper.
    waker: PipeWriter,
    /// Findings and notifications that there was no room for.
    missed: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("endpoints", &self.endpoints.len()).finish_non_exhaustive()
    }
}

/// What a reader is at.
#[derive(Debug, Default)]
struct Pulse {
    /// Milliseconds since the watch's start at which it began to read a command line, and one; 0 while it reads none.
    reading_since: AtomicU64,
    /// Another has taken its place.
    replaced: AtomicBool,
}

impl CommandWatch {
    /// Begins to watch for these addresses. Needs `CAP_NET_ADMIN`.
    ///
    /// The kernel tells of programs only in its first network namespace. Where the guard runs in another one, it takes
    /// `CAP_SYS_ADMIN` to look from there.
    pub fn start(endpoints: Vec<IpAddr>) -> io::Result<Self> {
        let socket = match subscribe() {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                thread::spawn(subscribe_from_the_first_namespace).join().map_err(|_| error)??
            }
            other => other?,
        };
        let (find, findings) = sync_channel(WAITING);
        let (wake, waker) = pipe()?;
        rustix::io::ioctl_fionbio(&wake, true)?;
        rustix::io::ioctl_fionbio(&waker, true)?;
        let shared = Shared { socket, endpoints, waker, missed: AtomicU64::new(0) };
        let readers = Vec::new();
        let mut watch =
            Self { shared: Arc::new(shared), findings, find, wake, readers, started: Instant::now() };
        watch.start_reader()?;
        Ok(watch)
    }

    fn start_reader(&mut self) -> io::Result<()> {
        let pulse = Arc::new(Pulse::default());
        self.readers.push(Arc::clone(&pulse));
        let (shared, find, started) = (Arc::clone(&self.shared), self.find.clone(), self.started);
        thread::Builder::new().name("commands".into()).spawn(move || {
            for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
                // In vain, the thread is as able as the keeper, whose work it does.
                let _ = caps::clear(None, set);
            }
            read_until_replaced(&shared, &find, &pulse, started);
        })?;
        Ok(())
    }

    /// Readable when something was found.
    #[must_use]
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// What was found, at most this much, and how much was missed since the last time.
    pub fn take(&mut self, most: usize) -> (Vec<Finding>, u64) {
        let mut bytes = [0; WAITING];
        let _ = rustix::io::read(&self.wake, &mut bytes); // they only wake
        let findings = self.findings.try_iter().take(most).collect();
        (findings, self.shared.missed.swap(0, Ordering::Relaxed))
    }

    /// Gives a reader that is stopped a successor. Fails when too many are.
    pub fn look_after(&mut self) -> io::Result<()> {
        let now = millis(self.started);
        let Some(pulse) = self.readers.last() else { return Ok(()) };
        let since = pulse.reading_since.load(Ordering::Relaxed);
        if since == 0 || Duration::from_millis(now.saturating_sub(since)) < STOPPED_AFTER {
            return Ok(());
        }
        pulse.replaced.store(true, Ordering::Relaxed);
        // A reader that has ended since holds its pulse no longer.
        self.readers.retain(|pulse| Arc::strong_count(pulse) > 1);
        if self.readers.len() >= READERS {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.start_reader()
    }
}

impl Drop for CommandWatch {
    fn drop(&mut self) {
        for pulse in &self.readers {
            pulse.replaced.store(true, Ordering::Relaxed);
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

fn subscribe_from_the_first_namespace() -> io::Result<Socket> {
    setns(File::open("/proc/1/ns/net")?, CloneFlags::CLONE_NEWNET)?;
    subscribe()
}

/// A socket on which the kernel tells of programs that start (linux/connector.h, linux/cn_proc.h).
fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_CONNECTOR)?;
    socket.bind(&SocketAddr::new(0, CN_IDX_PROC))?;
    // In vain, the queue is as long as it is.
    let _ = socket.set_rx_buf_sz(QUEUE_BYTES);
    // Kernels before 6.6 take the first and know no filter; later ones then filter. Forks are wanted, too: they wake the
    // reader before the program that they are for has begun, and perhaps ended.
    socket.send(&order(&LISTEN.to_ne_bytes()), 0)?;
    let filter = [LISTEN.to_ne_bytes(), (FORK | EXEC).to_ne_bytes()].concat();
    socket.send(&order(&filter), 0)?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

const CN_IDX_PROC: u32 = 1;
const LISTEN: u32 = 1;
const FORK: u32 = 1;
const EXEC: u32 = 2;

/// The numbers of the fields of a message: `struct nlmsghdr`, `struct cn_msg`, then `struct proc_event`.
const HEADERS: usize = 36;
const WHAT: usize = HEADERS;
const TGID: usize = HEADERS + 20;

fn order(data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS + data.len()).unwrap_or_default();
    let data_length = u16::try_from(data.len()).unwrap_or_default();
    let done: u16 = 3; // NLMSG_DONE
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(done.to_ne_bytes());
    message.extend([0; 10]);
    message.extend(CN_IDX_PROC.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes()); // CN_VAL_PROC
    message.extend([0; 8]);
    message.extend(data_length.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(data);
    message
}

/// The process that has become another program, if the message tells of one.
fn started(message: &[u8]) -> Option<u32> {
    let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    if word(WHAT)? == EXEC { word(TGID) } else { None }
}

fn read_until_replaced(shared: &Shared, find: &SyncSender<Finding>, pulse: &Pulse, start: Instant) {
    let mut message = Vec::with_capacity(4096);
    let mut line = Vec::with_capacity(LOOKED_AT);
    while !pulse.replaced.load(Ordering::Relaxed) {
        message.clear();
        match shared.socket.recv(&mut message, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut news = [PollFd::new(&shared.socket, PollFlags::IN)];
                let _ = poll(&mut news, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
                continue;
            }
            Err(_) => {
                shared.missed.fetch_add(1, Ordering::Relaxed); // ENOBUFS: programs start faster than they are read
                continue;
            }
        }
        let Some(pid) = started(&message) else { continue };
        pulse.reading_since.store(millis(start), Ordering::Relaxed);
        line.clear();
        let read = File::open(format!("/proc/{pid}/cmdline"))
            .and_then(|file| file.take(LOOKED_AT as u64).read_to_end(&mut line));
        pulse.reading_since.store(0, Ordering::Relaxed);
        if read.is_err() {
            continue;
        }
        let Some(mention) = mention(&line, &shared.endpoints) else { continue };
        let told = String::from_utf8_lossy(line.get(..TOLD).unwrap_or(&line)).replace('\0', " ");
        let finding = Finding { pid, mention, command_line: told.trim_end().to_owned() };
        if find.try_send(finding).is_err() {
            shared.missed.fetch_add(1, Ordering::Relaxed);
        }
        let _ = rustix::io::write(&shared.waker, &[0]); // a full pipe wakes as well
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_exec_is_a_program_that_starts() {
        let mut message = vec![0; HEADERS + 40];
        message[WHAT..WHAT + 4].copy_from_slice(&EXEC.to_ne_bytes());
        message[TGID..TGID + 4].copy_from_slice(&77_u32.to_ne_bytes());
        assert_eq!(started(&message), Some(77));
        message[WHAT..WHAT + 4].copy_from_slice(&FORK.to_ne_bytes());
        assert_eq!(started(&message), None);
        assert_eq!(started(&message[..20]), None);
    }

    #[test]
    fn an_order_is_as_long_as_it_says() {
        let message = order(&[1, 2, 3, 4]);
        assert_eq!(message.len(), 40);
        assert_eq!(&message[..6], [40, 0, 0, 0, 3, 0]);
        assert_eq!(&message[32..], [4, 0, 0, 0, 1, 2, 3, 4]);
    }
}
