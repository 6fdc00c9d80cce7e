//! What joins an answer that hands out a key to the cloud's own log: the key's id, whose it is, for what, until when.
//! Never the key. Pure.

use serde::Deserialize;
use serde_json::Value;

use super::pattern::PathPattern;
use crate::request::Target;

/// The longest text that is kept, in bytes.
const TEXT_BYTES: usize = 256;

/// Where one fact about an issued key stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// In the answer, by the names that lead to it.
    Answer(Vec<String>),
    /// In the path: the segment with that number, the first being 0.
    Path(usize),
    /// In the query, by its key.
    Query(String),
}

/// How the answers at some path tell of the key in them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Issue {
    /// The paths.
    pub path: PathPattern,
    /// The key itself: an answer without it hands out nothing, and what stands there is never taken for a fact.
    secret: Fact,
    #[serde(default)]
    key_id: Vec<Fact>,
    #[serde(default)]
    principal: Vec<Fact>,
    #[serde(default)]
    scope: Vec<Fact>,
    #[serde(default)]
    expires: Vec<Fact>,
    /// Seconds since 1970.
    #[serde(default)]
    expires_on: Vec<Fact>,
    /// Seconds from now.
    #[serde(default)]
    expires_in: Vec<Fact>,
}

/// What an answer tells of the key in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Issued {
    /// The key's public name.
    pub key_id: Option<String>,
    /// Whose key it is: a role, a service account, a client.
    pub principal: Option<String>,
    /// What it opens: scopes, a resource.
    pub scope: Option<String>,
    /// Until when, if the answer says that as a date.
    pub expires: Option<String>,
    /// Until when, in seconds since 1970.
    pub expires_on: Option<i64>,
    /// For how many seconds from now.
    pub expires_in: Option<i64>,
}

impl Issue {
    /// What this answer to that request tells; `None` if it is no such answer.
    #[must_use]
    pub fn read(&self, answer: &[u8], target: &Target) -> Option<Issued> {
        let answer: Value = serde_json::from_slice(answer).ok()?;
        let secret = self.secret.find(&answer, target)?;
        let text = |facts: &[Fact]| {
            let found = facts.iter().find_map(|fact| fact.find(&answer, target));
            found.as_deref().and_then(|found| clean(found, &secret))
        };
        let seconds = |facts: &[Fact]| text(facts).and_then(|text| text.parse().ok());
        Some(Issued {
            key_id: text(&self.key_id),
            principal: text(&self.principal),
            scope: text(&self.scope),
            expires: text(&self.expires),
            expires_on: seconds(&self.expires_on),
            expires_in: seconds(&self.expires_in),
        })
    }

    /// Whether every fact may be told: none of them is the secret, and something is told at all.
    pub(super) fn is_sound(&self, secret_path: bool) -> bool {
        let mut facts =
            [&self.key_id, &self.principal, &self.scope, &self.expires, &self.expires_on, &self.expires_in]
                .into_iter()
                .flatten()
                .peekable();
        let tells = facts.peek().is_some();
        let is_answer = matches!(self.secret, Fact::Answer(_));
        tells
            && is_answer
            && facts.all(|fact| *fact != self.secret && (!secret_path || matches!(fact, Fact::Answer(_))))
    }
}

impl Fact {
    fn find(&self, answer: &Value, target: &Target) -> Option<String> {
        match self {
            Self::Answer(names) => {
                match names.iter().try_fold(answer, |value, name| value.get(name.as_str()))? {
                    Value::String(text) => Some(text.clone()),
                    Value::Number(number) => Some(number.to_string()),
                    Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
                }
            }
            Self::Path(at) => target.path().as_str().split('/').nth(at + 1).map(str::to_owned),
            Self::Query(key) => target.query().values(key).next().map(str::to_owned),
        }
    }
}

/// A stranger's text, if it can be shown and is not the secret in another place.
fn clean(text: &str, secret: &str) -> Option<String> {
    let fits = !text.is_empty() && text.len() <= TEXT_BYTES;
    let shows = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    (fits && shows && !secret.is_empty() && !text.contains(secret) && !secret.contains(text))
        .then(|| text.to_owned())
}

impl<'de> Deserialize<'de> for Fact {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (place, name) = text.split_once('.').unwrap_or((&text, ""));
        let fact = match place {
            _ if name.is_empty() => None,
            "answer" => Some(Self::Answer(name.split('.').map(str::to_owned).collect())),
            "path" => name.parse().ok().map(Self::Path),
            "query" => Some(Self::Query(name.to_ascii_lowercase())),
            _ => None,
        };
        fact.ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is no answer.NAME, path.NUMBER or query.KEY"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::{Asked, Catalogue, Class};
    use crate::request::{Gate, Limits, Step, Strictness};

