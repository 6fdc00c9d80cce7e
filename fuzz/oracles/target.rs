//! Targets: what is sent reads as what was judged, and servers of several kinds read it alike.

use imds_guard::cloud::{Asked, Catalogue, Class, Endpoint, Selection};
use imds_guard::request::{Limits, RawHead, Target};

/// Any bytes as a request target.
pub fn check(target: &[u8]) {
    let Ok(judged) = read(target) else { return };
    let sent = judged.sent();
    let again = read(sent.as_bytes()).expect("what is sent has one meaning");
    assert_eq!(judged.path(), again.path());
    assert_eq!(judged.query(), again.query());
    assert_eq!(sent, again.sent());
    let path = sent.split('?').next().unwrap_or(sent);
    assert_eq!(decode_then_split(path), judged.path().segments(), "a server that decodes first");
    assert_eq!(split_then_decode(path), judged.path().segments(), "a server that splits first");
    assert_eq!(decode_then_split(&decode(path)), judged.path().segments(), "a server that decodes twice");
    for (name, value) in naive_query(sent) {
        assert!(
            judged.query().values(&name).any(|known| known == value),
            "{name}={value} is not seen in {sent}"
        );
    }
    classify(target);
}

fn head(target: &[u8]) -> Vec<u8> {
    [b"GET ", target, b" HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"].concat()
}

fn read(target: &[u8]) -> Result<Target, imds_guard::request::Fault> {
    Target::read(&RawHead::read(&head(target), Limits::default())?)
}

/// Whatever it is, it touches something, and a path with other letters than ASCII's is never only what it seems.
fn classify(target: &[u8]) {
    static ALL: std::sync::OnceLock<Catalogue> = std::sync::OnceLock::new();
    let catalogue = ALL.get_or_init(|| Catalogue::choose(&Selection::All, &[""; 0]).expect("all clouds"));
    let head = RawHead::read(&head(target), Limits::default()).expect("it was read before");
    let asked = Asked::read(catalogue, Endpoint::new(Endpoint::SHARED, 80), head);
    assert!(!asked.touched.classes.is_empty());
    if let Ok(target) = &asked.target
        && !target.path().is_ascii()
    {
        assert!(asked.touched.classes.contains(Class::Unknown));
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.filter(|_| *first == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn resolve<'a>(segments: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for segment in segments {
        match segment {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name.to_ascii_lowercase()),
        }
    }
    names
}

fn decode_then_split(path: &str) -> Vec<String> {
    resolve(decode(path).split('/'))
}

fn split_then_decode(path: &str) -> Vec<String> {
    let decoded: Vec<String> = path.split('/').map(decode).collect();
    resolve(decoded.iter().map(String::as_str))
}

/// As forms are read: `&` and `=`, plus for a space, decoded once.
fn naive_query(sent: &str) -> Vec<(String, String)> {
    let query = sent.split_once('?').map_or("", |(_, query)| query);
    let plain = |text: &str| decode(&text.replace('+', " "));
    let pairs = query.split(['&', ';']).filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = plain(name);
        (name.split('[').next().unwrap_or_default().trim().to_ascii_lowercase(), plain(value))
    });
    pairs.collect()
}
