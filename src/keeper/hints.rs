//! Tells the log of programs that named a metadata service when they started.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::audit::event::{Action, Event, Severity, TECHNIQUE};
use crate::audit::{Destination, scrub};
use crate::caller::{Attribution, Caller, Cgroup, CgroupPath, Origin, Process, Processes, Stamps};
use crate::policy::Policy;

use super::answers::Oracle;
use super::commands::{CommandWatch, Finding};

/// How many findings are told at once, and then each second. What goes beyond is counted.
const A_SECOND: f64 = 20.0;

/// How often it is told how many were not.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// How many findings are looked into before the keeper turns to something else.
const AT_ONCE: usize = 16;

/// The watch over command lines, where the policy wants it, and how much of what it finds is told.
#[derive(Debug)]
pub(super) struct Hints {
    watch: Option<CommandWatch>,
    left: f64,
    filled: Instant,
    untold: u64,
    counted: Instant,
    events: u64,
}

impl Hints {
    /// Begins to watch if the policy wants that; a watch that cannot begin is told in the log.
    pub(super) fn start(policy: &Policy, log: &mut Destination) -> Self {
        let now = Instant::now();
        let mut hints = Self { watch: None, left: A_SECOND, filled: now, untold: 0, counted: now, events: 0 };
        hints.follow(policy, log);
        hints
    }

    /// Begins or ends, as a reloaded policy says.
    pub(super) fn follow(&mut self, policy: &Policy, log: &mut Destination) {
        self.watch = None;
        if !policy.settings().watch_commands {
            return;
        }
        let endpoints = policy.catalogue().endpoints().iter().map(|endpoint| endpoint.addr).collect();
        match CommandWatch::start(endpoints) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => self.end(log, &error),
        }
    }

    fn end(&mut self, log: &mut Destination, error: &io::Error) {
        self.watch = None;
        tracing::error!(%error, "command lines are not watched");
        // The log may be what is broken; the message above stands.
        let _ =
            log.append_guard_event("commands-unwatched", &format!("command lines are not watched: {error}"));
    }

    /// Readable when there is something to tell.
    pub(super) fn wake(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(CommandWatch::wake)
    }

    /// Tells what was found.
    pub(super) fn tell(&mut self, policy: &Policy, oracle: &mut Oracle, log: &mut Destination) {
        let Some(watch) = &mut self.watch else { return };
        if let Err(error) = watch.look_after() {
            self.end(log, &error);
            return;
        }
        let (findings, missed) = watch.take(AT_ONCE);
        self.untold += missed;
        for finding in findings {
            let who = oracle.who(finding.pid, policy.needs_digest());
            if who.as_ref().is_some_and(|(uid, cgroup, process)| is_agent(policy, *uid, cgroup, process)) {
                continue;
            }
            if self.may_tell() {
                self.events += 1;
                let ancestors =
                    who.as_ref().map_or_else(Vec::new, |(_, _, process)| oracle.ancestors(process));
                write(log, &event(self.events, &finding, who.as_ref(), ancestors));
            } else {
                self.untold += 1;
            }
        }
        if self.untold > 0 && self.counted.elapsed() > COUNT_EVERY {
            self.events += 1;
            let mut event = Event::now(id(self.events), Action::Aggregate);
            event.reason = Some("commands-untold".into());
            event.count = Some(std::mem::take(&mut self.untold));
            self.counted = Instant::now();
            write(log, &event);
        }
    }

    fn may_tell(&mut self) -> bool {
        let now = Instant::now();
        self.left = (self.left + now.duration_since(self.filled).as_secs_f64() * A_SECOND).min(A_SECOND);
        self.filled = now;
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

/// Known agents name the service all day. They are known as they are when they ask: by user, cgroup and executable.
fn is_agent(policy: &Policy, uid: u32, cgroup: &CgroupPath, process: &Process) -> bool {
    let cgroup = Cgroup { id: 1, path: cgroup.clone() };
    let attribution = Attribution::Stamped(Stamps { uid, cgroup, inode: 1, cookie: 1 });
    let processes = Processes::Holders(vec![process.clone()]);
    // An agent that a container is has no exemption: where a program will ask from is not known when it starts.
    policy.is_agent(&Caller { attribution, processes, origin: Origin::Host })
}

fn id(number: u64) -> String {
    format!("command-{:x}-{number:x}", std::process::id())
}

fn event<'a>(
    number: u64,
    finding: &'a Finding,
    who: Option<&'a (u32, CgroupPath, Process)>,
    ancestors: Vec<String>,
) -> Event<'a> {
    let mut event = Event::now(id(number), Action::Command);
    event.severity = Severity::Warning as u8;
    event.reason = Some(finding.mention.code().into());
    event.technique = Some(TECHNIQUE);
    event.pid = Some(finding.pid);
    event.command_line = Some(scrub::command_line(&finding.command_line));
    event.ancestors = ancestors;
    if let Some((uid, cgroup, process)) = who {
        let path = cgroup.as_str();
        event.user_id = Some(uid.to_string());
        event.cgroup = Some(scrub::bounded(path).to_owned().into());
        event.unit = cgroup.unit_name().map(|name| scrub::bounded(name).to_owned().into());
        event.parent_pid = Some(process.parent);
        event.process_name = Some(process.comm.as_str().into());
        event.executable = Some(process.exe.path.as_str().into());
    }
    event
}

