//! Is this machine guarded, and will this image be? `imds-guard verify`.
//!
//! * [`reach`] tries every endpoint as a client would, and looks in the kernel's socket table where the connection ended.
//! * [`image`] looks through a root directory, before any machine has booted from it.
//! * [`kernel`] and [`firewall`] read what stands in files. Pure.

use serde::Serialize;

pub mod firewall;
pub mod image;
pub mod kernel;
pub mod reach;
mod sockets;

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Not to be seen from here.
    Unknown,
    /// Worth a look.
    Warning,
    /// The guard does not work so.
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What, by a name that stays.
    pub check: &'static str,
    /// How it is.
    pub status: Status,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<&'static str>,
}

impl Finding {
    /// A finding without advice.
    pub fn new(check: &'static str, status: Status, detail: impl Into<String>) -> Self {
        Self { check, status, detail: detail.into(), help: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn help(self, help: &'static str) -> Self {
        Self { help: Some(help), ..self }
    }
}

/// All that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What the guard can do here; only of an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The worst of the findings.
    pub status: Status,
    /// Each thing, in the order in which it was looked at.
    pub findings: Vec<Finding>,
}

/// What the guard can do on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// Everything.
    Full,
    /// The kernel does not tell callers' cgroups.
    Degraded,
    /// The guard does not start.
    Refused,
}

impl Report {
    /// A report of these findings.
    #[must_use]
    pub fn of(findings: Vec<Finding>, platform: Option<Platform>) -> Self {
        let worst = findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok);
        Self { platform, status: worst, findings }
    }

    /// The report for people: a line for each finding, and what to do below those that need it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines = Vec::new();
        for Finding { check, status, detail, help } in &self.findings {
            let word = match status {
                Status::Ok => "ok",
                Status::Unknown => "unknown",
                Status::Warning => "warning",
                Status::Wrong => "WRONG",
            };
            lines.push(format!("{word:<8} {check:<16} {detail}"));
            if let Some(help) = help.filter(|_| *status != Status::Ok) {
                lines.push(format!("{:<25} {help}", ""));
            }
        }
        if let Some(platform) = self.platform {
            let word = match platform {
                Platform::Full => "full: everything works",
                Platform::Degraded => "degraded: callers have no cgroup, and are known by uid at most",
                Platform::Refused => "refused: the guard does not start here",
            };
            lines.push(format!("platform: {word}"));
        }
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_is_the_report_s() {
        let findings = vec![
            Finding::new("nft", Status::Ok, "there").help("nothing"),
            Finding::new("kernel", Status::Wrong, "too old").help("take a newer one"),
            Finding::new("cgroup2", Status::Warning, "hybrid"),
        ];
        let report = Report::of(findings, Some(Platform::Refused));
        assert_eq!(report.status, Status::Wrong);
        let text = report.text();
        assert!(text.contains("WRONG    kernel") && text.contains("take a newer one"), "{text}");
        assert!(!text.contains("nothing"), "advice about what is right:\n{text}");
        assert!(text.ends_with("platform: refused: the guard does not start here\n"), "{text}");
    }
}
