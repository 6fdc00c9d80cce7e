//! Every cloud over IPv4, IPv6 where it has that, and an IPv4 address in an IPv6 socket: the listed agent gets its
//! secrets, the web application is refused in the words that its client understands.

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::caller::Caller;
use crate::support::policy::Policy;
use crate::support::simulator::{Options, SECRET_MARK};

const V4: &str = "169.254.169.254";
const MAPPED: &str = "[::ffff:169.254.169.254]";
const AWS_V6: &str = "[fd00:ec2::254]";
const GCP_V6: &str = "[fd20:ce::254]";

/// Where a cloud's credentials are, and how it wants to be asked.
struct Secret {
    path: &'static str,
    headers: &'static [&'static str],
    /// The status by which clients of that cloud understand "no, and don't ask again".
    refusal: u16,
}

const GCP: Secret = Secret {
    path: "/computeMetadata/v1/instance/service-accounts/default/token",
    headers: &["Metadata-Flavor: Google"],
    refusal: 404,
};

const AZURE: Secret = Secret {
    path: "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F",
    headers: &["Metadata: true"],
    refusal: 400,
};

const DIGITALOCEAN: Secret = Secret { path: "/metadata/v1/auth-token", headers: &[], refusal: 404 };

fn check(host: &str, secret: &Secret) {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let url = format!("http://{host}{}", secret.path);
    let granted = bed.agent().get_with(&url, secret.headers);
    assert_eq!(granted.status, 200);
    assert!(granted.text().contains(SECRET_MARK), "{}", granted.text());
    let reached = bed.cloud.received().len();

    let refused = bed.webapp().get_with(&url, secret.headers);
    assert!(refused.is_refusal(), "{refused:?}");
    assert_eq!(refused.status, secret.refusal);
    assert!(!refused.text().contains(SECRET_MARK));
    assert_eq!(bed.cloud.received().len(), reached, "a refused request reached the cloud");
}

/// As SDKs do it: a session token first, then the role's name, then its credentials.
fn aws_session(caller: &Caller<'_>, host: &str) -> (u16, String) {
    const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds: 21600";
    let token = caller.curl(&["-X", "PUT", "-H", TTL, &format!("http://{host}/latest/api/token")]).answer;
    assert_eq!(
        token.status, 200,
        "the token must be had by everyone, or SDKs fall back to IMDSv1: {token:?}"
    );
    assert_eq!(token.header("x-aws-ec2-metadata-token-ttl-seconds"), Some("21600"));
    let header = format!("X-aws-ec2-metadata-token: {}", token.text());
    let credentials = caller.get_with(&format!("http://{host}{ROLE_PATH}"), &[&header]);
    (credentials.status, credentials.text())
}

fn check_aws(host: &str) {
    let bed = Bed::with_options(Options { v2_only: true, ..Options::default() });
    let _guard = bed.guard(&Policy::enforce());
    let (status, body) = aws_session(&bed.agent(), host);
    assert_eq!(status, 200);
    assert!(body.contains("SecretAccessKey"), "{body}");
    let reached = bed.reached(ROLE_PATH).len();

    let (status, body) = aws_session(&bed.webapp(), host);
    assert!(matches!(status, 403 | 404), "{status}: SDKs retry, or fetch tokens for ever, on others");
    assert!(!body.contains(SECRET_MARK));
    assert_eq!(bed.reached(ROLE_PATH).len(), reached, "a refused request reached the cloud");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn aws_over_v4() {
    check_aws(V4);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn aws_over_v6() {
    check_aws(AWS_V6);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn aws_over_v4_mapped() {
    check_aws(MAPPED);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn aws_without_session_token() {
    check(V4, &Secret { path: ROLE_PATH, headers: &[], refusal: 404 });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn gcp_over_v4() {
    check(V4, &GCP);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn gcp_over_v6() {
    check(GCP_V6, &GCP);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn gcp_over_v4_mapped() {
    check(MAPPED, &GCP);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn azure_over_v4() {
    check(V4, &AZURE);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn azure_over_v4_mapped() {
    check(MAPPED, &AZURE);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn digitalocean_over_v4() {
    check(V4, &DIGITALOCEAN);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn digitalocean_over_v4_mapped() {
    check(MAPPED, &DIGITALOCEAN);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_gcp_refusal_carries_the_flavour_header() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let refused = bed.webapp().get_with(&format!("http://{V4}{}", GCP.path), GCP.headers);
    assert!(refused.is_refusal(), "{refused:?}");
    assert_eq!(refused.header("metadata-flavor"), Some("Google"), "Google's node client throws without it");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_azure_refusal_is_the_json_that_sdks_read() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let refused = bed.webapp().get_with(&format!("http://{V4}{}", AZURE.path), AZURE.headers);
    let body: serde_json::Value = serde_json::from_slice(&refused.body).expect("JSON");
    assert!(body.get("error").is_some(), "{body}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_refusal_tells_why_and_names_its_event() {
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    let refused = bed.webapp().get(&format!("http://{V4}{ROLE_PATH}"));
    let event = guard.event_for(ROLE_PATH);
    assert!(refused.text().contains(&event.text("event.id")), "{}", refused.text());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn everyone_reads_what_the_policy_grants_to_everyone() {
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let answer = bed.person().get(&format!("http://{V4}/latest/meta-data/instance-id"));
    assert_eq!((answer.status, answer.text().as_str()), (200, "i-0decoy"));
}
