//! The clouds that were chosen, and every question that the rest of the program asks about them.
//!
//! # What a target touches
//!
//! Only the clouds that serve the endpoint judge. Within one cloud the closest row without a condition gives
//! the classes, and the closest rows whose condition holds add theirs; a method that the row does not list
//! adds `write`. Across clouds it is the union over those that know the path, so that a machine whose cloud
//! is in doubt is judged by the strictest; `unknown` is left for what none of them knows.
//!
//! # When clouds disagree about a door
//!
//! Where one chosen cloud speaks HTTP/1 and another TLS or HTTP/2 (port 8080 of the shared address, on Exoscale and on
//! Google's cloud), each connection's first bytes tell: they are read and judged, or opaque. A policy's own endpoint
//! that is opaque is opaque for all.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::request::{Host, Target};

use super::additions::{self, AddedEndpoint, AddedResource, AdditionError};
use super::asked::Asked;
use super::builtin;
use super::class::{Class, Classes};
use super::decoy::DecoyForm;
use super::detect::Dmi;
use super::endpoint::{Door, Endpoint, Proof};
use super::index::{Doorway, Index};
use super::issued::Issue;
use super::load::LoadError;
use super::members::Withholding;
use super::pattern::PathPattern;
use super::refusal::{self, Answer};
use super::service::{Cloud, Resource, Served};
use super::session::{How, Spoken};

/// Which clouds to judge by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// By what the firmware says.
    Auto,
    /// Every one that is known, at all its addresses.
    All,
    /// These, by id or family.
    Named(Vec<String>),
}

/// Why there is no such catalogue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// No cloud has that id or family.
    #[error("there is no cloud `{name}`; known are {known}")]
    UnknownCloud {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A list that names nothing.
    #[error("no cloud is named")]
    Nothing,
    /// What a policy adds does not fit.
    #[error(transparent)]
    Addition(#[from] AdditionError),
    /// More rows than the index can number.
    #[error("there are too many clouds or resources")]
    TooMany,
}

/// The clouds chosen, plus what a policy adds.
#[derive(Debug, Clone)]
pub struct Catalogue {
    pub(super) clouds: Vec<Arc<Cloud>>,
    /// Nobody knows which cloud this is: only the address that most of them share is theirs.
    pub(super) shared_only: bool,
    /// Endpoints of a policy that no single cloud owns.
    pub(super) common: Vec<Served>,
    index: Index,
}

/// A set of clouds.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub struct CloudSet(u64);

impl CloudSet {
    pub(super) const fn with(self, number: u8) -> Self {
        Self(self.0 | 1 << number)
    }

    const fn has(self, number: u8) -> bool {
        self.0 >> number & 1 == 1
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Their ids; what a policy added itself appears as `policy`.
    pub fn iter(self) -> impl Iterator<Item = &'static str> {
        builtin::FILES
            .iter()
            .map(|(id, _)| *id)
            .zip(0..)
            .chain([(additions::ID, additions::NUMBER)])
            .filter(move |(_, number)| self.has(*number))
            .map(|(id, _)| id)
    }
}

/// What a target touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touched {
    /// The classes, never none: all of them must be allowed.
    pub classes: Classes,
    /// The clouds that know the path.
    pub clouds: CloudSet,
    /// The answer cannot change while the machine runs.
    pub constant: bool,
    /// The answer may wait for a change, for as long as it takes.
    pub long_poll: bool,
    /// The path, or its query, is itself a secret: logs hold a digest of both.
    pub secret_path: bool,
    /// The classes that can be withheld from the answer, because the catalogue knows which of its members hold them;
    /// some of them may be in there without the target touching them.
    pub withholdable: Classes,
}

impl Touched {
    /// What a target touches that no catalogue knows, or that could not be read.
    #[must_use]
    pub const fn unknown() -> Self {
        Self {
            classes: Classes::of(Class::Unknown),
            clouds: CloudSet(0),
            constant: false,
            long_poll: false,
            secret_path: false,
            withholdable: Classes::EMPTY,
        }
    }
}

static BUILTIN: LazyLock<Catalogue> = LazyLock::new(|| {
    #[expect(
        clippy::expect_used,
        reason = "the files are part of the program, and a test loads each of them"
    )]
    load_builtin().expect("the built-in catalogues load")
});

