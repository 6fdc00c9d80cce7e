//! Which container a cgroup is, by its path from the root. Pure.
//!
//! A name proves nothing by itself: a user's own service manager, and a service with a delegated subtree, name what
//! lies below them as they like. So a container of the system's own engine is believed only where nobody but root can
//! make a cgroup: at the places at the root of the tree that the engines' cgroupfs drivers use, or below slices of the
//! system's manager. What stands anywhere else is no container at all, but for two cases that say so: a container
//! below `user.slice` is *rootless*, and one inside a unit names that unit.

use std::fmt;

/// A container engine, as its cgroups tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runtime {
    /// Docker, also as the engine of Amazon ECS.
    Docker,
    /// containerd: by the CRI, or by nerdctl.
    Containerd,
    /// CRI-O.
    Crio,
    /// Podman.
    Podman,
    /// Podman inside a unit of its own (`--cgroups=split`), as Quadlet makes it.
    Quadlet,
    /// A Kubernetes node whose kubelet uses the cgroupfs driver: the path does not tell which engine it is.
    Kubernetes,
}

impl Runtime {
    /// Every engine.
    pub const ALL: [Self; 6] =
        [Self::Docker, Self::Containerd, Self::Crio, Self::Podman, Self::Quadlet, Self::Kubernetes];

    /// The name that policies and events use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Crio => "cri-o",
            Self::Podman => "podman",
            Self::Quadlet => "quadlet",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// The engine of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|runtime| runtime.name() == name)
    }
}

/// A container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Container<'a> {
    /// What runs it.
    pub runtime: Runtime,
    /// Its id: 64 hexadecimal digits.
    pub id: &'a str,
    /// The Kubernetes pod that it belongs to.
    pub pod: Option<PodUid<'a>>,
    /// The slice right above it (`--cgroup-parent`), if it is there that it stands.
    pub slice: Option<&'a str>,
    /// The cgroup of the unit inside which it stands; of Quadlet's containers only.
    pub unit: Option<&'a str>,
    /// Whether a user's own engine made it. Then every part of its path but the user's slice is the user's choice.
    pub rootless: bool,
}

/// A pod's uid, as a cgroup's name spells it: systemd's names have underscores in place of hyphens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodUid<'a>(&'a str);

impl PodUid<'_> {
    /// Whether it fits a pattern in the hyphens' spelling, by this comparison.
    pub(crate) fn fits(self, spellings: &[Box<str>; 2], matches: impl Fn(&str, &str) -> bool) -> bool {
        spellings.iter().any(|spelling| matches(spelling, self.0))
    }
}

impl fmt::Display for PodUid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| fmt::Write::write_char(f, if c == '_' { '-' } else { c }))
    }
}

/// The prefixes of scopes that hold a container, and the engine that names them so.
const SCOPES: [(&str, Runtime); 5] = [
    ("docker-", Runtime::Docker),
    ("cri-containerd-", Runtime::Containerd),
    ("nerdctl-", Runtime::Containerd),
    ("crio-", Runtime::Crio),
    ("libpod-", Runtime::Podman),
];

/// The outermost container on a cgroup's path from the root, if there is one: what runs inside it may make cgroups of
/// any name below it.
#[must_use]
pub fn of(cgroup: &str) -> Option<Container<'_>> {
    let mut rest = cgroup.strip_prefix('/')?;
    let first = next(&mut rest)?;
    match first {
        "docker" => plain(Runtime::Docker, next(&mut rest)?),
        // A task, then one of its containers.
        "ecs" => {
            next(&mut rest)?;
            plain(Runtime::Docker, next(&mut rest)?)
        }
        "libpod_parent" => libpod_parent(rest),
        "kubepods" => kubepods(rest),
        "user.slice" => below_user(rest),
        slice if is_slice(slice) => below_slices(slice, rest, cgroup),
        _ => None,
    }
}

/// A container's cgroup by the systemd driver: slices, then its scope. Or inside a unit, as Quadlet has it.
fn below_slices<'a>(first: &'a str, mut rest: &'a str, cgroup: &'a str) -> Option<Container<'a>> {
    let (mut slice, mut pod) = (first, pod_of_slice(first));
    loop {
        let name = next(&mut rest)?;
        if name == "user.slice" {
            return None;
        }
        if is_slice(name) {
            (slice, pod) = (name, pod_of_slice(name).or(pod));
            continue;
        }
        if let Some((runtime, id)) = scope(name) {
            return Some(Container { pod, slice: Some(slice), ..plain(runtime, id)? });
        }
        if name.len() <= ".service".len() || !name.ends_with(".service") {
            return None;
        }
        let unit = cgroup.get(..cgroup.len() - rest.len())?.trim_end_matches('/');
        let id = next(&mut rest)?.strip_prefix("libpod-payload-")?;
        return Some(Container { unit: Some(unit), ..plain(Runtime::Quadlet, id)? });
    }
}

