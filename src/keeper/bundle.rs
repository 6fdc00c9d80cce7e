//! A policy and all that it is compiled against, as the keeper hands it to the proxy: in a sealed memory file, so
//! that the proxy needs no file system, and nobody can change what was checked.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Deserialize, Serialize};

use crate::cloud::Catalogue;
use crate::policy::{Accounts, Compiled, Context, Diagnostic, Policy, Source};

use super::files::{self, FileError, Trust};
use super::host;

/// Policy files, users, groups and clouds as they were when the keeper read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Name and text of each policy file, the main one first.
    files: Vec<(String, String)>,
    passwd: String,
    group: String,
    detected: Vec<String>,
}

impl Bundle {
    /// Reads everything that the policy at `main` depends on.
    pub fn read(main: &Path, trust: Trust) -> Result<Self, FileError> {
        let files =
            files::policy(main, trust)?.into_iter().map(|source| (source.name, source.text)).collect();
        let (passwd, group) = host::accounts();
        let detected = Catalogue::detect(&host::dmi()).into_iter().map(str::to_owned).collect();
        Ok(Self { files, passwd, group, detected })
    }

    /// The policy that the files say, or everything that is wrong with them.
    pub fn compile(&self) -> Result<Compiled, Vec<Diagnostic>> {
        Policy::compile(&self.sources(), &self.context())
    }

    /// The policy files.
    #[must_use]
    pub fn sources(&self) -> Vec<Source> {
        self.files.iter().map(|(name, text)| Source { name: name.clone(), text: text.clone() }).collect()
    }

    fn context(&self) -> Context {
        Context { accounts: Accounts::parse(&self.passwd, &self.group), detected: self.detected.clone() }
    }

    /// The bundle in a memory file that can no longer be written, grown or shrunk.
    pub fn seal(&self) -> io::Result<OwnedFd> {
        let memory = memfd_create("imds-guard-policy", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = File::from(memory);
        file.write_all(&serde_json::to_vec(self)?)?;
        file.rewind()?;
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(file.into())
    }

    /// Reads a sealed bundle back.
    pub fn unseal(memory: OwnedFd) -> io::Result<Self> {
        let mut bytes = Vec::new();
        File::from(memory).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_bundle_reads_back_and_cannot_be_changed() {
        let bundle = Bundle {
            files: vec![("policy.toml".into(), "mode = \"audit\"".into())],
            passwd: "root:x:0:0::/:".into(),
            group: String::new(),
            detected: vec!["gcp".into()],
        };
        let sealed = bundle.seal().unwrap();
        let mut writer = File::from(sealed.try_clone().unwrap());
        assert!(writer.write_all(b"x").is_err());
        writer.rewind().unwrap();
        assert_eq!(Bundle::unseal(sealed).unwrap(), bundle);
    }
}
