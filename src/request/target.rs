//! What a request asks for, in one normal form.

use super::fault::Fault;
use super::head::{Method, RawHead, Version};
pub use super::host::Host;
use super::path::Path;
use super::percent::encode;
use super::query::Query;

/// The one meaning of a request's method, target and Host.
#[derive(Clone)]
pub struct Target {
    head: RawHead,
    path: Path,
    query: Query,
    host: Option<Host>,
    sent: String,
}

impl Target {
    /// Reads the target of a head; a fault if two servers could disagree on what is meant.
    pub fn read(head: &RawHead) -> Result<Self, Fault> {
        let raw = std::str::from_utf8(head.target()).map_err(|_| Fault::TargetUnacceptable)?;
        let form = Form::read(raw)?;
        let host = read_host(head, form.authority)?;
        let (path, query) =
            form.rest.split_once('?').map_or((form.rest, None), |(path, query)| (path, Some(query)));
        // An absolute target may have no path at all.
        let (path, mut sent) = Path::read(if path.is_empty() { "/" } else { path })?;
        if let Some(query) = query {
            sent.push('?');
            sent.push_str(query);
        }
        let query = Query::read(query.unwrap_or_default())?;
        Ok(Self { head: head.clone(), path, query, host, sent })
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &Method {
        self.head.method()
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The query.
    #[must_use]
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// The service that the request names; `None` only for HTTP/1.0 without Host.
    #[must_use]
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// The head, for conditions on headers.
    #[must_use]
    pub fn head(&self) -> &RawHead {
        &self.head
    }

    /// The same with other values for some of the query's keys: every piece in which any server would find such a key
    /// is replaced as a whole.
    #[must_use]
    pub fn sent_with(&self, keys: &[String], replace: impl Fn(&str) -> String) -> String {
        let Some((path, query)) = self.sent.split_once('?') else { return self.sent.clone() };
        let pieces = query.split_inclusive(['&', ';']).map(|piece| {
            let bare = piece.trim_end_matches(['&', ';']);
            let found = Query::read(bare).ok().and_then(|read| {
                let key = keys.iter().find(|key| read.has(key))?;
                Some(format!("{key}={}", encode(&replace(read.values(key).next()?))))
            });
            let separator = piece.get(bare.len()..).unwrap_or_default();
            found.map_or_else(|| piece.to_owned(), |found| format!("{found}{separator}"))
        });
        format!("{path}?{}", pieces.collect::<String>())
    }

    /// The path and query that go upstream in enforce mode: read again, they give this target again.
    #[must_use]
    pub fn sent(&self) -> &str {
        &self.sent
    }
}

impl std::fmt::Debug for Target {
    /// Without path and query: they hold secrets, and debug output ends up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("head", &self.head).field("host", &self.host).finish_non_exhaustive()
    }
}

/// A request target taken apart as far as its authority.
struct Form<'a> {
    authority: Option<&'a str>,
    /// Path and query; empty only after an authority.
    rest: &'a str,
}

impl<'a> Form<'a> {
    fn read(raw: &'a str) -> Result<Self, Fault> {
        if raw.contains('#') {
            return Err(Fault::Fragment);
        }
        if raw.starts_with('/') {
            return Ok(Self { authority: None, rest: raw });
        }
        if raw == "*" {
            return Err(Fault::AsteriskForm);
        }
        let (scheme, rest) = raw.split_once("://").ok_or(Fault::AuthorityForm)?;
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(Fault::SchemeUnsupported);
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at_checked(end).ok_or(Fault::TargetUnacceptable)?;
        if authority.contains('@') {
            return Err(Fault::Userinfo);
        }
        Ok(Self { authority: Some(authority), rest })
    }
}

/// The one host that the target and the Host header name.
fn read_host(head: &RawHead, authority: Option<&str>) -> Result<Option<Host>, Fault> {
    let mut values = head.values("host");
    let header = values.next();
    if values.next().is_some() {
        return Err(Fault::HostRepeated);
    }
    let header = match header {
        Some(b"") => return Err(Fault::HostEmpty),
        Some(value) => Some(Host::read(value)?),
        None if head.version() == Version::Http11 => return Err(Fault::HostMissing),
        None => None,
    };
    let Some(authority) = authority else { return Ok(header) };
    let named = Host::read(authority.as_bytes())?;
    // A server may take either, so both must be the same service (DNS rebinding and routing tricks live
    // here).
    match header {
        Some(header) if !header.is_same_service(&named) => Err(Fault::HostConflict),
        Some(_) | None => Ok(Some(named)),
    }
}

#[cfg(test)]
mod tests;
