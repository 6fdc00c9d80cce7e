//! A caller as somebody describes it, in a file of cases or on the command line.

use serde::Deserialize;

use crate::caller::{Attribution, Caller, Cgroup, CgroupPath, Exe, Origin, Process, Processes, Stamps, Why};
use crate::policy::Accounts;

/// Who asks. What is left out is somebody's login shell.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Described {
    /// The uid.
    pub uid: Option<u32>,
    /// The user, by name or number, instead of the uid.
    pub user: Option<String>,
    /// The unit of the system's manager.
    pub unit: Option<String>,
    /// The cgroup's path, instead of the unit.
    pub cgroup: Option<String>,
    /// It is in another network namespace, behind an interface of `[containers]`.
    #[serde(default)]
    pub container: bool,
    /// Only processes tell its unit, as on hosts of cgroup v1.
    #[serde(default)]
    pub degraded: bool,
    /// The code of the reason why nothing is known of the caller.
    pub unattributed: Option<String>,
    /// What each process that holds the socket runs; an empty string is a file whose name proves nothing.
    pub exe: Option<Vec<String>>,
    /// The digest of those files.
    pub sha256: Option<String>,
    /// Somebody looked, and saw no process.
    #[serde(default)]
    pub unseen: bool,
}

/// Why there is no such caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptionError {
    /// A user that nobody knows.
    #[error("there is no user `{0}` here; give its number")]
    UnknownUser(String),
    /// A cgroup's path starts with a slash.
    #[error("the cgroup `{0}` does not start with a slash")]
    Cgroup(String),
    /// A unit's name holds no slash, and says what kind of unit it is.
    #[error("`{0}` is no unit's full name, such as nginx.service")]
    Unit(String),
    /// There is no such reason for not knowing a caller.
    #[error("`{0}` is no reason why a caller is not known")]
    Unattributed(String),
}

impl Described {
    /// The caller.
    pub fn caller(&self, accounts: &Accounts) -> Result<Caller, DescriptionError> {
        let uid = self.uid(accounts)?;
        let attribution = if let Some(code) = &self.unattributed {
            Attribution::Unattributed(why(code)?)
        } else {
            let cgroup = Cgroup { id: 1, path: self.path(uid)? };
            let stamps = Stamps { uid, cgroup, inode: 1, cookie: 1 };
            if self.degraded { Attribution::Degraded(stamps) } else { Attribution::Stamped(stamps) }
        };
        let processes = match &self.exe {
            Some(files) => Processes::Holders(files.iter().map(|file| self.process(file, uid)).collect()),
            None if self.unseen => Processes::Unknown,
            None => Processes::Skipped,
        };
        let origin = if self.container { Origin::Container } else { Origin::Host };
        Ok(Caller { origin, attribution, processes })
    }

    fn uid(&self, accounts: &Accounts) -> Result<u32, DescriptionError> {
        match (&self.user, self.uid) {
            (Some(user), _) => accounts.uid(user).ok_or_else(|| DescriptionError::UnknownUser(user.clone())),
            (None, uid) => Ok(uid.unwrap_or(0)),
        }
    }

    fn path(&self, uid: u32) -> Result<CgroupPath, DescriptionError> {
        let path = match (&self.cgroup, &self.unit) {
            (Some(path), _) => path.clone(),
            (None, Some(unit)) if unit.contains('/') || !unit.contains('.') => {
                return Err(DescriptionError::Unit(unit.clone()));
            }
            (None, Some(unit)) => format!("/system.slice/{unit}"),
            (None, None) => format!("/user.slice/user-{uid}.slice/session-1.scope"),
        };
        CgroupPath::new(path.as_str()).ok_or(DescriptionError::Cgroup(path))
    }

    /// A described executable is taken at its word: whether a real one may be believed, only a look at it tells.
    fn process(&self, file: &str, uid: u32) -> Process {
        let trusted = !file.is_empty();
        Process {
            pid: 1,
            start_ticks: 1,
            parent: 0,
            uid,
            comm: String::new(),
            command_line: String::new(),
            exe: Exe {
                path: file.to_owned(),
                names: trusted.then(|| file.to_owned()).into_iter().collect(),
                doubt: if trusted { String::new() } else { "deleted".to_owned() },
                sha256: self.sha256.clone(),
            },
        }
    }
}

/// The reason with that code.
pub fn why(code: &str) -> Result<Why, DescriptionError> {
    let all = [
        Why::NoSocket,
        Why::Listener,
        Why::Orphan,
        Why::Mismatch,
        Why::State,
        Why::NoCgroup,
        Why::UnknownCgroup,
        Why::LookupFailed,
        Why::NoNamespace,
        Why::SeveralNamespaces,
    ];
    all.into_iter()
        .find(|why| why.code() == code)
        .ok_or_else(|| DescriptionError::Unattributed(code.to_owned()))
}
