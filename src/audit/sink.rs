//! A bounded queue of events and the thread that writes them in batches.
//!
//! A request reserves its place ([`Sink::reserve`]) before anything is forwarded. Without a place the caller of
//! `reserve` decides what that means (in enforce mode a credential is then refused); either way the loss is
//! counted and told in the log as soon as there is room again.
//!
//! A log that cannot be written (a full disk, a journal that is gone) costs no event at once: what is in hand keeps its
//! places in the queue and is tried again each second, and [`Sink::is_failing`] says so meanwhile.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::backlog::Backlog;
use super::destination::Destination;
use super::event::{Action, Event, Severity};

/// How many events may wait to be written, those of requests still under way included.
pub const QUEUE_EVENTS: usize = 16_384;

/// The writer lets events gather for this long, so that a busy guard writes batches.
const GATHER: Duration = Duration::from_millis(5);

/// How often a log that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

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
    failing: AtomicBool,
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
                failing: AtomicBool::new(false),
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

    /// Whether the log could not be written when that was tried last.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.shared.failing.load(Ordering::Acquire)
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
        self.take_now()
    }

    /// Waits until it is time to try again, or for another log, or for the end.
    fn take_later(&self) -> Pending {
        let idle = |pending: &mut Pending| pending.replacement.is_none() && !pending.closed;
        drop(self.wake.wait_timeout_while(self.lock(), RETRY, idle));
        self.take_now()
    }

    fn take_now(&self) -> Pending {
        let mut pending = self.lock();
        let closed = pending.closed;
        std::mem::replace(&mut *pending, Pending { closed, ..Pending::default() })
    }

    /// Gives the places of events back that are written, or lost.
    fn give_back(&self, places: usize) {
        self.taken.fetch_sub(places, Ordering::AcqRel);
    }
}

fn write_until_closed(shared: &Shared, mut destination: Destination) {
    let mut backlog = Backlog::default();
    loop {
        let batch = if backlog.is_empty() { shared.take() } else { shared.take_later() };
        if let Some(replacement) = batch.replacement {
            destination = replacement;
            backlog.begins_anew();
        }
        backlog.add(&batch.lines, batch.events);
        let lost = shared.dropped.load(Ordering::Relaxed) - shared.told.load(Ordering::Relaxed);
        if lost > 0 && !shared.failing.load(Ordering::Relaxed) {
            let mut line = Vec::new();
            lost_events(lost).write(&mut line);
            backlog.add(&line, 0);
            shared.told.fetch_add(lost, Ordering::Relaxed);
        }
        let written = backlog.write(&mut destination);
        shared.dropped.fetch_add(backlog.take_unwritable(), Ordering::Relaxed);
        shared.give_back(backlog.take_finished());
        note_failure(shared, written, &backlog);
        let has_untold = shared.dropped.load(Ordering::Relaxed) > shared.told.load(Ordering::Relaxed);
        if batch.closed && (shared.failing.load(Ordering::Relaxed) || !has_untold) {
            let left = backlog.places();
            shared.dropped.fetch_add(left as u64, Ordering::Relaxed);
            shared.give_back(left);
            return;
        }
    }
}

/// Says on the operations log when the audit log fails and when it works again: it cannot say so itself.
fn note_failure(shared: &Shared, written: io::Result<()>, backlog: &Backlog) {
    let is_failing = written.is_err();
    let was_failing = shared.failing.swap(is_failing, Ordering::AcqRel);
    match written {
        Err(error) if !was_failing => {
            tracing::error!(%error, "the audit log cannot be written: in enforce mode no credential is given out until it can");
        }
        Err(error) => {
            tracing::debug!(%error, waiting = backlog.places(), "the audit log still cannot be written");
        }
        Ok(()) if was_failing => {
            tracing::warn!("the audit log is written again");
            // What was lost meanwhile is told now, though no other event may come.
            shared.lock().owes = true;
        }
        Ok(()) => {}
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

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

    /// A file that takes no more than so many bytes: a limit of this thread's would end the process.
    fn full_disk(directory: &tempfile::TempDir) -> std::fs::File {
        let path = directory.path().join("full");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        std::fs::OpenOptions::new().append(true).open(path).unwrap()
    }

    fn wait_for(condition: impl Fn() -> bool) {
        let start = std::time::Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not come");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_full_disk_costs_no_event_that_finds_room_until_it_is_emptied() {
        let directory = tempfile::tempdir().unwrap();
        let (sink, writer) = Sink::start(Destination::Stream(full_disk(&directory))).unwrap();
        sink.tell(&Event::now("1", Action::Request));
        wait_for(|| sink.is_failing());
        let places: Vec<Slot> = std::iter::from_fn(|| sink.reserve()).take(QUEUE_EVENTS).collect();
        assert_eq!(places.len(), QUEUE_EVENTS - 1, "the event that could not be written keeps its place");
        assert!(sink.reserve().is_none());
        drop(places);
        for number in 2..=100 {
            sink.tell(&Event::now(number.to_string(), Action::Request));
        }
        let emptied = tempfile::NamedTempFile::new().unwrap();
        sink.redirect(Destination::Stream(emptied.reopen().unwrap()));
        wait_for(|| !sink.is_failing());
        sink.close();
        writer.join().unwrap();
        let written = lines(emptied);
        let ids: Vec<&str> = written.iter().filter_map(|line| line["event.id"].as_str()).collect();
        let lost = written.iter().find(|line| line["imds_guard.reason"] == "events-lost").unwrap();
        assert_eq!((ids.len(), &lost["imds_guard.count"]), (101, &2.into()), "two found no room");
        assert_eq!((ids.first(), sink.dropped()), (Some(&"1"), 2));
    }

    #[test]
    fn what_a_full_disk_has_not_taken_at_the_end_is_counted_as_lost() {
        let directory = tempfile::tempdir().unwrap();
        let (sink, writer) = Sink::start(Destination::Stream(full_disk(&directory))).unwrap();
        (0..7).for_each(|number| sink.tell(&Event::now(number.to_string(), Action::Request)));
        sink.close();
        writer.join().unwrap();
        assert_eq!(sink.dropped(), 7);
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
