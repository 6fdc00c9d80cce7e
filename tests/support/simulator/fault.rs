//! Misbehaviour on purpose: what a metadata service does on a bad day, and what a proxy must survive.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::str::FromStr;
use std::time::Duration;

use super::http::Request;

/// How the decoy cloud misbehaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Fault {
    /// It does not.
    #[default]
    None,
    /// Reads the request and never answers.
    Hang,
    /// Resets the connection instead of answering.
    Reset,
    /// Closes the connection instead of answering.
    Close,
    /// Resets the connection in the middle of a body.
    ResetMidBody,
    /// Answers with a body of so many bytes.
    BigBody(u64),
    /// Answers with a chunked body of several chunks.
    Chunked,
    /// Answers with this status and no body.
    Status(u16),
    /// Answers rightly, but only after this time.
    Slow(Duration),
    /// Answers rightly and then closes the connection without having said so.
    CloseAfter,
    /// Answers with a body that ends where the connection ends.
    Unframed,
    /// Answers with exactly these bytes, head included; to HEAD with the head alone.
    Raw(Vec<u8>),
    /// Answers with a body whose second half comes this much later than the first.
    Pause(Duration),
}

impl Fault {
    /// Whether the connection ends with it.
    pub fn closes(&self) -> bool {
        matches!(self, Self::Reset | Self::Close | Self::ResetMidBody | Self::CloseAfter | Self::Unframed)
    }

    /// Answers in the way of the faults that need no knowledge of the cloud.
    pub(super) fn apply(&self, stream: &mut TcpStream, request: &Request) -> io::Result<()> {
        let body = request.method != "HEAD";
        match self {
            Self::None | Self::Hang | Self::Slow(_) | Self::CloseAfter => Ok(()),
            Self::Reset => reset(stream),
            Self::Close => stream.shutdown(Shutdown::Both),
            Self::ResetMidBody => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf of ")?;
                stream.flush()?;
                // The first half must arrive: a reset overtakes bytes that are still under way.
                std::thread::sleep(Duration::from_millis(100));
                reset(stream)
            }
            Self::BigBody(length) => {
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
                if body { big_body(stream, *length) } else { Ok(()) }
            }
            Self::Chunked => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                if body { stream.write_all(b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n") } else { Ok(()) }
            }
            Self::Raw(answer) => {
                let head =
                    answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
                stream.write_all(if body { answer } else { answer.get(..head).unwrap_or(answer) })
            }
            Self::Unframed => stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end"),
            Self::Pause(time) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nfirst")?;
                std::thread::sleep(*time);
                stream.write_all(b"second")
            }
            Self::Status(code) => {
                let length = if matches!(code, 204 | 304) { "" } else { "Content-Length: 0\r\n" };
                write!(stream, "HTTP/1.1 {code} Decoy\r\nETag: \"decoy\"\r\n{length}\r\n")
            }
        }
    }
}

/// Bytes that differ along the body, so that a lost or doubled block shows.
fn big_body(stream: &mut TcpStream, length: u64) -> io::Result<()> {
    let block: Vec<u8> = (0..251_u8).cycle().take(251 * 256).collect();
    let mut left = length;
    while left > 0 {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        stream.write_all(block.get(..take).unwrap_or(&block))?;
        left -= take as u64;
    }
    Ok(())
}

/// Makes the kernel send RST instead of FIN: that is what disconnecting an established socket does. A zero linger would
/// not do, since it works when the last copy of the descriptor closes, and the registry of streams holds one.
fn reset(stream: &TcpStream) -> io::Result<()> {
    rustix::net::connect_unspec(stream).map_err(io::Error::from)
}

impl FromStr for Fault {
    type Err = String;

    /// Reads the spelling of the command line: `hang`, `reset`, `status=204`, `slow=250` (milliseconds), and so on.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let number = || value.parse::<u64>().map_err(|error| format!("{text}: {error}"));
        Ok(match name {
            "none" => Self::None,
            "hang" => Self::Hang,
            "reset" => Self::Reset,
            "close" => Self::Close,
            "reset-mid-body" => Self::ResetMidBody,
            "big-body" => Self::BigBody(number()?),
            "chunked" => Self::Chunked,
            "status" => Self::Status(u16::try_from(number()?).map_err(|error| format!("{text}: {error}"))?),
            "slow" => Self::Slow(Duration::from_millis(number()?)),
            "close-after" => Self::CloseAfter,
            "unframed" => Self::Unframed,
            "pause" => Self::Pause(Duration::from_millis(number()?)),
            _ => return Err(format!("no such fault: {text}")),
        })
    }
}
