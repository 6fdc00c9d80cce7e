//! Reads audit logs: files and standard input, plain or compressed with gzip, as a stream.
//!
//! Lines that cannot be used are counted and told, never fatal: a guard that was killed leaves half a line, a rotated
//! log starts with one, and whoever can write a log can write anything.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use super::record::{Record, Text, Unusable};
use super::since::Since;

/// The longest line that is read: ten times what an event can be.
const LINE_BYTES: u64 = 256 << 10;

/// Where a log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// Standard input, on the command line `-`.
    Stdin,
}

impl Input {
    /// From the command line.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        if path == Path::new("-") { Self::Stdin } else { Self::File(path.to_owned()) }
    }

    fn open(&self) -> io::Result<(Box<dyn Read>, Option<u64>)> {
        Ok(match self {
            Self::Stdin => (Box::new(io::stdin().lock()), None),
            Self::File(path) => {
                let file = File::open(path)?;
                let metadata = file.metadata()?;
                if metadata.is_dir() {
                    return Err(io::ErrorKind::IsADirectory.into());
                }
                (Box::new(file), Some(metadata.len()))
            }
        })
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("standard input"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// A log that could not be opened: nothing was read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the log {log}")]
pub struct OpenError {
    /// The log.
    pub log: String,
    /// What the system said.
    #[source]
    pub cause: io::Error,
}

/// What was read, and what could not be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Lines, the unusable ones included.
    pub lines: u64,
    /// Events that count.
    pub events: u64,
    /// Events from before `--since`, or without a moment when one was asked for.
    pub earlier: u64,
    /// Lines that are no JSON of this schema.
    pub broken: u64,
    /// Last lines without an end: what a guard that was killed was writing.
    pub truncated: u64,
    /// Lines longer than any event.
    pub too_long: u64,
    /// JSON that is no event of this guard.
    pub foreign: u64,
    /// Events of another schema version.
    pub other_schema: u64,
    /// Logs that broke off, and why.
    pub broken_off: Vec<String>,
}

impl Tally {
    /// How many lines were skipped because they could not be used.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.broken + self.truncated + self.too_long + self.foreign + self.other_schema
    }

    /// One line for each kind of trouble.
    pub fn troubles(&self) -> impl Iterator<Item = String> {
        let counted = [
            (self.broken, "broken"),
            (self.truncated, "cut off at the end of a log"),
            (self.too_long, "longer than any event"),
            (self.foreign, "not of this guard"),
            (self.other_schema, "of a schema version that this program does not know"),
        ];
        let counted = counted.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| {
            let (lines, are) = if count == 1 { ("line", "is") } else { ("lines", "are") };
            format!("skipped {count} {lines} that {are} {what}")
        });
        counted.chain(self.broken_off.iter().cloned())
    }
}

/// Tells how far the reading is.
pub trait Progress {
    /// Some more lines were read; of a file, this share of it.
    fn advance(&mut self, log: &Input, tally: &Tally, share: Option<f64>);
}

/// Tells nobody.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn advance(&mut self, _: &Input, _: &Tally, _: Option<f64>) {}
}

