//! Where events go: a file, standard output, or the journal.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;

use super::event::{Action, Event, Severity};

/// The journal's native socket (systemd.journal-fields(7)).
pub const JOURNAL: &str = "/run/systemd/journal/socket";

/// Where events go. The keeper opens it; the proxy can only append.
#[derive(Debug)]
pub enum Destination {
    /// A file opened for appending, or standard output.
    Stream(File),
    /// The journal's native socket, connected.
    Journal(UnixDatagram),
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

    /// Appends something of the guard's own that is worth knowing and no failure.
    pub fn append_notice(&mut self, reason: &'static str, message: &str) -> io::Result<()> {
        let mut event = Event::now(format!("keeper-{}", std::process::id()), Action::Guard);
        event.outcome = "success";
        event.severity = Severity::Info as u8;
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
            Self::Journal(socket) => {
                let mut lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                lines.try_for_each(|line| send(socket, line))
            }
        }
    }
}

/// Sends one line to the journal; one that was started anew has another socket at the same place.
pub(super) fn send(socket: &UnixDatagram, line: &[u8]) -> io::Result<()> {
    let entry = journal_entry(line);
    match socket.send(&entry) {
        Err(error) if is_gone(&error) && is_the_journal_s(socket) => {
            socket.connect(JOURNAL)?;
            socket.send(&entry).map(drop)
        }
        sent => sent.map(drop),
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotConnected};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | NotConnected)
}

/// Whether the socket was the journal's: another one is not exchanged for it. A name is all that is left of one whose
/// other end is gone.
fn is_the_journal_s(socket: &UnixDatagram) -> bool {
    match socket.peer_addr() {
        Ok(peer) => peer.as_pathname().is_some_and(|path| path.as_os_str() == JOURNAL),
        Err(error) => error.kind() == io::ErrorKind::NotConnected,
    }
}

/// Whether this line alone is what the journal does not take, and never will.
pub(super) fn is_unsendable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EMSGSIZE)
}

/// One entry of the journal's native protocol; a line never holds a newline, so the simple form will do.
fn journal_entry(line: &[u8]) -> Vec<u8> {
    let mut entry = b"SYSLOG_IDENTIFIER=imds-guard\nPRIORITY=6\nMESSAGE=".to_vec();
    entry.extend_from_slice(line);
    entry.push(b'\n');
    entry
}
