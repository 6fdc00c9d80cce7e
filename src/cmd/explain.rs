//! `imds-guard explain`: why a request would be allowed or denied, from the request to the line of the policy.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};

use super::{Complaint, Exit, input};
use crate::caller::processes::{ProcessTable, Search};
use crate::caller::{Attribution, Caller, Cgroup, CgroupPath, Origin, Processes, Stamps};
use crate::cases::described::Described;
use crate::cases::request::{self, Url};
use crate::cli::{ExplainArgs, LogArgs};
use crate::cloud::{Asked, Door};
use crate::policy::{Decision, Policy, Verdict};
use crate::report::log::Input;
use crate::report::rebuild;

/// How long the search for a process's socket may take.
const PATIENCE: Duration = Duration::from_secs(2);

mod tell;

/// What is to be explained.
pub(super) struct Question {
    caller: Caller,
    /// `None` for a knock at an opaque door.
    asked: Option<Asked>,
    decision: Decision,
    /// What was decided when it was recorded, if it was.
    recorded: Option<String>,
    /// What the explanation rests on that may not be so.
    notes: Vec<String>,
}

/// Explains; fails if the request is denied.
pub fn run(args: &ExplainArgs) -> anyhow::Result<Exit> {
    let loaded = match args.event {
        Some(_) => input::policy_for(&args.config.config, input::context_for_logs())?,
        None => input::policy(&args.config.config)?,
    };
    let question = match &args.event {
        Some(id) => recorded(id, args, &loaded.policy)?,
        None => described(args, &loaded)?,
    };
    let mut out = io::stdout().lock();
    let told = tell::Explanation::of(&question, &loaded);
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&told)?)?;
    } else {
        told.write(&mut out)?;
    }
    Ok(match question.decision.verdict() {
        Verdict::Allow => Exit::Success,
        Verdict::Deny => Exit::Failure,
    })
}

fn usage(message: impl Into<String>) -> anyhow::Error {
    anyhow!(Complaint::new(Exit::Usage, message))
}

fn described(args: &ExplainArgs, loaded: &input::Loaded) -> anyhow::Result<Question> {
    let policy = &loaded.policy;
    let (Some(method), Some(url)) = (&args.method, &args.url) else {
        return Err(usage("a method and a URL are needed"));
    };
    let url = Url::read(url, policy.catalogue()).map_err(|error| usage(error.to_string()))?;
    let mut notes = Vec::new();
    let caller = if let Some(pid) = args.pid {
        live(pid, policy)?
    } else {
        let exe = (!args.exe.is_empty()).then(|| args.exe.clone());
        if exe.is_some() {
            notes
                .push("the executable is taken at its word; a live one must be root's and the host's".into());
        }
        let (user, unit, cgroup) = (args.user.clone(), args.unit.clone(), args.cgroup.clone());
        let described = Described { user, unit, cgroup, exe, ..Described::default() };
        described.caller(&loaded.accounts).map_err(|error| usage(error.to_string()))?
    };
    if !policy.catalogue().serves(url.endpoint) {
        notes.push(format!(
            "no cloud of this policy serves {}, so nothing is redirected from there",
            url.endpoint
        ));
    } else if policy.catalogue().door(url.endpoint) == Door::Opaque {
        let decision = policy.decide_opaque(&caller);
        notes.push(
            "the guard cannot read what is asked there, so only a caller with every class passes".into(),
        );
        return Ok(Question { caller, asked: None, decision, recorded: None, notes });
    }
    let mut headers = args.header.clone();
    if let Some(host) = &url.host
        && !headers.iter().any(|header| header.to_ascii_lowercase().starts_with("host:"))
    {
        headers.insert(0, format!("Host: {host}"));
    }
    if headers.iter().any(|header| header.contains(['\r', '\n'])) {
        return Err(usage("a header is one line"));
    }
    let line = format!("{method} {}", url.target);
    let asked = request::ask(policy.catalogue(), url.endpoint, &line, &headers);
    if args.exe.is_empty() && args.pid.is_none() && policy.needs_processes(&caller, &asked) {
        notes.push("the verdict depends on the executable: give --exe".into());
    }
    let decision = policy.decide(&caller, &asked);
    Ok(Question { caller, asked: Some(asked), decision, recorded: None, notes })
}

