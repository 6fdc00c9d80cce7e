//! What the lenient service counts as a secret: every path, on any cloud, that holds credentials, a proof of identity or
//! somebody's user data. Wider than any one cloud, and written without a look at the guard's catalogue.

use super::readings::{headers, paths, query};

/// Names that are secret wherever they stand.
const NAMES: &[&str] = &[
    "security-credentials",
    "security_credentials",
    "security-credentials-extended",
    "securitykey",
    "user-data",
    "user_data",
    "userdata",
    "customdata",
    "vendor-data",
    "vendor_data",
    "vendor_data.json",
    "vendor_data2.json",
    "meta_data.json",
    "splunk-token",
    "container-env",
    "iam_token",
    "iam_tokens",
    "auth-token",
    "auth-key",
    "appkey",
    "kube-env",
    "reprovisiondata",
    "attested",
    "secure-channel",
    "vmsettings",
    "extensionartifact",
    "initialization",
    "partner-attributes",
    "workload-identities",
    "startup-script",
    "key.pem",
    "acquire",
];

/// Runs of names, `*` for any one.
const RUNS: &[&str] = &[
    "service-accounts/*/token",
    "service-accounts/*/identity",
    "metadata/identity",
    "identity/oauth2/token",
    "instance-identity/*",
    "v1/credentials",
    "v2/credentials",
    "opc/*/identity",
    "instance/credentials",
    "openstack/*/password",
    "identity/v1/certificates",
    "instance_identity/v1/certificates",
];

/// Whole paths: aggregates that hold user data beside the rest.
const WHOLE: &[&str] = &[
    "metadata/instance",
    "metadata/instance/compute",
    "metadata/v1.json",
    "v1.json",
    "opc/*/instance",
    "opc/*/instance/metadata",
    "hetzner/v1/metadata",
    "api/v1/metadata",
];

/// Keys of GCP attributes that any process may know.
const PLAIN_ATTRIBUTES: &[&str] =
    &["ssh-keys", "sshkeys", "cluster-name", "cluster-location", "enable-oslogin"];

/// Where GCP's `recursive` gathers attributes.
const GATHERED: &[&str] = &[
    "",
    "computemetadata",
    "computemetadata/*",
    "computemetadata/*/instance",
    "computemetadata/*/project",
    "computemetadata/*/instance/attributes",
    "computemetadata/*/project/attributes",
    "0.1",
    "0.1/meta-data",
    "0.1/meta-data/attributes",
];

/// Whether a server that reads this target, taken as it is, hands out a secret.
pub fn asked_by(target: &[u8], head: &[u8]) -> bool {
    let query = query(target);
    paths(target).iter().any(|path| is_secret(path, &query, head))
}

fn is_secret(path: &[String], query: &[(String, String)], head: &[u8]) -> bool {
    let has = |key: &str, values: &[&str]| {
        query
            .iter()
            .any(|(known, value)| known == key && (values.is_empty() || values.contains(&value.as_str())))
    };
    let machine = path.first().is_some_and(|first| first == "machine");
    path.iter().any(|name| NAMES.contains(&name.as_str()))
        || RUNS.iter().any(|run| path.windows(names(run).len()).any(|window| fits(run, window)))
        || WHOLE.iter().any(|whole| fits(whole, path))
        || attribute(path)
        || has("recursive", &[]) && GATHERED.iter().any(|whole| fits(whole, path))
        || machine && has("comp", &["certificates"])
        || machine && has("comp", &["config"]) && has("type", &["extensionsconfig", "fullconfig"])
        || asks_for_password(head)
        || writes(path, query, head)
}

fn names(run: &str) -> Vec<&str> {
    run.split('/').filter(|name| !name.is_empty()).collect()
}

fn fits(run: &str, path: &[String]) -> bool {
    let names = names(run);
    names.len() == path.len() && names.iter().zip(path).all(|(name, got)| *name == "*" || name == got)
}

fn attribute(path: &[String]) -> bool {
    let parents = ["instance", "project", "meta-data"];
    path.windows(3).any(|window| {
        parents.contains(&window[0].as_str())
            && window[1] == "attributes"
            && !PLAIN_ATTRIBUTES.contains(&window[2].as_str())
    })
}

/// CloudStack's password server looks at nothing else.
fn asks_for_password(head: &[u8]) -> bool {
    headers(head).iter().any(|(name, value)| name == "domu-request" && value == b"send_my_password")
}

/// Azure's scheduled events are harmless to read, and a POST lets the maintenance begin. Servers that let a header or a
/// parameter say the method take a GET for one.
fn writes(path: &[String], query: &[(String, String)], head: &[u8]) -> bool {
    let overrides = ["x-http-method-override", "x-http-method", "x-method-override"];
    let is_post = |value: &[u8]| value.eq_ignore_ascii_case(b"post");
    fits("metadata/scheduledevents", path)
        && (headers(head).iter().any(|(name, value)| overrides.contains(&name.as_str()) && is_post(value))
            || query.iter().any(|(key, value)| {
                (key == "_method" || overrides.contains(&key.as_str())) && is_post(value.as_bytes())
            }))
}
