//! How many connections the proxy's descriptors allow. Where they are used up nothing can be accepted, not even to be
//! refused, and who asks waits in the listener: the limits must be met first.

use nix::sys::resource::{Resource, getrlimit};

use crate::policy::Limits;

/// Listeners, logs, channels, event loops, and some to spare.
const OTHERS: u64 = 64;

/// Each connection may need its own, one to the service, and one that waits there to be used again.
const PER_CONNECTION: u64 = 3;

/// Even where there are hardly any descriptors somebody must get in.
const LEAST: u32 = 16;

/// How many connections there may be at one time. Tells if that is less than the policy allows.
#[must_use]
pub fn places(limits: &Limits) -> u32 {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    let places = places_of(soft);
    let left = within(*limits, places);
    if left != *limits {
        tracing::warn!(
            descriptors = soft,
            connections = left.connections,
            per_uid = left.connections_per_uid,
            "descriptors allow fewer connections than the policy does: see LimitNOFILE="
        );
    }
    places
}

fn places_of(descriptors: u64) -> u32 {
    let places = descriptors.saturating_sub(OTHERS) / PER_CONNECTION;
    u32::try_from(places).unwrap_or(u32::MAX).max(LEAST)
}

/// The limits, as far as there are places. A quarter of these is any one user's at most, and the last quarter is root's,
/// who is not held to the total.
#[must_use]
pub fn within(limits: Limits, places: u32) -> Limits {
    let quarter = places / 4;
    Limits {
        connections: limits.connections.min(places - quarter),
        connections_per_uid: limits.connections_per_uid.min(quarter),
        ..limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_descriptors_do_not_narrow_the_limits() {
        for descriptors in [20_000, 524_288, 1 << 20] {
            assert_eq!(within(Limits::default(), places_of(descriptors)), Limits::default());
        }
    }

    #[test]
    fn all_connections_together_find_descriptors() {
        for descriptors in [256, 1024, 4096] {
            let places = places_of(descriptors);
            let limits = within(Limits::default(), places);
            assert!(limits.connections + limits.connections_per_uid <= places, "root beside all others");
            assert!(u64::from(places) * PER_CONNECTION + OTHERS <= descriptors);
            assert!(limits.connections_per_uid >= 1);
        }
    }
}
