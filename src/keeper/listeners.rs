//! The sockets to which the redirect leads.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};

/// How many connections may wait to be accepted. The kernel's own limit (`net.core.somaxconn`) may be lower.
const BACKLOG: i32 = 4096;

/// Listeners at every address: the redirect leads a connection to an address of the interface that it leaves
/// through. What the redirect did not bring is reset, by the rules and once more by the proxy. A host without IPv6
/// has only the first.
pub fn open(port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = vec![open_at(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))?];
    match open_at(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
        Ok(listener) => listeners.push(listener),
        Err(error) if lacks_ipv6(&error) => tracing::info!("this host has no IPv6: guarding IPv4 alone"),
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

fn lacks_ipv6(error: &io::Error) -> bool {
    use nix::errno::Errno;
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL]
        .into_iter()
        .any(|errno| error.raw_os_error() == Some(errno as i32))
}

fn open_at(addr: SocketAddr) -> io::Result<TcpListener> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &addr)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ip_versions_listen_on_one_port() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listeners = open(port).unwrap();
        assert!(listeners.iter().all(|listener| listener.local_addr().unwrap().port() == port));
        assert!(listeners.iter().all(|listener| listener.local_addr().unwrap().ip().is_unspecified()));
    }
}
