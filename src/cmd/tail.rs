//! `imds-guard tail`: decisions as they are recorded.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::anyhow;

use super::{Complaint, Exit, input};
use crate::cli::{TailArgs, VerdictFilter};
use crate::cloud::Class;
use crate::report::caller::Who;
use crate::report::escape::terminal;
use crate::report::record::Record;

/// How often the log is looked at.
const PAUSE: Duration = Duration::from_millis(200);

/// How far back the last events are sought.
const BACK: u64 = 1 << 20;

/// A line that is still longer without an end is no event.
const LINE_BYTES: usize = 256 << 10;

/// Follows a log until it is told to stop.
pub fn run(args: &TailArgs) -> anyhow::Result<Exit> {
    if let Some(class) = &args.class
        && Class::from_name(class).is_none()
    {
        let known: Vec<&str> = Class::ALL.into_iter().map(Class::name).collect();
        let message = format!("there is no class `{class}`; classes are {}", known.join(", "));
        return Err(anyhow!(Complaint::new(Exit::Usage, message)));
    }
    let path = match &args.log {
        Some(path) => path.clone(),
        None => PathBuf::from(input::policy_log(&args.config)?),
    };
    let mut followed = Followed::open(&path)?;
    let mut last = VecDeque::new();
    followed.each(&mut |line| {
        if let Some(shown) = show(line, args) {
            last.push_back(shown);
            if last.len() > args.lines {
                last.pop_front();
            }
        }
        Ok(())
    })?;
    let mut out = io::stdout().lock();
    for shown in last {
        writeln!(out, "{shown}")?;
    }
    out.flush()?;
    if args.no_follow {
        return Ok(Exit::Success);
    }
    loop {
        thread::sleep(PAUSE);
        followed.each(&mut |line| {
            show(line, args).map_or(Ok(()), |shown| writeln!(out, "{shown}").and_then(|()| out.flush()))
        })?;
        followed.reopen(&path)?;
    }
}

/// A log that grows, is rotated, and is cut off.
struct Followed {
    reader: BufReader<File>,
    line: Vec<u8>,
    position: u64,
}

impl Followed {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let cannot = |error| {
            anyhow!(Complaint::new(Exit::NoInput, format!("cannot read the log {}: {error}", path.display())))
        };
        let mut file = File::open(path).map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        if metadata.is_dir() {
            return Err(cannot(io::ErrorKind::IsADirectory.into()));
        }
        let length = metadata.len();
        let position = length.saturating_sub(BACK);
        file.seek(SeekFrom::Start(position)).map_err(cannot)?;
        let mut followed = Self { reader: BufReader::new(file), line: Vec::new(), position };
        if position > 0 {
            // The first line is the end of one.
            followed.position += followed.reader.read_until(b'\n', &mut followed.line)? as u64;
            followed.line.clear();
        }
        Ok(followed)
    }

    /// Gives every whole line that is there by now; the beginning of one waits for its end.
    fn each(&mut self, show: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        loop {
            let read = self.reader.read_until(b'\n', &mut self.line)?;
            self.position += read as u64;
            if read == 0 {
                return Ok(());
            }
            if self.line.last() == Some(&b'\n') {
                show(&self.line)?;
                self.line.clear();
            } else if self.line.len() > LINE_BYTES {
                self.line.clear();
            }
        }
    }

    /// Goes on in the new file after a rotation, and at the beginning of one that was cut off.
    fn reopen(&mut self, path: &Path) -> io::Result<()> {
        let ours = self.reader.get_ref().metadata()?;
        let Ok(there) = fs::metadata(path) else { return Ok(()) };
        let rotated = (ours.dev(), ours.ino()) != (there.dev(), there.ino());
        if rotated || there.len() < self.position {
            self.reader = BufReader::new(File::open(path)?);
            self.line.clear();
            self.position = 0;
        }
        Ok(())
    }
}

/// One line for an event that is wanted.
fn show(line: &[u8], args: &TailArgs) -> Option<String> {
    let record = Record::read(line).ok()?;
    if !record.is_decision() {
        let filtered =
            args.verdict.is_some() || args.agent.is_some() || args.class.is_some() || args.session.is_some();
        return (!filtered).then(|| other(&record));
    }
    let wanted = args.verdict.is_none_or(|verdict| (verdict == VerdictFilter::Deny) == record.is_denied())
        && args.session.is_none_or(|session| session.takes(&record))
        && args.agent.as_ref().is_none_or(|agent| **agent == *record.agent)
        && args.class.as_ref().is_none_or(|class| record.classes.iter().any(|one| **one == **class));
    wanted.then(|| decision(&record))
}

fn decision(record: &Record<'_>) -> String {
    let verdict = match (record.is_denied(), record.would_deny) {
        (false, _) => "allow",
        (true, true) => "WOULD DENY",
        (true, false) => "DENY",
    };
    let who = Who::of(record).to_string();
    let agent = if record.agent.is_empty() { who } else { format!("{} ({who})", &*record.agent) };
    let times = if record.weight() > 1 { format!(" ×{}", record.weight()) } else { String::new() };
    let shown = format!(
        "{} {verdict:<10} {agent} {} {} {} {}: {}{times} ({})",
        clock(&record.timestamp),
        &*record.executable,
        &*record.method,
        record.asked_path(),
        record.touched(),
        &*record.reason,
        &*record.id
    );
    terminal(&shown).into_owned()
}

fn other(record: &Record<'_>) -> String {
    let shown = format!(
        "{} {:<10} {} {} ({})",
        clock(&record.timestamp),
        &*record.action,
        &*record.reason,
        &*record.message,
        &*record.id
    );
    terminal(&shown).into_owned()
}

/// The time of day is enough while somebody watches.
fn clock(timestamp: &str) -> &str {
    timestamp.get(11..19).unwrap_or(timestamp)
}
