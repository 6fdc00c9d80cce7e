//! What a kernel's version, configuration and command line say. Pure.

/// A kernel's version: major and minor.
pub type Version = (u32, u32);

/// Before this the kernel tells no cgroup id that can be relied on.
pub const WITH_CGROUP_IDS: Version = (5, 10);

/// Before this a table has no owner, and audit mode cannot fail open.
pub const WITH_TABLE_OWNERS: Version = (5, 12);

/// Before this there is no Landlock.
pub const WITH_LANDLOCK: Version = (5, 13);

/// The version in a release such as `6.1.0-50-cloud-amd64`.
#[must_use]
pub fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Options without which the guard does not work, each with its purpose; any of those before a bar will do.
const NEEDED: [(&str, &str); 8] = [
    ("CONFIG_NF_TABLES", "nftables"),
    ("CONFIG_NF_TABLES_INET", "nftables for both IP versions at once"),
    ("CONFIG_NFT_NAT", "the redirect"),
    ("CONFIG_NFT_CT", "connection tracking in nftables"),
    ("CONFIG_NFT_REJECT", "enforce mode's resets"),
    ("CONFIG_INET_DIAG", "who is calling"),
    ("CONFIG_CGROUPS", "callers' units"),
    ("CONFIG_SECCOMP_FILTER", "the proxy's sandbox"),
];

/// Which needed options a kernel's configuration lacks, each with its purpose.
#[must_use]
pub fn lacks(config: &str) -> Vec<(&'static str, &'static str)> {
    let has = |name: &str| {
        config
            .lines()
            .any(|line| line.strip_prefix(name).is_some_and(|value| matches!(value.trim(), "=y" | "=m")))
    };
    NEEDED.into_iter().filter(|(name, _)| !has(name)).collect()
}

/// What a command line does to cgroup2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroup2 {
    /// Nothing: it is there.
    On,
    /// systemd mounts it beside version 1.
    Hybrid,
    /// systemd mounts version 1 alone.
    Off,
}

/// What a kernel's command line, or the file that it is made from, asks of systemd. The last word counts.
#[must_use]
pub fn cgroup2(command_line: &str) -> Cgroup2 {
    const NO: [&str; 4] = ["0", "no", "false", "off"];
    const YES: [&str; 4] = ["1", "yes", "true", "on"];
    let last = |name: &str| {
        let words = command_line.split(|c: char| c.is_whitespace() || "\"'".contains(c));
        words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).next_back()
    };
    let is = |value: Option<&str>, wanted: [&str; 4]| value.is_some_and(|value| wanted.contains(&value));
    if !is(last("systemd.unified_cgroup_hierarchy"), NO) {
        return Cgroup2::On;
    }
    if is(last("systemd.legacy_systemd_cgroup_controller"), YES) { Cgroup2::Off } else { Cgroup2::Hybrid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(version("6.1.0-50-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("5.10.0"), Some((5, 10)));
        assert_eq!(version("5.4.0-1103-aws"), Some((5, 4)));
        assert_eq!(version("nonsense"), None);
        assert!(version("4.18.0-553.el8").unwrap() < WITH_CGROUP_IDS);
    }

    #[test]
    fn a_configuration_without_a_needed_option_is_told() {
        let all: String = NEEDED.map(|(name, _)| format!("{name}=m\n")).concat();
        assert!(lacks(&all).is_empty());
        let without = all.replace("CONFIG_NFT_NAT=m", "# CONFIG_NFT_NAT is not set");
        assert_eq!(lacks(&without), [("CONFIG_NFT_NAT", "the redirect")]);
    }

    #[test]
    fn command_lines_turn_cgroup2_off_in_two_words() {
        let hybrid = "quiet systemd.unified_cgroup_hierarchy=0";
        assert_eq!(cgroup2("quiet ro"), Cgroup2::On);
        assert_eq!(cgroup2(hybrid), Cgroup2::Hybrid);
        assert_eq!(cgroup2(&format!("{hybrid} systemd.legacy_systemd_cgroup_controller=yes")), Cgroup2::Off);
        assert_eq!(cgroup2(&format!("GRUB_CMDLINE_LINUX=\"{hybrid}\"")), Cgroup2::Hybrid);
        assert_eq!(cgroup2(&format!("{hybrid} systemd.unified_cgroup_hierarchy=1")), Cgroup2::On);
    }
}
