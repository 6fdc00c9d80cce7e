//! What looks like an attack: signals, each with a stable code and one line that says why it counts.
//!
//! A signal is about a caller as a whole. One forwarded request among a thousand honest ones means that the service
//! can be made to ask on somebody else's behalf, and then its honest requests are no reason to trust it.

use std::collections::BTreeSet;

use serde::Serialize;

use super::caller::Home;
use super::record::Record;
use crate::cloud::Class;

/// A reason not to trust a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    /// It asked on behalf of somebody else, or under a foreign name.
    SsrfMarks,
    /// Its requests were spelt so that a filter would not see what they mean.
    OddSpelling,
    /// It asked for the paths of several clouds.
    SeveralClouds,
    /// Its executable lies where anybody may write, or is deleted.
    DubiousExecutable,
    /// A shell, an interpreter or a download tool that no unit runs.
    ToolOutsideUnit,
    /// Somebody's login session.
    InteractiveSession,
    /// No unit of the system runs it.
    NoUnit,
    /// It lives in a container that has no lasting name.
    Container,
    /// The kernel could not say who it is.
    Unattributed,
}

impl Signal {
    /// The stable code.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::SsrfMarks => "ssrf-marks",
            Self::OddSpelling => "odd-spelling",
            Self::SeveralClouds => "several-clouds",
            Self::DubiousExecutable => "dubious-executable",
            Self::ToolOutsideUnit => "tool-outside-unit",
            Self::InteractiveSession => "interactive-session",
            Self::NoUnit => "no-unit",
            Self::Container => "container",
            Self::Unattributed => "unattributed",
        }
    }

    /// Why it counts.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::SsrfMarks => {
                "requests carry a foreign Host or forwarding headers, as server-side request forgery does"
            }
            Self::OddSpelling => "requests are spelt so that filters misread them",
            Self::SeveralClouds => "the paths of several clouds were tried",
            Self::DubiousExecutable => "an executable is deleted, or lies where users may write",
            Self::ToolOutsideUnit => "a shell, interpreter or download tool asked outside any unit",
            Self::InteractiveSession => "it asked from a login session",
            Self::NoUnit => "no unit of the system runs it",
            Self::Container => {
                "it lives in a container without a lasting name: give it a slice of its own (--cgroup-parent)"
            }
            Self::Unattributed => "the kernel could not say who it is",
        }
    }

    /// Whether it speaks of an attack by itself; the others only say that a caller cannot be named.
    #[must_use]
    pub fn is_alarming(self) -> bool {
        matches!(
            self,
            Self::SsrfMarks
                | Self::OddSpelling
                | Self::SeveralClouds
                | Self::DubiousExecutable
                | Self::ToolOutsideUnit
        )
    }
}

/// What is known so far of one caller.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    signals: BTreeSet<Signal>,
    dialects: BTreeSet<&'static str>,
    secret_dialects: BTreeSet<&'static str>,
}

impl Evidence {
    /// Looks at one more event of the caller.
    pub fn add(&mut self, home: &Home, record: &Record<'_>) {
        for fault in &record.faults {
            if is_ssrf_mark(fault) {
                self.signals.insert(Signal::SsrfMarks);
            } else if is_odd_spelling(fault) {
                self.signals.insert(Signal::OddSpelling);
            }
        }
        match home {
            Home::Unit(_) | Home::Contained(_) | Home::Others => {}
            Home::Session(_) => {
                self.signals.insert(Signal::InteractiveSession);
            }
            Home::Container(_) => {
                self.signals.insert(Signal::Container);
            }
            Home::Elsewhere(_) => {
                self.signals.insert(Signal::NoUnit);
            }
            Home::Unattributed(_) => {
                self.signals.insert(Signal::Unattributed);
            }
        }
        if is_dubious(&record.executable) || &*record.doubt == "deleted" {
            self.signals.insert(Signal::DubiousExecutable);
        }
        if !matches!(home, Home::Unit(_) | Home::Contained(_))
            && is_tool(&record.executable)
            && touches_secrets(record)
        {
            self.signals.insert(Signal::ToolOutsideUnit);
        }
        if let Some((dialect, secret)) = dialect(&record.path) {
            self.dialects.insert(dialect);
            if secret {
                self.secret_dialects.insert(dialect);
            }
        }
        // Two clouds' documents are asked by many libraries that find out where they run; three, or two clouds'
        // keys, by tools that try them all.
        if self.dialects.len() >= 3 || self.secret_dialects.len() >= 2 {
            self.signals.insert(Signal::SeveralClouds);
        }
    }

    /// The signals, the most alarming first.
    pub fn signals(&self) -> impl Iterator<Item = Signal> {
        self.signals.iter().copied()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.signals.is_empty()
    }
}

fn touches_secrets(record: &Record<'_>) -> bool {
    let touched = record.touched();
    [Class::Credentials, Class::Identity, Class::UserData].into_iter().any(|class| touched.contains(class))
}

fn is_ssrf_mark(fault: &str) -> bool {
    matches!(
        fault,
        "forwarding-header"
            | "override-header"
            | "host-foreign"
            | "host-conflict"
            | "connection-token"
            | "connect-method"
            | "authority-form"
            | "userinfo"
    )
}

