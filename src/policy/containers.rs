//! Callers in other network namespaces: `[containers]`, and the agent's key `container`.

use toml::Spanned;

use super::compile::{classes, empty_list};
use super::diagnostic::{Place, Report};
use super::glob;
use super::shape::Document;
use super::source::{ContainersTable, Name};
use crate::caller::container::{Container, Runtime};
use crate::cloud::Classes;

/// How many interfaces may be named, and how long a name is (`IFNAMSIZ` without its end).
const INTERFACES: usize = 32;
const NAME_BYTES: usize = 15;

/// What a pattern must say before its `*`: `e*` is more likely to be an uplink than a bridge.
const LEAST_STEM: usize = 2;

/// `[containers]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Containers {
    /// The interfaces behind which containers are: names, the last character perhaps `*`.
    pub interfaces: Vec<Box<str>>,
    /// Whether they are judged in audit mode, too.
    pub judge: bool,
    /// What any container may touch.
    pub allow: Classes,
}

/// Whether an interface's name fits a pattern of `[containers] interfaces`.
#[must_use]
pub fn interface_fits(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |stem| name.starts_with(stem))
}

/// Reads `[containers]` of the main file. An interface that leads outwards is an error: through it the neighbours would
/// get the machine's metadata.
pub(super) fn read(document: &Document, uplinks: &[String], report: &mut Report<'_>) -> Option<Containers> {
    let table = document.containers.as_ref()?;
    let place = document.place(table.span());
    let ContainersTable { interfaces, judge, allow } = table.get_ref();
    let Some(interfaces) = interfaces else {
        report
            .error("no-interfaces", "`[containers]` needs `interfaces`: behind which are they?", &place)
            .help("as in interfaces = [\"docker0\", \"br-*\"]");
        return None;
    };
    if interfaces.0.is_empty() {
        empty_list("interfaces", &place, report);
    }
    if interfaces.0.len() > INTERFACES {
        report.error("out-of-range", format!("`interfaces` names at most {INTERFACES}"), &place);
    }
    let interfaces = interfaces.0.iter().filter_map(|name| interface(document, name, uplinks, report));
    Some(Containers {
        interfaces: interfaces.collect(),
        judge: judge.unwrap_or(false),
        allow: classes(document, &allow.0, report),
    })
}

fn interface(
    document: &Document,
    name: &Name,
    uplinks: &[String],
    report: &mut Report<'_>,
) -> Option<Box<str>> {
    let (text, place) = (name.get_ref().as_str(), document.place(name.span()));
    let stem = text.strip_suffix('*').unwrap_or(text);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@:".contains(&byte);
    let least = if stem.len() < text.len() { LEAST_STEM } else { 1 };
    if stem.len() < least || text.len() > NAME_BYTES || !stem.bytes().all(is_plain) || text == "lo" {
        report
            .error("bad-interface", "this is no name of an interface behind which containers are", &place)
            .help("a name of at most 15 letters; `*` may stand at its end, behind two letters or more, as in `br-*`");
        return None;
    }
    if let Some(uplink) = uplinks.iter().find(|uplink| interface_fits(text, uplink)) {
        report
            .error("uplink-of-containers", format!("`{text}` names `{uplink}`, through which this machine's default route leads"), &place)
            .help("whoever can reach the machine there could use its metadata service: name only bridges and cables to containers");
        return None;
    }
    Some(text.into())
}

/// One item of an agent's `container`: the containers that it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerPattern {
    runtime: Option<Runtime>,
    id: Option<Box<str>>,
    /// In the spelling with hyphens, and in systemd's with underscores.
    pod: Option<[Box<str>; 2]>,
    slice: Option<Box<str>>,
    pub(super) rootless: bool,
}

impl ContainerPattern {
    /// Whether the container is one of these.
    pub(super) fn fits(&self, container: &Container<'_>) -> bool {
        // One that a user made, or one inside a unit, is meant only where the policy says so: their names are not root's.
        self.rootless == container.rootless
            && self.is_quadlet() == container.unit.is_some()
            && self.runtime.is_none_or(|runtime| runtime == container.runtime)
            && self.id.as_ref().is_none_or(|id| glob::matches(id, container.id))
            && self
                .pod
                .as_ref()
                .is_none_or(|pod| container.pod.is_some_and(|uid| uid.fits(pod, glob::matches)))
            && self.slice.as_ref().is_none_or(|slice| container.slice.is_some_and(|above| **slice == *above))
    }

    /// Whether it means containers inside a unit, which has to be named.
    pub(super) fn is_quadlet(&self) -> bool {
        self.runtime == Some(Runtime::Quadlet)
    }
}

/// `container = …` as it is written: an engine's name, or a table.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ContainerTable {
    runtime: Option<String>,
    id: Option<String>,
    pod: Option<String>,
    slice: Option<String>,
    #[serde(default)]
    rootless: bool,
}

impl ContainerTable {
    /// Any container of the engine of that name; `*` is any engine.
    pub(super) fn of(runtime: &str) -> Self {
        Self { runtime: (runtime != "*").then(|| runtime.to_owned()), ..Self::default() }
    }
}

