//! What the keeper keeps once everything is open.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

/// What the running keeper needs: nftables, other users' processes in procfs, and to end a proxy that does not end
/// by itself (which is another user), and source ports below 1024 (see [`super::upstream`]). `CAP_SYS_PTRACE` with `CAP_DAC_READ_SEARCH` is much; it is why this half
/// reads no caller's bytes.
const NEEDED: [Capability; 5] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_KILL,
    Capability::CAP_NET_BIND_SERVICE,
];

/// What it takes to enter other network namespaces, where the policy speaks of containers.
const FOR_CONTAINERS: Capability = Capability::CAP_SYS_ADMIN;

/// Whether this process may look into other network namespaces, as far as it is up to its capabilities.
pub fn may_enter_namespaces() -> io::Result<bool> {
    caps::has_cap(None, CapSet::Permitted, FOR_CONTAINERS).map_err(io::Error::other)
}

/// Gives up every other capability, for this process and for the nft that it runs: as root, a program would get
/// all of them back when it starts, if `no_new_privs` did not keep it to what its parent has.
pub fn keep_only_what_is_needed(with_containers: bool) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let held = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let needed = NEEDED.into_iter().chain(with_containers.then_some(FOR_CONTAINERS));
    let kept: CapsHashSet = needed.filter(|capability| held.contains(capability)).collect();
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).map_err(io::Error::other)?;
    }
    Ok(())
}
