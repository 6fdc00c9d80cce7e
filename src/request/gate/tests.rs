//! Properties of the gate: no split of a stream changes what is seen, and what passes has one meaning.

use proptest::prelude::*;

use super::{Gate, Limits, Step, Strictness};
use crate::request::{BodyKind, Fault, RawHead};

mod grammar;

/// What a connection was seen to carry.
#[derive(Debug, PartialEq, Eq, Clone)]
enum Seen {
    Head(Vec<u8>),
    Body(Vec<u8>),
    Complete,
    Refused(Fault),
}

/// Feeds a stream in portions as a proxy would, each request answered as soon as it is complete.
fn run(
    stream: &[u8],
    strictness: Strictness,
    limits: Limits,
    mut portion: impl FnMut() -> usize,
) -> Vec<Seen> {
    let mut gate = Gate::new(strictness, limits);
    let (mut read, mut arrived) = (0, 0);
    let mut seen: Vec<Seen> = Vec::new();
    loop {
        match gate.step(&stream[read..arrived]) {
            Step::NeedMore if arrived == stream.len() => return seen,
            Step::NeedMore => arrived = (arrived + portion().max(1)).min(stream.len()),
            Step::Head { head, consumed } => {
                assert!(stream[read..read + consumed].ends_with(head.bytes()));
                read += consumed;
                seen.push(Seen::Head(head.bytes().to_vec()));
            }
            Step::Body(count) => {
                assert!(count > 0 && read + count <= arrived, "the gate takes only what is there");
                let bytes = &stream[read..read + count];
                if let Some(Seen::Body(body)) = seen.last_mut() {
                    body.extend_from_slice(bytes);
                } else {
                    seen.push(Seen::Body(bytes.to_vec()));
                }
                read += count;
            }
            Step::RequestComplete => seen.push(Seen::Complete),
            Step::Hold => gate.response_done(),
            Step::Refused(fault) => {
                assert!(
                    matches!(gate.step(b"GET / HTTP/1.1\r\n\r\n"), Step::Refused(again) if again == fault)
                );
                seen.push(Seen::Refused(fault));
                return seen;
            }
        }
    }
}

fn whole(stream: &[u8], strictness: Strictness) -> Vec<Seen> {
    run(stream, strictness, Limits::default(), || usize::MAX / 2)
}

const HEADS: &[&str] = &[
    "GET /latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\nAccept: */*\r\n\r\n",
    "\r\nHEAD / HTTP/1.0\r\n\r\n",
    "PUT /latest/api/token HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n",
    "POST /a?b=c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "PATCH /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\nz\r\n0\r\nX-T: 1\r\n\r\n",
    "DELETE http://a/b HTTP/1.1\r\nHost: \t a \t\r\nEmpty:\r\nBlank: \t \r\nObs: \u{e9}\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n",
];

/// Bytes and words at which parsers differ.
const SPICE: &[&str] = &[
    "\r",
    "\n",
    "\r\n",
    "\r\n\r\n",
    " ",
    "\t",
    ":",
    ";",
    ",",
    "\0",
    "\u{b}",
    "\u{7f}",
    "\u{e9}",
    "0",
    "5",
    "-",
    "+",
    "_",
    "#",
    "?",
    "%",
    "\\",
    "\"",
    "<",
    "{",
    "@",
    "[",
    "HTTP/1.1",
    "HTTP/0.9",
    "chunked",
    "Transfer-Encoding: chunked\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 3, 3\r\n",
    "Transfer_Encoding: chunked\r\n",
    "Upgrade: h2c\r\n",
    "x",
    "Host: b\r\n",
    " folded\r\n",
    "0\r\n\r\n",
    "1\r\nx\r\n",
    "PRI * HTTP/2.0\r\n\r\n",
    "get",
    "CONNECT a:1",
];

