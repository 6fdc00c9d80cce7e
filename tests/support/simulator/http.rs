//! Just enough HTTP/1 for a metadata service, with the request's head kept byte for byte.
//!
//! The reader is lenient where real servers are (a bare LF ends a line), so that whatever a guard lets through is
//! understood here and shows up in the tests.

use std::fmt::Write as _;
use std::io::{self, BufRead, Read, Write};

/// A request as it arrived.
pub struct Request {
    /// The head's bytes, up to and including the empty line.
    pub head: Vec<u8>,
    /// The method, as sent.
    pub method: String,
    /// The request target, as sent.
    pub target: String,
    /// The body, framing removed.
    pub body: Vec<u8>,
    version: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// Reads the next request; `None` if the client closed the connection instead of sending one.
    pub(super) fn read(reader: &mut impl BufRead, writer: &mut impl Write) -> io::Result<Option<Self>> {
        let Some(head) = read_head(reader)? else { return Ok(None) };
        let text: String = head.iter().map(|&byte| char::from(byte)).collect();
        let mut lines = text.split('\n').map(|line| line.trim_end_matches('\r'));
        let mut words = lines.next().unwrap_or("").split_whitespace();
        let mut word = || words.next().unwrap_or("").to_owned();
        let (method, target, version) = (word(), word(), word());
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut request = Self { head, method, target, body: Vec::new(), version, headers };
        if request.has_token("expect", "100-continue") {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        request.body = request.read_body(reader)?;
        Ok(Some(request))
    }

    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.headers
            .iter()
            .filter(|(known, _)| known == name)
            .flat_map(|(_, value)| value.split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(token))
    }

    fn read_body(&self, reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if self.has_token("transfer-encoding", "chunked") {
            while let length @ 1.. = read_chunk_length(reader)? {
                reader.by_ref().take(length).read_to_end(&mut body)?;
                reader.read_line(&mut String::new())?;
            }
            while read_line(reader)?.is_some_and(|line| !is_empty_line(&line)) {}
        } else if let Some(length) = self.header("content-length").and_then(|value| value.parse().ok()) {
            reader.by_ref().take(length).read_to_end(&mut body)?;
        }
        Ok(body)
    }

    /// Whether the connection ends after the answer.
    pub(super) fn closes(&self) -> bool {
        match self.version.as_str() {
            "HTTP/1.0" => !self.has_token("connection", "keep-alive"),
            _ => self.has_token("connection", "close"),
        }
    }

    fn path_and_query(&self) -> (&str, &str) {
        let target = match self.target.split_once("://") {
            Some((scheme, rest)) if !scheme.contains('/') => {
                rest.find('/').map_or("/", |slash| &rest[slash..])
            }
            _ => &self.target,
        };
        let target = target.split('#').next().unwrap_or("");
        target.split_once('?').unwrap_or((target, ""))
    }

    /// The path's segments: decoded once, doubled slashes and dot segments gone.
    pub(super) fn segments(&self) -> Vec<String> {
        let mut segments = Vec::new();
        for segment in decode(self.path_and_query().0).split('/') {
            match segment {
                "" | "." => {}
                ".." => drop(segments.pop()),
                name => segments.push(name.to_owned()),
            }
        }
        segments
    }

    /// Whether the path ends in a slash.
    pub(super) fn is_directory(&self) -> bool {
        self.path_and_query().0.ends_with('/')
    }

    /// The path as sent, without the query.
    pub(super) fn path(&self) -> &str {
        self.path_and_query().0
    }

    /// The value of a query parameter; empty for a bare key.
    pub(super) fn query(&self, key: &str) -> Option<String> {
        self.path_and_query().1.split(['&', ';']).find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name) == key).then(|| decode(value))
        })
    }
}

fn is_empty_line(line: &[u8]) -> bool {
    matches!(line, b"\n" | b"\r\n")
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    Ok((!line.is_empty()).then_some(line))
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    while let Some(line) = read_line(reader)? {
        let end = is_empty_line(&line);
        if head.is_empty() && end {
            continue;
        }
        head.extend(line);
        if end {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

fn read_chunk_length(reader: &mut impl BufRead) -> io::Result<u64> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let digits = line.split(';').next().unwrap_or("").trim();
    u64::from_str_radix(digits, 16).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Percent decoding, once; what is no escape stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escape = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = escape.filter(|_| first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer.
pub struct Response {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Response {
    /// An answer of plain text.
    pub(super) fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, headers: vec![("Content-Type", "text/plain".to_owned())], body: body.into() }
    }

    /// 200 with plain text.
    pub(super) fn text(body: impl Into<String>) -> Self {
        Self::new(200, body)
    }

    /// 200 with JSON.
    pub(super) fn json(value: &serde_json::Value) -> Self {
        Self::new(200, value.to_string()).header("Content-Type", "application/json")
    }

    /// Sets a header; a name that is there already is replaced.
    #[must_use]
    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    /// Whether the client has this very version already.
    fn is_known_to(&self, request: &Request) -> bool {
        let version =
            self.headers.iter().find(|(name, _)| *name == "ETag").map(|(_, version)| version.as_str());
        let known = request.header("if-none-match").unwrap_or_default();
        self.status == 200
            && version
                .is_some_and(|version| known.split(',').any(|one| one.trim() == "*" || one.trim() == version))
    }

    /// Writes the answer; to HEAD, and to those who have it already, without its body.
    pub(super) fn write(&self, stream: &mut impl Write, request: &Request) -> io::Result<()> {
        let is_known = self.is_known_to(request);
        let status = if is_known { 304 } else { self.status };
        let mut out = format!("HTTP/1.1 {status} {}\r\n", phrase(status));
        for (name, value) in &self.headers {
            let _ = write!(out, "{name}: {value}\r\n");
        }
        let connection = if request.closes() { "Connection: close\r\n" } else { "" };
        if !is_known {
            let _ = write!(out, "Content-Length: {}\r\n", self.body.len());
        }
        let _ = write!(out, "{connection}\r\n");
        if request.method != "HEAD" && !is_known {
            out.push_str(&self.body);
        }
        stream.write_all(out.as_bytes())?;
        stream.flush()
    }
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "Decoy",
    }
}
