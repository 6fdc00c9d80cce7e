//! One request in the words of the catalogue: what a policy decides about.

use crate::request::{Fault, RawHead, Target};

use super::catalogue::{Catalogue, Touched};
use super::endpoint::Endpoint;

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
        Self { endpoint, head: Some(head), target, touched, faults }
    }

    /// A request that the gate refused: bytes without one meaning.
    #[must_use]
    pub fn unclear(endpoint: Endpoint, head: Option<RawHead>, fault: Fault) -> Self {
        Self { endpoint, head, target: Err(fault), touched: Touched::unknown(), faults: vec![fault] }
    }
}
