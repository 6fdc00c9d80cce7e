//! The schema of an audit event, in Elastic Common Schema names; docs/audit-events.md tells each field.
//!
//! Everything in it that a caller wrote is bounded and scrubbed before it gets here. JSON escapes control
//! characters, so that one event is always one line.

use std::borrow::Cow;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use crate::cloud::TokenHolder;

/// The version of this schema. Fields may be added within a version; none changes its meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// The technique that a refused request would have been: Cloud Instance Metadata API (MITRE ATT&CK).
pub const TECHNIQUE: &str = "T1552.005";

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// One request, judged.
    Request,
    /// A connection whose bytes could not be judged, passed on untouched in audit mode.
    Unjudged,
    /// A connection through an opaque door (TLS or gRPC), judged by its caller alone.
    Opaque,
    /// A connection that was closed before a request was read.
    Connection,
    /// Several alike things that were counted instead of told one by one.
    Aggregate,
    /// A program that named a metadata service on its command line when it started.
    Command,
    /// Something about the guard itself: a reload, a changed redirect, lost events.
    Guard,
}

/// What became of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Sent to the metadata service, and its answer sent to the caller.
    Forwarded,
    /// Answered by the guard.
    Refused,
    /// Passed on as bytes.
    Tunnelled,
    /// The metadata service did not answer.
    UpstreamFailed,
    /// The caller left before the answer was complete.
    CallerLeft,
    /// Closed by the guard.
    Closed,
}

/// How the guard asked the service, where the policy wants TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamTls {
    /// Over TLS.
    Established,
    /// Not over TLS: the service does not speak it, or not with this machine.
    Declined,
    /// Not over TLS: the certificates are not there.
    NoCertificate,
    /// Not over TLS: this is where the client's certificate comes from.
    Bootstrap,
    /// Not at all.
    Failed,
}

/// Where the process fields come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessSource {
    /// Looked up for this request.
    Fresh,
    /// Looked up for an earlier request on the same socket.
    Cached,
    /// Not looked up: the rule did not need it, and the look-ups' budget was spent.
    Skipped,
}

