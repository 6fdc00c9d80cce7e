//! Decoys: what a rule with `action = "decoy"` gives in place of a refusal, and to whom never.
//!
//! A canary's credentials open nothing and tell on whoever uses them. To a program that needs real ones they look like
//! real ones that do not work, so they must never reach an agent: a [`Bait`] cannot be made without a `Stranger`, and
//! only a look at every agent makes one of those.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::agent::View;
use super::compile::Policy;
use super::diagnostic::Report;
use super::shape::Document;
use super::source::Name;
use crate::caller::Caller;
use crate::cloud::decoy::{self, DecoyForm};
use crate::cloud::{Asked, Catalogue};

/// The longest value of a canary's, in bytes.
const VALUE_BYTES: usize = 8192;

/// The file of canaries as somebody else read it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CanaryFile {
    /// Nobody looked.
    #[default]
    NotRead,
    /// Its text.
    Text(Canaried),
    /// Why it could not be read.
    Unreadable(String),
}

/// A text with canaries' values in it, which no debug output shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Canaried(pub String);

impl fmt::Debug for Canaried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(canaries)")
    }
}

/// The canaries' values, by cloud and name.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Canaries(BTreeMap<&'static str, Arc<BTreeMap<String, String>>>);

impl fmt::Debug for Canaries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What is wrong with the file. No value of it is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CanaryError {
    #[error("the file of decoys is no TOML{}", .0.map(|line| format!(" (line {line})")).unwrap_or_default())]
    Syntax(Option<usize>),
    #[error("the file of decoys has no table")]
    Empty,
    #[error("the file of decoys: `{0}` is no table, or no cloud with decoys (those are {1})")]
    Cloud(String, String),
    #[error("the file of decoys: [{0}] lacks `{1}`")]
    Missing(String, String),
    #[error("the file of decoys: [{0}] has no use for `{1}` (it has for {2})")]
    Unknown(String, String, String),
    #[error(
        "the file of decoys: [{0}] `{1}` is no text of at most {VALUE_BYTES} letters without quotes, backslashes and line ends"
    )]
    Value(String, String),
}

impl Canaries {
    /// Reads the file: one table for each cloud or family, with exactly the values that its forms want.
    pub(super) fn read(text: &str) -> Result<Self, CanaryError> {
        // The parser's own message shows the line, and with it a canary.
        let tables: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            CanaryError::Syntax(before.map(|before| before.matches('\n').count() + 1))
        })?;
        let mut canaries = Self::default();
        for (name, table) in &tables {
            let clouds = Catalogue::builtin().clouds().iter().filter(|cloud| !cloud.decoys().is_empty());
            let known = clouds.clone().map(|cloud| cloud.id()).collect::<Vec<_>>().join(", ");
            let meant: Vec<_> = clouds.filter(|cloud| cloud.answers_to(name)).collect();
            let (Some(table), false) = (table.as_table(), meant.is_empty()) else {
                return Err(CanaryError::Cloud(name.clone(), known));
            };
            let forms = meant.iter().flat_map(|cloud| cloud.decoys()).map(|form| &**form);
            let wanted = decoy::wanted(forms);
            if let Some(missing) = wanted.iter().find(|key| !table.contains_key(**key)) {
                return Err(CanaryError::Missing(name.clone(), (*missing).to_owned()));
            }
            let mut values = BTreeMap::new();
            for (key, value) in table {
                if !wanted.contains(key.as_str()) {
                    let all = wanted.into_iter().collect::<Vec<_>>().join(", ");
                    return Err(CanaryError::Unknown(name.clone(), key.clone(), all));
                }
                let value = value.as_str().filter(|value| is_harmless(value));
                let value = value.ok_or_else(|| CanaryError::Value(name.clone(), key.clone()))?;
                values.insert(key.clone(), value.to_owned());
            }
            let values = Arc::new(values);
            for cloud in meant {
                // A cloud's own table counts before its family's.
                if cloud.id() == name || !canaries.0.contains_key(cloud.id()) {
                    canaries.0.insert(cloud.id(), Arc::clone(&values));
                }
            }
        }
        if canaries.0.is_empty() { Err(CanaryError::Empty) } else { Ok(canaries) }
    }

    pub(super) fn has(&self, cloud: &str) -> bool {
        self.0.contains_key(cloud)
    }
}

