//! `[guard]`: the daemon itself.

use std::net::SocketAddr;

use toml::Spanned;

use super::accounts::Accounts;
use super::diagnostic::{Place, Report, did_you_mean};
use super::shape::Document;
use super::size;
use super::source::{GuardTable, LimitsTable, Name};

/// What `[guard]` says, with its defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own, as in the policy")]
pub struct Settings {
    /// Whom the proxy runs as; its uid is what the redirect exempts.
    pub user: GuardUser,
    /// Where audit events go.
    pub audit_log: AuditLog,
    /// The size, in bytes, at which the keeper puts the log's file aside; `None` for never.
    pub audit_log_max: Option<u64>,
    /// How many files that were put aside are kept.
    pub audit_log_keep: u32,
    /// The mark (`SO_MARK`) of the guard's connections to the metadata service, which the keeper then opens as root;
    /// `None` for none. For hosts whose routes let nothing else get there, as systemd-imdsd's do.
    pub upstream_mark: Option<u32>,
    /// Whether answers that cannot change while the machine runs are given again without asking the service.
    pub cache_constants: bool,
    /// The port that the redirect leads to. Privileged by default, so that no unprivileged process can sit on it
    /// while the guard is down and collect what callers send. At most 65000, since each endpoint has its own.
    pub port: u16,
    /// Worker threads; `None` for one per core.
    pub workers: Option<u16>,
    /// Whether a redirect that somebody else removed is put back.
    pub self_heal: bool,
    /// Whether programs that name a metadata service on their command lines are told of.
    pub watch_commands: bool,
    /// Whether events tell which key an answer handed out; never the key.
    pub issued_key: bool,
    /// The file of canaries for rules that give decoys; `None` for none.
    pub decoys: Option<String>,
    /// The unix socket at which the guard shows its status; `None` for nowhere.
    pub status_socket: Option<String>,
    /// The group that may open it beside root; `None` for the guard's own.
    pub status_gid: Option<u32>,
    /// The loopback address and port at which the guard shows its metrics; `None` for nowhere.
    pub metrics: Option<SocketAddr>,
    /// Whether the guard speaks TLS to services that can be asked over it.
    pub upstream_tls: TlsUse,
    /// What callers may use up.
    pub limits: Limits,
}

/// Whether the guard speaks TLS to services that can be asked over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsUse {
    /// It asks as its callers do.
    Off,
    /// Where the service offers TLS.
    Prefer,
    /// Or not at all.
    Require,
}

impl TlsUse {
    /// The name that policies use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Prefer => "prefer",
            Self::Require => "require",
        }
    }
}

/// The guard's own user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardUser {
    /// As the policy names it.
    pub name: String,
    /// Its uid, never 0 or 65534; `None` if this machine has no such user (yet).
    pub uid: Option<u32>,
    /// Its primary group; `None` if this machine does not know it.
    pub gid: Option<u32>,
}

/// Where audit events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditLog {
    /// Standard output.
    Stdout,
    /// The journal, by its native protocol.
    Journald,
    /// A file, by its absolute path.
    File(String),
}

/// What callers may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time, in all.
    pub connections: u32,
    /// Connections at one time, of one uid.
    pub connections_per_uid: u32,
    /// Requests a second of one uid where others ask, too.
    pub requests_per_uid: u32,
    /// Bytes of a request's head.
    pub head_bytes: u32,
    /// Header lines of a request.
    pub headers: u32,
    /// Seconds in which a head must be complete.
    pub head_seconds: u32,
    /// Seconds that a connection may wait for its next request.
    pub idle_seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_uid: 512,
            requests_per_uid: 1000,
            head_bytes: 16_384,
            headers: 100,
            head_seconds: 10,
            idle_seconds: 75,
        }
    }
}

/// The bit of a packet's mark by which the redirect knows the connections that the keeper opens.
pub(crate) const OWN_BIT: u32 = 0x0040_0000;
const DEFAULT_LOGS: u32 = 5;
/// A smaller log would be put aside faster than anybody reads it.
const SMALLEST_LOG: u64 = 64 << 10;
const DEFAULT_USER: &str = "imds-guard";
/// systemd and the kernel reserve this uid for "nobody": as the guard's own it would exempt every unmapped process.
const NOBODY: u32 = 65_534;