/// A stream of requests with a few changes anywhere.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let heads = prop::collection::vec(prop::sample::select(HEADS), 1..4)
        .prop_map(|heads| heads.concat().into_bytes());
    let change = (any::<prop::sample::Index>(), 0..3_usize, prop::sample::select(SPICE));
    (heads, prop::collection::vec(change, 0..3)).prop_map(|(mut bytes, changes)| {
        for (place, removed, word) in changes {
            let start = place.index(bytes.len());
            let end = (start + removed).min(bytes.len());
            drop(bytes.splice(start..end, word.bytes()));
            if bytes.is_empty() {
                bytes.push(b'G');
            }
        }
        bytes
    })
}

fn strictness() -> impl Strategy<Value = Strictness> {
    prop::sample::select(vec![Strictness::Enforce, Strictness::Audit])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_split_changes_what_is_seen(
        stream in stream(), strictness in strictness(), portions in prop::collection::vec(1..60_usize, 1..9),
    ) {
        let limits = Limits { head_bytes: 220, headers: 4 };
        let expected = run(&stream, strictness, limits, || usize::MAX / 2);
        prop_assert_eq!(&run(&stream, strictness, limits, || 1), &expected);
        let mut portions = portions.iter().copied().cycle();
        prop_assert_eq!(&run(&stream, strictness, limits, || portions.next().unwrap()), &expected);
    }

    #[test]
    fn no_bytes_panic(stream in prop::collection::vec(any::<u8>(), 0..300), strictness in strictness()) {
        drop(run(&stream, strictness, Limits::default(), || 7));
    }

    /// Whatever the gate passes, the HTTP library's parser accepts, ends at the same byte and reads alike.
    #[test]
    fn httparse_reads_what_passes_alike(stream in stream()) {
        if let Step::Head { head, consumed } = Gate::new(Strictness::Audit, Limits::default()).step(&stream) {
            same_as_httparse(&stream, &head, consumed);
        }
    }

    /// A chunked body ends where the grammar of RFC 9112 says, and passes only if it is written plainly.
    #[test]
    fn chunked_bodies_follow_the_grammar(
        parts in prop::collection::vec(prop::sample::select(vec![
            "0", "1", "a", "F", "00", "000000000000000", "\r\n", "\r\n", "\r\n", "\n", "\r", "x", "xy", ";", ";e=1", " ", "0x",
            "-1", "+1", "0\r\n\r\n", "1\r\nx\r\n", "2\r\n\r\n\r\n", "T: v\r\n", "T : v\r\n", ": v\r\n", "T: \0\r\n", " f\r\n",
        ]), 0..12),
    ) {
        let body = parts.concat().into_bytes();
        for strictness in [Strictness::Enforce, Strictness::Audit] {
            let mut stream = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            stream.extend_from_slice(&body);
            let seen = whole(&stream, strictness);
            let complete = seen.get(2) == Some(&Seen::Complete);
            let length = match seen.get(1) {
                Some(Seen::Body(bytes)) if complete => Some(bytes.len()),
                _ => None,
            };
            prop_assert_eq!(length, grammar::body(&body, strictness), "{:?}", String::from_utf8_lossy(&body));
        }
    }
}

fn same_as_httparse(stream: &[u8], head: &RawHead, consumed: usize) {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut headers);
    let status = request.parse(stream).expect("httparse accepts what passes");
    assert_eq!(status, httparse::Status::Complete(consumed));
    assert_eq!(request.method, Some(head.method().as_str()));
    assert_eq!(request.path.map(str::as_bytes), Some(head.target()));
    let version = u8::from(head.version() == crate::request::Version::Http11);
    assert_eq!(request.version, Some(version));
    let theirs: Vec<_> = request.headers.iter().map(|header| (header.name, header.value)).collect();
    let ours: Vec<_> = head.headers().map(|header| (header.name, header.value)).collect();
    assert_eq!(ours, theirs);
    http::Uri::try_from(head.target()).expect("the library reads the target");
    for header in head.headers() {
        http::HeaderName::from_bytes(header.name.as_bytes()).expect("the library takes the name");
        http::HeaderValue::from_bytes(header.value).expect("the library takes the value");
    }
}

