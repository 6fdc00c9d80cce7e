//! The keeper's life: start in order, answer questions, watch over the redirect, reload, end.
//!
//! One thread, which waits for nobody; what could stop it (other processes' memory) helpers read. Everything that can fail at the start fails before the redirect is loaded, so that a guard
//! that cannot work changes nothing.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use sd_notify::NotifyState;

use crate::audit::Destination;
use crate::caller::degraded;
use crate::cloud::Endpoint;
use crate::observe::{Health, Moment};
use crate::policy::Policy;
use crate::redirect::apply::{Loaded, Nft};
use crate::redirect::interfaces::{self, AddressWatch};
use crate::redirect::watch::Watch;
use crate::redirect::{Direction, Led, Wanted};

use super::answers::Oracle;
use super::bundle::Bundle;
use super::certificates::{CertificateWatch, Certificates};
use super::choice::{self, Chosen};
use super::error::{KeeperError, report};
use super::files::{self, Trust};
use super::guestbook::Guestbook;
use super::hints::Hints;
use super::node_agents::NodeAgents;
use super::plan::{beat_period, compile, doors, executables, guests, own_addresses, role, wanted};
use super::protocol::{self, QUESTION_BYTES};
use super::proxy::ProxyProcess;
use super::rotation::Rotor;
use super::state::State;
use super::status::StatusDoors;
use super::store::{self, Kept};
use super::{host, listeners, privileges, replies};

/// How long requests under way may go on after SIGTERM.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// How long after a failed load the redirect is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How many beats a worker may miss.
const SILENT_PERIODS: u32 = 3;

/// Runs the guard until it is told to stop.
pub fn run(config: &Path, state: State) -> Result<(), KeeperError> {
    if !nix::unistd::getuid().is_root() {
        return Err(KeeperError::NotRoot);
    }
    if !host::in_initial_user_namespace()? {
        return Err(KeeperError::UserNamespace);
    }
    let mut kept = Kept::receive();
    let signals = block_signals()?;
    let ports = kept.ports();
    match Keeper::start(config, state, signals, &mut kept) {
        Ok(keeper) => keeper.keep(),
        Err(error) => {
            store::forget(&ports);
            Err(error)
        }
    }
}

/// Signals become readable events; blocked before the proxy is started, which has its own.
fn block_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

struct Keeper {
    config: PathBuf,
    signals: SignalFd,
    state: State,
    policy: Policy,
    /// Why it is the last good policy that is in force, and not the one in its file.
    stand_in: Option<String>,
    certificates: CertificateWatch,
    log: Destination,
    rotation: Option<Rotor>,
    /// Kept open, though the proxy accepts: connections that arrive while a proxy ends are not refused.
    listeners: Vec<TcpListener>,
    /// Readable when somebody has closed one of them.
    ends: OwnedFd,
    /// What it knows of containers beside the policy.
    guestbook: Guestbook,
    proxy: ProxyProcess,
    /// Where the proxy shows the status; kept to take its name away at the end.
    doors: StatusDoors,
    health: Health,
    /// When each worker was last heard of.
    heard: Vec<Instant>,
    oracle: Oracle,
    nft: Nft,
    watch: Watch,
    addresses: AddressWatch,
    /// Every endpoint that has a listener.
    all_doors: Vec<Led>,
    wanted: Wanted,
    loaded: Option<Loaded>,
    hints: Hints,
    node_agents: NodeAgents,
}