/// Reads `[guard]` of the main file.
pub(super) fn read(document: &Document, accounts: &Accounts, report: &mut Report<'_>) -> Settings {
    let none = GuardTable::default();
    let (table, place) = match &document.guard {
        Some(table) => (table.get_ref(), document.place(table.span())),
        None => (&none, Place { source: document.source, span: None }),
    };
    let mut numbers = Numbers { document, report };
    let port = numbers.range("port", table.port.as_ref(), 169, 1, 65_000);
    let workers = table.workers.as_ref().map(|workers| numbers.range("workers", Some(workers), 1, 1, 256));
    let limits = limits(table.limits.as_ref(), &mut numbers);
    let audit_log_keep =
        numbers.range("audit-log-keep", table.audit_log_keep.as_ref(), DEFAULT_LOGS, 1, 1000);
    Settings {
        user: guard_user(document, table, &place, accounts, report),
        audit_log: audit_log(document, table.audit_log.as_ref(), report),
        audit_log_max: largest_log(document, table, report),
        audit_log_keep,
        upstream_mark: upstream_mark(document, table.upstream_mark.as_ref(), report),
        cache_constants: cache(document, table.cache.as_ref(), report),
        port: u16::try_from(port).unwrap_or(169),
        workers: workers.and_then(|workers| u16::try_from(workers).ok()),
        self_heal: table.self_heal.unwrap_or(true),
        watch_commands: table.watch_commands.unwrap_or(false),
        issued_key: table.issued_key.unwrap_or(true),
        decoys: decoys(document, table.decoys.as_ref(), report),
        status_socket: status_socket(document, table.status_socket.as_ref(), report),
        status_gid: status_gid(document, table, accounts, report),
        metrics: metrics(document, table.metrics.as_ref(), report),
        upstream_tls: upstream_tls(document, table.upstream_tls.as_ref(), report),
        limits,
    }
}

fn limits(table: Option<&LimitsTable>, numbers: &mut Numbers<'_, '_>) -> Limits {
    let Some(table) = table else { return Limits::default() };
    let default = Limits::default();
    let mut number = |key, value: &Option<Spanned<i64>>, default, low, high| {
        numbers.range(key, value.as_ref(), default, low, high)
    };
    let limits = Limits {
        connections: number("connections", &table.connections, default.connections, 16, 65_536),
        connections_per_uid: number(
            "connections-per-uid",
            &table.connections_per_uid,
            default.connections_per_uid,
            1,
            65_536,
        ),
        requests_per_uid: number(
            "requests-per-uid",
            &table.requests_per_uid,
            default.requests_per_uid,
            10,
            1_000_000,
        ),
        // Below 4 KiB, ordinary SDK requests with long session tokens would be cut off.
        head_bytes: number("head-bytes", &table.head_bytes, default.head_bytes, 4096, 1 << 20),
        headers: number("headers", &table.headers, default.headers, 16, 1000),
        head_seconds: number("head-seconds", &table.head_seconds, default.head_seconds, 1, 300),
        idle_seconds: number("idle-seconds", &table.idle_seconds, default.idle_seconds, 1, 86_400),
    };
    if limits.connections_per_uid > limits.connections
        && let Some(value) = &table.connections_per_uid
    {
        let place = numbers.document.place(value.span());
        numbers
            .report
            .warning("limit-has-no-effect", "`connections-per-uid` is above `connections`", &place)
            .help("one uid could then use up every connection and starve the others");
    }
    limits
}

struct Numbers<'a, 'r> {
    document: &'a Document,
    report: &'a mut Report<'r>,
}

impl Numbers<'_, '_> {
    fn range(&mut self, key: &str, value: Option<&Spanned<i64>>, default: u32, low: u32, high: u32) -> u32 {
        let Some(value) = value else { return default };
        if let Ok(number) = u32::try_from(*value.get_ref())
            && (low..=high).contains(&number)
        {
            return number;
        }
        let place = self.document.place(value.span());
        self.report.error("out-of-range", format!("`{key}` must be between {low} and {high}"), &place);
        default
    }
}

fn guard_user(
    document: &Document,
    table: &GuardTable,
    place: &Place,
    accounts: &Accounts,
    report: &mut Report<'_>,
) -> GuardUser {
    let (name, place) = match table.user.as_ref().map(|users| users.0.as_slice()) {
        None => (DEFAULT_USER, place.clone()),
        Some([one]) => (one.get_ref().as_str(), document.place(one.span())),
        Some(_) => {
            report.error("guard-user", "the guard has exactly one user", place);
            (DEFAULT_USER, place.clone())
        }
    };
    let uid = accounts.uid(name);
    match uid {
        Some(0 | NOBODY) => report
            .error("guard-user", format!("the guard must not run as `{name}`"), &place)
            .help("its uid is exempt from the redirect, so it must belong to nobody else: give it a user of its own"),
        Some(u32::MAX) => {
report.error("guard-user", "the kernel reserves this uid for \"no user\"", &place);
}
        Some(_) => {}
        None => report
            .warning("unknown-user", format!("this machine has no user `{name}` for the guard to run as"), &place)
            .help("the guard refuses to start without it; the package creates it (sysusers.d/imds-guard.conf)"),
    }
    GuardUser { name: name.to_owned(), uid, gid: accounts.primary_gid(name) }
}

fn audit_log(document: &Document, value: Option<&Name>, report: &mut Report<'_>) -> AuditLog {
    let Some(value) = value else { return AuditLog::Stdout };
    match value.get_ref().as_str() {
        "stdout" => AuditLog::Stdout,
        "journald" => AuditLog::Journald,
        path if is_absolute(path) => AuditLog::File(path.to_owned()),
        _ => {
            let place = document.place(value.span());
            report.error(
                "audit-log",
                "the audit log is \"stdout\", \"journald\" or an absolute path",
                &place,
            );
            AuditLog::Stdout
        }
    }
}

