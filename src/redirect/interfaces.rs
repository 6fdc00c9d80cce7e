//! This network namespace's interfaces and their addresses, and when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::{InterfaceFlags, if_nametoindex};

use super::Interface;

/// More interfaces with addresses than this are not led separately; sockets bound to the others are not served.
const LIMIT: usize = 64;

/// Groups of address changes (`RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`, linux/rtnetlink.h).
const ADDRESS_GROUPS: [u32; 2] = [5, 9];

/// Groups of route changes (`RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_ROUTE`): an interface may become an uplink.
const ROUTE_GROUPS: [u32; 2] = [7, 11];

/// The interfaces that are up and have addresses of their own, loopback left out, in the order of their names.
pub fn read() -> io::Result<Vec<Interface>> {
    let mut found: BTreeMap<String, Interface> = BTreeMap::new();
    for entry in getifaddrs()? {
        let is_led = entry.flags.contains(InterfaceFlags::IFF_UP)
            && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let Some(addr) = address(&entry).filter(|_| is_led && is_plain(&entry.interface_name)) else {
            continue;
        };
        let Ok(index) = if_nametoindex(entry.interface_name.as_str()) else { continue };
        let name = entry.interface_name.clone();
        let interface = found.entry(name.clone()).or_insert(Interface {
            name,
            index,
            v4: None,
            v6: None,
            link_local: None,
        });
        match addr {
            IpAddr::V4(v4) => interface.v4 = interface.v4.or(Some(v4)),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => {
                interface.link_local = interface.link_local.or(Some(v6));
            }
            IpAddr::V6(v6) => interface.v6 = interface.v6.or(Some(v6)),
        }
    }
    Ok(found.into_values().take(LIMIT).collect())
}

/// Every address of this network namespace, those of loopback included.
pub fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    Ok(getifaddrs()?.filter_map(|entry| address(&entry)).collect())
}

fn address(entry: &InterfaceAddress) -> Option<IpAddr> {
    let storage = entry.address.as_ref()?;
    storage
        .as_sockaddr_in()
        .map(|v4| IpAddr::V4(v4.ip()))
        .or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(Ipv6Addr::from(v6.ip().octets()))))
}

/// A name that can stand in a rule between quotes. The kernel allows more; whoever may name interfaces is trusted,
/// and still shall not write rules by accident.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@:".contains(&byte))
}

/// A netlink socket that becomes readable when an address comes or goes.
pub struct AddressWatch {
    socket: Socket,
}

impl AddressWatch {
    /// Joins the groups; those of routes only where it matters which interfaces are uplinks.
    pub fn start(with_routes: bool) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        let routes = ROUTE_GROUPS.into_iter().filter(|_| with_routes);
        for group in ADDRESS_GROUPS.into_iter().chain(routes) {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Takes all waiting notifications; what they say is read from the interfaces themselves.
    pub fn drain(&mut self) {
        super::watch::drain(&mut self.socket);
    }
}

impl AsFd for AddressWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_not_led() {
        assert!(read().unwrap().iter().all(|interface| interface.name != "lo"));
    }

    #[test]
    fn odd_names_do_not_reach_the_rules() {
        assert!(is_plain("ens5") && is_plain("br-3f.100"));
        assert!(!is_plain("a\" accept; #"));
    }
}