fn write(log: &mut Destination, event: &Event<'_>) {
    if let Err(error) = log.append_event(event) {
        tracing::error!(%error, "an event about a command line could not be written");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::policy::{Accounts, Context, Source};

    fn policy(more: &str) -> Policy {
        let text = format!(
            "mode = \"audit\"\ncloud = \"aws\"\n[guard]\nuser = \"63111\"\nwatch-commands = true\n{more}"
        );
        let source = Source { name: "policy.toml".into(), text };
        let context = Context { accounts: Accounts::parse("", ""), ..Context::default() };
        Policy::compile(&[source], &context).unwrap().policy
    }

    /// Nobody's on any machine.
    const STRANGER: u32 = 63_117;

    /// What the log says after programs have started whose command lines name this: one of root's, and one of a stranger's.
    fn told(policy: &Policy, marker: &str) -> Option<String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut log = Destination::Stream(file.reopen().unwrap());
        let mut oracle = Oracle::new(Vec::new(), false).unwrap();
        let mut hints = Hints::start(policy, &mut log);
        hints.wake()?; // not root, or in a network namespace of its own
        let argument = format!("http://0251.0376.0xa9fe/{marker}");
        let tail = |argument: &str, uid| {
            let mut command = Command::new("tail");
            command.args(["-f", "/dev/null", argument]).stderr(Stdio::null()).uid(uid).spawn().unwrap()
        };
        let mut children = [tail(&argument, 0), tail(&format!("/latest/meta-data/{marker}-last"), STRANGER)];
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut text = String::new();
        while Instant::now() < deadline && !text.contains(&format!("{marker}-last")) {
            hints.tell(policy, &mut oracle, &mut log);
            file.read_to_string(&mut text).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        Some(text)
    }

    #[test]
    fn known_agents_are_not_told() {
        let agent = policy("[[agent]]\nname = \"root\"\nuser = 0\nallow = [\"config\"]");
        let tries = (0..20).map(|number| format!("agent-{}-{number}", std::process::id()));
        for marker in tries {
            let Some(text) = told(&agent, &marker) else { return };
            let last = text.contains(&format!("{marker}-last"));
            assert!(!text.contains(&format!("{marker}\"")), "the agent's program was told: {text}");
            if last {
                return; // the stranger's, which started later, was
            }
        }
        panic!("nothing was ever told");
    }

    #[test]
    fn twenty_are_told_at_once_and_the_rest_is_counted() {
        let now = Instant::now();
        let mut hints =
            Hints { watch: None, left: A_SECOND, filled: now, untold: 0, counted: now, events: 0 };
        let told = (0..1000).filter(|_| hints.may_tell()).count();
        assert!((20..100).contains(&told), "{told}");
    }

    #[test]
    fn what_programs_name_is_found_and_told() {
        // Other tests start such programs, too, and what is told in a second is limited.
        let tries = (0..20).map(|number| format!("told-{}-{number}", std::process::id()));
        let mut found = None;
        for marker in tries {
            let Some(text) = told(&policy(""), &marker) else { return };
            let event = text.lines().find(|line| line.contains(&format!("{marker}\""))).map(str::to_owned);
            if let Some(event) = event.filter(|_| text.contains("names-metadata-path")) {
                found = Some(event);
                break;
            }
        }
        let event = found.expect("an event");
        for part in [
            "\"event.action\":\"command\"",
            "names-metadata-address",
            "imds_guard.process.ancestors",
            "\"process.name\":\"tail\"",
            "\"user.id\":\"0\"",
        ] {
            assert!(event.contains(part), "{part}: {event}");
        }
    }
}
