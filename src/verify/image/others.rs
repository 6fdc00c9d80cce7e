//! What others put on the same path: firewalls, limits of connection tracking, programs that lead the same traffic.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::firewall;
use super::super::{Finding, Status};
use super::root::Root;
use crate::cloud::Endpoint;
use crate::policy::Policy;

/// Fewer tracked connections than this fill up on an ordinary server, and then nothing is led any more.
const FEW_CONNECTIONS: u64 = 16_384;

pub(super) fn conntrack(root: &Root) -> Finding {
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

pub(super) fn firewalls(root: &Root, policy: Option<&Policy>) -> Vec<Finding> {
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
pub(super) fn neighbours(root: &Root, policy: Option<&Policy>) -> Vec<Finding> {
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
