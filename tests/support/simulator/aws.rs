//! AWS EC2: IMDSv1 and IMDSv2, the tree with its listings, role credentials, identity document, user data.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use super::http::{Request, Response};
use super::{SECRET_MARK, State};

/// The header that shows a session token.
const TOKEN: &str = "x-aws-ec2-metadata-token";

/// The role whose credentials the decoy machine has.
const ROLE: &str = "decoy-role";

/// The leaves below `/VERSION/`; directories follow from them.
const TREE: &[(&str, &str)] = &[
    ("meta-data/ami-id", "ami-0decoy"),
    ("meta-data/hostname", "ip-10-99-0-2.ec2.internal"),
    (
        "meta-data/iam/info",
        r#"{"Code":"Success","InstanceProfileArn":"arn:aws:iam::000000000000:instance-profile/decoy"}"#,
    ),
    ("meta-data/iam/security-credentials/decoy-role", ""),
    ("meta-data/identity-credentials/ec2/security-credentials/ec2-instance", ""),
    ("meta-data/instance-id", "i-0decoy"),
    ("meta-data/instance-type", "t3.small"),
    ("meta-data/local-ipv4", "10.99.0.2"),
    ("meta-data/mac", "02:00:00:00:00:02"),
    ("meta-data/placement/availability-zone", "eu-decoy-1a"),
    ("meta-data/placement/region", "eu-decoy-1"),
    ("meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAAdecoy decoy"),
    ("meta-data/services/domain", "amazonaws.com"),
    ("meta-data/tags/instance/Name", "decoy"),
    ("dynamic/instance-identity/document", ""),
    ("dynamic/instance-identity/signature", "decoy-secret-signature"),
    ("user-data", "#cloud-config\n# decoy-secret-user-data\n"),
];

pub(super) fn answer(request: &Request, segments: &[&str], state: &State) -> Response {
    let response = dispatch(request, segments, state).header("Server", "EC2ws");
    match request.header(TOKEN) {
        Some(token) if state.options.echoes_token => response.header(TOKEN, token),
        Some(_) | None => response,
    }
}

fn dispatch(request: &Request, segments: &[&str], state: &State) -> Response {
    let is_token = matches!(segments, [_, "api", "token"]);
    match request.method.as_str() {
        "PUT" if is_token => put_token(request, state),
        "GET" | "HEAD" if is_token => Response::new(405, ""),
        "GET" | "HEAD" if !may_read(request, state) => Response::new(401, ""),
        "GET" | "HEAD" => read(segments),
        _ => Response::new(405, ""),
    }
}

/// A token given must be valid; none at all is IMDSv1, unless that is switched off.
fn may_read(request: &Request, state: &State) -> bool {
    match request.header(TOKEN) {
        Some(token) => state.token_is_valid(token),
        None => !state.options.v2_only,
    }
}

fn put_token(request: &Request, state: &State) -> Response {
    const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
    if request.header("x-forwarded-for").is_some() {
        return Response::new(403, "");
    }
    match request.header(TTL).and_then(|value| value.parse::<u64>().ok()) {
        Some(seconds @ 1..=21_600) => {
            let seconds = state.options.token_seconds.map_or(seconds, |most| seconds.min(most));
            Response::text(state.issue_token(Duration::from_secs(seconds))).header(TTL, seconds.to_string())
        }
        _ => Response::new(400, ""),
    }
}

fn read(segments: &[&str]) -> Response {
    match segments {
        [] => Response::text("1.0\n2021-03-23\nlatest"),
        [version, ..] if !is_version(version) => Response::new(404, ""),
        [_, "meta-data", "iam", "security-credentials", role] if *role == ROLE => credentials(),
        [_, "meta-data", "identity-credentials", "ec2", "security-credentials", "ec2-instance"] => {
            credentials()
        }
        [_, "dynamic", "instance-identity", "document"] => document(),
        [_, below @ ..] => leaf_or_listing(&below.join("/")),
    }
}

/// `latest`, `1.0`, or a date: the real service knows a dozen dates, and answers alike under each.
fn is_version(name: &str) -> bool {
    let is_date = name.len() == 10 && name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    matches!(name, "latest" | "1.0") || is_date
}

fn leaf_or_listing(path: &str) -> Response {
    if let Some((_, value)) = TREE.iter().find(|(leaf, _)| *leaf == path) {
        return Response::text(*value);
    }
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    let children: BTreeSet<String> = TREE
        .iter()
        .filter_map(|(leaf, _)| leaf.strip_prefix(&prefix))
        .map(|below| match below.split_once('/') {
            Some(("0", _)) => "0=decoy".to_owned(),
            Some((directory, _)) => format!("{directory}/"),
            None => below.to_owned(),
        })
        .collect();
    if children.is_empty() {
        return Response::new(404, "");
    }
    Response::text(children.into_iter().collect::<Vec<_>>().join("\n"))
}

fn credentials() -> Response {
    let now = jiff::Timestamp::now();
    let time = |at: jiff::Timestamp| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    Response::json(&json!({
        "Code": "Success",
        "LastUpdated": time(now),
        "Type": "AWS-HMAC",
        "AccessKeyId": "ASIADECOY",
        "SecretAccessKey": format!("{SECRET_MARK}-access-key"),
        "Token": format!("{SECRET_MARK}-security-token"),
        "Expiration": time(now + Duration::from_hours(6)),
    }))
}

fn document() -> Response {
    Response::json(&json!({
        "accountId": "000000000000",
        "instanceId": "i-0decoy",
        "region": "eu-decoy-1",
        "version": "2017-09-30",
    }))
}
