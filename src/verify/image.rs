//! What is wrong with an image, or with the machine that it is built on: everything that can be seen in its root directory.
//! Where that directory is the running system's own, its kernel is looked at, too.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::firewall;
use super::kernel::{self, Cgroup2, Version};
use super::{Finding, Platform, Report, Status};
use crate::cloud::Endpoint;
use crate::policy::{Mode, Policy};

/// Where distributions put nft.
const NFT: [&str; 4] = ["usr/sbin/nft", "sbin/nft", "usr/bin/nft", "usr/local/sbin/nft"];

/// nft before this knows no owner of a table.
const NFT_WITH_OWNERS: Version = (1, 0);

/// Version 247 brought what the unit uses.
const SYSTEMD: u32 = 247;

/// Where distributions put its library, whose name tells the version.
const SYSTEMD_LIBRARIES: [&str; 5] = [
    "usr/lib/systemd",
    "lib/systemd",
    "usr/lib64/systemd",
    "usr/lib/x86_64-linux-gnu/systemd",
    "usr/lib/aarch64-linux-gnu/systemd",
];

/// Fewer tracked connections than this fill up on an ordinary server, and then nothing is led any more.
const FEW_CONNECTIONS: u64 = 16_384;

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

/// Where kernels' command lines come from.
const COMMAND_LINES: [&str; 4] =
    ["etc/default/grub", "etc/kernel/cmdline", "usr/lib/kernel/cmdline", "boot/grub/grub.cfg"];

/// A root directory.
struct Root {
    path: PathBuf,
    /// Whether it is the running system's own.
    live: bool,
}

