//! What is wrong with an image, or with the machine that it is built on: everything that can be seen in its root directory.
//! Where that directory is the running system's own, its kernel is looked at, too.
//!
//! * `system`: what the guard stands on. * `service`: its own unit. * `others`: what else is on the path.

mod others;
mod root;
mod service;
mod system;

use std::path::Path;

use super::{Finding, Platform, Report, Status};
use crate::policy::{Mode, Policy};
use root::Root;

/// Looks through the root directory at `path`, for a guard with this policy; without one, what depends on it is unknown.
#[must_use]
pub fn image(path: &Path, policy: Option<&Policy>) -> Report {
    let root = Root::at(path);
    let mut findings = vec![system::nft(&root)];
    findings.extend(system::kernel(&root, policy.map_or(Mode::Audit, Policy::mode)));
    findings.push(system::cgroup2(&root));
    findings.push(system::systemd(&root));
    findings.push(service::unit(&root));
    findings.extend(policy.map(|policy| service::direction(&root, policy)));
    findings.push(others::conntrack(&root));
    findings.extend(system::modules(&root));
    findings.extend(others::firewalls(&root, policy));
    findings.extend(others::neighbours(&root, policy));
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

#[cfg(test)]
mod tests {
    use std::fs;
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

    /// The page shows what is printed of a full, a degraded and a refused platform.
    #[test]
    fn what_is_printed_of_each_platform_stands_in_the_documentation() {
        let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/image.md")).unwrap();
        let stands_there = |report: &Report, platform: Platform, only_wrong: bool| {
            assert_eq!(report.platform, Some(platform), "{report:#?}");
            let text = report.text();
            let lines = text.lines().filter(|line| !only_wrong || !line.starts_with("ok "));
            for line in lines {
                assert!(page.lines().any(|one| one == line), "docs/image.md lacks this line:\n{line}");
            }
        };
        let root = good();
        stands_there(&image(root.path(), None), Platform::Full, false);
        write(
            root.path(),
            "etc/kernel/cmdline",
            "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1",
        );
        stands_there(&image(root.path(), None), Platform::Degraded, true);
        fs::remove_file(root.path().join("usr/sbin/nft")).unwrap();
        let rules =
            "*filter\n:INPUT DROP [0:0]\n-A OUTPUT -d 169.254.169.254/32 -m owner ! --uid-owner 0 -j DROP\n";
        write(root.path(), "etc/iptables/rules.v4", rules);
        stands_there(&image(root.path(), None), Platform::Refused, true);
    }
}
