//! One exchange, one event: begun before anything is decided, told when the last byte is out or the caller leaves.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::audit::event::{Action, Event, Outcome, ProcessSource, Severity, TECHNIQUE, UpstreamTls};
use crate::audit::{Slot, scrub};
use crate::caller::stamps::Flow;
use crate::caller::{Attribution, Origin, Processes, container};
use crate::cloud::{Asked, Class, Endpoint, TokenHolder};
use crate::hex;
use crate::policy::{Decision, Mode, Policy, Verdict};
use crate::redact::Unredactable;
use crate::request::{BodyKind, Fault, RawHead};

use super::connection::Connection;
use super::flood::Surge;
use super::identity::Identity;
use super::issued::{Told, Watch};
use super::limits::Exceeded;
use super::reply::ReplyBody;
use super::upstream::{UpstreamBody, UpstreamError};
use super::worker::Worker;

/// A request under way. Dropped before it is complete, it tells that the caller left.
pub struct Exchange {
    connection: Rc<Connection>,
    account: Option<Box<Account>>,
    slot: Option<Slot>,
    started: Instant,
    upstream_since: Option<Instant>,
    complete: bool,
    watch: Option<Box<Watch>>,
}

/// What an event will tell, as facts: the words are found once, when it is written, and nothing is copied for them.
struct Account {
    id: String,
    at: Timestamp,
    mode: Mode,
    judged: Option<Judged>,
    unredactable: Option<Unredactable>,
    from_memory: bool,
    decoy: bool,
    issued: Option<Box<Told>>,
    message: Option<String>,
    status: Option<u16>,
    sent: u64,
    upstream_us: Option<u64>,
    upstream_tls: Option<UpstreamTls>,
    duration_ns: Option<u64>,
    result: Outcome,
}

struct Judged {
    asked: Rc<Asked>,
    decision: Decision,
    took_us: u64,
    upgraded: bool,
}

/// A told exchange that may still wait for the look-up of its caller's processes.
pub struct Finished {
    account: Box<Account>,
    slot: Option<Slot>,
    worker: Rc<Worker>,
    endpoint: Endpoint,
}

impl Exchange {
    /// Begins the record of one request and reserves its place in the log.
    #[must_use]
    pub fn begin(connection: &Rc<Connection>, policy: &Policy) -> Self {
        let worker = &connection.worker;
        let account = Account {
            id: worker.event_id(),
            at: Timestamp::now(),
            mode: policy.mode(),
            judged: None,
            unredactable: None,
            from_memory: false,
            decoy: false,
            issued: None,
            message: None,
            status: None,
            sent: 0,
            upstream_us: None,
            upstream_tls: None,
            duration_ns: None,
            result: Outcome::CallerLeft,
        };
        Self {
            connection: Rc::clone(connection),
            account: Some(Box::new(account)),
            slot: worker.shared.sink.reserve(),
            started: Instant::now(),
            upstream_since: None,
            complete: false,
            watch: None,
        }
    }

    /// The event's id, by which a refused caller's owner finds it in the log.
    #[must_use]
    pub fn id(&self) -> &str {
        self.account.as_ref().map_or("", |account| &account.id)
    }

    /// Notes what was asked and how it was decided.
    pub fn judged(&mut self, asked: &Rc<Asked>, decision: &Decision) {
        let took_us = micros(self.started);
        let judged = Judged { asked: Rc::clone(asked), decision: decision.clone(), took_us, upgraded: false };
        self.note(|account| account.judged = Some(judged));
        self.connection.worker.counters.decided(asked, decision);
        self.upstream_since = Some(Instant::now());
    }

    /// Notes whether the request goes with a session token of the guard's own.
    pub fn upgraded(&mut self, upgraded: bool) {
        self.note(|account| {
            if let Some(judged) = &mut account.judged {
                judged.upgraded = upgraded;
            }
        });
    }

