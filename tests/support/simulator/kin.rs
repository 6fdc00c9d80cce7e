//! IMDSv2's kin: IBM Cloud VPC, whose token comes in JSON and is shown as a bearer's, and Akamai. Neither ever answered
//! without one.

use std::time::Duration;

use serde_json::json;

use super::http::{Request, Response};
use super::{SECRET_MARK, State};

/// The answer of one of them; `None` for any other path.
pub(super) fn answer(request: &Request, segments: &[&str], state: &State) -> Option<Response> {
    match segments {
        ["instance_identity" | "identity", "v1", ..] | ["metadata", "v1", "instance", ..] => {
            Some(ibm(request, segments, state))
        }
        ["v1", "token" | "instance" | "user-data"] => Some(akamai(request, segments, state)),
        _ => None,
    }
}

fn ibm(request: &Request, segments: &[&str], state: &State) -> Response {
    let wants_flavor = !matches!(segments, ["metadata", ..]);
    if wants_flavor && request.header("metadata-flavor") != Some("ibm") {
        return error(400, "missing_flavor");
    }
    if let [_, "v1", "token"] = segments {
        let asked: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let seconds = asked.get("expires_in").and_then(serde_json::Value::as_u64).unwrap_or(300);
        return match (request.method.as_str(), seconds) {
            ("PUT", 5..=3600) => {
                let token = state.issue_token(Duration::from_secs(seconds));
                Response::json(&json!({ "access_token": token, "expires_in": seconds }))
            }
            ("PUT", _) => error(400, "invalid_expires_in"),
            (_, _) => error(405, "method_not_allowed"),
        };
    }
    let shown = request.header("authorization").and_then(|value| value.split_once(' '));
    let token = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token);
    if !token.is_some_and(|token| state.token_is_valid(token)) {
        return error(401, "not_authorized");
    }
    match (request.method.as_str(), segments) {
        ("POST", [_, "v1", "iam_token" | "iam_tokens"]) => {
            Response::json(&json!({ "access_token": format!("{SECRET_MARK}-iam-token"), "expires_in": 3600 }))
        }
        ("GET" | "HEAD", ["metadata", "v1", "instance"]) => Response::json(&json!({ "name": "decoy" })),
        ("GET" | "HEAD", ["metadata", "v1", "instance", "initialization"]) => {
            Response::json(&json!({ "user_data": format!("{SECRET_MARK}-user-data") }))
        }
        _ => error(404, "not_found"),
    }
}

fn error(status: u16, code: &str) -> Response {
    Response::new(status, json!({ "errors": [{ "code": code }] }).to_string())
        .header("Content-Type", "application/json")
}

fn akamai(request: &Request, segments: &[&str], state: &State) -> Response {
    if let ["v1", "token"] = segments {
        let seconds = request.header("metadata-token-expiry-seconds").and_then(|value| value.parse().ok());
        return match (request.method.as_str(), seconds) {
            ("PUT", Some(seconds @ 1..=86_400)) => {
                let token = state.issue_token(Duration::from_secs(seconds));
                // Whoever prefers JSON gets a list of one.
                match request.header("accept") {
                    Some("application/json") => Response::json(&json!([token])),
                    Some(_) | None => Response::text(token),
                }
            }
            ("PUT", _) => Response::new(400, ""),
            (_, _) => Response::new(405, ""),
        };
    }
    match request.header("metadata-token") {
        Some(token) if state.token_is_valid(token) => {}
        Some(_) | None => return Response::new(401, ""),
    }
    match segments {
        ["v1", "instance"] => Response::text("id: 1234\nlabel: decoy\n"),
        _ => Response::text(format!("{SECRET_MARK}-user-data")),
    }
}
