//! A raw TCP connection of some caller: the test writes the bytes, and sees how each answer and the end looked.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::answer::{Answer, head_end};

/// Longer than any answer in these tests takes, shorter than a person waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// The program that holds the socket, given to Python on its command line: its file may lie where the caller can't read.
pub const RELAY: &str = include_str!("relay.py");

/// How the socket is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An ordinary TCP socket.
    Plain,
    /// An IPv6 socket that connects to the v4-mapped form of an IPv4 address.
    Mapped,
    /// Multipath TCP.
    Mptcp,
    /// TCP Fast Open: the first bytes may travel with the SYN.
    FastOpen,
    /// Created now, connected when [`Connection::release`] is called.
    Held,
    /// Bound to this source port.
    From(u16),
}

impl Kind {
    fn option(self) -> String {
        match self {
            Self::Plain => "plain".to_owned(),
            Self::Mapped => "mapped".to_owned(),
            Self::Mptcp => "mptcp".to_owned(),
            Self::FastOpen => "fastopen".to_owned(),
            Self::Held => "held".to_owned(),
            Self::From(port) => format!("from={port}"),
        }
    }
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The other side closed it.
    Closed,
    /// The other side reset it.
    Reset,
    /// It never came to be, or broke otherwise; the errno's name.
    Failed(String),
}

/// A connection that a caller's process holds. Dropping it kills the process.
pub struct Connection {
    child: Child,
    stdin: Option<ChildStdin>,
    arriving: Receiver<Vec<u8>>,
    steps: Receiver<String>,
    unread: Vec<u8>,
}

impl Connection {
    /// Starts the relay by the given command, which runs it as its caller.
    pub(super) fn start(mut python: Command, to: SocketAddr, kind: Kind) -> Self {
        python.args(["-I", "-S", "-c", RELAY, &to.ip().to_string(), &to.port().to_string(), &kind.option()]);
        python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = python.spawn().expect("python3 runs");
        let stdin = child.stdin.take();
        let mut stdout = child.stdout.take().expect("piped");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (bytes, arriving) = channel();
        thread::spawn(move || {
            let mut block = vec![0_u8; 65_536];
            loop {
                match stdout.read(&mut block) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Ok(length @ 1..) if bytes.send(block[..length].to_vec()).is_ok() => {}
                    Ok(_) | Err(_) => break,
                }
            }
        });
        let (lines, steps) = channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let connection = Self { child, stdin, arriving, steps, unread: Vec::new() };
        assert_eq!(connection.step().as_deref(), Some("socket"), "the relay made no socket");
        connection
    }

    fn step(&self) -> Option<String> {
        self.steps.recv_timeout(PATIENCE).ok()
    }

    /// The process that holds the socket.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets a held socket connect.
    pub fn release(&mut self) {
        self.send(b"!");
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("not half-closed yet");
        // The relay may be gone because the connection is; the test sees that at the answer.
        let _ = stdin.write_all(bytes).and_then(|()| stdin.flush());
    }

    /// Sends a GET for the target, with the lines of headers given.
    pub fn get(&mut self, target: &str, headers: &[&str]) {
        let mut head = format!("GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n");
        for header in headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        self.send(head.as_bytes());
    }

    /// Sends FIN and goes on reading.
    pub fn half_close(&mut self) {
        self.stdin = None;
    }

    /// Waits for more bytes; `false` when no more will come.
    fn more(&mut self, deadline: Instant) -> bool {
        match self.arriving.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => {
                self.unread.extend(bytes);
                true
            }
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => {
                panic!("nothing came; unread so far: {:?}", String::from_utf8_lossy(&self.unread))
            }
        }
    }

    /// The next answer, body included; `None` if the connection ended before a whole head.
    pub fn answer(&mut self) -> Option<Answer> {
        self.answer_within(PATIENCE)
    }

    /// The same, with another patience.
    pub fn answer_within(&mut self, patience: Duration) -> Option<Answer> {
        let deadline = Instant::now() + patience;
        let end = loop {
            match head_end(&self.unread) {
                Some(end) => break end,
                None if !self.more(deadline) => return None,
                None => {}
            }
        };
        let head: Vec<u8> = self.unread.drain(..end).collect();
        let mut answer = Answer::from_head(&head).unwrap_or_else(|| panic!("no answer: {head:?}"));
        answer.body = self.body(&answer, deadline);
        Some(answer)
    }

    /// The answer's body, as its framing says; chunked ones stay in their chunks, which no test looks into.
    fn body(&mut self, answer: &Answer, deadline: Instant) -> Vec<u8> {
        let length = answer.header("content-length").and_then(|value| value.parse::<usize>().ok());
        let wanted = match answer.status {
            100..=199 | 204 | 304 => Some(0),
            _ => length,
        };
        let is_chunked = answer.header("transfer-encoding").is_some();
        while wanted.is_none_or(|wanted| self.unread.len() < wanted) && self.more(deadline) {
            if is_chunked && self.unread.ends_with(b"0\r\n\r\n") {
                break;
            }
        }
        let end = wanted.unwrap_or(self.unread.len()).min(self.unread.len());
        self.unread.drain(..end).collect()
    }

    /// Waits until these bytes have come, and leaves them to be read. `false` if the connection ended before.
    pub fn wait_for(&mut self, bytes: &[u8]) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while !self.unread.windows(bytes.len()).any(|window| window == bytes) {
            if !self.more(deadline) {
                return false;
            }
        }
        true
    }

    /// What has come and was not read.
    pub fn unread_text(&self) -> String {
        String::from_utf8_lossy(&self.unread).into_owned()
    }

    /// Whether nothing arrives for this long (and the connection stays open).
    pub fn is_silent_for(&mut self, time: Duration) -> bool {
        self.unread.is_empty() && self.arriving.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
    }

    /// Waits for the connection's end and tells how it was. Bytes that come before it are thrown away.
    pub fn end(&mut self) -> End {
        loop {
            match self.step().as_deref() {
                Some("socket" | "connected") => {}
                Some("closed") => return End::Closed,
                Some("reset") => return End::Reset,
                Some(other) => return End::Failed(other.trim_start_matches("failed ").to_owned()),
                None => panic!("the connection did not end"),
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
