//! The session protocol (IMDSv2 and its kin): how a service hands out tokens, and how a request speaks of them.
//!
//! What a token looks like, whether one is still good, and what a malformed header means, the service alone decides:
//! nothing here judges a token. It only tells a request that shows one from a request that does not.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::request::{RawHead, Target};

use super::pattern::PathPattern;

/// How a service hands out the tokens that later reads must show.
#[derive(Debug, Clone)]
pub struct Session {
    /// The method of the token request.
    pub method: String,
    /// Its path.
    pub path: PathPattern,
    /// The header that asks for a lifetime, if it is not asked for in the body.
    pub ttl_header: Option<String>,
    /// The shortest and the longest lifetime, in seconds.
    pub ttl: (u32, u32),
    /// The header that shows the token.
    pub token_header: String,
    /// What stands before the token in that header, such as `Bearer`, and a space.
    pub token_scheme: Option<String>,
    /// The member of a JSON answer that holds the token; without one, the answer is the token.
    pub token_member: Option<String>,
    /// What a request without a token is told where tokens are required.
    pub required_status: u16,
    /// The path at which the guard asks for a token of its own, on behalf of a caller that speaks version 1. A service
    /// that never answered without a token has no version 1, hence no such callers.
    pub fetch: Option<String>,
}

/// How a request speaks the session protocol of the service that it is for.
#[derive(Debug, Clone)]
pub struct Spoken {
    /// The protocol.
    pub session: Arc<Session>,
    /// What the request makes of it.
    pub how: How,
}

/// What a request makes of the session protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// It asks for a token.
    Asks,
    /// It shows none: version 1.
    Without,
    /// It has the header, and in it nothing that could be one token: it is empty, or there are several. Some services
    /// may take that for no token at all.
    Malformed,
    /// It shows one.
    Shows(TokenHolder),
}

/// Whose token a request shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenHolder {
    /// Nobody looked.
    #[default]
    Unchecked,
    /// The caller itself fetched it, or was the first to use one that is older than the guard.
    Own,
    /// It may have been fetched before the guard started: nobody can know by whom.
    Older,
    /// Another caller fetched it.
    Foreign,
    /// Nobody fetched it by way of this guard, and it cannot be older.
    Unknown,
}

impl TokenHolder {
    /// The name that events and cases use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Own => "own",
            Self::Older => "older",
            Self::Foreign => "foreign",
            Self::Unknown => "unknown",
        }
    }

    /// The holder of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Unchecked, Self::Own, Self::Older, Self::Foreign, Self::Unknown];
        all.into_iter().find(|holder| holder.name() == name)
    }
}

impl fmt::Display for TokenHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Session {
    /// What a request makes of this protocol. `None` for its token path with another method, where a token is neither
    /// asked for nor needed.
    pub(super) fn spoken_in(&self, target: &Target) -> Option<How> {
        let head = target.head();
        if self.path.matches(target.path().segments()) {
            return (head.method().as_str() == self.method).then_some(How::Asks);
        }
        let mut values = head.values(&self.token_header);
        Some(match (values.next(), values.next()) {
            (None, _) => How::Without,
            (Some(value), None) if self.token(value).is_some() => How::Shows(TokenHolder::Unchecked),
            (Some(_), _) => How::Malformed,
        })
    }