fn cache(document: &Document, value: Option<&Name>, report: &mut Report<'_>) -> bool {
    let Some(value) = value else { return false };
    match value.get_ref().as_str() {
        "off" => false,
        "constants" => true,
        _ => {
            let place = document.place(value.span());
            report.error("cache", "`cache` is \"off\" or \"constants\"", &place);
            false
        }
    }
}

fn decoys(document: &Document, value: Option<&Name>, report: &mut Report<'_>) -> Option<String> {
    let value = value?;
    if is_absolute(value.get_ref()) {
        return Some(value.get_ref().clone());
    }
    let place = document.place(value.span());
    report
        .error("decoys", "`decoys` is the absolute path of a file", &place)
        .help("such as \"/etc/imds-guard/decoys.toml\", of root's, that nobody else may read");
    None
}

/// The longest name of a unix socket (unix(7)).
const SOCKET_BYTES: usize = 107;

fn status_socket(document: &Document, value: Option<&Name>, report: &mut Report<'_>) -> Option<String> {
    let value = value?;
    let path = value.get_ref();
    if is_absolute(path) && path.len() <= SOCKET_BYTES {
        return Some(path.clone());
    }
    let place = document.place(value.span());
    let message = format!("`status-socket` is an absolute path of at most {SOCKET_BYTES} bytes");
    report.error("status-socket", message, &place).help("such as \"/run/imds-guard/status.sock\"");
    None
}

fn status_gid(
    document: &Document,
    table: &GuardTable,
    accounts: &Accounts,
    report: &mut Report<'_>,
) -> Option<u32> {
    let groups = table.status_group.as_ref()?.0.as_slice();
    let [group] = groups else {
        let place = Place { source: document.source, span: groups.first().map(Spanned::span) };
        report.error("status-group", "the status socket has exactly one group", &place);
        return None;
    };
    let gid = accounts.gid(group.get_ref());
    if gid.is_none() {
        let place = document.place(group.span());
        let message = format!("this machine has no group `{}` for the status socket", group.get_ref());
        report.warning("unknown-group", message, &place).help("the guard's own group has it instead");
    }
    gid
}

/// Loopback alone: what the network can reach, the metadata service's attackers can reach.
fn metrics(document: &Document, value: Option<&Name>, report: &mut Report<'_>) -> Option<SocketAddr> {
    let value = value?;
    let addr = value.get_ref().parse::<SocketAddr>().ok();
    let addr = addr.filter(|addr| addr.ip().is_loopback() && addr.port() != 0);
    if addr.is_none() {
        let place = document.place(value.span());
        report
            .error("metrics", "`metrics` is a loopback address and a port", &place)
            .help("such as \"127.0.0.1:9169\": a collector on this machine carries them further");
    }
    addr
}

fn largest_log(document: &Document, table: &GuardTable, report: &mut Report<'_>) -> Option<u64> {
    let value = table.audit_log_max.as_ref()?;
    let place = document.place(value.span());
    let Some(size) = size::bytes(value.get_ref()).filter(|size| *size >= SMALLEST_LOG) else {
        report
            .error(
                "audit-log-max",
                "the log's largest size is a text such as \"64 MiB\", of at least 64 KiB",
                &place,
            )
            .help("units are KiB, MiB and GiB");
        return None;
    };
    let is_file = table.audit_log.as_ref().is_some_and(|log| log.get_ref().starts_with('/'));
    if !is_file {
        report
            .warning("no-effect", "`audit-log-max` is about a log in a file", &place)
            .help("the journal and standard output have limits of their own");
    }
    Some(size)
}

/// The redirect exempts root's connections by one bit of their mark, so that the mark must have it.
fn upstream_mark(document: &Document, value: Option<&Spanned<i64>>, report: &mut Report<'_>) -> Option<u32> {
    let value = value?;
    let mark = u32::try_from(*value.get_ref()).ok().filter(|mark| mark & OWN_BIT != 0);
    if mark.is_none() {
        let place = document.place(value.span());
        report
            .error("upstream-mark", "`upstream-mark` is a number of 32 bits with the bit 0x00400000", &place)
            .help("systemd-imdsd's is 0x7FFF0815");
    }
    mark
}

fn upstream_tls(document: &Document, value: Option<&Name>, report: &mut Report<'_>) -> TlsUse {
    let Some(value) = value else { return TlsUse::Off };
    let known = [TlsUse::Off, TlsUse::Prefer, TlsUse::Require];
    known.into_iter().find(|known| known.name() == value.get_ref()).unwrap_or_else(|| {
        let place = document.place(value.span());
        let help = did_you_mean(value.get_ref(), known.into_iter().map(TlsUse::name));
        report
            .error("upstream-tls", "`upstream-tls` is \"off\", \"prefer\" or \"require\"", &place)
            .maybe_help(help);
        TlsUse::Off
    })
}

/// An absolute path without steps upwards: what is checked (the directory's owner) must be what is opened.
pub(super) fn is_absolute(path: &str) -> bool {
    path.len() > 1
        && path.starts_with('/')
        && !path.ends_with('/')
        && path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."))
        && !path.contains(char::is_control)
}