impl Root {
    fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), live: path == Path::new("/") }
    }

    fn exists(&self, file: &str) -> bool {
        fs::symlink_metadata(self.path.join(file)).is_ok()
    }

    /// A file's text, or nothing.
    fn text(&self, file: &str) -> String {
        let path = self.path.join(file);
        let is_small = fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= LARGEST);
        let bytes = if is_small { fs::read(&path).unwrap_or_default() } else { Vec::new() };
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the kernel says in a file of its own; it has no size.
    fn kernel_s(&self, file: &str) -> Option<String> {
        if self.live { fs::read_to_string(self.path.join(file)).ok() } else { None }
    }

    /// The names in a directory, in order.
    fn names(&self, directory: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path.join(directory)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// The files of a directory with their texts.
    fn texts(&self, directory: &str, suffix: &str) -> Vec<(String, String)> {
        let names = self.names(directory).into_iter().filter(|name| name.ends_with(suffix));
        names.map(|name| format!("{directory}/{name}")).map(|file| (file.clone(), self.text(&file))).collect()
    }

    /// The files of rules with their texts, and the rules that are loaded now, but for the guard's own.
    fn rules(&self) -> Vec<(String, String)> {
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

fn run(program: &Path, arguments: &[&str]) -> Option<String> {
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

/// Looks through the root directory at `path`, for a guard with this policy; without one, what depends on it is unknown.
#[must_use]
pub fn image(path: &Path, policy: Option<&Policy>) -> Report {
    let root = Root::at(path);
    let mut findings = vec![nft(&root)];
    findings.extend(kernel(&root, policy.map_or(Mode::Audit, Policy::mode)));
    findings.push(cgroup2(&root));
    findings.push(systemd(&root));
    findings.push(unit(&root));
    findings.extend(policy.map(|policy| direction(&root, policy)));
    findings.push(conntrack(&root));
    findings.extend(modules(&root));
    findings.extend(firewalls(&root, policy));
    findings.extend(neighbours(&root, policy));
    let platform = platform(&findings);
    Report::of(findings, Some(platform))
}

fn platform(findings: &[Finding]) -> Platform {
    let is_wrong = |check| findings.iter().any(|one| one.check == check && one.status == Status::Wrong);
    if ["nft", "kernel", "kernel-options"].into_iter().any(is_wrong) {
        Platform::Refused
    } else if is_wrong("cgroup2") {
        Platform::Degraded
    } else {
        Platform::Full
    }
}

fn nft(root: &Root) -> Finding {
    const CHECK: &str = "nft";
    let Some(nft) = NFT.iter().find(|nft| root.exists(nft)) else {
        return Finding::new(CHECK, Status::Wrong, "nft is missing").help("install the package nftables");
    };
    let version = if root.live { run(&root.path.join(nft), &["--version"]) } else { None };
    let version = version.as_deref().and_then(|said| kernel::version(said.split_once('v')?.1));
    match version {
        Some(version) if version < NFT_WITH_OWNERS => {
            Finding::new(CHECK, Status::Wrong, format!("nft {}.{} is too old", version.0, version.1))
                .help("nft 1.0 or later")
        }
        Some((major, minor)) => Finding::new(CHECK, Status::Ok, format!("nft {major}.{minor}")),
        None => Finding::new(CHECK, Status::Ok, format!("/{nft}")),
    }
}

fn kernel(root: &Root, mode: Mode) -> Vec<Finding> {
    const CHECK: &str = "kernel";
    let mut releases = root.names("usr/lib/modules");
    releases.extend(root.names("lib/modules"));
    if releases.is_empty() {
        releases.extend(root.kernel_s("proc/sys/kernel/osrelease").map(|release| release.trim().to_owned()));
    }
    let oldest = releases.iter().filter_map(|release| Some((kernel::version(release)?, release))).min();
    let Some((version, release)) = oldest else {
        return vec![Finding::new(CHECK, Status::Unknown, "no kernel in the image")];
    };
    let of = |status, detail: String| Finding::new(CHECK, status, detail);
    let finding = if version < kernel::WITH_CGROUP_IDS {
        of(Status::Wrong, format!("{release}: the kernel does not tell callers' cgroups reliably"))
            .help("Linux 5.12 or later")
    } else if version < kernel::WITH_TABLE_OWNERS {
        let status = if mode == Mode::Audit { Status::Wrong } else { Status::Warning };
        of(status, format!("{release}: audit mode cannot fail open")).help("Linux 5.12 or later")
    } else if version < kernel::WITH_LANDLOCK {
        of(Status::Warning, format!("{release}: no Landlock round the proxy")).help("Linux 5.13 or later")
    } else {
        of(Status::Ok, release.clone())
    };
    vec![finding, options(root, release)]
}

fn options(root: &Root, release: &str) -> Finding {
    const CHECK: &str = "kernel-options";
    let files = [
        format!("boot/config-{release}"),
        format!("usr/lib/modules/{release}/config"),
        format!("lib/modules/{release}/config"),
    ];
    let config = files.iter().map(|file| root.text(file)).find(|text| !text.is_empty());
    let Some(config) = config else {
        return Finding::new(CHECK, Status::Unknown, "the kernel's configuration is not in the image");
    };
    let lacks = kernel::lacks(&config);
    if lacks.is_empty() {
        return Finding::new(CHECK, Status::Ok, "all that the guard needs");
    }
    let lacks: Vec<String> =
        lacks.into_iter().map(|(option, purpose)| format!("{option} ({purpose})")).collect();
    Finding::new(CHECK, Status::Wrong, format!("missing: {}", lacks.join(", "))).help("take another kernel")
}

fn cgroup2(root: &Root) -> Finding {
    const CHECK: &str = "cgroup2";
    if root.kernel_s("proc/filesystems").is_some_and(|list| !list.contains("cgroup2")) {
        return Finding::new(CHECK, Status::Wrong, "this kernel has no cgroup2");
    }
    let mut lines: Vec<(String, String)> =
        COMMAND_LINES.iter().map(|file| ((*file).to_owned(), root.text(file))).collect();
    lines.extend(root.texts("boot/loader/entries", ".conf"));
    lines.extend(root.texts("etc/default/grub.d", ".cfg"));
    lines.extend(root.kernel_s("proc/cmdline").map(|line| ("proc/cmdline".to_owned(), line)));
    let asks = |wanted| lines.iter().find(|(_, line)| kernel::cgroup2(line) == wanted).map(|(file, _)| file);
    if let Some(file) = asks(Cgroup2::Off) {
        return Finding::new(CHECK, Status::Wrong, format!("/{file} turns cgroup2 off"))
            .help("take systemd.unified_cgroup_hierarchy=0 off the kernel's command line");
    }
    if let Some(file) = asks(Cgroup2::Hybrid) {
        return Finding::new(
            CHECK,
            Status::Ok,
            format!("hybrid, by /{file}: units are known by it all the same"),
        );
    }
    Finding::new(CHECK, Status::Ok, "nothing turns it off")
}

fn systemd(root: &Root) -> Finding {
    const CHECK: &str = "systemd";
    let libraries = SYSTEMD_LIBRARIES.map(|directory| root.names(directory));
    let version = libraries.iter().flatten().find_map(|name| {
        let rest = name.strip_prefix("libsystemd-shared-")?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
    });
    match version {
        Some(version) if version < SYSTEMD => {
            Finding::new(CHECK, Status::Wrong, format!("systemd {version} is too old"))
                .help("systemd 247 or later")
        }
        Some(version) => Finding::new(CHECK, Status::Ok, format!("systemd {version}")),
        None => Finding::new(CHECK, Status::Unknown, "no systemd in the image"),
    }
}

fn unit(root: &Root) -> Finding {
    const CHECK: &str = "service";
    const MASK: &str = "etc/systemd/system/imds-guard.service";
    const WANTED: &str = "etc/systemd/system/sysinit.target.wants/imds-guard.service";
    let masked = fs::read_link(root.path.join(MASK)).is_ok_and(|target| target == Path::new("/dev/null"));
    if masked {
        return Finding::new(CHECK, Status::Wrong, "imds-guard.service is masked")
            .help("systemctl unmask imds-guard");
    }
    if !root.exists(WANTED) {
        return Finding::new(CHECK, Status::Wrong, "imds-guard.service is not enabled")
            .help("systemctl enable imds-guard");
    }
    Finding::new(CHECK, Status::Ok, "enabled, in sysinit.target")
}

fn direction(root: &Root, policy: &Policy) -> Finding {
    const CHECK: &str = "direction";
    let is_closed = root.exists("var/lib/imds-guard/closed.nft");
    match (policy.mode(), is_closed) {
        (Mode::Enforce, true) => Finding::new(CHECK, Status::Ok, "closed from the first boot, whatever happens to the guard"),
        (Mode::Enforce, false) => {
            Finding::new(CHECK, Status::Warning, "open if the very first start fails").help("run /usr/lib/imds-guard/remember-direction")
        }
        (Mode::Audit, false) => Finding::new(CHECK, Status::Ok, "open whenever the guard is not there (audit)"),
        (Mode::Audit, true) => {
            Finding::new(CHECK, Status::Wrong, "the policy audits, and /var/lib/imds-guard/closed.nft closes the endpoints until the guard is there")
                .help("run /usr/lib/imds-guard/remember-direction, which removes it")
        }
    }
}

fn conntrack(root: &Root) -> Finding {
    const CHECK: &str = "conntrack";
    let mut files = root.texts("usr/lib/sysctl.d", ".conf");
    files.extend(root.texts("etc/sysctl.d", ".conf"));
    files.push(("etc/sysctl.conf".to_owned(), root.text("etc/sysctl.conf")));
    for (file, text) in &files {
        let few = text.lines().filter_map(|line| line.split_once('=')).find_map(|(key, value)| {
            let key = key.trim().trim_start_matches('-').replace('/', ".");
            let value: u64 = value.trim().parse().ok()?;
            (key == "net.netfilter.nf_conntrack_max" && value < FEW_CONNECTIONS).then_some(value)
        });
        if let Some(value) = few {
            return Finding::new(
                CHECK,
                Status::Warning,
                format!("/{file} tracks {value} connections at most"),
            )
            .help("when they are used up, new connections fail: everybody's, and so the guard's");
        }
    }
    let number = |file| root.kernel_s(file).and_then(|text| text.trim().parse::<u64>().ok());
    let (max, count) = (
        number("proc/sys/net/netfilter/nf_conntrack_max"),
        number("proc/sys/net/netfilter/nf_conntrack_count"),
    );
    match (max, count) {
        (Some(max), Some(count)) if count > max / 5 * 4 => {
            Finding::new(CHECK, Status::Warning, format!("{count} of {max} connections are tracked"))
                .help("raise net.netfilter.nf_conntrack_max")
        }
        (Some(max), Some(count)) => {
            Finding::new(CHECK, Status::Ok, format!("{count} of {max} connections are tracked"))
        }
        _ => Finding::new(CHECK, Status::Ok, "no limit is set"),
    }
}

/// Modules that the redirect needs and somebody forbids.
fn modules(root: &Root) -> Option<Finding> {
    const NEEDED: [&str; 4] = ["nf_conntrack", "nf_tables", "nft_chain_nat", "nf_nat"];
    let mut files = root.texts("etc/modprobe.d", ".conf");
    files.extend(root.texts("usr/lib/modprobe.d", ".conf"));
    files.iter().find_map(|(file, text)| {
        let line = text.lines().map(str::trim).find(|line| {
            let mut words = line.split_whitespace();
            let forbids = match words.next() {
                Some("blacklist") => true,
                Some("install") => line.ends_with("/true") || line.ends_with("/false"),
                _ => false,
            };
            forbids && words.next().is_some_and(|module| NEEDED.contains(&module))
        })?;
        Some(
            Finding::new("modules", Status::Wrong, format!("/{file}: {line}"))
                .help("the redirect needs that module"),
        )
    })
}

fn firewalls(root: &Root, policy: Option<&Policy>) -> Vec<Finding> {
    let endpoints = policy.map(|policy| policy.catalogue().endpoints()).unwrap_or_default();
    let mut addresses: BTreeSet<IpAddr> = endpoints.iter().map(|endpoint| endpoint.addr).collect();
    addresses.insert(Endpoint::SHARED);
    let addresses: Vec<IpAddr> = addresses.into_iter().collect();
    let rules = root.rules();
    let mut findings = Vec::new();
    for (file, text) in &rules {
        if firewall::drops_loopback(text) {
            findings.push(
                Finding::new("firewall-input", Status::Wrong, format!("{file}: input is dropped, from loopback, too"))
                    .help("accept what comes in on lo, as every firewall's defaults do: what is led to the guard comes in there"),
            );
        }
        if let Some(rule) = firewall::untracked(text).first() {
            findings.push(
                Finding::new("untracked", Status::Warning, format!("{file}: {rule}"))
                    .help("what is not tracked cannot be led to the guard"),
            );
        }
        for rule in firewall::about(text, &addresses) {
            findings.push(
                Finding::new("other-rules", Status::Warning, format!("{file}: {rule}")).help(
                    "another tool leads or drops the same traffic: see docs/image.md, Beside other tools",
                ),
            );
        }
    }
    findings.extend(containers(root, &rules));
    if findings.is_empty() {
        findings.push(Finding::new("firewall", Status::Ok, "no rule stands in the way"));
    }
    findings
}

fn containers(root: &Root, rules: &[(String, String)]) -> Option<Finding> {
    const ENGINES: [&str; 5] = [
        "usr/bin/dockerd",
        "usr/bin/podman",
        "usr/bin/containerd",
        "usr/local/bin/containerd",
        "usr/bin/kubelet",
    ];
    let engine = ENGINES.iter().find(|engine| root.exists(engine))?;
    let ufw = root.text("etc/default/ufw").contains("DEFAULT_INPUT_POLICY=\"DROP\"");
    let drops = ufw || rules.iter().any(|(_, text)| firewall::drops_input(text));
    drops.then(|| {
        Finding::new(
            "containers",
            Status::Warning,
            format!("input is dropped by default, and there is /{engine}"),
        )
        .help("containers that the guard is to judge need their interface accepted in input")
    })
}

/// Programs that stand on the same path.
fn neighbours(root: &Root, policy: Option<&Policy>) -> Vec<Finding> {
    let has = |files: &[&str]| files.iter().any(|file| root.exists(file));
    let mut findings = Vec::new();
    if has(&["usr/lib/systemd/systemd-imdsd", "lib/systemd/systemd-imdsd"]) {
        let is_marked = policy.is_some_and(|policy| policy.settings().upstream_mark.is_some());
        let status = if is_marked { Status::Ok } else { Status::Warning };
        findings.push(
            Finding::new(
                "systemd-imdsd",
                status,
                "systemd-imdsd is here; its locked mode routes only its own mark to the service",
            )
            .help("in locked mode, set [guard] upstream-mark = 0x7FFF0815"),
        );
    }
    if has(&["usr/sbin/azure-proxy-agent", "usr/lib/systemd/system/azure-proxy-agent.service"]) {
        findings.push(
            Finding::new(
                "azure-proxy-agent",
                Status::Warning,
                "the Azure Guest Proxy Agent is here, and takes the same traffic first",
            )
            .help(
                "one of the two is enough: its eBPF program leads connections away before nftables sees them",
            ),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// An image in which everything is right.
    fn good() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| write(root.path(), file, text);
        write("usr/sbin/nft", "");
        write("usr/lib/modules/6.1.0-50-cloud-amd64/modules.dep", "");
        write("boot/config-6.1.0-50-cloud-amd64", &config());
        write("usr/lib/systemd/libsystemd-shared-252.so", "");
        write("etc/systemd/system/sysinit.target.wants/imds-guard.service", "");
        write("etc/default/grub", "GRUB_CMDLINE_LINUX=\"quiet\"");
        root
    }

    fn config() -> String {
        [
            "NF_TABLES",
            "NF_TABLES_INET",
            "NFT_NAT",
            "NFT_CT",
            "NFT_REJECT",
            "INET_DIAG",
            "CGROUPS",
            "SECCOMP_FILTER",
        ]
        .map(|option| format!("CONFIG_{option}=y\n"))
        .concat()
    }

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn of(report: &Report, check: &str) -> Finding {
        report
            .findings
            .iter()
            .find(|one| one.check == check)
            .unwrap_or_else(|| panic!("{check}: {report:#?}"))
            .clone()
    }

    #[test]
    fn a_good_image_is_full() {
        let report = image(good().path(), None);
        assert_eq!((report.platform, report.status), (Some(Platform::Full), Status::Ok), "{report:#?}");
    }

    #[test]
    fn each_thing_that_is_wrong_is_listed() {
        let wrong: [(&str, &str, &str, Platform); 8] = [
            (
                "cgroup2",
                "etc/kernel/cmdline",
                "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1",
                Platform::Degraded,
            ),
            ("kernel", "usr/lib/modules/5.4.0-1-aws/modules.dep", "", Platform::Refused),
            ("kernel-options", "boot/config-6.1.0-50-cloud-amd64", "CONFIG_NF_TABLES=m\n", Platform::Refused),
            ("systemd", "usr/lib/systemd/libsystemd-shared-239.so", "", Platform::Full),
            ("modules", "etc/modprobe.d/hardening.conf", "install nf_conntrack /bin/false\n", Platform::Full),
            (
                "firewall-input",
                "etc/iptables/rules.v4",
                "*filter\n:INPUT DROP [0:0]\nCOMMIT\n",
                Platform::Full,
            ),
            (
                "firewall-input",
                "etc/nftables.conf",
                "chain i {\ntype filter hook input priority 0; policy drop;\n}\n",
                Platform::Full,
            ),
            ("nft", "", "", Platform::Refused),
        ];
        for (check, file, text, platform) in wrong {
            let root = good();
            if file.is_empty() {
                fs::remove_file(root.path().join("usr/sbin/nft")).unwrap();
            } else {
                write(root.path(), file, text);
            }
            let report = image(root.path(), None);
            let finding = of(&report, check);
            assert_eq!(
                (finding.status, report.platform),
                (Status::Wrong, Some(platform)),
                "{check}: {report:#?}"
            );
            assert!(finding.help.is_some() || check == "systemd", "{finding:?}");
        }
    }

    #[test]
    fn each_thing_that_wants_a_look_is_told() {
        let doubtful = [
            ("conntrack", "etc/sysctl.d/90-small.conf", "net.netfilter.nf_conntrack_max = 4096\n"),
            ("systemd-imdsd", "usr/lib/systemd/systemd-imdsd", ""),
            ("azure-proxy-agent", "usr/sbin/azure-proxy-agent", ""),
            (
                "other-rules",
                "etc/iptables/rules.v4",
                "-A OUTPUT -d 169.254.169.254/32 -m owner ! --uid-owner 0 -j DROP\n",
            ),
            ("untracked", "etc/iptables/rules.v4", "-A OUTPUT -o lo -j CT --notrack\n"),
        ];
        for (check, file, text) in doubtful {
            let root = good();
            write(root.path(), file, text);
            let report = image(root.path(), None);
            let finding = of(&report, check);
            assert_eq!(finding.status, Status::Warning, "{report:#?}");
            assert!(finding.help.is_some(), "{finding:?}");
        }
    }

    #[test]
    fn a_closed_firewall_and_a_container_engine_are_told_together() {
        let root = good();
        write(root.path(), "usr/bin/dockerd", "");
        write(root.path(), "etc/iptables/rules.v4", ":INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n");
        assert_eq!(of(&image(root.path(), None), "containers").status, Status::Warning);
    }

    #[test]
    fn a_service_that_will_not_start_is_wrong() {
        let root = good();
        fs::remove_file(root.path().join("etc/systemd/system/sysinit.target.wants/imds-guard.service"))
            .unwrap();
        assert_eq!(of(&image(root.path(), None), "service").status, Status::Wrong);
        symlink("/dev/null", root.path().join("etc/systemd/system/imds-guard.service")).unwrap();
        assert!(of(&image(root.path(), None), "service").detail.contains("masked"));
    }
}
