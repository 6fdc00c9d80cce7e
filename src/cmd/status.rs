//! `imds-guard status`: what the running guard says of itself.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use super::{Complaint, Exit, talk};
use crate::cli::StatusArgs;
use crate::keeper::bundle::Bundle;
use crate::keeper::files::Trust;
use crate::observe::moment::age;
use crate::observe::snapshot::{CallerState, EndpointState, SCHEMA, Snapshot};
use crate::report::table::{Table, count};

/// How long the guard is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest answer that is read, in bytes.
const ANSWER_BYTES: u64 = 16 << 20;

/// How often `--watch` looks.
const PAUSE: Duration = Duration::from_secs(2);

/// Asks the guard and shows what it says.
pub fn run(args: &StatusArgs) -> anyhow::Result<Exit> {
    let socket = match &args.socket {
        Some(path) => path.clone(),
        None => of_policy(args)?,
    };
    // As far as it can be read: the group of the socket may see the status and perhaps not the policy.
    let on_disk = || Bundle::read(&args.config.config, Trust::Anybody).ok().map(|bundle| bundle.version());
    loop {
        let body = ask(&socket)?;
        let snapshot: Snapshot = serde_json::from_str(&body)
            .context("the guard's answer cannot be read: is it of another version?")?;
        let mut out = io::BufWriter::new(io::stdout().lock());
        if args.watch && out.get_ref().is_terminal() {
            write!(out, "\u{1b}[H\u{1b}[2J")?;
        }
        if args.json {
            writeln!(out, "{body}")?;
        } else {
            if snapshot.schema != SCHEMA {
                talk("the running guard is of another version; some of its figures are not shown");
            }
            show(&snapshot, on_disk().as_deref(), &mut out)?;
        }
        out.flush()?;
        if !args.watch {
            return Ok(if snapshot.is_healthy() { Exit::Success } else { Exit::Failure });
        }
        thread::sleep(PAUSE);
    }
}

/// What the main file says, and no more of it: a policy with an error somewhere is a time to look at the status.
fn of_policy(args: &StatusArgs) -> anyhow::Result<PathBuf> {
    let file = &args.config.config;
    let complaint = |exit, why: &str| {
        anyhow!(Complaint::new(exit, format!("{}: {why}; name the guard's --socket", file.display())))
    };
    let text = fs::read_to_string(file).map_err(|error| complaint(Exit::NoInput, &error.to_string()))?;
    let table: toml::Table =
        text.parse().map_err(|_| complaint(Exit::Config, "a policy that cannot be read"))?;
    let named = table.get("guard").and_then(|guard| guard.get("status-socket")).and_then(toml::Value::as_str);
    named.map(PathBuf::from).ok_or_else(|| complaint(Exit::Config, "there is no `status-socket` in [guard]"))
}

/// One question over HTTP/1.0, whose answer ends with the connection.
fn ask(socket: &Path) -> anyhow::Result<String> {
    let cannot = |error: io::Error| {
        let is_absent = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind());
        let hint = if is_absent { " (does the guard run?)" } else { "" };
        let message = format!("cannot ask the guard at {}: {error}{hint}", socket.display());
        anyhow!(Complaint::new(Exit::NoInput, message))
    };
    let exchange = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /status HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(cannot)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    if head.split(' ').nth(1) != Some("200") {
        let message = format!("{} is not the guard's status socket", socket.display());
        return Err(anyhow!(Complaint::new(Exit::NoInput, message)));
    }
    Ok(body.to_owned())
}

fn show(snapshot: &Snapshot, on_disk: Option<&str>, out: &mut impl Write) -> anyhow::Result<()> {
    let mut table = Table::headless();
    let (policy, redirect) = (&snapshot.policy, &snapshot.redirect);
    let ago = |moment| age(snapshot.time.since(moment));
    table.row(["mode", &policy.mode]);
    let disk = match on_disk {
        Some(version) if version != policy.version => ", and the files have changed since: reload",
        Some(_) | None => "",
    };
    let refused = if policy.is_outdated { ", because the files are wrong: check them" } else { "" };
    let loaded = format!("version {}, in force for {}{disk}{refused}", policy.version, ago(policy.loaded));
    table.row(["policy", &loaded]);
    let is = if redirect.in_place { "in place for" } else { "NOT IN PLACE for" };
    let since = ago(redirect.since);
    let redirect =
        format!("{is} {since}; changed by others {} times, {} failures", redirect.tampered, redirect.failed);
    table.row(["redirect", &redirect]);
    for agent in &snapshot.redirect.node_agents {
        table.row(["node agent", agent]);
    }
    if snapshot.degraded {
        table.row(["platform", "degraded: the kernel names no units here (cgroup v1)"]);
    }
    let guard = format!(
        "imds-guard {}, up for {}; {} of {} threads answer",
        snapshot.version,
        ago(snapshot.started),
        snapshot.workers.count - snapshot.workers.silent.min(snapshot.workers.count),
        snapshot.workers.count
    );
    table.row(["guard", &guard]);
    table.row(["requests", &requests(snapshot)]);
    table.row(["connections", &connections(snapshot)]);
    let failing = if snapshot.log_failing { "CANNOT BE WRITTEN; " } else { "" };
    let drops = match snapshot.lost_events {
        0 => "no event was lost".to_owned(),
        lost => format!("{} EVENTS WERE LOST", count(lost)),
    };
    table.row(["audit log", &format!("{failing}{drops}")]);
    table.row(["time", &time(snapshot)]);
    match &snapshot.last_denial {
        None => table.row(["last denial", "none"]),
        Some(last) => {
            let who = who(last.uid, None, &last.cgroup);
            let how = if last.passed { "passed, being audit" } else { "refused" };
            let told = format!(
                "{} ago, {who}: {} ({}, {how}, event {})",
                ago(last.time),
                last.request,
                last.reason,
                last.event
            );
            table.row(["last denial", &told]);
        }
    }
    table.write(out)?;
    endpoints(snapshot, out)?;
    callers(snapshot, out)
}

