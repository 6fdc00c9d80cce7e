//! What one worker thread has to itself, and what the workers share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::audit::Sink;
use crate::caller::CgroupPath;
use crate::caller::stamps::SockDiag;
use crate::observe::Counters;
use crate::policy::Policy;

use super::farewell::Farewell;
use super::flood::Floods;
use super::keeper_line::KeeperLine;
use super::limits::{Census, LookupBudget, Roll};
use super::memory::Memory;
use super::observer::Known;
use super::pace::Pace;
use super::socket::Outbox;
use super::tls::Tls;
use super::tokens::Tokens;
use super::upgrade::OwnTokens;
use super::upstream::Pool;

/// What all workers share.
pub struct Shared {
    /// The policy in force; a reload exchanges it, and every request loads it anew.
    pub policy: ArcSwap<Policy>,
    /// What the status tells of the policy and of the keeper.
    pub known: ArcSwap<Known>,
    /// TLS to the service, where the policy wants it.
    pub tls: ArcSwapOption<Tls>,
    /// The addresses of this network namespace's interfaces, each with its interface's number.
    pub interfaces: ArcSwap<Vec<(IpAddr, u32)>>,
    /// Changes with every reload: what was decided for good has to be decided again.
    pub reloads: tokio::sync::watch::Sender<u64>,
    /// The audit log.
    pub sink: Sink,
    /// Who fetched which session token.
    pub tokens: Arc<Tokens>,
    /// Answers that are given again.
    pub memory: Arc<Memory>,
    /// Connections at this moment.
    pub census: Arc<Census>,
    /// Turns of those who ask faster than others should have to bear.
    pub pace: Pace,
    /// The uid under which the guard itself asks the service.
    pub own_uid: u32,
    /// How many there may be, as far as descriptors go.
    pub places: u32,
    /// Set when the guard stops: what is under way may go on until then.
    pub draining: tokio::sync::watch::Receiver<Option<Instant>>,
    /// Whether the keeper answers: it does when its start is over, and until then nobody is accepted.
    pub answered: tokio::sync::watch::Sender<bool>,
    /// How often each worker tells the keeper that it is at work; zero is never.
    pub alive_every: Duration,
    /// How the workers end.
    pub farewell: Farewell,
    /// What makes this run's event ids unlike any other's.
    pub run_id: u32,
}

/// One worker.
pub struct Worker {
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// Its own line to the kernel's socket table.
    pub diag: RefCell<SockDiag>,
    /// Its own line to the keeper.
    pub keeper: KeeperLine,
    /// Paths of cgroups that it has met.
    pub cgroups: RefCell<HashMap<u64, CgroupPath>>,
    /// Turns of those who ask the keeper about other network namespaces.
    pub foreign: tokio::sync::Semaphore,
    /// Held by whoever asks the keeper for a cgroup's path.
    pub resolving: tokio::sync::Mutex<()>,
    /// Idle upstream connections.
    pub pool: RefCell<Pool>,
    /// Session tokens of the guard's own.
    pub own_tokens: OwnTokens,
    /// What is written at the end of this turn.
    pub outbox: Rc<Outbox>,
    /// Client connections under way.
    pub roll: Rc<Roll>,
    /// Look-ups of processes that are left to each uid.
    pub lookups: LookupBudget,
    /// Searches for cgroups' paths that are left to each uid.
    pub resolutions: LookupBudget,
    /// Connections that were refused because of a limit.
    pub floods: Floods,
    /// What it has counted.
    pub counters: Counters,
    /// Told when a connection comes in: the sweep has something to do.
    pub busy: tokio::sync::Notify,
    /// Room for answers that are being taken apart.
    pub redactions: tokio::sync::Semaphore,
    /// Which worker this is.
    pub index: usize,
    /// How many events it has named.
    pub events: Cell<u64>,
}

impl Worker {
    /// A name for one event: unlike any other's of this run, and of other runs but for chance.
    pub fn event_id(&self) -> String {
        let number = self.events.get();
        self.events.set(number + 1);
        format!("{:08x}-{}-{number:x}", self.shared.run_id, self.index)
    }
}
