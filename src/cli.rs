//! The command line. Help, man pages and shell completions are made from these definitions.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::report::record::Record;
use crate::report::since::Since;

/// Guards this machine's instance metadata service: knows who asks, decides by policy, leaves a record.
#[derive(Debug, Parser)]
#[command(name = "imds-guard", version, about, long_about = None, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 yes or done; 1 no (a check failed, a request is denied, verdicts differ); \
2 usage; 66 an input cannot be read; 70 something failed; 73 an output cannot be written; \
77 the system refused; 78 the policy or the set-up is wrong."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What imds-guard can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Guard the metadata service until told to stop (as root)
    Run(RunArgs),
    /// Check a policy: every error and every doubtful thing, with its place
    Check(CheckArgs),
    /// Explain why a request is allowed or denied, step by step
    Explain(ExplainArgs),
    /// Run the test cases that stand beside a policy
    Test(TestArgs),
    /// Show the clouds that are known, or what one of them serves
    Clouds(CloudsArgs),
    /// Show what was seen in audit logs: who asked for what, what enforce would refuse, what looks like an attack
    Report(ReportArgs),
    /// Propose a policy from what was seen in audit logs
    Learn(LearnArgs),
    /// Decide recorded requests again by another policy, and show where the verdicts differ
    Replay(ReplayArgs),
    /// Follow decisions live
    Tail(TailArgs),
    /// Show how the running guard is doing: mode, policy, redirect, endpoints, callers, the last denial
    Status(StatusArgs),
    /// Try whether connections to the endpoints really reach the guard; or list what is wrong with an image
    Verify(VerifyArgs),
    /// Show, load, remove or verify the redirect
    Redirect(RedirectArgs),
    /// Print the completions of a shell
    Completions(CompletionsArgs),
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man(ManArgs),
    /// The unprivileged half; started by `run`
    #[command(hide = true)]
    Proxy,
}

/// Where the policy is.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The policy; drop-ins are read from policy.d beside it
    #[arg(long, value_name = "FILE", default_value = "/etc/imds-guard/policy.toml")]
    pub config: PathBuf,
}

/// `imds-guard run`
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "told at ConfigArgs")]
    pub config: ConfigArgs,
    /// Keep the last policy that was accepted here, and the direction of failure; start with it when the policy has
    /// become wrong. Without it: $STATE_DIRECTORY if the service manager set it, else nothing is kept
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// `imds-guard check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The policy; drop-ins are read from policy.d beside it
    #[arg(value_name = "FILE", default_value = "/etc/imds-guard/policy.toml")]
    pub file: PathBuf,
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
    /// Treat warnings as errors
    #[arg(long)]
    pub strict: bool,
}

/// `imds-guard explain`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("described").args(["unit", "cgroup", "user", "exe"]).multiple(true))]
#[command(
    after_help = "Without --pid and --event, the caller is as you describe it; what you leave out is root's \
login shell. Exits with 0 if the request is allowed, with 1 if it is denied.\n\nExamples:\n  \
imds-guard explain --unit nginx.service --user www-data GET /latest/meta-data/iam/security-credentials/role\n  \
imds-guard explain --pid 4711 GET http://metadata.google.internal/computeMetadata/v1/?recursive=true\n  \
imds-guard explain --event 18f2-3 --log /var/log/imds-guard/audit.jsonl"
)]
pub struct ExplainArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "told at ConfigArgs")]
    pub config: ConfigArgs,
    /// The caller's unit, such as nginx.service
    #[arg(long, conflicts_with = "cgroup")]
    pub unit: Option<String>,
    /// The caller's cgroup, as an absolute path below the cgroup2 mount
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// The caller's user, by name or number
    #[arg(long)]
    pub user: Option<String>,
    /// What the caller's processes run; may be given several times
    #[arg(long, value_name = "FILE")]
    pub exe: Vec<String>,
    /// A live process as the caller
    #[arg(long, conflicts_with = "described")]
    pub pid: Option<u32>,
    /// A recorded request, by its event's id
    #[arg(long, value_name = "ID", requires = "log", conflicts_with_all = ["described", "pid", "method"])]
    pub event: Option<String>,
    /// The log with that event; `-` is standard input
    #[arg(long, value_name = "FILE", requires = "event")]
    pub log: Vec<PathBuf>,
    /// A header line of the request; may be given several times
    #[arg(long, short = 'H', value_name = "LINE", conflicts_with = "event")]
    pub header: Vec<String>,
    /// Print the explanation as JSON
    #[arg(long)]
    pub json: bool,
    /// The method, such as GET
    #[arg(required_unless_present = "event")]
    pub method: Option<String>,
    /// A URL, or just a path at 169.254.169.254
    #[arg(required_unless_present = "event")]
    pub url: Option<String>,
}

/// `imds-guard test`
#[derive(Debug, Args)]
#[command(
    after_help = "A file of cases may name its policy (`policy = \"policy.toml\"`, a path beside the file); \
otherwise it is --config's. Without FILES, they are NAME.cases.toml beside the policy NAME.toml."
)]
pub struct TestArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "told at ConfigArgs")]
    pub config: ConfigArgs,
    /// Files of cases, see docs/cases.md
    pub files: Vec<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
}

/// `imds-guard clouds`
#[derive(Debug, Args)]
pub struct CloudsArgs {
    /// A cloud, or a family of them, such as aws
    pub name: Option<String>,
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
}

