//! One file per subcommand. Data goes to standard output, talk to standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::{Cli, Command};
use crate::keeper::error::KeeperError;
use crate::keeper::files::FileError;
use crate::report::escape;

pub mod check;
pub mod clouds;
pub mod explain;
mod input;
pub mod learn;
pub mod manual;
mod output;
pub mod redirect;
pub mod replay;
pub mod report;
pub mod run;
pub mod status;
pub mod tail;
pub mod test;
pub mod verify;

/// How imds-guard ends. The numbers from 64 up are those of sysexits(3); a wrong command line ends with 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Yes, or done.
    Success = 0,
    /// No: a check failed, a request is refused, verdicts differ.
    Failure = 1,
    /// An argument makes no sense.
    Usage = 2,
    /// An input cannot be read.
    NoInput = 66,
    /// Something failed that should not.
    Software = 70,
    /// An output cannot be written.
    CannotCreate = 73,
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

/// Something that whoever gave the command can put right, and how the program ends because of it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Complaint {
    exit: Exit,
    message: String,
}

impl Complaint {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
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
        Command::Explain(args) => explain::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Clouds(args) => clouds::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Learn(args) => learn::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Tail(args) => tail::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Redirect(args) => redirect::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    };
    match outcome {
        Ok(exit) => exit,
        Err(error) if is_closed_pipe(&error) => Exit::Success, // as when printing into head(1)
        Err(error) if is_full(&error) => {
            complain(&error.context("cannot write the output"));
            Exit::CannotCreate
        }
        Err(error) => {
            complain(&error);
            exit_of(&error)
        }
    }
}

fn exit_of(error: &anyhow::Error) -> Exit {
    if let Some(complaint) = error.downcast_ref::<Complaint>() {
        return complaint.exit;
    }
    let set_up =
        matches!(error.downcast_ref::<KeeperError>(), Some(KeeperError::NoUser(_) | KeeperError::Policy(_)));
    if set_up || error.downcast_ref::<FileError>().is_some() { Exit::Config } else { Exit::Software }
}

/// The operations log: standard error, filtered by `RUST_LOG`, coloured only on a terminal.
fn start_logging() {
    let asked = std::env::var("RUST_LOG").ok().and_then(|filter| filter.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let on_terminal = io::stderr().is_terminal();
    let lines =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(on_terminal).with_target(false);
    tracing_subscriber::registry().with(filter).with(lines).init();
}

/// One clear line: what, and all that caused it. File names and log lines are among the causes.
pub(crate) fn complain(error: &anyhow::Error) {
    talk(&format!("{error:#}"));
}

/// One line to whoever runs the command, beside the data.
pub(crate) fn talk(text: &str) {
    let _ = writeln!(io::stderr(), "imds-guard: {}", escape::terminal(text));
}

/// Inputs are told by their names, so what is full is where the output goes.
fn is_full(error: &anyhow::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull, WriteZero};
    let full =
        |kind| matches!(kind, FileTooLarge | QuotaExceeded | ReadOnlyFilesystem | StorageFull | WriteZero);
    io_kinds(error).any(full)
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    io_kinds(error).any(|kind| kind == io::ErrorKind::BrokenPipe)
}

fn io_kinds(error: &anyhow::Error) -> impl Iterator<Item = io::ErrorKind> {
    error.chain().filter_map(|cause| {
        let json = || cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        cause.downcast_ref::<io::Error>().map(io::Error::kind).or_else(json)
    })
}
