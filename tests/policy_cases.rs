//! Replays `tests/cases/policy/*.toml`: a policy, callers and requests, and what must be decided.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper of a test may fail the test, like the test itself"
)]

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use imds_guard::caller::{Attribution, Caller, Cgroup, CgroupPath, Exe, Process, Processes, Stamps, Why};
use imds_guard::cloud::{Asked, Endpoint};
use imds_guard::policy::{Accounts, Action, Compiled, Context, Form, Policy, Source, Verdict, diagnostic};
use imds_guard::request::{Fault, Limits, RawHead};
use serde::Deserialize;

const PASSWD: &str = include_str!("cases/policy/passwd");
const GROUP: &str = include_str!("cases/policy/group");

/// One file of cases.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Cases {
    /// The policy's text, or `shipped` for the one in this repository.
    policy: String,
    #[serde(default)]
    drop_ins: Vec<String>,
    /// The clouds that this machine seems to run on.
    #[serde(default)]
    detected: Vec<String>,
    /// The codes of all warnings that the policy gives, sorted.
    #[serde(default)]
    warnings: Vec<String>,
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Case {
    name: String,
    caller: Who,
    /// The request line without its version; `none` for bytes that make no head.
    request: String,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default = "shared_address")]
    endpoint: String,
    verdict: String,
    rule: Option<String>,
    agent: Option<String>,
    reason: Option<String>,
    mode: Option<String>,
    /// `refuse`, `rebuilt`, `as-it-came` or `tunnel`.
    action: Option<String>,
    needs_processes: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Who {
    #[serde(default)]
    uid: u32,
    #[serde(default = "nowhere")]
    cgroup: String,
    /// The code of the reason why nothing is known of the caller.
    unattributed: Option<String>,
    /// What each process that holds the socket runs; an empty string is a file whose name proves nothing.
    exe: Option<Vec<String>>,
    sha256: Option<String>,
    /// Somebody looked, and saw no process.
    #[serde(default)]
    unseen: bool,
}

fn shared_address() -> String {
    "169.254.169.254:80".to_owned()
}

fn nowhere() -> String {
    "/user.slice/user-1000.slice/session-1.scope".to_owned()
}

impl Who {
    fn caller(&self) -> Caller {
        let attribution = match &self.unattributed {
            Some(code) => Attribution::Unattributed(why(code)),
            None => Attribution::Stamped(Stamps {
                uid: self.uid,
                cgroup: Cgroup { id: 7, path: CgroupPath::new(self.cgroup.as_str()).unwrap() },
                inode: 1,
                cookie: 1,
            }),
        };
        let processes = match &self.exe {
            Some(files) => Processes::Holders(files.iter().map(|file| self.process(file)).collect()),
            None if self.unseen => Processes::Unknown,
            None => Processes::Skipped,
        };
        Caller { attribution, processes }
    }

    fn process(&self, file: &str) -> Process {
        let trusted = !file.is_empty();
        Process {
            pid: 1,
            start_ticks: 1,
            parent: 0,
            uid: self.uid,
            comm: String::new(),
            command_line: String::new(),
            exe: Exe {
                path: file.to_owned(),
                names: trusted.then(|| file.to_owned()).into_iter().collect(),
                doubt: if trusted { String::new() } else { "deleted".to_owned() },
                sha256: self.sha256.clone(),
            },
        }
    }
}

fn why(code: &str) -> Why {
    let all = [
        Why::NoSocket,
        Why::Listener,
        Why::Orphan,
        Why::Mismatch,
        Why::State,
        Why::NoCgroup,
        Why::UnknownCgroup,
        Why::LookupFailed,
    ];
    all.into_iter().find(|why| why.code() == code).unwrap()
}

impl Case {
    fn asked(&self, policy: &Policy) -> Asked {
        let address: std::net::SocketAddr = self.endpoint.parse().unwrap();
        let endpoint = Endpoint::new(address.ip(), address.port());
        if self.request == "none" {
            return Asked::unclear(endpoint, None, Fault::ALL[0]);
        }
        let host = match address {
            std::net::SocketAddr::V4(address) => address.ip().to_string(),
            std::net::SocketAddr::V6(address) => format!("[{}]", address.ip()),
        };
        let mut head = format!("{} HTTP/1.1\r\n", self.request);
        if !self.headers.iter().any(|header| header.to_ascii_lowercase().starts_with("host:")) {
            head.push_str("Host: ");
            head.push_str(&host);
            head.push_str("\r\n");
        }
        for header in &self.headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        head += "\r\n";
        let head = RawHead::read(head.as_bytes(), Limits { head_bytes: 16_384, headers: 100 }).unwrap();
        Asked::read(policy.catalogue(), endpoint, head)
    }

