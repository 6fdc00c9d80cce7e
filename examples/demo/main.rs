//! `make demo`: what imds-guard does, shown in a minute on any Linux machine.
//!
//! In network namespaces of its own it puts a decoy cloud and a guarded vm, and lets callers of several kinds ask for
//! secrets: first without the guard, then with it in enforce mode, then in audit mode. Every line says what was expected;
//! the exit code is 1 if anything was otherwise. The parts are those of the end-to-end tests.

#![allow(unreachable_pub, dead_code, reason = "the test bed is shared with the end-to-end tests")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a demonstration that cannot go on must stop and say so"
)]

#[path = "../../tests/support/mod.rs"]
mod support;

mod paint;
mod table;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use paint::Paint;
use support::bed::{Bed, PERSON_UID, ROLE_PATH, WEB_UID};
use support::caller::{Caller, Curl};
use support::event::Event;
use support::policy::Policy;
use support::simulator::SECRET_MARK;
use support::wait;

const AWS: &str = "http://169.254.169.254";
const AWS_V6: &str = "http://[fd00:ec2::254]";
const GCP_TOKEN: &str = "/computeMetadata/v1/instance/service-accounts/default/token";
const AZURE_TOKEN: &str =
    "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net";

/// Who may read what; the rest of the policy is the test bed's.
const AGENTS: &str = r#"[[agent]]
name  = "amazon-ssm-agent"
unit  = "amazon-ssm-agent.service"
user  = "root"
allow = ["config", "session", "credentials", "identity"]

[[agent]]
name  = "cloud-init"
unit  = ["cloud-init.service", "cloud-init-local.service"]
user  = "root"
allow = ["config", "session", "identity", "user-data"]
"#;

/// One request of the demonstration.
struct Request {
    unit: &'static str,
    uid: u32,
    who: &'static str,
    what: &'static str,
    base: &'static str,
    path: &'static str,
    header: &'static str,
    /// Whether enforce mode lets it through.
    allowed: bool,
}

const REQUESTS: &[Request] = &[
    Request {
        unit: "amazon-ssm-agent.service",
        uid: 0,
        who: "SSM agent",
        what: "AWS role credentials",
        base: AWS,
        path: ROLE_PATH,
        header: "",
        allowed: true,
    },
    Request {
        unit: "cloud-init.service",
        uid: 0,
        who: "cloud-init",
        what: "AWS user data, over IPv6",
        base: AWS_V6,
        path: "/latest/user-data",
        header: "",
        allowed: true,
    },
    Request {
        unit: "webapp.service",
        uid: WEB_UID,
        who: "web app",
        what: "its availability zone",
        base: AWS,
        path: "/latest/meta-data/placement/availability-zone",
        header: "",
        allowed: true,
    },
    Request {
        unit: "webapp.service",
        uid: WEB_UID,
        who: "web app, SSRF",
        what: "AWS role credentials",
        base: AWS,
        path: ROLE_PATH,
        header: "",
        allowed: false,
    },
    Request {
        unit: "webapp.service",
        uid: WEB_UID,
        who: "web app, SSRF",
        what: "Azure managed identity token",
        base: AWS,
        path: AZURE_TOKEN,
        header: "Metadata: true",
        allowed: false,
    },
    Request {
        unit: "session-7.scope",
        uid: PERSON_UID,
        who: "shell",
        what: "GCP service account token",
        base: AWS,
        path: GCP_TOKEN,
        header: "Metadata-Flavor: Google",
        allowed: false,
    },
    Request {
        unit: "session-7.scope",
        uid: PERSON_UID,
        who: "shell",
        what: "AWS role credentials, crooked path",
        base: AWS,
        path: "//latest/./meta-data/iam/security%2Dcredentials/decoy-role",
        header: "",
        allowed: false,
    },
    Request {
        unit: "amazon-ssm-agent.service",
        uid: WEB_UID,
        who: "shell of an SSM session",
        what: "AWS role credentials",
        base: AWS,
        path: ROLE_PATH,
        header: "",
        allowed: false,
    },
];

impl Request {
    fn ask(&self, bed: &Bed) -> Curl {
        let caller: Caller<'_> = bed.caller(self.unit, self.uid);
        let url = format!("{}{}", self.base, self.path);
        let mut arguments = vec!["--path-as-is"];
        if !self.header.is_empty() {
            arguments.extend(["-H", self.header]);
        }
        arguments.push(&url);
        caller.curl(&arguments)
    }
}

/// How a line of the demonstration should end.
#[derive(Clone, Copy)]
enum Expected {
    Answer,
    Refusal,
}

/// The demonstration so far.
struct Story {
    paint: Paint,
    surprises: usize,
}

