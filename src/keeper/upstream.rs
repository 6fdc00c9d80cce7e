//! Connections that the keeper opens for the proxy, because a service or a firewall before it wants to see privilege
//! in the connection itself. The keeper writes and reads nothing on them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, socket_with};

/// Source ports below 1024 that are tried, from the top: the lower ones are more likely to be a service's.
const LOW_PORTS: std::ops::RangeInclusive<u16> = 512..=1023;

/// Starts a connection as root, with this mark, by which the redirect lets it pass; it completes in the proxy.
pub fn open(to: SocketAddr, low_port: bool, mark: u32) -> io::Result<OwnedFd> {
    if !low_port {
        return start(to, None, mark);
    }
    // A port in use, or one that the service still remembers, is no reason to give up.
    LOW_PORTS
        .rev()
        .find_map(|port| start(to, Some(port), mark).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "no source port below 1024 is free"))
}

fn start(to: SocketAddr, from_port: Option<u16>, mark: u32) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    setsockopt(&socket, sockopt::Mark, &mark)?;
    if let Some(port) = from_port {
        let any =
            if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        bind(&socket, &SocketAddr::new(any, port))?;
    }
    match connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}
