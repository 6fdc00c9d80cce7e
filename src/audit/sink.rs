//! A bounded queue of events and the thread that writes them in batches.
//!
//! A request reserves its place ([`Sink::reserve`]) before anything is forwarded. Without a place the caller of
//! `reserve` decides what that means (in enforce mode a credential is then refused); either way the loss is
//! counted and told in the log as soon as there is room again.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::event::{Action, Event, Severity};

/// How many events may wait to be written, those of requests still under way included.
pub const QUEUE_EVENTS: usize = 16_384;

/// The writer lets events gather for this long, so that a busy guard writes batches.
const GATHER: Duration = Duration::from_millis(5);

/// Where events go. The keeper opens it; the proxy can only append.
#[derive(Debug)]
pub enum Destination {
    /// A file opened for appending, or standard output.
    Stream(File),
    /// The journal's native socket, connected.
    Journal(UnixDatagram),
}

/// The queue's near end. Cheap to clone; one per worker.
#[derive(Debug, Clone)]
pub struct Sink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    wake: Condvar,
    taken: AtomicUsize,
    dropped: AtomicU64,
    told: AtomicU64,
}

#[derive(Debug, Default)]
struct Pending {
    lines: Vec<u8>,
    events: usize,
    replacement: Option<Destination>,
    /// Whether an event found no room since the writer was here.
    owes: bool,
    closed: bool,
}

/// A reserved place in the queue. Dropping it unused gives the place back.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    used: bool,
}

impl Sink {
    /// Starts the writer thread.
    pub fn start(destination: Destination) -> io::Result<(Self, thread::JoinHandle<()>)> {
        let sink = Self {
            shared: Arc::new(Shared {
                pending: Mutex::default(),
                wake: Condvar::new(),
                taken: AtomicUsize::new(0),
                dropped: AtomicU64::new(0),
                told: AtomicU64::new(0),
            }),
        };
        let shared = Arc::clone(&sink.shared);
        let writer = thread::Builder::new()
            .name("audit".into())
            .stack_size(128 << 10)
            .spawn(move || write_until_closed(&shared, destination))?;
        Ok((sink, writer))
    }

    /// A place for one event, or `None` (and one more drop counted) if the queue is full.
    #[must_use]
    pub fn reserve(&self) -> Option<Slot> {
        let taken = &self.shared.taken;
        let place = taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < QUEUE_EVENTS).then_some(count + 1)
        });
        if place.is_err() {
            self.shared.lose_one();
            return None;
        }
        Some(Slot { shared: Arc::clone(&self.shared), used: false })
    }

    /// Queues an event that no request waits for; counted as dropped if there is no room.
    pub fn tell(&self, event: &Event<'_>) {
        if let Some(slot) = self.reserve() {
            slot.send(event);
        }
    }

    /// How many events were lost since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// From the next batch on, events go to `destination` (a rotated file).
    pub fn redirect(&self, destination: Destination) {
        let mut pending = self.shared.lock();
        pending.replacement = Some(destination);
        self.shared.wake.notify_one();
    }

    /// Writes what is queued and ends the writer thread.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
    }
}

