//! The header names that mean something to a proxy or to a metadata service.
//!
//! CGI-style servers map every punctuation mark of a header's name to one character, so that
//! `X_Forwarded_For`, `X-Forwarded-For` and `X.Forwarded.For` are the same header to them and three to
//! others. Names are therefore looked up in a folded form: lower case, every punctuation mark a hyphen.

/// What a known header does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Decides where the body ends.
    Framing,
    /// Belongs to one connection and ends at the guard.
    Hop,
    /// Changes the protocol; refused.
    Upgrade,
    /// Speaks for another client: the mark of a request that came through a proxy, as most SSRF does.
    Forwarding,
    /// Replaces the path or the host for some servers.
    Override,
    /// Replaces the method for some servers.
    MethodOverride,
    /// May occur once.
    Single,
    /// Names the service; may occur once, with faults of its own.
    Host,
}

/// A known header: its folded name, its true spelling in lower case, and its role.
type Known = (&'static str, &'static str, Role);

/// A name that is spelt as it is folded.
const fn plain(name: &'static str, role: Role) -> Known {
    (name, name, role)
}

/// Sorted by folded name.
const KNOWN: &[Known] = &[
    plain("authorization", Role::Single),
    plain("base-url", Role::Override),
    plain("cf-connecting-ip", Role::Forwarding),
    plain("cf-connecting-ipv6", Role::Forwarding),
    plain("cf-pseudo-ipv4", Role::Forwarding),
    plain("client-ip", Role::Forwarding),
    plain("connection", Role::Hop),
    plain("content-encoding", Role::Single),
    plain("content-length", Role::Framing),
    plain("content-location", Role::Override),
    plain("content-range", Role::Single),
    plain("content-type", Role::Single),
    plain("date", Role::Single),
    plain("destination", Role::Override),
    ("domu-request", "domu_request", Role::Single),
    plain("expect", Role::Single),
    plain("fastly-client-ip", Role::Forwarding),
    plain("fly-client-ip", Role::Forwarding),
    plain("forwarded", Role::Forwarding),
    plain("forwarded-for", Role::Forwarding),
    plain("forwarded-for-ip", Role::Forwarding),
    plain("forwarded-host", Role::Forwarding),
    plain("forwarded-proto", Role::Forwarding),
    plain("host", Role::Host),
    plain("http2-settings", Role::Hop),
    plain("if-match", Role::Single),
    plain("if-modified-since", Role::Single),
    plain("if-none-match", Role::Single),
    plain("if-range", Role::Single),
    plain("if-unmodified-since", Role::Single),
    plain("keep-alive", Role::Hop),
    plain("location", Role::Override),
    plain("metadata", Role::Single),
    plain("metadata-flavor", Role::Single),
    plain("metadata-token", Role::Single),
    plain("metadata-token-expiry-seconds", Role::Single),
    plain("origin", Role::Single),
    plain("proxy", Role::Override),
    plain("proxy-authenticate", Role::Hop),
    plain("proxy-authorization", Role::Hop),
    plain("proxy-client-ip", Role::Forwarding),
    plain("proxy-connection", Role::Hop),
    plain("proxy-host", Role::Override),
    plain("proxy-url", Role::Override),
    plain("range", Role::Single),
    plain("referer", Role::Single),
    plain("request-uri", Role::Override),
    plain("te", Role::Hop),
    plain("trailer", Role::Hop),
    plain("transfer-encoding", Role::Framing),
    plain("true-client-ip", Role::Forwarding),
    plain("upgrade", Role::Upgrade),
    plain("uri", Role::Override),
    plain("url", Role::Override),
    plain("user-agent", Role::Single),
    plain("via", Role::Forwarding),
    plain("wl-proxy-client-ip", Role::Forwarding),
    plain("x-aliyun-ecs-metadata-token", Role::Single),
    plain("x-aliyun-ecs-metadata-token-ttl-seconds", Role::Single),
    plain("x-auth-key", Role::Single),
    plain("x-aws-ec2-metadata-token", Role::Single),
    plain("x-aws-ec2-metadata-token-ttl-seconds", Role::Single),
    plain("x-azure-clientip", Role::Forwarding),
    plain("x-azure-socketip", Role::Forwarding),
    plain("x-client-ip", Role::Forwarding),
    plain("x-cluster-client-ip", Role::Forwarding),
    plain("x-custom-ip-authorization", Role::Forwarding),
    plain("x-envoy-external-address", Role::Forwarding),
    plain("x-envoy-original-path", Role::Override),
    plain("x-forward-for", Role::Forwarding),
    plain("x-forwarded", Role::Forwarding),
    plain("x-google-metadata-request", Role::Single),
    plain("x-host", Role::Override),
    plain("x-host-override", Role::Override),
    plain("x-http-destinationurl", Role::Override),
    plain("x-http-host-override", Role::Override),
    plain("x-http-method", Role::MethodOverride),
    plain("x-http-method-override", Role::MethodOverride),
    plain("x-http-path-override", Role::Override),
    plain("x-instance-id", Role::Forwarding),
    plain("x-instance-id-signature", Role::Forwarding),
    plain("x-metadata-provider", Role::Forwarding),
    plain("x-metadata-provider-signature", Role::Forwarding),
    plain("x-metadata-token", Role::Single),
    plain("x-metadata-token-ttl-seconds", Role::Single),
    plain("x-method-override", Role::MethodOverride),
    plain("x-ms-agent-name", Role::Single),
    plain("x-ms-artifact-location", Role::Single),
    plain("x-ms-azure-host-authorization", Role::Single),
    plain("x-ms-azure-host-claims", Role::Single),
    plain("x-ms-azure-host-date", Role::Single),
    plain("x-ms-cipher-name", Role::Single),
    plain("x-ms-containerid", Role::Single),
    plain("x-ms-guest-agent-public-x509-cert", Role::Single),
    plain("x-ms-host-config-name", Role::Single),
    plain("x-ms-version", Role::Single),
    plain("x-neutron-network-id", Role::Forwarding),
    plain("x-neutron-router-id", Role::Forwarding),
    plain("x-original-forwarded-for", Role::Forwarding),
    plain("x-originating-ip", Role::Forwarding),
    plain("x-ovn-network-id", Role::Forwarding),
    plain("x-path", Role::Override),
    plain("x-proxy-url", Role::Override),
    plain("x-proxyuser-ip", Role::Forwarding),
    plain("x-real-ip", Role::Forwarding),
    plain("x-remote-addr", Role::Forwarding),
    plain("x-remote-ip", Role::Forwarding),
    plain("x-replaced-path", Role::Override),
    plain("x-request-uri", Role::Override),
    plain("x-request-url", Role::Override),
    plain("x-sendfile", Role::Override),
    plain("x-tenant-id", Role::Forwarding),
    plain("x-uri", Role::Override),
    plain("x-url", Role::Override),
    plain("x-volc-ecs-metadata-token", Role::Single),
    plain("x-volc-ecs-metadata-token-ttl-seconds", Role::Single),
    plain("z-forwarded-for", Role::Forwarding),
];