/// A process as the guard would see it if it opened a connection now.
fn live(pid: u32, policy: &Policy) -> anyhow::Result<Caller> {
    let gone = || {
        anyhow!(Complaint::new(Exit::NoInput, format!("there is no process {pid}, or it may not be seen")))
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| gone())?;
    // The socket is stamped with the file system uid, the last of the four.
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    let uid: u32 = uids.split_whitespace().nth(3).and_then(|uid| uid.parse().ok()).ok_or_else(gone)?;
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|_| gone())?;
    let unified = cgroups.lines().find_map(|line| line.strip_prefix("0::")).and_then(CgroupPath::new);
    // Where the kernel names no unit, systemd's own hierarchy of cgroup v1 does.
    let v1 = cgroups.lines().find_map(|line| line.split_once(":name=systemd:"));
    let v1 = v1.and_then(|(_, path)| CgroupPath::new(path)).filter(|path| !path.is_root());
    let is_degraded = unified.as_ref().is_none_or(CgroupPath::is_root) && v1.is_some();
    let path = if is_degraded { v1 } else { unified };
    let path = path
        .ok_or_else(|| anyhow!(Complaint::new(Exit::Software, format!("process {pid} is in no cgroup"))))?;
    let known = policy.executables().filter(|path| !path.contains('*')).map(PathBuf::from).collect();
    let mut table = ProcessTable::new(known).context("/proc/self cannot be read")?;
    let search = Search {
        cgroup: &path,
        inode: 0,
        uid,
        digest: policy.needs_digest(),
        decisive: true,
        until: Instant::now() + PATIENCE,
    };
    let processes = match table.identify(pid, &search) {
        Some(process) => Processes::Holders(vec![process]),
        None => Processes::Unknown,
    };
    let cgroup = Cgroup { id: 1, path: path.clone() };
    let stamps = Stamps { uid, cgroup, inode: 1, cookie: 1 };
    let attribution = if is_degraded { Attribution::Degraded(stamps) } else { Attribution::Stamped(stamps) };
    Ok(Caller { origin: origin(pid), attribution, processes })
}

/// Whether a process is in this network namespace. Of one in another it is supposed that the guard is led to it.
fn origin(pid: u32) -> Origin {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    if namespace(&pid.to_string()) == namespace("self") { Origin::Host } else { Origin::Container }
}

/// A request from the log, decided again by the policy as it is now.
fn recorded(id: &str, args: &ExplainArgs, policy: &Policy) -> anyhow::Result<Question> {
    let logs: Vec<Input> = args.log.iter().map(|path| Input::of(path)).collect();
    let all = LogArgs { logs: args.log.clone(), since: None };
    let mut found = None;
    let mut is_there = false;
    input::read(&all, &logs, |record| {
        if found.is_some() || &*record.id != id {
            return;
        }
        is_there = true;
        found = rebuild::decide(record, policy).map(|rebuilt| {
            let mut notes = vec![
                "rebuilt from the event, which holds neither headers nor what the guard did not look up"
                    .into(),
            ];
            if rebuilt.uncertain {
                notes.push("the event lacks something that the verdict may depend on".into());
            }
            let recorded = format!("{} ({})", &*record.verdict, &*record.reason);
            Question {
                caller: rebuilt.caller,
                asked: rebuilt.asked,
                decision: rebuilt.decision,
                recorded: Some(recorded),
                notes,
            }
        });
    })?;
    found.ok_or_else(|| {
        let what = if is_there { "is not about a request" } else { "is not in the log" };
        anyhow!(Complaint::new(Exit::NoInput, format!("event {id} {what}")))
    })
}