impl Slot {
    /// Queues the event. Its place stays taken until the writer has written it.
    pub fn send(mut self, event: &Event<'_>) {
        self.used = true;
        let mut pending = self.shared.lock();
        event.write(&mut pending.lines);
        pending.events += 1;
        let writer_sleeps = pending.events == 1;
        drop(pending);
        if writer_sleeps {
            self.shared.wake.notify_one();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.used {
            self.shared.taken.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Shared {
    /// A poisoned queue is still a queue: what was being appended is at worst half a line.
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an event that found no room, and has the writer tell of it though no other event may come.
    fn lose_one(&self) {
        let mut pending = self.lock();
        self.dropped.fetch_add(1, Ordering::Relaxed);
        pending.owes = true;
        drop(pending);
        self.wake.notify_one();
    }

    /// Waits for events, lets them gather, and takes them all.
    fn take(&self) -> Pending {
        let idle = |pending: &mut Pending| {
            pending.events == 0 && pending.replacement.is_none() && !pending.owes && !pending.closed
        };
        let is_last = self.wake.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner).closed;
        if !is_last {
            thread::sleep(GATHER);
        }
        let mut pending = self.lock();
        let closed = pending.closed;
        std::mem::replace(&mut *pending, Pending { closed, ..Pending::default() })
    }
}

fn write_until_closed(shared: &Shared, mut destination: Destination) {
    loop {
        let mut batch = shared.take();
        if let Some(replacement) = batch.replacement.take() {
            destination = replacement;
        }
        let lost = shared.dropped.load(Ordering::Relaxed) - shared.told.load(Ordering::Relaxed);
        if lost > 0 {
            lost_events(lost).write(&mut batch.lines);
        }
        if let Err(error) = destination.append(&batch.lines) {
            tracing::error!(%error, events = batch.events, "audit events could not be written");
            shared.dropped.fetch_add(batch.events as u64, Ordering::Relaxed);
        } else {
            shared.told.fetch_add(lost, Ordering::Relaxed);
        }
        shared.taken.fetch_sub(batch.events, Ordering::AcqRel);
        if batch.closed {
            return;
        }
    }
}

fn lost_events(count: u64) -> Event<'static> {
    let mut event = Event::now(format!("lost-{count}"), Action::Guard);
    event.outcome = "failure";
    event.severity = Severity::Critical as u8;
    event.reason = Some("events-lost".into());
    event.message = Some(
        format!("{count} audit events were lost: the queue was full or the log could not be written").into(),
    );
    event.count = Some(count);
    event
}

impl Destination {
    /// Appends one event of the guard's own, outside the queue: for the keeper, which has none.
    pub fn append_guard_event(&mut self, reason: &'static str, message: &str) -> io::Result<()> {
        let mut event = Event::now(format!("keeper-{}", std::process::id()), Action::Guard);
        event.outcome = "failure";
        event.severity = Severity::Critical as u8;
        event.reason = Some(reason.into());
        event.message = Some(message.to_owned().into());
        self.append_event(&event)
    }

    /// Appends one event outside the queue.
    pub fn append_event(&mut self, event: &Event<'_>) -> io::Result<()> {
        let mut line = Vec::new();
        event.write(&mut line);
        self.append(&line)
    }

    /// Appends that this many connections out of other network namespaces passed uncaught.
    pub fn append_left_alone(&mut self, count: u64) -> io::Result<()> {
        let mut event = Event::now(format!("keeper-{}", std::process::id()), Action::Aggregate);
        event.outcome = "success";
        event.reason = Some("containers-not-judged".into());
        event.message = Some("connections of containers that were counted and left alone".into());
        event.mode = Some("audit");
        event.count = Some(count);
        let mut line = Vec::new();
        event.write(&mut line);
        self.append(&line)
    }

    /// Appends whole lines.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(file) => file.write_all(lines),
            Self::Journal(socket) => lines
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
                .try_for_each(|line| socket.send(&journal_entry(line)).map(drop)),
        }
    }
}

/// One entry of the journal's native protocol; a line never holds a newline, so the simple form will do.
fn journal_entry(line: &[u8]) -> Vec<u8> {
    let mut entry = b"SYSLOG_IDENTIFIER=imds-guard\nPRIORITY=6\nMESSAGE=".to_vec();
    entry.extend_from_slice(line);
    entry.push(b'\n');
    entry
}

#[cfg(test)]
mod tests {

    use super::*;

    fn sink() -> (tempfile::NamedTempFile, Sink, thread::JoinHandle<()>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (sink, writer) = Sink::start(Destination::Stream(file.reopen().unwrap())).unwrap();
        (file, sink, writer)
    }

