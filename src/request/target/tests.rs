//! Properties of targets: what is sent is what was judged, whichever way a server reads it.

use proptest::prelude::*;

use super::Target;
use crate::request::{Fault, Limits, RawHead};

fn head(target: &str) -> Result<RawHead, Fault> {
    let text = format!("GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
    RawHead::read(text.as_bytes(), Limits::default())
}

fn read(target: &str) -> Result<Target, Fault> {
    Target::read(&head(target)?)
}

/// Pieces of which tricks are made, in every spelling.
fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "/",
        "/",
        "/",
        "/",
        "//",
        ".",
        "..",
        "...",
        "%2e",
        "%2E%2e",
        ".%2e",
        "a",
        "b",
        "Latest",
        "meta-data",
        "%2D",
        "%41",
        "%40",
        "%20",
        "%25",
        "%252e",
        "%2f",
        "%2F",
        "%5c",
        "\\",
        ";",
        "%3b",
        ";x=1",
        "%00",
        "%0a",
        "%7f",
        "%c3%a9",
        "%c0%ae",
        "%ff",
        "%",
        "%2",
        "%u002e",
        "?",
        "?",
        "%3f",
        "#",
        "%23",
        "&",
        "=",
        "recursive",
        "true",
        "+",
        "[]",
        "%5b",
        "../",
        "/..",
        "%2e%2e%2f",
        "169.254.169.254",
        ":80",
        "@",
        "http://169.254.169.254",
        "*",
        "~",
        "%c2%a0",
        "%e2%80%a4",
        "\"",
        "{",
        "}",
        "^",
        "|",
        "%09",
        "comp",
        "%3d",
        "%26",
    ])
}

fn target() -> impl Strategy<Value = String> {
    let free = || prop::collection::vec(piece(), 0..9).prop_map(|pieces| pieces.concat());
    let rooted = free().prop_map(|text| format!("/{text}"));
    let absolute = free().prop_map(|text| format!("http://169.254.169.254/{text}"));
    prop_oneof![1 => free(), 6 => rooted, 1 => absolute, 1 => "[ -~]{0,40}"]
}

