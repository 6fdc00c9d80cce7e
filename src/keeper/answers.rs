//! What the keeper knows about callers, and the proxy may ask.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use crate::caller::CgroupPath;
use crate::caller::cgroup::CgroupTree;
use crate::caller::processes::{ProcessTable, Search};

use super::protocol::{Answer, HOLDERS_LIMIT, Question};

/// The keeper's view of the cgroup tree and of procfs.
#[derive(Debug)]
pub struct Oracle {
    tree: Option<CgroupTree>,
    paths: HashMap<u64, CgroupPath>,
    processes: ProcessTable,
}

impl Oracle {
    /// An oracle that knows executables by these paths, which the policy names.
    pub fn new(executables: Vec<PathBuf>) -> io::Result<Self> {
        let tree = CgroupTree::find()
            .inspect_err(|error| tracing::warn!(%error, "callers have no cgroup here"))
            .ok();
        Ok(Self { tree, paths: HashMap::new(), processes: ProcessTable::new(executables)? })
    }

    /// The answer to a question; never an error, since the proxy can do nothing about one.
    pub fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::CgroupPath { id } => {
                Answer::CgroupPath(self.path(id).map(|path| path.as_str().to_owned()))
            }
            Question::Holders { cgroup_id, inode, uid, digest } => {
                Answer::Holders(self.holders(cgroup_id, inode, uid, digest))
            }
            Question::Connect { .. } | Question::Ready | Question::Reloaded { .. } => Answer::Refused,
        }
    }

    fn path(&mut self, id: u64) -> Option<CgroupPath> {
        self.tree.as_ref()?.resolve(id, &mut self.paths).ok()?
    }

    fn holders(
        &mut self,
        cgroup_id: u64,
        inode: u32,
        uid: u32,
        digest: bool,
    ) -> Option<Vec<crate::caller::Process>> {
        let cgroup = self.path(cgroup_id)?;
        let search = Search { cgroup: &cgroup, inode, uid, digest };
        let holders = self.processes.holders(self.tree.as_ref()?, &search).ok()?;
        (holders.len() <= HOLDERS_LIMIT).then_some(holders)
    }
}