/// One audit event. Absent fields are left out.
#[derive(Debug, Clone, Serialize)]
#[expect(
    missing_docs,
    reason = "each field is named after the schema's field and told in docs/audit-events.md"
)]
pub struct Event<'a> {
    #[serde(rename = "@timestamp")]
    pub timestamp: String,
    #[serde(rename = "ecs.version")]
    pub ecs_version: &'static str,
    #[serde(rename = "event.dataset")]
    pub dataset: &'static str,
    #[serde(rename = "imds_guard.schema")]
    pub schema: u32,
    #[serde(rename = "event.id")]
    pub id: Cow<'a, str>,
    #[serde(rename = "event.action")]
    pub action: Action,
    #[serde(rename = "event.outcome")]
    pub outcome: &'static str,
    #[serde(rename = "event.severity")]
    pub severity: u8,
    #[serde(rename = "event.duration", skip_serializing_if = "Option::is_none")]
    pub duration_ns: Option<u64>,
    #[serde(rename = "message", skip_serializing_if = "Option::is_none")]
    pub message: Option<Cow<'a, str>>,

    #[serde(rename = "imds_guard.mode", skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    #[serde(rename = "imds_guard.verdict", skip_serializing_if = "Option::is_none")]
    pub verdict: Option<&'static str>,
    #[serde(rename = "imds_guard.would_deny", skip_serializing_if = "Option::is_none")]
    pub would_deny: Option<bool>,
    #[serde(rename = "imds_guard.result", skip_serializing_if = "Option::is_none")]
    pub result: Option<Outcome>,
    #[serde(rename = "imds_guard.reason", skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    #[serde(rename = "imds_guard.faults", skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<&'static str>,
    #[serde(rename = "rule.name", skip_serializing_if = "Option::is_none")]
    pub rule: Option<Cow<'a, str>>,
    #[serde(rename = "imds_guard.agent", skip_serializing_if = "Option::is_none")]
    pub agent: Option<Cow<'a, str>>,
    #[serde(rename = "imds_guard.classes", skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<&'static str>,
    #[serde(rename = "imds_guard.withheld", skip_serializing_if = "Vec::is_empty")]
    pub withheld: Vec<&'static str>,
    #[serde(rename = "imds_guard.decoy", skip_serializing_if = "Option::is_none")]
    pub decoy: Option<bool>,
    #[serde(rename = "imds_guard.issued.key_id", skip_serializing_if = "Option::is_none")]
    pub issued_key: Option<Cow<'a, str>>,
    #[serde(rename = "imds_guard.issued.principal", skip_serializing_if = "Option::is_none")]
    pub issued_principal: Option<Cow<'a, str>>,
    #[serde(rename = "imds_guard.issued.scope", skip_serializing_if = "Option::is_none")]
    pub issued_scope: Option<Cow<'a, str>>,
    #[serde(rename = "imds_guard.issued.expires", skip_serializing_if = "Option::is_none")]
    pub issued_expires: Option<Cow<'a, str>>,
    #[serde(rename = "imds_guard.issued.unread", skip_serializing_if = "Option::is_none")]
    pub issued_unread: Option<&'static str>,
    #[serde(rename = "cloud.provider", skip_serializing_if = "Option::is_none")]
    pub cloud: Option<Cow<'a, str>>,
    #[serde(rename = "threat.technique.id", skip_serializing_if = "Option::is_none")]
    pub technique: Option<&'static str>,

    #[serde(rename = "http.request.method", skip_serializing_if = "Option::is_none")]
    pub method: Option<Cow<'a, str>>,
    #[serde(rename = "url.path", skip_serializing_if = "Option::is_none")]
    pub path: Option<Cow<'a, str>>,
    #[serde(rename = "url.query", skip_serializing_if = "Option::is_none")]
    pub query: Option<Cow<'a, str>>,
    #[serde(rename = "url.original", skip_serializing_if = "Option::is_none")]
    pub original: Option<Cow<'a, str>>,
    #[serde(rename = "user_agent.original", skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<Cow<'a, str>>,
    #[serde(rename = "imds_guard.session", skip_serializing_if = "Option::is_none")]
    pub session: Option<&'static str>,
    #[serde(rename = "imds_guard.from_memory", skip_serializing_if = "Option::is_none")]
    pub from_memory: Option<bool>,
    #[serde(rename = "imds_guard.upgraded", skip_serializing_if = "Option::is_none")]
    pub upgraded: Option<bool>,
    #[serde(rename = "imds_guard.token.holder", skip_serializing_if = "Option::is_none")]
    pub token_holder: Option<TokenHolder>,
    #[serde(rename = "imds_guard.token.fetched_by", skip_serializing_if = "Option::is_none")]
    pub token_of: Option<Cow<'a, str>>,
    #[serde(rename = "imds_guard.upstream.tls", skip_serializing_if = "Option::is_none")]
    pub upstream_tls: Option<UpstreamTls>,
    #[serde(rename = "http.response.status_code", skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(rename = "http.request.body.bytes", skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
    #[serde(rename = "http.response.body.bytes", skip_serializing_if = "Option::is_none")]
    pub response_bytes: Option<u64>,

    #[serde(rename = "source.ip", skip_serializing_if = "Option::is_none")]
    pub source_ip: Option<IpAddr>,
    #[serde(rename = "source.port", skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    #[serde(rename = "destination.ip", skip_serializing_if = "Option::is_none")]
    pub destination_ip: Option<IpAddr>,
    #[serde(rename = "destination.port", skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,

    #[serde(rename = "imds_guard.attribution", skip_serializing_if = "Option::is_none")]
    pub attribution: Option<&'static str>,
    #[serde(rename = "imds_guard.origin", skip_serializing_if = "Option::is_none")]
    pub origin: Option<&'static str>,
    #[serde(rename = "container.id", skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    #[serde(rename = "container.runtime", skip_serializing_if = "Option::is_none")]
    pub container_runtime: Option<&'static str>,
    #[serde(rename = "imds_guard.container.rootless", skip_serializing_if = "Option::is_none")]
    pub container_rootless: Option<bool>,
    #[serde(rename = "orchestrator.type", skip_serializing_if = "Option::is_none")]
    pub orchestrator: Option<&'static str>,
    #[serde(rename = "orchestrator.resource.id", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    #[serde(rename = "user.id", skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    #[serde(rename = "imds_guard.cgroup", skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Cow<'a, str>>,
    #[serde(rename = "service.name", skip_serializing_if = "Option::is_none")]
    pub unit: Option<Cow<'a, str>>,
    #[serde(rename = "imds_guard.process.source", skip_serializing_if = "Option::is_none")]
    pub process_source: Option<ProcessSource>,
    #[serde(rename = "imds_guard.process.holders", skip_serializing_if = "Option::is_none")]
    pub holders: Option<usize>,
    #[serde(rename = "imds_guard.process.doubt", skip_serializing_if = "Option::is_none")]
    pub doubt: Option<Cow<'a, str>>,
    #[serde(rename = "process.pid", skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(rename = "process.parent.pid", skip_serializing_if = "Option::is_none")]
    pub parent_pid: Option<u32>,
    #[serde(rename = "imds_guard.process.ancestors", skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<String>,
    #[serde(rename = "process.name", skip_serializing_if = "Option::is_none")]
    pub process_name: Option<Cow<'a, str>>,
    #[serde(rename = "process.executable", skip_serializing_if = "Option::is_none")]
    pub executable: Option<Cow<'a, str>>,
    #[serde(rename = "process.command_line", skip_serializing_if = "Option::is_none")]
    pub command_line: Option<Cow<'a, str>>,
    #[serde(rename = "process.hash.sha256", skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Cow<'a, str>>,

    #[serde(rename = "imds_guard.duration.attribution_us", skip_serializing_if = "Option::is_none")]
    pub attribution_us: Option<u64>,
    #[serde(rename = "imds_guard.duration.decision_us", skip_serializing_if = "Option::is_none")]
    pub decision_us: Option<u64>,
    #[serde(rename = "imds_guard.duration.upstream_us", skip_serializing_if = "Option::is_none")]
    pub upstream_us: Option<u64>,
    #[serde(rename = "imds_guard.count", skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl<'a> Event<'a> {
    /// An event of this kind at this moment, with every other field absent.
    #[must_use]
    pub fn now(id: impl Into<Cow<'a, str>>, action: Action) -> Self {
        Self::at(Timestamp::now(), id, action)
    }

    /// An event of this kind at that moment, with every other field absent.
    #[must_use]
    pub fn at(moment: Timestamp, id: impl Into<Cow<'a, str>>, action: Action) -> Self {
        Self {
            timestamp: format!("{moment:.6}"),
            ecs_version: "8.17.0",
            dataset: "imds-guard.audit",
            schema: SCHEMA_VERSION,
            id: id.into(),
            action,
            outcome: "unknown",
            severity: Severity::Info as u8,
            duration_ns: None,
            message: None,
            mode: None,
            verdict: None,
            would_deny: None,
            result: None,
            reason: None,
            faults: Vec::new(),
            rule: None,
            agent: None,
            classes: Vec::new(),
            withheld: Vec::new(),
            decoy: None,
            issued_key: None,
            issued_principal: None,
            issued_scope: None,
            issued_expires: None,
            issued_unread: None,
            cloud: None,
            technique: None,
            method: None,
            path: None,
            query: None,
            original: None,
            user_agent: None,
            session: None,
            from_memory: None,
            upgraded: None,
            token_holder: None,
            token_of: None,
            upstream_tls: None,
            status: None,
            request_bytes: None,
            response_bytes: None,
            source_ip: None,
            source_port: None,
            destination_ip: None,
            destination_port: None,
            attribution: None,
            origin: None,
            container_id: None,
            container_runtime: None,
            container_rootless: None,
            orchestrator: None,
            pod_uid: None,
            user_id: None,
            cgroup: None,
            unit: None,
            process_source: None,
            holders: None,
            doubt: None,
            pid: None,
            parent_pid: None,
            ancestors: Vec::new(),
            process_name: None,
            executable: None,
            command_line: None,
            sha256: None,
            attribution_us: None,
            decision_us: None,
            upstream_us: None,
            count: None,
        }
    }

    /// Appends the event to `line` as one JSON line.
    pub fn write(&self, line: &mut Vec<u8>) {
        // Writing strings and numbers to memory cannot fail.
        if serde_json::to_writer(&mut *line, self).is_ok() {
            line.push(b'\n');
        }
    }
}

/// How urgent an event is, as `event.severity` (syslog's numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Severity {
    /// The guard's promise is in danger: its redirect was removed, its policy is broken, events were lost. Or somebody took
    /// a decoy.
    Critical = 2,
    /// A refused request, or one that enforce would have refused.
    Warning = 4,
    /// Business as usual.
    Info = 6,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_caller_wrote_stays_on_one_line() {
        let mut event = Event::now("1", Action::Request);
        event.path = Some("/a\n{\"event.id\":\"forged\"}\r\u{1b}[31m\0".into());
        let mut line = Vec::new();
        event.write(&mut line);
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        assert!(!line.iter().any(|byte| *byte < 0x20 && *byte != b'\n'));
        let back: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(back["event.id"], "1");
    }

    #[test]
    fn absent_fields_are_left_out() {
        let mut line = Vec::new();
        Event::now("1", Action::Guard).write(&mut line);
        assert!(!String::from_utf8(line).unwrap().contains("null"));
    }
}