fn requests(snapshot: &Snapshot) -> String {
    let denied = |mode: &str| snapshot.decided(|one| one.verdict == "deny" && one.mode == mode);
    let decoys = match snapshot.decoys {
        0 => String::new(),
        given => format!("; {} DECOYS GIVEN", count(given)),
    };
    format!(
        "{} allowed, {} denied and refused, {} denied and passed{decoys}",
        count(snapshot.decided(|one| one.verdict == "allow")),
        count(denied("enforce")),
        count(denied("audit"))
    )
}

fn connections(snapshot: &Snapshot) -> String {
    let connections = &snapshot.connections;
    let (mut known, mut unknown) = (0, 0);
    for (attribution, count) in &connections.by_attribution {
        *(if ["stamped", "degraded"].contains(&&**attribution) { &mut known } else { &mut unknown }) += count;
    }
    format!(
        "{} open; {} of known callers, {} of unknown ones, {} reset for want of room",
        count(connections.open.into()),
        count(known),
        count(unknown),
        count(connections.over_limit + connections.over_limit_of_uid)
    )
}

fn time(snapshot: &Snapshot) -> String {
    let part = |name: &str, histogram: &crate::observe::histogram::Histogram| {
        let quantile = |percent| match histogram.quantile_us(percent) {
            Some(micros) => format!("≤ {} µs", count(micros)),
            None if histogram.count() == 0 => "–".to_owned(),
            None => "more".to_owned(),
        };
        format!("{name} {} (half), {} (99 %)", quantile(50), quantile(99))
    };
    let latency = &snapshot.latency;
    format!("{}; {}", part("attribution", &latency.attribution), part("service", &latency.upstream))
}

/// Those that somebody asked for; the others are told by their number.
fn endpoints(snapshot: &Snapshot, out: &mut impl Write) -> anyhow::Result<()> {
    let mut table = Table::new(&["ENDPOINT", "REACHABLE", "REQUESTS", "FAILURES", "LAST ANSWER"], &[2, 3]);
    let asked: Vec<&EndpointState> = snapshot.endpoints.iter().filter(|one| one.requests > 0).collect();
    for one in &asked {
        let reachable = match one.reachable {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "not asked",
        };
        let last =
            one.last_answer.map_or("-".to_owned(), |at| format!("{} ago", age(snapshot.time.since(at))));
        table.row([&*one.endpoint, reachable, &count(one.requests), &count(one.failures), &last]);
    }
    writeln!(out)?;
    if !asked.is_empty() {
        table.write(out)?;
    }
    let idle = snapshot.endpoints.len() - asked.len();
    if idle > 0 {
        writeln!(out, "{idle} endpoints are guarded that nobody asked for")?;
    }
    Ok(())
}

fn callers(snapshot: &Snapshot, out: &mut impl Write) -> anyhow::Result<()> {
    if snapshot.callers.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["CALLER", "REQUESTS", "DENIED", "VERSION 1", "LAST"], &[1, 2, 3]);
    for one in &snapshot.callers {
        let CallerState { uid, cgroup, unit, requests, denied, v1, last } = one;
        let last = format!("{} ago", age(snapshot.time.since(*last)));
        let who = who(*uid, unit.as_deref(), cgroup);
        table.row([&*who, &count(*requests), &count(*denied), &count(*v1), &last]);
    }
    writeln!(out)?;
    table.write(out)?;
    if snapshot.forgotten > 0 {
        writeln!(out, "and {} requests of callers that asked less", count(snapshot.forgotten))?;
    }
    Ok(())
}

fn who(uid: Option<u32>, unit: Option<&str>, cgroup: &str) -> String {
    match uid {
        Some(uid) => format!("{} uid {uid}", unit.unwrap_or(cgroup)),
        None => format!("unattributed ({cgroup})"),
    }
}
