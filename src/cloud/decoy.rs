//! The forms in which a cloud hands out credentials, for answers that hold a canary's instead. Pure: what stands in a form
//! comes from a file of the operator's, and the time from whoever asks.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::pattern::PathPattern;
use crate::request::Target;

/// The answer to reads at some path, with places for what a canary says and for the time.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DecoyForm {
    /// The paths.
    pub path: PathPattern,
    /// The headers, in the service's own spelling.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// For how long the service's own credentials are good, in seconds.
    lifetime: u32,
    body: Template,
}

/// A text with places to be filled: `{name}` of small letters and hyphens; any other brace is itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A value of the canary's.
    Canary(String),
    Clock(Clock),
}

/// What the time says. Dates are without their zone, which is UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    Issued,
    IssuedOn,
    Expires,
    ExpiresOn,
    ExpiresIn,
}

const CLOCKS: [(&str, Clock); 5] = [
    ("issued", Clock::Issued),
    ("issued-on", Clock::IssuedOn),
    ("expires", Clock::Expires),
    ("expires-on", Clock::ExpiresOn),
    ("expires-in", Clock::ExpiresIn),
];

impl DecoyForm {
    /// Whether the service would answer this read in this form.
    #[must_use]
    pub fn fits(&self, target: &Target) -> bool {
        target.method().is_read() && self.path.matches(target.path().segments())
    }

    /// What a canary must say for this form.
    pub fn wants(&self) -> impl Iterator<Item = &str> {
        self.body.0.iter().filter_map(|piece| match piece {
            Piece::Canary(name) => Some(name.as_str()),
            Piece::Text(_) | Piece::Clock(_) => None,
        })
    }

    /// The body, with a canary's values, at that many seconds since 1970; `date` writes such a moment as
    /// `2026-11-24T18:00:00`. `None` if the canary lacks a value.
    ///
    /// The service gives the same credentials for a while, and so does this: between half of their life and all of it
    /// is left.
    #[must_use]
    pub fn body(
        &self,
        canary: &BTreeMap<String, String>,
        now: i64,
        date: impl Fn(i64) -> String,
    ) -> Option<String> {
        let lifetime = i64::from(self.lifetime);
        let issued = now - now.rem_euclid((lifetime / 2).max(1));
        let expires = issued + lifetime;
        let pieces = self.body.0.iter().map(|piece| match piece {
            Piece::Text(text) => Some(text.clone()),
            Piece::Canary(name) => canary.get(name).cloned(),
            Piece::Clock(Clock::Issued) => Some(date(issued)),
            Piece::Clock(Clock::IssuedOn) => Some(issued.to_string()),
            Piece::Clock(Clock::Expires) => Some(date(expires)),
            Piece::Clock(Clock::ExpiresOn) => Some(expires.to_string()),
            Piece::Clock(Clock::ExpiresIn) => Some((expires - now).to_string()),
        });
        pieces.collect()
    }

    /// Whether it can be sent: headers that are some, a life of at least a minute, a body that hands something out.
    pub(super) fn is_sound(&self) -> bool {
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let is_value = |value: &str| value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        self.lifetime >= 60
            && !self.body.0.is_empty()
            && self.headers.iter().all(|(name, value)| is_name(name) && is_value(value))
            && self.headers.keys().any(|name| name == "Content-Type")
    }
}

/// What the canaries of several forms must say, each once.
pub fn wanted<'a>(forms: impl Iterator<Item = &'a DecoyForm>) -> BTreeSet<&'a str> {
    forms.flat_map(DecoyForm::wants).collect()
}

impl Template {
    fn read(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            plain += before;
            let name = after.split_once('}').filter(|(name, _)| is_name(name));
            if let Some((name, behind)) = name {
                if !plain.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                }
                let clock = CLOCKS.iter().find(|(known, _)| *known == name);
                pieces.push(
                    clock.map_or_else(|| Piece::Canary(name.to_owned()), |(_, clock)| Piece::Clock(*clock)),
                );
                rest = behind;
            } else {
                plain.push('{');
                rest = after;
            }
        }
        plain += rest;
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Self(pieces)
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::read(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::{Catalogue, Class};

    #[test]
    fn a_template_s_own_braces_stay() {
        let template = Template::read("{\"a\": \"{key-id}\", {\"b\": {expires-in}}} {} {A}");
        let names: Vec<_> = template.0.iter().filter(|piece| !matches!(piece, Piece::Text(_))).collect();
        assert_eq!(names, [&Piece::Canary("key-id".to_owned()), &Piece::Clock(Clock::ExpiresIn)]);
        assert_eq!(template.0.last(), Some(&Piece::Text("}} {} {A}".to_owned())));
    }

    /// Every form, filled: what the cloud's own reader finds in it is the canary's, and it is good for a while.
    #[test]
    fn each_cloud_s_decoy_reads_as_its_own_answers_do() {
        let now = 1_790_000_123;
        let date =
            |seconds: i64| jiff::Timestamp::from_second(seconds).unwrap().strftime("%FT%T").to_string();
        let mut keys = 0;
        for cloud in Catalogue::builtin().clouds() {
            for form in cloud.decoys() {
                let canary = form.wants().map(|name| (name.to_owned(), format!("canary-{name}"))).collect();
                let body = form.body(&canary, now, date).unwrap();
                for value in BTreeMap::values(&canary) {
                    assert!(body.contains(value), "{}: {body}", cloud.id());
                }
                assert_eq!(form.body(&BTreeMap::new(), now, date).is_some(), form.wants().next().is_none());
                if !form.headers.get("Content-Type").unwrap().contains("json") && !body.starts_with('{') {
                    continue;
                }
                let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
                assert!(answer.is_object(), "{body}");
                let path = form.path.branches().first().unwrap().to_string().replace('*', "x");
                let target = crate::cases::request::ask(
                    Catalogue::builtin(),
                    crate::cloud::Endpoint::new([169, 254, 169, 254].into(), 80),
                    &format!("GET {path}"),
                    &[],
                );
                let target = target.target.unwrap();
                let issue = cloud.issued().iter().find(|issue| issue.path.matches(target.path().segments()));
                let Some(issue) = issue else { continue };
                let issued = issue.read(body.as_bytes(), &target).unwrap_or_else(|| panic!("no key: {body}"));
                let left = match (&issued.expires, issued.expires_on, issued.expires_in) {
                    (Some(date), _, _) => date.parse::<jiff::Timestamp>().unwrap().as_second() - now,
                    (None, Some(on), _) => on - now,
                    (None, None, left) => left.unwrap(),
                };
                assert!(left > 1000, "{}: {body}", cloud.id());
                keys += 1;
            }
        }
        assert!(keys >= 7, "{keys}");
    }

    #[test]
    fn only_paths_of_credentials_have_decoys() {
        for cloud in Catalogue::builtin().clouds() {
            for branch in cloud.decoys().iter().flat_map(|form| form.path.branches()) {
                let path: Vec<String> =
                    branch.to_string().replace('*', "x").split('/').skip(1).map(str::to_owned).collect();
                let rows = cloud.resources().iter();
                let rows = rows.filter_map(|row| Some((row.pattern.closeness(&path)?, row)));
                let (_, row) = rows.max_by(|a, b| a.0.cmp(b.0)).unwrap();
                assert!(row.classes.contains(Class::Credentials), "{}: {branch}", cloud.id());
            }
        }
    }
}