    /// Notes that it was decided otherwise when the answer came.
    pub fn judged_again(&mut self, decision: &Decision) {
        self.note(|account| {
            if let Some(judged) = &mut account.judged {
                judged.decision = decision.clone();
            }
        });
    }

    /// In enforce mode no credential is given out without a record: a full disk must not hide a theft.
    #[must_use]
    pub fn must_not_go_unrecorded(&self, asked: &Asked, decision: &Decision) -> bool {
        (self.slot.is_none() || self.connection.worker.shared.sink.is_failing())
            && decision.mode() == Mode::Enforce
            && decision.verdict() == Verdict::Allow
            && asked.touched.classes.contains(Class::Credentials)
    }

    /// Whether the log takes its event.
    #[must_use]
    pub fn can_be_told(&self) -> bool {
        self.slot.is_some() && !self.connection.worker.shared.sink.is_failing()
    }

    /// Notes that the guard gave a decoy.
    pub fn gave_decoy(&mut self, status: u16, issued: Option<Told>) {
        self.refused(status);
        self.note(|account| (account.decoy, account.issued) = (true, issued.map(Box::new)));
        self.connection.worker.counters.gave_decoy();
    }

    /// Notes that the guard answered itself.
    pub fn refused(&mut self, status: u16) {
        self.note(|account| (account.result, account.status) = (Outcome::Refused, Some(status)));
    }

    /// Notes that the service did not answer. Its client shall see what it would see without the guard.
    #[must_use]
    pub fn upstream_failed(mut self, error: UpstreamError) -> UpstreamError {
        let tls = matches!(error, UpstreamError::Tls(_)).then_some(UpstreamTls::Failed);
        self.broken();
        self.note(|account| (account.message, account.upstream_tls) = (Some(error.to_string()), tls));
        error
    }

    /// Notes whether the service was asked over TLS, where the policy wants that.
    pub fn asked_over(&mut self, tls: Option<UpstreamTls>) {
        self.note(|account| account.upstream_tls = tls);
    }

    /// Turns the service's response into the client's, which completes the record when it is out.
    #[must_use]
    pub fn stream(mut self, response: Response<UpstreamBody>) -> Response<ReplyBody> {
        self.forwarded(response.status());
        // A response without a body is never polled for one.
        self.complete = response.body().is_end_stream();
        response.map(|body| ReplyBody::upstream(body, self))
    }

    /// Gives the client what is left of the service's response.
    #[must_use]
    pub fn deliver(mut self, response: Response<Bytes>) -> Response<ReplyBody> {
        self.forwarded(response.status());
        self.complete = response.body().is_empty();
        response.map(|body| ReplyBody::own(body, self))
    }

    /// Notes that the service was not asked for this answer.
    pub fn remembered(&mut self) {
        self.note(|account| account.from_memory = true);
    }

    /// Notes that nothing is left of it, and why; gives the line for the caller.
    #[must_use]
    pub fn not_redacted(&mut self, why: Unredactable) -> String {
        self.note(|account| account.unredactable = Some(why));
        why.to_string()
    }

    fn forwarded(&mut self, status: StatusCode) {
        let took = self.upstream_since.map(micros);
        self.note(|account| {
            account.result = Outcome::Forwarded;
            account.status = Some(status.as_u16());
            account.upstream_us = took;
        });
    }

    /// Lets the answer be watched for the key in it.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = Some(Box::new(watch));
    }

    /// A part of the response's body passes.
    pub fn sent(&mut self, part: &Bytes) {
        self.note(|account| account.sent += part.len() as u64);
        if let Some(watch) = &mut self.watch {
            watch.see(part);
        }
    }

    /// The response broke off. By a reset the client can tell that from its end, however its end is told.
    pub fn broken(&mut self) {
        self.note(|account| account.result = Outcome::UpstreamFailed);
        self.complete = true;
        self.connection.wire.end_by_reset();
    }

    /// The response is out.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    fn note(&mut self, note: impl FnOnce(&mut Account)) {
        if let Some(account) = &mut self.account {
            note(account);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.connection.wire.answered();
        let Some(mut account) = self.account.take() else { return };
        if !self.complete {
            account.result = Outcome::CallerLeft;
        }
        if account.result == Outcome::Forwarded {
            account.issued = self.watch.take().map(|watch| Box::new(watch.finish()));
        }
        account.duration_ns = u64::try_from(self.started.elapsed().as_nanos()).ok();
        let Connection { worker, identity, endpoint, .. } = &*self.connection;
        let worker = Rc::clone(worker);
        identity.conclude(Finished { account, slot: self.slot.take(), worker, endpoint: *endpoint });
    }
}

