//! Cases beside a policy: who asks for what, and what must be decided. `imds-guard test` runs them; this is pure.
//!
//! ```toml
//! [[case]]
//! name = "a web server hit by SSRF has no credentials"
//! caller = { unit = "nginx.service", user = "www-data" }
//! request = "GET /latest/meta-data/iam/security-credentials/role"
//! verdict = "deny"
//! reason = "no-agent"
//! ```

pub mod described;
pub mod request;

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::cloud::{Asked, Classes, Endpoint, How, TokenHolder};
use crate::policy::{Accounts, Action, Form, Policy, Verdict};
use crate::request::Fault;

use described::{Described, DescriptionError};

/// One file of cases.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cases {
    /// The policy that they are about, as a path beside the file or as the text itself; without one, the caller of
    /// the runner knows.
    pub policy: Option<String>,
    /// Texts of drop-ins for that policy.
    #[serde(default)]
    pub drop_ins: Vec<String>,
    /// The clouds that the machine seems to run on.
    #[serde(default)]
    pub detected: Vec<String>,
    /// Users by name, for machines that lack them; they come before the machine's own.
    #[serde(default)]
    pub users: BTreeMap<String, u32>,
    /// The codes of all warnings that the policy gives, sorted, if that is to be checked.
    pub warnings: Option<Vec<String>>,
    /// The cases.
    #[serde(default)]
    pub case: Vec<Case>,
}

/// One case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// Who asks.
    pub caller: Described,
    /// The method and the target, as in `GET /latest/user-data`; `none` for bytes that make no head.
    pub request: String,
    /// Header lines.
    #[serde(default)]
    pub headers: Vec<String>,
    /// Where.
    #[serde(default = "shared_address")]
    pub endpoint: String,
    /// The clouds that the machine seems to run on, for this case alone.
    pub detected: Option<Vec<String>>,
    /// `allow`, `deny` or, of a denial that gives decoys, `decoy`.
    pub verdict: Expected,
    /// The rule that decides.
    pub rule: Option<String>,
    /// The agent that the caller is.
    pub agent: Option<String>,
    /// The code of the reason.
    pub reason: Option<String>,
    /// The mode of the decision.
    pub mode: Option<String>,
    /// `refuse`, `decoy`, `redacted`, `rebuilt`, `upgraded`, `as-it-came` or `tunnel`.
    pub action: Option<String>,
    /// Whose session token the headers show: `own`, `older`, `foreign` or `unknown`.
    pub token: Option<TokenHolder>,
    /// The classes that the answer is given without.
    pub withheld: Option<Classes>,
    /// Whether the processes must be looked at.
    pub needs_processes: Option<bool>,
}

/// What must be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// It passes.
    Allow,
    /// It does not.
    Deny,
    /// It does not, and the caller is given a decoy where there is a canary.
    Decoy,
}

/// Why a case failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// Something was decided otherwise.
    Other {
        /// What.
        what: &'static str,
        /// What the case says.
        wanted: String,
        /// What the policy says.
        got: String,
        /// The whole decision, in words.
        decision: String,
    },
    /// The case itself makes no sense.
    Case(String),
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other { what, wanted, got, decision } => {
                write!(f, "{what}: wanted {wanted}, got {got} ({decision})")
            }
            Self::Case(why) => f.write_str(why),
        }
    }
}

fn shared_address() -> String {
    "169.254.169.254:80".to_owned()
}

impl Cases {
    /// Reads a file of cases.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// Users and groups as the cases see them: their own before the machine's, since of two entries with one name
    /// the first counts.
    #[must_use]
    pub fn accounts(&self, passwd: &str, group: &str) -> Accounts {
        let own = self.users.iter().map(|(name, uid)| format!("{name}:x:{uid}:{uid}::/:/"));
        let lines: Vec<String> = own.chain([passwd.to_owned()]).collect();
        Accounts::parse(&lines.join("\n"), group)
    }

    /// The clouds that the machine of this case seems to run on.
    #[must_use]
    pub fn detected_for<'a>(&'a self, case: &'a Case) -> &'a [String] {
        case.detected.as_ref().unwrap_or(&self.detected)
    }
}

