//! Which cgroup a unit is: the whole path from the root decides, never its last component.
//!
//! A user's own service manager may name what it starts `amazon-ssm-agent.service` too, in
//! `/user.slice/user-1000.slice/user@1000.service/app.slice/`, and a service with a delegated subtree may name
//! its children anything. Both differ from the real unit only in what stands above the name.

use std::fmt;

use super::glob;

/// A unit as a policy names it: a full name, or a template whose instance may hold `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UnitPattern {
    /// `amazon-ssm-agent.service`
    Exact(Box<str>),
    /// `policy-routes@*.service`: the part up to and with `@`, then a pattern for the rest.
    Instances { template: Box<str>, rest: Box<str> },
}

/// Why a text names no unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnitFault {
    /// It does not end like a unit that has a cgroup.
    Suffix,
    /// `*` stands outside the instance.
    Star,
    /// It holds a slash, or nothing before the suffix.
    Name,
}

/// The kinds of units that have a cgroup of their own.
const SUFFIXES: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

impl fmt::Display for UnitPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Instances { template, rest } => write!(f, "{template}{rest}"),
        }
    }
}

impl UnitPattern {
    /// Reads a unit's name. systemd's escapes (`\x2d`) stay as they are: cgroup names carry them too.
    pub(super) fn parse(text: &str) -> Result<Self, UnitFault> {
        let stem = SUFFIXES.iter().find_map(|suffix| text.strip_suffix(suffix)).ok_or(UnitFault::Suffix)?;
        if stem.is_empty() || text.contains('/') {
            return Err(UnitFault::Name);
        }
        if !text.contains('*') {
            return Ok(Self::Exact(text.into()));
        }
        // A `*` before the `@` would take in units that the policy's author never saw; instances of one
        // template all run the same unit file.
        match text.split_once('@') {
            Some((template, rest)) if !template.is_empty() && !template.contains('*') => {
                let template = format!("{template}@").into();
                Ok(Self::Instances { template, rest: rest.into() })
            }
            Some(_) | None => Err(UnitFault::Star),
        }
    }

    /// The text under which an index finds the unit; [`index_keys`] gives the same for a cgroup's components.
    pub(super) fn index_key(&self) -> &str {
        match self {
            Self::Exact(name) => name,
            Self::Instances { template, .. } => template,
        }
    }

    /// Whether it names a slice, which holds no process itself.
    pub(super) fn is_slice(&self) -> bool {
        match self {
            Self::Exact(name) => has_suffix(name, ".slice"),
            Self::Instances { rest, .. } => has_suffix(rest, ".slice"),
        }
    }

    /// Whether users have a say in what it starts, and it starts that as them.
    pub(super) fn is_open_to_users(&self) -> bool {
        const STARTERS: [&str; 6] =
            ["cron.service", "crond.service", "cronie.service", "fcron.service", "atd.service", "at.service"];
        STARTERS.contains(&self.index_key())
    }

    /// Whether systemd keeps it in user.slice, where it can never match.
    pub(super) fn is_of_users(&self) -> bool {
        let key = self.index_key();
        key == "user.slice"
            || key.starts_with("user@")
            || key.starts_with("user-") && has_suffix(key, ".slice")
            || key.starts_with("session-") && has_suffix(key, ".scope")
    }

    fn names(&self, component: &str) -> bool {
        match self {
            Self::Exact(name) => component == &**name,
            Self::Instances { template, rest } => {
                component.strip_prefix(&**template).is_some_and(|instance| glob::matches(rest, instance))
            }
        }
    }

    /// Whether a cgroup is this unit, or, with `subtree`, lies below it.
    pub(super) fn matches(&self, cgroup: &str, subtree: bool) -> bool {
        let mut components = cgroup.split('/').skip(1);
        // Walks down through slices only; the first component that is no slice must be the unit itself.
        while let Some(component) = components.next() {
            if self.names(component) {
                return match components.next() {
                    None => true,
                    Some(_) => subtree && !holds_container(cgroup),
                };
            }
            if !is_system_slice(component) {
                return false;
            }
        }
        false
    }
}

