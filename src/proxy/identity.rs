//! Who is at the other end: stamps when the connection is accepted, processes when a rule or the log wants them.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::audit::event::ProcessSource;
use crate::caller::namespaces::Found;
use crate::caller::stamps::{Flow, RawStamps};
use crate::caller::{
    Attribution, Caller, Cgroup, CgroupPath, Origin, Process, Processes, Stamps, Why, cgroup, degraded,
};
use crate::keeper::protocol::{Answer, Question};

use super::limits::Account;
use super::record::Finished;
use super::worker::Worker;

/// How many cgroup paths a worker remembers. Ids are not reused within a boot, so an entry never goes wrong.
const REMEMBERED_CGROUPS: usize = 4096;

/// How long a refusal may wait for the evidence. Clients give an answer 300 ms.
const EVIDENCE_PATIENCE: Duration = Duration::from_millis(50);

/// How long it may take to find the network namespace of a container that was not there at the last search.
const FOREIGN_PATIENCE: Duration = Duration::from_secs(1);

/// After how long the keeper is asked again; doubled each time.
const FOREIGN_RETRY: Duration = Duration::from_millis(20);

/// What is known of one connection's client.
pub struct Identity {
    /// From where it came.
    pub origin: Origin,
    /// The two ends of the connection.
    pub flow: Flow,
    /// What the kernel stamped on the client's socket.
    pub attribution: Attribution,
    /// How long it took to find that out.
    pub took: Duration,
    /// Who held the socket before a byte of it was read, where a rule may want to know.
    at_first: RefCell<Option<Processes>>,
    lookup: RefCell<Lookup>,
    looked_up: Notify,
}

impl Drop for Identity {
    fn drop(&mut self) {
        if matches!(*self.lookup.borrow(), Lookup::Pending(_)) {
            self.give_up();
        }
    }
}

/// Where the look-up of the client's processes stands.
enum Lookup {
    /// Nobody asked.
    NotAsked,
    /// The keeper was asked for the log's sake; these events wait for its answer.
    Pending(Vec<Finished>),
    /// The keeper answered, for the number of events that it was told in.
    Known(Processes, ProcessSource),
}

impl Identity {
    /// Completes what the kernel said about the client's socket, which cannot change while the connection lives.
    pub async fn of(
        worker: &Worker,
        origin: Origin,
        flow: Flow,
        raw: Result<RawStamps, Why>,
        started: Instant,
    ) -> Self {
        let attribution = match raw {
            Ok(stamps) => attribute(worker, origin, stamps).await,
            Err(why) => Attribution::Unattributed(why),
        };
        Self {
            origin,
            flow,
            attribution,
            took: started.elapsed(),
            at_first: RefCell::new(None),
            lookup: RefCell::new(Lookup::NotAsked),
            looked_up: Notify::new(),
        }
    }

