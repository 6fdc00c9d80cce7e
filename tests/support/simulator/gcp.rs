//! Google Compute Engine: flavour header, directories and recursive reads, tokens, attributes, long polls.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{Request, Response};
use super::{SECRET_MARK, State};

const ACCOUNT: &str = "decoy@decoy-project.iam.gserviceaccount.com";

fn tree() -> Value {
    let account = json!({ "aliases": ["default"], "email": ACCOUNT, "scopes": [
        "https://www.googleapis.com/auth/cloud-platform"
    ] });
    json!({
        "instance": {
            "attributes": { "enable-oslogin": "FALSE", "startup-script": "#!/bin/sh\n# decoy-secret-startup-script" },
            "hostname": "decoy.europe-west0-a.c.decoy-project.internal",
            "id": "1234567890",
            "machine-type": "projects/1/machineTypes/e2-small",
            "name": "decoy",
            "network-interfaces": { "0": { "ip": "10.99.0.2", "mac": "02:00:00:00:00:02" } },
            "service-accounts": { "default": account.clone(), ACCOUNT: account },
            "zone": "projects/1/zones/europe-west0-a",
        },
        "project": {
            "attributes": { "ssh-keys": "decoy:ssh-ed25519 AAAAdecoy decoy" },
            "numeric-project-id": "1",
            "project-id": "decoy-project",
        },
        "universe": { "universe-domain": "googleapis.com" },
    })
}

/// `GET /`, by which clients find out whether they run on this cloud.
pub(super) fn root() -> Response {
    dress(Response::text("0.1/\ncomputeMetadata/\n"))
}

/// Google's clients want the flavour header on every answer, errors included.
fn dress(response: Response) -> Response {
    response.header("Metadata-Flavor", "Google").header("Server", "Metadata Server for VM")
}

pub(super) fn answer(request: &Request, segments: &[&str], state: &State) -> Response {
    dress(dispatch(request, segments, state))
}

fn dispatch(request: &Request, segments: &[&str], state: &State) -> Response {
    if request.header("x-forwarded-for").is_some() || request.header("metadata-flavor") != Some("Google") {
        return Response::new(403, "Missing required header");
    }
    if let ["computeMetadata", "v1", "instance", "guest-attributes", _, _] = segments
        && matches!(request.method.as_str(), "PUT" | "DELETE")
    {
        return Response::text("");
    }
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Response::new(405, "");
    }
    match segments {
        ["computeMetadata", "v1", "instance", "service-accounts", _, "token"] => token(),
        ["computeMetadata", "v1", "instance", "service-accounts", _, "identity"] => identity(request),
        ["computeMetadata", "v1", below @ ..] => node(request, below, state),
        _ => Response::new(404, ""),
    }
}

fn token() -> Response {
    Response::json(&json!({
        "access_token": format!("{SECRET_MARK}-gcp-access-token"), "expires_in": 3599, "token_type": "Bearer",
    }))
}

fn identity(request: &Request) -> Response {
    match request.query("audience") {
        Some(_) => Response::text(format!("{SECRET_MARK}-gcp-identity.e30.c2ln")),
        None => Response::new(400, "non-empty audience parameter required"),
    }
}

fn node(request: &Request, below: &[&str], state: &State) -> Response {
    let tree = tree();
    let Some(node) = below.iter().try_fold(&tree, |node, segment| node.get(segment)) else {
        return Response::new(404, "");
    };
    if node.is_object() && !request.is_directory() {
        let host = request.header("host").unwrap_or("metadata.google.internal");
        return Response::new(301, "").header("Location", format!("http://{host}{}/", request.path()));
    }
    let version = poll(request, state);
    render(request, node).header("ETag", format!("{version:016x}"))
}

/// Holds the answer back until the metadata changes, if the client asked for that.
fn poll(request: &Request, state: &State) -> u64 {
    let current = *super::lock(&state.version);
    if !is_true(request.query("wait_for_change")) {
        return current;
    }
    // Any version but the present one is answered at once, whatever it looks like.
    let seen = request.query("last_etag").map(|etag| u64::from_str_radix(&etag, 16).unwrap_or(0));
    let limit =
        request.query("timeout_sec").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    state.wait_for_change(seen.unwrap_or(current), limit)
}

fn is_true(value: Option<String>) -> bool {
    value.is_some_and(|value| value.is_empty() || value.eq_ignore_ascii_case("true"))
}

/// A tree as text: each leaf on a line of its own, its path before it.
fn leaves(node: &Value, path: &str, lines: &mut String) {
    match node {
        Value::Object(children) => {
            for (name, child) in children {
                leaves(child, &format!("{path}{name}/"), lines);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            let _ = writeln!(lines, "{} {}", path.trim_end_matches('/'), node.as_str().unwrap_or_default());
        }
    }
}

fn render(request: &Request, node: &Value) -> Response {
    let wants_json = request.query("alt").map(|alt| alt == "json");
    match node {
        Value::Object(_) if is_true(request.query("recursive")) && wants_json == Some(false) => {
            let mut lines = String::new();
            leaves(node, "", &mut lines);
            Response::text(lines).header("Content-Type", "application/text")
        }
        Value::Object(_) if is_true(request.query("recursive")) => Response::json(node),
        Value::Object(children) => {
            let line = |(name, child): (&String, &Value)| {
                format!("{name}{}\n", if child.is_object() { "/" } else { "" })
            };
            Response::text(children.iter().map(line).collect::<String>())
                .header("Content-Type", "application/text")
        }
        Value::String(text) if wants_json != Some(true) => {
            Response::text(text.clone()).header("Content-Type", "application/text")
        }
        Value::Array(items) if wants_json != Some(true) => {
            let line = |item: &Value| format!("{}\n", item.as_str().unwrap_or_default());
            Response::text(items.iter().map(line).collect::<String>())
                .header("Content-Type", "application/text")
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Response::json(node)
        }
    }
}