    fn lines(mut file: impl io::Read) -> Vec<serde_json::Value> {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn every_queued_event_is_written_before_the_writer_ends() {
        let (file, sink, writer) = sink();
        for number in 0..1000 {
            sink.reserve().unwrap().send(&Event::now(number.to_string(), Action::Request));
        }
        sink.close();
        writer.join().unwrap();
        assert_eq!(lines(file).len(), 1000);
    }

    #[test]
    fn a_full_queue_refuses_a_place_and_tells_how_many_events_it_cost() {
        let (file, sink, writer) = sink();
        let places: Vec<Slot> = std::iter::from_fn(|| sink.reserve()).take(QUEUE_EVENTS).collect();
        assert_eq!(places.len(), QUEUE_EVENTS);
        assert!(sink.reserve().is_none());
        assert_eq!(sink.dropped(), 1);
        drop(places);
        sink.tell(&Event::now("after", Action::Request));
        sink.close();
        writer.join().unwrap();
        let lost = lines(file).into_iter().find(|line| line["imds_guard.reason"] == "events-lost").unwrap();
        assert_eq!(lost["imds_guard.count"], 1);
    }

    #[test]
    fn losses_are_told_without_another_event() {
        let (file, sink, writer) = sink();
        let places: Vec<Slot> = std::iter::from_fn(|| sink.reserve()).collect();
        drop(places);
        let told = || std::fs::read_to_string(file.path()).unwrap().contains("\"imds_guard.count\":1}");
        let patience = std::time::Instant::now() + Duration::from_mins(1);
        while !told() {
            assert!(std::time::Instant::now() < patience, "the queue was full, and then empty again");
            thread::yield_now();
        }
        sink.close();
        writer.join().unwrap();
    }

    #[test]
    fn what_is_written_and_what_is_told_as_lost_is_what_was_sent() {
        const SENDERS: usize = 4;
        const EVENTS: u64 = 50_000;
        let (file, sink, writer) = sink();
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let sink = sink.clone();
                thread::spawn(move || (0..EVENTS).for_each(|_| sink.tell(&Event::now("1", Action::Request))))
            })
            .collect();
        for sender in senders {
            sender.join().unwrap();
        }
        sink.close();
        writer.join().unwrap();
        let (mut written, mut told) = (0, 0);
        for line in lines(file) {
            match line["imds_guard.count"].as_u64() {
                Some(count) => told += count,
                None => written += 1,
            }
        }
        assert_eq!((written + told, told), (SENDERS as u64 * EVENTS, sink.dropped()));
    }

    #[test]
    fn the_journal_gets_each_event_as_an_entry_of_its_own() {
        let (near, journal) = UnixDatagram::pair().unwrap();
        let (sink, writer) = Sink::start(Destination::Journal(near)).unwrap();
        sink.tell(&Event::now("1", Action::Request));
        sink.tell(&Event::now("2", Action::Request));
        sink.close();
        writer.join().unwrap();
        for id in ["1", "2"] {
            let mut entry = [0; 4096];
            let length = journal.recv(&mut entry).unwrap();
            let entry = String::from_utf8_lossy(&entry[..length]).into_owned();
            assert!(entry.starts_with("SYSLOG_IDENTIFIER=imds-guard\nPRIORITY=6\nMESSAGE={"), "{entry}");
            assert!(entry.contains(&format!("\"event.id\":\"{id}\"")), "{entry}");
        }
    }

    #[test]
    fn a_rotated_log_goes_on_in_the_new_file() {
        let (old, sink, writer) = sink();
        let new = tempfile::NamedTempFile::new().unwrap();
        sink.redirect(Destination::Stream(new.reopen().unwrap()));
        sink.tell(&Event::now("1", Action::Request));
        sink.close();
        writer.join().unwrap();
        assert_eq!((lines(old).len(), lines(new).len()), (0, 1));
    }
}
