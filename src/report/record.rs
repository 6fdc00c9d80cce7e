//! One audit event, read back without copying; docs/audit-events.md tells the fields.
//!
//! Every field may be missing: logs of several versions lie side by side. A field of a wrong type makes the whole
//! line a broken one, since the guard never wrote it.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::audit::event::SCHEMA_VERSION;
use crate::cloud::{Class, Classes};

/// Text of a log, borrowed from its line where no escape stands in it. Absent text is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text<'a>(Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

/// serde copies the text of an optional `Cow`; this one does not.
impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// What a line of the log said, as far as reports need it.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "each field is named after the schema's field and told in docs/audit-events.md"
)]
pub struct Record<'a> {
    #[serde(rename = "@timestamp", borrow)]
    pub timestamp: Text<'a>,
    #[serde(rename = "event.dataset", borrow)]
    pub dataset: Text<'a>,
    #[serde(rename = "imds_guard.schema")]
    pub schema: u32,
    #[serde(rename = "event.id", borrow)]
    pub id: Text<'a>,
    #[serde(rename = "event.action", borrow)]
    pub action: Text<'a>,
    #[serde(rename = "host.name", borrow)]
    pub host: Text<'a>,
    #[serde(rename = "imds_guard.mode", borrow)]
    pub mode: Text<'a>,
    #[serde(rename = "imds_guard.verdict", borrow)]
    pub verdict: Text<'a>,
    #[serde(rename = "imds_guard.would_deny")]
    pub would_deny: bool,
    #[serde(rename = "imds_guard.decoy")]
    pub decoy: bool,
    #[serde(rename = "imds_guard.result", borrow)]
    pub result: Text<'a>,
    #[serde(rename = "imds_guard.reason", borrow)]
    pub reason: Text<'a>,
    #[serde(rename = "imds_guard.faults", borrow)]
    pub faults: Vec<Text<'a>>,
    #[serde(rename = "rule.name", borrow)]
    pub rule: Text<'a>,
    #[serde(rename = "imds_guard.agent", borrow)]
    pub agent: Text<'a>,
    #[serde(rename = "imds_guard.classes", borrow)]
    pub classes: Vec<Text<'a>>,
    #[serde(rename = "cloud.provider", borrow)]
    pub cloud: Text<'a>,
    #[serde(rename = "http.request.method", borrow)]
    pub method: Text<'a>,
    #[serde(rename = "url.path", borrow)]
    pub path: Text<'a>,
    #[serde(rename = "url.query", borrow)]
    pub query: Text<'a>,
    #[serde(rename = "url.original", borrow)]
    pub original: Text<'a>,
    #[serde(rename = "user_agent.original", borrow)]
    pub user_agent: Text<'a>,
    #[serde(rename = "imds_guard.session", borrow)]
    pub session: Text<'a>,
    #[serde(rename = "imds_guard.upgraded")]
    pub upgraded: bool,
    #[serde(rename = "imds_guard.token.holder", borrow)]
    pub token_holder: Text<'a>,
    #[serde(rename = "http.response.status_code")]
    pub status: Option<u16>,
    #[serde(rename = "destination.ip")]
    pub destination_ip: Option<IpAddr>,
    #[serde(rename = "destination.port")]
    pub destination_port: Option<u16>,
    #[serde(rename = "imds_guard.attribution", borrow)]
    pub attribution: Text<'a>,
    #[serde(rename = "imds_guard.origin", borrow)]
    pub origin: Text<'a>,
    #[serde(rename = "user.id", borrow)]
    pub user_id: Text<'a>,
    #[serde(rename = "imds_guard.cgroup", borrow)]
    pub cgroup: Text<'a>,
    #[serde(rename = "imds_guard.process.source", borrow)]
    pub process_source: Text<'a>,
    #[serde(rename = "imds_guard.process.holders")]
    pub holders: Option<usize>,
    #[serde(rename = "imds_guard.process.doubt", borrow)]
    pub doubt: Text<'a>,
    #[serde(rename = "process.pid")]
    pub pid: Option<u32>,
    #[serde(rename = "process.name", borrow)]
    pub process_name: Text<'a>,
    #[serde(rename = "process.executable", borrow)]
    pub executable: Text<'a>,
    #[serde(rename = "process.command_line", borrow)]
    pub command_line: Text<'a>,
    #[serde(rename = "process.hash.sha256", borrow)]
    pub sha256: Text<'a>,
    #[serde(rename = "imds_guard.count")]
    pub count: Option<u64>,
    #[serde(rename = "message", borrow)]
    pub message: Text<'a>,
}

