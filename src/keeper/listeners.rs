//! The sockets to which the redirect leads.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};

use crate::redirect::Led;

use super::store::Kept;

/// How many connections may wait to be accepted. The kernel's own limit (`net.core.somaxconn`) may be lower.
const BACKLOG: i32 = 4096;

/// The listeners of all endpoints.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Each endpoint's, one after the other.
    pub all: Vec<TcpListener>,
    /// Those among them that are new, for the service manager to keep.
    pub new: Vec<TcpListener>,
}

/// Listeners for each endpoint: one per worker, so that a connection wakes one of them, at every address of the IP
/// version, since the redirect leads a connection to an address of the interface that it leaves through. What the
/// redirect did not bring is reset, by the rules and once more by the proxy. A host without IPv6 has no IPv6 listeners.
///
/// Those that an earlier guard left are all used, more than one per worker included: connections may wait in them.
pub fn open(doors: &[Led], workers: usize, kept: &mut Kept) -> Result<Listeners, (u16, io::Error)> {
    let mut listeners = Listeners::default();
    for door in doors {
        let any = match door.endpoint.addr {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let addr = SocketAddr::new(any, door.port);
        let before = kept.take(addr);
        let new: io::Result<Vec<TcpListener>> = (before.len()..workers).map(|_| open_at(addr)).collect();
        let copies = new.and_then(|new| {
            let copies: io::Result<Vec<TcpListener>> = new.iter().map(TcpListener::try_clone).collect();
            Ok((copies?, new))
        });
        match copies {
            Ok((copies, new)) => {
                listeners.all.extend(before);
                listeners.all.extend(copies);
                listeners.new.extend(new);
            }
            Err(error) if any.is_ipv6() && lacks_ipv6(&error) => {
                tracing::info!(endpoint = %door.endpoint, "this host has no IPv6: an endpoint needs no guarding");
            }
            Err(error) => return Err((door.port, error)),
        }
    }
    Ok(listeners)
}

/// Becomes readable when somebody has closed a listener under the guard's hands: whoever has `CAP_NET_ADMIN` can
/// (`ss --kill`), and then every caller of that endpoint is refused, in audit mode, too. A connection wakes nobody here.
pub fn watch<'a>(listeners: impl IntoIterator<Item = &'a TcpListener>) -> io::Result<OwnedFd> {
    let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (listener, index) in listeners.into_iter().zip(0..) {
        // An error and a hang-up are told without being asked for.
        epoll::add(&watch, listener, epoll::EventData::new_u64(index), epoll::EventFlags::empty())?;
    }
    Ok(watch)
}

fn lacks_ipv6(error: &io::Error) -> bool {
    use nix::errno::Errno;
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL]
        .into_iter()
        .any(|errno| error.raw_os_error() == Some(errno as i32))
}

/// One listener that shares its address with the other workers'.
pub(super) fn open_at(addr: SocketAddr) -> io::Result<TcpListener> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Only another socket of root's can share the port.
    sockopt::set_socket_reuseport(&socket, true)?;
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // Accepted connections inherit it: an answer must not wait for the acknowledgement of the one before.
    sockopt::set_tcp_nodelay(&socket, true)?;
    bind(&socket, &addr)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::Endpoint;
    use crate::redirect::ruleset::lead;

    #[test]
    fn each_endpoint_has_a_listener_per_worker() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let endpoints =
            [Endpoint::new(Endpoint::SHARED, 80), Endpoint::new("fd00:ec2::254".parse().unwrap(), 80)];
        let listeners = open(&lead(&endpoints, port), 2, &mut Kept::default()).unwrap().all;
        assert!(listeners.iter().all(|listener| listener.local_addr().unwrap().ip().is_unspecified()));
        assert!(listeners[..2].iter().all(|listener| listener.local_addr().unwrap().port() == port));
    }

    #[test]
    fn a_connection_wakes_nobody_who_watches_for_the_listener_s_end() {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let watch = watch([&listener]).unwrap();
        let is_ended = || {
            let mut polled = [PollFd::new(&watch, PollFlags::IN)];
            poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
        };
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!is_ended());
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        assert!(is_ended());
    }
}
