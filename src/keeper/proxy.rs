//! The proxy as the keeper sees it: a child process, an order channel, and one question channel per worker.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::audit::Destination;
use crate::observe::Health;
use crate::redirect::Interface;

use super::bundle::{self, Bundle};
use super::certificates::Certificates;
use super::protocol::{self, LogKind, Order, Peer};
use super::status::StatusDoors;

/// How long the end of a killed proxy is waited for.
const KILL_PATIENCE_MS: u32 = 1000;

/// The hidden subcommand that is the proxy.
pub const SUBCOMMAND: &str = "proxy";

/// The proxy's process and the channels to it.
#[derive(Debug)]
pub struct ProxyProcess {
    child: Child,
    uid: u32,
    orders: OwnedFd,
    questions: Vec<OwnedFd>,
}

/// Whom the proxy becomes, and how many workers it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// The uid that the redirect exempts.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Worker threads.
    pub workers: usize,
    /// How often each worker is to say that it is not stuck, in milliseconds; 0 is never.
    pub alive_ms: u64,
}

/// The C library's allocator keeps the buffers of connections at hand for the next ones. Another C library ignores it.
const ALLOCATOR: &str = "glibc.malloc.tcache_max=20000:glibc.malloc.tcache_count=32";

impl ProxyProcess {
    /// Starts this very program as the proxy and hands it everything that it needs.
    pub fn start(
        role: Role,
        bundle: &Bundle,
        log: &Destination,
        listeners: &[TcpListener],
        doors: &StatusDoors,
        for_containers: &[TcpListener],
    ) -> io::Result<Self> {
        let (orders, far_orders) = protocol::channel()?;
        protocol::tell_senders(&orders)?;
        let channels: Vec<(OwnedFd, OwnedFd)> =
            (0..role.workers).map(|_| protocol::channel()).collect::<io::Result<_>>()?;
        // By the link to the running file: an upgrade that replaces the file at its path must not mix versions.
        let child = Command::new("/proc/self/exe")
            .arg0(env!("CARGO_PKG_NAME"))
            .arg(SUBCOMMAND)
            .env_clear()
            .env("GLIBC_TUNABLES", ALLOCATOR)
            .envs(std::env::var_os("RUST_LOG").map(|filter| ("RUST_LOG", filter)))
            .current_dir("/")
            .stdin(Stdio::from(far_orders))
            .stdout(Stdio::null())
            .spawn()?;
        let (near, far): (Vec<OwnedFd>, Vec<OwnedFd>) = channels.into_iter().unzip();
        near.iter().try_for_each(protocol::tell_senders)?;
        let sealed = bundle.seal()?;
        let mut descriptors = vec![sealed.as_fd(), log_descriptor(log)];
        descriptors.extend(listeners.iter().map(AsFd::as_fd));
        descriptors.extend(doors.unix.iter().map(AsFd::as_fd));
        descriptors.extend(doors.loopback.iter().map(AsFd::as_fd));
        descriptors.extend(far.iter().map(AsFd::as_fd));
        let start = Order::Start {
            uid: role.uid,
            gid: role.gid,
            log: log_kind(log),
            listeners: listeners.len(),
            status: doors.unix.is_some(),
            metrics: doors.loopback.is_some(),
            workers: far.len(),
            alive_ms: role.alive_ms,
            containers: !for_containers.is_empty(),
        };
        let process = Self { child, uid: role.uid, orders, questions: near };
        process.order(&start, &descriptors)?;
        if !for_containers.is_empty() {
            process.order(&Order::Containers, &for_containers.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
        }
        Ok(process)
    }

    /// Tells the addresses of this network namespace's interfaces.
    pub fn tell_interfaces(&self, interfaces: &[Interface]) -> io::Result<()> {
        let addresses = interfaces.iter().flat_map(|interface| {
            let v6 = [interface.v6, interface.link_local].into_iter().flatten().map(IpAddr::V6);
            interface.v4.map(IpAddr::V4).into_iter().chain(v6).map(|addr| (addr, interface.index))
        });
        self.order(&Order::Interfaces(addresses.collect()), &[])
    }

    /// Tells how the keeper's own work stands. Only whoever looks at the status would miss it.
    pub fn tell_health(&self, health: Health) {
        if let Err(error) = self.order(&Order::Health(health), &[]) {
            tracing::debug!(%error, "the proxy was not told of the redirect");
        }
    }

    /// Hands over a new policy.
    pub fn reload(&self, bundle: &Bundle) -> io::Result<()> {
        self.order(&Order::Reload, &[bundle.seal()?.as_fd()])
    }

    /// Hands over certificates for TLS to the service.
    pub fn renew(&self, certificates: Option<&Certificates>) -> io::Result<()> {
        self.order(&Order::Renew, &[bundle::seal(&certificates)?.as_fd()])
    }

    /// Hands over a new audit log.
    pub fn rotate(&self, log: &Destination) -> io::Result<()> {
        self.order(&Order::Rotate(log_kind(log)), &[log_descriptor(log)])
    }

    /// Asks the proxy to finish what is under way and end.
    pub fn drain(&self, patience_ms: u64) -> io::Result<()> {
        self.order(&Order::Drain { patience_ms }, &[])
    }

    /// The channel on which the proxy says that it is ready, and whose end tells that the proxy is gone.
    #[must_use]
    pub fn orders(&self) -> BorrowedFd<'_> {
        self.orders.as_fd()
    }

    /// One channel per worker, on which questions arrive.
    #[must_use]
    pub fn questions(&self) -> &[OwnedFd] {
        &self.questions
    }

    /// Who the proxy is, and whose messages alone are answered.
    #[must_use]
    pub fn peer(&self) -> Peer {
        Peer { pid: self.child.id(), uid: self.uid }
    }

    /// Waits for the proxy's end.
    pub fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        self.child.wait()
    }

    /// Ends a proxy that is stuck; [`ProxyProcess::wait`] tells when it has ended.
    pub fn end(&mut self) -> io::Result<()> {
        self.child.kill()
    }

    /// Ends the proxy without asking it, and waits a little for its end. Should the kill be refused (a service that was
    /// given no `CAP_KILL`), the end of its channels ends it.
    pub fn kill(mut self) {
        drop((self.orders, self.questions));
        let _ = self.child.kill();
        for _ in 0..KILL_PATIENCE_MS {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        tracing::error!(pid = self.child.id(), "the proxy does not end");
    }

    fn order(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        protocol::send(&self.orders, &serde_json::to_vec(order)?, descriptors)
    }
}

fn log_kind(log: &Destination) -> LogKind {
    match log {
        Destination::Stream(_) => LogKind::Stream,
        Destination::Journal(_) => LogKind::Journal,
    }
}

fn log_descriptor(log: &Destination) -> BorrowedFd<'_> {
    match log {
        Destination::Stream(file) => file.as_fd(),
        Destination::Journal(socket) => socket.as_fd(),
    }
}