#[test]
fn the_plain_streams_pass() {
    for text in HEADS {
        let seen = whole(text.as_bytes(), Strictness::Audit);
        assert_eq!(seen.last(), Some(&Seen::Complete), "{text}");
        let Step::Head { head, consumed } =
            Gate::new(Strictness::Audit, Limits::default()).step(text.as_bytes())
        else {
            panic!("{text}")
        };
        same_as_httparse(text.as_bytes(), &head, consumed);
    }
}

#[test]
fn the_next_request_waits_for_the_response() {
    let stream = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut gate = Gate::new(Strictness::Enforce, Limits::default());
    let Step::Head { head, consumed } = gate.step(stream) else { panic!("a head") };
    assert_eq!((head.target(), head.body()), (&b"/a"[..], BodyKind::None));
    let rest = &stream[consumed..];
    assert!(matches!(gate.step(rest), Step::RequestComplete));
    for _ in 0..3 {
        assert!(matches!(gate.step(rest), Step::Hold));
    }
    gate.response_done();
    let Step::Head { head, .. } = gate.step(rest) else { panic!("the second head") };
    assert_eq!(head.target(), b"/b");
}

#[test]
fn an_early_response_frees_the_next_request_only_after_the_body() {
    let stream = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n12";
    let mut gate = Gate::new(Strictness::Enforce, Limits::default());
    let Step::Head { consumed, .. } = gate.step(stream) else { panic!("a head") };
    assert!(matches!(gate.step(&stream[consumed..]), Step::Body(2)));
    gate.response_done();
    assert!(matches!(gate.step(b""), Step::NeedMore));
    assert!(matches!(gate.step(b"34GET /b"), Step::Body(2)));
    assert!(matches!(gate.step(b"GET /b"), Step::RequestComplete));
    assert!(matches!(gate.step(b"GET /b"), Step::NeedMore));
    let Step::Head { .. } = gate.step(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n") else {
        panic!("the second head")
    };
    // That response frees one request, not two.
    assert!(matches!(gate.step(b"GET /c"), Step::RequestComplete));
    assert!(matches!(gate.step(b"GET /c"), Step::Hold));
}

#[test]
fn a_response_without_a_request_frees_nothing() {
    let mut gate = Gate::new(Strictness::Enforce, Limits::default());
    gate.response_done();
    let Step::Head { .. } = gate.step(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") else { panic!("a head") };
    assert!(matches!(gate.step(b""), Step::RequestComplete));
    assert!(matches!(gate.step(b""), Step::Hold));
}

/// The part of a head that has been looked at is not looked at again: else a slow head costs its length
/// squared.
#[test]
fn nothing_is_looked_at_twice() {
    let mut gate = Gate::new(Strictness::Enforce, Limits::default());
    assert!(matches!(gate.step(b"GET / HTTP/1.1\r\nHost: a"), Step::NeedMore));
    assert!(matches!(gate.step(b"\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0b"), Step::NeedMore));
}

#[test]
fn heads_end_at_their_limits() {
    let limits = Limits { head_bytes: 64, headers: 3 };
    let step = |text: &str| Gate::new(Strictness::Audit, limits).step(text.as_bytes());
    let exact = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(64 - 26));
    assert_eq!(exact.len(), 64);
    assert!(matches!(step(&exact), Step::Head { .. }));
    assert!(matches!(step(&format!("\r\n{exact}")), Step::Head { consumed: 66, .. }));
    let longer = exact.replace("Host: ", "Host: a");
    assert!(matches!(step(&longer), Step::Refused(Fault::HeadTooLarge)));
    assert!(matches!(step(&exact[..63]), Step::NeedMore));
    assert!(matches!(step(&longer[..65]), Step::Refused(Fault::HeadTooLarge)));
    assert!(matches!(step("GET / HTTP/1.1\r\na:\r\nb:\r\nc:\r\n\r\n"), Step::Head { .. }));
    assert!(matches!(
        step("GET / HTTP/1.1\r\na:\r\nb:\r\nc:\r\nd:\r\n"),
        Step::Refused(Fault::TooManyHeaders)
    ));
}

