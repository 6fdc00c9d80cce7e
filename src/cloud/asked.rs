//! One request in the words of the catalogue: what a policy decides about.

use crate::request::{Fault, RawHead, Target};

use super::catalogue::{Catalogue, Touched};
use super::endpoint::Endpoint;
use super::session::{How, Spoken, TokenHolder};

/// What a caller asked, and everything that is odd about how it asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Where.
    pub endpoint: Endpoint,
    /// The head as it came; none if the bytes did not even make one.
    pub head: Option<RawHead>,
    /// Its one meaning, or why it has none.
    pub target: Result<Target, Fault>,
    /// What it touches; unknown if it has no meaning.
    pub touched: Touched,
    /// Everything that enforce mode refuses whoever asks: the target's own fault first, then the head's, then
    /// a Host that belongs to somebody else.
    pub faults: Vec<Fault>,
    /// How it speaks of session tokens; none where there are none, or where it has no meaning.
    pub spoken: Option<Spoken>,
    /// Who fetched the session token that it shows, in words, if that was another caller.
    pub token_of: Option<String>,
}

impl Asked {
    /// Reads a head that arrived at an endpoint.
    #[must_use]
    pub fn read(catalogue: &Catalogue, endpoint: Endpoint, head: RawHead) -> Self {
        let target = Target::read(&head);
        let mut faults: Vec<Fault> = target.as_ref().err().copied().into_iter().collect();
        for fault in head.hygiene() {
            if !faults.contains(fault) {
                faults.push(*fault);
            }
        }
        let mut touched = Touched::unknown();
        if let Ok(target) = &target {
            touched = catalogue.classify(endpoint, target);
            // A page in a browser, or a server that fetches what it is told, arrives under its own name.
            if target.host().is_some_and(|host| !catalogue.names_host(endpoint, host)) {
                faults.push(Fault::HostForeign);
            }
        }
        let spoken = target.as_ref().ok().and_then(|target| catalogue.spoken(endpoint, target, &touched));
        Self { endpoint, head: Some(head), target, touched, faults, spoken, token_of: None }
    }

    /// A request that the gate refused: bytes without one meaning.
    #[must_use]
    pub fn unclear(endpoint: Endpoint, head: Option<RawHead>, fault: Fault) -> Self {
        Self {
            endpoint,
            head,
            target: Err(fault),
            touched: Touched::unknown(),
            faults: vec![fault],
            spoken: None,
            token_of: None,
        }
    }

    /// The session token that it shows.
    #[must_use]
    pub fn token(&self) -> Option<&[u8]> {
        let spoken = self.spoken.as_ref().filter(|spoken| matches!(spoken.how, How::Shows(_)))?;
        spoken.session.token_of(self.head.as_ref()?)
    }

    /// Whose token that is, if it shows one.
    #[must_use]
    pub fn token_holder(&self) -> Option<TokenHolder> {
        match self.spoken.as_ref()?.how {
            How::Shows(holder) => Some(holder),
            How::Asks | How::Without | How::Malformed => None,
        }
    }

    /// Notes how it speaks of session tokens: whose token it shows, or what an event told of it. Without effect where
    /// there are no session tokens.
    pub fn speaks(&mut self, how: How) {
        if let Some(spoken) = &mut self.spoken {
            spoken.how = how;
        }
    }

    /// Which version of the session protocol a read speaks: `v2` if it shows a token, `v1` if it does not.
    #[must_use]
    pub fn session_version(&self) -> Option<&'static str> {
        let is_read = self.head.as_ref().is_some_and(|head| head.method().is_read());
        self.spoken.as_ref().filter(|_| is_read)?.version()
    }
}