/// A container of a user's own engine: anywhere below the user's slice, where the user names what it makes.
fn below_user(rest: &str) -> Option<Container<'_>> {
    let (runtime, id) = rest.split('/').find_map(scope)?;
    Some(Container { rootless: true, ..plain(runtime, id)? })
}

/// Podman by the cgroupfs driver: the container, or its pod and then the container.
fn libpod_parent(mut rest: &str) -> Option<Container<'_>> {
    let name = next(&mut rest)?;
    let name = if is_id(name) { next(&mut rest)? } else { name };
    plain(Runtime::Podman, name.strip_prefix("libpod-")?)
}

/// Kubernetes by the cgroupfs driver: perhaps a class of service, the pod, the container.
fn kubepods(mut rest: &str) -> Option<Container<'_>> {
    let name = next(&mut rest)?;
    let name = if ["burstable", "besteffort"].contains(&name) { next(&mut rest)? } else { name };
    let pod = pod_uid(name.strip_prefix("pod")?)?;
    let name = next(&mut rest)?;
    let (runtime, id) = [("crio-", Runtime::Crio), ("", Runtime::Kubernetes)]
        .into_iter()
        .find_map(|(prefix, runtime)| Some((runtime, name.strip_prefix(prefix)?)))?;
    Some(Container { pod: Some(pod), ..plain(runtime, id)? })
}

/// The pod of a slice such as `kubepods-burstable-pod8b0e0b3c_….slice`.
fn pod_of_slice(slice: &str) -> Option<PodUid<'_>> {
    let (above, uid) = slice.strip_suffix(".slice")?.rsplit_once("-pod")?;
    above.contains("kubepods").then(|| pod_uid(uid))?
}

/// A uid in either spelling, or the digest that names a static pod.
fn pod_uid(text: &str) -> Option<PodUid<'_>> {
    let is_digest = text.len() == 32 && text.bytes().all(is_hex);
    let groups = || text.split(['-', '_']).map(str::len).eq([8, 4, 4, 4, 12]);
    let is_uuid = || groups() && text.bytes().all(|byte| is_hex(byte) || b"-_".contains(&byte));
    (is_digest || is_uuid()).then_some(PodUid(text))
}

fn scope(name: &str) -> Option<(Runtime, &str)> {
    let stem = name.strip_suffix(".scope")?;
    SCOPES.into_iter().find_map(|(prefix, runtime)| {
        let id = stem.strip_prefix(prefix)?;
        is_id(id).then_some((runtime, id))
    })
}

fn plain(runtime: Runtime, id: &str) -> Option<Container<'_>> {
    let container = Container { runtime, id, pod: None, slice: None, unit: None, rootless: false };
    is_id(id).then_some(container)
}

