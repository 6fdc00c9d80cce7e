//! The two ends of an accepted connection: who connected, and where to, before the redirect.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{Ip6tOriginalDst, OriginalDst};

use crate::caller::stamps::Flow;

/// The flow of a connection that the redirect brought.
///
/// `None` if nothing redirected it: somebody connected to the listener's own address, and gets nothing.
pub fn of(stream: &tokio::net::TcpStream) -> io::Result<Option<Flow>> {
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
    let original =
        if local.ip().to_canonical().is_ipv4() { original_v4(stream) } else { original_v6(stream) };
    Ok(original.filter(|original| *original != local).map(|original| Flow::new(peer, original)))
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
    Some(SocketAddr::new(IpAddr::V6(addr), u16::from_be(raw.sin6_port)))
}
