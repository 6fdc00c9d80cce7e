//! Hundreds of hostile and of legitimate requests, as data, through the real binary to a service that is generous in
//! every way at once: no secret reaches a caller who is not listed, and a listed one misses nothing.
//!
//! What a hostile row shows is checked first: without the guard, it does get the secret.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

use crate::support::bed::WEB_UID;
use crate::support::caller::{Caller, PYTHON};
use crate::support::cgroup::Slice;
use crate::support::guard::Guard;
use crate::support::netns::{Network, unique};
use crate::support::policy::{AGENT, Policy};
use crate::support::wait;
use lenient::{CANARY, Lenient};
use table::Case;

mod lenient;
mod mutations;
mod readings;
mod secrets;
mod table;

const VOLLEY: &str = include_str!("../../support/volley.py");

const PORTS: [u16; 3] = [80, 8080, 32526];

/// Addresses that the other tests do without.
const MORE: [&str; 8] = [
    "169.254.170.2",
    "169.254.170.23",
    "100.100.100.200",
    "100.96.0.96",
    "169.254.0.23",
    "fd00:ec2::23",
    "fd00:c1::a9fe:a9fe",
    "fd00:42::42",
];

/// What no answer of the real service would show, and a leak does.
fn leaks(answer: &[u8]) -> bool {
    answer.windows(CANARY.len()).any(|window| window == CANARY.as_bytes())
}

/// A lenient cloud and a vm; the order of the fields is the order in which they go.
struct Field {
    slice: Slice,
    network: Network,
    cloud: Lenient,
}

impl Field {
    fn new() -> Self {
        let name = unique();
        let network = Network::new(&name);
        let (mut cloud_lines, mut vm_lines) = (String::new(), String::new());
        for address in MORE {
            let (nodad, via) = if address.contains(':') { (" nodad", "fd99::1") } else { ("", "10.99.0.1") };
            let _ = writeln!(cloud_lines, "addr add {address} dev lo{nodad}");
            let _ = writeln!(vm_lines, "route add {address} via {via}");
        }
        network.cloud.ip(&cloud_lines);
        network.vm.ip(&vm_lines);
        let cloud = network.cloud.enter(|| Lenient::start(&PORTS)).expect("the ports are free");
        Self { slice: Slice::new(&name), network, cloud }
    }

    /// A web application that an attacker talks into fetching URLs, and the agent that the policy lists.
    fn stranger(&self) -> Caller<'_> {
        Caller::new(&self.network.vm, self.slice.unit("webapp.service"), WEB_UID)
    }

    fn agent(&self) -> Caller<'_> {
        Caller::new(&self.network.vm, self.slice.unit(AGENT), 0)
    }
}

