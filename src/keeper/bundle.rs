//! A policy and all that it is compiled against, as the keeper hands it to the proxy: in a sealed memory file, so
//! that the proxy needs no file system, and nobody can change what was checked.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::caller::degraded;
use crate::cloud::Catalogue;
use crate::hex;
use crate::policy::{Accounts, CanaryFile, Compiled, Context, Diagnostic, Policy, Source};

use super::certificates::Certificates;
use super::decoys;
use super::files::{self, FileError, Trust};
use super::host;

/// Policy files, users, groups, clouds and certificates as they were when the keeper read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Name and text of each policy file, the main one first.
    files: Vec<(String, String)>,
    passwd: String,
    group: String,
    detected: Vec<String>,
    certificates: Option<Certificates>,
    uplinks: Vec<String>,
    canaries: CanaryFile,
    #[serde(default)]
    degraded: bool,
}

impl Bundle {
    /// Reads everything that the policy at `main` depends on.
    pub fn read(main: &Path, trust: Trust) -> Result<Self, FileError> {
        let sources = files::policy(main, trust)?;
        let canaries = decoys::read(sources.first(), trust)?;
        let files = sources.into_iter().map(|source| (source.name, source.text)).collect();
        Ok(Self { canaries, ..Self::here(files) })
    }

    /// The same of an image that is not running: its users, and no cloud yet.
    pub fn read_for(root: &Path, main: &Path, trust: Trust) -> Result<Self, FileError> {
        let files = files::policy(main, trust)?.into_iter().map(|source| (source.name, source.text));
        let (passwd, group) = host::accounts_of(root);
        Ok(Self {
            files: files.collect(),
            passwd,
            group,
            detected: Vec::new(),
            uplinks: Vec::new(),
            degraded: false,
            certificates: None,
            canaries: CanaryFile::NotRead,
        })
    }

    /// These policy files with the users, groups and clouds of this moment.
    fn here(files: Vec<(String, String)>) -> Self {
        let (passwd, group) = host::accounts();
        let detected = Catalogue::detect(&host::dmi()).into_iter().map(str::to_owned).collect();
        let (uplinks, degraded) = (host::uplinks(), degraded::is_degraded_host());
        let (certificates, canaries) = (None, CanaryFile::NotRead);
        Self { files, passwd, group, detected, certificates, uplinks, canaries, degraded }
    }

    /// Takes in the certificates that its policy needs, as they are now.
    pub fn certify(&mut self, policy: &Policy) {
        self.certificates = Certificates::read(policy);
    }

    /// The certificates for TLS to the service, if the policy wants any.
    #[must_use]
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// A bundle's bytes, to be kept on a disk: without the client's key and the canaries, which nobody keeps for their
    /// owners.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let (certificates, canaries) = (None, CanaryFile::NotRead);
        Ok(serde_json::to_vec(&Self { certificates, canaries, ..self.clone() })?)
    }

    /// The policy files of a bundle that was kept. Users and clouds are read anew: a number may be somebody else's now.
    pub fn kept(bytes: &[u8]) -> io::Result<Self> {
        let kept: Self = serde_json::from_slice(bytes)?;
        let here = Self::here(kept.files);
        // What is wrong with the canaries now is no reason to guard by no policy: its rules refuse without them.
        let canaries = decoys::read(here.sources().first(), Trust::Anybody).unwrap_or_default();
        Ok(Self { canaries, ..here })
    }

    /// The policy that the files say, or everything that is wrong with them.
    pub fn compile(&self) -> Result<Compiled, Vec<Diagnostic>> {
        Policy::compile(&self.sources(), &self.context())
    }

    /// The version of the policy: the beginning of a digest of all that its files say. Files' names count without their
    /// directory, so that a copy is the same version.
    #[must_use]
    pub fn version(&self) -> String {
        let mut digest = Sha256::new();
        for (name, text) in &self.files {
            let name = name.rsplit('/').next().unwrap_or(name);
            for part in [name, text] {
                digest.update(part.len().to_le_bytes());
                digest.update(part);
            }
        }
        hex::encode(digest.finalize().get(..6).unwrap_or_default())
    }

    /// The policy files.
    #[must_use]
    pub fn sources(&self) -> Vec<Source> {
        self.files.iter().map(|(name, text)| Source { name: name.clone(), text: text.clone() }).collect()
    }

    fn context(&self) -> Context {
        Context {
            accounts: Accounts::parse(&self.passwd, &self.group),
            detected: self.detected.clone(),
            uplinks: self.uplinks.clone(),
            canaries: self.canaries.clone(),
            degraded: self.degraded,
        }
    }

    /// The bundle in a memory file that can no longer be written, grown or shrunk.
    pub fn seal(&self) -> io::Result<OwnedFd> {
        seal(self)
    }

    /// Reads a sealed bundle back.
    pub fn unseal(memory: OwnedFd) -> io::Result<Self> {
        unseal(memory)
    }
}

