//! A root directory: its files' texts, and the rules that stand in them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where distributions put nft.
pub(super) const NFT: [&str; 4] = ["usr/sbin/nft", "sbin/nft", "usr/bin/nft", "usr/local/sbin/nft"];

/// The largest file that is looked through, in bytes.
const LARGEST: u64 = 4 << 20;

/// Where rules stand that are loaded at boot.
const RULE_FILES: [&str; 9] = [
    "etc/nftables.conf",
    "etc/sysconfig/nftables.conf",
    "etc/iptables/rules.v4",
    "etc/iptables/rules.v6",
    "etc/sysconfig/iptables",
    "etc/sysconfig/ip6tables",
    "etc/ufw/before.rules",
    "etc/ufw/after.rules",
    "etc/ufw/user.rules",
];

/// A root directory.
pub(super) struct Root {
    pub(super) path: PathBuf,
    /// Whether it is the running system's own.
    pub(super) live: bool,
}

impl Root {
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), live: path == Path::new("/") }
    }

    pub(super) fn exists(&self, file: &str) -> bool {
        fs::symlink_metadata(self.path.join(file)).is_ok()
    }

    /// A file's text, or nothing.
    pub(super) fn text(&self, file: &str) -> String {
        let path = self.path.join(file);
        let is_small = fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= LARGEST);
        let bytes = if is_small { fs::read(&path).unwrap_or_default() } else { Vec::new() };
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the kernel says in a file of its own; it has no size.
    pub(super) fn kernel_s(&self, file: &str) -> Option<String> {
        if self.live { fs::read_to_string(self.path.join(file)).ok() } else { None }
    }

    /// The names in a directory, in order.
    pub(super) fn names(&self, directory: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path.join(directory)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// The files of a directory with their texts.
    pub(super) fn texts(&self, directory: &str, suffix: &str) -> Vec<(String, String)> {
        let names = self.names(directory).into_iter().filter(|name| name.ends_with(suffix));
        names.map(|name| format!("{directory}/{name}")).map(|file| (file.clone(), self.text(&file))).collect()
    }

    /// The files of rules with their texts, and the rules that are loaded now, but for the guard's own.
    pub(super) fn rules(&self) -> Vec<(String, String)> {
        let mut rules: Vec<(String, String)> =
            RULE_FILES.iter().map(|file| ((*file).to_owned(), self.text(file))).collect();
        rules.extend(self.texts("etc/nftables.d", ".nft"));
        if self.live && nix::unistd::getuid().is_root() {
            let loaded = NFT
                .iter()
                .find(|nft| self.exists(nft))
                .and_then(|nft| run(&self.path.join(nft), &["list", "ruleset"]));
            rules
                .extend(loaded.map(|listing| ("the loaded rules".to_owned(), without_the_guard_s(&listing))));
        }
        rules
    }
}

pub(super) fn run(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).env_clear().current_dir("/").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn without_the_guard_s(listing: &str) -> String {
    let mut inside = false;
    let is_others = |line: &&str| {
        if line.starts_with("table ") {
            inside = line.contains(crate::redirect::TABLE);
        }
        !inside
    };
    listing.lines().filter(is_others).collect::<Vec<_>>().join("\n")
}
