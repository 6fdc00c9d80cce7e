//! Programs of others that tests check the guard's output with, where they can be had.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Prometheus's own checker; `None`, told on standard error, where it cannot be had.
pub fn promtool() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("bash").arg(root.join("scripts/promtool.sh")).output().expect("bash runs");
    if output.status.success() {
        return Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let _ = writeln!(std::io::stderr(), "*** promtool cannot be had; its check is SKIPPED: {why}");
    None
}