/// What the proxy is to have, in a memory file that can no longer be written, grown or shrunk.
pub fn seal(what: &impl Serialize) -> io::Result<OwnedFd> {
    let memory = memfd_create("imds-guard-policy", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memory);
    file.write_all(&serde_json::to_vec(what)?)?;
    file.rewind()?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Reads back what was sealed.
pub fn unseal<T: DeserializeOwned>(memory: OwnedFd) -> io::Result<T> {
    let mut bytes = Vec::new();
    File::from(memory).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Canaried;

    #[test]
    fn the_version_follows_what_the_files_say() {
        let bundle = |files: &[(&str, &str)]| Bundle {
            files: files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(),
            passwd: String::new(),
            group: String::new(),
            detected: Vec::new(),
            certificates: None,
            uplinks: Vec::new(),
            canaries: CanaryFile::NotRead,
            degraded: false,
        };
        let one = bundle(&[("/etc/imds-guard/policy.toml", "mode = \"audit\"")]).version();
        assert_eq!(one, bundle(&[("policy.toml", "mode = \"audit\"")]).version());
        assert_eq!(one.len(), 12);
        for other in [
            bundle(&[("policy.toml", "mode = \"enforce\"")]),
            bundle(&[("policy.toml", "mode = \"audit\""), ("10.toml", "")]),
            bundle(&[("policy.tom", "lmode = \"audit\"")]),
        ] {
            assert_ne!(one, other.version(), "{other:?}");
        }
    }

    #[test]
    fn what_is_kept_holds_no_key() {
        let mut bundle = Bundle::here(Vec::new());
        bundle.certificates = Some(Certificates { roots: None, client: Some("a key".into()) });
        bundle.canaries = CanaryFile::Text(Canaried("a canary".into()));
        let kept = String::from_utf8(bundle.to_bytes().unwrap()).unwrap();
        assert!(!kept.contains("a key") && !kept.contains("a canary"), "{kept}");
        assert!(!format!("{bundle:?}").contains("a canary"));
    }

    #[test]
    fn a_sealed_bundle_reads_back_and_cannot_be_changed() {
        let bundle = Bundle {
            files: vec![("policy.toml".into(), "mode = \"audit\"".into())],
            passwd: "root:x:0:0::/:".into(),
            group: String::new(),
            detected: vec!["gcp".into()],
            certificates: Some(Certificates { roots: None, client: Some("a key".into()) }),
            uplinks: vec!["ens5".into()],
            canaries: CanaryFile::Text(Canaried("[gcp]".into())),
            degraded: false,
        };
        let sealed = bundle.seal().unwrap();
        let mut writer = File::from(sealed.try_clone().unwrap());
        assert!(writer.write_all(b"x").is_err());
        writer.rewind().unwrap();
        assert_eq!(Bundle::unseal(sealed).unwrap(), bundle);
    }
}