/// A client that ends its lines otherwise, or speaks another protocol, never sends the end that the gate looks for:
/// audit must tunnel it at once, not after a time-out.
#[test]
fn what_cannot_become_a_head_is_not_waited_for() {
    let prefixes = [
        " ",
        "\n",
        "\rG",
        "\0",
        "\u{16}\u{3}\u{1}",
        "get",
        "SSH-2.0-Ope",
        "{",
        "\u{e9}",
        "GET /\n",
        "GET /\r\n",
        "GET\r\n",
        "GET /\u{e9}",
        "GET /\t",
        "GET / HTTP/1.1\n",
        "PRI * HTTP/2.0\r\n",
        "CONNECT a:1 HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nHost: a\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "AAAAAAAAAAAAAAAAAAAAAAAAA",
    ];
    for prefix in prefixes {
        let seen = whole(prefix.as_bytes(), Strictness::Audit);
        assert!(matches!(seen[..], [Seen::Refused(_)]), "{prefix:?} {seen:?}");
    }
}

#[test]
fn audit_bounds_what_only_audit_lets_pass() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let last = |body: String| whole(format!("{head}{body}").as_bytes(), Strictness::Audit).pop();
    let extended = |count: usize| format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(count));
    assert_eq!(last(extended(8191)), Some(Seen::Complete));
    assert_eq!(last(extended(8192)), Some(Seen::Refused(Fault::ChunkOverhead)));
    let many = |count: usize| format!("{}0\r\n\r\n", "1;e\r\nx\r\n".repeat(count));
    assert_eq!(last(many(4096)), Some(Seen::Complete));
    assert_eq!(last(many(4097)), Some(Seen::Refused(Fault::ChunkOverhead)));
    let trailers = |count: usize| format!("0\r\n{}\r\n", "a:b\r\n".repeat(count));
    assert_eq!(last(trailers(100)), Some(Seen::Complete));
    assert_eq!(last(trailers(101)), Some(Seen::Refused(Fault::ChunkOverhead)));
    assert_eq!(
        last(format!("0\r\na:{}\r\n\r\n", "b".repeat(9000))),
        Some(Seen::Refused(Fault::ChunkOverhead))
    );
}

#[test]
fn strictness_changes_with_the_next_byte() {
    let mut gate = Gate::new(Strictness::Enforce, Limits::default());
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(matches!(gate.step(head), Step::Head { .. }));
    gate.set_strictness(Strictness::Audit);
    assert!(matches!(gate.step(b"1;e\r\n"), Step::Body(5)));
    gate.set_strictness(Strictness::Enforce);
    assert!(matches!(gate.step(b"x\r\n1;"), Step::Body(4)));
    assert!(matches!(gate.step(b";"), Step::Refused(Fault::ChunkExtension)));
}

/// Debug output ends up in logs, and targets and headers hold secrets.
#[test]
fn debug_output_holds_no_secret() {
    let text = b"GET /v2/credentials/5EC2E7 HTTP/1.1\r\nHost: a\r\nAuthorization: 5EC2E7\r\n\r\n";
    let head = RawHead::read(text, Limits::default()).unwrap();
    assert!(!format!("{head:?}").contains("5EC2E7"));
}

#[test]
fn one_head_and_nothing_else_is_read() {
    let read = |text: &str| RawHead::read(text.as_bytes(), Limits::default()).map(|head| head.bytes().len());
    assert_eq!(read("GET / HTTP/1.0\r\n\r\n"), Ok(18));
    assert_eq!(read("\r\nGET / HTTP/1.0\r\n\r\n"), Ok(18));
    assert_eq!(read("GET / HTTP/1.0\r\n\r\nx"), Err(Fault::HeadIncomplete));
    assert_eq!(read("GET / HTTP/1.0\r\n"), Err(Fault::HeadIncomplete));
    assert_eq!(read("GET / HTTP/1.0\n\n"), Err(Fault::BareLf));
}