impl Keeper {
    fn start(config: &Path, state: State, signals: SignalFd, kept: &mut Kept) -> Result<Self, KeeperError> {
        raise_descriptor_limit();
        let Chosen { mut bundle, policy, stand_in } = choice::choose(config, &state)?;
        let certificates = CertificateWatch::of(&policy);
        bundle.certify(&policy);
        let role = role(&policy)?;
        if policy.containers().is_some() && !privileges::may_enter_namespaces()? {
            return Err(KeeperError::NoNamespaces);
        }
        let nft = Nft::find()?;
        let mut log = files::audit_log(&policy.settings().audit_log)?;
        if let Some(why) = &stand_in {
            tell(&mut log, "policy-broken", why);
        }
        let doors = doors(&policy)?;
        let listeners = listeners::open(&doors.host, role.workers, kept)
            .map_err(|(port, cause)| KeeperError::Listen { port, cause })?;
        let guest_doors = policy.containers().map(|_| doors.guests);
        let for_containers = listeners::open(guest_doors.as_deref().unwrap_or_default(), 1, kept)
            .map_err(|(port, cause)| KeeperError::Listen { port, cause })?;
        let oracle = Oracle::new(executables(&policy), guest_doors.is_some())?;
        let status = StatusDoors::open(policy.settings(), role.gid);
        let proxy = ProxyProcess::start(role, &bundle, &log, &listeners.all, &status, &for_containers.all)?;
        let prepared = nft.prepare(policy.mode().into())?;
        if let Err(reason) = replies::await_ready(&proxy) {
            proxy.kill();
            return Err(KeeperError::Proxy(reason));
        }
        // Watched before they are read, so that no change falls between.
        let addresses = AddressWatch::start(guest_doors.is_some())?;
        let guests = guests(&policy, guest_doors.clone().unwrap_or_default());
        let wanted = wanted(&policy, role.uid, doors.host, guests)?;
        proxy.tell_interfaces(&wanted.interfaces)?;
        let watch = Watch::start()?;
        let loaded = match nft.load(&wanted, prepared) {
            Ok(loaded) => loaded,
            Err(error) => {
                proxy.kill();
                return Err(error.into());
            }
        };
        // By port, good ones with it. What the service manager has already it takes no second time.
        let unusable = kept.ports();
        store::forget(&unusable);
        if unusable.is_empty() {
            store::keep(listeners.new.iter().chain(&for_containers.new));
        } else {
            store::keep(listeners.all.iter().chain(&for_containers.all));
        }
        let listeners: Vec<TcpListener> = listeners.all.into_iter().chain(for_containers.all).collect();
        let ends = listeners::watch(&listeners)?;
        if stand_in.is_none() {
            state.remember(&bundle, &wanted);
        }
        // Before the privilege goes to look from another network namespace.
        let hints = Hints::start(&policy, &mut log);
        privileges::keep_only_what_is_needed(guest_doors.is_some())?;
        let is_outdated = stand_in.is_some();
        let degraded = degraded::is_degraded_host();
        if degraded {
            tell(
                &mut log,
                "degraded",
                "cgroup v1 alone: the kernel names no units here, and what processes say of them counts for less",
            );
        }
        let health =
            Health { in_place: true, since: Moment::now(), is_outdated, degraded, ..Health::default() };
        let guestbook = Guestbook::new(guest_doors);
        Ok(Self {
            hints,
            node_agents: NodeAgents::new(),
            config: config.to_owned(),
            signals,
            state,
            rotation: Rotor::of(policy.settings()),
            policy,
            stand_in,
            certificates,
            log,
            listeners,
            ends,
            guestbook,
            proxy,
            doors: status,
            health,
            heard: vec![Instant::now(); role.workers],
            oracle,
            nft,
            watch,
            addresses,
            all_doors: wanted.doors.clone(),
            wanted,
            loaded: Some(loaded),
        })
    }

