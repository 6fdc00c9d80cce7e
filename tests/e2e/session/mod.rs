//! Session tokens (IMDSv2): reads without one, reads with another's, and tokens that the guard lends.

mod binding;
mod kin;
mod upgrade;
mod v1;

use crate::support::bed::Bed;
use crate::support::caller::Caller;
use crate::support::policy::{AGENT, Policy};
use crate::support::simulator::{Options, Received};

const METADATA: &str = "http://169.254.169.254";
const INSTANCE_ID: &str = "/latest/meta-data/instance-id";
const TOKEN_PATH: &str = "/latest/api/token";
const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds: 600";

/// A bed whose cloud requires session tokens.
fn v2_only() -> Bed {
    Bed::with_options(Options { v2_only: true, ..Options::default() })
}

fn aws(policy: Policy) -> Policy {
    policy.cloud("aws")
}

/// The listed agent, and what becomes of its reads without a token.
fn with_v1(policy: Policy, v1: &str) -> Policy {
    aws(policy).without_agent().with(&format!(
        "[[agent]]\nname = \"legacy\"\nunit = \"{AGENT}\"\nuser = \"root\"\nv1 = \"{v1}\"\n\
         allow = [\"config\", \"session\", \"credentials\"]"
    ))
}

fn url(path: &str) -> String {
    format!("{METADATA}{path}")
}

/// Fetches a token as a caller does.
fn fetch_token(caller: &Caller<'_>) -> String {
    let curl = caller.curl(&["-X", "PUT", "-H", TTL, &url(TOKEN_PATH)]);
    assert_eq!((curl.exit, curl.answer.status), (0, 200), "{}", curl.message);
    curl.answer.text()
}

fn showing(token: &str) -> String {
    format!("X-aws-ec2-metadata-token: {token}")
}

/// The token that a request showed when it reached the cloud.
fn shown(received: &Received) -> Option<String> {
    let text = received.text();
    let value = text.lines().filter_map(|line| line.split_once(':'));
    value
        .filter(|(name, _)| name.eq_ignore_ascii_case("x-aws-ec2-metadata-token"))
        .map(|(_, value)| value.trim().to_owned())
        .next()
}