    fn asked(target: &str) -> Asked {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
        let limits = Limits { head_bytes: 16 * 1024, headers: 64 };
        let Step::Head { head, .. } = Gate::new(Strictness::Enforce, limits).step(bytes.as_bytes()) else {
            panic!("no head: {bytes}");
        };
        let endpoint = crate::cloud::Endpoint::new([169, 254, 169, 254].into(), 80);
        Asked::read(Catalogue::builtin(), endpoint, head)
    }

    fn read(target: &str, answer: &str) -> Option<Issued> {
        let asked = asked(target);
        let issue = Catalogue::builtin().issue(&asked)?;
        issue.read(answer.as_bytes(), asked.target.as_ref().unwrap())
    }

    #[test]
    fn each_cloud_s_answer_tells_of_its_key_and_never_the_key() {
        let role = "/latest/meta-data/iam/security-credentials/Billing";
        let answer = r#"{"Code":"Success","AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"s3cret","Token":"t0ken","Expiration":"2026-11-24T18:00:00Z"}"#;
        let issued = read(role, answer).unwrap();
        assert_eq!(issued.key_id.as_deref(), Some("ASIAEXAMPLE"));
        assert_eq!(issued.principal.as_deref(), Some("Billing"));
        assert_eq!(issued.expires.as_deref(), Some("2026-11-24T18:00:00Z"));
        let google = "/computeMetadata/v1/instance/service-accounts/default/token?scopes=https://www.googleapis.com/auth/cloud-platform";
        let issued =
            read(google, r#"{"access_token":"ya29.s3cret","expires_in":3599,"token_type":"Bearer"}"#)
                .unwrap();
        assert_eq!(issued.principal.as_deref(), Some("default"));
        assert_eq!(issued.scope.as_deref(), Some("https://www.googleapis.com/auth/cloud-platform"));
        assert_eq!((issued.expires_in, issued.key_id), (Some(3599), None));
        let azure = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net&client_id=asked";
        let answer = r#"{"access_token":"s3cret","client_id":"00aa","expires_on":"1790000000","resource":"https://vault.azure.net"}"#;
        let issued = read(azure, answer).unwrap();
        assert_eq!((issued.principal.as_deref(), issued.expires_on), (Some("00aa"), Some(1_790_000_000)));
        assert_eq!(issued.scope.as_deref(), Some("https://vault.azure.net"));
    }

    #[test]
    fn what_is_no_such_answer_tells_nothing() {
        let role = "/latest/meta-data/iam/security-credentials/role";
        for answer in ["role", "", "{", "[]", r#"{"Code":"Failed"}"#, r#"{"AccessKeyId":"ASIAEXAMPLE"}"#] {
            assert_eq!(read(role, answer), None, "{answer}");
        }
        assert_eq!(read("/latest/meta-data/iam/security-credentials/", "role"), None, "a list of roles");
        assert_eq!(read("/latest/meta-data/instance-id", "{}"), None);
    }

    #[test]
    fn a_stranger_s_text_is_shown_only_if_it_is_harmless_and_not_the_secret() {
        let role = "/latest/meta-data/iam/security-credentials/role";
        for id in ["a\\u001b[31m", "", "s3cret", "xs3cretx", "3cre", &"A".repeat(300), "\\u00e9"] {
            let answer =
                format!(r#"{{"SecretAccessKey":"s3cret","AccessKeyId":"{id}","Expiration":{{"a":1}}}}"#);
            let issued = read(role, &answer).unwrap();
            assert_eq!((issued.key_id, issued.expires), (None, None), "{id}");
        }
    }

    #[test]
    fn only_paths_of_credentials_issue_keys() {
        let mut count = 0;
        for cloud in Catalogue::builtin().clouds() {
            for branch in cloud.issued().iter().flat_map(|issue| issue.path.branches()) {
                let path = branch.to_string().replace("**", "x").replace('*', "x");
                let row = cloud
                    .resources()
                    .iter()
                    .filter_map(|row| Some((row.pattern.closeness(&segments(&path))?, row)));
                let (_, row) =
                    row.max_by(|a, b| a.0.cmp(b.0)).unwrap_or_else(|| panic!("{path} is not listed"));
                assert!(row.classes.contains(Class::Credentials), "{}: {path}", cloud.id());
                count += 1;
            }
        }
        assert!(count > 10, "{count}");
    }

    fn segments(path: &str) -> Vec<String> {
        path.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
    }
}
