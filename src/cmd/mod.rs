//! One file per subcommand. Data goes to standard output, talk to standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use crate::cli::{Cli, Command};

pub mod check;
pub mod redirect;
pub mod run;

/// How imds-guard ends. The numbers from 64 up are those of sysexits(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Yes, or done.
    Success = 0,
    /// No: a check failed, a request is refused.
    Failure = 1,
    /// Something failed that should not.
    Software = 70,
    /// The system refused: not root, no nft.
    NoPermission = 77,
    /// The policy or the set-up is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Carries out a command line.
#[must_use]
pub fn dispatch(cli: Cli) -> Exit {
    start_logging();
    let outcome = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Proxy => run::proxy(),
        Command::Check(args) => check::run(&args),
        Command::Redirect(args) => redirect::run(&args),
    };
    match outcome {
        Ok(exit) => exit,
        Err(error) if is_closed_pipe(&error) => Exit::Success, // as when printing into head(1)
        Err(error) => {
            complain(&error);
            Exit::Software
        }
    }
}

/// The operations log: standard error, filtered by `RUST_LOG`, coloured only on a terminal.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let on_terminal = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(on_terminal)
        .with_target(false)
        .init();
}

/// One clear line: what, and all that caused it.
pub(crate) fn complain(error: &anyhow::Error) {
    let _ = writeln!(io::stderr(), "imds-guard: {error:#}");
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
