//! The explanation, step by step: for people and as JSON.

use std::io::{self, Write};

use serde::Serialize;

use super::Question;
use crate::caller::{Attribution, Caller, Processes};
use crate::cloud::{Classes, How, TokenHolder};
use crate::cmd::input::Loaded;
use crate::policy::{AgentFit, BindTokens, Line, Mode, Places, Trace, V1, Verdict};
use crate::report::escape::terminal;

/// Everything that is said about one request.
#[derive(Serialize)]
pub(super) struct Explanation {
    caller: CallerStep,
    request: RequestStep,
    touches: Classes,
    base: BaseStep,
    /// What nobody has here, whatever grants it: only processes tell the caller's unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_back: Option<Classes>,
    agents: Vec<AgentStep>,
    rules: Vec<RuleStep>,
    session: Option<SessionStep>,
    missing: Classes,
    /// What the answer is given without.
    withheld: Classes,
    verdict: Verdict,
    mode: Mode,
    mode_at: Option<Line>,
    /// What happens: `pass`, `pass-in-part`, `pass-and-record`, `decoy` or `refuse`.
    effect: &'static str,
    reason: &'static str,
    because: String,
    rule: Option<String>,
    agent: Option<String>,
    recorded: Option<String>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct CallerStep {
    uid: Option<u32>,
    cgroup: Option<String>,
    unattributed: Option<&'static str>,
    executables: Option<Vec<Exe>>,
}

#[derive(Serialize)]
struct Exe {
    path: String,
    doubt: Option<String>,
}

#[derive(Serialize)]
struct RequestStep {
    method: Option<String>,
    path: Option<String>,
    endpoint: Option<String>,
    clouds: Vec<&'static str>,
    faults: Vec<Fault>,
}

#[derive(Serialize)]
struct Fault {
    code: &'static str,
    meaning: &'static str,
}

#[derive(Serialize)]
struct BaseStep {
    table: &'static str,
    allow: Classes,
    at: Vec<Line>,
}

#[derive(Serialize)]
struct AgentStep {
    name: String,
    fits: bool,
    why: String,
    allow: Classes,
    at: Option<Line>,
}

#[derive(Serialize)]
struct SessionStep {
    /// `v1`, `v2`, or nothing for the token request itself.
    version: Option<&'static str>,
    /// What the policy does with it.
    does: &'static str,
    meaning: String,
    at: Option<Line>,
}

#[derive(Serialize)]
struct RuleStep {
    name: String,
    action: &'static str,
    counts: bool,
    through_agent: Option<String>,
    grants: Classes,
    mode: Mode,
    at: Option<Line>,
}

impl Explanation {
    pub(super) fn of(question: &Question, loaded: &Loaded) -> Self {
        let places = loaded.places();
        let decision = &question.decision;
        let trace = question.asked.as_ref().map(|asked| loaded.policy.trace(&question.caller, asked));
        let all = || crate::cloud::Class::ALL.into_iter().collect();
        let touches = trace.as_ref().map_or_else(all, |trace| trace.touched);
        let granted = trace.as_ref().map_or(Classes::EMPTY, Trace::granted);
        let effect = match (decision.verdict(), decision.mode()) {
            (Verdict::Allow, Mode::Enforce) if !decision.withheld().is_empty() => "pass-in-part",
            (Verdict::Allow, _) => "pass",
            (Verdict::Deny, Mode::Audit) => "pass-and-record",
            (Verdict::Deny, Mode::Enforce) if decision.is_decoy() => "decoy",
            (Verdict::Deny, Mode::Enforce) => "refuse",
        };
        Self {
            caller: caller(&question.caller),
            request: request(question),
            touches,
            base: base(&question.caller, trace.as_ref(), &places),
            held_back: trace.as_ref().map(|trace| trace.held_back).filter(|classes| !classes.is_empty()),
            agents: trace.iter().flat_map(|trace| agents(trace, &places)).collect(),
            rules: trace.iter().flat_map(|trace| rules(trace, &places)).collect(),
            session: session(question, loaded, trace.as_ref(), &places),
            missing: touches.minus(granted),
            withheld: decision.withheld(),
            verdict: decision.verdict(),
            mode: decision.mode(),
            mode_at: decision.rule().and_then(|rule| places.rule(rule)).or(places.mode.as_ref()).cloned(),
            effect,
            reason: decision.reason().code(),
            because: decision.reason().to_string(),
            rule: decision.rule().map(ToString::to_string),
            agent: decision.agent().map(ToString::to_string),
            recorded: question.recorded.clone(),
            notes: question.notes.clone(),
        }
    }

