//! `imds-guard check`: is this policy right, and is it wise?

use std::io::{self, IsTerminal as _, Write as _};

use super::Exit;
use crate::cli::CheckArgs;
use crate::keeper::bundle::Bundle;
use crate::keeper::files::Trust;
use crate::policy::{Diagnostic, diagnostic};

mod programs;

/// Prints every finding; fails if one is an error (with `--strict`, if there is any).
pub fn run(args: &CheckArgs) -> anyhow::Result<Exit> {
    let bundle = Bundle::read(&args.file, Trust::Anybody)?;
    let (findings, broken) = match bundle.compile() {
        Ok(compiled) => {
            let programs = programs::findings(&compiled.programs);
            (compiled.warnings.into_iter().chain(programs).collect(), false)
        }
        Err(errors) => (errors, true),
    };
    if args.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&findings)?)?;
    } else {
        print(&findings, &bundle)?;
    }
    let failed = broken || (args.strict && !findings.is_empty());
    Ok(if failed { Exit::Failure } else { Exit::Success })
}

fn print(findings: &[Diagnostic], bundle: &Bundle) -> io::Result<()> {
    let mut stdout = io::stdout();
    if findings.is_empty() {
        return writeln!(stdout, "the policy is right: nothing to say");
    }
    let colour = stdout.is_terminal();
    writeln!(stdout, "{}", diagnostic::render(findings, &bundle.sources(), colour))
}
