//! Watches an answer that hands out a key as it passes by, for the event's sake. It delays nothing and keeps nothing.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, header};

use crate::audit::event::Event;
use crate::audit::scrub;
use crate::cloud::Asked;
use crate::cloud::issued::{Issue, Issued};

/// Longer answers are not looked at, in bytes.
const ANSWER_BYTES: usize = 64 << 10;

/// An answer on its way.
pub struct Watch {
    issue: Arc<Issue>,
    asked: Rc<Asked>,
    seen: Vec<u8>,
    blind: Option<&'static str>,
}

impl Watch {
    /// Watches the answer with these headers.
    #[must_use]
    pub fn new(issue: Arc<Issue>, asked: Rc<Asked>, headers: &HeaderMap) -> Self {
        let is_encoded = headers.get_all(header::CONTENT_ENCODING).iter().any(|coding| coding != "identity");
        let blind = is_encoded.then_some("encoded");
        Self { issue, asked, seen: Vec::new(), blind }
    }

    /// A part passes.
    pub fn see(&mut self, part: &Bytes) {
        if self.blind.is_some() {
            return;
        }
        if self.seen.len() + part.len() > ANSWER_BYTES {
            (self.blind, self.seen) = (Some("too-large"), Vec::new());
            return;
        }
        self.seen.extend_from_slice(part);
    }

    /// The answer is out: what it says of the key in it, or why it says nothing.
    #[must_use]
    pub fn finish(self) -> Told {
        let unread = |why| Told { unread: Some(why), ..Told::default() };
        if let Some(why) = self.blind {
            return unread(why);
        }
        let target = self.asked.target.as_ref().ok();
        let Some(issued) = target.and_then(|target| self.issue.read(&self.seen, target)) else {
            return unread("unreadable");
        };
        Told {
            expires: expiry(&issued),
            key_id: issued.key_id.filter(|id| is_key_id(id)),
            principal: issued.principal.map(|text| scrub::command_line(&text).into_owned()),
            scope: issued.scope.map(|text| scrub::command_line(&text).into_owned()),
            unread: None,
        }
    }
}

/// What an event tells of an issued key.
#[derive(Debug, Default)]
pub struct Told {
    key_id: Option<String>,
    principal: Option<String>,
    scope: Option<String>,
    expires: Option<String>,
    unread: Option<&'static str>,
}

impl Told {
    /// Writes it into the event.
    pub fn describe<'a>(&'a self, event: &mut Event<'a>) {
        event.issued_key = self.key_id.as_deref().map(Cow::from);
        event.issued_principal = self.principal.as_deref().map(Cow::from);
        event.issued_scope = self.scope.as_deref().map(Cow::from);
        event.issued_expires = self.expires.as_deref().map(Cow::from);
        event.issued_unread = self.unread;
    }
}

/// Clouds spell the public names of keys with few letters; what is spelt otherwise is something else.
fn is_key_id(text: &str) -> bool {
    text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

fn expiry(issued: &Issued) -> Option<String> {
    let from_now = || jiff::Timestamp::now().as_second().checked_add(issued.expires_in?);
    let at = |seconds| jiff::Timestamp::from_second(seconds).ok().map(|time| time.to_string());
    match &issued.expires {
        Some(text) => text.parse::<jiff::Timestamp>().ok().map(|time| time.to_string()),
        None => issued.expires_on.or_else(from_now).and_then(at),
    }
}
