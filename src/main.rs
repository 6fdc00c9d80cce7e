//! The `imds-guard` program: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use imds_guard::cli::Cli;

/// A request costs some eighty small allocations, most of them in the HTTP library.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    imds_guard::cmd::dispatch(Cli::parse()).into()
}