/// Which logs to read.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Audit logs, plain or compressed with gzip; `-` is standard input. Without any: standard input if something is
    /// piped into it, else the file that the policy names
    #[arg(value_name = "LOG")]
    pub logs: Vec<PathBuf>,
    /// Only events since then: a span (24h, 7d) or a moment (2026-11-24T09:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = Since::from_now)]
    pub since: Option<Since>,
}

/// `imds-guard report`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("form").args(["json", "csv", "html"]))]
pub struct ReportArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "told at LogArgs")]
    pub logs: LogArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told at ConfigArgs")]
    pub config: ConfigArgs,
    /// Only reads that speak the session protocol so
    #[arg(long)]
    pub session: Option<SessionFilter>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// Print the rows as CSV
    #[arg(long)]
    pub csv: bool,
    /// Write one self-contained page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// `imds-guard learn`
#[derive(Debug, Args)]
#[command(
    after_help = "Callers with the signals of an attack, and those that no unit of the system runs, are not \
proposed; they are listed with the reasons."
)]
pub struct LearnArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "told at LogArgs")]
    pub logs: LogArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told at ConfigArgs")]
    pub config: ConfigArgs,
    /// Propose only what this policy lacks, as a drop-in for it
    #[arg(long, value_name = "POLICY")]
    pub merge: Option<PathBuf>,
    /// Write the proposal into this file, whole or not at all
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `imds-guard replay`
#[derive(Debug, Args)]
#[command(after_help = "Exits with 1 if any verdict differs.")]
pub struct ReplayArgs {
    /// The policy to decide by; drop-ins are read from policy.d beside it
    #[arg(
        long,
        visible_alias = "config",
        value_name = "FILE",
        default_value = "/etc/imds-guard/policy.toml"
    )]
    pub policy: PathBuf,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told at LogArgs")]
    pub logs: LogArgs,
    /// Print the differences as JSON
    #[arg(long)]
    pub json: bool,
}

/// `imds-guard tail`
#[derive(Debug, Args)]
pub struct TailArgs {
    /// The audit log; without it, the file that the policy names
    #[arg(value_name = "LOG")]
    pub log: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told at ConfigArgs")]
    pub config: ConfigArgs,
    /// Only this verdict
    #[arg(long)]
    pub verdict: Option<VerdictFilter>,
    /// Only this agent
    #[arg(long)]
    pub agent: Option<String>,
    /// Only requests that touch this class
    #[arg(long)]
    pub class: Option<String>,
    /// Only reads that speak the session protocol so
    #[arg(long)]
    pub session: Option<SessionFilter>,
    /// Show the last N events first
    #[arg(long, short = 'n', value_name = "N", default_value_t = 10)]
    pub lines: usize,
    /// Stop at the end of the log
    #[arg(long)]
    pub no_follow: bool,
}

/// `imds-guard status`
#[derive(Debug, Args)]
#[command(
    after_help = "Root and the group of the socket may read it. Exits with 1 if the redirect is not in place or a \
thread of the proxy hangs, with 66 if there is no guard to ask."
)]
pub struct StatusArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "told at ConfigArgs")]
    pub config: ConfigArgs,
    /// The guard's status socket; without it, the one that the policy names
    #[arg(long, value_name = "SOCKET")]
    pub socket: Option<PathBuf>,
    /// Print the snapshot as JSON
    #[arg(long)]
    pub json: bool,
    /// Show it again and again, every two seconds, until told to stop
    #[arg(long)]
    pub watch: bool,
}

/// Which verdicts to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VerdictFilter {
    /// What was allowed.
    Allow,
    /// What was denied, whether or not it passed.
    Deny,
}

/// How the session protocol (IMDSv2 and its kin) was spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SessionFilter {
    /// Without a token.
    V1,
    /// With a token.
    V2,
    /// Without a token, and sent with one of the guard's own.
    Upgraded,
}

impl SessionFilter {
    /// Whether the event of a request is meant.
    #[must_use]
    pub fn takes(self, record: &Record<'_>) -> bool {
        match self {
            Self::V1 => &*record.session == "v1",
            Self::V2 => &*record.session == "v2",
            Self::Upgraded => record.upgraded,
        }
    }
}

/// `imds-guard verify`
#[derive(Debug, Args)]
#[command(
    after_help = "Connects to each endpoint and looks in the kernel's socket table where the connection ended. Nothing is \
sent, and nothing recorded. Exits with 1 if anything is wrong."
)]
pub struct VerifyArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "told at ConfigArgs")]
    pub config: ConfigArgs,
    /// Look through an image instead: its kernel, firewall, service and policy
    #[arg(long)]
    pub image: bool,
    /// The image's root directory; the running system's own if there is none
    #[arg(long, value_name = "DIR", requires = "image")]
    pub root: Option<PathBuf>,
    /// Print what was found as JSON
    #[arg(long)]
    pub json: bool,
}

/// `imds-guard completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `imds-guard man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The directory; it is made if it is not there
    pub directory: PathBuf,
}

/// `imds-guard redirect`
#[derive(Debug, Args)]
pub struct RedirectArgs {
    /// What to do with the redirect.
    #[command(subcommand)]
    pub action: RedirectAction,
}

/// What can be done with the redirect.
#[derive(Debug, Subcommand)]
pub enum RedirectAction {
    /// Print the nftables rules that the policy asks for
    Show(ConfigArgs),
    /// Load the rules (enforce mode only: audit rules belong to the running guard)
    Apply(ConfigArgs),
    /// Remove the rules
    Remove,
    /// Say whether the kernel's rules are those that the policy asks for
    Verify(ConfigArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_definitions_do_not_contradict_each_other() {
        super::Cli::command().debug_assert();
    }
}
