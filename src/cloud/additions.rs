//! What a policy may add to the catalogues: endpoints and resources. It cannot take anything away.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::catalogue::Catalogue;
use super::class::{Class, Classes};
use super::endpoint::{Door, Endpoint, Proof};
use super::load::methods;
use super::pattern::PathPattern;
use super::refusal::Refusals;
use super::service::{Cloud, Condition, Resource, Served};
use super::source::QueryEntry;

/// The id under which a policy's own resources appear.
pub(super) const ID: &str = "policy";
/// Its place behind all files.
pub(super) const NUMBER: u8 = 63;

/// An address and port where a service answers that no built-in catalogue lists, such as a CloudStack router.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AddedEndpoint {
    /// The address.
    pub address: IpAddr,
    /// The TCP port.
    pub port: u16,
    /// The cloud that answers there, by id or family; without one, all chosen clouds judge what is asked
    /// there.
    pub cloud: Option<String>,
    /// Host names by which clients call it.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// How its bytes are treated.
    #[serde(default)]
    pub door: Door,
}

/// A path, and what it touches.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AddedResource {
    /// The paths.
    pub path: PathPattern,
    /// What a request for them touches.
    pub class: Classes,
    /// The cloud to whose rows this one is added, by id or family; without one, it is a word of its own,
    /// beside those of all clouds.
    pub cloud: Option<String>,
    /// The methods that touch nothing more; GET and HEAD by default.
    pub method: Option<Vec<String>>,
    /// What the query must hold for the row to count: a key, or keys with values.
    query: Option<QueryEntry>,
}

impl AddedResource {
    /// A resource that counts for every query.
    #[must_use]
    pub const fn new(path: PathPattern, class: Classes) -> Self {
        Self { path, class, cloud: None, method: None, query: None }
    }
}

/// Why something cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdditionError {
    /// It is meant for a cloud that was not chosen.
    #[error("`{0}` is none of the chosen clouds")]
    Cloud(String),
    /// It would catch traffic that is no metadata at all.
    #[error("{endpoint} would catch {what}")]
    NeverIntercept {
        /// The endpoint.
        endpoint: Endpoint,
        /// What else lives there.
        what: String,
    },
    /// Not a name as it stands in a Host header.
    #[error("`{0}` is not a plain host name")]
    Hostname(String),
    /// A resource must say what it is.
    #[error("`{0}` has no class, or is called unknown")]
    Class(String),
    /// No method, or one that is not in capitals.
    #[error("`{0}` lists no method, or one that is not in capitals")]
    Methods(String),
    /// A query that asks for nothing.
    #[error("`{0}` has an empty query condition")]
    Query(String),
    /// It would be the guard's own address, everybody's or nobody's.
    #[error("{0} cannot be an endpoint")]
    Address(Endpoint),
}

impl Cloud {
    pub(super) fn is_policy(&self) -> bool {
        self.number == NUMBER
    }

    fn policy() -> Self {
        Self {
            id: ID,
            number: NUMBER,
            name: "added by the policy".to_owned(),
            family: ID.to_owned(),
            served: Vec::new(),
            hostnames: Vec::new(),
            signatures: Vec::new(),
            required_headers: Vec::new(),
            rejected_headers: Vec::new(),
            secret_headers: Vec::new(),
            long_poll: Vec::new(),
            version_query: Vec::new(),
            session: None,
            upstream_tls: None,
            resources: Vec::new(),
            issued: Vec::new(),
            decoys: Vec::new(),
            refusals: Refusals::neutral(),
            never_intercept: Vec::new(),
            dynamic_address: None,
        }
    }
}

