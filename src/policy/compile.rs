//! From tables to a [`Policy`]: names looked up, patterns read, indices built; every error told at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::accounts::{Accounts, Context};
use super::agent::{Agent, Cgroups};
use super::aggregate::{self, Aggregate};
use super::containers::{self, Containers};
use super::decision::Mode;
use super::decoy::{self, Canaries};
use super::degraded::{self, Degraded};
use super::diagnostic::{Diagnostic, Place, Report, did_you_mean};
use super::index::{AgentIndex, Id, RuleSet};
use super::rule::Rule;
use super::session::{BindTokens, V1};
use super::settings::{self, Settings};
use super::shape::{self, Document};
use super::source::{GrantTable, Name, Source};
use super::{draft, lint};
use crate::cloud::{Catalogue, Class, Classes, Selection};

/// A policy that can decide.
#[derive(Debug)]
pub struct Policy {
    pub(super) mode: Mode,
    pub(super) aggregate: Aggregate,
    pub(super) degraded: Degraded,
    settings: Settings,
    selection: Selection,
    catalogue: Catalogue,
    pub(super) everyone: Classes,
    pub(super) unattributed: Classes,
    pub(super) v1: V1,
    pub(super) bind_tokens: BindTokens,
    /// Whether the policy or any agent says anything about requests without session tokens.
    pub(super) speaks_of_v1: bool,
    pub(super) containers: Option<Containers>,
    pub(super) canaries: Option<Canaries>,
    /// Sorted, as are the rules, so that "the first" means the same whatever the order in the files: those that
    /// live somewhere before those that are only a user or an executable, then by name.
    pub(super) agents: Vec<Agent>,
    pub(super) rules: Vec<Rule>,
    pub(super) agent_index: AgentIndex,
    /// Rules that name neither agents nor users.
    pub(super) rules_for_all: RuleSet,
    /// Rules that name users and no agents.
    pub(super) rules_by_uid: HashMap<u32, RuleSet>,
}

/// A policy, and what is doubtful in it.
#[derive(Debug)]
pub struct Compiled {
    /// The policy.
    pub policy: Policy,
    /// Warnings, sorted by source and place.
    pub warnings: Vec<Diagnostic>,
    /// The agents that are bound to executables, for whoever can look at files.
    pub programs: Vec<Programs>,
}

/// What an agent says about files and units of the machine.
#[derive(Debug)]
pub struct Programs {
    /// The agent.
    pub agent: Arc<str>,
    /// The units in which it lives, by exact name.
    pub units: Vec<String>,
    /// Its executables, perhaps with `*` inside segments.
    pub exes: Vec<NamedFile>,
}

/// A file that the policy names.
#[derive(Debug)]
pub struct NamedFile {
    /// Its path.
    pub path: Box<str>,
    at: Diagnostic,
}

impl NamedFile {
    /// A warning at the place where the policy names the file.
    #[must_use]
    pub fn warning(&self, code: &'static str, message: String, help: &str) -> Diagnostic {
        Diagnostic { code, message, help: Some(help.to_owned()), ..self.at.clone() }
    }
}

impl Programs {
    fn of(drafted: &draft::DraftAgent, report: &Report<'_>) -> Option<Self> {
        let exes =
            drafted.exes.iter().map(|(path, place)| NamedFile { path: path.clone(), at: report.at(place) });
        let exes: Vec<NamedFile> = exes.collect();
        let agent = &drafted.agent;
        let units = match &agent.place {
            Cgroups::Units(units) => units.iter().map(ToString::to_string).collect(),
            Cgroups::Literal(_) | Cgroups::Anywhere => Vec::new(),
        };
        (!exes.is_empty()).then(|| Self { agent: Arc::clone(&agent.name), units, exes })
    }
}

impl Policy {
    /// Compiles a policy from its files; the first is the main file. All errors come at once, with the warnings.
    pub fn compile(sources: &[Source], context: &Context) -> Result<Compiled, Vec<Diagnostic>> {
        let mut report = Report::new(sources);
        let documents: Vec<Document> =
            (0..).zip(sources).map(|(at, source)| shape::read(at, source, &mut report)).collect();
        let policy = build(&documents, context, &mut report);
        match policy {
            Some((policy, programs)) if !report.has_errors() => {
                Ok(Compiled { policy, warnings: report.finish(), programs })
            }
            Some(_) | None => Err(report.finish()),
        }
    }

