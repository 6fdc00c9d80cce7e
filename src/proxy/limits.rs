//! What one caller may use up: connections, and look-ups of processes. And the sweep that ends what takes too long.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::caller::Origin;
use crate::policy::Limits;

use super::wire::{Phase, WeakWire, Wire};

/// How many searches by the keeper one uid may cause: at once, and then each second. Those that a rule needs are not
/// counted.
const LOOKUPS: f64 = 20.0;

/// How many uids a worker keeps an account of.
const ACCOUNTS: usize = 1024;

/// Connections at this moment, in all workers together.
#[derive(Debug, Default)]
pub struct Census {
    total: AtomicU32,
    by_client: Mutex<HashMap<Client, u32>>,
    of_containers: AtomicU32,
}

/// By what a connection is counted, before anything costly is done to find out more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Client {
    /// The uid on the socket; `None`: unattributed.
    User(Option<u32>),
    /// A container's address: who is behind it takes a question to the keeper.
    Container(IpAddr),
}

/// A counted connection; dropping it takes it off the count.
#[derive(Debug)]
pub struct Counted {
    census: Arc<Census>,
    client: Client,
}

/// Which limit a connection would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exceeded {
    /// Connections in all.
    Total,
    /// Connections of this uid.
    PerUid,
}

impl Census {
    /// Counts a connection of this client.
    ///
    /// Root is not held to the total: the agents that a machine cannot do without run as root, and a flood from
    /// other users must not shut them out. Containers together have half of the total: one that gives itself many
    /// addresses must not shut out this host's users.
    pub fn admit(self: &Arc<Self>, client: Client, limits: &Limits) -> Result<Counted, Exceeded> {
        let is_root = client == Client::User(Some(0));
        let is_container = matches!(client, Client::Container(_));
        let too_many = is_container && self.of_containers.load(Ordering::Relaxed) >= limits.connections / 2;
        if too_many || !is_root && self.total.load(Ordering::Relaxed) >= limits.connections {
            return Err(Exceeded::Total);
        }
        let mut by_client = self.by_client.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_client.entry(client).or_insert(0);
        if *count >= limits.connections_per_uid {
            return Err(Exceeded::PerUid);
        }
        *count += 1;
        self.total.fetch_add(1, Ordering::Relaxed);
        self.of_containers.fetch_add(is_container.into(), Ordering::Relaxed);
        Ok(Counted { census: Arc::clone(self), client })
    }

    /// How many connections there are.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.total.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let is_container = matches!(self.client, Client::Container(_));
        self.census.total.fetch_sub(1, Ordering::Relaxed);
        self.census.of_containers.fetch_sub(is_container.into(), Ordering::Relaxed);
        let mut by_client = self.census.by_client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                by_client.remove(&self.client);
            }
        }
    }
}

/// How many searches each uid has left: a bucket that fills with time.
#[derive(Debug, Default)]
pub struct LookupBudget(RefCell<HashMap<Account, (f64, Instant)>>);

/// Whose look-ups are counted together: a container's uid 0 must not use up what the host's root has.
pub type Account = (Origin, u32);

impl LookupBudget {
    /// Takes one look-up from this account, if there is one left.
    pub fn take(&self, account: Account, now: Instant) -> bool {
        let mut accounts = self.0.borrow_mut();
        if accounts.len() >= ACCOUNTS && !accounts.contains_key(&account) {
            accounts.clear();
        }
        let (left, since) = accounts.entry(account).or_insert((LOOKUPS, now));
        *left = (*left + now.duration_since(*since).as_secs_f64() * LOOKUPS).min(LOOKUPS);
        *since = now;
        let granted = *left >= 1.0;
        if granted {
            *left -= 1.0;
        }
        granted
    }
}

/// The connections of one worker, for the sweep.
#[derive(Default)]
pub struct Roll {
    connections: RefCell<HashMap<u64, WeakWire>>,
    next: Cell<u64>,
    arriving: Cell<usize>,
}

/// A connection that was accepted and is not on the roll yet.
pub struct Arrival(Rc<Roll>);

/// A place on the roll; dropping it strikes the connection off.
pub struct Enrolled {
    roll: Rc<Roll>,
    number: u64,
}

impl Roll {
    /// Counts a connection that was just accepted, until it is on the roll or has another end.
    pub fn arrive(self: &Rc<Self>) -> Arrival {
        self.arriving.set(self.arriving.get() + 1);
        Arrival(Rc::clone(self))
    }

    /// Whether nobody is being served, or about to be.
    pub fn is_quiet(&self) -> bool {
        self.is_empty() && self.arriving.get() == 0
    }

    /// Puts a connection on the roll.
    pub fn enrol(self: &Rc<Self>, wire: &Wire) -> Enrolled {
        let number = self.next.get();
        self.next.set(number + 1);
        self.connections.borrow_mut().insert(number, wire.downgrade());
        Enrolled { roll: Rc::clone(self), number }
    }

