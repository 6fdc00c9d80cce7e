//! Why a decision is what it is: a value for the log, and one line for the caller.

use std::fmt;

use crate::caller::Why;
use crate::cloud::Classes;
use crate::request::Fault;

/// Why a request is allowed or denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Allowed: `[everyone]` covers all that the request touches.
    EveryoneAllows,
    /// Allowed: `[unattributed]` covers all that the request touches.
    UnattributedAllows,
    /// Allowed: `[containers] allow` covers all that the request touches.
    ContainersAllow,
    /// Allowed: what `[everyone]` lacks, the caller's agents have.
    AgentAllows,
    /// Allowed: an allow rule was needed; the decision names it.
    RuleAllows,
    /// Denied: a deny rule matches; the decision names it.
    RuleDenies,
    /// Denied: the request has no single clean meaning.
    Fault(Fault),
    /// Denied: nothing grants these of the classes that the request touches.
    NotGranted {
        /// What is missing.
        missing: Classes,
        /// What the policy knows of the caller.
        caller: Standing,
    },
    /// Denied: it shows no session token, and the policy wants one.
    TokenRequired,
    /// Denied: it shows a session token that another caller fetched.
    TokenOfAnother,
    /// Denied: it shows a session token that nobody fetched by way of the guard.
    TokenUnknown,
}

/// What the policy knows of a caller to whom it does not grant enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No agent is like this caller.
    NoAgent,
    /// The same, of a caller in another network namespace.
    Container,
    /// The caller is an agent, and that agent lacks a class.
    Agent,
    /// The caller would be granted it, if its executable were the one that the policy names.
    ExeDoubt(ExeDoubt),
    /// The caller would be granted it, if the kernel named its unit.
    Degraded,
    /// The kernel could not say who the caller is.
    Unattributed(Why),
}

/// Why an executable does not count as the one that the policy names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExeDoubt {
    /// A process that holds the socket runs another file.
    OtherFile,
    /// A process that holds the socket runs a file whose name proves nothing.
    Untrusted,
    /// No process that holds the socket can be seen.
    NoHolder,
    /// Nobody looked for the processes.
    NotLooked,
}

impl Reason {
    /// The stable code that audit events carry.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::EveryoneAllows => "everyone-allows",
            Self::UnattributedAllows => "unattributed-allows",
            Self::ContainersAllow => "containers-allow",
            Self::AgentAllows => "agent-allows",
            Self::RuleAllows => "rule-allows",
            Self::RuleDenies => "rule-denies",
            Self::Fault(fault) => fault.code(),
            Self::NotGranted { caller, .. } => caller.code(),
            Self::TokenRequired => "token-required",
            Self::TokenOfAnother => "token-of-another",
            Self::TokenUnknown => "token-unknown",
        }
    }

    /// Whether a session token of the caller's own is all that the request lacks.
    #[must_use]
    pub fn is_about_tokens(self) -> bool {
        matches!(self, Self::TokenRequired | Self::TokenOfAnother | Self::TokenUnknown)
    }
}

impl Standing {
    fn code(self) -> &'static str {
        match self {
            Self::NoAgent => "no-agent",
            Self::Container => "no-agent-in-container",
            Self::Agent => "agent-lacks-class",
            Self::ExeDoubt(doubt) => doubt.code(),
            Self::Degraded => "degraded",
            Self::Unattributed(_) => "unattributed",
        }
    }
}

impl ExeDoubt {
    /// The stable code that audit events carry.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::OtherFile => "exe-other",
            Self::Untrusted => "exe-untrusted",
            Self::NoHolder => "exe-no-holder",
            Self::NotLooked => "exe-not-looked",
        }
    }
}

impl fmt::Display for ExeDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherFile => "a process that holds the socket runs another executable",
            Self::Untrusted => "a process that holds the socket runs a file whose name proves nothing",
            Self::NoHolder => "no process that holds the socket can be seen",
            Self::NotLooked => "nobody looked at the processes that hold the socket",
        })
    }
}

/// One line without names of the policy, of the caller or of the path: it also goes to the refused caller, who may
/// be an attacker.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EveryoneAllows => f.write_str("every local process may read this"),
            Self::UnattributedAllows => f.write_str("callers that are not known may read this"),
            Self::ContainersAllow => f.write_str("every container may read this"),
            Self::AgentAllows => f.write_str("the caller is a listed agent"),
            Self::RuleAllows => f.write_str("a rule allows this"),
            Self::RuleDenies => f.write_str("a rule denies this"),
            Self::Fault(fault) => f.write_str(fault.message()),
            Self::TokenRequired => f.write_str("a session token is required"),
            Self::TokenOfAnother => f.write_str("another caller fetched this session token: fetch your own"),
            Self::TokenUnknown => f.write_str("nobody here fetched this session token: fetch your own"),
            Self::NotGranted { missing, caller } => match caller {
                Standing::NoAgent => {
                    write!(f, "the caller is no listed agent, and {missing} is not for everyone")
                }
                Standing::Container => {
                    write!(
                        f,
                        "the caller is in a container that is no listed agent, and {missing} is not for all containers"
                    )
                }
                Standing::Agent => write!(f, "the caller is a listed agent without {missing}"),
                Standing::ExeDoubt(doubt) => write!(f, "{missing} needs a listed executable: {doubt}"),
                Standing::Degraded => {
                    write!(
                        f,
                        "only processes tell the caller's unit here (cgroup v1), and {missing} is not granted on that"
                    )
                }
                Standing::Unattributed(why) => {
                    write!(
                        f,
                        "it is not known who the caller is ({}), so {missing} is not granted",
                        why.code()
                    )
                }
            },
        }
    }
}