    /// The token that a head shows, if it shows exactly one.
    #[must_use]
    pub fn token_of<'a>(&self, head: &'a RawHead) -> Option<&'a [u8]> {
        let mut values = head.values(&self.token_header);
        let value = values.next()?;
        if values.next().is_some() { None } else { self.token(value) }
    }

    /// The token in a header's value, without the scheme before it.
    fn token<'a>(&self, value: &'a [u8]) -> Option<&'a [u8]> {
        let value = value.trim_ascii();
        let token = match &self.token_scheme {
            None => value,
            Some(scheme) => {
                let (before, after) = value.split_at_checked(scheme.len())?;
                let is_scheme = before.eq_ignore_ascii_case(scheme.as_bytes()) && after.starts_with(b" ");
                if is_scheme { after.trim_ascii() } else { return None }
            }
        };
        (!token.is_empty()).then_some(token)
    }

    /// The token in the body of an answer to a token request. Akamai puts it into a list of one where the client
    /// prefers JSON.
    #[must_use]
    pub fn token_in<'a>(&self, body: &'a [u8]) -> Option<Cow<'a, str>> {
        let text = std::str::from_utf8(body).ok()?.trim_ascii();
        let token: Cow<'a, str> = match &self.token_member {
            Some(member) => {
                let answer: serde_json::Value = serde_json::from_str(text).ok()?;
                answer.get(member)?.as_str()?.to_owned().into()
            }
            None if text.starts_with('[') => {
                let [token] =
                    <[String; 1]>::try_from(serde_json::from_str::<Vec<String>>(text).ok()?).ok()?;
                token.into()
            }
            None => text.into(),
        };
        let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        is_token.then_some(token)
    }
}

impl Spoken {
    /// Which version a read speaks: `v2` if it shows a token, `v1` if it does not.
    #[must_use]
    pub fn version(&self) -> Option<&'static str> {
        match self.how {
            How::Asks => None,
            How::Without | How::Malformed => Some("v1"),
            How::Shows(_) => Some("v2"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(scheme: Option<&str>, member: Option<&str>) -> Session {
        Session {
            method: "PUT".to_owned(),
            path: PathPattern::parse("/*/api/token").unwrap(),
            ttl_header: None,
            ttl: (1, 60),
            token_header: "X-Token".to_owned(),
            token_scheme: scheme.map(str::to_owned),
            token_member: member.map(str::to_owned),
            required_status: 401,
            fetch: None,
        }
    }

    #[test]
    fn a_token_is_what_stands_behind_its_scheme() {
        let (plain, bearer) = (session(None, None), session(Some("Bearer"), None));
        assert_eq!(plain.token(b"abc=="), Some(&b"abc=="[..]));
        assert_eq!(plain.token(b"  "), None);
        assert_eq!(bearer.token(b"bearer  abc"), Some(&b"abc"[..]));
        for no in [&b"Bearer"[..], b"Bearer ", b"Bearerabc", b"Basic abc", b"B"] {
            assert_eq!(bearer.token(no), None);
        }
    }

    #[test]
    fn a_token_is_found_in_the_answers_that_services_give() {
        let (plain, member) = (session(None, None), session(None, Some("access_token")));
        assert_eq!(plain.token_in(b"AQAE==\n").as_deref(), Some("AQAE=="));
        assert_eq!(plain.token_in(b"[\"abc\"]").as_deref(), Some("abc"));
        assert_eq!(
            member.token_in(b"{\"access_token\":\"a.b.c\",\"expires_in\":300}").as_deref(),
            Some("a.b.c")
        );
        for no in [
            &b""[..],
            b" \n",
            b"[]",
            b"[\"a\",\"b\"]",
            b"[1]",
            b"two words",
            b"\xff\xfe",
            "t\u{f6}ken".as_bytes(),
        ] {
            assert_eq!(plain.token_in(no), None, "{no:?}");
        }
        for no in [&b"abc"[..], b"{}", b"{\"access_token\":1}", b"{\"access_token\":\"\"}"] {
            assert_eq!(member.token_in(no), None, "{no:?}");
        }
    }

    #[test]
    fn names_of_holders_read_back() {
        for holder in [
            TokenHolder::Unchecked,
            TokenHolder::Own,
            TokenHolder::Older,
            TokenHolder::Foreign,
            TokenHolder::Unknown,
        ] {
            assert_eq!(TokenHolder::from_name(holder.name()), Some(holder));
        }
        assert_eq!(TokenHolder::from_name("mine"), None);
    }
}
