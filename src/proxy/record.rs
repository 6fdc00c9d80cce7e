//! One exchange, one event: begun before anything is decided, told when the last byte is out or the caller leaves.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use http::{Response, StatusCode};
use sha2::{Digest as _, Sha256};

use crate::audit::event::{Action, Event, Outcome, ProcessSource, Severity, TECHNIQUE};
use crate::audit::{Slot, scrub};
use crate::caller::stamps::Flow;
use crate::caller::{Attribution, Processes};
use crate::cloud::{Asked, Class, Endpoint, TokenHolder};
use crate::hex;
use crate::policy::{Decision, Mode, Policy, Verdict};
use crate::redact::Unredactable;
use crate::request::{BodyKind, Fault, RawHead};

use super::connection::Connection;
use super::identity::Identity;
use super::limits::Exceeded;
use super::reply::ReplyBody;
use super::upstream::{UpstreamBody, UpstreamError};
use super::worker::Worker;

/// A request under way. Dropped before it is complete, it tells that the caller left.
pub struct Exchange {
    connection: Rc<Connection>,
    event: Option<Box<Event<'static>>>,
    slot: Option<Slot>,
    started: Instant,
    upstream_since: Option<Instant>,
    sent: u64,
    result: Outcome,
    complete: bool,
}

/// A told exchange that may still wait for the look-up of its caller's processes.
pub struct Finished {
    event: Box<Event<'static>>,
    slot: Option<Slot>,
}

impl Exchange {
    /// Begins the record of one request and reserves its place in the log.
    #[must_use]
    pub fn begin(connection: &Rc<Connection>, policy: &Policy) -> Self {
        let worker = &connection.worker;
        let mut event = Box::new(Event::now(worker.event_id(), Action::Request));
        event.mode = Some(policy.mode().name());
        describe_flow(&mut event, connection.identity.flow);
        Self {
            connection: Rc::clone(connection),
            event: Some(event),
            slot: worker.shared.sink.reserve(),
            started: Instant::now(),
            upstream_since: None,
            sent: 0,
            result: Outcome::CallerLeft,
            complete: false,
        }
    }

    /// The event's id, by which a refused caller's owner finds it in the log.
    #[must_use]
    pub fn id(&self) -> &str {
        self.event.as_ref().map_or("", |event| event.id.as_ref())
    }

    /// Notes what was asked and how it was decided.
    pub fn judged(&mut self, asked: &Asked, decision: &Decision) {
        let elapsed = micros(self.started);
        let Some(event) = &mut self.event else { return };
        event.decision_us = Some(elapsed);
        describe_asked(event, asked);
        event.session = asked.session_version();
        event.token_holder = asked.token_holder().filter(|holder| *holder != TokenHolder::Unchecked);
        event.token_of = asked.token_of.clone().map(Cow::from);
        describe_decision(event, decision);
        self.connection.worker.counters.decided(asked, decision);
        self.upstream_since = Some(Instant::now());
    }

    /// Notes whether the request goes with a session token of the guard's own.
    pub fn upgraded(&mut self, upgraded: bool) {
        if let Some(event) = &mut self.event {
            event.upgraded = upgraded.then_some(true);
        }
    }

    /// In enforce mode no credential is given out without a record: a full disk must not hide a theft.
    #[must_use]
    pub fn must_not_go_unrecorded(&self, asked: &Asked, decision: &Decision) -> bool {
        self.slot.is_none()
            && decision.mode() == Mode::Enforce
            && decision.verdict() == Verdict::Allow
            && asked.touched.classes.contains(Class::Credentials)
    }

    /// Notes that the guard answered itself.
    pub fn refused(&mut self, status: u16) {
        self.result = Outcome::Refused;
        if let Some(event) = &mut self.event {
            event.status = Some(status);
        }
    }