fn load_builtin() -> Result<Catalogue, BuiltinError> {
    let clouds = builtin::load_all()?.into_iter().map(Arc::new).collect();
    Ok(Catalogue::assemble(clouds, false, Vec::new())?)
}

#[derive(Debug, thiserror::Error)]
enum BuiltinError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Assemble(#[from] CatalogueError),
}

impl Catalogue {
    /// Every cloud that is known, at all its addresses.
    #[must_use]
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// The ids of the clouds on which a machine with these strings runs; more than one where a cloud has
    /// several services, none where nothing fits.
    #[must_use]
    pub fn detect(dmi: &Dmi) -> Vec<&'static str> {
        let matching = |cloud: &&Arc<Cloud>| cloud.signatures.iter().any(|signature| signature.matches(dmi));
        Self::builtin().clouds.iter().filter(matching).map(|cloud| cloud.id).collect()
    }

    /// What a policy's choice comes to, given what was detected.
    ///
    /// With nothing detected, every cloud judges, at the shared address only: the other addresses might
    /// belong to something harmless here, and the worst that the shared one can be is another cloud's
    /// service.
    pub fn choose(selection: &Selection, detected: &[impl AsRef<str>]) -> Result<Self, CatalogueError> {
        let all = Self::builtin();
        match selection {
            Selection::All => Ok(all.clone()),
            Selection::Named(names) => all.select(names),
            Selection::Auto if detected.is_empty() => Self::assemble(all.clouds.clone(), true, Vec::new()),
            Selection::Auto => {
                all.select(&detected.iter().map(|id| id.as_ref().to_owned()).collect::<Vec<_>>())
            }
        }
    }

    /// Those of its clouds that have one of the names as id or family.
    pub fn select(&self, names: &[String]) -> Result<Self, CatalogueError> {
        if names.is_empty() {
            return Err(CatalogueError::Nothing);
        }
        if let Some(name) = names.iter().find(|name| !self.clouds.iter().any(|cloud| cloud.answers_to(name)))
        {
            let known: Vec<&str> = self.clouds.iter().map(|cloud| cloud.id).collect();
            return Err(CatalogueError::UnknownCloud { name: name.clone(), known: known.join(", ") });
        }
        let wanted = |cloud: &&Arc<Cloud>| names.iter().any(|name| cloud.answers_to(name));
        let clouds = self.clouds.iter().filter(wanted).cloned().collect();
        Self::assemble(clouds, self.shared_only, self.common.clone())
    }

    /// The same with what a policy adds.
    pub fn with_additions(
        self,
        endpoints: &[AddedEndpoint],
        resources: &[AddedResource],
    ) -> Result<Self, CatalogueError> {
        let (clouds, common) = additions::add(&self, endpoints, resources)?;
        Self::assemble(clouds, self.shared_only, common)
    }

    fn assemble(
        clouds: Vec<Arc<Cloud>>,
        shared_only: bool,
        common: Vec<Served>,
    ) -> Result<Self, CatalogueError> {
        let doors = doors(&clouds, shared_only, &common);
        let index = Index::new(&clouds, doors).ok_or(CatalogueError::TooMany)?;
        Ok(Self { clouds, shared_only, common, index })
    }

    /// The clouds.
    #[must_use]
    pub fn clouds(&self) -> &[Arc<Cloud>] {
        &self.clouds
    }

    /// The cloud with that id.
    #[must_use]
    pub fn cloud(&self, id: &str) -> Option<&Cloud> {
        self.clouds.iter().find(|cloud| cloud.id == id).map(|cloud| &**cloud)
    }

    /// Whether some request for a path that fits the pattern may touch one of the classes: yes, where it is in doubt.
    #[must_use]
    pub fn could_touch(&self, pattern: &PathPattern, classes: Classes) -> bool {
        // What one endpoint's clouds know, those at another may not.
        if classes.contains(Class::Unknown) {
            return true;
        }
        let speaks = |row: &Resource| {
            classes.contains(Class::Write) || row.classes.iter().any(|class| classes.contains(class))
        };
        let rows = self.clouds.iter().flat_map(|cloud| cloud.resources()).filter(|row| speaks(row));
        rows.map(|row| &row.pattern)
            .any(|row| pattern.may_meet(row) || pattern.may_meet_behind_authority(row))
    }

    /// What the redirect must catch, in order. What a cloud's file keeps from it is not among them.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let mut wanted: Vec<Endpoint> =
            self.index.doors().filter(|(_, door)| door.intercept).map(|(endpoint, _)| *endpoint).collect();
        wanted.sort_unstable();
        wanted
    }

    /// Whether any chosen cloud answers there.
    #[must_use]
    pub fn serves(&self, endpoint: Endpoint) -> bool {
        self.index.doorway(endpoint).is_some()
    }

    /// How bytes are treated there. Where nobody serves there is nothing to read, hence opaque.
    #[must_use]
    pub fn door(&self, endpoint: Endpoint) -> Door {
        self.index.doorway(endpoint).map_or(Door::Opaque, |doorway| doorway.door)
    }

    /// What is taken there as proof of who connects.
    #[must_use]
    pub fn proof(&self, endpoint: Endpoint) -> Proof {
        self.index.doorway(endpoint).map_or(Proof::None, |doorway| doorway.proof)
    }

    /// How a request speaks of session tokens, where a cloud that knows its path hands such tokens out.
    ///
    /// A path that none of the clouds knows is none the less read by the service: where every cloud at the endpoint
    /// has tokens, one that requires them requires them there, too. Of several clouds, the one whose token the request
    /// shows is taken for the one that it is for.
    #[must_use]
    pub fn spoken(&self, endpoint: Endpoint, target: &Target, touched: &Touched) -> Option<Spoken> {
        let serving = || self.serving(endpoint).filter(|cloud| !cloud.is_policy());
        let knows = |cloud: &Cloud| touched.clouds.has(cloud.number);
        let nobody_knows = !serving().any(knows);
        if nobody_knows && serving().any(|cloud| cloud.session().is_none()) {
            return None;
        }
        let sessions = serving().filter(|cloud| nobody_knows || knows(cloud)).filter_map(Cloud::session);
        let mut spoken = sessions.filter_map(|session| {
            session.spoken_in(target).map(|how| Spoken { session: Arc::clone(session), how })
        });
        let first = spoken.next()?;
        if first.how != How::Without {
            return Some(first);
        }
        Some(spoken.find(|other| other.how != How::Without).unwrap_or(first))
    }

    /// Whether a Host header names this endpoint: its own address, or a name of a cloud that serves it, each
    /// with or without its port. Anything else is a name that somebody pointed here (DNS rebinding).
    #[must_use]
    pub fn names_host(&self, endpoint: Endpoint, host: &Host) -> bool {
        match host {
            Host::Ip(addr, port) => addr.to_canonical() == endpoint.addr && is_port(*port, endpoint),
            Host::Name(name, port) => {
                is_port(*port, endpoint)
                    && self.serving(endpoint).any(|cloud| cloud.hostnames.iter().any(|own| own == name))
            }
        }
    }

    /// What the target touches at the endpoint.
    #[must_use]
    pub fn classify(&self, endpoint: Endpoint, target: &Target) -> Touched {
        self.index.classify(&self.clouds, endpoint, target)
    }

    /// How to withhold these classes from the answer to a request; `None` if the catalogue does not know how.
    #[must_use]
    pub fn withholding(&self, asked: &Asked, classes: Classes) -> Option<Withholding> {
        let target = asked.target.as_ref().ok()?;
        if !classes.is_subset_of(asked.touched.withholdable) {
            return None;
        }
        let members = self.index.members(&self.clouds, asked.endpoint, target);
        let knowing = asked.touched.clouds.iter().filter_map(|id| self.cloud(id));
        let version_keys = knowing.flat_map(Cloud::version_query).cloned().collect();
        Withholding::new(members, classes, version_keys)
    }

    /// How the answer to a request tells of the key in it, if it hands one out.
    #[must_use]
    pub fn issue(&self, asked: &Asked) -> Option<&Arc<Issue>> {
        let target = asked.target.as_ref().ok()?;
        if !asked.touched.classes.contains(Class::Credentials) {
            return None;
        }
        let knowing = asked.touched.clouds.iter().filter_map(|id| self.cloud(id));
        knowing.flat_map(Cloud::issued).find(|issue| issue.path.matches(target.path().segments()))
    }

    /// The forms in which a read of credentials would be answered, each with the id of its cloud: of those clouds that
    /// know the path and would answer a request with such headers.
    pub fn decoys<'a>(
        &'a self,
        asked: &'a Asked,
    ) -> impl Iterator<Item = (&'static str, &'a Arc<DecoyForm>)> {
        let credentials = asked.touched.classes.contains(Class::Credentials);
        let read = asked.head.as_ref().zip(asked.target.as_ref().ok()).filter(|_| credentials);
        read.into_iter().flat_map(move |(head, target)| {
            let knowing = asked.touched.clouds.iter().filter_map(|id| self.cloud(id));
            let forms = knowing.filter(|cloud| cloud.hears(head));
            let forms = forms.flat_map(|cloud| cloud.decoys().iter().map(|form| (cloud.id(), form)));
            forms.filter(|(_, form)| form.fits(target))
        })
    }

    /// What to tell a client whose request is refused.
    #[must_use]
    pub fn refusal(&self, asked: &Asked) -> Answer {
        let serving: Vec<&Cloud> = self.serving(asked.endpoint).filter(|cloud| !cloud.is_policy()).collect();
        let knowing: Vec<&Cloud> =
            serving.iter().copied().filter(|cloud| asked.touched.clouds.has(cloud.number)).collect();
        refusal::answer(asked, &knowing, &serving)
    }

    /// What to tell a client that needs a session token and shows none, or shows somebody else's: what the service
    /// would say where tokens are required, so that the client fetches one of its own.
    #[must_use]
    pub fn token_refusal(&self, asked: &Asked) -> Answer {
        match &asked.spoken {
            Some(spoken) => refusal::token_required(spoken.session.required_status),
            None => self.refusal(asked),
        }
    }

    pub(super) fn serving(&self, endpoint: Endpoint) -> impl Iterator<Item = &Cloud> {
        let serving = self.index.doorway(endpoint).map_or(0, |doorway| doorway.serving);
        self.clouds
            .iter()
            .enumerate()
            .filter(move |(at, _)| serving >> at & 1 == 1)
            .map(|(_, cloud)| &**cloud)
    }
}

