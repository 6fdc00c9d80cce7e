//! Notices within a second that somebody changed nftables, by the kernel's own notifications.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The multicast group of nftables changes (`NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h).
const NFTABLES_GROUP: u32 = 7;

/// A netlink socket that becomes readable when any nftables rule set of this network namespace changes.
///
/// What the notification says is not read: it only tells that it is time to compare the table with the wanted one.
/// A queue that overflowed (`ENOBUFS`) says the same.
pub struct Watch {
    socket: Socket,
}

impl Watch {
    /// Joins the group. Needs `CAP_NET_ADMIN`.
    pub fn start() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(NFTABLES_GROUP)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Waits for a notification, but no longer than that, and takes all that there are.
    pub(super) fn wait(&mut self, patience: Duration) {
        let time = Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
        let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&time)); // in vain, it was a pause
        self.drain();
    }

    /// Takes all waiting notifications; whether there was any.
    pub fn drain(&mut self) -> bool {
        drain(&mut self.socket)
    }
}

/// Empties a non-blocking notification socket; whether there was anything, or more than it could hold.
pub(super) fn drain(socket: &mut Socket) -> bool {
    let mut changed = false;
    let mut buffer = Vec::with_capacity(64 << 10);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => changed = true,
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => changed = true,
            Err(_) => return changed,
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch(fd {})", self.socket.as_raw_fd())
    }
}
