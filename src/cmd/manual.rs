//! `imds-guard completions` and `imds-guard man`: what packages ship beside the program, made from the command
//! line's own definitions.

use std::fs;
use std::io::{self, Write as _};

use anyhow::{Context as _, anyhow};
use clap::CommandFactory as _;

use super::{Complaint, Exit, output};
use crate::cli::{Cli, CompletionsArgs, ManArgs};

/// Prints a shell's completions.
pub fn completions(args: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "imds-guard", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(Exit::Success)
}

/// Writes a man page for the program, and one for each subcommand that is not hidden.
pub fn man(args: &ManArgs) -> anyhow::Result<Exit> {
    fs::create_dir_all(&args.directory).map_err(|error| {
        let message = format!("cannot make {}: {error}", args.directory.display());
        anyhow!(Complaint::new(Exit::CannotCreate, message))
    })?;
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    page(&program, "imds-guard", args)?;
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("imds-guard-{}", command.get_name());
        page(command, &name, args)?;
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
            page(inner, &format!("{name}-{}", inner.get_name()), args)?;
        }
    }
    Ok(Exit::Success)
}

fn page(command: &clap::Command, name: &str, args: &ManArgs) -> anyhow::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name.to_uppercase())
        .render(&mut page)
        .context("a man page")?;
    output::replace(&args.directory.join(format!("{name}.1")), &page)
}
