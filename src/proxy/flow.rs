//! The two ends of an accepted connection: who connected, and where to, before the redirect.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{Ip6tOriginalDst, OriginalDst};

use crate::caller::stamps::Flow;

/// The flow of a connection that the redirect brought.
///
/// `None` if nothing redirected it: somebody connected to the listener's own address, and gets nothing.
pub fn of(
    stream: &tokio::net::TcpStream,
    client: SocketAddr,
    interfaces: &[(IpAddr, u32)],
) -> io::Result<Option<Flow>> {
    let local = stream.local_addr()?;
    let here = local.ip().to_canonical();
    let original = if here.is_ipv4() { original_v4(stream) } else { original_v6(stream) };
    // The redirect led it to an address of the interface through which it was leaving.
    let interface = interfaces.iter().find(|(addr, _)| *addr == here).map(|(_, index)| *index);
    let is_redirected = |original: &SocketAddr| (original.ip(), original.port()) != (here, local.port());
    Ok(original.filter(is_redirected).map(|original| Flow::new(client, original).on(interface)))
}

/// The kernel keeps the original destination with the connection's tracking entry, where no client can reach it.
fn original_v4(stream: impl AsFd) -> Option<SocketAddr> {
    let raw = getsockopt(&stream, OriginalDst).ok()?;
    let addr = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
    Some(SocketAddr::new(IpAddr::V4(addr), u16::from_be(raw.sin_port)))
}

fn original_v6(stream: impl AsFd) -> Option<SocketAddr> {
    let raw = getsockopt(&stream, Ip6tOriginalDst).ok()?;
    let addr = Ipv6Addr::from(raw.sin6_addr.s6_addr);
    Some(SocketAddrV6::new(addr, u16::from_be(raw.sin6_port), 0, raw.sin6_scope_id).into())
}
