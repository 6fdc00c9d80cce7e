//! Replays what the fuzzers found worth keeping, by their own oracles: `fuzz/corpus`, a directory for each target.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "an oracle that is not satisfied must say so"
)]
#![expect(unreachable_pub, reason = "the oracles are the fuzzers', too")]

use std::fs;
use std::path::Path;

#[path = "../fuzz/oracles/gate.rs"]
mod gate;
#[path = "../fuzz/oracles/policy.rs"]
mod policy;
#[path = "../fuzz/oracles/redaction.rs"]
mod redaction;
#[path = "../fuzz/oracles/target.rs"]
mod target;

fn replay(name: &str, check: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut count = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let content = fs::read(&path).unwrap();
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&content)));
        assert!(checked.is_ok(), "{}: {}", path.display(), content.escape_ascii());
        count += 1;
    }
    assert!(count >= 50, "{name}: only {count}");
}

#[test]
fn the_gate_s_corpus() {
    replay("gate", gate::check);
}

#[test]
fn the_targets_corpus() {
    replay("target", target::check);
}

#[test]
fn the_answers_corpus() {
    replay("redaction", redaction::check);
}

#[test]
fn the_policies_corpus() {
    replay("policy", policy::check);
}