    fn keep(mut self) -> Result<(), KeeperError> {
        let watchdog = beat_period();
        self.proxy.tell_health(self.health.clone());
        notify(&[NotifyState::Ready, NotifyState::Status(&self.status())]);
        tracing::info!(mode = ?self.policy.mode(), endpoints = self.wanted.doors.len(), "guarding");
        let mut beat = Instant::now();
        loop {
            let events = self.wait(watchdog)?;
            if self.loaded.is_none() && self.policy.settings().self_heal {
                self.load();
            }
            if let Some(period) = watchdog
                && beat.elapsed() >= period
            {
                notify(&[NotifyState::Watchdog]);
                beat = Instant::now();
            }
            if events.proxy && self.proxy_is_gone() {
                return self.after_the_proxy();
            }
            if events.listeners && self.lost_a_listener()? {
                self.proxy.end()?;
                return self.after_the_proxy();
            }
            self.answer_questions();
            self.see_to_containers();
            if watchdog.is_some_and(|period| self.is_stuck(period * SILENT_PERIODS)) {
                self.tell("proxy-hangs", "a worker of the proxy does not answer");
                self.proxy.end()?;
                return self.after_the_proxy();
            }
            self.rotate_if_large();
            self.see_to_node_agents();
            self.hints.tell(&self.policy, &mut self.oracle, &mut self.log);
            if events.addresses {
                self.follow_addresses();
            }
            if self.certificates.notices() {
                self.renew_certificates();
            }
            if events.rules && self.watch.drain() {
                self.node_agents.may_have_changed();
                self.mend();
            }
            if events.signal && self.handle_signals() {
                return self.stop();
            }
        }
    }