    /// Whether there is any connection to watch.
    pub fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty()
    }

    /// Ends every connection whose head, body or next request is overdue, and notices half-closed clients that
    /// have left meanwhile.
    pub fn sweep(&self, limits: &Limits, now: Instant) {
        for wire in self.wires() {
            if is_overdue(wire.phase(), limits, now) {
                wire.expire();
            }
            wire.check_half_closed();
        }
    }

    /// The number that the next connection gets.
    pub fn next(&self) -> u64 {
        self.next.get()
    }

    /// Whether any connection is older than the one with this number.
    pub fn has_before(&self, number: u64) -> bool {
        self.connections.borrow().keys().any(|other| *other < number)
    }

    /// Ends the connections that have not asked anything for that long.
    pub fn dismiss(&self, patience: Duration, now: Instant) {
        let is_silent = |phase| matches!(phase, Phase::Idle(since) | Phase::Head(since) if now.duration_since(since) > patience);
        self.wires().iter().filter(|wire| is_silent(wire.phase())).for_each(Wire::expire);
    }

    /// Ends every connection.
    pub fn end(&self) {
        self.wires().iter().for_each(Wire::expire);
    }

    fn wires(&self) -> Vec<Wire> {
        self.connections.borrow().values().filter_map(WeakWire::upgrade).collect()
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.arriving.set(self.0.arriving.get().saturating_sub(1));
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        self.roll.connections.borrow_mut().remove(&self.number);
    }
}

fn is_overdue(phase: Phase, limits: &Limits, now: Instant) -> bool {
    let limit = |seconds: u32| Duration::from_secs(seconds.into());
    match phase {
        Phase::Idle(since) | Phase::Body(since) => now.duration_since(since) > limit(limits.idle_seconds),
        // A slow head is how one client holds a connection with a byte a minute; bodies may pause for longer.
        Phase::Head(since) => now.duration_since(since) > limit(limits.head_seconds),
        Phase::Answering => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_uid_cannot_take_every_connection() {
        let limits = Limits { connections: 10, connections_per_uid: 3, ..Limits::default() };
        let census = Arc::new(Census::default());
        let flood: Vec<_> =
            (0..3).map(|_| census.admit(Client::User(Some(1000)), &limits).unwrap()).collect();
        assert_eq!(census.admit(Client::User(Some(1000)), &limits).unwrap_err(), Exceeded::PerUid);
        assert!(census.admit(Client::User(Some(33)), &limits).is_ok());
        drop(flood);
        assert!(census.admit(Client::User(Some(1000)), &limits).is_ok());
        assert_eq!(census.total(), 0);
    }

    #[test]
    fn root_gets_in_when_others_have_filled_the_house() {
        let limits = Limits { connections: 2, connections_per_uid: 2, ..Limits::default() };
        let census = Arc::new(Census::default());
        let _flood: Vec<_> = (0..2).map(|_| census.admit(Client::User(None), &limits).unwrap()).collect();
        assert_eq!(census.admit(Client::User(Some(1000)), &limits).unwrap_err(), Exceeded::Total);
        assert!(census.admit(Client::User(Some(0)), &limits).is_ok());
    }

    #[test]
    fn containers_leave_room_for_this_host_s_users() {
        let limits = Limits { connections: 4, connections_per_uid: 4, ..Limits::default() };
        let census = Arc::new(Census::default());
        let at = |last| Client::Container(IpAddr::from([172, 17, 0, last]));
        let _flood: Vec<_> = (2..4).map(|last| census.admit(at(last), &limits).unwrap()).collect();
        assert_eq!(census.admit(at(9), &limits).unwrap_err(), Exceeded::Total);
        assert!(census.admit(Client::User(Some(1000)), &limits).is_ok());
    }

    #[test]
    fn look_ups_are_given_out_over_time() {
        let budget = LookupBudget::default();
        let start = Instant::now();
        let granted = (0..100).filter(|_| budget.take((Origin::Host, 1000), start)).count();
        assert_eq!(granted, 20);
        assert!(budget.take((Origin::Host, 33), start), "another uid has its own account");
        assert!(budget.take((Origin::Container, 1000), start), "a container's number is another user");
        assert!(budget.take((Origin::Host, 1000), start + Duration::from_millis(100)));
    }

    #[test]
    fn only_an_answer_may_take_as_long_as_it_likes() {
        let limits = Limits::default();
        let since = Instant::now();
        let later = since + Duration::from_secs(100_000);
        for phase in [Phase::Idle(since), Phase::Head(since), Phase::Body(since)] {
            assert!(!is_overdue(phase, &limits, since));
            assert!(is_overdue(phase, &limits, later));
        }
        assert!(!is_overdue(Phase::Answering, &limits, later));
    }
}
