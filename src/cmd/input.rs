//! What several commands read: a policy, and logs.

use std::fs::Metadata;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::{Complaint, Exit, talk};
use crate::cli::{ConfigArgs, LogArgs};
use crate::cloud::Catalogue;
use crate::keeper::files::{self, Trust};
use crate::keeper::host;
use crate::policy::{Accounts, AuditLog, Compiled, Context, Places, Policy, Source, diagnostic};
use crate::report::log::{self, Input, Progress, Tally};
use crate::report::record::Record;

/// A policy with its files.
pub(super) struct Loaded {
    pub(super) policy: Policy,
    pub(super) sources: Vec<Source>,
    pub(super) accounts: Accounts,
}

impl Loaded {
    pub(super) fn places(&self) -> Places {
        Places::read(&self.sources)
    }
}

/// Reads a policy for this machine; its errors are told as `check` tells them.
pub(super) fn policy(file: &Path) -> anyhow::Result<Loaded> {
    let (passwd, group) = host::accounts();
    let detected = Catalogue::detect(&host::dmi()).into_iter().map(str::to_owned).collect();
    policy_for(file, Context { accounts: Accounts::parse(&passwd, &group), detected, ..Context::default() })
}

/// What a policy is compiled against when logs are judged by it: this machine's users, and its clouds. Where the
/// firmware names none, as on the laptop of whoever reads the log, all of them: the events know their own cloud.
pub(super) fn context_for_logs() -> Context {
    let (passwd, group) = host::accounts();
    let detected = Catalogue::detect(&host::dmi());
    let all = || Catalogue::builtin().clouds().iter().map(|cloud| cloud.id()).collect();
    let detected = if detected.is_empty() { all() } else { detected };
    let detected = detected.into_iter().map(str::to_owned).collect();
    Context { accounts: Accounts::parse(&passwd, &group), detected, ..Context::default() }
}

/// Reads a policy for a machine that is described.
pub(super) fn policy_for(file: &Path, context: Context) -> anyhow::Result<Loaded> {
    let sources = files::policy(file, Trust::Anybody)?;
    let Compiled { policy, .. } = compile(&sources, &context, &file.display().to_string())?;
    Ok(Loaded { policy, sources, accounts: context.accounts })
}

/// Compiles; errors are told in full, and end the command.
pub(super) fn compile(sources: &[Source], context: &Context, name: &str) -> anyhow::Result<Compiled> {
    Policy::compile(sources, context).map_err(|errors| {
        let colour = io::stderr().is_terminal();
        let _ = writeln!(io::stderr(), "{}", diagnostic::render(&errors, sources, colour));
        anyhow!(Complaint::new(Exit::Config, format!("the policy {name} has errors")))
    })
}

/// Which logs a command line means.
pub(super) fn logs(args: &LogArgs, config: &ConfigArgs) -> anyhow::Result<Vec<Input>> {
    if !args.logs.is_empty() {
        return Ok(args.logs.iter().map(|path| Input::of(path)).collect());
    }
    if is_fed(&io::stdin()) {
        return Ok(vec![Input::Stdin]);
    }
    Ok(vec![Input::File(policy_log(config)?.into())])
}

/// The log file that the policy names.
pub(super) fn policy_log(config: &ConfigArgs) -> anyhow::Result<String> {
    let name_a_log = |why: String| anyhow!(Complaint::new(Exit::NoInput, format!("{why}; name a log")));
    let loaded = policy(&config.config).map_err(|error| name_a_log(format!("{error:#}")))?;
    match &loaded.policy.settings().audit_log {
        AuditLog::File(path) => Ok(path.clone()),
        AuditLog::Stdout | AuditLog::Journald => Err(name_a_log(format!(
            "{} sends events to the journal or to standard output (journalctl -u imds-guard -o cat | imds-guard … -)",
            config.config.display()
        ))),
    }
}

/// Whether somebody pipes something in, or gives a file; a terminal and /dev/null are nobody.
fn is_fed(stdin: &io::Stdin) -> bool {
    use std::os::fd::AsFd as _;
    let file = stdin.as_fd().try_clone_to_owned().map(std::fs::File::from);
    let kind = |metadata: Metadata| metadata.is_file() || metadata.file_type().is_fifo();
    !stdin.is_terminal() && file.and_then(|file| file.metadata()).is_ok_and(kind)
}

/// Reads logs, and tells on standard error what could not be used.
pub(super) fn read(args: &LogArgs, logs: &[Input], each: impl FnMut(&Record<'_>)) -> anyhow::Result<Tally> {
    let mut progress = Teller::new();
    let tally = log::read(logs, args.since, &mut progress, each);
    progress.clear();
    let tally =
        tally.map_err(|error| anyhow!(Complaint::new(Exit::NoInput, format!("{error}: {}", error.cause))))?;
    for trouble in tally.troubles() {
        talk(&trouble);
    }
    Ok(tally)
}

/// Progress on a terminal, once a command takes longer than a second.
struct Teller {
    on_terminal: bool,
    started: Instant,
    told: Option<Instant>,
}

impl Teller {
    fn new() -> Self {
        Self { on_terminal: io::stderr().is_terminal(), started: Instant::now(), told: None }
    }

    fn clear(&self) {
        if self.told.is_some() {
            let _ = write!(io::stderr(), "\r\u{1b}[K");
        }
    }
}

impl Progress for Teller {
    fn advance(&mut self, log: &Input, tally: &Tally, share: Option<f64>) {
        let now = Instant::now();
        let pause = self.told.map_or(Duration::from_secs(1), |_| Duration::from_millis(200));
        if !self.on_terminal || now.duration_since(self.told.unwrap_or(self.started)) < pause {
            return;
        }
        self.told = Some(now);
        let share = share.map(|share| format!(" ({:.0} %)", share * 100.0)).unwrap_or_default();
        let log = log.to_string();
        let log = crate::report::escape::terminal(&log);
        let lines = crate::report::table::count(tally.lines);
        let _ = write!(io::stderr(), "\r\u{1b}[Kreading {log}: {lines} lines{share}");
    }
}
