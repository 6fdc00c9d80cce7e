//! Where a service is reached, and how its bytes are treated there.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Deserialize;

/// An address and a TCP port that a metadata service owns.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Ord, PartialOrd)]
pub struct Endpoint {
    /// The address; a v4-mapped one is folded, so that `::ffff:169.254.169.254` is not a second door.
    pub addr: IpAddr,
    /// The TCP port.
    pub port: u16,
}

impl Endpoint {
    /// The address that most clouds share.
    pub const SHARED: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

    /// The endpoint at that address and port, the address in its canonical form.
    #[must_use]
    pub const fn new(addr: IpAddr, port: u16) -> Self {
        Self { addr: addr.to_canonical(), port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.addr, self.port).fmt(f)
    }
}

/// How the bytes at an endpoint are treated.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Door {
    /// Plain HTTP/1: every request is read and judged by itself.
    #[default]
    Http,
    /// TLS or HTTP/2: the guard sees only that somebody knocks.
    Opaque,
    /// Clouds that may be meant disagree: HTTP/1 is read and judged, anything else is opaque. The first bytes tell.
    #[serde(skip)]
    Either,
}

/// What a service, or a firewall on the way to it, takes as proof of who connects, besides what is sent. The guard's
/// own connection must carry the same proof where its caller's did, and only there.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// Nothing.
    #[default]
    None,
    /// That the socket is root's: the Azure agent's firewall lets nobody else out to WireServer.
    Root,
    /// A source port below 1024: Scaleway gives user data to no other.
    PrivilegedPort,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_the_same_door() {
        let mapped = Endpoint::new("::ffff:169.254.169.254".parse().unwrap(), 80);
        assert_eq!(mapped, Endpoint::new(Endpoint::SHARED, 80));
        assert_eq!(mapped.to_string(), "169.254.169.254:80");
        assert_eq!(Endpoint::new("fd00:ec2::254".parse().unwrap(), 80).to_string(), "[fd00:ec2::254]:80");
    }
}