impl Finished {
    /// Counts the request and writes its event, with what is known of the processes.
    pub fn tell(self, identity: &Identity, processes: &Processes, source: ProcessSource) {
        let account = &*self.account;
        let mut event = Event::at(account.at, account.id.as_str(), Action::Request);
        event.mode = Some(account.mode.name());
        describe_flow(&mut event, identity.flow);
        describe_identity(&mut event, identity);
        describe_processes(&mut event, processes, source);
        if let Some(Judged { asked, decision, took_us, upgraded }) = &account.judged {
            describe_asked(&mut event, asked);
            describe_decision(&mut event, decision);
            event.session = asked.session_version();
            event.token_holder = asked.token_holder().filter(|holder| *holder != TokenHolder::Unchecked);
            event.token_of = asked.token_of.as_deref().map(Cow::from);
            event.upgraded = upgraded.then_some(true);
            event.decision_us = Some(*took_us);
        }
        if let Some(why) = account.unredactable {
            event.verdict = Some("deny");
            event.reason = Some(why.code().into());
            event.message = Some(why.to_string().into());
            event.technique = Some(TECHNIQUE);
            event.severity = Severity::Warning as u8;
        }
        if let Some(told) = &account.issued {
            told.describe(&mut event);
        }
        if account.decoy {
            event.decoy = Some(true);
            event.severity = Severity::Critical as u8;
        }
        if let Some(message) = &account.message {
            event.message = Some(message.into());
        }
        event.upstream_tls = account.upstream_tls;
        event.result = Some(account.result);
        event.outcome = match account.result {
            Outcome::Forwarded | Outcome::Tunnelled => "success",
            Outcome::Refused | Outcome::UpstreamFailed | Outcome::CallerLeft | Outcome::Closed => "failure",
        };
        event.from_memory = account.from_memory.then_some(true);
        event.status = account.status;
        event.response_bytes = Some(account.sent);
        event.upstream_us = account.upstream_us;
        event.duration_ns = account.duration_ns;
        self.worker.counters.ended(&identity.attribution, self.endpoint, &event);
        if let Some(slot) = self.slot {
            slot.send(&event);
        }
    }
}

/// A connection that was closed before a request was read.
pub fn closed(worker: &Worker, identity: &Identity, reason: &'static str) {
    let mut event = Event::now(worker.event_id(), Action::Connection);
    event.outcome = "failure";
    event.severity = Severity::Warning as u8;
    event.result = Some(Outcome::Closed);
    event.reason = Some(reason.into());
    describe_flow(&mut event, identity.flow);
    describe_identity(&mut event, identity);
    worker.counters.closed();
    worker.shared.sink.tell(&event);
}

/// A connection above a limit. The first of a wave is told at once, the others together once a second.
pub fn flood(worker: &Worker, flow: Flow, uid: Option<u32>, exceeded: Exceeded) {
    worker.counters.over_limit(exceeded == Exceeded::PerUid);
    if let Some(surge) = worker.floods.count(exceeded, uid, flow) {
        tell_surge(worker, &surge);
    }
}

/// Tells what has come above a limit since the last time.
pub fn tell_floods(worker: &Worker) {
    worker.floods.due().iter().for_each(|surge| tell_surge(worker, surge));
}