    /// One line for each step, the policy's line at its end.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        self.write_caller(out)?;
        self.write_request(out)?;
        step(out, "touches", &self.touches.to_string())?;
        let grants = |classes: Classes| {
            if classes.is_empty() { "grants nothing".to_owned() } else { format!("grants {classes}") }
        };
        let places: Vec<String> = self.base.at.iter().map(ToString::to_string).collect();
        step(out, self.base.table, &format!("{}{}", grants(self.base.allow), at(&places.join(", "))))?;
        for one in &self.agents {
            let what = if one.fits { grants(one.allow) } else { one.why.clone() };
            step(out, "agent", &format!("{}: {what}{}", one.name, place(one.at.as_ref())))?;
        }
        if self.agents.is_empty() {
            step(out, "agent", "the caller is none")?;
        }
        for one in &self.rules {
            let through = one.through_agent.as_ref().map(|name| format!(", for {name}")).unwrap_or_default();
            let what = match (one.action, one.counts) {
                (_, false) => "matches, but does not count for this caller".to_owned(),
                ("deny", true) => format!("denies ({})", mode_name(one.mode)),
                (_, true) => grants(one.grants),
            };
            step(out, "rule", &format!("{}: {what}{through}{}", one.name, place(one.at.as_ref())))?;
        }
        if self.rules.is_empty() {
            step(out, "rule", "none matches")?;
        }
        if let Some(held_back) = self.held_back {
            step(out, "degraded", &format!("{held_back} is held back: the kernel names no unit"))?;
        }
        if let Some(session) = &self.session {
            step(out, "session", &format!("{}{}", session.meaning, place(session.at.as_ref())))?;
        }
        if !self.withheld.is_empty() {
            let when = if self.mode == Mode::Audit { "enforce would withhold" } else { "without" };
            step(out, "answer", &format!("{when} {}", self.withheld))?;
        }
        let verdict = match self.effect {
            "pass" => "ALLOW",
            "pass-in-part" => "ALLOW, in part",
            "decoy" => "DENY, answered with a decoy (enforce)",
            "pass-and-record" => "DENY, recorded only (audit): it passes",
            _ => "DENY, refused (enforce)",
        };
        step(out, "verdict", &format!("{verdict}{}", place(self.mode_at.as_ref())))?;
        step(out, "because", &format!("{} ({})", self.because, self.reason))?;
        if let Some(recorded) = &self.recorded {
            step(out, "recorded", recorded)?;
        }
        for note in &self.notes {
            step(out, "note", note)?;
        }
        Ok(())
    }

    fn write_caller(&self, out: &mut impl Write) -> io::Result<()> {
        let who = match (&self.caller.unattributed, &self.caller.cgroup) {
            (None, Some(cgroup)) => format!("uid {} in {cgroup}", self.caller.uid.unwrap_or_default()),
            (why, _) => format!("not known ({})", why.unwrap_or("no-socket")),
        };
        step(out, "caller", &who)?;
        for exe in self.caller.executables.iter().flatten() {
            let doubt = exe.doubt.as_ref().map(|doubt| format!(" (its name proves nothing: {doubt})"));
            step(out, "runs", &format!("{}{}", exe.path, doubt.unwrap_or_default()))?;
        }
        Ok(())
    }

    fn write_request(&self, out: &mut impl Write) -> io::Result<()> {
        let request = &self.request;
        let method = request.method.as_deref().unwrap_or("?");
        let path = request.path.as_deref().unwrap_or("(no single meaning)");
        let endpoint = request.endpoint.as_deref().unwrap_or("an opaque door");
        step(out, "asks", &format!("{method} {path} at {endpoint}"))?;
        if !request.clouds.is_empty() {
            step(out, "known to", &request.clouds.join(", "))?;
        }
        for fault in &request.faults {
            step(out, "fault", &format!("{} ({})", fault.meaning, fault.code))?;
        }
        Ok(())
    }
}

fn step(out: &mut impl Write, what: &str, said: &str) -> io::Result<()> {
    writeln!(out, "{what:<14} {}", terminal(said))
}

fn at(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!("  [{place}]") }
}

fn place(line: Option<&Line>) -> String {
    line.map(|line| at(&line.to_string())).unwrap_or_default()
}

fn mode_name(mode: Mode) -> &'static str {
    mode.name()
}

fn caller(caller: &Caller) -> CallerStep {
    let executables = match &caller.processes {
        Processes::Skipped | Processes::Unknown => None,
        Processes::Holders(holders) => {
            let exe = |process: &crate::caller::Process| Exe {
                path: process.exe.path.clone(),
                doubt: (!process.exe.doubt.is_empty()).then(|| process.exe.doubt.clone()),
            };
            Some(holders.iter().map(exe).collect())
        }
    };
    let (uid, cgroup, unattributed) = match &caller.attribution {
        Attribution::Stamped(stamps) | Attribution::Degraded(stamps) => {
            (Some(stamps.uid), Some(stamps.cgroup.path.to_string()), None)
        }
        Attribution::Unattributed(why) => (None, None, Some(why.code())),
    };
    CallerStep { uid, cgroup, unattributed, executables }
}

