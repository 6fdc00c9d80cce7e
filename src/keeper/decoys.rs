//! The file of canaries that a policy names. It is read with the policy, because the proxy has no file system. A canary
//! tells whoever uses it apart only as long as nobody else knows it: no other user may read the file.

use std::path::Path;

use crate::policy::{Canaried, CanaryFile, Source, canary_file};

use super::files::{self, FileError, Trust};

/// The largest file, in bytes.
const BYTES: u64 = 256 << 10;

/// Reads the file that the policy's main file names, if it names one. A guard that runs must be able to trust it; a check
/// of a draft, perhaps on another machine and as somebody else, tells what it could not read.
pub(super) fn read(main: Option<&Source>, trust: Trust) -> Result<CanaryFile, FileError> {
    let Some(path) = main.and_then(|main| canary_file(&main.text)) else { return Ok(CanaryFile::NotRead) };
    match (files::secret_text(Path::new(&path), BYTES), trust) {
        (Ok(text), _) => Ok(CanaryFile::Text(Canaried(text))),
        (Err(error), Trust::RootOnly) => Err(error),
        (Err(error), Trust::Anybody) => Ok(CanaryFile::Unreadable(error.to_string())),
    }
}
