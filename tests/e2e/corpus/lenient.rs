//! A metadata service that is generous in every way at once: whatever could be read as a request for a secret gets a
//! canary, and what is left of a body may be the next request.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::readings::{headers, leak};

/// In every secret that it hands out.
pub const CANARY: &str = "CANARY-7f3a";

/// How long a half-sent head is waited for before it is taken for a whole one.
const PATIENCE: Duration = Duration::from_millis(400);

/// What connections share.
#[derive(Default)]
struct State {
    /// Answers to requests found inside bodies come at once, or only when the next request arrives.
    eager: AtomicBool,
    /// Every request's head.
    received: Mutex<Vec<Vec<u8>>>,
}

/// A running service. Its threads end with the process.
#[derive(Clone, Default)]
pub struct Lenient(Arc<State>);

impl Lenient {
    /// Listens at these ports of every address, in the network namespace of the calling thread.
    pub fn start(ports: &[u16]) -> io::Result<Self> {
        let service = Self::default();
        for port in ports {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port))?;
            let service = service.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let service = service.clone();
                    // A client that breaks the connection is no fault of the service.
                    thread::spawn(move || drop(service.converse(stream)));
                }
            });
        }
        Ok(service)
    }

    /// Whether what is found inside a body is answered at once.
    pub fn set_eager(&self, eager: bool) {
        self.0.eager.store(eager, Ordering::SeqCst);
    }

    /// The heads that arrived since the last call.
    pub fn take_received(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.0.received.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut unread = Vec::new();
        let mut owed: Vec<Vec<u8>> = Vec::new();
        loop {
            let Some(head) = read_head(&mut stream, &mut unread)? else { return Ok(()) };
            self.0.received.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
            if header(&head, "expect").is_some() {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let body = read_body(&mut stream, &mut unread, &head)?;
            for answer in owed.drain(..) {
                stream.write_all(&answer)?;
            }
            stream.write_all(&answer(&head, body.len()))?;
            for hidden in hidden_requests(&body) {
                owed.push(answer(hidden, 0));
            }
            if self.0.eager.load(Ordering::SeqCst) {
                for answer in owed.drain(..) {
                    stream.write_all(&answer)?;
                }
            }
            if header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close")) {
                return Ok(());
            }
        }
    }
}

fn header(head: &[u8], name: &str) -> Option<Vec<u8>> {
    headers(head).into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

/// More bytes; `false` at the end, or when none come.
fn more(stream: &mut TcpStream, unread: &mut Vec<u8>) -> io::Result<bool> {
    let mut block = [0_u8; 16 * 1024];
    match stream.read(&mut block) {
        Ok(0) => Ok(false),
        Ok(length) => {
            unread.extend_from_slice(&block[..length]);
            Ok(true)
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// A head, ended in whatever way, or by silence.
fn read_head(stream: &mut TcpStream, unread: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    loop {
        let empty = unread.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        unread.drain(..empty);
        if let Some(end) = head_end(unread) {
            return Ok(Some(unread.drain(..end).collect()));
        }
        if !more(stream, unread)? {
            // A client that keeps its connection for later sends nothing for a while, and that is no request. One that
            // has just gone to sleep is waited for, as long as it has the connection open.
            if !unread.is_empty() {
                return Ok(Some(std::mem::take(unread)));
            }
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            let goes_on = more(stream, unread)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            if !goes_on {
                return Ok(None);
            }
        }
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    let ends: [&[u8]; 4] = [b"\r\n\r\n", b"\n\n", b"\r\r", b"\n\r\n"];
    let find =
        |end: &&[u8]| bytes.windows(end.len()).position(|window| window == *end).map(|at| at + end.len());
    ends.iter().filter_map(find).min()
}

/// The body by Transfer-Encoding if anything looks like it, by Content-Length otherwise.
fn read_body(stream: &mut TcpStream, unread: &mut Vec<u8>, head: &[u8]) -> io::Result<Vec<u8>> {
    let chunked = header(head, "transfer-encoding").is_some();
    let length = header(head, "content-length");
    let number =
        |value: &[u8]| String::from_utf8_lossy(value).split(',').next()?.trim().parse::<usize>().ok();
    let wanted = length.as_deref().and_then(number).unwrap_or(0);
    loop {
        if chunked {
            // Up to the last chunk, found by its looks: sizes and extensions are not looked at.
            if let Some(end) = unread.windows(5).position(|window| window == b"0\r\n\r\n") {
                return Ok(unread.drain(..end + 5).collect());
            }
        } else if unread.len() >= wanted {
            return Ok(unread.drain(..wanted).collect());
        }
        if !more(stream, unread)? {
            return Ok(std::mem::take(unread));
        }
    }
}

/// Whatever in a body looks like a request of its own, to a server that ends the body elsewhere.
fn hidden_requests(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let methods: [&[u8]; 4] = [b"GET ", b"HEAD ", b"PUT ", b"POST "];
    let starts =
        (0..body.len()).filter(move |at| methods.iter().any(|method| body[*at..].starts_with(method)));
    starts.map(|at| &body[at..at + head_end(&body[at..]).unwrap_or(body.len() - at)])
}

/// 200 whatever is asked, with what clients look at; a canary if it could be a secret.
fn answer(head: &[u8], body: usize) -> Vec<u8> {
    let text = match leak(head) {
        Some(how) => format!("{CANARY} ({how})\n"),
        None => format!("plain, {body} bytes came\n"),
    };
    let is_head = head.starts_with(b"HEAD");
    // A length that a HEAD would have, too, and the canary where its answer can hold one.
    let canary = if text.starts_with(CANARY) { CANARY } else { "none" };
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nServer: Lenient/1\r\nContent-Type: text/plain\r\nETag: \"5b1e\"\r\n\
         Metadata-Flavor: Google\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\nX-Found: {canary}\r\n\
         Retry-After: 1\r\nContent-Length: {}\r\n\r\n",
        text.len(),
    );
    if !is_head {
        answer.push_str(&text);
    }
    answer.into_bytes()
}
