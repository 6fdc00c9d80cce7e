//! Every secret of every cloud in every combination of two spelling tricks.

use super::hex;
use super::table::{Case, request};

/// A secret: the cloud, where it answers, a harmless directory, the secret's path and query.
type Secret = (&'static str, &'static str, &'static str, &'static str, &'static str);

const SHARED: &str = "169.254.169.254:80";

const SECRETS: &[Secret] = &[
    ("aws", SHARED, "/latest/meta-data/network", "/latest/meta-data/iam/security-credentials/web", ""),
    ("aws", SHARED, "/latest/meta-data/public-keys", "/latest/user-data", ""),
    ("aws", SHARED, "/latest/meta-data/tags/instance", "/latest/dynamic/instance-identity/document", ""),
    ("aws", "169.254.170.2:80", "/v3/a", "/v2/credentials/6d1f", ""),
    ("aws", "169.254.170.23:80", "/v1", "/v1/credentials", ""),
    (
        "gcp",
        SHARED,
        "/computeMetadata/v1/instance/disks",
        "/computeMetadata/v1/instance/service-accounts/default/token",
        "",
    ),
    (
        "gcp",
        SHARED,
        "/computeMetadata/v1/oslogin",
        "/computeMetadata/v1/instance/attributes/kube-env",
        "alt=text",
    ),
    (
        "gcp",
        SHARED,
        "/computeMetadata/v1/instance/guest-attributes",
        "/computeMetadata/v1/instance",
        "recursive=true",
    ),
    ("azure", SHARED, "/metadata/instance/network", "/metadata/identity/oauth2/token", "resource=x"),
    ("azure", SHARED, "/metadata/loadbalancer", "/metadata/instance/compute/userData", "format=text"),
    ("azure", "168.63.129.16:80", "/machine", "/machine/a", "comp=certificates"),
    ("azure", "168.63.129.16:80", "/machine", "/secure-channel/key", ""),
    ("azure", "168.63.129.16:32526", "/versions", "/vmSettings", ""),
    ("oracle", SHARED, "/opc/v2/vnics", "/opc/v2/identity/key.pem", ""),
    (
        "alibaba",
        "100.100.100.200:80",
        "/latest/meta-data/network",
        "/latest/meta-data/ram/security-credentials/web",
        "",
    ),
    ("tencent", "169.254.0.23:80", "/meta-data/network", "/meta-data/cam/security-credentials/web", ""),
    ("huawei", SHARED, "/latest/meta-data/placement", "/openstack/latest/securitykey", ""),
    ("openstack", SHARED, "/latest/meta-data/network", "/openstack/latest/user_data", ""),
    ("ibm", SHARED, "/metadata/v1/keys", "/instance_identity/v1/iam_token", "version=2022-03-01"),
    ("digitalocean", SHARED, "/metadata/v1/interfaces", "/metadata/v1/auth-token", ""),
    ("hetzner", SHARED, "/hetzner/v1/metadata/public-keys", "/hetzner/v1/userdata", ""),
    ("scaleway", "169.254.42.42:80", "/conf", "/user_data/cloud-init", ""),
    ("vultr", SHARED, "/v1/interfaces", "/v1/user-data", ""),
    ("linode", SHARED, "/v1/network", "/v1/user-data", ""),
    ("upcloud", SHARED, "/metadata/v1/network", "/metadata/v1/user_data", ""),
    ("volcengine", "100.96.0.96:80", "/latest/network", "/latest/iam/security_credentials/web", ""),
    (
        "yandex",
        SHARED,
        "/computeMetadata/v1/instance/disks",
        "/computeMetadata/v1/instance/service-accounts/default/token",
        "",
    ),
];

/// A trick with the names of a path.
type Trick = (&'static str, fn(&[String]) -> Vec<String>);

fn each(names: &[String], change: impl Fn(&str) -> String) -> Vec<String> {
    names.iter().map(|name| change(name)).collect()
}

fn last(names: &[String], change: impl Fn(&str) -> String) -> Vec<String> {
    let (name, before) = names.split_last().expect("a path has a name");
    before.iter().cloned().chain([change(name)]).collect()
}

fn encode(text: &str) -> String {
    text.bytes().map(|byte| ["%", &hex(&[byte])].concat()).collect()
}

fn first_encoded(name: &str) -> String {
    let (first, rest) = name.split_at(1);
    encode(first) + rest
}

/// Inside names.
const NAMES: &[Trick] = &[
    ("plain", <[String]>::to_vec),
    ("capitals", |names| each(names, str::to_uppercase)),
    ("encoded", |names| each(names, encode)),
    ("first letters encoded", |names| each(names, first_encoded)),
    ("encoded twice", |names| each(names, |name| first_encoded(name).replace('%', "%25"))),
    ("parameters", |names| each(names, |name| format!("{name};x=y"))),
    ("full-width", |names| each(names, |name| name.replace('e', "%ef%bd%85"))),
    ("dot behind", |names| last(names, |name| format!("{name}."))),
    ("space behind", |names| last(names, |name| format!("{name}%20"))),
    ("NUL behind", |names| last(names, |name| format!("{name}%00"))),
    ("line feed behind", |names| last(names, |name| format!("{name}%0a"))),
    ("extension", |names| last(names, |name| format!("{name}.json"))),
    ("soft hyphen", |names| last(names, |name| format!("{name}%c2%ad"))),
];

/// Between names, and before the first.
const BETWEEN: &[&str] = &[
    "/",
    "//",
    "/./",
    "/%2e/",
    "/x/../",
    "/x/%2e%2e/",
    "%2f",
    "%5c",
    "\\\\",
    "%252f",
    "/.%00/",
    "/;/",
    "/%20/",
    "%ef%bc%8f",
];

/// How a climb from a harmless directory is spelt.
const CLIMBS: &[&str] = &[
    "../",
    "%2e%2e/",
    ".%2e/",
    "%252e%252e/",
    "..%2f",
    "..\\\\",
    "..%5c",
    "..;/",
    "..;a/",
    "..%00/",
    "..%20/",
    "..%09/",
    ".../",
    "%c0%ae%c0%ae/",
    "..%c0%af",
    "%e2%80%a5/",
    "%ef%bc%8e%ef%bc%8e/",
    "..%ef%bc%8f",
    "..//",
    ".//../",
];

/// All of them.
pub fn all() -> Vec<Case> {
    SECRETS.iter().flat_map(of).collect()
}

fn of(&(cloud, to, harmless, path, query): &Secret) -> Vec<Case> {
    let to: std::net::SocketAddr = to.parse().expect("an address");
    let names: Vec<String> = path.split('/').skip(1).map(str::to_owned).collect();
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    let headers: Vec<String> = ["Metadata: true", "Metadata-Flavor: Google", "Authorization: Bearer Oracle"]
        .map(str::to_owned)
        .into();
    let headers: Vec<&String> = headers.iter().collect();
    let case = |what: String, target: String| Case {
        name: format!("{cloud}: {path}: {what}"),
        cloud: cloud.to_owned(),
        to,
        low: false,
        bytes: request(&format!("GET {target}"), to, &headers, ""),
    };
    let mut cases = Vec::new();
    for (inside, change) in NAMES {
        for between in BETWEEN {
            let start = if between.starts_with('/') { "" } else { "/" };
            let joined = change(&names).join(between);
            let lead = if start.is_empty() { between } else { &start };
            cases.push(case(format!("{inside}, {between}"), format!("{lead}{joined}{query}")));
        }
    }
    let depth = harmless.matches('/').count();
    for climb in CLIMBS {
        for (inside, change) in NAMES.iter().take(4) {
            let up = climb.repeat(depth);
            cases.push(case(
                format!("{inside}, climb {climb}"),
                format!("{harmless}/{up}{}{query}", change(&names).join("/")),
            ));
        }
    }
    cases
}
