//! What the gate passes, the HTTP library behind it must read alike: same heads, same bodies, no answer of its own.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, service::service_fn};
use hyper_util::rt::TokioIo;
use imds_guard::request::{Gate, Limits, RawHead, Step, Strictness};
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

/// One request in the words that both sides share.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<Vec<u8>>,
}

/// Names in lower case, sorted, the order of repeated ones kept: the library keeps no other order.
fn sorted<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Vec<(String, Vec<u8>)> {
    let mut headers: Vec<_> =
        headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec())).collect();
    headers.sort_by(|one, two| one.0.cmp(&two.0));
    headers
}

fn by_head(head: &RawHead) -> Read {
    let uri: http::Uri = head.target().try_into().unwrap_or_default();
    Read {
        method: head.method().as_str().to_owned(),
        target: uri.to_string(),
        headers: sorted(head.headers().map(|header| (header.name, header.value))),
        body: Some(Vec::new()),
    }
}

/// The first request that the gate passes whole, its bytes, and its body without chunk framing.
fn by_gate(stream: &[u8], strictness: Strictness) -> Option<(Read, usize)> {
    let mut gate = Gate::new(strictness, Limits::default());
    let (mut at, mut found, mut wire) = (0, None, Vec::new());
    loop {
        let unread = stream.get(at..)?;
        match gate.step(unread) {
            Step::Head { head, consumed } => {
                at += consumed;
                found = Some((by_head(&head), head.body()));
            }
            Step::Body(count) => {
                wire.extend_from_slice(unread.get(..count)?);
                at += count;
            }
            Step::RequestComplete => {
                let (mut read, kind) = found?;
                let chunked = kind == imds_guard::request::BodyKind::Chunked;
                read.body = Some(if chunked { unframed(&wire)? } else { wire });
                return Some((read, at));
            }
            Step::NeedMore | Step::Hold | Step::Refused(_) => return None,
        }
    }
}

/// A chunked body's data; the gate has seen that it is well formed.
fn unframed(mut wire: &[u8]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let end = wire.windows(2).position(|pair| pair == b"\r\n")?;
        let line = std::str::from_utf8(wire.get(..end)?).ok()?;
        let size = usize::from_str_radix(line.split(';').next()?, 16).ok()?;
        if size == 0 {
            return Some(data);
        }
        data.extend_from_slice(wire.get(end + 2..end + 2 + size)?);
        wire = wire.get(end + 2 + size + 2..)?;
    }
}

/// What hyper's server makes of the bytes: the requests that its service sees.
async fn by_hyper(stream: Vec<u8>) -> Vec<Read> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let seen = Rc::clone(&seen);
        async move {
            let (parts, body) = request.into_parts();
            let headers = parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
            let (method, target) = (parts.method.to_string(), parts.uri.to_string());
            let headers = sorted(headers);
            let body = body.collect().await.ok().map(|body| body.to_bytes().to_vec());
            seen.borrow_mut().push(Read { method, target, headers, body });
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let feed = async {
        // The server may close before it has read everything.
        drop(client.write_all(&stream).await);
        drop(client.shutdown().await);
    };
    let serve = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(server), service);
    let (result, ()) = tokio::join!(serve, feed);
    drop(result);
    drop(client);
    seen.take()
}

fn hyper(stream: &[u8]) -> Vec<Read> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.map(|runtime| runtime.block_on(by_hyper(stream.to_vec()))).unwrap_or_default()
}

const STREAMS: &[&str] = &[
    "GET /latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\nAccept: */*\r\naccept: x\r\n\r\n",
    "\r\nHEAD / HTTP/1.0\r\n\r\n",
    "POST /a?b=c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "POST //a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "PATCH /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\nz\r\n0\r\nX-T: 1\r\n\r\n",
    "DELETE http://a/b HTTP/1.1\r\nHost: \t a \t\r\nEmpty:\r\nBlank: \t \r\nObs: \u{e9}\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n",
    "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
];

const SPICE: &[&str] = &[
    "\r",
    "\n",
    "\r\n",
    " ",
    "\t",
    ":",
    ";",
    ",",
    "\0",
    "\u{e9}",
    "0",
    "5",
    "-",
    "+",
    "#",
    "?",
    "%",
    "\\",
    "\"",
    "[",
    "{",
    "HTTP/1.0",
    "chunked",
    "Content-Length: 3\r\n",
    "Transfer-Encoding: chunked\r\n",
    "x",
    "Host: b\r\n",
    "0\r\n\r\n",
    "1\r\nx\r\n",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn hyper_reads_what_passes_alike(
        text in prop::sample::select(STREAMS),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..3_usize, prop::sample::select(SPICE)), 0..3),
        audit in any::<bool>(),
    ) {
        let mut stream = text.as_bytes().to_vec();
        for (place, removed, word) in changes {
            let start = place.index(stream.len() + 1);
            let end = (start + removed).min(stream.len());
            drop(stream.splice(start..end, word.bytes()));
        }
        let strictness = if audit { Strictness::Audit } else { Strictness::Enforce };
        if let Some((read, length)) = by_gate(&stream, strictness) {
            prop_assert_eq!(hyper(&stream[..length]), [read], "{:?}", String::from_utf8_lossy(&stream));
        }
    }
}

#[test]
fn hyper_reads_the_plain_streams_alike() {
    for text in STREAMS {
        let (read, length) = by_gate(text.as_bytes(), Strictness::Audit).expect("it passes");
        assert_eq!(length, text.len());
        assert_eq!(hyper(text.as_bytes()), [read], "{text}");
    }
}
