//! The `imds-guard` program: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use imds_guard::cli::Cli;

fn main() -> ExitCode {
    imds_guard::cmd::dispatch(Cli::parse()).into()
}
