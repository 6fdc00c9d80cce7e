//! What a generous server might read in a request: every combination of the leniencies that servers are known for.
//!
//! Written without a look at the guard's own reading, so that the two can disagree.

use std::collections::VecDeque;

use super::secrets;

/// One thing that some servers do with a request target before they look anything up.
struct Leniency {
    name: &'static str,
    read: fn(&[u8]) -> Vec<u8>,
}

const LENIENCIES: &[Leniency] = &[
    Leniency { name: "decodes", read: decode },
    Leniency { name: "decodes %u", read: decode_u },
    Leniency { name: "decodes overlong UTF-8", read: decode_overlong },
    Leniency { name: "folds Unicode", read: fold_unicode },
    Leniency { name: "backslash is slash", read: backslash },
    Leniency { name: "strips ;parameters", read: strip_parameters },
    Leniency { name: "strips ;parameters to the end", read: |target| cut(target, |byte| byte == b';') },
    Leniency { name: "cuts at #", read: |target| cut(target, |byte| byte == b'#') },
    Leniency { name: "ignores #", read: |target| drop_bytes(target, |byte| byte == b'#') },
    Leniency { name: "cuts at controls", read: |target| cut(target, |byte| byte <= b' ' || byte == 0x7f) },
    Leniency {
        name: "ignores controls",
        read: |target| drop_bytes(target, |byte| byte < b' ' || byte == 0x7f),
    },
    Leniency { name: "trims names", read: trim_names },
    Leniency { name: "three dots climb", read: three_dots },
    Leniency { name: "drops the extension", read: drop_extension },
    Leniency { name: "takes the absolute form", read: absolute },
    Leniency { name: "takes // for an authority", read: network_path },
    Leniency { name: "? belongs to the path", read: question_in_path },
    Leniency { name: "plus is space", read: |target| replace(target, b'+', b' ') },
];

/// More readings than this differ in nothing that matters.
const ENOUGH: usize = 1500;

/// The leniencies by which the request is one for a secret; `None` if no combination of them makes it one.
pub fn leak(head: &[u8]) -> Option<String> {
    let mut seen: Vec<Vec<u8>> = Vec::new();
    let mut waiting: VecDeque<(Vec<u8>, String)> = targets(head).into();
    while let Some((target, how)) = waiting.pop_front() {
        if seen.len() > ENOUGH || seen.contains(&target) {
            continue;
        }
        if secrets::asked_by(&target, head) {
            return Some(how);
        }
        for leniency in LENIENCIES {
            let other = (leniency.read)(&target);
            if other != target && !seen.contains(&other) {
                waiting.push_back((other, format!("{how}, {}", leniency.name)));
            }
        }
        seen.push(target);
    }
    None
}

/// Headers that replace the target for some servers, with punctuation folded.
const OVERRIDES: &[&str] = &[
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
    "x-rewrite-uri",
    "x-override-url",
    "x-original-path",
    "x-forwarded-uri",
    "x-forwarded-path",
    "x-forwarded-url",
    "x-accel-redirect",
    "x-sendfile",
    "x-envoy-original-path",
    "request-uri",
    "x-request-uri",
    "x-request-url",
    "x-url",
    "x-uri",
    "x-path",
    "x-proxy-url",
    "proxy-url",
    "base-url",
    "url",
    "uri",
    "x-replaced-path",
    "x-http-destinationurl",
    "x-http-path-override",
    "destination",
    "x-override-uri",
    "x-override-path",
    "x-original-request-uri",
    "content-location",
    "location",
];

