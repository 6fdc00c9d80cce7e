//! Does a connection to each endpoint end at the guard? Tried as a client would, and looked up in the kernel's socket
//! table: the other end of the connection must be a socket of this host, on the listener's port, that the guard's own user
//! has accepted. Nothing is sent, so that nothing is asked and nothing recorded.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::sockets::{self, Socket};
use super::{Finding, Status};
use crate::redirect::{Interface, Led, Wanted};

/// How long a connection may take: the guard answers in microseconds, and a service that nobody guards in milliseconds.
const CONNECT: Duration = Duration::from_secs(2);

/// How long the guard may take to accept it.
const ACCEPT: Duration = Duration::from_secs(2);

/// Where a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    /// At the guard.
    Guard,
    /// In the guard's queue; nobody took it.
    Queue,
    /// At a socket of somebody else's on the guard's port.
    Stranger(u32),
    /// Somewhere else: the guard has not seen it.
    Around,
}

/// One finding for each endpoint.
#[must_use]
pub fn endpoints(wanted: &Wanted) -> Vec<Finding> {
    wanted.doors.iter().map(|door| endpoint(door, wanted)).collect()
}

fn endpoint(door: &Led, wanted: &Wanted) -> Finding {
    const CHECK: &str = "guarded";
    let name = door.endpoint;
    let Some(addr) = address(door, &wanted.interfaces) else {
        return Finding::new(CHECK, Status::Ok, format!("{name}: no interface leads there"));
    };
    match reach(addr, door.port, wanted.guard_uid) {
        Ok(Reached::Guard) => Finding::new(CHECK, Status::Ok, format!("{name}: a connection reaches the guard")),
        Ok(Reached::Queue) => {
            Finding::new(CHECK, Status::Wrong, format!("{name}: a connection waits, and the guard does not take it"))
                .help("the guard hangs or is away: systemctl status imds-guard")
        }
        Ok(Reached::Stranger(uid)) => {
            Finding::new(CHECK, Status::Wrong, format!("{name}: a program of uid {uid} answers in the guard's place"))
                .help("find it with ss -ltnp, and the guard's port in [guard] port")
        }
        Ok(Reached::Around) => {
            Finding::new(CHECK, Status::Wrong, format!("{name}: a connection goes around the guard"))
                .help("another rule or program leads it elsewhere, or the guard's redirect is gone: imds-guard redirect verify")
        }
        Err(error) => refused(CHECK, &format!("{name}"), &error),
    }
}

/// A connection that did not come about is no hole; whether it is right depends on why.
fn refused(check: &'static str, name: &str, error: &io::Error) -> Finding {
    use ErrorKind::{
        AddrNotAvailable, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable,
        PermissionDenied,
    };
    let of = |status, what: &str| Finding::new(check, status, format!("{name}: {what}"));
    let kind = error.kind();
    if [NetworkUnreachable, HostUnreachable, AddrNotAvailable].contains(&kind) {
        of(Status::Ok, "this host has no way there")
    } else if kind == PermissionDenied {
        of(Status::Warning, "a route forbids it before the guard could see it")
            .help("systemd-imdsd's locked mode does that; the guard itself then needs upstream-mark")
    } else if [ConnectionRefused, ConnectionReset].contains(&kind) {
        of(Status::Wrong, "reset: closed, and the guard is not there")
            .help("the guard is not running: systemctl status imds-guard")
    } else {
        of(Status::Wrong, &format!("no connection: {error}"))
            .help("a firewall drops what is led to the guard, or the guard is not running")
    }
}

/// A link-local address means an interface.
fn address(door: &Led, interfaces: &[Interface]) -> Option<SocketAddr> {
    match door.endpoint.addr {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            let interface = interfaces.iter().find(|interface| interface.link_local.is_some())?;
            Some(SocketAddrV6::new(v6, door.endpoint.port, 0, interface.index).into())
        }
        addr @ (IpAddr::V4(_) | IpAddr::V6(_)) => Some(SocketAddr::new(addr, door.endpoint.port)),
    }
}

fn reach(addr: SocketAddr, listener: u16, guard_uid: u32) -> io::Result<Reached> {
    let stream = TcpStream::connect_timeout(&addr, CONNECT)?;
    let here = stream.local_addr()?;
    let begin = Instant::now();
    loop {
        let reached = judge(&sockets::of_this_namespace(addr.is_ipv4())?, here, listener, guard_uid);
        if reached != Reached::Queue || begin.elapsed() > ACCEPT {
            return Ok(reached);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Finds the other end of a connection that left from `here`. A socket that nobody has accepted has no inode.
fn judge(table: &[Socket], here: SocketAddr, listener: u16, guard_uid: u32) -> Reached {
    let is_other_end = |socket: &&Socket| {
        socket.local.port() == listener
            && (socket.remote.ip(), socket.remote.port()) == (here.ip(), here.port())
    };
    match table.iter().find(is_other_end) {
        None => Reached::Around,
        Some(socket) if socket.inode == 0 => Reached::Queue,
        Some(socket) if socket.uid == guard_uid => Reached::Guard,
        Some(socket) => Reached::Stranger(socket.uid),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// The connection's other end on this very host, before and after it was accepted.
    #[test]
    fn only_a_connection_that_the_guard_s_user_accepted_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let here = stream.local_addr().unwrap();
        let uid = nix::unistd::getuid().as_raw();
        let now = |port, uid| judge(&sockets::of_this_namespace(true).unwrap(), here, port, uid);
        assert_eq!(now(port, uid), Reached::Queue);
        let _accepted = listener.accept().unwrap();
        assert_eq!(now(port, uid), Reached::Guard);
        assert_eq!(now(port, uid + 1), Reached::Stranger(uid));
        assert_eq!(now(port.wrapping_add(1), uid), Reached::Around);
    }
}
