//! DigitalOcean: the tree below `/metadata/v1/`, and the aggregate beside it.

use serde_json::{Value, json};

use super::SECRET_MARK;
use super::http::{Request, Response};

pub(super) fn answer(request: &Request, segments: &[&str]) -> Response {
    let tree = json!({
        "auth-token": format!("{SECRET_MARK}-droplet-token"),
        "hostname": "decoy",
        "id": "1234567",
        "interfaces": { "public": { "0": { "ipv4": { "address": "198.51.100.2" } } } },
        "region": "dcy1",
        "user-data": format!("#cloud-config\n# {SECRET_MARK}-user-data"),
    });
    match (request.method.as_str(), segments) {
        ("GET" | "HEAD", ["metadata", "v1.json"]) => Response::json(&tree),
        ("PATCH", ["metadata", "v1.json"]) => Response::text(""),
        ("GET" | "HEAD", ["metadata", "v1", below @ ..]) => below
            .iter()
            .try_fold(&tree, |node, segment| node.get(segment))
            .map_or_else(|| Response::new(404, "not found"), |node| Response::text(listing(node))),
        _ => Response::new(405, ""),
    }
}

fn listing(node: &Value) -> String {
    match node {
        Value::Object(children) => {
            let line = |(name, child): (&String, &Value)| {
                format!("{name}{}", if child.is_object() { "/" } else { "" })
            };
            children.iter().map(line).collect::<Vec<_>>().join("\n")
        }
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => node.to_string(),
    }
}