/// Has one caller send all of these, and gives what came back for each.
fn volley(caller: &Caller<'_>, cases: &[&Case]) -> Vec<Vec<u8>> {
    let mut command = caller.command(PYTHON);
    command.args(["-I", "-S", "-c", VOLLEY]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("python3 runs");
    let lines: String = cases.iter().fold(String::new(), |mut lines, case| {
        let _ = writeln!(
            lines,
            "{} {} {} {}",
            case.to.ip(),
            case.to.port(),
            u8::from(case.low),
            hex(&case.bytes)
        );
        lines
    });
    let mut stdin = child.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("it writes text");
    assert!(child.wait().expect("it ends").success(), "the volley failed");
    writer.join().expect("no panic").expect("it reads its lines");
    let answers: Vec<Vec<u8>> = text.lines().map(unhex).collect();
    assert_eq!(answers.len(), cases.len());
    answers
}

/// The cases that got a secret.
fn leaking(caller: &Caller<'_>, cases: &[&Case]) -> Vec<String> {
    let answers = volley(caller, cases);
    let leaking = answers.iter().zip(cases).filter(|(answer, _)| leaks(answer));
    leaking
        .map(|(answer, case)| {
            format!("{}\n    {}", case.name, String::from_utf8_lossy(answer).escape_debug())
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(digits).collect()
}

/// The clouds of these cases.
fn clouds(cases: &[Case]) -> BTreeSet<&str> {
    cases.iter().map(|case| case.cloud.as_str()).collect()
}

fn hostile() -> Vec<Case> {
    ["targets.toml", "queries.toml", "headers.toml", "framing.toml", "history.toml"]
        .iter()
        .flat_map(|file| table::read(file))
        .collect()
}

fn policy(cloud: &str) -> Policy {
    Policy::enforce().cloud(cloud.to_owned().leak())
}

/// For each cloud alone, then for all at once: where more clouds are judged by, fewer paths are harmless, so that the
/// narrow choice is the harder one.
fn for_each_choice(field: &Field, cases: &[Case], mut each: impl FnMut(&str, &[&Case], &Guard)) {
    for choice in clouds(cases).into_iter().chain(["all"]) {
        let guard = Guard::start(&field.network.vm, &policy(choice));
        let chosen: Vec<&Case> =
            cases.iter().filter(|case| choice == "all" || case.cloud == choice).collect();
        each(choice, &chosen, &guard);
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn no_hostile_request_gets_a_secret() {
    let cases = hostile();
    assert!(cases.len() >= 400, "only {} cases", cases.len());
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "two cases have the same name");
    let field = Field::new();
    field.cloud.set_eager(true);
    let all: Vec<&Case> = cases.iter().collect();
    let harmless: Vec<&str> = volley(&field.stranger(), &all)
        .iter()
        .zip(&cases)
        .filter(|(answer, _)| !leaks(answer))
        .map(|(_, case)| case.name.as_str())
        .collect();
    assert!(
        harmless.is_empty(),
        "{} show nothing, with or without a guard:\n{}",
        harmless.len(),
        harmless.join("\n")
    );
    let mut failures = Vec::new();
    for_each_choice(&field, &cases, |choice, cases, _| {
        for eager in [true, false] {
            field.cloud.set_eager(eager);
            let leaking = leaking(&field.stranger(), cases);
            failures
                .extend(leaking.into_iter().map(|case| format!("cloud = {choice}, eager {eager}: {case}")));
        }
    });
    assert!(failures.is_empty(), "{} got a secret:\n{}", failures.len(), failures.join("\n"));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn no_mutation_of_a_secret_s_path_gets_it() {
    let cases = mutations::all();
    assert!(cases.len() >= 2000, "only {} cases", cases.len());
    let field = Field::new();
    let mut failures = Vec::new();
    for_each_choice(&field, &cases, |choice, cases, _| {
        let leaking = leaking(&field.stranger(), cases);
        failures.extend(leaking.into_iter().map(|case| format!("cloud = {choice}: {case}")));
    });
    assert!(failures.is_empty(), "{} got a secret:\n{}", failures.len(), failures.join("\n"));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn every_legitimate_request_passes_unchanged() {
    let cases = table::read("legitimate.toml");
    assert!(cases.len() >= 150, "only {} cases", cases.len());
    let field = Field::new();
    let all: Vec<&Case> = cases.iter().collect();
    let direct = volley(&field.agent(), &all);
    let mut sent = heads(&field);
    for (answer, case) in direct.iter().zip(&cases) {
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}: {}", case.name, String::from_utf8_lossy(answer));
    }
    let mut failures = Vec::new();
    for_each_choice(&field, &cases, |choice, chosen, guard| {
        let answers = volley(&field.agent(), chosen);
        // Else this would show that the service answers itself.
        let requests =
            || guard.events().iter().filter(|event| event.text("event.action") == "request").count();
        wait::until_true("an event of each", Duration::from_secs(10), || requests() >= chosen.len());
        for (answer, case) in answers.iter().zip(chosen) {
            let at = cases.iter().position(|one| one.name == case.name).expect("it is one of them");
            let (answer, wanted) = (of_the_service(answer), of_the_service(&direct[at]));
            if answer != wanted {
                failures.push(format!(
                    "cloud = {choice}: {}\n  got    {answer:?}\n  wanted {wanted:?}",
                    case.name
                ));
            }
        }
        if choice == "all" {
            let mut arrived = heads(&field);
            sent.sort();
            arrived.sort();
            let missing = sent.iter().filter(|head| !arrived.contains(head));
            failures.extend(missing.map(|head| format!("never arrived as it was sent: {head}")));
        }
        field.cloud.take_received();
    });
    assert!(failures.is_empty(), "{} are not as without the guard:\n{}", failures.len(), failures.join("\n"));
}

/// An answer without what is about one connection: HTTP/1.0 is answered as such, and a closing one says so.
fn of_the_service(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).replace("HTTP/1.0 ", "HTTP/1.1 ").replace("connection: close\r\n", "")
}

/// The heads that arrived, without the lines that are about one connection.
fn heads(field: &Field) -> Vec<String> {
    let about_the_connection =
        ["connection:", "proxy-connection:", "te:", "upgrade:", "http2-settings:", "keep-alive:"];
    let plain = |head: &Vec<u8>| {
        String::from_utf8_lossy(head)
            .lines()
            .filter(|line| {
                !about_the_connection.iter().any(|name| line.to_ascii_lowercase().starts_with(name))
            })
            .collect::<Vec<_>>()
            .join("\n")
            // The absolute form says the same, and goes on as the path.
            .replacen(" http://169.254.169.254/", " /", 1)
    };
    field.cloud.take_received().iter().map(plain).collect()
}
