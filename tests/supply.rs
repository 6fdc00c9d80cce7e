//! What the program is made of does not grow unseen.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must stop and say so")]

use std::fs;
use std::path::Path;

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// How many packages `Cargo.lock` may name, those for the tests and for other systems included. Whoever raises it says in
/// the commit which crate came, and why its work is better than ours.
const MOST_PACKAGES: usize = 218;

#[test]
fn the_dependencies_do_not_grow_unseen() {
    let lock: toml::Table = text("Cargo.lock").parse().unwrap();
    let packages = lock["package"].as_array().unwrap().len();
    assert!(packages <= MOST_PACKAGES, "{packages} packages: a new dependency needs its reason here");
    assert!(
        packages + 5 > MOST_PACKAGES,
        "only {packages} packages: write that down here, so that it stays so"
    );
}

#[test]
fn every_dependency_comes_from_the_registry_with_its_digest() {
    let lock: toml::Table = text("Cargo.lock").parse().unwrap();
    for package in lock["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if name == env!("CARGO_PKG_NAME") {
            continue;
        }
        let source = package.get("source").and_then(toml::Value::as_str);
        assert_eq!(source, Some("registry+https://github.com/rust-lang/crates.io-index"), "{name}");
        assert_eq!(package["checksum"].as_str().unwrap().len(), 64, "{name}");
    }
}
