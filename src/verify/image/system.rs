//! What the guard stands on: nft, the kernel and what it was started with, systemd.

use super::super::kernel::{self, Cgroup2, Version};
use super::super::{Finding, Status};
use super::root::{NFT, Root, run};
use crate::policy::Mode;

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

/// Where kernels' command lines come from.
const COMMAND_LINES: [&str; 4] =
    ["etc/default/grub", "etc/kernel/cmdline", "usr/lib/kernel/cmdline", "boot/grub/grub.cfg"];

pub(super) fn nft(root: &Root) -> Finding {
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

pub(super) fn kernel(root: &Root, mode: Mode) -> Vec<Finding> {
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

pub(super) fn cgroup2(root: &Root) -> Finding {
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

pub(super) fn systemd(root: &Root) -> Finding {
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

/// Modules that the redirect needs and somebody forbids.
pub(super) fn modules(root: &Root) -> Option<Finding> {
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