/// Families of headers that proxies and frameworks add to at will.
const FAMILIES: &[(&str, Role)] = &[
    ("x-accel-", Role::Override),
    ("x-forwarded-", Role::Forwarding),
    ("x-original-", Role::Override),
    ("x-override-", Role::Override),
    ("x-rewrite-", Role::Override),
];

/// The longest name that matters, with room to spare; a longer one can only match a prefix.
const FOLDED: usize = 48;

// Repetition is tracked by one bit per entry.
const _: () = assert!(KNOWN.len() <= 128, "the set of seen headers is a u128");

/// What is known of one header's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// What the header does.
    pub role: Role,
    /// Whether the name is spelt as its owner spells it, but for case.
    pub exact: bool,
    /// The entry's place; members of a prefix family, which may not occur at all, share one beyond the table.
    index: u8,
}

impl Found {
    /// A bit of its own, to see repetition.
    pub(super) fn bit(self) -> u128 {
        1_u128.checked_shl(self.index.into()).unwrap_or(0)
    }
}

/// Looks a header's name up, in whatever spelling.
pub(super) fn find(name: &[u8]) -> Option<Found> {
    let mut buffer = [0_u8; FOLDED];
    for (slot, byte) in buffer.iter_mut().zip(name) {
        *slot = if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
    }
    let known = buffer.get(..name.len()).and_then(|folded| {
        let index = KNOWN.binary_search_by(|(known, _, _)| known.as_bytes().cmp(folded)).ok()?;
        let (_, spelling, role) = KNOWN.get(index)?;
        let exact = name.eq_ignore_ascii_case(spelling.as_bytes());
        Some(Found { role: *role, exact, index: u8::try_from(index).ok()? })
    });
    let family = || {
        let (_, role) = FAMILIES.iter().find(|(start, _)| buffer.starts_with(start.as_bytes()))?;
        Some(Found { role: *role, exact: true, index: u8::MAX })
    };
    known.or_else(family)
}

