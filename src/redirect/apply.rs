//! Loads the wanted table with nft, reads the kernel back, and removes it.
//!
//! nft is run by an absolute path with an empty environment: neither a search path nor a variable that a caller
//! controls decides which program speaks to the kernel with the guard's capability.

use std::collections::HashSet;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::watch::Watch;
use super::{Direction, Led, TABLE, Wanted, containers};

/// Where distributions put nft.
const NFT_PATHS: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];

/// How long an interactive nft may take to load a table: at boot the kernel may have to load its modules first.
const LOAD_PATIENCE: Duration = Duration::from_secs(15);

/// When the table is looked at though the kernel told of no change.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long it may take to flush a chain of it.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// Why the redirect could not be loaded, read or removed.
#[derive(Debug, Error)]
pub enum RedirectError {
    /// nft is not installed.
    #[error(
        "nft was not found in /usr/sbin, /sbin, /usr/bin or /usr/local/sbin: install the nftables package"
    )]
    NoNft,
    /// nft could not be run.
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    /// nft refused.
    #[error("nft failed: {0}")]
    Nft(String),
    /// The kernel's table is not the one that was asked for.
    #[error("the loaded table is not as wanted: {0}")]
    NotAsWanted(String),
}

/// The nft program of this host.
#[derive(Debug, Clone)]
pub struct Nft {
    path: PathBuf,
}

impl Nft {
    /// Finds nft at a fixed path.
    pub fn find() -> Result<Self, RedirectError> {
        Self::find_among(&NFT_PATHS)
    }

    fn find_among(paths: &[&str]) -> Result<Self, RedirectError> {
        paths
            .iter()
            .map(Path::new)
            .find(|path| path.is_file())
            .map(|path| Self { path: path.to_owned() })
            .ok_or(RedirectError::NoNft)
    }

    /// Loads the wanted table in one transaction, in place of what was loaded before, and reads it back.
    ///
    /// The answer holds on to the table: dropping it removes an `Open` one, and leaves a `Closed` one in place.
    pub fn load(&self, wanted: &Wanted, before: Option<Loaded>) -> Result<Loaded, RedirectError> {
        match wanted.direction {
            Direction::Closed => {
                drop(before); // nobody else may replace what its owner owns
                self.run(&["-f", "-"], &wanted.script())?;
                let missing = || RedirectError::NotAsWanted("it is missing".into());
                let text = self.table()?.ok_or_else(missing)?;
                check(wanted, &text)?;
                Ok(Loaded { owner: None, text })
            }
            Direction::Open => self.own(wanted, before),
        }
    }

    /// What an audit table needs before it can be loaded: the nft that will own it takes its time to start, in which the
    /// caller has other things to do.
    pub fn prepare(&self, direction: Direction) -> Result<Option<Loaded>, RedirectError> {
        match direction {
            Direction::Closed => Ok(None),
            Direction::Open => Ok(Some(Loaded { owner: Some(self.start_owner()?), text: String::new() })),
        }
    }

    /// Has the nft that owns the table of audit mode load it, and waits until it is there. An owner that lives replaces
    /// its table without a gap.
    ///
    /// Each look at the table is a start of nft, which costs a boot some milliseconds: it comes when the kernel tells of
    /// a change.
    fn own(&self, wanted: &Wanted, before: Option<Loaded>) -> Result<Loaded, RedirectError> {
        let has_table = before.as_ref().is_some_and(|loaded| !loaded.text.is_empty());
        let living = before.and_then(|loaded| loaded.owner).and_then(Owner::alive);
        let replaces = living.is_some() && has_table && self.table()?.is_some();
        if !replaces {
            self.remove()?;
        }
        let mut owner = living.map_or_else(|| self.start_owner(), Ok)?;
        let mut changes = Watch::start().map_err(RedirectError::Run)?;
        owner.order(&wanted.line(replaces))?;
        let started = Instant::now();
        loop {
            changes.wait(LOOK_AGAIN);
            if let Some(text) = self.table()?
                && check(wanted, &text).is_ok()
            {
                return Ok(Loaded { owner: Some(owner), text });
            }
            if started.elapsed() > LOAD_PATIENCE || owner.has_exited() {
                return Err(RedirectError::Nft(owner.complaint()));
            }
        }
    }