/// The targets that a request could be about, each with how.
fn targets(head: &[u8]) -> Vec<(Vec<u8>, String)> {
    let lines: Vec<&[u8]> =
        head.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|line| !line.is_empty()).collect();
    let mut found = Vec::new();
    let line = lines.first().copied().unwrap_or_default();
    let mut words =
        line.split(|byte| byte.is_ascii_whitespace() || *byte == 0x0b).filter(|word| !word.is_empty());
    let first = words.next().unwrap_or_default();
    // HTTP/0.9 with no method at all is too much even here.
    let target = words.next().unwrap_or(first).to_vec();
    for (name, value) in headers(head) {
        if OVERRIDES.contains(&name.as_str()) {
            found.push((value.clone(), format!("honours {name}")));
        }
        if name == "host"
            && let Some(slash) = value.iter().position(|byte| matches!(byte, b'/' | b'?' | b'\\'))
        {
            found.push((value[slash..].to_vec(), "joins Host and target".to_owned()));
            found.push(([&value[slash..], &target].concat(), "joins Host and target".to_owned()));
        }
        if name == "x-forwarded-prefix" {
            found.push(([&value[..], &target].concat(), "honours x-forwarded-prefix".to_owned()));
        }
    }
    found.insert(0, (target, "as it is".to_owned()));
    found
}

/// The headers of a head, names in lower case with every punctuation mark a hyphen; a folded line belongs to the one
/// before, and white space before a colon to nobody.
pub fn headers(head: &[u8]) -> Vec<(String, Vec<u8>)> {
    let lines = head.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|line| !line.is_empty()).skip(1);
    let mut headers: Vec<(String, Vec<u8>)> = Vec::new();
    for line in lines {
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            if let Some((_, value)) = headers.last_mut() {
                value.extend_from_slice(line.trim_ascii());
            }
            continue;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name: String = line[..colon]
            .trim_ascii()
            .iter()
            .map(
                |byte| if byte.is_ascii_alphanumeric() { char::from(byte.to_ascii_lowercase()) } else { '-' },
            )
            .collect();
        headers.push((name, line[colon + 1..].trim_ascii().to_vec()));
    }
    headers
}

/// One layer of percent-encoding; what is malformed stays.
pub fn decode(target: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < target.len() {
        let hex = target.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if target[at] == b'%' => {
                decoded.push(byte);
                at += 3;
            }
            _ => {
                decoded.push(target[at]);
                at += 1;
            }
        }
    }
    decoded
}

fn decode_u(target: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < target.len() {
        let rest = &target[at..];
        let hex = rest.get(2..6).and_then(|hex| std::str::from_utf8(hex).ok());
        let code = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
        match code {
            Some(code) if rest.starts_with(b"%u") || rest.starts_with(b"%U") => {
                decoded.extend(code.to_string().bytes());
                at += 6;
            }
            _ => {
                decoded.push(target[at]);
                at += 1;
            }
        }
    }
    decoded
}

/// Two and three bytes for what one would say.
fn decode_overlong(target: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < target.len() {
        match target[at..] {
            [first @ (0xc0 | 0xc1), second @ 0x80..=0xbf, ..] => {
                decoded.push((first & 1) << 6 | (second & 0x3f));
                at += 2;
            }
            [0xe0, second @ (0x80 | 0x81), third @ 0x80..=0xbf, ..] => {
                decoded.push((second & 1) << 6 | (third & 0x3f));
                at += 3;
            }
            [byte, ..] => {
                decoded.push(byte);
                at += 1;
            }
            [] => break,
        }
    }
    decoded
}

/// What compatibility normalisation and case folding make of letters that look like ASCII ones.
fn fold_unicode(target: &[u8]) -> Vec<u8> {
    let folded: String = String::from_utf8_lossy(target)
        .chars()
        .flat_map(|one| {
            let plain = match one {
                '\u{ff01}'..='\u{ff5e}' => u8::try_from(u32::from(one) - 0xfee0).ok().map(char::from),
                '\u{212a}' => Some('k'),
                '\u{17f}' => Some('s'),
                '\u{2024}' | '\u{3002}' | '\u{ff61}' => Some('.'),
                '\u{2044}' | '\u{2215}' => Some('/'),
                _ => None,
            };
            match one {
                '\u{2025}' => vec!['.', '.'],
                // Byte order marks, joiners and soft hyphens are dropped.
                '\u{feff}' | '\u{200b}'..='\u{200d}' | '\u{ad}' => vec![],
                _ => vec![plain.unwrap_or(one)],
            }
        })
        .collect();
    folded.into_bytes()
}

fn backslash(target: &[u8]) -> Vec<u8> {
    replace(target, b'\\', b'/')
}

