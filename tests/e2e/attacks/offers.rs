//! Clients that offer a protocol which they do not insist on: they are no attack, and must be served as they are.

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::policy::Policy;

const METADATA: &str = "169.254.169.254:80";

/// The JDK's HTTP client.
const HTTP2: &[&str] = &[
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
];

/// Perl's LWP.
const TRAILERS: &[&str] = &["TE: deflate,gzip;q=0.3", "Connection: TE, close"];

fn offered(offer: &[&str]) {
    for policy in [Policy::enforce(), Policy::audit()] {
        let bed = Bed::new();
        let _guard = bed.guard(&policy);
        let mut agent = bed.agent().connect(METADATA);
        agent.get(ROLE_PATH, offer);
        assert_eq!(agent.answer().map(|answer| answer.status), Some(200), "{offer:?}");
        assert_eq!(bed.reached(ROLE_PATH).len(), 1);
    }
    let bed = Bed::new();
    let _guard = bed.guard(&Policy::enforce());
    let mut webapp = bed.webapp().connect(METADATA);
    webapp.get(ROLE_PATH, offer);
    assert!(webapp.answer().is_some_and(|answer| answer.is_refusal()), "{offer:?}");
    assert!(bed.cloud.received().is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_jdk_that_offers_http2_is_judged_like_any_other() {
    offered(HTTP2);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn lwp_with_te_and_close_is_judged_like_any_other() {
    offered(TRAILERS);
}
