//! `imds-guard verify`: is this machine guarded; will this image be?

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;

use super::Exit;
use crate::cli::VerifyArgs;
use crate::keeper::bundle::Bundle;
use crate::keeper::files::Trust;
use crate::keeper::node_agents;
use crate::keeper::plan::wanted_by;
use crate::policy::Compiled;
use crate::redirect::apply::{self, Nft};
use crate::redirect::{TABLE, Wanted};
use crate::verify::{Finding, Report, Status, image, reach};

/// Prints what was found; fails if anything is wrong.
pub fn run(args: &VerifyArgs) -> anyhow::Result<Exit> {
    let report = if args.image { of_image(args) } else { of_machine(&args.config.config)? };
    let mut stdout = io::stdout();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(stdout, "{}", report.text())?;
    }
    Ok(if report.status == Status::Wrong { Exit::Failure } else { Exit::Success })
}

fn of_machine(config: &Path) -> anyhow::Result<Report> {
    let bundle = Bundle::read(config, Trust::Anybody)?;
    let policy = bundle
        .compile()
        .map_err(|errors| {
            anyhow::anyhow!("{} has errors: {}; imds-guard check tells them", config.display(), errors.len())
        })?
        .policy;
    let wanted = wanted_by(&policy)?;
    let mut findings = vec![rules(&wanted)];
    findings.extend(reach::endpoints(&wanted));
    findings.extend(node_agents(&wanted));
    Ok(Report::of(findings, None))
}

/// The rules themselves; only root may read them.
fn rules(wanted: &Wanted) -> Finding {
    const CHECK: &str = "redirect";
    if !nix::unistd::getuid().is_root() {
        return Finding::new(CHECK, Status::Unknown, "only root may read the rules");
    }
    let table = Nft::find().and_then(|nft| nft.table());
    match table.map(|table| table.map(|text| apply::check(wanted, &text))) {
        Ok(Some(Ok(()))) => {
            Finding::new(CHECK, Status::Ok, format!("table inet {TABLE} is as the policy asks"))
        }
        Ok(Some(Err(error))) => {
            Finding::new(CHECK, Status::Wrong, error.to_string()).help("systemctl restart imds-guard")
        }
        Ok(None) => Finding::new(CHECK, Status::Wrong, "the redirect is not loaded")
            .help("systemctl status imds-guard"),
        Err(error) => Finding::new(CHECK, Status::Wrong, error.to_string()),
    }
}

/// What agents of this node lead to themselves: of containers, that is left to them.
fn node_agents(wanted: &Wanted) -> Vec<Finding> {
    let Ok(nft) = Nft::find() else { return Vec::new() };
    if !nix::unistd::getuid().is_root() {
        return Vec::new();
    }
    let endpoints: Vec<IpAddr> = wanted.doors.iter().map(|door| door.endpoint.addr).collect();
    let found = node_agents::found(&nft, &endpoints).into_iter();
    found.map(|agent| Finding::new("node-agent", Status::Ok, agent)).collect()
}

fn of_image(args: &VerifyArgs) -> Report {
    let root = args.root.as_deref().unwrap_or(Path::new("/"));
    let (policy, compiled) = policy_of_image(root, &args.config.config);
    let mut report = image::image(root, compiled.as_ref().map(|compiled| &compiled.policy));
    report.findings.extend(policy);
    Report::of(report.findings, report.platform)
}

/// What the policy of an image is worth: it must be there, root's alone, and right.
fn policy_of_image(root: &Path, config: &Path) -> (Vec<Finding>, Option<Compiled>) {
    const CHECK: &str = "policy";
    let config = root.join(config.strip_prefix("/").unwrap_or(config));
    let wrong = |what: String| Finding::new(CHECK, Status::Wrong, what).help("imds-guard check tells where");
    let bundle = match Bundle::read_for(root, &config, Trust::RootOnly) {
        Ok(bundle) => bundle,
        Err(error) => return (vec![wrong(error.to_string())], None),
    };
    let compiled = match bundle.compile() {
        Ok(compiled) => compiled,
        Err(errors) => return (vec![wrong(format!("{} errors", errors.len()))], None),
    };
    let mut findings = vec![match compiled.warnings.len() {
        0 => Finding::new(CHECK, Status::Ok, format!("{} mode", compiled.policy.mode().name())),
        count => Finding::new(
            CHECK,
            Status::Warning,
            format!("{} mode, {count} warnings", compiled.policy.mode().name()),
        )
        .help("imds-guard check tells them"),
    }];
    let user = &compiled.policy.settings().user;
    if user.uid.is_none() {
        findings.push(
            Finding::new("user", Status::Wrong, format!("the image has no user {}", user.name))
                .help("systemd-sysusers imds-guard.conf"),
        );
    }
    (findings, Some(compiled))
}
