//! What the keeper knows about callers, and the proxy may ask.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::caller::cgroup::{self, CgroupTree};
use crate::caller::degraded;
use crate::caller::namespaces::{self, Namespaces};
use crate::caller::processes::{ProcessTable, Search};
use crate::caller::stamps::Flow;
use crate::caller::{CgroupPath, Process};

use super::protocol::{Answer, Question};

/// How long the keeper looks for a socket's holders: a caller could make that a very long search, and meanwhile
/// nobody watches over the redirect.
const DECISIVE_PATIENCE: Duration = Duration::from_millis(100);
const LOG_PATIENCE: Duration = Duration::from_millis(10);

/// The same where all processes of the host have to be searched.
const HOST_PATIENCE: Duration = Duration::from_millis(300);

/// The keeper's view of the cgroup tree and of procfs.
#[derive(Debug)]
pub struct Oracle {
    tree: Option<CgroupTree>,
    paths: HashMap<u64, CgroupPath>,
    /// Whether this host names units in a hierarchy of cgroup v1.
    has_v1_units: bool,
    processes: ProcessTable,
    /// Only where containers are configured.
    namespaces: Option<Namespaces>,
}

impl Oracle {
    /// An oracle that knows executables by these paths, which the policy names. Whether it also knows of other network
    /// namespaces takes capabilities, and is decided once.
    pub fn new(executables: Vec<PathBuf>, with_containers: bool) -> io::Result<Self> {
        let tree = CgroupTree::find()
            .inspect_err(|error| tracing::warn!(%error, "callers have no cgroup here"))
            .ok();
        let namespaces = with_containers.then(Namespaces::new).transpose()?;
        let (processes, has_v1_units) = (ProcessTable::new(executables)?, degraded::has_v1_units());
        Ok(Self { tree, paths: HashMap::new(), has_v1_units, processes, namespaces })
    }

    /// Knows executables by these paths from now on. What it knows of cgroups stays: a keeper that runs may no longer
    /// be allowed to look for the tree.
    pub fn learn(&mut self, executables: Vec<PathBuf>) -> io::Result<()> {
        self.processes = ProcessTable::new(executables)?;
        Ok(())
    }

    /// Lets go of network namespaces that nobody lives in any more. When that is to be done again, if at all.
    pub fn review(&mut self) -> Option<Duration> {
        self.namespaces
            .as_mut()
            .filter(|namespaces| namespaces.has_any())?
            .review()
            .then_some(namespaces::REVIEW)
    }

    /// The answer to a question; never an error, since the proxy can do nothing about one.
    pub fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::CgroupPath { id } => {
                Answer::CgroupPath(self.path(id).map(|path| path.as_str().to_owned()))
            }
            Question::Holders { cgroup_id, inode, uid, digest, decisive } => {
                let patience = if !decisive {
                    LOG_PATIENCE
                } else if cgroup_id == cgroup::ROOT {
                    HOST_PATIENCE
                } else {
                    DECISIVE_PATIENCE
                };
                let until = Instant::now() + patience;
                Answer::Holders(self.holders(cgroup_id, &|cgroup| Search {
                    cgroup,
                    inode,
                    uid,
                    digest,
                    decisive,
                    until,
                }))
            }
            Question::PlaceOfHolders { inode } => {
                let until = Instant::now() + HOST_PATIENCE;
                let place =
                    if self.has_v1_units { degraded::place_of_holders(inode, until) } else { Ok(None) };
                Answer::CgroupPath(place.ok().flatten().map(|path| path.as_str().to_owned()))
            }
            Question::Foreign { client, original } => match &mut self.namespaces {
                Some(namespaces) => Answer::Foreign(namespaces.stamps(Flow::new(client, original))),
                None => Answer::Refused,
            },
            Question::Connect { .. } | Question::Ready | Question::Alive | Question::Reloaded { .. } => {
                Answer::Refused
            }
        }
    }

    /// Whom a process that runs belongs to, where, and what it is.
    pub fn who(&mut self, pid: u32, digest: bool) -> Option<(u32, CgroupPath, Process)> {
        self.processes.who(pid, digest, Instant::now() + LOG_PATIENCE)
    }

    /// The processes above one, nearest first, each with its name.
    #[must_use]
    pub fn ancestors(&self, process: &Process) -> Vec<String> {
        self.processes.ancestors(process)
    }

    fn path(&mut self, id: u64) -> Option<CgroupPath> {
        self.tree.as_ref()?.resolve(id, &mut self.paths).ok()?
    }

    fn holders(
        &mut self,
        cgroup_id: u64,
        search: &dyn Fn(&CgroupPath) -> Search<'_>,
    ) -> Option<Vec<Process>> {
        // The root has its path also where no tree is to be seen.
        let root = CgroupPath::new("/").filter(|_| cgroup_id == cgroup::ROOT);
        let cgroup = root.or_else(|| self.path(cgroup_id))?;
        self.processes.holders(self.tree.as_ref(), &search(&cgroup)).ok()
    }
}