/// Whether a header, in whatever spelling, ends at the guard when it enforces: the headers of one connection,
/// and those that make some servers see another method than the one that was judged.
#[must_use]
pub fn is_dropped_in_enforce(name: &str) -> bool {
    match find(name.as_bytes()).map(|found| found.role) {
        Some(Role::Hop | Role::Framing | Role::Upgrade | Role::MethodOverride) => true,
        Some(Role::Forwarding | Role::Override | Role::Single | Role::Host) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{FOLDED, KNOWN, Role, find, is_dropped_in_enforce};

    #[test]
    fn the_table_is_sorted_folded_and_short() {
        assert!(KNOWN.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for (folded, spelling, _) in KNOWN {
            assert!(folded.len() < FOLDED, "{folded}");
            assert_eq!(&spelling.replace('_', "-"), folded);
            assert_eq!(folded.to_ascii_lowercase(), *folded);
        }
    }

    #[test]
    fn every_spelling_of_a_name_is_found() {
        for (folded, spelling, role) in KNOWN {
            for name in [folded.to_ascii_uppercase(), folded.replace('-', "_"), folded.replace('-', ".")] {
                let found = find(name.as_bytes()).expect(&name);
                assert_eq!(found.role, *role, "{name}");
                assert_eq!(found.exact, name.eq_ignore_ascii_case(spelling), "{name}");
            }
        }
    }

    #[test]
    fn prefix_families_are_found_at_any_length() {
        for name in ["X-Forwarded-For", "x_forwarded_prefix", &format!("x-forwarded-{}", "y".repeat(100))] {
            assert_eq!(find(name.as_bytes()).map(|found| found.role), Some(Role::Forwarding), "{name}");
        }
        for name in
            ["X-Original-URL", "x_rewrite_uri", "X-Override-Path", "X-Accel-Redirect", "X-Original-Host"]
        {
            assert_eq!(find(name.as_bytes()).map(|found| found.role), Some(Role::Override), "{name}");
        }
        assert_eq!(find(b"x-forward"), None);
        assert_eq!(find(b"accept"), None);
        assert_eq!(find("x".repeat(200).as_bytes()), None);
    }

    #[test]
    fn what_is_dropped() {
        for name in
            ["Connection", "keep-alive", "TE", "Trailer", "X-HTTP-Method-Override", "x_http_method_override"]
        {
            assert!(is_dropped_in_enforce(name), "{name}");
        }
        for name in ["Host", "Authorization", "Metadata-Flavor", "Accept", "X-Forwarded-For", "User-Agent"] {
            assert!(!is_dropped_in_enforce(name), "{name}");
        }
    }
}