/// Faults of a path or a query that no client's library makes.
fn is_odd_spelling(fault: &str) -> bool {
    matches!(
        fault,
        "double-encoding"
            | "encoded-nul"
            | "encoded-control"
            | "encoded-slash"
            | "backslash"
            | "encoded-delimiter"
            | "path-parameter"
            | "utf8-invalid"
            | "above-root"
            | "dot-dot-and-empty-segment"
            | "double-slash-authority"
            | "segment-edge"
            | "query-double-encoding"
            | "query-control"
            | "query-traversal"
            | "line-folding"
            | "length-and-encoding"
            | "confusable-framing-header"
            | "header-confusable"
            | "space-before-colon"
            | "bare-lf"
            | "bare-cr"
            | "control-byte"
    )
}

/// Where unprivileged users may put files.
fn is_dubious(executable: &str) -> bool {
    const PLACES: [&str; 8] =
        ["/tmp/", "/var/tmp/", "/dev/shm/", "/home/", "/root/", "/run/user/", "/var/www/", "/memfd:"];
    PLACES.iter().any(|place| executable.starts_with(place)) || executable.ends_with(" (deleted)")
}

/// Shells, interpreters and download tools: what an intruder finds on any machine.
#[must_use]
pub fn is_tool(executable: &str) -> bool {
    const NAMES: [&str; 30] = [
        "bash", "dash", "sh", "zsh", "ksh", "mksh", "fish", "csh", "tcsh", "busybox", "curl", "wget", "nc",
        "ncat", "netcat", "socat", "telnet", "openssl", "node", "nodejs", "deno", "bun", "java", "env",
        "timeout", "setsid", "awk", "gawk", "mawk", "pwsh",
    ];
    const STEMS: [&str; 5] = ["python", "perl", "ruby", "php", "lua"];
    let name = executable.rsplit('/').next().unwrap_or_default();
    NAMES.contains(&name) || STEMS.iter().any(|stem| name.starts_with(stem))
}

/// Whose path it is, and whether keys lie there; for a guard that knows only its own cloud, the others' paths are
/// unknown, so their spelling has to tell.
fn dialect(path: &str) -> Option<(&'static str, bool)> {
    let path = path.to_ascii_lowercase();
    let has = |part: &str| path.contains(part);
    let starts = |part: &str| path.starts_with(part);
    Some(match () {
        () if starts("/computemetadata/") => ("gcp", has("/token") || has("/identity")),
        () if starts("/metadata/v1") => ("digitalocean", has("/user-data") || has("/auth-token")),
        () if starts("/metadata/instance")
            || starts("/metadata/identity")
            || starts("/metadata/attested") =>
        {
            ("azure", has("/oauth2/token"))
        }
        () if starts("/opc/") => ("oracle", has("/identity/")),
        () if starts("/openstack/") => ("openstack", has("/user_data") || has("/vendor_data")),
        () if starts("/hetzner/") => ("hetzner", has("/userdata")),
        () if has("/meta-data/ram/") => ("alibaba", true),
        () if has("/meta-data/cam/") => ("tencent", true),
        () if has("/meta-data/") || has("/dynamic/instance-identity") || starts("/latest/") => {
            ("aws", has("/security-credentials"))
        }
        () => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signals(home: &Home, fields: &[&str]) -> Vec<&'static str> {
        let mut evidence = Evidence::default();
        for fields in fields {
            let line = format!(r#"{{"event.dataset":"imds-guard.audit","imds_guard.schema":1,{fields}}}"#);
            evidence.add(home, &Record::read(line.as_bytes()).unwrap());
        }
        evidence.signals().map(Signal::code).collect()
    }

    #[test]
    fn each_signal_is_seen() {
        let unit = Home::Unit("web.service".to_owned());
        let session = Home::Session("/user.slice/x".to_owned());
        let keys = r#""url.path":"/latest/meta-data/iam/security-credentials/r","imds_guard.classes":["credentials"]"#;
        assert!(signals(&unit, &[keys]).is_empty());
        assert_eq!(signals(&unit, &[r#""imds_guard.faults":["forwarding-header"]"#]), ["ssrf-marks"]);
        assert_eq!(signals(&unit, &[r#""imds_guard.faults":["double-encoding"]"#]), ["odd-spelling"]);
        for executable in ["/tmp/x", "/dev/shm/.y", "/home/a/b", "/usr/bin/sleep (deleted)"] {
            assert_eq!(
                signals(&unit, &[&format!(r#""process.executable":"{executable}""#)]),
                ["dubious-executable"]
            );
        }
        let curl = format!(r#"{keys},"process.executable":"/usr/bin/curl""#);
        assert_eq!(signals(&session, &[&curl]), ["tool-outside-unit", "interactive-session"]);
        assert!(signals(&unit, &[&curl]).is_empty());
        let azure = r#""url.path":"/metadata/instance""#;
        let gcp = r#""url.path":"/computeMetadata/v1/""#;
        assert!(signals(&unit, &[azure, gcp]).is_empty(), "libraries look where they run");
        assert_eq!(signals(&unit, &[azure, gcp, r#""url.path":"/latest/meta-data/""#]), ["several-clouds"]);
        let token = r#""url.path":"/metadata/identity/oauth2/token""#;
        assert_eq!(signals(&unit, &[keys, token]), ["several-clouds"]);
    }
}
