//! What a refused client is told: the status on which real clients give up, in the cloud's own manner.
//!
//! A refusal is never 401 (clients fetch a new session token and ask again), but for lack of such a token; never 5xx, 408, 410 or 429 (they
//! wait and ask again), never a redirect or a success. Which of the remaining ones is right depends on the
//! cloud and on what was asked; each cloud's file says so, and why.

use std::collections::BTreeMap;

use crate::request::{Fault, RawHead};

use super::asked::Asked;
use super::class::{Class, Classes};
use super::service::Cloud;
use super::source::RefusalEntry;

/// The statuses that a refusal may have.
const FINAL: [u16; 4] = [400, 403, 404, 405];

/// The body of a refusal whose file gives none.
const PLAIN: &str = "imds-guard refused this request: {reason} (event {event})\n";

/// What to send instead of the service's answer. The proxy adds the header that marks it as the guard's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers, `Content-Type` among them; the length is the sender's business.
    pub headers: Vec<(String, String)>,
    /// The body, with `{reason}` and `{event}` still to be filled in by [`Answer::render`].
    pub body: String,
}

impl Answer {
    /// The body with the reason and the event's id in their places, escaped if it is JSON.
    #[must_use]
    pub fn render(&self, reason: &str, event: &str) -> String {
        if self.is_json() {
            self.body.replace("{reason}", &json_inside(reason)).replace("{event}", &json_inside(event))
        } else {
            self.body.replace("{reason}", reason).replace("{event}", event)
        }
    }

    fn is_json(&self) -> bool {
        self.headers
            .iter()
            .any(|(name, value)| name.eq_ignore_ascii_case("content-type") && value.contains("json"))
    }

    fn plain(status: u16, headers: &[(String, String)]) -> Self {
        Reply { status, content_type: "text/plain".to_owned(), body: PLAIN.to_owned() }.answer(headers)
    }
}

/// The text as it stands between the quotes of a JSON string.
fn json_inside(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted.trim_start_matches('"').strip_suffix('"').unwrap_or_default().to_owned()
}

#[derive(Debug, Clone)]
struct Reply {
    status: u16,
    content_type: String,
    body: String,
}

impl Reply {
    fn answer(&self, shared: &[(String, String)]) -> Answer {
        let mut headers = vec![("Content-Type".to_owned(), self.content_type.clone())];
        headers.extend(shared.iter().cloned());
        Answer { status: self.status, headers, body: self.body.clone() }
    }
}

/// How one cloud says no.
#[derive(Debug, Clone)]
pub(super) struct Refusals {
    headers: Vec<(String, String)>,
    otherwise: Reply,
    by_class: BTreeMap<Class, Reply>,
}

/// What is wrong with a file's refusals.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusalError {
    /// Neither a class nor `default`.
    #[error("`{0}` is neither a class nor `default`")]
    Class(String),
    /// Clients would not give up on this.
    #[error("status {0} would make clients try again, or succeed")]
    Status(u16),
    /// There is nothing to say.
    #[error("there is no refusal for `{0}`")]
    Missing(&'static str),
}

impl Refusals {
    pub(super) fn new(
        headers: BTreeMap<String, String>,
        entries: BTreeMap<String, RefusalEntry>,
    ) -> Result<Self, RefusalError> {
        let (mut otherwise, mut by_class) = (None, BTreeMap::new());
        for (name, entry) in entries {
            if !FINAL.contains(&entry.status) {
                return Err(RefusalError::Status(entry.status));
            }
            let reply = Reply {
                status: entry.status,
                content_type: entry.content_type.unwrap_or_else(|| "text/plain".to_owned()),
                body: entry.body.unwrap_or_else(|| PLAIN.to_owned()),
            };
            if name == "default" {
                otherwise = Some(reply);
            } else {
                let class = Class::from_name(&name).ok_or(RefusalError::Class(name))?;
                by_class.insert(class, reply);
            }
        }
        let otherwise = otherwise.ok_or(RefusalError::Missing("default"))?;
        Ok(Self { headers: headers.into_iter().collect(), otherwise, by_class })
    }

    /// The words of a policy's own additions, which belong to no cloud.
    pub(super) fn neutral() -> Self {
        let otherwise = Reply { status: 404, content_type: "text/plain".to_owned(), body: PLAIN.to_owned() };
        Self { headers: Vec::new(), otherwise, by_class: BTreeMap::new() }
    }

    pub(super) fn speaks_of(&self, class: Class) -> bool {
        self.by_class.contains_key(&class)
    }

    /// The words for the most sensitive class that has its own.
    fn answer(&self, classes: Classes) -> Answer {
        let reply = classes.iter().find_map(|class| self.by_class.get(&class)).unwrap_or(&self.otherwise);
        reply.answer(&self.headers)
    }
}

/// The answer to a refused request, in the words of the cloud that knows what was asked.
///
/// A request without one meaning is answered as broken, whatever it may have asked for.
pub(super) fn answer<'a>(asked: &Asked, knowing: &[&'a Cloud], serving: &[&'a Cloud]) -> Answer {
    let head = asked.head.as_ref();
    if let Some(fault) = asked.faults.first() {
        let headers = voice(head, serving).map_or(&[][..], |cloud| &cloud.refusals.headers);
        return Answer::plain(status_of(*fault), headers);
    }
    let cloud = if knowing.is_empty() {
        voice(head, serving)
    } else {
        voice(head, knowing).or(knowing.first().copied())
    };
    match cloud {
        Some(cloud) => cloud.refusals.answer(asked.touched.classes),
        // Nobody knows where we are: "there is no such thing" ends every probe for a cloud.
        None => Answer::plain(404, &[]),
    }
}

/// The answer to a request whose session token is missing or another's. No other refusal may be a 401: it asks the
/// client to fetch a token and to come again, and here that is what helps.
pub(super) fn token_required(status: u16) -> Answer {
    Answer::plain(status, &[])
}

/// The only candidate, or else the one whose manners the request shows.
fn voice<'a>(head: Option<&RawHead>, candidates: &[&'a Cloud]) -> Option<&'a Cloud> {
    match candidates {
        [only] => Some(only),
        _ => candidates.iter().find(|cloud| head.is_some_and(|head| cloud.is_addressed_by(head))).copied(),
    }
}

fn status_of(fault: Fault) -> u16 {
    if fault.is_limit() { 431 } else { 400 }
}
