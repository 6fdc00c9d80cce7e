//! The service manager's file-descriptor store: it keeps the listeners while the guard is away, so that whoever
//! connects during a restart waits for the new guard and is not refused (`FileDescriptorStoreMax=`, sd_notify(3)).

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;

use listenfd::ListenFd;
use rustix::net::{ipproto, sockopt};
use sd_notify::NotifyState;

/// Listeners that an earlier guard handed over, and this one got back.
#[derive(Debug, Default)]
pub struct Kept(Vec<TcpListener>);

impl Kept {
    /// What the service manager passed to this process. Must be called before any other process or thread is started.
    #[must_use]
    pub fn receive() -> Self {
        // Marks all of them close-on-exec, those that are of no use as well, and looks whom they are meant for.
        if sd_notify::listen_fds().map_or(0, |passed| passed.len()) == 0 {
            return Self::default();
        }
        let mut passed = ListenFd::from_env();
        let listeners = (0..passed.len()).filter_map(|index| passed.take_tcp_listener(index).ok().flatten());
        Self(listeners.collect())
    }

    /// The listeners among them that are what the guard itself would open at this address; it does not take others.
    pub fn take(&mut self, addr: SocketAddr) -> Vec<TcpListener> {
        let (taken, left) =
            std::mem::take(&mut self.0).into_iter().partition(|listener| is_ours(listener, addr));
        self.0 = left;
        taken
    }

    /// The ports of all that is still here.
    #[must_use]
    pub fn ports(&self) -> BTreeSet<u16> {
        self.0.iter().filter_map(|listener| Some(listener.local_addr().ok()?.port())).collect()
    }
}

/// The store is filled by this service alone, but perhaps by another version of it: what is taken from it has to be a
/// TCP listener at just this address that shares its port with the other workers'.
fn is_ours(listener: &TcpListener, addr: SocketAddr) -> bool {
    let socket = listener.as_fd();
    listener.local_addr().is_ok_and(|local| (local.ip(), local.port()) == (addr.ip(), addr.port()))
        && sockopt::socket_acceptconn(socket).unwrap_or(false)
        && sockopt::socket_reuseport(socket).unwrap_or(false)
        && sockopt::socket_protocol(socket).is_ok_and(|protocol| protocol == Some(ipproto::TCP))
        && (addr.is_ipv4() || sockopt::ipv6_v6only(socket).unwrap_or(false))
}

/// Hands listeners to the service manager, if there is one that keeps them. Where it does not, a restart refuses
/// connections, and that is all.
pub fn keep<'a>(listeners: impl IntoIterator<Item = &'a TcpListener>) {
    for listener in listeners {
        let Ok(port) = listener.local_addr().map(|local| local.port()) else { continue };
        let states = [NotifyState::FdStore, NotifyState::FdName(&name(port))];
        if let Err(error) = sd_notify::notify_with_fds(&states, &[listener.as_fd()]) {
            tracing::warn!(%error, port, "the service manager does not keep a listener");
        }
    }
}

/// Has the service manager close the listeners of these ports: a guard that cannot start must not leave callers waiting
/// in a queue that nobody serves.
pub fn forget(ports: &BTreeSet<u16>) {
    for port in ports {
        let _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name(*port))]);
    }
}

fn name(port: u16) -> String {
    format!("listener-{port}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::listeners::open_at;

    fn any(port: u16) -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], port))
    }

    #[test]
    fn a_listener_that_the_guard_would_open_is_taken_back() {
        let listener = open_at(any(0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut kept = Kept(vec![listener]);
        assert_eq!(kept.take(any(port)).len(), 1);
        assert!(kept.ports().is_empty());
    }

    #[test]
    fn what_the_guard_would_not_open_is_left() {
        // At one address only, without its port shared, at another port.
        let narrow = open_at(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let alone = TcpListener::bind("0.0.0.0:0").unwrap();
        let other = open_at(any(0)).unwrap();
        let ports: Vec<u16> = [&narrow, &alone].map(|socket| socket.local_addr().unwrap().port()).to_vec();
        let mut kept = Kept(vec![narrow, alone, other]);
        assert!(ports.into_iter().all(|port| kept.take(any(port)).is_empty()));
        assert_eq!(kept.ports().len(), 3);
    }
}
