//! Who asked, as reports group it: what the kernel stamped on the socket (cgroup and uid), never what the process
//! says of itself.

use std::fmt;

use serde::{Serialize, Serializer};

use super::contained::Contained;
use super::record::Record;
use crate::policy::{in_container, system_unit};

/// A caller: where it lives, and as whom it runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Who {
    /// Where it lives.
    pub home: Home,
    /// Its uid, if it is known.
    pub uid: Option<u32>,
}

/// Where a caller lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Home {
    /// A unit of the system's manager; instances of one template are one.
    Unit(String),
    /// A login session, or something that a user's own manager started.
    Session(String),
    /// A container that has a lasting name.
    Contained(Contained),
    /// Another container.
    Container(String),
    /// Some other cgroup.
    Elsewhere(String),
    /// The kernel could not say.
    Unattributed(String),
    /// More callers than a report holds apart.
    Others,
}

impl Who {
    /// The caller of an event.
    #[must_use]
    pub fn of(record: &Record<'_>) -> Self {
        Self { home: Home::of(record), uid: record.uid() }
    }
}

impl Home {
    fn of(record: &Record<'_>) -> Self {
        let cgroup = &*record.cgroup;
        let is_known = ["stamped", "degraded"].contains(&&*record.attribution);
        if !is_known || cgroup.is_empty() || record.uid().is_none() {
            let why = if is_known { "" } else { &*record.attribution };
            return Self::Unattributed(if why.is_empty() { "unknown".to_owned() } else { why.to_owned() });
        }
        if let Some(unit) = system_unit(cgroup) {
            return Self::Unit(template(unit));
        }
        if let Some(contained) = Contained::of(cgroup) {
            return Self::Contained(contained);
        }
        if in_container(cgroup) {
            return Self::Container(cgroup.to_owned());
        }
        if cgroup.starts_with("/user.slice") {
            return Self::Session(cgroup.to_owned());
        }
        Self::Elsewhere(cgroup.to_owned())
    }

    /// The text that names it.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Unit(text)
            | Self::Session(text)
            | Self::Container(text)
            | Self::Elsewhere(text)
            | Self::Unattributed(text) => text,
            Self::Contained(contained) => contained.text(),
            Self::Others => "(others)",
        }
    }
}

/// `policy-routes@ens5.service` and `policy-routes@ens6.service` are one thing that runs twice.
fn template(unit: &str) -> String {
    match (unit.split_once('@'), unit.rsplit_once('.')) {
        (Some((name, instance)), Some((_, suffix))) if !name.is_empty() && !instance.starts_with('.') => {
            format!("{name}@*.{suffix}")
        }
        _ => unit.to_owned(),
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Home::Unattributed(why) = &self.home {
            write!(f, "unattributed ({why})")?;
        } else {
            f.write_str(self.home.text())?;
        }
        match self.uid {
            Some(uid) => write!(f, " uid {uid}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Who {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let kind = match self.home {
            Home::Unit(_) => "unit",
            Home::Session(_) => "session",
            Home::Container(_) | Home::Contained(_) => "container",
            Home::Elsewhere(_) => "cgroup",
            Home::Unattributed(_) => "unattributed",
            Home::Others => "others",
        };
        let mut map = serializer.serialize_struct("caller", 3)?;
        map.serialize_field("kind", kind)?;
        map.serialize_field("name", self.home.text())?;
        map.serialize_field("uid", &self.uid)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_what_the_kernel_stamped() {
        let home = |cgroup: &str| {
            let line = format!(
                r#"{{"event.dataset":"imds-guard.audit","imds_guard.schema":1,"imds_guard.attribution":"stamped","user.id":"0","imds_guard.cgroup":"{cgroup}","service.name":"nginx.service"}}"#
            );
            Who::of(&Record::read(line.as_bytes()).unwrap()).to_string()
        };
        assert_eq!(home("/system.slice/nginx.service"), "nginx.service uid 0");
        assert_eq!(home("/system.slice/a.slice/policy-routes@ens5.service"), "policy-routes@*.service uid 0");
        // A user's manager names its children after anything.
        let fake = "/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service";
        assert_eq!(home(fake), format!("{fake} uid 0"));
        assert!(home("/system.slice/docker-0a.scope").contains("docker"));
    }
}
