//! The certificates with which the proxy speaks TLS to the service: files of root's that others renew. The keeper reads
//! them, because the proxy has no file system, and looks every few seconds whether they changed, while the policy wants
//! TLS and only then.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cloud::tls::{Roots, UpstreamTls};
use crate::policy::{Policy, TlsUse};

use super::files;

/// How often the files are looked at. Google's guest agent renews its certificate every two days, long before it ends.
const PERIOD: Duration = Duration::from_secs(5);

/// The largest file of certificates, in bytes; systems' bundles of roots have about a quarter of that.
const BYTES: u64 = 1 << 20;

/// Where systems keep the roots that they trust: Debian, Ubuntu, Arch and Alpine; Fedora and its relatives; SUSE.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// What the files hold, as PEM; `None` where there is none that could be used.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    /// Who may have signed the service's certificate.
    pub roots: Option<String>,
    /// The client's key and certificate.
    pub client: Option<String>,
}

/// A key must not get into a log by way of somebody's debug output.
impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (roots, client) = (self.roots.is_some(), self.client.is_some());
        f.debug_struct("Certificates").field("roots", &roots).field("client", &client).finish()
    }
}

impl Certificates {
    /// Reads what the policy needs; `None` if it needs nothing.
    #[must_use]
    pub fn read(policy: &Policy) -> Option<Self> {
        let tls = wanted(policy)?;
        let roots = roots(&tls.roots).and_then(|path| text(&path));
        Some(Self { roots, client: tls.client.as_ref().and_then(|path| text(Path::new(path))) })
    }
}

fn wanted(policy: &Policy) -> Option<&UpstreamTls> {
    (policy.settings().upstream_tls != TlsUse::Off).then(|| policy.catalogue().sure_tls())?
}

fn roots(roots: &Roots) -> Option<PathBuf> {
    match roots {
        Roots::File(path) => Some(path.into()),
        Roots::System => SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists()),
    }
}

/// A file that is not there yet is no news: the guest agent writes it some time after boot.
fn text(path: &Path) -> Option<String> {
    match files::trusted_text(path, BYTES) {
        Ok(text) => Some(text),
        Err(error) if error.is_not_found() => None,
        Err(error) => {
            tracing::error!(%error, "certificates are not used");
            None
        }
    }
}

/// When the files that the policy needs were last seen, and as what.
#[derive(Debug)]
pub struct CertificateWatch {
    seen: Vec<(PathBuf, Option<Stamp>)>,
    looked: Instant,
}

/// Device, inode, size, and the times of the last change of content and of anything.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

impl CertificateWatch {
    /// A watch over what this policy needs. To be made before the files are read, so that no change falls between.
    #[must_use]
    pub fn of(policy: &Policy) -> Self {
        let files = wanted(policy).into_iter().flat_map(|tls| {
            let roots = roots(&tls.roots);
            roots.into_iter().chain(tls.client.as_ref().map(PathBuf::from))
        });
        Self {
            seen: files.map(|path| (stamp(&path), path)).map(|(s, p)| (p, s)).collect(),
            looked: Instant::now(),
        }
    }

    /// How often [`CertificateWatch::notices`] is to be asked; never, if nothing is watched.
    #[must_use]
    pub fn period(&self) -> Option<Duration> {
        (!self.seen.is_empty()).then_some(PERIOD)
    }

    /// Whether a file has changed since it was last looked at. Looks no more often than once in a period.
    pub fn notices(&mut self) -> bool {
        if self.seen.is_empty() || self.looked.elapsed() < PERIOD {
            return false;
        }
        self.looked = Instant::now();
        let mut changed = false;
        for (path, seen) in &mut self.seen {
            let now = stamp(path);
            changed |= now != *seen;
            *seen = now;
        }
        changed
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let now = fs::metadata(path).ok()?;
    let (written, changed) = ((now.mtime(), now.mtime_nsec()), (now.ctime(), now.ctime_nsec()));
    Some((now.dev(), now.ino(), now.size(), written, changed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_holds_no_key() {
        let certificates = Certificates { roots: None, client: Some("a key".into()) };
        assert!(!format!("{certificates:?}").contains("a key"));
    }

    #[test]
    fn a_file_that_comes_changes_or_goes_is_noticed_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("client.key");
        let long_ago = Instant::now().checked_sub(PERIOD).unwrap();
        let mut watch = CertificateWatch { seen: vec![(path.clone(), stamp(&path))], looked: long_ago };
        let mut notices = || {
            watch.looked = long_ago;
            (watch.notices(), watch.notices())
        };
        assert_eq!(notices(), (false, false));
        for change in [Some("one"), Some("another"), None] {
            match change {
                Some(text) => fs::write(&path, text).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            assert_eq!(notices(), (true, false), "{change:?}");
            assert_eq!(notices(), (false, false), "{change:?}");
        }
    }
}