    /// Whether denials are carried out where no rule says otherwise.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What the policy says about the daemon.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Which clouds the policy chose.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// The clouds that it judges by.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Which callers in other network namespaces it speaks about, if of any.
    #[must_use]
    pub fn containers(&self) -> Option<&Containers> {
        self.containers.as_ref()
    }

    /// Whether any agent is bound to a file's digest, so that somebody has to compute them.
    #[must_use]
    pub fn needs_digest(&self) -> bool {
        self.agents.iter().any(|agent| !agent.sha256.is_empty())
    }

    /// The executables that agents are bound to: absolute paths, perhaps with `*` inside segments.
    pub fn executables(&self) -> impl Iterator<Item = &str> {
        self.agents.iter().flat_map(|agent| &agent.exe).map(|exe| &**exe)
    }

    /// The headers by which rules tell requests apart, in lower case; of one rule, or of all.
    pub fn headers<'a>(&'a self, rule: Option<&'a str>) -> impl Iterator<Item = &'a str> {
        let rules = self.rules.iter().filter(move |one| rule.is_none_or(|name| &*one.name == name));
        rules.flat_map(|one| &one.headers).map(|name| &**name)
    }

    /// Whether anything can be refused: the policy's mode is enforce, or a rule's own is.
    #[must_use]
    pub fn can_refuse(&self) -> bool {
        self.mode == Mode::Enforce || self.rules.iter().any(|rule| rule.mode == Some(Mode::Enforce))
    }
}

fn build(
    documents: &[Document],
    context: &Context,
    report: &mut Report<'_>,
) -> Option<(Policy, Vec<Programs>)> {
    let Some(main) = documents.first() else {
        report.error("no-source", "there is no policy file", &Place { source: 0, span: None });
        return None;
    };
    let mode = mode(main, report);
    let aggregate = aggregate::read(main, report);
    let degraded = degraded::read(main, report);
    let (selection, catalogue) = catalogue(main, documents, context, report);
    let settings = settings::read(main, &context.accounts, report);
    let named = main.guard.as_ref().and_then(|guard| guard.get_ref().decoys.as_ref());
    let canaries = decoy::read(main, named.filter(|_| settings.decoys.is_some()), &context.canaries, report);
    let everyone = grants(documents, |document| document.everyone.as_ref(), report);
    let unattributed = grants(documents, |document| document.unattributed.as_ref(), report);
    let v1 = V1::read(main, main.v1.as_ref(), report).unwrap_or_default();
    let bind_tokens = BindTokens::read(main, main.bind_tokens.as_ref(), report).unwrap_or_default();
    let containers = containers::read(main, &context.uplinks, report);
    let mut draft = draft::Draft::read(documents, &context.accounts, report);
    let chosen: Vec<&str> = catalogue.clouds().iter().map(|cloud| cloud.id()).collect();
    // Of a policy with errors some pieces are missing, and warnings about the rest would mislead.
    if !report.has_errors() {
        let lint = lint::Lint {
            mode,
            everyone,
            v1,
            containers: containers.as_ref(),
            canaries: canaries.as_ref(),
            settings: &settings,
            selection: &selection,
            chosen: &chosen,
            catalogue: &catalogue,
            documents,
            draft: &draft,
        };
        lint.run(report);
        degraded::lint(degraded, context.degraded, main, report);
    }
    let programs = draft.agents.iter().filter_map(|drafted| Programs::of(drafted, report)).collect();
    let (rules_for_all, rules_by_uid) = share_out(&mut draft);
    let agents: Vec<Agent> = draft.agents.into_iter().map(|drafted| drafted.agent).collect();
    let rules: Vec<Rule> = draft.rules.into_iter().map(|drafted| drafted.rule).collect();
    let agent_index = AgentIndex::new(&agents);
    let speaks_of_v1 = v1 != V1::Allow || agents.iter().any(|agent| agent.v1.is_some());
    let policy = Policy {
        mode,
        aggregate,
        degraded,
        settings,
        selection,
        catalogue,
        everyone,
        unattributed,
        v1,
        bind_tokens,
        speaks_of_v1,
        containers,
        canaries,
        agents,
        rules,
        agent_index,
        rules_for_all,
        rules_by_uid,
    };
    Some((policy, programs))
}