    /// Notes that the service did not answer. Its client shall see what it would see without the guard.
    #[must_use]
    pub fn upstream_failed(mut self, error: UpstreamError) -> UpstreamError {
        self.result = Outcome::UpstreamFailed;
        self.complete = true;
        if let Some(event) = &mut self.event {
            event.message = Some(error.to_string().into());
        }
        self.connection.wire.end_by_reset();
        error
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

    /// Notes that nothing is left of it, and why; gives the line for the caller.
    #[must_use]
    pub fn not_redacted(&mut self, why: Unredactable) -> String {
        if let Some(event) = &mut self.event {
            event.verdict = Some("deny");
            event.reason = Some(why.code().into());
            event.message = Some(why.to_string().into());
            event.technique = Some(TECHNIQUE);
            event.severity = Severity::Warning as u8;
        }
        why.to_string()
    }

    fn forwarded(&mut self, status: StatusCode) {
        self.result = Outcome::Forwarded;
        if let Some(event) = &mut self.event {
            event.status = Some(status.as_u16());
            event.upstream_us = self.upstream_since.map(micros);
        }
    }

    /// Counts bytes of the response's body.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// The response broke off. By a reset the client can tell that from its end, however its end is told.
    pub fn broken(&mut self) {
        self.result = Outcome::UpstreamFailed;
        self.complete = true;
        self.connection.wire.end_by_reset();
    }

    /// The response is out.
    pub fn complete(&mut self) {
        self.complete = true;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.connection.wire.answered();
        let Some(mut event) = self.event.take() else { return };
        let result = if self.complete { self.result } else { Outcome::CallerLeft };
        event.result = Some(result);
        event.outcome = match result {
            Outcome::Forwarded | Outcome::Tunnelled => "success",
            Outcome::Refused | Outcome::UpstreamFailed | Outcome::CallerLeft | Outcome::Closed => "failure",
        };
        event.response_bytes = Some(self.sent);
        event.duration_ns = u64::try_from(self.started.elapsed().as_nanos()).ok();
        let Connection { worker, identity, endpoint, .. } = &*self.connection;
        worker.counters.ended(&identity.attribution, *endpoint, &event);
        identity.conclude(Finished { event, slot: self.slot.take() });
    }
}

impl Finished {
    /// Writes the event, with what is known of the processes.
    pub fn tell(mut self, identity: &Identity, processes: &Processes, source: ProcessSource) {
        describe_identity(&mut self.event, identity);
        describe_processes(&mut self.event, processes, source);
        if let Some(slot) = self.slot {
            slot.send(&self.event);
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

/// A connection above a limit. One event a second for all of a worker's, so that a flood does not fill the log.
pub fn flood(worker: &Worker, flow: Flow, uid: Option<u32>, exceeded: Exceeded) {
    let reason = match exceeded {
        Exceeded::Total => "too-many-connections",
        Exceeded::PerUid => "too-many-connections-of-uid",
    };
    worker.counters.over_limit(exceeded == Exceeded::PerUid);
    if let Some(count) = worker.floods.count(Instant::now()) {
        let mut event = Event::now(worker.event_id(), Action::Aggregate);
        event.outcome = "failure";
        event.severity = Severity::Warning as u8;
        event.result = Some(Outcome::Closed);
        event.reason = Some(reason.into());
        event.count = Some(count);
        describe_flow(&mut event, flow);
        event.user_id = uid.map(|uid| uid.to_string());
        worker.shared.sink.tell(&event);
    }
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

fn describe_flow(event: &mut Event<'static>, flow: Flow) {
    let (client, original) = (flow.client.0, flow.original.0);
    event.source_ip = Some(client.ip());
    event.source_port = Some(client.port());
    event.destination_ip = Some(original.ip());
    event.destination_port = Some(original.port());
}

fn describe_identity(event: &mut Event<'static>, identity: &Identity) {
    event.attribution_us = u64::try_from(identity.took.as_micros()).ok();
    match &identity.attribution {
        Attribution::Unattributed(why) => event.attribution = Some(why.code()),
        Attribution::Stamped(stamps) => {
            event.attribution = Some("stamped");
            event.user_id = Some(stamps.uid.to_string());
            let path = stamps.cgroup.path.as_str();
            // The first unit, which the system's own manager made: a user's may name what it makes as it likes.
            event.cgroup = Some(scrub::bounded(path).to_owned().into());
            event.unit = path
                .split('/')
                .find(|name| [".service", ".scope"].iter().any(|kind| name.ends_with(kind)))
                .map(|name| scrub::bounded(name).to_owned().into());
        }
    }
}

fn describe_processes(event: &mut Event<'static>, processes: &Processes, source: ProcessSource) {
    event.process_source = Some(source);
    let Processes::Holders(holders) = processes else { return };
    event.holders = Some(holders.len());
    let Some(first) = holders.first() else { return };
    event.pid = Some(first.pid);
    event.parent_pid = Some(first.parent);
    event.process_name = Some(first.comm.clone().into());
    event.executable = Some(scrub::bounded(&first.exe.path).to_owned().into());
    event.command_line = Some(scrub::command_line(&first.command_line).into());
    event.sha256 = first.exe.sha256.clone().map(Cow::from);
    event.doubt = (!first.exe.doubt.is_empty()).then(|| first.exe.doubt.clone().into());
}

fn describe_asked(event: &mut Event<'static>, asked: &Asked) {
    event.faults = asked.faults.iter().map(|fault| fault.code()).collect();
    event.classes = asked.touched.classes.iter().map(Class::name).collect();
    event.cloud = asked.touched.clouds.iter().next().map(Cow::from);
    let Some(head) = &asked.head else { return };
    event.method = Some(scrub::bounded(head.method().as_str()).to_owned().into());
    event.user_agent = head.values("user-agent").next().map(text);
    event.request_bytes = match head.body() {
        BodyKind::None => Some(0),
        BodyKind::Length(length) => Some(length),
        BodyKind::Chunked => None,
    };
    match &asked.target {
        Ok(target) => {
            event.path = Some(path(target.path().as_str(), asked.touched.secret_path));
            event.query = raw_query(head).map(|query| query_text(&query, asked.touched.secret_path));
        }
        // What has no normal form is shown as it came, without what could be a secret: a user and a password, an id
        // that is one (ECS), a query.
        Err(_) => event.original = shown(&String::from_utf8_lossy(head.target())).map(Cow::from),
    }
}

fn describe_decision(event: &mut Event<'static>, decision: &Decision) {
    event.verdict = Some(match decision.verdict() {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    });
    event.would_deny = Some(decision.would_deny());
    event.mode = Some(decision.mode().name());
    event.reason = Some(decision.reason().code().into());
    event.rule = decision.rule().map(|name| name.to_string().into());
    event.agent = decision.agent().map(|name| name.to_string().into());
    event.withheld = decision.withheld().iter().map(Class::name).collect();
    if decision.verdict() == Verdict::Deny {
        event.technique = Some(TECHNIQUE);
        event.severity = Severity::Warning as u8;
        event.message = Some(decision.reason().to_string().into());
    }
}

/// The path, with its last segment as a digest if it is itself a secret: an ECS credential id works for whoever
/// reads it in a log.
fn path(path: &str, is_secret: bool) -> Cow<'static, str> {
    let path = scrub::bounded(path);
    match path.rsplit_once('/') {
        Some((directory, secret)) if is_secret => format!("{directory}/sha256:{}", digest(secret)).into(),
        _ => path.to_owned().into(),
    }
}

fn query_text(query: &str, is_secret: bool) -> Cow<'static, str> {
    if is_secret { format!("sha256:{}", digest(query)).into() } else { scrub::query(query).into() }
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

fn text(bytes: &[u8]) -> Cow<'static, str> {
    scrub::command_line(&String::from_utf8_lossy(bytes)).into()
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
