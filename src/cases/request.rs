//! A request as somebody describes it: by its request line, by a URL, or by what an audit event kept of it.

use std::net::IpAddr;

use crate::cloud::{Asked, Catalogue, Door, Endpoint};
use crate::request::{Limits, RawHead};

/// As in the shipped policy; a described request that is larger is none that a client sends.
const LIMITS: Limits = Limits { head_bytes: 16_384, headers: 100 };

/// Reads a request line without its version (`GET /latest/user-data`) at an endpoint, with more header lines.
/// Without a Host among them, it names the endpoint's address.
#[must_use]
pub fn ask(catalogue: &Catalogue, endpoint: Endpoint, line: &str, headers: &[String]) -> Asked {
    let names_host = headers.iter().any(|header| header.to_ascii_lowercase().starts_with("host:"));
    let mut head = format!("{line} HTTP/1.1\r\n");
    if !names_host {
        let host = match endpoint.addr {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        head.extend(["Host: ", host.as_str(), "\r\n"]);
    }
    for header in headers {
        head.extend([header.as_str(), "\r\n"]);
    }
    head += "\r\n";
    match RawHead::read(head.as_bytes(), LIMITS) {
        Ok(head) => Asked::read(catalogue, endpoint, head),
        Err(fault) => Asked::unclear(endpoint, None, fault),
    }
}

/// A URL taken apart: where it leads, and what is asked there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// The address and port.
    pub endpoint: Endpoint,
    /// The Host that a client sends; `None` where the URL names none.
    pub host: Option<String>,
    /// Path and query.
    pub target: String,
}

/// Why a URL leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Neither a path nor a URL.
    #[error("`{0}` is neither a path such as /latest/user-data nor an http:// or https:// URL")]
    NotAUrl(String),
    /// A port is a number.
    #[error("`{0}` is no port")]
    Port(String),
    /// No chosen cloud has that name.
    #[error("no cloud of this policy is called `{0}`; give its address")]
    UnknownHost(String),
}

impl Url {
    /// Reads a URL, or just a path, which is then asked at the address that most clouds share. Names are looked up
    /// in the catalogue, never by DNS.
    pub fn read(text: &str, catalogue: &Catalogue) -> Result<Self, UrlError> {
        if text.starts_with('/') {
            let endpoint = Endpoint::new(Endpoint::SHARED, 80);
            return Ok(Self { endpoint, host: None, target: text.to_owned() });
        }
        let (port, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (80, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (443, rest),
            Some(_) | None => return Err(UrlError::NotAUrl(text.to_owned())),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let (host, port) = split_port(authority, port)?;
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let addr = match address.parse::<IpAddr>() {
            Ok(addr) => addr,
            Err(_) => {
                named(address, port, catalogue).ok_or_else(|| UrlError::UnknownHost(address.to_owned()))?
            }
        };
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self { endpoint: Endpoint::new(addr, port), host: Some(authority.to_owned()), target })
    }
}

fn split_port(authority: &str, default: u16) -> Result<(&str, u16), UrlError> {
    let after_address = authority.rfind(']').unwrap_or(0);
    match authority.rfind(':').filter(|colon| *colon > after_address) {
        Some(colon) => {
            let (host, port) = authority.split_at_checked(colon).unwrap_or((authority, ""));
            let port = port.trim_start_matches(':');
            Ok((host, port.parse().map_err(|_| UrlError::Port(port.to_owned()))?))
        }
        None => Ok((authority, default)),
    }
}

/// The address of the cloud of that name, preferably one that serves the port.
fn named(host: &str, port: u16, catalogue: &Catalogue) -> Option<IpAddr> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let cloud = catalogue.clouds().iter().find(|cloud| cloud.hostnames().contains(&host))?;
    let served = cloud.served();
    let at_port = served.iter().find(|one| one.endpoint.port == port);
    let first = at_port.or_else(|| served.iter().find(|one| one.door == Door::Http));
    first.map(|one| one.endpoint.addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Url, UrlError> {
        Url::read(text, Catalogue::builtin())
    }

    #[test]
    fn urls_and_paths_lead_to_endpoints() {
        for (text, endpoint, target) in [
            ("/latest/user-data", "169.254.169.254:80", "/latest/user-data"),
            ("http://169.254.169.254", "169.254.169.254:80", "/"),
            ("http://169.254.169.254?recursive=true", "169.254.169.254:80", "/?recursive=true"),
            ("http://[fd00:ec2::254]/latest", "[fd00:ec2::254]:80", "/latest"),
            ("http://[fd00:ec2::254]:8080/latest", "[fd00:ec2::254]:8080", "/latest"),
            ("HTTP://Metadata.Google.Internal./x", "169.254.169.254:80", "/x"),
            ("https://metadata.google.internal/", "169.254.169.254:443", "/"),
            ("http://168.63.129.16:32526/vmSettings", "168.63.129.16:32526", "/vmSettings"),
        ] {
            let url = read(text).unwrap();
            assert_eq!(
                (url.endpoint.to_string().as_str(), url.target.as_str()),
                (endpoint, target),
                "{text}"
            );
        }
    }

    #[test]
    fn what_leads_nowhere_is_told() {
        for text in
            ["latest", "ftp://169.254.169.254/", "http://169.254.169.254:x/", "http://example.org/", ""]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
