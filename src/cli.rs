//! The command line. Help, man pages and shell completions are made from these definitions.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Guards this machine's instance metadata service: knows who asks, decides by policy, leaves a record.
#[derive(Debug, Parser)]
#[command(name = "imds-guard", version, about, long_about = None, arg_required_else_help = true)]
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
    /// Show, load, remove or verify the redirect
    Redirect(RedirectArgs),
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