/// The path of the system's unit in which a cgroup is, whether it is the unit itself or lies below. `None` for what lives
/// in a user's manager or in a container: what stands on such a path, users or engines made up.
#[must_use]
pub fn unit_path(cgroup: &str) -> Option<&str> {
    if holds_container(cgroup) {
        return None;
    }
    let mut end = 0;
    for component in cgroup.split('/').skip(1) {
        end += 1 + component.len();
        if !is_system_slice(component) {
            let is_unit = component != "user.slice"
                && UnitPattern::parse(component).is_ok()
                && !component.contains('*');
            return is_unit.then(|| cgroup.get(..end)).flatten();
        }
    }
    None
}

/// The keys under which an index may know units on this path: each component, and its template.
pub(super) fn index_keys(cgroup: &str) -> impl Iterator<Item = &str> {
    cgroup.split('/').skip(1).flat_map(|component| {
        let template = component.find('@').and_then(|at| component.get(..=at));
        std::iter::once(component).chain(template)
    })
}

/// Whether a cgroup is the one that a policy names literally, or, with `subtree`, lies below it.
pub(super) fn is_cgroup(named: &str, cgroup: &str, subtree: bool) -> bool {
    if named == cgroup {
        return true;
    }
    let below = cgroup.strip_prefix(named.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'));
    subtree && below && !holds_container(cgroup)
}

/// A slice under which the system's own manager keeps units: not a user's, and not a container's.
fn is_system_slice(component: &str) -> bool {
    has_suffix(component, ".slice") && component != "user.slice" && !marks_container(component)
}

/// Byte for byte, unlike a file's extension: unit names have no case folding.
fn has_suffix(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|stem| !stem.is_empty())
}

/// Whether any part of a path is one that a container engine makes.
///
/// A container's processes run code that the unit's author never saw, and a container's uid 0 is not the host's
/// root, so no grant to a subtree or to a user reaches them.
pub(super) fn holds_container(cgroup: &str) -> bool {
    cgroup.split('/').any(marks_container)
}

