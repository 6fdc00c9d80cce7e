//! From a cloud's file to a [`Cloud`], or a reason why the file is wrong.

use std::net::IpAddr;
use std::sync::Arc;

use super::builtin::text_of;
use super::class::{Class, Classes};
use super::detect::Signature;
use super::endpoint::{Door, Endpoint};
use super::members::{Members, MembersError};
use super::pattern::{Branch, PathPattern, PatternError};
use super::refusal::{RefusalError, Refusals};
use super::service::{Cloud, Condition, HeaderTest, NeverIntercept, Resource, Served};
use super::session::Session;
use super::source::{
    CloudFile, EndpointEntry, HeaderEntry, NeverEntry, QueryEntry, ResourceEntry, SessionEntry, TlsEntry,
};
use super::tls::{Roots, UpstreamTls};

/// What is wrong with a cloud's file.
#[derive(Debug, thiserror::Error)]
#[error("clouds/{file}.toml: {fault}")]
pub struct LoadError {
    /// The file's name without its ending.
    pub file: &'static str,
    /// What is wrong with it.
    #[source]
    pub fault: LoadFault,
}

/// One way in which a cloud's file can be wrong.
#[derive(Debug, thiserror::Error)]
pub enum LoadFault {
    /// No TOML, an unknown field or class, a bad pattern, an address without a port.
    #[error("{0}")]
    Form(#[from] toml::de::Error),
    /// The file calls itself something else.
    #[error("the id is `{0}`")]
    Id(String),
    /// It builds on a file that is not there, or that builds on another.
    #[error("`like = \"{0}\"` names no file that stands alone")]
    Like(String),
    /// A text that says nothing, or a name in the wrong form.
    #[error("`{0}` is empty or not in its plain form")]
    Text(&'static str),
    /// No endpoint, and no word why.
    #[error("there is neither an endpoint nor a `dynamic-address`")]
    NoEndpoint,
    /// The same endpoint twice.
    #[error("endpoint {0} is there twice")]
    DoubleEndpoint(Endpoint),
    /// The redirect would catch what must be left alone.
    #[error("endpoint {0} would catch {1}")]
    NeverIntercept(Endpoint, String),
    /// Not an address, a prefix or a port.
    #[error("`{0}` is no address, prefix or port")]
    Never(String),
    /// A signature that every machine has.
    #[error("a `detect` entry asks for nothing")]
    EmptySignature,
    /// Nothing is served.
    #[error("there is no resource")]
    NoResource,
    /// A row without a class, or with one that rows cannot have.
    #[error("`{0}` has no class, or is called unknown")]
    RowClass(String),
    /// A row whose methods cannot be.
    #[error("`{0}` lists no method, or one that is not in capitals")]
    RowMethods(String),
    /// A row with a query that asks for nothing.
    #[error("`{0}` has an empty query condition, or a key that is not in lower case")]
    RowQuery(String),
    /// A mixed answer whose members are not told apart.
    #[error("`{0}`: {1}")]
    RowMembers(String, #[source] MembersError),
    /// A mixed answer of which nothing harmless would remain, or a format of one that is not mixed.
    #[error("`{0}` is no mix of `config` and something else")]
    RowMix(String),
    /// A row at a port where the cloud does not answer.
    #[error("`{0}` names a port that no endpoint has")]
    RowPort(String),
    /// Two rows say something about the same requests.
    #[error("`{0}` is there twice")]
    DoubleRow(String),
    /// The session's path is not among the resources.
    #[error("the session's path, lifetimes or status are wrong")]
    Session,
    /// The session's path is no pattern.
    #[error("the session's path: {0}")]
    SessionPath(#[source] PatternError),
    /// TLS at a port that no opaque endpoint has, for a name that is no host's, or with a file without an absolute path.
    #[error("`upstream-tls` names another port, host or file than it may")]
    Tls,
    /// An answer that tells nothing of its key, or the key itself, or a part of a secret path.
    #[error("`issued` for `{0}` tells nothing, or a secret")]
    Issued(String),
    /// A decoy that could not be sent.
    #[error("`decoy` for `{0}` has no content type, body or life")]
    Decoy(String),
    /// What is wrong with the refusals.
    #[error("{0}")]
    Refusal(#[from] RefusalError),
}

/// Reads one file; `number` is its place among the built-in ones.
pub(super) fn load(file: &'static str, number: u8, text: &str) -> Result<Cloud, LoadError> {
    read(file, number, text).map_err(|fault| LoadError { file, fault })
}

fn read(id: &'static str, number: u8, text: &str) -> Result<Cloud, LoadFault> {
    let file: CloudFile = toml::from_str(text)?;
    if file.id != id {
        return Err(LoadFault::Id(file.id));
    }
    check_texts(&file)?;
    let never_intercept = file.never_intercept.iter().map(never).collect::<Result<Vec<_>, _>>()?;
    let served = endpoints(&file, &never_intercept)?;
    let mut signatures = Vec::new();
    for entry in &file.detect {
        signatures.push(Signature::new(entry).ok_or(LoadFault::EmptySignature)?);
    }
    let session = file.session.as_ref().map(session).transpose()?;
    let upstream_tls = file.upstream_tls.map(|entry| tls(entry, &served, &file.hostnames)).transpose()?;
    let mut entries = file.resource;
    if let Some(other) = file.like {
        entries.extend(resources_of(other)?);
    }
    let mut resources = entries.into_iter().map(resource).collect::<Result<Vec<_>, _>>()?;
    check_resources(&resources, &served, session.as_ref())?;
    for issue in &file.issued {
        let secret_path = resources.iter().any(|row| row.secret_path);
        if !issue.is_sound(secret_path) {
            return Err(LoadFault::Issued(issue.path.to_string()));
        }
    }
    if let Some(form) = file.decoy.iter().find(|form| !form.is_sound()) {
        return Err(LoadFault::Decoy(form.path.to_string()));
    }
    let refusals = Refusals::new(file.refusal_headers, file.refusal)?;
    check_refusals(&refusals, &resources)?;
    if file.listings {
        let listings = listings(&resources);
        resources.extend(listings);
    }
    Ok(Cloud {
        id,
        number,
        name: file.name,
        family: file.family,
        served,
        hostnames: file.hostnames,
        signatures,
        required_headers: file.required_headers.into_iter().map(header).collect(),
        rejected_headers: file.rejected_headers,
        secret_headers: file.secret_headers,
        long_poll: file.long_poll,
        version_query: file.version_query,
        session: session.map(Arc::new),
        upstream_tls,
        resources,
        issued: file.issued.into_iter().map(Arc::new).collect(),
        decoys: file.decoy.into_iter().map(Arc::new).collect(),
        refusals,
        never_intercept,
        dynamic_address: file.dynamic_address,
    })
}

/// The rows of the file that another one builds on; one level deep, so that no two can build on each other.
fn resources_of(other: String) -> Result<Vec<ResourceEntry>, LoadFault> {
    let Some(text) = text_of(&other) else { return Err(LoadFault::Like(other)) };
    let file: CloudFile = toml::from_str(text)?;
    if file.like.is_some() { Err(LoadFault::Like(other)) } else { Ok(file.resource) }
}

fn check_texts(file: &CloudFile) -> Result<(), LoadFault> {
    let plain_name = |name: &String| {
        !name.is_empty() && !name.ends_with('.') && !name.bytes().any(|b| b.is_ascii_uppercase() || b == b':')
    };
    let header_name = |name: &String| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let wrong = if file.name.trim().is_empty() {
        Some("name")
    } else if file.family.trim().is_empty() {
        Some("family")
    } else if !file.hostnames.iter().all(plain_name) {
        Some("hostnames")
    } else if !file.long_poll.iter().chain(&file.version_query).all(plain_name) {
        Some("long-poll or version-query")
    } else if !file.rejected_headers.iter().chain(&file.secret_headers).all(header_name) {
        Some("rejected-headers or secret-headers")
    } else if !file.required_headers.iter().all(|header| header_name(&header.name)) {
        Some("required-headers")
    } else {
        None
    };
    wrong.map_or(Ok(()), |field| Err(LoadFault::Text(field)))
}

fn endpoints(file: &CloudFile, never: &[NeverIntercept]) -> Result<Vec<Served>, LoadFault> {
    let mut served: Vec<Served> = Vec::new();
    for entry in &file.endpoint {
        let endpoint = Endpoint::new(entry.address, entry.port);
        if served.iter().any(|other| other.endpoint == endpoint) {
            return Err(LoadFault::DoubleEndpoint(endpoint));
        }
        if let Some(other) = never.iter().find(|other| other.forbids(endpoint)) {
            return Err(LoadFault::NeverIntercept(endpoint, other.what.clone()));
        }
        let EndpointEntry { door, intercept, proof, .. } = *entry;
        served.push(Served { endpoint, door, intercept, proof, added: false });
    }
    if served.is_empty() && file.dynamic_address.as_ref().is_none_or(|why| why.trim().is_empty()) {
        return Err(LoadFault::NoEndpoint);
    }
    Ok(served)
}

fn session(entry: &SessionEntry) -> Result<Session, LoadFault> {
    let path = PathPattern::parse(&entry.path).map_err(LoadFault::SessionPath)?;
    // The guard asks for tokens of its own in the plainest form only: a lifetime in a header, a token in a header.
    let is_plain = entry.ttl_header.is_some() && entry.token_scheme.is_none() && entry.token_member.is_none();
    let can_fetch = |fetch: &String| {
        let segments: Vec<String> = fetch.split('/').skip(1).map(str::to_owned).collect();
        fetch.starts_with('/') && path.matches(&segments)
    };
    if entry.ttl_min > entry.ttl_max
        || entry.ttl_max == 0
        || !matches!(entry.required_status, 400 | 401 | 403 | 404)
        || entry.fetch.as_ref().is_some_and(|fetch| !is_plain || !can_fetch(fetch))
    {
        return Err(LoadFault::Session);
    }
    Ok(Session {
        method: entry.method.clone(),
        path,
        ttl_header: entry.ttl_header.clone(),
        ttl: (entry.ttl_min, entry.ttl_max),
        token_header: entry.token_header.clone(),
        token_scheme: entry.token_scheme.clone(),
        token_member: entry.token_member.clone(),
        required_status: entry.required_status,
        fetch: entry.fetch.clone(),
    })
}

/// The port must be an endpoint: the proxy's sandbox lets it connect to no other.
fn tls(entry: TlsEntry, served: &[Served], hostnames: &[String]) -> Result<UpstreamTls, LoadFault> {
    let is_door = |one: &Served| one.endpoint.port == entry.port && one.door == Door::Opaque && one.intercept;
    let mut files = entry.roots.iter().chain(&entry.client);
    if !served.iter().any(is_door)
        || !hostnames.contains(&entry.server_name)
        || files.any(|path| !path.starts_with('/'))
    {
        return Err(LoadFault::Tls);
    }
    let TlsEntry { port, server_name, roots, client, plain } = entry;
    Ok(UpstreamTls { port, server_name, roots: roots.map_or(Roots::System, Roots::File), client, plain })
}

fn resource(entry: ResourceEntry) -> Result<Resource, LoadFault> {
    let path = || entry.path.to_string();
    if entry.class.is_empty() || entry.class.contains(Class::Unknown) {
        return Err(LoadFault::RowClass(path()));
    }
    let methods = methods(entry.methods.as_deref()).ok_or_else(|| LoadFault::RowMethods(path()))?;
    let query = match &entry.query {
        None => Vec::new(),
        Some(QueryEntry::Key(key)) => vec![(key.clone(), Vec::new())],
        Some(QueryEntry::Values(values)) => {
            if values.is_empty() || values.values().any(Vec::is_empty) {
                return Err(LoadFault::RowQuery(path()));
            }
            values.clone().into_iter().collect()
        }
    };
    if query.iter().any(|(key, _)| key.is_empty() || key.bytes().any(|b| b.is_ascii_uppercase())) {
        return Err(LoadFault::RowQuery(path()));
    }
    let aggregate = members(&entry)?;
    let condition = Condition { query, headers: entry.header.into_iter().map(header).collect() };
    Ok(Resource {
        pattern: entry.path,
        classes: entry.class,
        methods,
        condition,
        port: entry.port,
        who: entry.who,
        aggregate,
        constant: entry.constant,
        secret_path: entry.secret_path,
        listing: false,
    })
}

/// The members of a mixed answer. What is not listed is the rest, so there must be a harmless rest.
fn members(entry: &ResourceEntry) -> Result<Option<Members>, LoadFault> {
    let path = || entry.path.to_string();
    if entry.aggregate.is_empty() {
        return if entry.format.is_some() { Err(LoadFault::RowMix(path())) } else { Ok(None) };
    }
    if !entry.class.contains(Class::Config) {
        return Err(LoadFault::RowMix(path()));
    }
    let patterns = entry
        .aggregate
        .iter()
        .flat_map(|(class, patterns)| patterns.iter().map(move |pattern| (pattern.clone(), *class)));
    let members = Members::new(entry.format.unwrap_or_default(), patterns.collect());
    members.map(Some).map_err(|error| LoadFault::RowMembers(path(), error))
}

/// GET and HEAD if none are named; HEAD wherever GET is, because it reads the same thing.
pub(super) fn methods(named: Option<&[String]>) -> Option<Vec<Box<str>>> {
    let Some(named) = named else { return Some(vec!["GET".into(), "HEAD".into()]) };
    let mut methods: Vec<Box<str>> = named.iter().map(|method| method.as_str().into()).collect();
    if methods.is_empty()
        || methods.iter().any(|m| m.is_empty() || !m.bytes().all(|b| b.is_ascii_uppercase()))
    {
        return None;
    }
    if methods.iter().any(|method| **method == *"GET") && !methods.iter().any(|method| **method == *"HEAD") {
        methods.push("HEAD".into());
    }
    Some(methods)
}

fn header(entry: HeaderEntry) -> HeaderTest {
    HeaderTest { name: entry.name, value: entry.value }
}

fn check_resources(rows: &[Resource], served: &[Served], session: Option<&Session>) -> Result<(), LoadFault> {
    let any_http = served.is_empty() || served.iter().any(|one| one.door == Door::Http);
    if rows.is_empty() && any_http {
        return Err(LoadFault::NoResource);
    }
    let mut seen: Vec<(&Branch, &Resource)> = Vec::new();
    for row in rows {
        let lost = |port: u16| !served.is_empty() && !served.iter().any(|one| one.endpoint.port == port);
        if row.port.is_some_and(lost) {
            return Err(LoadFault::RowPort(row.pattern.to_string()));
        }
        for branch in row.pattern.branches() {
            let twice = seen.iter().any(|(other, earlier)| {
                *other == branch && earlier.condition == row.condition && earlier.port == row.port
            });
            if twice {
                return Err(LoadFault::DoubleRow(branch.to_string()));
            }
            seen.push((branch, row));
        }
    }
    let Some(session) = session else { return Ok(()) };
    let listed = rows.iter().any(|row| {
        row.pattern == session.path
            && row.classes.contains(Class::Session)
            && row.methods.iter().any(|method| **method == *session.method)
    });
    if listed { Ok(()) } else { Err(LoadFault::Session) }
}

/// A cloud that hands out credentials or sessions must have thought about how to refuse them.
fn check_refusals(refusals: &Refusals, rows: &[Resource]) -> Result<(), RefusalError> {
    for class in [Class::Credentials, Class::Session] {
        if rows.iter().any(|row| row.classes.contains(class)) && !refusals.speaks_of(class) {
            return Err(RefusalError::Missing(class.name()));
        }
    }
    Ok(())
}

/// The directories above the rows, as `config`: they hold names only. Where a row has its own word for such a
/// path, that word stands; a derived row must never call harmless what a written one calls a secret.
fn listings(rows: &[Resource]) -> Vec<Resource> {
    let plain = || rows.iter().filter(|row| row.condition.is_empty());
    let mut above: Vec<(Branch, Option<u16>)> = Vec::new();
    for row in plain() {
        for branch in row.pattern.branches().iter().flat_map(Branch::ancestors) {
            if !above.iter().any(|(known, port)| *known == branch && *port == row.port) {
                above.push((branch, row.port));
            }
        }
    }
    above.retain(|(branch, port)| {
        let example = branch.example();
        !plain().any(|row| row.port == *port && row.pattern.matches(&example))
    });
    above
        .into_iter()
        .filter_map(|(branch, port)| {
            Some(Resource {
                pattern: PathPattern::parse(&branch.to_string()).ok()?,
                classes: Classes::of(Class::Config),
                methods: methods(None)?,
                condition: Condition::default(),
                port,
                who: None,
                aggregate: None,
                constant: false,
                secret_path: false,
                listing: true,
            })
        })
        .collect()
}

fn never(entry: &NeverEntry) -> Result<NeverIntercept, LoadFault> {
    let mut addresses = Vec::new();
    for text in &entry.addresses {
        addresses.push(prefix(text).ok_or_else(|| LoadFault::Never(text.clone()))?);
    }
    for port in &entry.ports {
        let number = port.strip_prefix("tcp/").or_else(|| port.strip_prefix("udp/"));
        if port != "any" && number.and_then(|number| number.parse::<u16>().ok()).is_none() {
            return Err(LoadFault::Never(port.clone()));
        }
    }
    if entry.what.trim().is_empty() || addresses.is_empty() || entry.ports.is_empty() {
        return Err(LoadFault::Text("never-intercept"));
    }
    Ok(NeverIntercept { what: entry.what.clone(), addresses, ports: entry.ports.clone() })
}

fn prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) =
        text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Some(longest), |length| length.parse().ok())?;
    (length <= longest).then_some((address, length))
}

#[cfg(test)]
mod tests;