/// What stands inside the quotes of a JSON string as it is, and on a line of text.
fn is_harmless(value: &str) -> bool {
    let plain = |byte: u8| (byte.is_ascii_graphic() || byte == b' ') && byte != b'"' && byte != b'\\';
    (1..=VALUE_BYTES).contains(&value.len()) && value.bytes().all(plain)
}

/// Which file holds the canaries, as the main file's text says, if it says that in the right form. To be read before the
/// policy is compiled.
#[must_use]
pub fn canary_file(main: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Main {
        guard: Option<Guard>,
    }
    #[derive(Deserialize)]
    struct Guard {
        decoys: Option<String>,
    }
    let main: Main = toml::from_str(main).ok()?;
    main.guard?.decoys.filter(|path| super::settings::is_absolute(path))
}

/// Reads the canaries that `[guard] decoys` names.
pub(super) fn read(
    document: &Document,
    file: Option<&Name>,
    text: &CanaryFile,
    report: &mut Report<'_>,
) -> Option<Canaries> {
    let place = document.place(file?.span());
    match text {
        CanaryFile::NotRead => None,
        CanaryFile::Unreadable(why) => {
            report
                .warning("decoys-unread", format!("the file of decoys was not read: {why}"), &place)
                .help("the guard does not start with a file that it cannot read or must not trust");
            None
        }
        CanaryFile::Text(Canaried(text)) => match Canaries::read(text) {
            Ok(canaries) => Some(canaries),
            Err(error) => {
                report.error("decoys", error.to_string(), &place);
                None
            }
        },
    }
}

/// The proof that nothing at all speaks for a caller being one of the policy's agents.
#[derive(Debug)]
struct Stranger(());

/// A decoy, ready to be given.
#[derive(Clone, PartialEq, Eq)]
pub struct Bait {
    form: Arc<DecoyForm>,
    /// Nothing where nobody read the file: then it is known only that there would be a decoy.
    canary: Option<Arc<BTreeMap<String, String>>>,
}

impl fmt::Debug for Bait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(a decoy at {})", self.form.path)
    }
}

impl Bait {
    /// The only way to one: for a stranger.
    fn for_stranger(
        _: &Stranger,
        form: &Arc<DecoyForm>,
        canary: Option<&Arc<BTreeMap<String, String>>>,
    ) -> Self {
        Self { form: Arc::clone(form), canary: canary.cloned() }
    }

    /// Whether there is a canary to give.
    pub(super) fn is_ready(&self) -> bool {
        self.canary.is_some()
    }

    /// The headers.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.form.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The body at that many seconds since 1970; `date` writes such a moment as `2026-11-24T18:00:00`.
    #[must_use]
    pub fn body(&self, now: i64, date: impl Fn(i64) -> String) -> Option<String> {
        self.form.body(self.canary.as_deref()?, now, date)
    }
}

impl Policy {
    /// The decoy for a request, if its caller is no agent and a cloud that knows the path has a form for it.
    pub(super) fn bait(&self, caller: &Caller, asked: &Asked, view: View<'_>) -> Option<Bait> {
        let stranger = self.stranger(caller, view)?;
        let mut forms = self.catalogue().decoys(asked).peekable();
        let (_, first) = *forms.peek()?;
        let canaries = self.canaries.as_ref();
        let ready =
            canaries.and_then(|Canaries(all)| forms.find_map(|(cloud, form)| Some((form, all.get(cloud)?))));
        Some(match ready {
            Some((form, canary)) => Bait::for_stranger(&stranger, form, Some(canary)),
            None => Bait::for_stranger(&stranger, first, None),
        })
    }

    /// Looks at every agent. Of whom the kernel said nothing, nobody knows whether it is one.
    fn stranger(&self, caller: &Caller, view: View<'_>) -> Option<Stranger> {
        let stamps = caller.stamps()?;
        let mut agents = self.agent_index.candidates(stamps).filter_map(|id| self.agent(id));
        agents.all(|agent| agent.is_surely_not(stamps, caller.origin, view)).then_some(Stranger(()))
    }
}

#[cfg(test)]
mod tests;
