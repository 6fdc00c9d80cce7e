//! One cloud, as its file describes it, after the loader found nothing wrong with it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::request::{RawHead, Target};

use super::class::Classes;
use super::decoy::DecoyForm;
use super::detect::Signature;
use super::endpoint::{Door, Endpoint, Proof};
use super::issued::Issue;
use super::members::Members;
use super::pattern::PathPattern;
use super::refusal::Refusals;
use super::session::Session;
use super::tls::UpstreamTls;

/// One metadata service: where it is, what it serves, how it says no.
#[derive(Debug, Clone)]
pub struct Cloud {
    pub(super) id: &'static str,
    /// Its place in the list of built-in files; what a [`super::CloudSet`] holds.
    pub(super) number: u8,
    pub(super) name: String,
    pub(super) family: String,
    pub(super) served: Vec<Served>,
    pub(super) hostnames: Vec<String>,
    pub(super) signatures: Vec<Signature>,
    pub(super) required_headers: Vec<HeaderTest>,
    pub(super) rejected_headers: Vec<String>,
    pub(super) secret_headers: Vec<String>,
    pub(super) long_poll: Vec<String>,
    pub(super) version_query: Vec<String>,
    pub(super) session: Option<Arc<Session>>,
    pub(super) upstream_tls: Option<UpstreamTls>,
    pub(super) resources: Vec<Resource>,
    pub(super) issued: Vec<Arc<Issue>>,
    pub(super) decoys: Vec<Arc<DecoyForm>>,
    pub(super) refusals: Refusals,
    pub(super) never_intercept: Vec<NeverIntercept>,
    pub(super) dynamic_address: Option<String>,
}

/// One door of a cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Where it is.
    pub endpoint: Endpoint,
    /// What passes through it.
    pub door: Door,
    /// Whether the redirect catches it.
    pub intercept: bool,
    /// What it takes as proof of who connects.
    pub proof: Proof,
    /// Whether a policy put it there.
    pub added: bool,
}

/// What lives at a path, and what reading it touches.
#[derive(Debug, Clone)]
pub struct Resource {
    /// The paths.
    pub pattern: PathPattern,
    /// What any request for them touches.
    pub classes: Classes,
    /// The methods that do no more than that; any other also touches `write`.
    pub methods: Vec<Box<str>>,
    /// What the request must hold besides, for this row to count.
    pub condition: Condition,
    /// The only port where the row counts. Without one, it counts at every port that no other row names.
    pub port: Option<u16>,
    /// Who usually needs it.
    pub who: Option<String>,
    /// Which members of an answer that mixes classes hold which.
    pub aggregate: Option<Members>,
    /// The answer cannot change while the machine runs.
    pub constant: bool,
    /// The path itself, or its query, is a secret, which a log must not hold.
    pub secret_path: bool,
    /// Derived from the rows below it: a directory that answers with names only.
    pub listing: bool,
}

/// What a request must hold for a row to count; all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// Keys of the query, each with the values of which one must be there; none listed: any value.
    pub query: Vec<(String, Vec<String>)>,
    /// Headers.
    pub headers: Vec<HeaderTest>,
}

/// A header, and the value that it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTest {
    /// The name, compared without case.
    pub name: String,
    /// The value, compared without case; without one, any will do.
    pub value: Option<String>,
}

/// Something at a link-local address that is no metadata service and must be left alone.
#[derive(Debug, Clone)]
pub struct NeverIntercept {
    /// What it is.
    pub what: String,
    /// Single addresses and prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Such as `udp/53`, `tcp/1688` or `any`.
    pub ports: Vec<String>,
}

