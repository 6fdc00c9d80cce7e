//! Containers that have a lasting name. A container's id is new at every start, and so is a pod's: a policy that names
//! them would be wrong tomorrow. What stays is the slice that somebody put the container into, or the unit of Quadlet's.

use crate::caller::container::{self, Container, Runtime};

/// A container by what stays the same when it is started again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Contained {
    text: String,
    runtime: Runtime,
    place: String,
}

/// Slices into which engines and the service manager put containers that nobody gave a place.
const COMMON: [&str; 3] = ["system.slice", "machine.slice", "user.slice"];

impl Contained {
    /// The container of a cgroup, if it has a lasting name.
    #[must_use]
    pub fn of(cgroup: &str) -> Option<Self> {
        let container = container::of(cgroup).filter(|container| !container.rootless)?;
        let Container { runtime, pod: None, slice, unit, .. } = container else { return None };
        let place = match unit {
            Some(unit) => unit.rsplit('/').next()?,
            None => slice.filter(|slice| !COMMON.contains(slice) && !slice.starts_with("kubepods"))?,
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@:".contains(&byte);
        let is_plain = place.bytes().all(plain);
        is_plain.then(|| Self {
            text: format!("{} in {place}", runtime.name()),
            runtime,
            place: place.to_owned(),
        })
    }

    /// What a report calls it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What a policy's agent is called that is it.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The lines of an agent that is it.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        if self.runtime == Runtime::Quadlet {
            return vec!["container = \"quadlet\"".to_owned(), format!("unit = \"{}\"", self.place)];
        }
        let runtime = self.runtime.name();
        vec![format!("container = {{ runtime = \"{runtime}\", slice = \"{}\" }}", self.place)]
    }

    /// The interfaces behind which its engine puts containers, as long as nobody named them otherwise.
    #[must_use]
    pub fn interfaces(&self) -> &'static [&'static str] {
        match self.runtime {
            Runtime::Docker => &["docker0", "br-*"],
            Runtime::Podman | Runtime::Quadlet => &["podman*"],
            Runtime::Containerd => &["nerdctl*", "cni*"],
            Runtime::Crio | Runtime::Kubernetes => &["cni*"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Contained;

    const ID: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";

    #[test]
    fn only_what_stays_is_a_name() {
        let keys = |cgroup: &str| Contained::of(&cgroup.replace("ID", ID)).map(|one| one.keys().join(" "));
        assert_eq!(
            keys("/billing.slice/docker-ID.scope").unwrap(),
            "container = { runtime = \"docker\", slice = \"billing.slice\" }"
        );
        assert_eq!(
            keys("/system.slice/web.service/libpod-payload-ID").unwrap(),
            "container = \"quadlet\" unit = \"web.service\""
        );
        for changes in [
            "/system.slice/docker-ID.scope",
            "/docker/ID",
            "/machine.slice/libpod-ID.scope",
            "/user.slice/user-1000.slice/billing.slice/libpod-ID.scope",
            "/kubepods.slice/kubepods-pod8b0e0b3c_5a4f_4a8e_9d3b_0123456789ab.slice/cri-containerd-ID.scope",
            "/billing.slice/docker-0a1b.scope",
        ] {
            assert_eq!(keys(changes), None, "{changes}");
        }
    }
}