/// The clouds and the common endpoints with everything added.
pub(super) fn add(
    catalogue: &Catalogue,
    endpoints: &[AddedEndpoint],
    resources: &[AddedResource],
) -> Result<(Vec<Arc<Cloud>>, Vec<Served>), AdditionError> {
    let mut clouds = catalogue.clouds.clone();
    let mut common = catalogue.common.clone();
    let wanted =
        endpoints.iter().any(|one| one.cloud.is_none()) || resources.iter().any(|one| one.cloud.is_none());
    if wanted && !clouds.iter().any(|cloud| cloud.is_policy()) {
        clouds.push(Arc::new(Cloud::policy()));
    }
    for entry in endpoints {
        let served = served(catalogue, entry)?;
        if entry.cloud.is_none() {
            common.push(served);
        }
        for cloud in meant(&mut clouds, entry.cloud.as_deref())? {
            let cloud = Arc::make_mut(cloud);
            cloud.served.retain(|other| other.endpoint != served.endpoint);
            cloud.served.push(served);
            cloud.hostnames.extend(entry.hostnames.iter().map(|name| name.to_ascii_lowercase()));
        }
    }
    for entry in resources {
        let row = resource(entry)?;
        for cloud in meant(&mut clouds, entry.cloud.as_deref())? {
            Arc::make_mut(cloud).resources.push(row.clone());
        }
    }
    Ok((clouds, common))
}

/// The clouds that an addition is for.
fn meant<'a>(
    clouds: &'a mut [Arc<Cloud>],
    name: Option<&str>,
) -> Result<Vec<&'a mut Arc<Cloud>>, AdditionError> {
    let name = name.unwrap_or(ID);
    let found: Vec<&mut Arc<Cloud>> = clouds.iter_mut().filter(|cloud| cloud.answers_to(name)).collect();
    if found.is_empty() { Err(AdditionError::Cloud(name.to_owned())) } else { Ok(found) }
}

fn served(catalogue: &Catalogue, entry: &AddedEndpoint) -> Result<Served, AdditionError> {
    let endpoint = Endpoint::new(entry.address, entry.port);
    if endpoint.port == 0 || endpoint.addr.is_unspecified() || endpoint.addr.is_multicast() {
        return Err(AdditionError::Address(endpoint));
    }
    // Where nobody knows which cloud this is, what some of them keep at an address says nothing about this
    // one.
    let concerned = |cloud: &&Arc<Cloud>| match &entry.cloud {
        Some(name) => cloud.answers_to(name),
        None => !catalogue.shared_only,
    };
    let mut kept = catalogue.clouds.iter().filter(concerned).flat_map(|cloud| &cloud.never_intercept);
    let never = kept.find(|one| one.forbids(endpoint));
    if let Some(never) = never {
        return Err(AdditionError::NeverIntercept { endpoint, what: never.what.clone() });
    }
    let plain =
        |name: &&String| name.is_empty() || name.ends_with('.') || name.contains([':', '/', '*', ' ']);
    if let Some(name) = entry.hostnames.iter().find(plain) {
        return Err(AdditionError::Hostname(name.clone()));
    }
    Ok(Served { endpoint, door: entry.door, intercept: true, proof: Proof::None, added: true })
}

fn resource(entry: &AddedResource) -> Result<Resource, AdditionError> {
    let path = || entry.path.to_string();
    if entry.class.is_empty() || entry.class.contains(Class::Unknown) {
        return Err(AdditionError::Class(path()));
    }
    let query = match &entry.query {
        None => BTreeMap::new(),
        Some(QueryEntry::Key(key)) => BTreeMap::from([(key.clone(), Vec::new())]),
        Some(QueryEntry::Values(values)) if values.is_empty() || values.values().any(Vec::is_empty) => {
            return Err(AdditionError::Query(path()));
        }
        Some(QueryEntry::Values(values)) => values.clone(),
    };
    let query = query.into_iter().map(|(key, values)| (key.to_ascii_lowercase(), values)).collect();
    Ok(Resource {
        pattern: entry.path.clone(),
        classes: entry.class,
        methods: methods(entry.method.as_deref()).ok_or_else(|| AdditionError::Methods(path()))?,
        condition: Condition { query, headers: Vec::new() },
        port: None,
        who: None,
        aggregate: None,
        constant: false,
        secret_path: false,
        listing: false,
    })
}