/// Names that engines give: Docker and Podman scopes, CRI runtimes, Kubernetes' and Amazon ECS's trees, LXC,
/// BuildKit, machined. `system.slice:docker:ID` is what the cgroupfs driver makes of a systemd path.
fn marks_container(component: &str) -> bool {
    const WHOLE: [&str; 8] =
        ["docker", "libpod_parent", "lxc", "lxd", "ecs", "ecstasks.slice", "machine.slice", "buildkit"];
    const STARTS: [&str; 15] = [
        "docker-",
        "libpod-",
        "podman-",
        "cri-",
        "crio",
        "lxc.",
        "lxc-",
        "lxd-",
        "nerdctl-",
        "containerd-",
        "buildkit-",
        "ecstasks-",
        "machine-",
        "systemd-nspawn@",
        "garden-",
    ];
    component.split(':').any(|part| {
        part.contains("kubepods")
            || WHOLE.contains(&part)
            || STARTS.iter().any(|start| part.starts_with(start)) && !part.ends_with(".service")
            || part.starts_with("systemd-nspawn@")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(text: &str) -> UnitPattern {
        UnitPattern::parse(text).unwrap()
    }

    #[test]
    fn a_unit_is_its_whole_path() {
        let agent = unit("amazon-ssm-agent.service");
        for yes in [
            "/system.slice/amazon-ssm-agent.service",
            "/amazon-ssm-agent.service",
            "/azure.slice/azure-agents.slice/amazon-ssm-agent.service",
        ] {
            assert!(agent.matches(yes, false), "{yes}");
        }
        for no in [
            "/",
            "/system.slice",
            "/system.slice/amazon-ssm-agent.service/child",
            "/system.slice/xamazon-ssm-agent.service",
            "/user.slice/amazon-ssm-agent.service",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/amazon-ssm-agent.service",
            "/system.slice/web.service/amazon-ssm-agent.service",
            "/system.slice/web.service/system.slice/amazon-ssm-agent.service",
            "/system.slice/docker-0a.scope/system.slice/amazon-ssm-agent.service",
            "/machine.slice/amazon-ssm-agent.service",
            "/kubepods.slice/kubepods-pod1.slice/amazon-ssm-agent.service",
            "/system.slice//amazon-ssm-agent.service",
            "/.slice/amazon-ssm-agent.service",
            "/system.slice/Amazon-SSM-Agent.service",
        ] {
            assert!(!agent.matches(no, false), "{no}");
        }
    }

    #[test]
    fn a_subtree_ends_at_containers_and_at_lookalikes() {
        let agent = unit("walinuxagent.service");
        assert!(agent.matches("/azure.slice/walinuxagent.service/ext/worker", true));
        assert!(!agent.matches("/azure.slice/walinuxagent.service/ext/worker", false));
        for marker in [
            "docker",
            "docker-1.scope",
            "libpod-1.scope",
            "libpod-payload-1",
            "cri-containerd-1.scope",
            "crio-1.scope",
            "kubepods",
            "kubepods.slice",
            "kubelet-kubepods.slice",
            "buildkit",
            "lxc",
            "lxc.payload.a",
            "machine.slice",
            "system.slice:docker:1",
            "ecstasks.slice",
            "ecs",
            "systemd-nspawn@a.service",
        ] {
            let path = format!("/azure.slice/walinuxagent.service/{marker}/x");
            assert!(!agent.matches(&path, true), "{path}");
        }
        assert!(!agent.matches("/system.slice/web.service/walinuxagent.service/x", true));
    }

    #[test]
    fn daemons_of_container_engines_are_no_containers() {
        for daemon in
            ["/system.slice/docker.service", "/system.slice/containerd.service", "/system.slice/crio.service"]
        {
            assert!(!holds_container(daemon), "{daemon}");
        }
    }

    #[test]
    fn stars_stand_in_the_instance_only() {
        let routes = unit("policy-routes@*.service");
        assert!(
            routes.matches("/system.slice/system-policy\\x2droutes.slice/policy-routes@ens5.service", false)
        );
        assert!(!routes.matches("/system.slice/policy-routes@ens5.timer", false));
        assert!(!routes.matches("/system.slice/xpolicy-routes@ens5.service", false));
        assert_eq!(UnitPattern::parse("*.service"), Err(UnitFault::Star));
        assert_eq!(UnitPattern::parse("a*@x.service"), Err(UnitFault::Star));
        assert_eq!(UnitPattern::parse("@*.service"), Err(UnitFault::Star));
        assert_eq!(UnitPattern::parse("sshd"), Err(UnitFault::Suffix));
        assert_eq!(UnitPattern::parse(".service"), Err(UnitFault::Name));
        assert_eq!(UnitPattern::parse("a/b.service"), Err(UnitFault::Name));
    }

    #[test]
    fn a_literal_cgroup_is_compared_whole() {
        assert!(is_cgroup("/a/b", "/a/b", false));
        assert!(!is_cgroup("/a/b", "/a/b/c", false));
        assert!(is_cgroup("/a/b", "/a/b/c", true));
        assert!(!is_cgroup("/a/b", "/a/bc", true));
        assert!(!is_cgroup("/a/b", "/a/b/docker-1.scope", true));
        assert!(is_cgroup("/a/docker-1.scope", "/a/docker-1.scope", false));
        assert!(is_cgroup("/", "/a", true));
    }

    #[test]
    fn a_unit_s_path_ends_with_the_unit() {
        for (cgroup, unit) in [
            ("/system.slice/a.service", Some("/system.slice/a.service")),
            ("/system.slice/a.service/child/deeper", Some("/system.slice/a.service")),
            ("/a.slice/a-b.slice/c@1.service", Some("/a.slice/a-b.slice/c@1.service")),
            ("/init.scope", Some("/init.scope")),
            ("/", None),
            ("/system.slice", None),
            ("/system.slice/child/a.service", None),
            ("/user.slice/user-1.slice/user@1.service/a.service", None),
            ("/system.slice/a.service/docker-1.scope", None),
            ("/system.slice/docker-1.scope", None),
        ] {
            assert_eq!(unit_path(cgroup), unit, "{cgroup}");
        }
    }

    #[test]
    fn an_index_finds_templates() {
        let keys: Vec<_> = index_keys("/system.slice/policy-routes@a@b.service").collect();
        assert_eq!(keys, ["system.slice", "policy-routes@a@b.service", "policy-routes@"]);
    }
}