    /// The uid on the socket, if it is known.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        self.stamps().map(|stamps| stamps.uid)
    }

    /// The stamps, if they are known.
    #[must_use]
    pub fn stamps(&self) -> Option<&Stamps> {
        self.attribution.stamps()
    }

    /// The caller as the stamps alone tell it.
    #[must_use]
    pub fn caller(&self) -> Caller {
        self.caller_held_by(Processes::Skipped)
    }

    fn caller_held_by(&self, processes: Processes) -> Caller {
        Caller { origin: self.origin, attribution: self.attribution.clone(), processes }
    }

    /// The caller with the processes that hold its socket at this moment: asked anew each time, because what holds
    /// a socket can change between two requests. Who held it at first counts, too.
    pub async fn caller_with_processes(&self, worker: &Worker, digest: bool) -> Caller {
        if self.stamps().is_none() {
            return self.caller();
        }
        let now = holders(worker, &self.attribution, digest, true).await;
        self.learn(now.clone(), ProcessSource::Fresh);
        let processes = with_those_before(now, self.at_first.borrow().as_ref());
        self.caller_held_by(processes)
    }

    /// Looks who holds the socket of a new connection, before a byte of it is read.
    ///
    /// Whoever made the connection is still there. By the time that a request is judged it may have become the agent's
    /// program by exec, with a second reference to the socket where nobody sees it.
    pub async fn look_at_first(&self, worker: &Worker, digest: bool) {
        if self.stamps().is_none() {
            return;
        }
        let processes = holders(worker, &self.attribution, digest, true).await;
        self.learn(processes.clone(), ProcessSource::Fresh);
        self.at_first.replace(Some(processes));
    }

    /// Whose budget of look-ups it draws on.
    fn account(&self, uid: u32) -> Account {
        (self.origin, uid)
    }

    /// Starts a look-up for the log's sake, beside the request, unless the uid has used up its share of them.
    pub fn look_up_for_the_log(self: &Rc<Self>, worker: &Rc<Worker>) {
        let Some(stamps) = self.stamps() else { return };
        if !matches!(*self.lookup.borrow(), Lookup::NotAsked)
            || !worker.lookups.take(self.account(stamps.uid), Instant::now())
        {
            return;
        }
        self.lookup.replace(Lookup::Pending(Vec::new()));
        let (identity, worker) = (Rc::clone(self), Rc::clone(worker));
        tokio::task::spawn_local(async move {
            let processes = holders(&worker, &identity.attribution, false, false).await;
            identity.learn(processes, ProcessSource::Fresh);
        });
    }

    /// Waits for a look-up that is under way: a caller who is refused can wait, and would be gone before anybody saw
    /// which process it was.
    pub async fn look_up_ends(&self) {
        if matches!(*self.lookup.borrow(), Lookup::Pending(_)) {
            // In vain, the event simply lacks the process.
            let _ = tokio::time::timeout(EVIDENCE_PATIENCE, self.looked_up.notified()).await;
        }
    }

    /// Hands a finished exchange to the log, with what is known of the processes: now, or when the look-up ends.
    pub fn conclude(&self, finished: Finished) {
        match &mut *self.lookup.borrow_mut() {
            Lookup::NotAsked => finished.tell(self, &Processes::Skipped, ProcessSource::Skipped),
            Lookup::Pending(waiting) => waiting.push(finished),
            Lookup::Known(processes, source) => {
                finished.tell(self, processes, *source);
                *source = ProcessSource::Cached;
            }
        }
    }

    /// Tells the exchanges that wait for a look-up which will not end: the guard stops.
    fn give_up(&self) {
        self.learn(Processes::Unknown, ProcessSource::Skipped);
    }

    fn learn(&self, processes: Processes, source: ProcessSource) {
        let before = self.lookup.replace(Lookup::Known(processes, source));
        self.looked_up.notify_waiters();
        if let Lookup::Pending(waiting) = before {
            for finished in waiting {
                self.conclude(finished);
            }
        }
    }
}

/// What the kernel stamped on the client's end of a flow out of another network namespace: the keeper asks there.
///
/// A client that has reset the connection meanwhile could have given its ports to another: then the answer says nothing.
pub async fn foreign_stamps(worker: &Worker, stream: &TcpStream, flow: Flow) -> Result<RawStamps, Why> {
    let question = Question::Foreign { client: flow.client.0, original: flow.original.0 };
    let until = Instant::now() + FOREIGN_PATIENCE;
    let mut pause = FOREIGN_RETRY;
    loop {
        let answer = {
            // A flood of containers must not take every place in the line to the keeper.
            let _turn = worker.foreign.acquire().await.map_err(|_| Why::LookupFailed)?;
            worker.keeper.ask(question).await
        };
        match answer {
            Some(Answer::Foreign(Found::Stamps(raw))) => {
                return if matches!(stream.take_error(), Ok(None)) { Ok(raw) } else { Err(Why::Orphan) };
            }
            Some(Answer::Foreign(Found::Unknown(why))) => return Err(why),
            Some(Answer::Foreign(Found::Later)) if Instant::now() < until => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            Some(Answer::Foreign(Found::Later)) => return Err(Why::NoNamespace),
            _ => return Err(Why::LookupFailed),
        }
    }
}

async fn attribute(worker: &Worker, origin: Origin, raw: RawStamps) -> Attribution {
    let of = |cgroup| Stamps { uid: raw.uid, cgroup, inode: raw.inode, cookie: raw.cookie };
    let names_no_unit = matches!(raw.cgroup_id, None | Some(cgroup::ROOT));
    if names_no_unit && let Some(path) = place_of_holders(worker, origin, raw).await {
        return Attribution::Degraded(of(degraded::cgroup(path)));
    }
    let Some(id) = raw.cgroup_id else { return Attribution::Unattributed(Why::NoCgroup) };
    match cgroup_path(worker, origin, raw.uid, id).await {
        Some(path) => Attribution::Stamped(of(Cgroup { id, path })),
        None => Attribution::Unattributed(Why::UnknownCgroup),
    }
}