    /// Waits for something to do: a signal, the proxy, a changed rule set, a question, or the watchdog's time.
    fn wait(&self, watchdog: Option<Duration>) -> io::Result<Events> {
        let mut polled = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(self.proxy.orders(), PollFlags::IN),
            PollFd::new(&self.watch, PollFlags::IN),
            PollFd::new(&self.addresses, PollFlags::IN),
            PollFd::new(&self.ends, PollFlags::IN),
        ];
        polled.extend(self.proxy.questions().iter().map(|channel| PollFd::new(channel, PollFlags::IN)));
        let files =
            [self.rotation.as_ref().and_then(Rotor::wake), self.certificates.wake(), self.hints.wake()];
        polled.extend(files.into_iter().flatten().map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN)));
        let retry = self.loaded.is_none().then_some(RETRY);
        let look = self.rotation.as_ref().and_then(Rotor::next_look);
        let periods = [
            watchdog,
            retry,
            look,
            self.certificates.period(),
            self.guestbook.next_turn(),
            self.node_agents.next_turn(),
        ];
        let timeout = periods.into_iter().flatten().min().map(|period| Timespec {
            tv_sec: i64::try_from(period.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: period.subsec_nanos().into(),
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let happened = |index: usize| polled.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Events {
            signal: happened(0),
            proxy: happened(1),
            rules: happened(2),
            addresses: happened(3),
            listeners: happened(4),
        })
    }

    /// Whether a worker has been silent for that long. A proxy that hangs is worse than none: callers wait for it.
    fn is_stuck(&self, patience: Duration) -> bool {
        self.heard.iter().any(|heard| heard.elapsed() > patience)
    }

    /// Answers what the workers ask, each worker in its turn.
    fn answer_questions(&mut self) {
        for (channel, heard) in self.proxy.questions().iter().zip(&mut self.heard) {
            if replies::answer_some(channel, self.proxy.peer(), &self.policy, &mut self.oracle) {
                *heard = Instant::now();
            }
        }
    }

    /// Leads connections to the interfaces' present addresses, and none from an interface that has become an uplink.
    fn follow_addresses(&mut self) {
        self.addresses.drain();
        self.node_agents.may_have_changed();
        let before = (self.wanted.interfaces.clone(), self.wanted.guests.clone());
        match interfaces::read() {
            Ok(now) if now != self.wanted.interfaces => {
                if let Err(error) = self.proxy.tell_interfaces(&now) {
                    tracing::error!(%error, "the proxy was not told of changed addresses");
                }
                self.wanted.interfaces = now;
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the interfaces' addresses cannot be read"),
        }
        let mut odd = Vec::new();
        if let Some(guests) = &mut self.wanted.guests {
            let uplinks = host::uplinks();
            odd = uplinks
                .iter()
                .filter(|name| !guests.uplinks.contains(name) && guests.is_guest(name))
                .cloned()
                .collect();
            guests.uplinks = uplinks;
            guests.own = own_addresses(self.policy.catalogue());
        }
        for name in odd {
            self.tell(
                "uplink-of-containers",
                &format!("{name} leads outwards: nothing that comes in there is led to the guard"),
            );
        }
        if before != (self.wanted.interfaces.clone(), self.wanted.guests.clone()) {
            self.tell_counted();
            self.load();
        }
    }

    /// Lets go of what nobody lives in any more, and tells how many connections of containers were left alone.
    fn see_to_containers(&mut self) {
        if !self.guestbook.is_due() {
            return;
        }
        let review = self.oracle.review();
        let is_counting = self.wanted.guests.as_ref().is_some_and(|guests| guests.doors.is_none());
        if is_counting && self.loaded.is_some() && self.guestbook.is_time_to_count() {
            self.tell_counted();
        }
        self.guestbook.plan(review, is_counting);
    }

    /// Tells of agents of this node that have come or gone.
    fn see_to_node_agents(&mut self) {
        let endpoints: Vec<IpAddr> = self.wanted.doors.iter().map(|door| door.endpoint.addr).collect();
        let change = self.node_agents.turn(&self.nft, &endpoints);
        for (reason, agents) in [("node-agent", &change.came), ("node-agent-gone", &change.went)] {
            for agent in agents {
                tracing::info!(reason, "{agent}");
                if let Err(error) = self.log.append_notice(reason, agent) {
                    tracing::error!(%error, reason, "an event of the guard's own could not be written");
                }
            }
        }
        if !change.came.is_empty() || !change.went.is_empty() {
            self.health.node_agents = self.node_agents.all();
            self.proxy.tell_health(self.health.clone());
        }
    }

    /// Tells how many connections of containers passed uncaught since the last time.
    fn tell_counted(&mut self) {
        let is_counting = self.wanted.guests.as_ref().is_some_and(|guests| guests.doors.is_none());
        if !is_counting || self.loaded.is_none() {
            return;
        }
        match self.nft.counted() {
            Ok(now) => {
                if let Some(count) = self.guestbook.counted(now)
                    && let Err(error) = self.log.append_left_alone(count)
                {
                    tracing::error!(%error, "the containers' count could not be written");
                }
            }
            Err(error) => tracing::warn!(%error, "the containers' connections cannot be counted"),
        }
    }

    /// Hands the proxy the certificates as they are now.
    fn renew_certificates(&mut self) {
        match self.proxy.renew(Certificates::read(&self.policy).as_ref()) {
            Ok(()) => tracing::info!("the certificates for TLS to the service were read anew"),
            Err(error) => tracing::error!(%error, "the proxy was not handed the changed certificates"),
        }
    }

    /// Puts the redirect back if somebody changed it.
    fn mend(&mut self) {
        let intact = self.loaded.as_ref().is_some_and(|loaded| loaded.is_intact(&self.nft).unwrap_or(false));
        if intact {
            return;
        }
        // The kernel tells one change in several notices, and every other change of the machine's rules is one, too: what
        // is known to be missing is not missed again.
        if self.health.in_place {
            tracing::error!("the redirect was changed or removed by somebody else");
            self.tell("redirect-tampered", "the redirect was changed or removed by somebody else");
            self.health.tampered += 1;
        }
        self.redirect_is(false);
        if self.policy.settings().self_heal {
            self.load();
        }
    }

    /// Tells that a listener is gone; whether the guard is to end for it. The next one opens it anew: this proxy's
    /// sandbox takes no more descriptors.
    fn lost_a_listener(&mut self) -> io::Result<bool> {
        self.ends = listeners::watch([])?; // told once
        tracing::error!("a listener was closed by somebody else");
        self.tell("listener-closed", "a listener was closed by somebody else");
        Ok(self.policy.settings().self_heal)
    }

    fn load(&mut self) {
        self.guestbook.counts_from_zero();
        match self.nft.load(&self.wanted, self.loaded.take()) {
            Ok(loaded) => {
                self.loaded = Some(loaded);
                tracing::info!("the redirect is in place");
                self.redirect_is(true);
            }
            Err(error) => {
                tracing::error!(%error, "the redirect could not be loaded");
                self.tell("redirect-failed", "the redirect could not be loaded");
                self.health.failed += 1;
                self.redirect_is(false);
            }
        }
        // The watch has seen this too, and is not emptied: somebody else's change may be among what it has seen.
    }

    /// Notes whether the redirect is in place, for whoever reads the status.
    fn redirect_is(&mut self, in_place: bool) {
        if self.health.in_place != in_place {
            self.health.since = Moment::now();
        }
        self.health.in_place = in_place;
        self.proxy.tell_health(self.health.clone());
    }

    /// Takes all waiting signals; whether one of them means to stop.
    fn handle_signals(&mut self) -> bool {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match i32::try_from(info.ssi_signo).map(Signal::try_from) {
                Ok(Ok(Signal::SIGHUP)) => self.reload(),
                Ok(Ok(Signal::SIGUSR1)) => self.rotate(),
                Ok(Ok(Signal::SIGTERM | Signal::SIGINT)) => return true,
                _ => {}
            }
        }
        false
    }

    /// Takes the new policy if it has no error, and keeps the old one if it has.
    fn reload(&mut self) {
        notify(&[
            NotifyState::Reloading,
            NotifyState::monotonic_usec_now().unwrap_or(NotifyState::Reloading),
        ]);
        let reloaded = self.try_reload();
        self.health.is_outdated = reloaded.is_err();
        self.health.refused_reloads += u64::from(reloaded.is_err());
        self.proxy.tell_health(self.health.clone());
        match reloaded {
            Ok(()) => tracing::info!(mode = ?self.policy.mode(), "the policy was reloaded"),
            Err(error) => {
                tracing::error!(%error, "the policy was not reloaded; the old one stays in force");
                if let KeeperError::Policy(diagnostics) = &error {
                    report(diagnostics, &self.config);
                }
                self.tell("reload-failed", &error.to_string());
            }
        }
        notify(&[NotifyState::Ready, NotifyState::Status(&self.status())]);
    }

    fn try_reload(&mut self) -> Result<(), KeeperError> {
        let mut bundle = Bundle::read(&self.config, Trust::RootOnly)?;
        let policy = compile(&bundle)?;
        let certificates = CertificateWatch::of(&policy);
        bundle.certify(&policy);
        let doors = self.doors_of(&policy)?;
        let guests = guests(&policy, self.guestbook.doors_of(&policy)?);
        let wanted = wanted(&policy, self.wanted.guard_uid, doors, guests)?;
        self.tell_counted();
        self.oracle.learn(executables(&policy))?;
        // From audit to enforce the proxy judges first; either way no request sees half of a change.
        self.proxy.reload(&bundle)?;
        (self.policy, self.certificates) = (policy, certificates);
        self.hints.follow(&self.policy, &mut self.log);
        self.stand_in = None;
        self.rotation = Rotor::of(self.policy.settings());
        if wanted != self.wanted {
            self.wanted = wanted;
            self.load();
        }
        // After the table: a guard that ends in between fails in the direction that is in force.
        self.state.remember(&bundle, &self.wanted);
        self.rotate();
        Ok(())
    }

    /// The doors of a reloaded policy, each with the listener that it had. The proxy's sandbox is closed for good around
    /// the endpoints of the start, so others need a restart.
    fn doors_of(&self, policy: &Policy) -> Result<Vec<Led>, KeeperError> {
        let known = |endpoint: Endpoint| {
            let door = self.all_doors.iter().find(|door| door.endpoint == endpoint).copied();
            door.ok_or(KeeperError::NeedsRestart(endpoint))
        };
        policy.catalogue().endpoints().into_iter().map(known).collect()
    }

    /// Opens the audit log anew, for logrotate.
    fn rotate(&mut self) {
        let opened = files::audit_log(&self.policy.settings().audit_log).map_err(KeeperError::from);
        let handed = opened.and_then(|log| {
            self.proxy.rotate(&log)?;
            self.log = log;
            self.rotation.iter_mut().for_each(Rotor::look_again);
            Ok(())
        });
        if let Err(error) = handed {
            tracing::error!(%error, "the audit log was not opened anew; the old one stays in use");
        }
    }

    /// Puts a log aside that has become too large. One that cannot be put aside is told once, and grows on.
    fn rotate_if_large(&mut self) {
        match self.rotation.as_mut().map(Rotor::turn) {
            None | Some(Ok(false)) => {}
            Some(Ok(true)) => self.rotate(),
            Some(Err(error)) => {
                tracing::error!(%error, "the audit log is not rotated");
                self.tell("rotation-failed", &error.to_string());
                self.rotation = None;
            }
        }
    }

    fn proxy_is_gone(&self) -> bool {
        let mut message = [0; QUESTION_BYTES];
        match protocol::receive(self.proxy.orders(), &mut message, RecvFlags::DONTWAIT) {
            Ok((length, _)) => length == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Neither half works without the other: an audit table goes with the keeper, an enforce table stays.
    fn after_the_proxy(mut self) -> Result<(), KeeperError> {
        if self.wanted.direction == Direction::Open {
            self.loaded = None; // before the listeners: nobody is to be led to a closed port
        }
        self.doors.close();
        let status = self.proxy.wait()?;
        self.tell("proxy-ended", "the proxy ended unexpectedly");
        Err(KeeperError::ProxyEnded(status))
    }

    /// In audit mode new connections go around the guard first, so that nobody is refused while it ends; the redirect
    /// goes when the last request is answered.
    fn stop(mut self) -> Result<(), KeeperError> {
        notify(&[NotifyState::Stopping]);
        self.doors.close();
        self.tell_counted();
        if let Some(loaded) = &mut self.loaded
            && let Err(error) = loaded.let_new_connections_pass(&self.nft)
        {
            tracing::warn!(%error, "new connections still reach the guard while it ends");
        }
        let patience = u64::try_from(DRAIN_PATIENCE.as_millis()).unwrap_or(u64::MAX);
        self.proxy.drain(patience)?;
        // The workers have theirs. When those are closed nobody is to wait in a queue that nobody serves, unless the
        // service manager keeps them for the next guard.
        self.listeners.clear();
        let deadline = Instant::now() + DRAIN_PATIENCE + Duration::from_secs(1);
        while Instant::now() < deadline {
            self.answer_questions();
            let mut ends = [PollFd::from_borrowed_fd(self.proxy.orders(), PollFlags::IN)];
            let _ = poll(&mut ends, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
            if ends.iter().any(|fd| !fd.revents().is_empty()) && self.proxy_is_gone() {
                break;
            }
        }
        self.proxy.kill();
        tracing::info!("stopped");
        Ok(())
    }

    fn tell(&mut self, reason: &'static str, message: &str) {
        tell(&mut self.log, reason, message);
    }

    fn status(&self) -> String {
        let mode = self.policy.mode().name();
        let stand_in = if self.stand_in.is_some() { ", by the last good policy" } else { "" };
        format!("{mode} mode, {} endpoints guarded{stand_in}", self.wanted.doors.len())
    }
}

/// Writes an event of the guard's own into the audit log.
fn tell(log: &mut Destination, reason: &'static str, message: &str) {
    if let Err(error) = log.append_guard_event(reason, message) {
        tracing::error!(%error, reason, "an event of the guard's own could not be written");
    }
}

/// What became ready.
#[expect(clippy::struct_excessive_bools, reason = "one for each thing that the keeper waits for")]
struct Events {
    signal: bool,
    proxy: bool,
    rules: bool,
    addresses: bool,
    listeners: bool,
}

/// Connections are descriptors: the soft limit of 1024 would end the guard's work long before its own limits do.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 20), hard);
    }
}

/// Tells the service manager, if there is one; a message that it does not take is no reason to stop guarding.
fn notify(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