fn request(question: &Question) -> RequestStep {
    let asked = question.asked.as_ref();
    let target = asked.and_then(|asked| asked.target.as_ref().ok());
    let faults = asked.iter().flat_map(|asked| &asked.faults);
    RequestStep {
        method: target.map(|target| target.method().as_str().to_owned()),
        path: target.map(|target| target.path().as_str().to_owned()),
        endpoint: asked.map(|asked| asked.endpoint.to_string()),
        clouds: asked.map(|asked| asked.touched.clouds.iter().collect()).unwrap_or_default(),
        faults: faults.map(|fault| Fault { code: fault.code(), meaning: fault.message() }).collect(),
    }
}

fn base(caller: &Caller, trace: Option<&Trace>, places: &Places) -> BaseStep {
    let allow = trace.map_or(Classes::EMPTY, |trace| trace.base);
    match caller.stamps() {
        Some(_) => BaseStep { table: "[everyone]", allow, at: places.everyone.clone() },
        None => {
            BaseStep { table: "[unattributed]", allow, at: places.unattributed.iter().cloned().collect() }
        }
    }
}

fn agents<'a>(trace: &'a Trace, places: &'a Places) -> impl Iterator<Item = AgentStep> + 'a {
    trace.agents.iter().map(|step| {
        let why = match step.fit {
            AgentFit::Is => "the caller is it".to_owned(),
            AgentFit::Doubt(doubt) => format!("would be it, but {doubt} ({})", doubt.code()),
            AgentFit::OtherUser => "lives in the same unit, as another user".to_owned(),
            AgentFit::Container => "is the same number, but in a container it is another user".to_owned(),
        };
        AgentStep {
            name: step.name.to_string(),
            fits: step.fit == AgentFit::Is,
            why,
            allow: step.allow,
            at: places.agent(&step.name).cloned(),
        }
    })
}

/// What the session protocol makes of the request: whether it shows a token, and what follows.
fn session(
    question: &Question,
    loaded: &Loaded,
    trace: Option<&Trace>,
    places: &Places,
) -> Option<SessionStep> {
    let spoken = question.asked.as_ref()?.spoken.as_ref()?;
    let bind = loaded.policy.bind_tokens();
    let (does, meaning, at) = match (&spoken.how, trace.and_then(|trace| trace.v1.as_ref())) {
        (How::Asks, _) => ("pass", "it asks for a token, which the service gives".to_owned(), None),
        (How::Shows(holder), _) => {
            let does = match (holder, bind) {
                (TokenHolder::Foreign | TokenHolder::Unknown, BindTokens::On) => "deny",
                _ => "pass",
            };
            let whose = match holder {
                TokenHolder::Unchecked => "whose it is was not looked up",
                TokenHolder::Own => "the caller fetched it",
                TokenHolder::Older => "it may be older than the guard",
                TokenHolder::Foreign => "another caller fetched it",
                TokenHolder::Unknown => "nobody here fetched it",
            };
            (
                does,
                format!("v2, it shows a token: {whose} (bind-tokens: {})", bind.name()),
                places.bind_tokens.clone(),
            )
        }
        (How::Without | How::Malformed, v1) => {
            let (v1, agent) = v1.map_or((loaded.policy.v1(), None), |step| (step.v1, step.agent.as_ref()));
            let by = agent.map(|name| format!(", says agent {name}")).unwrap_or_default();
            let at = agent.and_then(|name| places.agent(name)).or(places.v1.as_ref()).cloned();
            let what = match v1 {
                V1::Allow => "the service may take it or not",
                V1::Upgrade if question.decision.upgrades() => "the guard shows a token of its own",
                V1::Upgrade => {
                    "it would be sent with a token of the guard's, if it were allowed under enforce"
                }
                V1::Deny => "denied as where tokens are required",
            };
            (v1.name(), format!("v1, it shows no token: {what}{by}"), at)
        }
    };
    Some(SessionStep { version: spoken.version(), does, meaning, at })
}

fn rules<'a>(trace: &'a Trace, places: &'a Places) -> impl Iterator<Item = RuleStep> + 'a {
    trace.rules.iter().map(|step| RuleStep {
        name: step.name.to_string(),
        action: if step.denies { "deny" } else { "allow" },
        counts: step.counts,
        through_agent: step.agent.as_ref().map(ToString::to_string),
        grants: step.grants,
        mode: step.mode,
        at: places.rule(&step.name).cloned(),
    })
}
