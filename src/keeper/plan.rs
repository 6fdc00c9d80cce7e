//! What a policy asks of the keeper: whom the proxy becomes, which redirect is wanted.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::cloud::{Catalogue, Endpoint, Proof};
use crate::policy::{Mode, Policy};
use crate::redirect::{Guests, Led, Wanted, interfaces, ruleset};

use super::bundle::Bundle;
use super::error::KeeperError;
use super::host;
use super::proxy::Role;

/// The policy that the files say, its warnings told.
pub(super) fn compile(bundle: &Bundle) -> Result<Policy, KeeperError> {
    let compiled = bundle.compile().map_err(KeeperError::Policy)?;
    for warning in &compiled.warnings {
        tracing::warn!(code = warning.code, "{}", warning.message);
    }
    Ok(compiled.policy)
}

/// Whom the proxy becomes.
pub(super) fn role(policy: &Policy) -> Result<Role, KeeperError> {
    let user = &policy.settings().user;
    let uid = user.uid.ok_or_else(|| KeeperError::NoUser(user.name.clone()))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = policy.settings().workers.map_or(cores.min(8), usize::from);
    let alive_ms = beat_period().map_or(0, |period| u64::try_from(period.as_millis()).unwrap_or(0));
    Ok(Role { uid, gid: user.gid.unwrap_or(uid), workers, alive_ms })
}

/// How often the service manager hears of the keeper, and the keeper of each worker: often enough that a beat which an
/// event has put off still comes in time.
pub(super) fn beat_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 4)
}

/// The redirect that a policy asks for.
pub fn wanted_by(policy: &Policy) -> Result<Wanted, KeeperError> {
    let doors = doors(policy)?;
    let guests = guests(policy, doors.guests);
    wanted(policy, role(policy)?.uid, doors.host, guests)
}

/// Where the redirect leads.
pub(super) struct Doors {
    /// What comes from this host.
    pub host: Vec<Led>,
    /// What comes out of other network namespaces.
    pub guests: Vec<Led>,
}

/// The doors of the policy's endpoints.
///
/// An endpoint of a known cloud has the same port whichever clouds are chosen. The kernel remembers connections for
/// minutes: if a port that led to one endpoint led to another after a restart, a client's source port could be taken,
/// to the kernel, by its earlier connection; it would be rewritten, and the connection refused for that.
pub(super) fn doors(policy: &Policy) -> Result<Doors, KeeperError> {
    let chosen = policy.catalogue().endpoints();
    let mut numbered = Catalogue::builtin().endpoints();
    // The one that nearly all clouds share has the port that the policy names.
    numbered.sort_by_key(|endpoint| *endpoint != Endpoint::new(Endpoint::SHARED, 80));
    let own: Vec<Endpoint> = chosen.iter().filter(|own| !numbered.contains(own)).copied().collect();
    numbered.extend(own);
    let mut host = ruleset::lead(&numbered, policy.settings().port);
    let mut guests = ruleset::lead_guests(&host);
    let is_chosen = |led: &Led| chosen.contains(&led.endpoint);
    host.retain(is_chosen);
    guests.retain(is_chosen);
    let routed = chosen.iter().filter(|endpoint| ruleset::is_routed(**endpoint)).count();
    if host.len() < chosen.len() || guests.len() < routed {
        return Err(KeeperError::Ports(policy.settings().port));
    }
    Ok(Doors { host, guests })
}

/// What becomes of connections out of other network namespaces: where anything is refused they have to be judged.
pub(super) fn guests(policy: &Policy, doors: Vec<Led>) -> Option<Guests> {
    let containers = policy.containers()?;
    let judged = containers.judge || policy.mode() == Mode::Enforce;
    Some(Guests {
        interfaces: containers.interfaces.clone(),
        uplinks: host::uplinks(),
        own: own_addresses(policy.catalogue()),
        doors: judged.then_some(doors),
    })
}

/// Endpoints' addresses that are this host's own. Where they cannot be read there are none, and more is judged.
pub(super) fn own_addresses(catalogue: &Catalogue) -> Vec<IpAddr> {
    let own = interfaces::addresses().unwrap_or_default();
    let addresses: BTreeSet<IpAddr> = catalogue.endpoints().iter().map(|endpoint| endpoint.addr).collect();
    addresses.intersection(&own).copied().collect()
}

/// The redirect that a policy asks for, with these listeners.
pub(super) fn wanted(
    policy: &Policy,
    guard_uid: u32,
    doors: Vec<Led>,
    guests: Option<Guests>,
) -> Result<Wanted, KeeperError> {
    let proof = |door: &Led| policy.catalogue().proof(door.endpoint);
    Ok(Wanted {
        direction: policy.mode().into(),
        as_root: policy.settings().upstream_mark.is_some()
            || doors.iter().any(|door| proof(door) != Proof::None),
        doors,
        guard_uid,
        interfaces: interfaces::read()?,
        guests,
    })
}

/// The executables that agents are bound to.
pub(super) fn executables(policy: &Policy) -> Vec<PathBuf> {
    policy.executables().map(PathBuf::from).collect()
}
