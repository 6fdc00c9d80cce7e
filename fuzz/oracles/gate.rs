//! The gate: no split of a stream changes what is seen, and what passes means the same to httparse and to a reading so
//! naive that it can be believed.

use imds_guard::request::{BodyKind, Fault, Gate, Limits, RawHead, Step, Strictness, Version};

/// What a connection was seen to carry.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Head(Vec<u8>, BodyKind),
    Body(Vec<u8>),
    Complete,
    Refused(Fault),
}

/// Any bytes as a connection's.
pub fn check(stream: &[u8]) {
    for strictness in [Strictness::Enforce, Strictness::Audit] {
        let whole = run(stream, strictness, usize::MAX);
        for portion in [1, 7] {
            assert_eq!(whole, run(stream, strictness, portion), "{strictness:?}, {portion} at a time");
        }
        for (at, seen) in whole.iter().enumerate() {
            let Seen::Head(head, body) = seen else { continue };
            same_as_httparse(head);
            same_as_naive(head, *body);
            if let (BodyKind::Length(length), Some(next)) = (body, whole.get(at + 1)) {
                let came = if let Seen::Body(body) = next { body.len() } else { 0 };
                assert!(u64::try_from(came).unwrap() <= *length, "more body than was announced");
            }
        }
    }
}

fn run(stream: &[u8], strictness: Strictness, portion: usize) -> Vec<Seen> {
    let mut gate = Gate::new(strictness, Limits::default());
    let (mut read, mut arrived) = (0, 0);
    let mut seen: Vec<Seen> = Vec::new();
    loop {
        match gate.step(&stream[read..arrived]) {
            Step::NeedMore if arrived == stream.len() => return seen,
            Step::NeedMore => arrived = arrived.saturating_add(portion).min(stream.len()),
            Step::Head { head, consumed } => {
                assert!(stream[read..read + consumed].ends_with(head.bytes()));
                // A head that was read alone is the same head.
                assert_eq!(RawHead::read(head.bytes(), Limits::default()).as_ref(), Ok(&head));
                read += consumed;
                seen.push(Seen::Head(head.bytes().to_vec(), head.body()));
            }
            Step::Body(count) => {
                assert!(count > 0 && read + count <= arrived, "the gate takes only what is there");
                let bytes = &stream[read..read + count];
                match seen.last_mut() {
                    Some(Seen::Body(body)) => body.extend_from_slice(bytes),
                    _ => seen.push(Seen::Body(bytes.to_vec())),
                }
                read += count;
            }
            Step::RequestComplete => seen.push(Seen::Complete),
            Step::Hold => gate.response_done(),
            Step::Refused(fault) => {
                seen.push(Seen::Refused(fault));
                return seen;
            }
        }
    }
}

fn same_as_httparse(bytes: &[u8]) {
    let head = RawHead::read(bytes, Limits::default()).unwrap();
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut fields);
    let status = request.parse(bytes).expect("httparse reads what passes");
    assert_eq!(status, httparse::Status::Complete(bytes.len()));
    assert_eq!(request.method, Some(head.method().as_str()));
    assert_eq!(request.path.map(str::as_bytes), Some(head.target()));
    assert_eq!(request.version, Some(u8::from(head.version() == Version::Http11)));
    let theirs: Vec<(&str, &[u8])> = request.headers.iter().map(|field| (field.name, field.value)).collect();
    let ours: Vec<(&str, &[u8])> = head.headers().map(|field| (field.name, field.value)).collect();
    assert_eq!(ours, theirs);
}

/// Lines end in CRLF, words in a space, names in a colon; the body is what the one length, or `chunked`, says.
fn same_as_naive(bytes: &[u8], body: BodyKind) {
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    let text = text.strip_suffix("\r\n\r\n").expect("a head ends in an empty line");
    let mut lines = text.split("\r\n");
    let words: Vec<&str> = lines.next().unwrap().split(' ').collect();
    let [method, target, version] = words[..] else { panic!("{words:?}") };
    assert!(
        !method.is_empty() && !target.is_empty() && matches!(version, "HTTP/1.0" | "HTTP/1.1"),
        "{words:?}"
    );
    assert!(target.bytes().all(|byte| byte.is_ascii_graphic()), "{target:?}");
    let fields: Vec<(String, String)> = lines
        .map(|line| {
            let (name, value) = line.split_once(':').expect("a line has a colon");
            assert!(!name.is_empty() && !name.contains([' ', '\t', '\r', '\n', '\0']), "{name:?}");
            assert!(!value.contains(['\r', '\n', '\0']), "{value:?}");
            (name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned())
        })
        .collect();
    let all = |name: &str| {
        fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value).collect::<Vec<_>>()
    };
    let naive = match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        ([], []) => BodyKind::None,
        ([length], []) => BodyKind::Length(length.parse().expect("a length is a number")),
        ([], [encoding]) if encoding.eq_ignore_ascii_case("chunked") => BodyKind::Chunked,
        other => panic!("two framings: {other:?}"),
    };
    assert_eq!(body, naive);
}
