//! Clocks can be set back, by hand or by a time service. What decides (limits, tokens' lifetimes, memory, deadlines) runs
//! by clocks that nobody can set; the wall clock is for what people read.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on must stop and say so"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Who may read the wall clock, and why.
const READERS: [(&str, &str); 7] = [
    ("src/audit/event.rs", "an event tells when it was"),
    ("src/proxy/record.rs", "so does that of a request"),
    ("src/proxy/issued.rs", "an event tells when a key expires"),
    ("src/observe/moment.rs", "the status tells since when"),
    ("src/proxy/decoy.rs", "a canary says until when it would be good"),
    ("src/report/since.rs", "a person asks for the last hour"),
    ("src/cmd/report.rs", "a page tells when it was made"),
];

const WALL_CLOCKS: [&str; 6] = [
    "SystemTime::now",
    "Timestamp::now",
    "Zoned::now",
    "ClockId::Realtime",
    "CLOCK_REALTIME",
    "UNIX_EPOCH.elapsed",
];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_wall_clock_decides_nothing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut readers = Vec::new();
    for path in sources(&root.join("src")) {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let reads = |clock: &&str| {
            code.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(*clock))
        };
        if WALL_CLOCKS.iter().any(reads) {
            assert!(
                READERS.iter().any(|(reader, _)| *reader == name),
                "{name} reads a clock that can be set back"
            );
            readers.push(name);
        }
    }
    assert_eq!(readers.len(), READERS.len(), "the list has names that read no clock: {readers:?}");
}