impl Case {
    /// Decides the case by a policy and compares.
    pub fn check(&self, policy: &Policy, accounts: &Accounts) -> Result<(), Miss> {
        let caller = self.caller.caller(accounts).map_err(|error| Miss::Case(error.to_string()))?;
        let asked = self.asked(policy)?;
        let decision = policy.decide(&caller, &asked);
        let told = format!(
            "{}: {}; it touches {}",
            decision.reason().code(),
            decision.reason(),
            asked.touched.classes
        );
        let compare = |what: &'static str, wanted: Option<&str>, got: Option<&str>| match wanted {
            Some(wanted) if got != Some(wanted) => Err(Miss::Other {
                what,
                wanted: wanted.to_owned(),
                got: got.unwrap_or("none").to_owned(),
                decision: told.clone(),
            }),
            Some(_) | None => Ok(()),
        };
        let as_decoy = self.verdict == Expected::Decoy && decision.is_decoy();
        let verdict = if as_decoy { "decoy" } else { verdict_name(decision.verdict()) };
        compare("verdict", Some(self.verdict.name()), Some(verdict))?;
        compare("rule", self.rule.as_deref(), decision.rule().map(|rule| &**rule))?;
        compare("agent", self.agent.as_deref(), decision.agent().map(|agent| &**agent))?;
        compare("reason", self.reason.as_deref(), Some(decision.reason().code()))?;
        compare("mode", self.mode.as_deref(), Some(decision.mode().name()))?;
        let withheld = self.withheld.map(|classes| classes.to_string());
        compare("withheld", withheld.as_deref(), Some(&decision.withheld().to_string()))?;
        let needed = |needed| if needed { "true" } else { "false" };
        let needs = policy.needs_processes(&caller, &asked);
        compare("needs-processes", self.needs_processes.map(needed), Some(needed(needs)))?;
        let action = match decision.act(&asked) {
            Action::Refuse(_) => "refuse",
            Action::Decoy(..) => "decoy",
            Action::Withhold(_) => "redacted",
            Action::Forward(permit) => match permit.form() {
                Form::Rebuilt(_) => "rebuilt",
                Form::Upgraded(..) => "upgraded",
                Form::AsItCame(_) => "as-it-came",
                Form::Tunnel => "tunnel",
            },
        };
        compare("action", self.action.as_deref(), Some(action))
    }

    /// The request in the words of the policy's catalogue.
    pub fn asked(&self, policy: &Policy) -> Result<Asked, Miss> {
        let endpoint = self
            .endpoint
            .parse::<std::net::SocketAddr>()
            .map_err(|_| Miss::Case(format!("endpoint: `{}` is not an address and a port", self.endpoint)))?;
        let endpoint = Endpoint::new(endpoint.ip(), endpoint.port());
        if self.request == "none" {
            return Ok(Asked::unclear(endpoint, None, Fault::HeadIncomplete));
        }
        let mut asked = request::ask(policy.catalogue(), endpoint, &self.request, &self.headers);
        if let Some(holder) = self.token {
            asked.speaks(How::Shows(holder));
        }
        Ok(asked)
    }
}

impl Expected {
    fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Decoy => "decoy",
        }
    }
}

/// The word for a verdict that cases and events use.
#[must_use]
pub fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}

impl From<DescriptionError> for Miss {
    fn from(error: DescriptionError) -> Self {
        Self::Case(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Context, Source};

    fn run(cases: &str) -> Vec<Result<(), Miss>> {
        let cases = Cases::parse(cases).unwrap();
        let text = "mode = \"enforce\"\ncloud = \"aws\"\n[everyone]\nallow = \"config\"\n".to_owned();
        let accounts = cases.accounts("web:x:1:1::/:/\n", "");
        let context = Context { accounts: accounts.clone(), ..Context::default() };
        let policy =
            Policy::compile(&[Source { name: "policy.toml".to_owned(), text }], &context).unwrap().policy;
        cases.case.iter().map(|case| case.check(&policy, &accounts)).collect()
    }

    #[test]
    fn a_case_that_holds_passes_and_one_that_does_not_tells_what_and_why() {
        let results = run("[users]\nweb = 33\n\
             [[case]]\nname = \"1\"\ncaller = { unit = \"x.service\", user = \"web\" }\n\
             request = \"GET /latest/meta-data/instance-id\"\nverdict = \"allow\"\naction = \"rebuilt\"\n\
             [[case]]\nname = \"2\"\ncaller = { uid = 33 }\nrequest = \"GET /latest/user-data\"\nverdict = \"allow\"\n");
        assert_eq!(results[0], Ok(()));
        let told = results[1].as_ref().unwrap_err().to_string();
        assert!(told.starts_with("verdict: wanted allow, got deny (no-agent: "), "{told}");
    }

    #[test]
    fn a_decoy_is_a_denial_that_a_case_may_ask_for() {
        let case = |verdict: &str, caller: &str| {
            format!(
                "[[case]]\nname = \"1\"\ncaller = {caller}\nverdict = \"{verdict}\"\n\
                 request = \"GET /latest/meta-data/iam/security-credentials/r\"\n"
            )
        };
        let web = "{ unit = \"web.service\", uid = 33 }";
        let agent = "{ unit = \"a.service\", uid = 33 }";
        let cases =
            [case("decoy", web), case("deny", web), case("decoy", agent), case("deny", agent)].concat();
        let text = "mode = \"enforce\"\ncloud = \"aws\"\n[[rule]]\nname = \"r\"\naction = \"decoy\"\n\
                    [[agent]]\nname = \"a\"\nunit = \"a.service\"\nuser = 33\nallow = \"config\"\n";
        let source = Source { name: "policy.toml".to_owned(), text: text.to_owned() };
        let policy = Policy::compile(&[source], &Context::default()).unwrap().policy;
        let cases = Cases::parse(&cases).unwrap();
        let hold: Vec<bool> =
            cases.case.iter().map(|case| case.check(&policy, &Accounts::default()).is_ok()).collect();
        assert_eq!(hold, [true, true, false, true]);
    }

    #[test]
    fn a_case_about_nobody_or_nowhere_is_an_error() {
        let results = run(
            "[[case]]\nname = \"1\"\ncaller = { user = \"ghost\" }\nrequest = \"GET /\"\nverdict = \"deny\"\n\
             [[case]]\nname = \"2\"\ncaller = {}\nendpoint = \"metadata\"\nrequest = \"GET /\"\nverdict = \"deny\"\n",
        );
        assert!(results.iter().all(|result| matches!(result, Err(Miss::Case(_)))), "{results:?}");
    }

    #[test]
    fn a_request_that_no_server_would_read_is_a_fault_and_not_a_crash() {
        let results = run(
            "[[case]]\nname = \"1\"\ncaller = {}\nrequest = \"GET  / x\"\nverdict = \"deny\"\nreason = \"request-line-malformed\"\n",
        );
        assert_eq!(results, [Ok(())]);
    }
}
