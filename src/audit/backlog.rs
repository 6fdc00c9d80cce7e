//! What is to be written, and how far that has got.

use std::io::{self, Write as _};

use super::destination::{self, Destination};

/// Lines on their way to the log, each of them whole.
///
/// A write that fails half-way leaves a part of a line behind. Before anything else comes after it the line is ended,
/// and the one that was cut is written once more: readers meet one line that is none, and no event is lost.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    lines: Vec<u8>,
    /// The places that the events among them hold in the queue.
    places: usize,
    /// Places of events that are done with.
    finished: usize,
    /// Events that the log will never take.
    unwritable: u64,
    /// Whether the log ends in the middle of a line.
    is_cut: bool,
}

impl Backlog {
    /// Adds whole lines, of so many events that have a place.
    pub(super) fn add(&mut self, lines: &[u8], places: usize) {
        self.lines.extend_from_slice(lines);
        self.places += places;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How many events wait that have a place.
    pub(super) fn places(&self) -> usize {
        self.places
    }

    /// How many places have become free since the last call.
    pub(super) fn take_finished(&mut self) -> usize {
        std::mem::take(&mut self.finished)
    }

    /// How many events will never be written, of those that came since the last call.
    pub(super) fn take_unwritable(&mut self) -> u64 {
        std::mem::take(&mut self.unwritable)
    }

    /// The log is another one now, in which no line was begun.
    pub(super) fn begins_anew(&mut self) {
        self.is_cut = false;
    }

    /// Writes as much as the log takes.
    pub(super) fn write(&mut self, destination: &mut Destination) -> io::Result<()> {
        let mut taken = 0;
        let outcome = match destination {
            Destination::Stream(file) => self.write_bytes(file, &mut taken),
            Destination::Journal(socket) => {
                let mut sent = Ok(());
                for line in self.lines.split_inclusive(|byte| *byte == b'\n') {
                    match destination::send(socket, line.trim_ascii_end()) {
                        Err(error) if destination::is_unsendable(&error) => self.unwritable += 1,
                        Err(error) => {
                            sent = Err(error);
                            break;
                        }
                        Ok(()) => {}
                    }
                    taken += line.len();
                }
                sent
            }
        };
        self.forget(taken);
        outcome
    }

    fn write_bytes(&mut self, mut file: &std::fs::File, taken: &mut usize) -> io::Result<()> {
        if self.is_cut && !self.lines.is_empty() {
            file.write_all(b"\n")?;
            self.is_cut = false;
        }
        while let Some(left) = self.lines.get(*taken..).filter(|left| !left.is_empty()) {
            match file.write(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => *taken += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Forgets the lines that are wholly within the first so many bytes.
    fn forget(&mut self, taken: usize) {
        let whole = self.lines.get(..taken).unwrap_or_default();
        let end = whole.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.is_cut |= taken > end;
        let lines = self.lines.drain(..end).as_slice().split(|byte| *byte == b'\n').count().saturating_sub(1);
        // Among the lines may be one of the guard's own, without a place; at the end all places are free.
        let done = if self.lines.is_empty() { self.places } else { lines.min(self.places) };
        self.places -= done;
        self.finished += done;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    #[test]
    fn a_line_that_was_cut_is_written_once_more() {
        let mut backlog = Backlog::default();
        backlog.add(b"{1}\n{22}\n{333}\n", 3);
        backlog.forget(6);
        assert_eq!((backlog.take_finished(), backlog.places()), (1, 2));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"{1}\n{2").unwrap();
        backlog.write(&mut Destination::Stream(file.try_clone().unwrap())).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{1}\n{2\n{22}\n{333}\n");
        assert_eq!((backlog.take_finished(), backlog.places()), (2, 0));
    }

    #[test]
    fn another_log_begins_with_a_whole_line() {
        let mut backlog = Backlog::default();
        backlog.add(b"{1}\n{22}\n", 2);
        backlog.forget(6);
        backlog.begins_anew();
        let mut file = tempfile::tempfile().unwrap();
        backlog.write(&mut Destination::Stream(file.try_clone().unwrap())).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{22}\n");
    }

    #[test]
    fn the_journal_is_sent_what_it_has_not_had() {
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut backlog = Backlog::default();
        let mut journal = Destination::Journal(near);
        let lines: Vec<u8> = (0..5000).flat_map(|number| format!("{{{number}}}\n").into_bytes()).collect();
        backlog.add(&lines, 5000);
        let mut received = 0;
        let mut entry = [0; 256];
        // A journal that does not read takes some hundreds.
        while backlog.write(&mut journal).is_err() {
            let length = far.recv(&mut entry).unwrap();
            let text = String::from_utf8_lossy(&entry[..length]).into_owned();
            assert!(text.ends_with(&format!("MESSAGE={{{received}}}\n")), "{text}");
            received += 1;
        }
        far.set_nonblocking(true).unwrap();
        while far.recv(&mut entry).is_ok() {
            received += 1;
        }
        assert_eq!((received, backlog.places(), backlog.take_finished()), (5000, 0, 5000));
    }

    #[test]
    fn a_line_that_no_journal_takes_is_counted_and_left_out() {
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut backlog = Backlog::default();
        backlog.add(&[vec![b'x'; 4 << 20], b"\n{1}\n".to_vec()].concat(), 2);
        backlog.write(&mut Destination::Journal(near)).unwrap();
        assert_eq!((backlog.take_unwritable(), backlog.take_finished()), (1, 2));
        let mut entry = [0; 256];
        let length = far.recv(&mut entry).unwrap();
        assert!(entry[..length].ends_with(b"MESSAGE={1}\n"));
    }
}