fn is_port(named: Option<u16>, endpoint: Endpoint) -> bool {
    named.is_none_or(|port| port == endpoint.port)
}

/// Who answers where. An endpoint is caught if any cloud there wants it caught.
fn doors(clouds: &[Arc<Cloud>], shared_only: bool, common: &[Served]) -> HashMap<Endpoint, Doorway> {
    let mut doors: HashMap<Endpoint, Doorway> = HashMap::new();
    let everybody = if clouds.len() >= 64 { u64::MAX } else { (1 << clouds.len()) - 1 };
    let own = clouds.iter().enumerate().flat_map(|(at, cloud)| {
        let theirs =
            |served: &&Served| !shared_only || served.added || served.endpoint.addr == Endpoint::SHARED;
        cloud.served.iter().filter(theirs).map(move |served| (1 << at, served))
    });
    let all: Vec<(u64, &Served)> = own.chain(common.iter().map(|served| (everybody, served))).collect();
    for (serving, served) in &all {
        let doorway = doors.entry(served.endpoint).or_insert(Doorway {
            serving: 0,
            door: served.door,
            intercept: false,
            proof: Proof::None,
        });
        doorway.serving |= serving;
        doorway.intercept |= served.intercept;
        if served.proof != Proof::None {
            doorway.proof = served.proof;
        }
        if doorway.door != served.door {
            doorway.door = Door::Either;
        }
    }
    for (_, served) in all.iter().filter(|(_, served)| served.added && served.door == Door::Opaque) {
        if let Some(doorway) = doors.get_mut(&served.endpoint) {
            doorway.door = Door::Opaque;
        }
    }
    // What a policy says about paths, it says at every endpoint.
    if let Some(at) = clouds.iter().position(|cloud| cloud.is_policy()) {
        for doorway in doors.values_mut() {
            doorway.serving |= 1 << at;
        }
    }
    doors
}
