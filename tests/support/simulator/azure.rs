//! Azure IMDS: paths without case, a header and an API version on every request, managed identity tokens.

use serde_json::{Value, json};

use super::SECRET_MARK;
use super::http::{Request, Response};

pub(super) fn answer(request: &Request, segments: &[&str]) -> Response {
    let folded: Vec<String> = segments.iter().map(|segment| segment.to_ascii_lowercase()).collect();
    let folded: Vec<&str> = folded.iter().map(String::as_str).collect();
    dispatch(request, &folded).header("Server", "IMDS/150.870.65.decoy")
}

fn error(status: u16, description: &str) -> Response {
    Response::new(status, json!({ "error": description }).to_string())
        .header("Content-Type", "application/json")
}

fn dispatch(request: &Request, segments: &[&str]) -> Response {
    if request.header("metadata").is_none_or(|value| !value.eq_ignore_ascii_case("true")) {
        return error(400, "Bad request. Required metadata header not specified");
    }
    if request.header("x-forwarded-for").is_some() {
        return error(400, "Bad request. X-Forwarded-For is not allowed");
    }
    if let ["metadata", "versions"] = segments {
        return Response::json(&json!({ "apiVersions": ["2018-02-01", "2021-02-01"] }));
    }
    if request.query("api-version").is_none() {
        let versions = json!({ "error": "Bad request. api-version was not specified", "newest-versions": ["2021-02-01"] });
        return Response::new(400, versions.to_string()).header("Content-Type", "application/json");
    }
    match segments {
        ["metadata", "identity", "oauth2", "token"] => token(request),
        ["metadata", "attested", "document"] => {
            Response::json(&json!({ "encoding": "pkcs7", "signature": format!("{SECRET_MARK}-attested") }))
        }
        ["metadata", "instance", below @ ..] => instance(request, below),
        _ => error(404, "Not found"),
    }
}

fn token(request: &Request) -> Response {
    let Some(resource) = request.query("resource") else {
        return error(400, "invalid_request");
    };
    let expiry = jiff::Timestamp::now().as_second() + 86_400;
    Response::json(&json!({
        "access_token": format!("{SECRET_MARK}-azure-access-token"),
        "client_id": "00000000-0000-0000-0000-00000000d0c0",
        "expires_in": "86400",
        "expires_on": expiry.to_string(),
        "ext_expires_in": "86400",
        "not_before": (expiry - 86_700).to_string(),
        "resource": resource,
        "token_type": "Bearer",
    }))
}

fn instance(request: &Request, below: &[&str]) -> Response {
    let tree = json!({
        "compute": {
            "location": "decoywest",
            "name": "decoy",
            "osType": "Linux",
            "userData": format!("{SECRET_MARK}-user-data"),
            "vmId": "00000000-0000-0000-0000-00000000d0c1",
            "vmSize": "Standard_B1s",
        },
        "network": { "interface": [{ "macAddress": "020000000002" }] },
    });
    match below.iter().try_fold(&tree, |node, segment| child(node, segment)) {
        Some(Value::String(text)) if request.query("format").as_deref() == Some("text") => {
            Response::text(text.clone())
        }
        Some(node) => Response::json(node),
        None => error(404, "Not found"),
    }
}

fn child<'a>(node: &'a Value, segment: &str) -> Option<&'a Value> {
    match node {
        Value::Object(children) => {
            children.iter().find(|(name, _)| name.eq_ignore_ascii_case(segment)).map(|(_, value)| value)
        }
        Value::Array(items) => items.get(segment.parse::<usize>().ok()?),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}
