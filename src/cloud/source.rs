//! A cloud's file as it is written: every field named, unknown ones refused.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::class::{Class, Classes};
use super::decoy::DecoyForm;
use super::endpoint::{Door, Proof};
use super::issued::Issue;
use super::members::Format;
use super::pattern::PathPattern;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct CloudFile {
    pub id: String,
    pub name: String,
    pub family: String,
    /// A built-in file whose resources this service has as well.
    pub like: Option<String>,
    /// Whether the directories above the listed resources answer with nothing but a list of names. Not
    /// optional: in a service where such a directory is an aggregate, the wrong guess would call user data
    /// harmless.
    pub listings: bool,
    #[serde(default)]
    pub endpoint: Vec<EndpointEntry>,
    /// Why there is no endpoint that could be written down.
    pub dynamic_address: Option<String>,
    #[serde(default)]
    pub hostnames: Vec<String>,
    #[serde(default)]
    pub detect: Vec<DetectEntry>,
    #[serde(default)]
    pub required_headers: Vec<HeaderEntry>,
    #[serde(default)]
    pub rejected_headers: Vec<String>,
    #[serde(default)]
    pub secret_headers: Vec<String>,
    #[serde(default)]
    pub long_poll: Vec<String>,
    #[serde(default)]
    pub version_query: Vec<String>,
    pub session: Option<SessionEntry>,
    pub upstream_tls: Option<TlsEntry>,
    #[serde(default)]
    pub resource: Vec<ResourceEntry>,
    #[serde(default)]
    pub issued: Vec<Issue>,
    #[serde(default)]
    pub decoy: Vec<DecoyForm>,
    #[serde(default)]
    pub refusal_headers: BTreeMap<String, String>,
    pub refusal: BTreeMap<String, RefusalEntry>,
    #[serde(default)]
    pub never_intercept: Vec<NeverEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct EndpointEntry {
    pub address: IpAddr,
    pub port: u16,
    #[serde(default)]
    pub door: Door,
    #[serde(default)]
    pub proof: Proof,
    /// Whether the redirect may catch it; `false` keeps the knowledge without touching the traffic.
    #[serde(default = "yes")]
    pub intercept: bool,
}

const fn yes() -> bool {
    true
}

/// All the strings that are given must match; `*` stands for any run of characters, letters compare without
/// case.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DetectEntry {
    pub sys_vendor: Option<String>,
    pub product_name: Option<String>,
    pub product_serial: Option<String>,
    pub product_uuid: Option<String>,
    pub bios_vendor: Option<String>,
    pub board_asset_tag: Option<String>,
    pub chassis_asset_tag: Option<String>,
    pub hypervisor_uuid: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct HeaderEntry {
    pub name: String,
    pub value: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct SessionEntry {
    pub method: String,
    pub path: String,
    pub ttl_header: Option<String>,
    pub ttl_min: u32,
    pub ttl_max: u32,
    pub token_header: String,
    pub token_scheme: Option<String>,
    pub token_member: Option<String>,
    /// What a request without a token is told where tokens are required.
    pub required_status: u16,
    pub fetch: Option<String>,
}

/// Without `roots`, the service's certificate is signed by somebody whom systems trust.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct TlsEntry {
    pub port: u16,
    pub server_name: String,
    pub roots: Option<String>,
    pub client: Option<String>,
    pub plain: Option<PathPattern>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ResourceEntry {
    pub path: PathPattern,
    pub class: Classes,
    pub methods: Option<Vec<String>>,
    pub query: Option<QueryEntry>,
    pub header: Option<HeaderEntry>,
    pub port: Option<u16>,
    pub who: Option<String>,
    #[serde(default)]
    pub aggregate: BTreeMap<Class, Vec<PathPattern>>,
    pub format: Option<Format>,
    #[serde(default)]
    pub constant: bool,
    #[serde(default)]
    pub secret_path: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum QueryEntry {
    /// The key is there, whatever its value: a service may take `recursive=false` for a yes.
    Key(String),
    /// Each key is there with one of these values; among repeated keys any may match.
    Values(BTreeMap<String, Vec<String>>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RefusalEntry {
    pub status: u16,
    pub content_type: Option<String>,
    pub body: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct NeverEntry {
    pub what: String,
    pub addresses: Vec<String>,
    pub ports: Vec<String>,
}