/// Why a line is no event that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// No JSON, or not of this schema's shape.
    Broken,
    /// JSON of somebody else.
    NotAnEvent,
    /// An event of a schema that this program does not know.
    OtherSchema,
}

impl<'a> Record<'a> {
    /// Reads one line.
    pub fn read(line: &'a [u8]) -> Result<Self, Unusable> {
        // serde would take a list for the fields in their order.
        if !line.trim_ascii_start().starts_with(b"{") {
            return Err(Unusable::Broken);
        }
        let record: Self = serde_json::from_slice(line).map_err(|_| Unusable::Broken)?;
        match (&*record.dataset, record.schema) {
            ("imds-guard.audit", SCHEMA_VERSION) => Ok(record),
            ("imds-guard.audit", _) => Err(Unusable::OtherSchema),
            _ => Err(Unusable::NotAnEvent),
        }
    }

    /// The moment, in seconds since 1970.
    #[must_use]
    pub fn seconds(&self) -> Option<i64> {
        self.timestamp.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
    }

    /// Whether it tells of one request (or of several alike) that was decided about.
    #[must_use]
    pub fn is_decision(&self) -> bool {
        matches!(&*self.action, "request" | "opaque" | "unjudged" | "aggregate") && !self.verdict.is_empty()
    }

    /// Whether it was, or under enforce would have been, refused.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        &*self.verdict == "deny"
    }

    /// How many requests it stands for.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.count.unwrap_or(1).max(1)
    }

    /// What it touched, as far as this program knows the classes.
    #[must_use]
    pub fn touched(&self) -> Classes {
        self.classes.iter().filter_map(|name| Class::from_name(name)).collect()
    }

    /// The uid on the caller's socket.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        self.user_id.parse().ok()
    }

    /// What was asked for, for people: the path, or of a target without a meaning the spelling.
    #[must_use]
    pub fn asked_path(&self) -> &str {
        match (&*self.path, &*self.original, &*self.action) {
            ("", "", "opaque") => "(encrypted)",
            ("", "", _) => "(unreadable)",
            ("", original, _) => original,
            (path, _, _) => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::event::{Action, Event};

    #[test]
    fn what_the_guard_writes_reads_back() {
        let mut event = Event::now("id-1", Action::Request);
        event.verdict = Some("deny");
        event.path = Some("/latest/\u{1b}x".into());
        event.classes = vec!["credentials"];
        event.user_id = Some("33".to_owned());
        let mut line = Vec::new();
        event.write(&mut line);
        let record = Record::read(&line).unwrap();
        assert_eq!((&*record.id, record.asked_path(), record.uid()), ("id-1", "/latest/\u{1b}x", Some(33)));
        assert!(record.is_decision() && record.is_denied());
        assert_eq!(record.touched(), Classes::of(Class::Credentials));
        assert!(record.seconds().is_some_and(|seconds| seconds > 1_700_000_000));
    }

    #[test]
    fn lines_that_are_no_events_say_why() {
        for (line, why) in [
            ("", Unusable::Broken),
            ("{", Unusable::Broken),
            ("[]", Unusable::Broken),
            ("{\"event.dataset\":\"imds-guard.audit\",\"imds_guard.schema\":\"1\"}", Unusable::Broken),
            (
                "{\"event.dataset\":\"imds-guard.audit\",\"event.id\":\"a\",\"event.id\":\"b\"}",
                Unusable::Broken,
            ),
            ("{\"event.dataset\":\"imds-guard.audit\",\"imds_guard.schema\":2}", Unusable::OtherSchema),
            ("{\"event.dataset\":\"nginx\"}", Unusable::NotAnEvent),
            ("{}", Unusable::NotAnEvent),
        ] {
            assert_eq!(Record::read(line.as_bytes()).unwrap_err(), why, "{line}");
        }
    }
}