fn tell_surge(worker: &Worker, surge: &Surge) {
    let reason = match surge.exceeded {
        Exceeded::Total => "too-many-connections",
        Exceeded::PerUid => "too-many-connections-of-uid",
    };
    let mut event = Event::now(worker.event_id(), Action::Aggregate);
    event.outcome = "failure";
    event.severity = Severity::Warning as u8;
    event.result = Some(Outcome::Closed);
    event.reason = Some(reason.into());
    event.count = Some(surge.count);
    describe_flow(&mut event, surge.flow);
    event.user_id = surge.uid.map(|uid| uid.to_string());
    worker.shared.sink.tell(&event);
}

/// A connection whose bytes audit mode passes on unread.
pub fn unjudged(worker: &Worker, identity: &Identity, endpoint: Endpoint, fault: Fault) {
    let mut event = Event::now(worker.event_id(), Action::Unjudged);
    event.outcome = "success";
    event.severity = Severity::Warning as u8;
    event.mode = Some(Mode::Audit.name());
    event.result = Some(Outcome::Tunnelled);
    event.verdict = Some("deny");
    event.would_deny = Some(true);
    event.reason = Some(fault.code().into());
    event.faults = vec![fault.code()];
    event.technique = Some(TECHNIQUE);
    event.destination_ip = Some(endpoint.addr);
    describe_flow(&mut event, identity.flow);
    describe_identity(&mut event, identity);
    worker.counters.unjudged(fault.code());
    worker.counters.ended(&identity.attribution, endpoint, &event);
    worker.shared.sink.tell(&event);
}

/// A connection through an opaque door.
pub fn opaque(
    worker: &Worker,
    identity: &Identity,
    decision: &Decision,
    result: Outcome,
    slot: Option<Slot>,
) {
    let mut event = Event::now(worker.event_id(), Action::Opaque);
    event.result = Some(result);
    event.outcome = if result == Outcome::Tunnelled { "success" } else { "failure" };
    describe_flow(&mut event, identity.flow);
    describe_identity(&mut event, identity);
    describe_decision(&mut event, decision);
    let original = identity.flow.original.0;
    worker.counters.decided_unread(decision);
    worker.counters.ended(&identity.attribution, Endpoint::new(original.ip(), original.port()), &event);
    if let Some(slot) = slot {
        slot.send(&event);
    }
}

fn describe_flow(event: &mut Event<'_>, flow: Flow) {
    let (client, original) = (flow.client.0, flow.original.0);
    event.source_ip = Some(client.ip());
    event.source_port = Some(client.port());
    event.destination_ip = Some(original.ip());
    event.destination_port = Some(original.port());
}

fn describe_identity<'a>(event: &mut Event<'a>, identity: &'a Identity) {
    event.attribution_us = u64::try_from(identity.took.as_micros()).ok();
    event.origin = (identity.origin == Origin::Container).then_some("container");
    event.attribution = Some(identity.attribution.code());
    match &identity.attribution {
        Attribution::Unattributed(_) => {}
        Attribution::Stamped(stamps) | Attribution::Degraded(stamps) => {
            event.user_id = Some(stamps.uid.to_string());
            let path = stamps.cgroup.path.as_str();
            describe_container(event, path);
            // The first unit, which the system's own manager made: a user's may name what it makes as it likes.
            event.cgroup = Some(scrub::bounded(path).into());
            event.unit = path
                .split('/')
                .find(|name| [".service", ".scope"].iter().any(|kind| name.ends_with(kind)))
                .map(|name| scrub::bounded(name).into());
        }
    }
}

fn describe_container(event: &mut Event<'_>, cgroup: &str) {
    let Some(container) = container::of(cgroup) else { return };
    event.container_id = Some(container.id.to_owned());
    event.container_runtime = Some(container.runtime.name());
    event.container_rootless = container.rootless.then_some(true);
    event.orchestrator = container.pod.map(|_| "kubernetes");
    event.pod_uid = container.pod.map(|uid| uid.to_string());
}

