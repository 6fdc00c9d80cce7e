//! `imds-guard clouds`: what is known of each cloud.

use std::io::{self, Write as _};

use anyhow::anyhow;
use serde::Serialize;

use super::{Complaint, Exit};
use crate::cli::CloudsArgs;
use crate::cloud::{Catalogue, Classes, Cloud, Session, table};
use crate::report::table::Table;

#[derive(Serialize)]
struct Told<'a> {
    id: &'a str,
    family: &'a str,
    name: &'a str,
    endpoints: Vec<String>,
    hostnames: &'a [String],
    session: bool,
    resources: Vec<Resource>,
}

#[derive(Serialize)]
struct Resource {
    path: String,
    classes: Classes,
    methods: String,
    who: Option<String>,
}

/// Lists all clouds, or shows the named ones with their paths.
pub fn run(args: &CloudsArgs) -> anyhow::Result<Exit> {
    let all = Catalogue::builtin();
    let chosen = match &args.name {
        None => all.clone(),
        Some(name) => all
            .select(std::slice::from_ref(name))
            .map_err(|error| anyhow!(Complaint::new(Exit::Usage, error.to_string())))?,
    };
    let clouds: Vec<&Cloud> = chosen.clouds().iter().map(|cloud| &**cloud).collect();
    let mut out = io::stdout().lock();
    if args.json {
        let told: Vec<Told<'_>> = clouds.iter().map(|cloud| tell(cloud)).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&told)?)?;
    } else if args.name.is_none() {
        overview(&clouds).write(&mut out)?;
    } else {
        for (at, cloud) in clouds.iter().enumerate() {
            if at > 0 {
                writeln!(out)?;
            }
            show(cloud, &mut out)?;
        }
    }
    Ok(Exit::Success)
}

fn overview(clouds: &[&Cloud]) -> Table {
    let mut table = Table::new(&["CLOUD", "FAMILY", "ENDPOINTS", "NAME"], &[]);
    for cloud in clouds {
        table.row([cloud.id(), cloud.family(), &endpoints(cloud).join(" "), cloud.name()]);
    }
    table
}

fn show(cloud: &Cloud, out: &mut impl io::Write) -> anyhow::Result<()> {
    writeln!(out, "{}: {} (family {})", cloud.id(), cloud.name(), cloud.family())?;
    writeln!(out, "endpoints: {}", endpoints(cloud).join(" "))?;
    if !cloud.hostnames().is_empty() {
        writeln!(out, "host names: {}", cloud.hostnames().join(" "))?;
    }
    if let Some(session) = cloud.session() {
        let (least, most) = session.ttl;
        let Session { method, path, required_status, .. } = &**session;
        write!(
            out,
            "session tokens: {method} {path}, good for {least} to {most} s; {required_status} where one is required"
        )?;
        writeln!(out, "{}", if session.fetch.is_some() { "" } else { ", which is always" })?;
    }
    if let Some(tls) = cloud.tls() {
        writeln!(out, "TLS: port {}, as {}", tls.port, tls.server_name)?;
    }
    writeln!(out)?;
    let mut shown = Table::new(&["CLASSES", "METHODS", "PATH", "WHO USUALLY NEEDS IT"], &[]);
    for row in table::table(cloud) {
        let who = row.who.as_deref().unwrap_or_default();
        shown.row([&row.classes.to_string(), &row.methods, &row.path, who]);
    }
    Ok(shown.write(out)?)
}

fn endpoints(cloud: &Cloud) -> Vec<String> {
    match cloud.dynamic_address() {
        Some(why) if cloud.served().is_empty() => vec![format!("({why})")],
        _ => cloud.served().iter().map(|served| served.endpoint.to_string()).collect(),
    }
}

fn tell(cloud: &Cloud) -> Told<'_> {
    let resources = table::table(cloud)
        .into_iter()
        .map(|row| Resource { path: row.path, classes: row.classes, methods: row.methods, who: row.who })
        .collect();
    Told {
        id: cloud.id(),
        family: cloud.family(),
        name: cloud.name(),
        endpoints: endpoints(cloud),
        hostnames: cloud.hostnames(),
        session: cloud.session().is_some(),
        resources,
    }
}