/// Whether the keeper may be asked to search the host for this caller: that takes a while, and a user can make it search all
/// day.
fn may_search(worker: &Worker, origin: Origin, uid: u32) -> bool {
    let is_root = uid == 0 && origin == Origin::Host;
    is_root || worker.resolutions.take((origin, uid), Instant::now())
}

/// Where all processes are that hold the socket, on a host that names units in cgroup v1.
async fn place_of_holders(worker: &Worker, origin: Origin, raw: RawStamps) -> Option<CgroupPath> {
    if !may_search(worker, origin, raw.uid) {
        return None;
    }
    let question = Question::PlaceOfHolders { inode: raw.inode };
    let Answer::CgroupPath(Some(path)) = worker.keeper.ask(question).await? else { return None };
    CgroupPath::new(path)
}

async fn cgroup_path(worker: &Worker, origin: Origin, uid: u32, id: u64) -> Option<CgroupPath> {
    let remembered = || worker.cgroups.borrow().get(&id).cloned();
    if let Some(path) = remembered() {
        return Some(path);
    }
    // A unit that connects many times at once needs one answer.
    let _turn = worker.resolving.lock().await;
    if let Some(path) = remembered() {
        return Some(path);
    }
    // The keeper searches the whole tree for a cgroup that it has not met.
    if !may_search(worker, origin, uid) {
        return None;
    }
    let Answer::CgroupPath(Some(path)) = worker.keeper.ask(Question::CgroupPath { id }).await? else {
        return None;
    };
    let path = CgroupPath::new(path)?;
    let mut known = worker.cgroups.borrow_mut();
    if known.len() >= REMEMBERED_CGROUPS {
        known.clear();
    }
    known.insert(id, path.clone());
    Some(path)
}

/// All who hold the socket now or did before; unknown, if either is.
fn with_those_before(now: Processes, before: Option<&Processes>) -> Processes {
    let Some(before) = before else { return now };
    let (Processes::Holders(mut all), Processes::Holders(before)) = (now, before) else {
        return Processes::Unknown;
    };
    let same = |one: &Process, other: &Process| {
        (one.pid, one.start_ticks, &one.exe.path, &one.exe.doubt)
            == (other.pid, other.start_ticks, &other.exe.path, &other.exe.doubt)
    };
    for process in before {
        if !all.iter().any(|holder| same(holder, process)) {
            all.push(process.clone());
        }
    }
    Processes::Holders(all)
}

async fn holders(worker: &Worker, attribution: &Attribution, digest: bool, decisive: bool) -> Processes {
    let Some(Stamps { uid, inode, cgroup, .. }) = attribution.stamps() else { return Processes::Skipped };
    let is_degraded = matches!(attribution, Attribution::Degraded(_));
    let cgroup_id = if is_degraded { cgroup::ROOT } else { cgroup.id };
    let question = Question::Holders { cgroup_id, inode: *inode, uid: *uid, digest, decisive };
    match worker.keeper.ask(question).await {
        Some(Answer::Holders(Some(holders))) if !holders.is_empty() => Processes::Holders(holders),
        _ => Processes::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Exe;

    fn process(pid: u32, path: &str) -> Process {
        let exe = Exe { path: path.into(), names: vec![path.into()], doubt: String::new(), sha256: None };
        let (comm, command_line) = (String::new(), String::new());
        Process { pid, start_ticks: 5, parent: 1, uid: 7, comm, command_line, exe }
    }

    fn holders(of: &[(u32, &str)]) -> Processes {
        Processes::Holders(of.iter().map(|(pid, path)| process(*pid, path)).collect())
    }

    #[test]
    fn whoever_held_the_socket_at_first_is_not_forgotten() {
        let now = || holders(&[(1, "/agent")]);
        assert_eq!(with_those_before(now(), None), now());
        assert_eq!(with_those_before(now(), Some(&now())), now());
        let exec = holders(&[(1, "/agent"), (1, "/other")]);
        assert_eq!(with_those_before(now(), Some(&holders(&[(1, "/other")]))), exec);
        let passed_on = holders(&[(1, "/agent"), (2, "/agent")]);
        assert_eq!(with_those_before(now(), Some(&holders(&[(2, "/agent")]))), passed_on);
        for nobody in [Processes::Unknown, Processes::Skipped] {
            assert_eq!(with_those_before(now(), Some(&nobody)), Processes::Unknown);
            assert_eq!(with_those_before(nobody, Some(&now())), Processes::Unknown);
        }
    }
}