/// Gives every rule to those whom it speaks about.
fn share_out(draft: &mut draft::Draft) -> (RuleSet, HashMap<u32, RuleSet>) {
    let mut for_all: Vec<Id> = Vec::new();
    let mut by_uid: HashMap<u32, Vec<Id>> = HashMap::new();
    let mut by_agent: HashMap<Id, Vec<Id>> = HashMap::new();
    for (id, drafted) in (0..).zip(&draft.rules) {
        match (&drafted.agents, &drafted.rule.uids) {
            (Some(agents), _) => agents.iter().for_each(|agent| by_agent.entry(*agent).or_default().push(id)),
            (None, Some(uids)) => uids.iter().for_each(|uid| by_uid.entry(*uid).or_default().push(id)),
            (None, None) => for_all.push(id),
        }
    }
    let rules: Vec<&Rule> = draft.rules.iter().map(|drafted| &drafted.rule).collect();
    for (id, drafted) in (0..).zip(&mut draft.agents) {
        drafted.agent.rules = RuleSet::new(by_agent.remove(&id).unwrap_or_default(), &rules);
    }
    let by_uid = by_uid.into_iter().map(|(uid, ids)| (uid, RuleSet::new(ids, &rules))).collect();
    (RuleSet::new(for_all, &rules), by_uid)
}

fn mode(main: &Document, report: &mut Report<'_>) -> Mode {
    if let Some(mode) = &main.mode {
        return read_mode(main, mode, report).unwrap_or(Mode::Audit);
    }

    report
        .warning(
            "no-mode",
            "the policy has no `mode`, so nothing is refused",
            &Place { source: main.source, span: None },
        )
        .help("write mode = \"audit\" or mode = \"enforce\"");
    Mode::Audit
}

/// Reads the name of a mode.
pub(super) fn read_mode(document: &Document, mode: &Name, report: &mut Report<'_>) -> Option<Mode> {
    let known = [Mode::Audit, Mode::Enforce];
    let found = known.into_iter().find(|known| known.name() == mode.get_ref());
    if found.is_none() {
        let help = did_you_mean(mode.get_ref(), known.into_iter().map(Mode::name));
        report
            .error("unknown-mode", "the mode is \"audit\" or \"enforce\"", &document.place(mode.span()))
            .maybe_help(help);
    }
    found
}

fn catalogue(
    main: &Document,
    documents: &[Document],
    context: &Context,
    report: &mut Report<'_>,
) -> (Selection, Catalogue) {
    let selection = selection(main, report);
    let detected: Vec<&str> = context.detected.iter().map(String::as_str).collect();
    let chosen = match Catalogue::choose(&selection, &detected) {
        Ok(catalogue) => catalogue,
        Err(error) => {
            // A name in the policy has been told already, with its own place.
            if selection == Selection::Auto {
                report.error("unknown-cloud", error.to_string(), &Place { source: main.source, span: None });
            }
            Catalogue::builtin().clone()
        }
    };
    let with = add(chosen.clone(), documents, report);
    (selection, with.unwrap_or(chosen))
}

/// Adds what the files add, one at a time, so that each error has its own place.
fn add(mut catalogue: Catalogue, documents: &[Document], report: &mut Report<'_>) -> Option<Catalogue> {
    let mut endpoints = Vec::new();
    let mut resources = Vec::new();
    for document in documents {
        for endpoint in &document.endpoints {
            let one = std::slice::from_ref(endpoint.get_ref());
            match catalogue.clone().with_additions(one, &[]) {
                Ok(_) => endpoints.push(endpoint.get_ref().clone()),
                Err(error) => {
                    report.error("endpoint", error.to_string(), &document.place(endpoint.span()));
                }
            }
        }
        for resource in &document.resources {
            let one = std::slice::from_ref(resource.get_ref());
            match catalogue.clone().with_additions(&[], one) {
                Ok(_) => resources.push(resource.get_ref().clone()),
                Err(error) => {
                    report.error("resource", error.to_string(), &document.place(resource.span()));
                }
            }
        }
    }
    if endpoints.is_empty() && resources.is_empty() {
        return None;
    }
    match catalogue.clone().with_additions(&endpoints, &resources) {
        Ok(with) => catalogue = with,
        Err(error) => {
            report.error("resource", error.to_string(), &Place { source: 0, span: None });
        }
    }
    Some(catalogue)
}

