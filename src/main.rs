//! The `imds-guard` program.

fn main() {}
