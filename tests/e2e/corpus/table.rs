//! `tests/corpus/*.toml`: requests as data, each with a name and a reason.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde::Deserialize;

/// One file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    /// Headers by the name of who sends them.
    #[serde(default)]
    client: BTreeMap<String, Vec<String>>,
    group: Vec<Group>,
}

/// Requests to one service.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Group {
    /// What the policy says for `cloud`.
    cloud: String,
    /// Where to; the usual address without it.
    #[serde(default = "usual")]
    to: String,
    /// Headers of all of them.
    #[serde(default)]
    headers: Vec<String>,
    case: Vec<Row>,
}

/// One request: a request line with headers, or bytes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Row {
    name: String,
    /// `METHOD TARGET`.
    ask: Option<String>,
    /// Every byte, with `\r`, `\n`, `\t`, `\\` and `\xNN`.
    raw: Option<String>,
    /// Whose headers it has.
    #[serde(rename = "as")]
    client: Option<String>,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    body: String,
    to: Option<String>,
    /// From a source port below 1024.
    #[serde(default)]
    low: bool,
    #[serde(default, rename = "why")]
    _why: String,
}

fn usual() -> String {
    "169.254.169.254:80".to_owned()
}

/// A request, ready to be sent.
#[derive(Debug, Clone)]
pub struct Case {
    /// The file's, the group's and its own name.
    pub name: String,
    /// What the policy says for `cloud`.
    pub cloud: String,
    /// Where to.
    pub to: SocketAddr,
    /// From a source port below 1024.
    pub low: bool,
    /// All bytes.
    pub bytes: Vec<u8>,
}

/// The cases of a file in `tests/corpus`.
pub fn read(name: &str) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file: File = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let File { client: clients, group: groups } = file;
    groups
        .into_iter()
        .flat_map(|Group { cloud, to, headers, case }| {
            let clients = &clients;
            case.into_iter().map(move |row| {
                let to: SocketAddr = row.to.as_deref().unwrap_or(&to).parse().expect("an address and a port");
                let bytes = row.bytes(to, &headers, clients);
                Case {
                    name: format!("{name}: {cloud}: {}", row.name),
                    cloud: cloud.clone(),
                    to,
                    low: row.low,
                    bytes,
                }
            })
        })
        .collect()
}

impl Row {
    fn bytes(&self, to: SocketAddr, common: &[String], clients: &BTreeMap<String, Vec<String>>) -> Vec<u8> {
        if let Some(raw) = &self.raw {
            return unescape(raw);
        }
        let ask = self.ask.as_ref().unwrap_or_else(|| panic!("{}: neither `ask` nor `raw`", self.name));
        let client = self.client.as_ref().map_or(&[][..], |client| {
            clients.get(client).unwrap_or_else(|| panic!("{}: there is no client {client}", self.name))
        });
        let lines: Vec<&String> = client.iter().chain(common).chain(&self.headers).collect();
        request(ask, to, &lines, &self.body)
    }
}

/// A well-formed request of this line; Host and Content-Length are added where they are missing.
pub fn request(ask: &str, to: SocketAddr, headers: &[&String], body: &str) -> Vec<u8> {
    let has = |name: &str| headers.iter().any(|line| line.to_ascii_lowercase().starts_with(name));
    let mut text = unescape(ask);
    text.extend_from_slice(b" HTTP/1.1\r\n");
    if !has("host:") {
        let host = if to.port() == 80 { to.ip().to_string() } else { to.to_string() };
        let host = if to.is_ipv6() && to.port() == 80 { format!("[{host}]") } else { host };
        text.extend_from_slice(format!("Host: {host}\r\n").as_bytes());
    }
    for line in headers {
        text.extend_from_slice(&unescape(line));
        text.extend_from_slice(b"\r\n");
    }
    let body = unescape(body);
    if !body.is_empty() && !has("content-length:") && !has("transfer-encoding:") {
        text.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    text.extend_from_slice(b"\r\n");
    text.extend_from_slice(&body);
    text
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest.next() {
            Some(b'r') => bytes.push(b'\r'),
            Some(b'n') => bytes.push(b'\n'),
            Some(b't') => bytes.push(b'\t'),
            Some(b'\\') => bytes.push(b'\\'),
            Some(b'x') => {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                bytes.push(u8::from_str_radix(&hex, 16).unwrap_or_else(|_| panic!("\\x{hex} in {text}")));
            }
            other => panic!("\\{other:?} in {text}"),
        }
    }
    bytes
}