fn selection(main: &Document, report: &mut Report<'_>) -> Selection {
    let Some(cloud) = &main.cloud else { return Selection::Auto };
    let names = &cloud.get_ref().0;
    match names.iter().map(|name| name.get_ref().as_str()).collect::<Vec<_>>().as_slice() {
        [] => {
            empty_list("cloud", &main.place(cloud.span()), report);
            Selection::All
        }
        ["auto"] => Selection::Auto,
        ["all"] => Selection::All,
        _ => {
            for name in names {
                cloud_ids(main, name, report);
            }
            Selection::Named(names.iter().map(|name| name.get_ref().clone()).collect())
        }
    }
}

/// The ids of the clouds that a name means: a cloud, or a family of them.
pub(super) fn cloud_ids(document: &Document, name: &Name, report: &mut Report<'_>) -> Vec<&'static str> {
    let known = Catalogue::builtin().clouds();
    let ids: Vec<&'static str> =
        known.iter().filter(|cloud| cloud.answers_to(name.get_ref())).map(|cloud| cloud.id()).collect();
    if ids.is_empty() {
        let names: BTreeSet<&str> = known.iter().flat_map(|cloud| [cloud.family(), cloud.id()]).collect();
        let all = || format!("known are {}", names.iter().copied().collect::<Vec<_>>().join(", "));
        let help = did_you_mean(name.get_ref(), names.iter().copied()).unwrap_or_else(all);
        let message = format!("there is no cloud `{}`", name.get_ref());
        report.error("unknown-cloud", message, &document.place(name.span())).help(help);
    }
    ids
}

fn grants<'d>(
    documents: &'d [Document],
    table: impl Fn(&'d Document) -> Option<&'d toml::Spanned<GrantTable>>,
    report: &mut Report<'_>,
) -> Classes {
    let mut all = Classes::EMPTY;
    for document in documents {
        if let Some(table) = table(document) {
            all = all.union(classes(document, &table.get_ref().allow.0, report));
        }
    }
    all
}

/// Reads names of classes.
pub(super) fn classes(document: &Document, names: &[Name], report: &mut Report<'_>) -> Classes {
    let mut read = Classes::EMPTY;
    for name in names {
        if let Some(class) = Class::from_name(name.get_ref()) {
            read = read.with(class);
        } else {
            let known = || Class::ALL.into_iter().map(Class::name);
            let help = did_you_mean(name.get_ref(), known());
            let help =
                help.unwrap_or_else(|| format!("classes are {}", known().collect::<Vec<_>>().join(", ")));
            let message = format!("there is no class `{}`", name.get_ref());
            report.error("unknown-class", message, &document.place(name.span())).help(help);
        }
    }
    read
}

/// An empty list must not be read as "any": `agent = []` would open a rule to everybody.
pub(super) fn empty_list(key: &str, place: &Place, report: &mut Report<'_>) {
    report
        .error("empty-list", format!("`{key}` is an empty list, which would match nothing"), place)
        .help("leave the key out if it should not matter");
}

/// The uid of a name; a warning if this machine has no such user.
pub(super) fn uid(
    document: &Document,
    user: &Name,
    accounts: &Accounts,
    report: &mut Report<'_>,
) -> Option<u32> {
    let found = accounts.uid(user.get_ref());
    if found.is_none() {
        let help = did_you_mean(user.get_ref(), accounts.user_names());
        report
            .warning(
                "unknown-user",
                format!("this machine has no user `{}`", user.get_ref()),
                &document.place(user.span()),
            )
            .help(help.unwrap_or_else(|| {
                "nobody matches this name until the user exists and the policy is loaded again".to_owned()
            }));
    }
    found
}

/// A name as the policy keeps it.
pub(super) fn shared(name: &Name) -> Arc<str> {
    Arc::from(name.get_ref().as_str())
}
