//! The machine's users and groups, from the text of /etc/passwd and /etc/group.
//!
//! Never through NSS: on Google Cloud, NSS itself asks the metadata service, which would make the guard wait for
//! its own answer; and a directory server must not be able to rename a uid into a grant.

use std::collections::{BTreeMap, BTreeSet};

use super::decoy::CanaryFile;

/// What a policy is compiled against: data of the machine that somebody else read.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The machine's users and groups.
    pub accounts: Accounts,
    /// The ids of the clouds that this machine seems to run on; empty if that could not be told.
    pub detected: Vec<String>,
    /// The interfaces through which its default routes lead: no containers are behind them.
    pub uplinks: Vec<String>,
    /// The file of canaries that `[guard] decoys` names.
    pub canaries: CanaryFile,
    /// Whether its kernel names no units (see [`crate::caller::degraded`]).
    pub degraded: bool,
}

/// Users and groups by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    users: BTreeMap<String, User>,
    groups: BTreeMap<String, Group>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    gid: u32,
    members: Vec<String>,
}

impl Accounts {
    /// Reads the text of /etc/passwd and /etc/group. Lines that are no entries are skipped; of two entries with
    /// one name the first counts, as for the C library.
    #[must_use]
    pub fn parse(passwd: &str, group: &str) -> Self {
        let mut accounts = Self::default();
        for line in passwd.lines() {
            let mut fields = line.split(':');
            let (Some(name), Some(uid), Some(gid)) = (fields.next(), fields.nth(1), fields.next()) else {
                continue;
            };
            if let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) {
                accounts.users.entry(name.to_owned()).or_insert(User { uid, gid });
            }
        }
        for line in group.lines() {
            let mut fields = line.split(':');
            let (Some(name), Some(gid)) = (fields.next(), fields.nth(1)) else { continue };
            if let Ok(gid) = gid.parse() {
                let members =
                    fields.next().unwrap_or_default().split(',').filter(|member| !member.is_empty());
                let members = members.map(str::to_owned).collect();
                accounts.groups.entry(name.to_owned()).or_insert(Group { gid, members });
            }
        }
        accounts
    }

    /// The uid of a user that is named, or given as a number.
    #[must_use]
    pub fn uid(&self, user: &str) -> Option<u32> {
        user.parse().ok().or_else(|| self.users.get(user).map(|user| user.uid))
    }

    /// The primary group of a user that is named, or given as a number.
    #[must_use]
    pub fn primary_gid(&self, user: &str) -> Option<u32> {
        match user.parse::<u32>() {
            Ok(uid) => self.users.values().find(|user| user.uid == uid).map(|user| user.gid),
            Err(_) => self.users.get(user).map(|user| user.gid),
        }
    }

    /// The gid of a group that is named, or given as a number.
    #[must_use]
    pub fn gid(&self, group: &str) -> Option<u32> {
        group.parse().ok().or_else(|| self.groups.get(group).map(|group| group.gid))
    }

    /// The uids of a group's members: those whose primary group it is, and those that /etc/group lists.
    #[must_use]
    pub fn members(&self, group: &str) -> Option<BTreeSet<u32>> {
        let gid = self.gid(group)?;
        let primary = self.users.values().filter(|user| user.gid == gid).map(|user| user.uid);
        let listed = self.groups.values().filter(|group| group.gid == gid).flat_map(|group| &group.members);
        let listed = listed.filter_map(|name| self.users.get(name)).map(|user| user.uid);
        Some(primary.chain(listed).collect())
    }

    /// The names of all users, for suggestions.
    pub(super) fn user_names(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// The names of all groups, for suggestions.
    pub(super) fn group_names(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_files_say() {
        let accounts = Accounts::parse(
            "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:/x\nweb:x:0:0::/:/x\nbroken\n+::::::\nops:x:1001:100::/:/x\n",
            "root:x:0:\nweb:x:33:ops,ghost\nusers:x:100:\n",
        );
        assert_eq!(accounts.uid("web"), Some(33), "a second entry of the same name does not count");
        assert_eq!(accounts.uid("1234"), Some(1234));
        assert_eq!(accounts.uid("ghost"), None);
        assert_eq!(accounts.members("web"), Some(BTreeSet::from([33, 1001])));
        assert_eq!(accounts.members("100"), Some(BTreeSet::from([1001])));
        assert_eq!(accounts.members("nobody"), None);
        assert_eq!(accounts.primary_gid("ops"), Some(100));
        assert_eq!(accounts.primary_gid("33"), Some(33));
    }
}