/// Reads one item of an agent's `container`.
pub(super) fn pattern(
    table: &Spanned<ContainerTable>,
    place: &Place,
    report: &mut Report<'_>,
) -> Option<ContainerPattern> {
    let ContainerTable { runtime, id, pod, slice, rootless } = table.get_ref();
    let known = runtime.as_deref().map(|name| runtime_named(name, place, report));
    let runtime = match known {
        Some(None) => return None,
        Some(known) => known,
        None => None,
    };
    let is_hex_glob = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit() || b"*-".contains(&byte));
    for (key, text) in [("id", id), ("pod", pod)] {
        if text.as_deref().is_some_and(|text| text.is_empty() || text.len() > 64 || !is_hex_glob(text)) {
            report.error(
                "bad-container",
                format!("`{key}` is hexadecimal digits, with `*` for any run of them"),
                place,
            );
            return None;
        }
    }
    if slice.as_deref().is_some_and(|slice| {
        slice.strip_suffix(".slice").is_none_or(str::is_empty) || slice.contains(['/', '*'])
    }) {
        report
            .error("bad-container", "`slice` is the full name of the slice right above the container", place)
            .help("as in `billing.slice`, which Docker and Podman take as --cgroup-parent");
        return None;
    }
    let lower = |text: &String| Box::<str>::from(text.to_ascii_lowercase());
    Some(ContainerPattern {
        runtime,
        id: id.as_ref().map(lower),
        pod: pod.as_ref().map(lower).map(|pod| [pod.clone(), pod.replace('-', "_").into()]),
        slice: slice.as_deref().map(Into::into),
        rootless: *rootless,
    })
}

fn runtime_named(name: &str, place: &Place, report: &mut Report<'_>) -> Option<Runtime> {
    let runtime = Runtime::from_name(name);
    if runtime.is_none() {
        let known: Vec<&str> = Runtime::ALL.into_iter().map(Runtime::name).collect();
        report
            .error(
                "unknown-runtime",
                format!("there is no container engine `{}`", name.escape_default()),
                place,
            )
            .help(format!("known are {}, and `*` for any", known.join(", ")));
    }
    runtime
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::container;

    const ID: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";

    fn fits(text: &str, cgroup: &str) -> bool {
        let source = [crate::policy::Source { name: "t".into(), text: String::new() }];
        let mut report = Report::new(&source);
        let table = if text.starts_with('{') {
            let value: toml::Table = toml::from_str(&format!("c = {text}")).unwrap();
            value["c"].clone().try_into().unwrap()
        } else {
            ContainerTable::of(text)
        };
        let place = Place { source: 0, span: None };
        let pattern = pattern(&Spanned::new(0..1, table), &place, &mut report).unwrap();
        let cgroup = cgroup.replace("ID", ID);
        container::of(&cgroup).is_some_and(|container| pattern.fits(&container))
    }

    #[test]
    fn interfaces_fit_whole_or_by_their_beginning() {
        assert!(interface_fits("docker0", "docker0") && !interface_fits("docker0", "docker01"));
        assert!(
            interface_fits("br-*", "br-1f2e")
                && interface_fits("br-*", "br-")
                && !interface_fits("br-*", "br0")
        );
    }

    #[test]
    fn a_pattern_means_root_s_containers_unless_it_says_otherwise() {
        assert!(fits("docker", "/system.slice/docker-ID.scope"));
        assert!(fits("*", "/machine.slice/libpod-ID.scope"));
        assert!(!fits("podman", "/system.slice/docker-ID.scope"));
        assert!(!fits("docker", "/user.slice/user-1000.slice/docker-ID.scope"));
        assert!(!fits("*", "/user.slice/user-1000.slice/docker-ID.scope"));
        assert!(!fits("*", "/system.slice/web.service/libpod-payload-ID"));
        assert!(fits("quadlet", "/system.slice/web.service/libpod-payload-ID"));
        assert!(fits(
            "{ runtime = \"podman\", rootless = true }",
            "/user.slice/user-1000.slice/libpod-ID.scope"
        ));
        assert!(!fits("{ runtime = \"podman\", rootless = true }", "/machine.slice/libpod-ID.scope"));
    }

    #[test]
    fn a_pattern_narrows_by_id_slice_and_pod() {
        assert!(fits("{ id = \"0A1b*\" }", "/docker/ID") && !fits("{ id = \"1a*\" }", "/docker/ID"));
        assert!(fits("{ slice = \"billing.slice\" }", "/billing.slice/docker-ID.scope"));
        assert!(!fits("{ slice = \"billing.slice\" }", "/billing.slice/x.slice/docker-ID.scope"));
        assert!(!fits("{ slice = \"billing.slice\" }", "/docker/ID"));
        let pod =
            "/kubepods.slice/kubepods-pod8b0e0b3c_5a4f_4a8e_9d3b_0123456789ab.slice/cri-containerd-ID.scope";
        assert!(fits("{ pod = \"8b0e0b3c-5a4f-*\" }", pod));
        assert!(fits("{ pod = \"8b0e0b3c-*\" }", "/kubepods/pod8b0e0b3c-5a4f-4a8e-9d3b-0123456789ab/ID"));
        assert!(!fits("{ pod = \"9*\" }", pod) && !fits("{ pod = \"*\" }", "/docker/ID"));
    }
}