impl Story {
    fn headline(&self, text: &str) {
        println!("\n{}", self.paint.bold(text));
    }

    /// Lets every caller ask, and compares each answer with what this act of the story expects.
    fn act(&mut self, bed: &Bed, expected: impl Fn(&Request) -> Expected) {
        for request in REQUESTS {
            let curl = request.ask(bed);
            self.line(request, &curl, expected(request));
        }
    }

    fn line(&mut self, request: &Request, curl: &Curl, expected: Expected) {
        let (answer, text) = (&curl.answer, curl.answer.text());
        let is_right = match expected {
            Expected::Answer => answer.status == 200 && !text.is_empty(),
            Expected::Refusal => answer.is_refusal() && !text.contains(SECRET_MARK),
        };
        let outcome = match answer.status {
            200 if text.contains(SECRET_MARK) => self.paint.by(request.allowed, "got the secret"),
            200 => self.paint.by(request.allowed, &format!("got {text}")),
            0 => self.paint.red(&format!("no answer (curl exit {})", curl.exit)),
            status => self.paint.by(!request.allowed, &format!("refused with {status}")),
        };
        println!("  {:<24} {:<34} {outcome}", request.who, request.what);
        if !is_right {
            self.surprises += 1;
            println!("  {}", self.paint.red("^ this is not as it should be"));
            println!("    status {}, body: {text}{}", answer.status, curl.message);
        }
    }

    fn check(&mut self, what: &str, is_right: bool) {
        let mark = if is_right { self.paint.green("yes") } else { self.paint.red("NO") };
        self.surprises += usize::from(!is_right);
        println!("  {what:<59} {mark}");
    }
}

fn main() -> ExitCode {
    let start = Instant::now();
    let mut story = Story { paint: Paint::for_stdout(), surprises: 0 };
    println!(
        "A decoy cloud and a guarded vm, in network namespaces of their own ({}-*).",
        support::netns::PREFIX
    );
    println!("Nothing of this machine's own network is touched, and all of it goes at the end.");

    let bed = Bed::new();
    without_guard(&mut story, &bed);
    let mut events = enforce(&mut story, &bed);
    events.extend(audit(&mut story, &bed));
    story.headline("The audit trail");
    table::print(&events, &story.paint);
    drop(bed);

    let seconds = start.elapsed().as_secs_f32();
    if story.surprises == 0 {
        println!("\n{} ({seconds:.1} s)", story.paint.green("Everything was as told."));
        return ExitCode::SUCCESS;
    }
    println!(
        "\n{} ({seconds:.1} s)",
        story.paint.red(&format!("{} things were not as told.", story.surprises))
    );
    ExitCode::FAILURE
}

fn without_guard(story: &mut Story, bed: &Bed) {
    story.headline("1. Without the guard, whoever asks gets the machine's secrets");
    story.act(bed, |_| Expected::Answer);
}

fn enforce(story: &mut Story, bed: &Bed) -> Vec<Event> {
    story.headline("2. imds-guard in enforce mode, with this policy (config and session are for everyone)");
    for line in AGENTS.lines() {
        println!("  {}", story.paint.dim(line));
    }
    println!();
    let guard = bed.guard(&Policy::enforce().without_agent().with(AGENTS));
    let before = bed.cloud.received().len();
    story.act(bed, |request| if request.allowed { Expected::Answer } else { Expected::Refusal });
    let allowed = REQUESTS.iter().filter(|request| request.allowed).count();
    story.check("no refused request reached the cloud", bed.cloud.received().len() - before == allowed);
    events_of(&guard)
}

fn audit(story: &mut Story, bed: &Bed) -> Vec<Event> {
    story.headline("3. The same policy in audit mode: nothing is refused, everything is recorded");
    let guard = bed.guard(&Policy::audit().without_agent().with(AGENTS));
    story.act(bed, |_| Expected::Answer);
    let events = events_of(&guard);
    let marked = events.iter().filter(|event| event.text("imds_guard.would_deny") == "true").count();
    let refusable = REQUESTS.iter().filter(|request| !request.allowed).count();
    story.check("the log marks each request that enforce would refuse", marked == refusable);
    let log = std::fs::read_to_string(guard.log()).unwrap_or_default();
    story.check("no secret is in the log", !log.contains(SECRET_MARK));
    events
}

/// The events of all requests of an act; the last ones may take a moment to be written.
fn events_of(guard: &support::guard::Guard) -> Vec<Event> {
    wait::until("an event for each request", Duration::from_secs(5), || {
        let is_request = |event: &Event| event.text("event.action") == "request";
        let events: Vec<Event> = guard.events().into_iter().filter(is_request).collect();
        (events.len() >= REQUESTS.len()).then_some(events)
    })
}
