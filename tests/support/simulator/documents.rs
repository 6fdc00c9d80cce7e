//! Clouds that put their owner's data into the same document as the machine's name: Oracle, Vultr, UpCloud, Hetzner,
//! OpenStack.

use serde_json::json;

use super::http::{Request, Response};
use super::{SECRET_MARK, State};

/// A document of one of these clouds; `None` for any other path.
pub(super) fn answer(request: &Request, segments: &[&str], state: &State) -> Option<Response> {
    let document = match segments {
        ["opc", "v2", "instance"] if request.header("authorization") != Some("Bearer Oracle") => {
            return Some(Response::new(403, "Forbidden"));
        }
        ["opc", "v1" | "v2", "instance"] => Response::json(&json!({
            "displayName": "decoy",
            "extendedMetadata": { "a": { "b": format!("{SECRET_MARK}-extended") } },
            "id": "ocid1.instance.decoy",
            "metadata": { "ssh_authorized_keys": "ssh-ed25519 AAAAdecoy decoy", "user_data": format!("{SECRET_MARK}-user-data") },
            "region": "eu-decoy-1",
        })),
        ["v1.json"] => Response::json(&json!({
            "hostname": "decoy",
            "instanceid": "1234",
            "interfaces": [{ "mac": "02:00:00:00:00:02" }],
            "user-data": format!("{SECRET_MARK}-user-data"),
            "vendor-data": format!("{SECRET_MARK}-vendor-data"),
        })),
        ["metadata", "v1.json"] if state.options.is_upcloud => Response::json(&json!({
            "cloud_name": "upcloud",
            "hostname": "decoy",
            "instance_id": "00decoy",
            "user_data": format!("{SECRET_MARK}-user-data"),
            "vendor_data": format!("{SECRET_MARK}-vendor-data"),
        })),
        ["hetzner", "v1", "metadata"] => Response::text(format!(
            "hostname: decoy\ninstance-id: 42\nnetwork-config:\n  version: 1\nvendor_data: |\n  #cloud-config\n  # {SECRET_MARK}-vendor-data\nregion: eu-decoy\n"
        )),
        ["openstack", _, "meta_data.json"] => Response::json(&json!({
            "admin_pass": format!("{SECRET_MARK}-admin-pass"),
            "files": [{ "path": "/etc/secret", "content_path": "/content/0000" }],
            "hostname": "decoy.novalocal",
            "meta": { "owner": format!("{SECRET_MARK}-meta") },
            "public_keys": { "decoy": "ssh-ed25519 AAAAdecoy decoy" },
            "random_seed": format!("{SECRET_MARK}-seed"),
            "uuid": "00000000-0000-0000-0000-00000000d0c2",
        })),
        _ => return None,
    };
    let is_read = matches!(request.method.as_str(), "GET" | "HEAD");
    let dated =
        document.header("ETag", "\"decoy-1\"").header("Last-Modified", "Tue, 24 Nov 2026 00:00:00 GMT");
    Some(if is_read { dated } else { Response::new(405, "") })
}