fn is_slice(name: &str) -> bool {
    name.strip_suffix(".slice").is_some_and(|stem| !stem.is_empty())
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(is_hex)
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

/// Takes the next component off a path.
fn next<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let (name, after) = rest.split_once('/').unwrap_or((rest, ""));
    *rest = after;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";
    const POD: &str = "8b0e0b3c-5a4f-4a8e-9d3b-0123456789ab";

    fn path(pattern: &str) -> String {
        pattern.replace("ID", ID).replace("P_D", &POD.replace('-', "_")).replace("P-D", POD)
    }

    fn told(pattern: &str) -> Option<String> {
        let path = path(pattern);
        of(&path).map(|container| {
            assert_eq!(container.id, ID);
            let pod = container.pod.map(|pod| format!(" {pod}")).unwrap_or_default();
            let rootless = if container.rootless { " rootless" } else { "" };
            let above = container.slice.or(container.unit).unwrap_or_default();
            format!("{}{pod}{rootless} {above}", container.runtime.name())
        })
    }

    #[test]
    fn a_container_is_known_by_its_place_in_the_tree() {
        let pod = format!(" {POD}");
        for (path, wanted) in [
            ("/system.slice/docker-ID.scope", "docker system.slice"),
            ("/system.slice/docker-ID.scope/init.scope", "docker system.slice"),
            ("/billing.slice/docker-ID.scope", "docker billing.slice"),
            ("/docker/ID", "docker "),
            ("/docker/ID/docker/ID", "docker "),
            ("/ecs/6f1f/ID", "docker "),
            ("/ecstasks.slice/ecstasks-6f1f.slice/docker-ID.scope", "docker ecstasks-6f1f.slice"),
            ("/machine.slice/libpod-ID.scope/container", "podman machine.slice"),
            (
                "/machine.slice/machine-libpod_pod_ID.slice/libpod-ID.scope",
                "podman machine-libpod_pod_ID.slice",
            ),
            ("/libpod_parent/libpod-ID", "podman "),
            ("/libpod_parent/ID/libpod-ID/container", "podman "),
            ("/system.slice/web.service/libpod-payload-ID", "quadlet /system.slice/web.service"),
            ("/system.slice/nerdctl-ID.scope", "containerd system.slice"),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podP_D.slice/cri-containerd-ID.scope",
                "containerdPOD kubepods-burstable-podP_D.slice",
            ),
            (
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podP_D.slice/crio-ID.scope",
                "cri-oPOD kubelet-kubepods-podP_D.slice",
            ),
            ("/kubepods.slice/kubepods-podP_D.slice/docker-ID.scope", "dockerPOD kubepods-podP_D.slice"),
            ("/kubepods/burstable/podP-D/ID", "kubernetesPOD "),
            ("/kubepods/podP-D/crio-ID", "cri-oPOD "),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
                "podman rootless ",
            ),
            ("/user.slice/user-1000.slice/docker-ID.scope", "docker rootless "),
        ] {
            let wanted = super::tests::path(&wanted.replace("POD", &pod));
            assert_eq!(told(path).as_deref(), Some(&*wanted), "{path}");
        }
    }

    #[test]
    fn a_name_in_the_wrong_place_is_no_container() {
        for path in [
            "/",
            "/docker",
            "/docker/0a1b",
            "/docker-ID.scope",
            "/system.slice/docker.service",
            "/system.slice/docker-0a1b.scope",
            "/system.slice/xdocker-ID.scope",
            "/system.slice/docker-ID.service",
            "/system.slice/libpod-conmon-ID.scope",
            "/system.slice/crio-conmon-ID.scope",
            // Below a service with a delegated subtree, whose user may make any cgroup there.
            "/system.slice/web.service/docker-ID.scope",
            "/system.slice/web.service/docker/ID",
            "/system.slice/web.service/system.slice/docker-ID.scope",
            "/system.slice/web.service/kubepods/podP-D/ID",
            "/system.slice/docker/ID",
            "/system.slice/session-1.scope/libpod-payload-ID",
            "/init.scope/docker-ID.scope",
            "/kubepods/podP-D",
            "/kubepods/pod8b0e/ID",
            "/machine.slice/user.slice/docker-ID.scope",
            "/.slice/docker-ID.scope",
            "//docker/ID",
            "docker/ID",
        ] {
            assert_eq!(told(path), None, "{path}");
        }
        assert_eq!(of(&path("/docker/ID").to_uppercase().replace("DOCKER", "docker")), None);
    }

    #[test]
    fn the_outermost_container_counts() {
        let inner = ID.replace('0', "f");
        let path = format!("/system.slice/docker-{ID}.scope/system.slice/docker-{inner}.scope");
        assert_eq!(of(&path).unwrap().id, ID);
    }

    #[test]
    fn a_slice_of_another_name_lends_no_pod() {
        let path = path("/evil.slice/evil-podP_D.slice/docker-ID.scope");
        assert_eq!(of(&path).unwrap().pod, None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_below_a_service_or_a_user_is_root_s_container(
            above in "(/[a-z]{1,4}\\.slice){0,2}/[a-z]{1,4}\\.service",
            below in "(/(docker|kubepods|system\\.slice|docker-ID\\.scope|libpod-ID\\.scope|ID)){1,4}",
        ) {
            let here = path(&format!("{above}{below}"));
            proptest::prop_assert_eq!(of(&here), None);
            let users = path(&format!("/user.slice{above}{below}"));
            let is_rootless = of(&users).is_none_or(|container| container.rootless);
            proptest::prop_assert!(is_rootless);
        }
    }
}
