//! The certificates with which the proxy speaks TLS to the service: files of root's that others renew. The keeper reads
//! them, because the proxy has no file system, and looks whether they changed when something happens where they are, while
//! the policy wants TLS and only then.

use std::fmt;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cloud::tls::{Roots, UpstreamTls};
use crate::policy::{Policy, TlsUse};

use super::files;
use super::news::News;

/// How often the files are looked at where nothing tells of a change; elsewhere, how often when the keeper is awake anyway.
/// Google's guest agent renews its certificate every two days, long before it ends.
const PERIOD: Duration = Duration::from_secs(5);

/// How long after a change they are looked at: a key and its certificate are written one after the other.
const SETTLE: Duration = Duration::from_millis(500);

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
    news: Option<News>,
    looked: Instant,
    due: Option<Instant>,
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
        Self::over(files.collect())
    }

    fn over(files: Vec<PathBuf>) -> Self {
        // Watched before they are looked at, so that no change falls between.
        let news = news(&files);
        let seen = files.into_iter().map(|path| (stamp(&path), path)).map(|(s, p)| (p, s)).collect();
        Self { seen, news, looked: Instant::now(), due: None }
    }

    /// How long until [`CertificateWatch::notices`] is to be asked; `None` if something has to happen first.
    #[must_use]
    pub fn period(&self) -> Option<Duration> {
        if self.seen.is_empty() {
            return None;
        }
        let due = self.due.map(|due| due.saturating_duration_since(Instant::now()));
        due.or_else(|| self.news.is_none().then_some(PERIOD))
    }

    /// What becomes readable when something happens where the files are.
    #[must_use]
    pub fn wake(&self) -> Option<BorrowedFd<'_>> {
        self.news.as_ref().map(News::wake)
    }

    /// Whether a file has changed since it was last looked at. Looks a moment after something happened, and else no more
    /// often than once in a period.
    pub fn notices(&mut self) -> bool {
        if self.news.as_ref().is_some_and(News::drain) {
            self.due.get_or_insert(Instant::now() + SETTLE);
        }
        let is_due = self.due.is_some_and(|due| Instant::now() >= due);
        if self.seen.is_empty() || !is_due && self.looked.elapsed() < PERIOD {
            return false;
        }
        let files = self.seen.iter().map(|(path, _)| path.clone()).collect();
        let before = std::mem::replace(self, Self::over(files));
        before.seen != self.seen
    }
}

/// Tells of what happens in the directories of these files, and of what they are links to; where there is no directory
/// yet, in the nearest one above.
fn news(files: &[PathBuf]) -> Option<News> {
    if files.is_empty() {
        return None;
    }
    let news = News::start().and_then(|news| {
        for file in files {
            let named = file.ancestors().skip(1).find(|above| above.is_dir());
            let meant = fs::canonicalize(file).ok();
            let meant = meant.as_deref().and_then(Path::parent);
            for directory in [named, meant].into_iter().flatten() {
                news.of_directory(directory)?;
            }
        }
        Ok(news)
    });
    news.inspect_err(|error| tracing::info!(%error, "certificates are looked at every few seconds")).ok()
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
        let mut watch = CertificateWatch::over(vec![path.clone()]);
        let mut notices = || {
            watch.due = Some(Instant::now());
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

    #[test]
    fn nobody_looks_until_something_happens_even_where_no_directory_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("later").join("client.key");
        let mut watch = CertificateWatch::over(vec![path.clone()]);
        assert_eq!(watch.period(), None);
        for step in 0..3 {
            match step {
                0 => fs::create_dir(path.parent().unwrap()).unwrap(),
                1 => fs::write(&path, "one").unwrap(),
                _ => fs::rename(&path, path.with_extension("old")).unwrap(),
            }
            assert!(!watch.notices(), "it settles first");
            assert!(watch.period().is_some_and(|period| period <= SETTLE));
            watch.due = Some(Instant::now());
            assert_eq!(watch.notices(), step > 0);
            assert_eq!(watch.period(), None);
        }
    }
}