    fn start_owner(&self) -> Result<Owner, RedirectError> {
        let child = self
            .command(&["-i"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(RedirectError::Run)?;
        Ok(Owner { child })
    }

    /// The kernel's table as nft prints it, without counters; `None` if there is none.
    pub fn table(&self) -> Result<Option<String>, RedirectError> {
        let output = self.output(&["-n", "-s", "list", "table", "inet", TABLE], "")?;
        if output.status.success() {
            return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        if complaint.contains("No such file or directory") { Ok(None) } else { Err(failure(&output)) }
    }

    /// All rules of this network namespace as nft prints them, without counters.
    pub fn ruleset(&self) -> Result<String, RedirectError> {
        let output = self.output(&["-n", "-s", "list", "ruleset"], "")?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(failure(&output))
        }
    }

    /// How many connections out of other network namespaces a loaded table has counted.
    pub fn counted(&self) -> Result<u64, RedirectError> {
        let output = self.output(&["list", "counter", "inet", TABLE, containers::COUNTER], "")?;
        if !output.status.success() {
            return Err(failure(&output));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
        let count = words.next().and_then(|count| count.parse().ok());
        count.ok_or_else(|| RedirectError::NotAsWanted("its counter shows no number".to_owned()))
    }

    /// Removes the table; no error if there is none.
    pub fn remove(&self) -> Result<(), RedirectError> {
        if self.table()?.is_some() {
            self.run(&["delete", "table", "inet", TABLE], "")?;
        }
        Ok(())
    }

    /// Loads a table that was kept, as [`Wanted::script`] wrote it.
    pub fn load_text(&self, script: &str) -> Result<(), RedirectError> {
        self.run(&["-f", "-"], script)
    }

    fn run(&self, arguments: &[&str], input: &str) -> Result<(), RedirectError> {
        let output = self.output(arguments, input)?;
        if output.status.success() { Ok(()) } else { Err(failure(&output)) }
    }

    fn output(&self, arguments: &[&str], input: &str) -> Result<Output, RedirectError> {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(RedirectError::Run)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).map_err(RedirectError::Run)?;
        }
        child.wait_with_output().map_err(RedirectError::Run)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.env_clear().current_dir("/").args(arguments);
        command
    }
}

fn failure(output: &Output) -> RedirectError {
    let complaint = String::from_utf8_lossy(&output.stderr);
    RedirectError::Nft(complaint.lines().next().unwrap_or("no message").to_owned())
}

/// A table that is in the kernel, as it was read back.
#[derive(Debug)]
pub struct Loaded {
    owner: Option<Owner>,
    text: String,
}

impl Loaded {
    /// Whether the kernel's table is still what was read back after loading.
    pub fn is_intact(&self, nft: &Nft) -> Result<bool, RedirectError> {
        Ok(nft.table()?.is_some_and(|now| without_names(&now) == without_names(&self.text)))
    }