fn strip_parameters(target: &[u8]) -> Vec<u8> {
    let mut inside = false;
    let kept = target.iter().copied().filter(|byte| {
        inside = match byte {
            b';' => true,
            b'/' | b'?' => false,
            _ => inside,
        };
        !inside
    });
    kept.collect()
}

fn cut(target: &[u8], at: impl Fn(u8) -> bool) -> Vec<u8> {
    target.split(|byte| at(*byte)).next().unwrap_or_default().to_vec()
}

fn drop_bytes(target: &[u8], odd: impl Fn(u8) -> bool) -> Vec<u8> {
    target.iter().copied().filter(|byte| !odd(*byte)).collect()
}

fn trim_names(target: &[u8]) -> Vec<u8> {
    each_segment(target, |segment| {
        let spaceless = segment.trim_ascii();
        let name = match spaceless.iter().rposition(|byte| !matches!(byte, b'.' | b' ')) {
            Some(last) => &spaceless[..=last],
            None => spaceless,
        };
        name.to_vec()
    })
}

fn three_dots(target: &[u8]) -> Vec<u8> {
    each_segment(target, |segment| {
        let dots = segment.len() > 2 && segment.iter().all(|byte| *byte == b'.');
        if dots { b"..".to_vec() } else { segment.to_vec() }
    })
}

/// Some frameworks serve `/thing.json` from where `/thing` is.
fn drop_extension(target: &[u8]) -> Vec<u8> {
    let (path, query) = split_query(target);
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    match path[start..].iter().rposition(|byte| *byte == b'.') {
        Some(dot) if dot > 0 => join_query(&path[..start + dot], query),
        _ => target.to_vec(),
    }
}

fn each_segment(target: &[u8], change: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let (path, query) = split_query(target);
    let segments: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').map(change).collect();
    join_query(&segments.join(&b'/'), query)
}

fn absolute(target: &[u8]) -> Vec<u8> {
    match target.windows(3).position(|window| window == b"://") {
        Some(at) if !target[..at].contains(&b'/') => after_authority(&target[at + 3..]),
        _ => target.to_vec(),
    }
}

fn network_path(target: &[u8]) -> Vec<u8> {
    target.strip_prefix(b"//").map_or_else(|| target.to_vec(), after_authority)
}

fn after_authority(rest: &[u8]) -> Vec<u8> {
    match rest.iter().position(|byte| matches!(byte, b'/' | b'?')) {
        Some(end) => rest[end..].to_vec(),
        None => b"/".to_vec(),
    }
}

/// A server that routes by the whole target, where a later `..` removes a name with a question mark in it.
fn question_in_path(target: &[u8]) -> Vec<u8> {
    replace(target, b'?', 1)
}

fn replace(target: &[u8], from: u8, to: u8) -> Vec<u8> {
    target.iter().map(|byte| if *byte == from { to } else { *byte }).collect()
}

fn split_query(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match target.iter().position(|byte| *byte == b'?') {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    }
}

fn join_query(path: &[u8], query: Option<&[u8]>) -> Vec<u8> {
    let mut joined = path.to_vec();
    if let Some(query) = query {
        joined.push(b'?');
        joined.extend_from_slice(query);
    }
    joined
}

/// A path's names in lower case: both ways in which servers resolve `..` where there are empty segments.
pub fn paths(target: &[u8]) -> [Vec<String>; 2] {
    let (path, _) = split_query(target);
    let resolve = |keep_empty: bool| {
        let mut names: Vec<String> = Vec::new();
        for segment in path.split(|byte| *byte == b'/') {
            match segment {
                b"." => {}
                b"" if !keep_empty => {}
                b".." => drop(names.pop()),
                name => names.push(name.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect()),
            }
        }
        names.retain(|name| !name.is_empty());
        names
    };
    [resolve(false), resolve(true)]
}

/// A query's keys and values in lower case, split wherever any server would.
pub fn query(target: &[u8]) -> Vec<(String, String)> {
    let (_, query) = split_query(target);
    let text: String =
        query.unwrap_or_default().iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect();
    let pairs = text.split(['&', ';', '?', ',', '\n']).filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = key.split('[').next().unwrap_or_default();
        (key.trim().to_owned(), value.trim().to_owned())
    });
    pairs.collect()
}
