//! The policies that the tests start from.

use std::fmt::Write as _;
use std::path::Path;

/// The guard's uid in the tests: nobody's on any machine, and no name is needed for it.
pub const GUARD_UID: u32 = 63_111;

/// The agent that the policies list.
pub const AGENT: &str = "amazon-ssm-agent.service";

/// A policy in the making.
#[derive(Debug, Clone)]
pub struct Policy {
    mode: &'static str,
    user: String,
    cloud: &'static str,
    everyone: &'static str,
    keys: String,
    guard: String,
    more: String,
}

impl Policy {
    fn new(mode: &'static str) -> Self {
        let tables = format!(
            "[[agent]]\nname = \"agent\"\nunit = \"{AGENT}\"\nuser = \"root\"\n\
             allow = [\"config\", \"session\", \"identity\", \"credentials\", \"user-data\", \"write\"]\n"
        );
        Self {
            mode,
            user: GUARD_UID.to_string(),
            cloud: "all",
            everyone: r#""config", "session""#,
            keys: String::new(),
            guard: String::new(),
            more: tables,
        }
    }

    /// Refuses what it does not allow.
    pub fn enforce() -> Self {
        Self::new("enforce")
    }

    /// Lets everything pass and tells what would have been refused.
    pub fn audit() -> Self {
        Self::new("audit")
    }

    /// The guard itself runs as this user.
    pub fn user(self, user: &str) -> Self {
        Self { user: user.to_owned(), ..self }
    }

    /// Judged by these clouds.
    pub fn cloud(self, cloud: &'static str) -> Self {
        Self { cloud, ..self }
    }

    /// Everyone may touch these classes, written as the items of a TOML list.
    pub fn everyone(self, classes: &'static str) -> Self {
        Self { everyone: classes, ..self }
    }

    /// With one more line in `[guard]`.
    pub fn guard(mut self, line: &str) -> Self {
        let _ = writeln!(self.guard, "{line}");
        self
    }

    /// Without the listed agent.
    pub fn without_agent(self) -> Self {
        Self { more: String::new(), ..self }
    }

    /// With one more key of `[guard]`; `{dir}` in it is the directory of the guard's files.
    pub fn guard_key(mut self, line: &str) -> Self {
        let _ = writeln!(self.guard, "{line}");
        self
    }

    /// With one more key at the top.
    pub fn key(mut self, line: &str) -> Self {
        let _ = writeln!(self.keys, "{line}");
        self
    }

    /// Served by so many workers.
    pub fn workers(self, count: u8) -> Self {
        self.guard_key(&format!("workers = {count}"))
    }

    /// With more tables.
    pub fn with(mut self, tables: &str) -> Self {
        let _ = writeln!(self.more, "\n{tables}");
        self
    }

    /// The policy's text, for a guard whose files are in this directory.
    pub fn text(&self, dir: &Path) -> String {
        let Self { mode, user, cloud, everyone, keys, guard, more } = self;
        let dir = dir.display();
        let guard = guard.replace("{dir}", &dir.to_string());
        format!(
            "mode = \"{mode}\"\ncloud = \"{cloud}\"\n{keys}\n[guard]\nuser = \"{user}\"\n\
             audit-log = \"{dir}/audit.jsonl\"\n{guard}\n\
             [everyone]\nallow = [{everyone}]\n\n{more}"
        )
    }
}