    fn check(&self, policy: &Policy) -> Result<(), String> {
        let caller = self.caller.caller();
        let asked = self.asked(policy);
        let decision = policy.decide(&caller, &asked);
        let verdict = if decision.verdict() == Verdict::Allow { "allow" } else { "deny" };
        let told = format!("{decision:?}, touching {}", asked.touched.classes);
        expect("verdict", self.verdict.as_str(), verdict, &told)?;
        if self.rule.is_some() {
            expect("rule", self.rule.as_deref(), decision.rule().map(|rule| &**rule), &told)?;
        }
        if self.agent.is_some() {
            expect("agent", self.agent.as_deref(), decision.agent().map(|agent| &**agent), &told)?;
        }
        if self.reason.is_some() {
            expect("reason", self.reason.as_deref(), Some(decision.reason().code()), &told)?;
        }
        if self.mode.is_some() {
            expect("mode", self.mode.as_deref(), Some(decision.mode().name()), &told)?;
        }
        if let Some(needed) = self.needs_processes {
            expect("needs-processes", needed, policy.needs_processes(&caller, &asked), &told)?;
        }
        let action = match decision.act(&asked) {
            Action::Refuse(_) => "refuse",
            Action::Forward(permit) => match permit.form() {
                Form::Rebuilt(_) => "rebuilt",
                Form::AsItCame(_) => "as-it-came",
                Form::Tunnel => "tunnel",
            },
        };
        self.action.as_deref().map_or(Ok(()), |wanted| expect("action", wanted, action, &told))
    }
}

fn expect<T: PartialEq + Debug + Copy>(what: &str, wanted: T, got: T, told: &str) -> Result<(), String> {
    if wanted == got { Ok(()) } else { Err(format!("{what}: wanted {wanted:?}, got {got:?} ({told})")) }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn compile(main: &str, drop_ins: &[String], detected: &[String]) -> Compiled {
    let text = if main == "shipped" {
        fs::read_to_string(root().join("policy.toml")).unwrap()
    } else {
        main.to_owned()
    };
    let mut sources = vec![Source { name: "policy.toml".to_owned(), text }];
    sources.extend(
        drop_ins
            .iter()
            .enumerate()
            .map(|(at, text)| Source { name: format!("policy.d/{at}.toml"), text: text.clone() }),
    );
    let context = Context { accounts: Accounts::parse(PASSWD, GROUP), detected: detected.to_vec() };
    Policy::compile(&sources, &context)
        .unwrap_or_else(|errors| panic!("{}", diagnostic::render(&errors, &sources, false)))
}

fn files() -> Vec<PathBuf> {
    let directory = fs::read_dir(root().join("tests/cases/policy")).unwrap();
    let mut files: Vec<PathBuf> = directory.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files
}

#[test]
fn every_case_is_decided_as_written() {
    let mut failures = Vec::new();
    let mut replayed = 0;
    for file in files() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let cases: Cases =
            toml::from_str(&fs::read_to_string(&file).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let compiled = compile(&cases.policy, &cases.drop_ins, &cases.detected);
        let mut warnings: Vec<&str> = compiled.warnings.iter().map(|warning| warning.code).collect();
        warnings.sort_unstable();
        if warnings != cases.warnings {
            failures.push(format!("{name}: warnings are {warnings:?}"));
        }
        for case in &cases.case {
            replayed += 1;
            if let Err(error) = case.check(&compiled.policy) {
                failures.push(format!("{name}: {}: {error}", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {replayed} failed:\n{}", failures.len(), failures.join("\n"));
    assert!(replayed > 100, "only {replayed} cases were found");
}

/// An image is built once and booted anywhere: its policy has nothing to complain about on any cloud.
#[test]
fn the_shipped_policy_is_clean_on_every_cloud() {
    let builtin = imds_guard::cloud::Catalogue::builtin();
    let clouds = builtin.clouds().iter().map(|cloud| vec![cloud.id().to_owned()]);
    for detected in clouds.chain([Vec::new()]) {
        let compiled = compile("shipped", &[], &detected);
        assert!(compiled.warnings.is_empty(), "{detected:?}: {:?}", compiled.warnings);
    }
    for choice in ["\"all\"", "[\"aws\", \"gcp\"]"] {
        let text = fs::read_to_string(root().join("policy.toml")).unwrap();
        let text = text.replace("cloud = \"auto\"", &format!("cloud = {choice}"));
        assert!(text.contains(choice));
        let compiled = compile(&text, &[], &[]);
        assert!(compiled.warnings.is_empty(), "{choice}: {:?}", compiled.warnings);
    }
}

/// What its comments offer must work when somebody uncomments it.
#[test]
fn the_shipped_policy_s_commented_examples_compile() {
    let text = fs::read_to_string(root().join("policy.toml")).unwrap();
    let mut uncommented = String::new();
    let mut inside = false;
    for line in text.lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        inside = line.starts_with("# [[") || inside && line.starts_with('#');
        uncommented += if inside && line != "#" { bare } else { line };
        uncommented.push('\n');
        inside = inside && line != "#";
    }
    let compiled = compile(&uncommented, &[], &[]);
    let codes: Vec<&str> = compiled.warnings.iter().map(|warning| warning.code).collect();
    assert_eq!(codes, ["enforce-fails-open"]);
    for name in [
        "user-data uses the machine's role",
        "billing reads its own role",
        "the web server never has credentials",
    ] {
        assert!(uncommented.contains(&format!("\nname = \"{name}\"")), "{name}");
    }
}

/// Every example of the language reference is a policy, or the part of one.
#[test]
fn the_reference_s_examples_compile() {
    let page = fs::read_to_string(root().join("docs/policy.md")).unwrap();
    let mut found = 0;
    for block in page.split("```toml\n").skip(1) {
        let example = block.split("```").next().unwrap();
        found += 1;
        let text = if example.contains("\nmode =") || example.starts_with("mode =") {
            example.to_owned()
        } else {
            format!("mode = \"audit\"\n{example}")
        };
        let _ = compile(&text, &[], &[]);
    }
    assert!(found >= 10, "only {found} examples were found");
}