    /// Lets new connections go where they mean to, while those that were redirected keep working: without any NAT chain
    /// the kernel would no longer translate their packets. Only for an audit table; the kernel's own end of a closed
    /// one is to stay. Returns when it is so: whoever is led here afterwards would find nobody.
    pub fn let_new_connections_pass(&mut self, nft: &Nft) -> Result<(), RedirectError> {
        let Some(owner) = &mut self.owner else { return Ok(()) };
        let chains: Vec<&str> = ["redirect_output", "redirect_prerouting"]
            .into_iter()
            .filter(|chain| rule_count(&self.text, chain).is_some())
            .collect();
        for chain in &chains {
            owner.order(&format!("flush chain inet {TABLE} {chain}"))?;
        }
        let started = Instant::now();
        let is_led = |text: &str| chains.iter().any(|chain| rule_count(text, chain) != Some(0));
        while nft.table()?.is_some_and(|text| is_led(&text)) {
            if started.elapsed() > FLUSH_PATIENCE {
                return Err(RedirectError::NotAsWanted("the redirect was not taken out".into()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// The pid of the nft that owns an audit table.
    #[must_use]
    pub fn owner_pid(&self) -> Option<u32> {
        self.owner.as_ref().map(|owner| owner.child.id())
    }
}

/// The nft process that owns an audit table. The kernel removes the table when it ends, and it ends when this end
/// of its standard input closes: by drop, or because the keeper is gone, even by SIGKILL.
#[derive(Debug)]
struct Owner {
    child: Child,
}

impl Owner {
    fn order(&mut self, line: &str) -> Result<(), RedirectError> {
        let Some(stdin) = &mut self.child.stdin else { return Ok(()) };
        stdin.write_all(format!("{line}\n").as_bytes()).map_err(RedirectError::Run)
    }

    fn alive(mut self) -> Option<Self> {
        (!self.has_exited()).then_some(self)
    }

    fn has_exited(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn complaint(&mut self) -> String {
        let _ = self.child.kill();
        let mut text = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = stderr.read_to_string(&mut text);
        }
        let line = text.lines().find(|line| !line.trim().is_empty());
        line.unwrap_or("the interactive nft did not load the table").to_owned()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// nft names the program that owns a table in a comment of its listing; that is no part of the table.
fn without_names(listing: &str) -> String {
    listing.lines().map(|line| line.split(" # ").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// Whether the listing has every chain with as many rules as wanted, and every endpoint.
///
/// nft's words for a rule differ between versions, so the rules are counted, not compared; a transaction loads all
/// of them or none.
pub fn check(wanted: &Wanted, listing: &str) -> Result<(), RedirectError> {
    let missing = |what: String| Err(RedirectError::NotAsWanted(what));
    if !listing.contains(&wanted.mark()) {
        return missing("it was loaded for another policy, or by another version".to_owned());
    }
    for (name, rules) in wanted.chains() {
        let found = rule_count(listing, name);
        if found != Some(rules) {
            return missing(format!("chain {name} should have {rules} rules and has {}", found.unwrap_or(0)));
        }
    }
    let elements = elements(listing);
    for Led { endpoint, .. } in &wanted.doors {
        if !elements.contains(&(endpoint.addr.to_string().as_str(), endpoint.port.to_string().as_str())) {
            return missing(format!("{} port {} is not in it", endpoint.addr, endpoint.port));
        }
    }
    Ok(())
}

/// Every `address . port` of the listing's sets.
fn elements(listing: &str) -> HashSet<(&str, &str)> {
    let words: Vec<&str> = listing
        .split(|c: char| c.is_whitespace() || "{},".contains(c))
        .filter(|word| !word.is_empty())
        .collect();
    words
        .windows(3)
        .filter_map(|three| match three {
            [addr, ".", port] => Some((*addr, *port)),
            _ => None,
        })
        .collect()
}

fn rule_count(listing: &str, chain: &str) -> Option<usize> {
    let head = format!("chain {chain} {{");
    let mut lines = listing.lines().map(str::trim).skip_while(|line| *line != head);
    lines.next()?;
    Some(
        lines
            .take_while(|line| !line.starts_with('}'))
            .filter(|line| !line.is_empty() && !line.starts_with("type "))
            .count(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::Endpoint;
    use crate::redirect::ruleset::lead;

    fn wanted() -> Wanted {
        Wanted {
            direction: Direction::Closed,
            doors: lead(&[Endpoint::new(Endpoint::SHARED, 80)], 169),
            guard_uid: 990,
            interfaces: Vec::new(),
            as_root: false,
            guests: None,
        }
    }

    #[test]
    fn the_wanted_text_passes_its_own_check() {
        check(&wanted(), &wanted().table()).unwrap();
    }

    #[test]
    fn a_table_without_one_of_its_rules_is_told() {
        let text = wanted().table();
        let rule = text.lines().find(|line| line.contains("redirect to")).unwrap();
        let error = check(&wanted(), &text.replace(rule, "")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the loaded table is not as wanted: chain lead4 should have 1 rules and has 0"
        );
    }

    #[test]
    fn an_endpoint_is_not_taken_for_one_whose_port_begins_alike() {
        let text = wanted().table().replace("169.254.169.254 . 80", "169.254.169.254 . 8080");
        let error = check(&wanted(), &text).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the loaded table is not as wanted: 169.254.169.254 port 80 is not in it"
        );
    }

    #[test]
    fn a_host_without_nft_is_told_what_to_install() {
        let error = Nft::find_among(&["/nonexistent/nft"]).unwrap_err().to_string();
        assert!(error.contains("install the nftables package") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn the_owner_s_name_is_no_part_of_the_table() {
        assert_eq!(without_names("table inet imds_guard { # progname nft\n}"), "table inet imds_guard {\n}");
    }
}