impl Cloud {
    /// The name that policies and events use, such as `aws-ec2`.
    #[must_use]
    pub fn id(&self) -> &'static str {
        self.id
    }

    /// The name that people use.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name that selects it together with its relatives, such as `aws`.
    #[must_use]
    pub fn family(&self) -> &str {
        &self.family
    }

    /// Whether a policy's word for a cloud, an id or a family, means this one.
    #[must_use]
    pub fn answers_to(&self, name: &str) -> bool {
        self.id == name || self.family == name
    }

    /// Its doors.
    #[must_use]
    pub fn served(&self) -> &[Served] {
        &self.served
    }

    /// Its host names, in lower case and without a trailing dot.
    #[must_use]
    pub fn hostnames(&self) -> &[String] {
        &self.hostnames
    }

    /// The headers without which it refuses to answer.
    #[must_use]
    pub fn required_headers(&self) -> &[HeaderTest] {
        &self.required_headers
    }

    /// The headers with which it refuses to answer.
    #[must_use]
    pub fn rejected_headers(&self) -> &[String] {
        &self.rejected_headers
    }

    /// The request headers that carry secrets, which no log may hold.
    #[must_use]
    pub fn secret_headers(&self) -> &[String] {
        &self.secret_headers
    }

    /// The query keys that make an answer wait for a change.
    #[must_use]
    pub fn long_poll(&self) -> &[String] {
        &self.long_poll
    }

    /// The query keys in which clients send back the version of the answer that they have.
    #[must_use]
    pub fn version_query(&self) -> &[String] {
        &self.version_query
    }

    /// How it hands out session tokens, if it does.
    #[must_use]
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.session.as_ref()
    }

    /// How it is asked over TLS, if it can be.
    #[must_use]
    pub fn tls(&self) -> Option<&UpstreamTls> {
        self.upstream_tls.as_ref()
    }

    /// What it serves.
    #[must_use]
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// How its answers tell of the keys in them.
    #[must_use]
    pub fn issued(&self) -> &[Arc<Issue>] {
        &self.issued
    }

    /// The forms in which it hands out credentials, for decoys.
    #[must_use]
    pub fn decoys(&self) -> &[Arc<DecoyForm>] {
        &self.decoys
    }

    /// What must not be taken for it.
    #[must_use]
    pub fn never_intercept(&self) -> &[NeverIntercept] {
        &self.never_intercept
    }

    /// Why it has no address that could be written down, if it has none.
    #[must_use]
    pub fn dynamic_address(&self) -> Option<&str> {
        self.dynamic_address.as_deref()
    }

    /// Whether the row counts at that port.
    pub(super) fn counts_at(&self, resource: &Resource, port: u16) -> bool {
        match resource.port {
            Some(only) => only == port,
            None => !self.resources.iter().any(|other| other.port == Some(port)),
        }
    }

    /// Whether the request shows this cloud's habits: it has some, and all of its required headers are there.
    pub(super) fn is_addressed_by(&self, head: &RawHead) -> bool {
        !self.required_headers.is_empty() && self.hears(head)
    }

    /// Whether the request has the headers without which it refuses to answer.
    pub(super) fn hears(&self, head: &RawHead) -> bool {
        self.required_headers.iter().all(|test| test.holds(head))
    }
}

impl Condition {
    /// Whether the row counts for every request.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.query.is_empty() && self.headers.is_empty()
    }

    pub(super) fn holds(&self, target: &Target) -> bool {
        self.query.iter().all(|(key, wanted)| {
            if wanted.is_empty() {
                return target.query().has(key);
            }
            // A service may take the first of repeated keys or the last, so any of them counts.
            let mut values = target.query().values(key).map(str::trim);
            values.any(|value| wanted.iter().any(|one| one.eq_ignore_ascii_case(value)))
        }) && self.headers.iter().all(|test| test.holds(target.head()))
    }

    /// Whether services could take different values for a key on which the condition rests. One of them may be a
    /// spelling that only some service knows.
    pub(super) fn is_ambiguous(&self, target: &Target) -> bool {
        self.query.iter().filter(|(_, wanted)| !wanted.is_empty()).any(|(key, _)| {
            let mut values = target.query().values(key);
            let first = values.next();
            first.is_some_and(|first| values.any(|other| !other.eq_ignore_ascii_case(first)))
        })
    }
}

impl HeaderTest {
    fn holds(&self, head: &RawHead) -> bool {
        head.values(&self.name).any(|value| match &self.value {
            Some(wanted) => value.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()),
            None => true,
        })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (key, values) in &self.query {
            parts.push(if values.is_empty() {
                format!("?{key}")
            } else {
                format!("?{key}={}", values.join("|"))
            });
        }
        for test in &self.headers {
            parts.push(match &test.value {
                Some(value) => format!("{}: {value}", test.name),
                None => test.name.clone(),
            });
        }
        f.write_str(&parts.join(", "))
    }
}

impl NeverIntercept {
    /// Whether a redirect of that endpoint would catch this.
    #[must_use]
    pub fn forbids(&self, endpoint: Endpoint) -> bool {
        let wanted = format!("tcp/{}", endpoint.port);
        self.ports.iter().any(|port| *port == wanted || port == "any")
            && self.addresses.iter().any(|(network, length)| within(endpoint.addr, *network, *length))
    }
}

fn within(addr: IpAddr, network: IpAddr, length: u8) -> bool {
    match (addr, network) {
        (IpAddr::V4(addr), IpAddr::V4(network)) => {
            let shift = 32u32.saturating_sub(length.into());
            (u32::from(addr) ^ u32::from(network)).checked_shr(shift).unwrap_or(0) == 0
        }
        (IpAddr::V6(addr), IpAddr::V6(network)) => {
            let shift = 128u32.saturating_sub(length.into());
            (u128::from(addr) ^ u128::from(network)).checked_shr(shift).unwrap_or(0) == 0
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}