/// Reads all logs, one after the other, and gives every event that counts to `each`.
pub fn read(
    logs: &[Input],
    since: Option<Since>,
    progress: &mut dyn Progress,
    mut each: impl FnMut(&Record<'_>),
) -> Result<Tally, OpenError> {
    let mut tally = Tally::default();
    for log in logs {
        let failed = |cause| OpenError { log: log.to_string(), cause };
        let (reader, length) = log.open().map_err(failed)?;
        let counted = Counted { reader, read: Rc::default() };
        let position = Rc::clone(&counted.read);
        let mut buffered = BufReader::with_capacity(128 << 10, counted);
        // By its first bytes, not its name: rotated logs are called anything.
        let start = buffered.fill_buf().map_err(failed)?;
        if let Some(form) = unreadable_form(start) {
            tally
                .broken_off
                .push(format!("{log} is compressed with {form}: unpack it, or pipe it in ({form} -dc)"));
            continue;
        }
        let compressed = start.starts_with(&[0x1f, 0x8b]);
        let mut lines: Box<dyn BufRead> = if compressed {
            Box::new(BufReader::with_capacity(128 << 10, MultiGzDecoder::new(buffered)))
        } else {
            Box::new(buffered)
        };
        let mut line = Vec::new();
        let mut told = position.get();
        loop {
            match next_line(&mut *lines, &mut line) {
                Ok(Line::End) => break,
                Ok(kind) => {
                    tally.lines += 1;
                    take(&line, kind, since, &mut tally, &mut each);
                }
                Err(error) => {
                    tally.broken_off.push(format!("{log} breaks off after line {}: {error}", tally.lines));
                    break;
                }
            }
            // Between two reads of the file, too: what comes through a pipe may come slowly.
            if tally.lines.is_multiple_of(8192) || position.get() != told {
                told = position.get();
                let share = length.filter(|length| *length > 0).map(|length| ratio(position.get(), length));
                progress.advance(log, &tally, share);
            }
        }
    }
    Ok(tally)
}

/// By its first bytes, a form of compression that this program does not read.
fn unreadable_form(start: &[u8]) -> Option<&'static str> {
    const FORMS: [(&[u8], &str); 3] =
        [(&[0x28, 0xb5, 0x2f, 0xfd], "zstd"), (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"), (b"BZh", "bzip2")];
    FORMS.into_iter().find_map(|(magic, form)| start.starts_with(magic).then_some(form))
}

#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

fn take(
    line: &[u8],
    kind: Line,
    since: Option<Since>,
    tally: &mut Tally,
    each: &mut impl FnMut(&Record<'_>),
) {
    if kind == Line::TooLong {
        tally.too_long += 1;
        return;
    }
    if line.trim_ascii().is_empty() {
        tally.lines -= 1;
        return;
    }
    // Behind the prefix of a syslog line, too.
    let start = line.iter().position(|byte| *byte == b'{').unwrap_or(0);
    let line = line.get(start..).unwrap_or_default();
    let message;
    let read = match Record::read(line) {
        Err(Unusable::NotAnEvent) => match JournalEntry::read(line) {
            Some(entry) => {
                message = entry;
                message.event()
            }
            None => Err(Unusable::NotAnEvent),
        },
        read => read,
    };
    let record = match read {
        Ok(record) => record,
        Err(_) if kind == Line::Unended => return tally.truncated += 1,
        Err(Unusable::Broken) => return tally.broken += 1,
        Err(Unusable::NotAnEvent) => return tally.foreign += 1,
        Err(Unusable::OtherSchema) => return tally.other_schema += 1,
    };
    if let Some(since) = since
        && record.seconds().is_none_or(|seconds| seconds < since.seconds)
    {
        return tally.earlier += 1;
    }
    tally.events += 1;
    each(&record);
}

/// An entry of the journal, as `journalctl -o json` gives it.
#[derive(Deserialize)]
struct JournalEntry {
    #[serde(rename = "MESSAGE")]
    message: String,
    #[serde(rename = "_HOSTNAME", default)]
    host: Option<String>,
}

impl JournalEntry {
    fn read(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// The event in it, on the journal's machine unless it names one itself.
    fn event(&self) -> Result<Record<'_>, Unusable> {
        let mut record = Record::read(self.message.as_bytes())?;
        if let Some(host) = &self.host
            && record.host.is_empty()
        {
            record.host = Text::from(host.as_str());
        }
        Ok(record)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Whole,
    Unended,
    TooLong,
    End,
}

/// Reads up to the next line break; of a line that is too long, the rest is skipped.
fn next_line(reader: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<Line> {
    line.clear();
    let read = reader.take(LINE_BYTES).read_until(b'\n', line)?;
    if read == 0 {
        return Ok(Line::End);
    }
    if line.last() == Some(&b'\n') {
        return Ok(Line::Whole);
    }
    if (read as u64) < LINE_BYTES {
        return Ok(Line::Unended);
    }
    loop {
        let buffer = reader.fill_buf()?;
        let (skip, done) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        reader.consume(skip);
        if done {
            return Ok(Line::TooLong);
        }
    }
}

/// Counts what is read of a file, for the share that is done.
struct Counted<R> {
    reader: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.read.set(self.read.get() + read as u64);
        Ok(read)
    }
}