/// Ways in which servers read a path: each gives the names it would look up.
mod servers {
    fn hex(text: &str) -> String {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let pair = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
            match pair.and_then(|two| u8::from_str_radix(two, 16).ok()) {
                Some(byte) if *first == b'%' => {
                    bytes.push(byte);
                    rest = &after[2..];
                }
                _ => {
                    bytes.push(*first);
                    rest = after;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn walk(text: &str) -> Vec<String> {
        let mut names: Vec<&str> = Vec::new();
        for name in text.split('/') {
            match name {
                "" | "." => {}
                ".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        names.iter().map(|name| name.to_ascii_lowercase()).collect()
    }

    pub(super) fn decode_then_resolve(path: &str) -> Vec<String> {
        walk(&hex(path))
    }

    pub(super) fn resolve_then_decode(path: &str) -> Vec<String> {
        walk(path).iter().map(|name| hex(name).to_ascii_lowercase()).collect()
    }

    pub(super) fn decode_twice(path: &str) -> Vec<String> {
        walk(&hex(&hex(path)))
    }

    pub(super) fn backslashes_are_slashes(path: &str) -> Vec<String> {
        walk(&hex(path).replace('\\', "/"))
    }

    pub(super) fn strip_parameters(path: &str) -> Vec<String> {
        let decoded = hex(path);
        let names: Vec<&str> = decoded.split('/').map(|name| name.split(';').next().unwrap_or("")).collect();
        walk(&names.join("/"))
    }

    fn trimmed(name: &str) -> &str {
        if name == "." || name == ".." { name } else { name.trim_end_matches([' ', '.']) }
    }

    pub(super) fn trim_like_windows(path: &str) -> Vec<String> {
        let decoded = hex(path);
        let names: Vec<&str> = decoded.split('/').map(trimmed).collect();
        walk(&names.join("/"))
    }

    pub(super) fn end_at_nul_or_fragment(path: &str) -> Vec<String> {
        let decoded = hex(path);
        walk(decoded.split(['\0', '#', '?', '\n', '\r']).next().unwrap_or(""))
    }

    /// RFC 3986, 5.2.4 to the letter: a dot-dot removes whatever segment is before it, even an empty one.
    pub(super) fn resolve_by_rfc(path: &str) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in path.split('/').skip(1) {
            match hex(name).as_str() {
                "." => {}
                ".." => drop(names.pop()),
                name => names.push(name.to_ascii_lowercase()),
            }
        }
        names.retain(|name| !name.is_empty());
        names
    }

    /// The place of `resolve_then_decode`.
    pub(super) const LATE: usize = 1;

    pub(super) const ALL: &[fn(&str) -> Vec<String>] = &[
        decode_then_resolve,
        resolve_then_decode,
        decode_twice,
        backslashes_are_slashes,
        strip_parameters,
        trim_like_windows,
        end_at_nul_or_fragment,
        resolve_by_rfc,
    ];
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Parsing what is sent gives the same target: enforcing twice changes nothing.
    #[test]
    fn what_is_sent_reads_as_what_was_judged(text in target()) {
        if let Ok(target) = read(&text) {
            let again = read(target.sent()).expect("what is sent has one meaning");
            prop_assert_eq!(target.path(), again.path());
            prop_assert_eq!(target.query(), again.query());
            prop_assert_eq!(target.sent(), again.sent());
            prop_assert!(target.sent().starts_with('/'));
        }
    }

    /// Servers that decode early, late, twice, or trim, all find the names that were judged.
    #[test]
    fn every_server_reads_what_is_sent_alike(text in target()) {
        if let Ok(target) = read(&text) {
            let sent = target.sent();
            let path = sent.split('?').next().unwrap_or(sent);
            for (number, server) in servers::ALL.iter().enumerate() {
                prop_assert_eq!(server(path), target.path().segments(), "server {} reads {}", number, sent);
            }
        }
    }

    /// And so they do for the caller's own spelling: audit sends that, and what it records must be what was
    /// asked. Only a server that resolves dot segments before it decodes keeps an encoded one as a name.
    #[test]
    fn every_server_reads_what_came_alike(text in target()) {
        if let (Ok(target), true) = (read(&text), text.starts_with('/')) {
            let path = text.split('?').next().unwrap_or(&text);
            for (number, server) in servers::ALL.iter().enumerate().filter(|(number, _)| *number != servers::LATE) {
                prop_assert_eq!(server(path), target.path().segments(), "server {} reads {}", number, text);
            }
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,60}") {
        drop(read(&text));
        drop(crate::request::Path::read(&text));
        drop(crate::request::Query::read(&text));
        drop(crate::request::Host::read(text.as_bytes()));
    }

    /// A key is seen however it is encoded and wherever it stands.
    #[test]
    fn a_key_cannot_hide(
        before in prop::sample::select(vec!["", "a=1&", "a;", "a=1;", "&&", "a?", "x=y?", "=&", "%20"]),
        after in prop::sample::select(vec!["", "=true", "=", "[]=1", "[a][b]", "%5b%5d=1", "&b", ";b", "?", "+=1", "%20"]),
        upper in any::<u16>(),
        encoded in any::<u16>(),
    ) {
        let key: String = "recursive".bytes().enumerate().map(|(index, byte)| {
            let byte = if upper >> index & 1 == 1 { byte.to_ascii_uppercase() } else { byte };
            if encoded >> index & 1 == 1 { format!("%{byte:02x}") } else { char::from(byte).to_string() }
        }).collect();
        let target = read(&format!("/computeMetadata/v1/?{before}{key}{after}")).expect("one meaning");
        prop_assert!(target.query().has("recursive"), "{:?}", target.query().pairs());
    }
}

#[test]
fn parts_are_told_apart() {
    let target = read("/Latest/Meta-Data/?Recursive&alt=json&alt=text").unwrap();
    assert_eq!(target.path().segments(), ["latest", "meta-data"]);
    assert_eq!(target.path().as_str(), "/Latest/Meta-Data");
    assert!(target.path().has_trailing_slash());
    assert_eq!(target.sent(), "/Latest/Meta-Data/?Recursive&alt=json&alt=text");
    assert_eq!(target.query().values("recursive").collect::<Vec<_>>(), [""]);
    assert_eq!(target.query().values("alt").collect::<Vec<_>>(), ["json", "text"]);
    assert!(!target.query().has("format"));
    assert!(!read("/x").unwrap().path().has_trailing_slash());
    assert!(read("/x").unwrap().query().is_empty());
    assert_eq!(target.method().as_str(), "GET");
    assert_eq!(target.head().target(), b"/Latest/Meta-Data/?Recursive&alt=json&alt=text");
}

#[test]
fn names_end_where_dns_ends_them() {
    let host = |length: usize| crate::request::Host::read("a".repeat(length).as_bytes());
    assert!(host(253).is_ok());
    assert_eq!(host(254), Err(Fault::HostMalformed));
}

/// Paths and queries hold secrets (a task's credential path is one), and debug output ends up in logs.
#[test]
fn debug_output_holds_no_secret() {
    let target = read("/v2/credentials/5EC2E7?x=5EC2E8").unwrap();
    assert!(!format!("{target:?}").contains("5EC2E"));
}

#[test]
fn only_old_requests_may_lack_a_host() {
    let read = |text: &str| Target::read(&RawHead::read(text.as_bytes(), Limits::default()).unwrap());
    assert!(read("GET / HTTP/1.0\r\n\r\n").unwrap().host().is_none());
    assert_eq!(read("GET / HTTP/1.1\r\n\r\n").unwrap_err(), Fault::HostMissing);
    assert_eq!(read("GET http://a/ HTTP/1.1\r\n\r\n").unwrap_err(), Fault::HostMissing);
    assert_eq!(read("GET / HTTP/1.1\r\nHost:\r\n\r\n").unwrap_err(), Fault::HostEmpty);
    assert_eq!(read("GET / HTTP/1.0\r\nHost:\r\n\r\n").unwrap_err(), Fault::HostEmpty);
    assert_eq!(read("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n").unwrap_err(), Fault::HostRepeated);
}