fn describe_processes<'a>(event: &mut Event<'a>, processes: &'a Processes, source: ProcessSource) {
    event.process_source = Some(source);
    let Processes::Holders(holders) = processes else { return };
    event.holders = Some(holders.len());
    let Some(first) = holders.first() else { return };
    event.pid = Some(first.pid);
    event.parent_pid = Some(first.parent);
    event.process_name = Some(first.comm.as_str().into());
    event.executable = Some(scrub::bounded(&first.exe.path).into());
    event.command_line = Some(scrub::command_line(&first.command_line));
    event.sha256 = first.exe.sha256.as_deref().map(Cow::from);
    event.doubt = (!first.exe.doubt.is_empty()).then(|| first.exe.doubt.as_str().into());
}

fn describe_asked<'a>(event: &mut Event<'a>, asked: &'a Asked) {
    event.faults = asked.faults.iter().map(|fault| fault.code()).collect();
    event.classes = asked.touched.classes.iter().map(Class::name).collect();
    event.cloud = asked.touched.clouds.iter().next().map(Cow::from);
    let Some(head) = &asked.head else { return };
    event.method = Some(scrub::bounded(head.method().as_str()).into());
    event.user_agent = head.values("user-agent").next().map(text);
    event.request_bytes = match head.body() {
        BodyKind::None => Some(0),
        BodyKind::Length(length) => Some(length),
        BodyKind::Chunked => None,
    };
    match &asked.target {
        Ok(target) => {
            event.path = Some(path(target.path().as_str(), asked.touched.secret_path));
            event.query = raw_query(head).map(|query| query_text(&query, asked.touched.secret_path).into());
        }
        // What has no normal form is shown as it came, without what could be a secret: a user and a password, an id
        // that is one (ECS), a query.
        Err(_) => event.original = shown(&String::from_utf8_lossy(head.target())).map(Cow::from),
    }
}

fn describe_decision<'a>(event: &mut Event<'a>, decision: &'a Decision) {
    event.verdict = Some(match decision.verdict() {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    });
    event.would_deny = Some(decision.would_deny());
    event.mode = Some(decision.mode().name());
    event.reason = Some(decision.reason().code().into());
    event.rule = decision.rule().map(|name| Cow::from(&**name));
    event.agent = decision.agent().map(|name| Cow::from(&**name));
    event.decoy = decision.would_give_decoy().then_some(true);
    event.withheld = decision.withheld().iter().map(Class::name).collect();
    if decision.verdict() == Verdict::Deny {
        event.technique = Some(TECHNIQUE);
        event.severity = Severity::Warning as u8;
        event.message = Some(decision.reason().to_string().into());
    }
}

/// The path, with its last segment as a digest if it is itself a secret: an ECS credential id works for whoever
/// reads it in a log.
fn path(path: &str, is_secret: bool) -> Cow<'_, str> {
    let path = scrub::bounded(path);
    match path.rsplit_once('/') {
        Some((directory, secret)) if is_secret => format!("{directory}/sha256:{}", digest(secret)).into(),
        _ => path.into(),
    }
}

fn query_text(query: &str, is_secret: bool) -> String {
    if is_secret { format!("sha256:{}", digest(query)) } else { scrub::query(query) }
}

fn shown(target: &str) -> Option<String> {
    let path = target.split('?').next().filter(|path| path.starts_with('/') && !path.contains('@'))?;
    let (directory, last) = scrub::bounded(path).rsplit_once('/')?;
    Some(format!("{directory}/{}", scrub::command_line(last)))
}

fn digest(secret: &str) -> String {
    let digest = Sha256::digest(secret);
    hex::encode(digest.get(..8).unwrap_or(&digest))
}

fn raw_query(head: &RawHead) -> Option<String> {
    let target = String::from_utf8_lossy(head.target());
    target.split_once('?').map(|(_, query)| query.to_owned())
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    match String::from_utf8_lossy(bytes) {
        Cow::Borrowed(text) => scrub::command_line(text),
        Cow::Owned(text) => scrub::command_line(&text).into_owned().into(),
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
