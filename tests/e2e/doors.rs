//! Opaque doors: TLS on port 443 and gRPC on port 8080 of Google's cloud, where the caller alone decides.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use serde_json::Value;
use tempfile::TempDir;

use crate::identity::{play, scratch};
use crate::support::bed::Bed;
use crate::support::caller::{Caller, PYTHON};
use crate::support::connection::End;
use crate::support::policy::Policy;
use crate::support::simulator::{Options, Simulator};
use crate::support::tls::{self, Authority, GOOGLE, TlsServer, Validity};
use crate::support::wait;

const GRPC: &str = "169.254.169.254:8080";
const TLS: &str = "169.254.169.254:443";
const TOKEN: &str = "/computeMetadata/v1/instance/service-accounts/default/token";
const ID: &str = "/computeMetadata/v1/instance/id";

/// How an HTTP/2 client begins, and how this service's server does: a SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// A gRPC server, as far as the guard can tell: it answers the preface, and then everything by itself.
struct Grpc {
    listener: Arc<TcpListener>,
    knocks: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Grpc {
    fn start(bed: &Bed) -> Self {
        let listener = bed.network.cloud.enter(|| TcpListener::bind(GRPC).expect("the port is free"));
        let (listener, knocks) = (Arc::new(listener), Arc::new(AtomicUsize::new(0)));
        let (accepting, count) = (Arc::clone(&listener), Arc::clone(&knocks));
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                count.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || answer(stream));
            }
        });
        Self { listener, knocks, thread: Some(thread) }
    }

    fn knocks(&self) -> usize {
        self.knocks.load(Ordering::SeqCst)
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer(mut stream: TcpStream) {
    let mut preface = [0; PREFACE.len()];
    if stream.read_exact(&mut preface).is_ok() && preface == PREFACE {
        let _ = stream.write_all(SETTINGS);
        let mut block = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut block) {
            let _ = stream.write_all(&block[..length]);
        }
    }
}

/// Google's TLS service and the files by which clients know it.
struct Google {
    server: TlsServer,
    files: TempDir,
}

fn google(bed: &Bed) -> Google {
    let (servers, clients) = (Authority::new("decoy servers"), Authority::new("decoy clients"));
    let leaf = servers.issue(GOOGLE, Validity::Valid);
    let server = TlsServer::start(&bed.network.cloud, TLS, &leaf, Some(&clients));
    let files = tempfile::Builder::new().prefix(&bed.name).tempdir().unwrap();
    std::fs::set_permissions(files.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    tls::write(&files.path().join("root.crt"), servers.pem());
    tls::write(&files.path().join("client.key"), &clients.issue("decoy-vm", Validity::Valid).pem);
    Google { server, files }
}

fn ask(caller: &Caller<'_>, google: &Google, path: &str) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/mtls_fallback.py");
    let program = std::fs::read_to_string(script).unwrap();
    let output = caller
        .command(PYTHON)
        .args(["-I", "-c", &program])
        .arg(google.files.path())
        .arg(path)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&printed).unwrap_or_else(|error| {
        panic!("{error}: {printed}\n{}", String::from_utf8_lossy(&output.stderr));
    })
}

fn enforce() -> Policy {
    Policy::enforce().cloud("gcp")
}

fn audit() -> Policy {
    Policy::audit().cloud("gcp")
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_client_refused_by_the_tls_alert_falls_back_to_where_it_is_judged() {
    let bed = Bed::new();
    let google = google(&bed);
    let guard = bed.guard(&enforce());
    let config = ask(&bed.webapp(), &google, ID);
    assert_eq!((config["scheme"].as_str(), config["status"].as_u64()), (Some("http"), Some(200)), "{config}");
    assert_eq!(config["tls"], "SSLV3_ALERT_HANDSHAKE_FAILURE", "{config}");
    let token = ask(&bed.webapp(), &google, TOKEN);
    assert_eq!((token["scheme"].as_str(), token["status"].as_u64()), (Some("http"), Some(404)), "{token}");
    let event = guard.event("of the door", |event| event.text("event.action") == "opaque");
    assert_eq!(event.text("imds_guard.result"), "refused");
    assert_eq!(event.text("imds_guard.verdict"), "deny");
    assert_eq!(event.text("destination.port"), "443");
    assert_eq!(google.server.accepted(), 0, "a refused caller's bytes reached the service");
    assert!(bed.reached(TOKEN).is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_caller_with_every_class_passes_the_tls_door() {
    let bed = Bed::new();
    let google = google(&bed);
    let guard = bed.guard(&enforce());
    let token = ask(&bed.agent(), &google, TOKEN);
    assert_eq!((token["scheme"].as_str(), token["status"].as_u64()), (Some("https"), Some(200)), "{token}");
    let event = guard.event("of the door", |event| event.text("event.action") == "opaque");
    assert_eq!(event.text("imds_guard.result"), "tunnelled");
    assert_eq!(google.server.accepted(), 1);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_passes_the_tls_door_and_tells_who_would_not_have() {
    let bed = Bed::new();
    let google = google(&bed);
    let guard = bed.guard(&audit());
    let token = ask(&bed.person(), &google, TOKEN);
    assert_eq!((token["scheme"].as_str(), token["status"].as_u64()), (Some("https"), Some(200)), "{token}");
    let event = guard.event("of the door", |event| event.text("event.action") == "opaque");
    assert_eq!(event.text("imds_guard.result"), "tunnelled");
    assert_eq!(event.text("imds_guard.would_deny"), "true");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_stranger_at_the_grpc_door_is_reset() {
    let bed = Bed::new();
    let grpc = Grpc::start(&bed);
    let guard = bed.guard(&enforce());
    let mut stranger = bed.webapp().connect(GRPC);
    stranger.send(PREFACE);
    assert_eq!(stranger.end(), End::Reset);
    let event = guard.event("of the door", |event| event.text("event.action") == "opaque");
    assert_eq!(event.text("imds_guard.result"), "refused");
    assert_eq!(grpc.knocks(), 0);
    let mut agent = bed.agent().connect(GRPC);
    agent.send(PREFACE);
    assert!(agent.wait_for(SETTINGS));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_passes_the_grpc_door() {
    let bed = Bed::new();
    let _grpc = Grpc::start(&bed);
    let guard = bed.guard(&audit());
    let mut person = bed.person().connect(GRPC);
    person.send(PREFACE);
    assert!(person.wait_for(SETTINGS));
    let event = guard.event("of the door", |event| event.text("event.action") == "opaque");
    assert_eq!(event.text("imds_guard.would_deny"), "true");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_passage_ends_when_its_caller_loses_a_class() {
    let bed = Bed::new();
    let _grpc = Grpc::start(&bed);
    let guard = bed.guard(&enforce());
    let mut agent = bed.agent().connect(GRPC);
    agent.send(PREFACE);
    assert!(agent.wait_for(SETTINGS));
    guard.reload(&enforce().with("# the same, written otherwise"));
    agent.send(b"still there?");
    assert!(agent.wait_for(b"still there?"), "a reload that changes nothing ended it");
    guard.reload(&enforce().without_agent());
    assert_eq!(agent.end(), End::Reset);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn connections_through_a_door_count() {
    let bed = Bed::new();
    let _grpc = Grpc::start(&bed);
    let guard = bed.guard(&audit().with("[guard.limits]\nconnections-per-uid = 1"));
    let mut first = bed.person().connect(GRPC);
    first.send(PREFACE);
    assert!(first.wait_for(SETTINGS));
    let mut second = bed.person().connect(GRPC);
    second.send(PREFACE);
    assert!(matches!(second.end(), End::Closed | End::Reset));
    guard.event("of the limit", |event| event.text("imds_guard.reason") == "too-many-connections-of-uid");
    drop(first);
    wait::until_true("the first connection's place is free", std::time::Duration::from_secs(10), || {
        let mut third = bed.person().connect(GRPC);
        third.send(PREFACE);
        third.wait_for(SETTINGS)
    });
}

/// Where Exoscale may be meant as well as Google, HTTP/1 is read, and what is not HTTP/1 is opaque.
#[test]
#[ignore = "needs root: make test runs it"]
fn where_clouds_disagree_about_a_door_the_first_bytes_tell() {
    const PASSWORD: &[u8] =
        b"GET /1.0/ HTTP/1.1\r\nHost: 169.254.169.254:8080\r\nDomU_Request: send_my_password\r\n\r\n";
    let bed = Bed::new();
    let grpc = Grpc::start(&bed);
    let guard = bed.guard(&Policy::enforce());
    let mut stranger = bed.webapp().connect(GRPC);
    stranger.send(PASSWORD);
    assert!(
        stranger.answer().is_some_and(|answer| answer.is_refusal()),
        "an HTTP request is answered by HTTP"
    );
    let event = guard.event("of the request", |event| event.text("event.action") == "request");
    assert!(event.text("imds_guard.classes").contains("credentials"));
    for first in [PREFACE, b"\x16\x03\x01\x02\0\x01"] {
        let mut stranger = bed.webapp().connect(GRPC);
        stranger.send(first);
        assert_eq!(stranger.end(), End::Reset);
    }
    let mut agent = bed.agent().connect(GRPC);
    agent.send(PREFACE);
    assert!(agent.wait_for(SETTINGS));
    assert_eq!(grpc.knocks(), 1);
    drop((agent, grpc));
    let at: Vec<_> = vec![GRPC.parse().unwrap()];
    let exoscale = bed.network.cloud.enter(|| Simulator::start(&at, Options::default())).unwrap();
    let mut agent = bed.agent().connect(GRPC);
    agent.send(PASSWORD);
    assert!(agent.answer().is_some_and(|answer| !answer.is_refusal()));
    assert_eq!(exoscale.received().len(), 1);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_changes_nothing_at_a_door_where_clouds_disagree() {
    let bed = Bed::new();
    let grpc = Grpc::start(&bed);
    let _guard = bed.guard(&Policy::audit());
    let mut person = bed.person().connect(GRPC);
    person.send(b"P");
    person.send(&PREFACE[1..]);
    assert!(person.wait_for(SETTINGS));
    assert_eq!(grpc.knocks(), 1);
}

/// Where a passage rests on the program, another program on the same connection loses it while bytes pass.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_passage_ends_when_another_program_holds_the_socket() {
    const UID: u32 = 63_202;
    let python = fs::canonicalize("/usr/bin/python3").unwrap();
    let python = python.to_str().unwrap();
    let place = scratch(UID);
    let other = place.path().join("other");
    fs::copy(python, &other).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
    let agent = format!(
        "[[agent]]\nname = \"bound\"\nunit = \"bound.service\"\nuser = {UID}\nexe = \"{python}\"\n\
         allow = [\"credentials\", \"identity\", \"user-data\", \"config\", \"write\"]"
    );
    let bed = Bed::new();
    let _grpc = Grpc::start(&bed);
    let caller = bed.caller("bound.service", UID);
    let guard = bed.guard(&enforce().with(&agent));
    let told = play(&caller, "passage_across_exec", &[python]).unwrap();
    assert_eq!(told, "in\nwhole\n", "the same program passes on");
    let told = play(&caller, "passage_across_exec", &[other.to_str().unwrap()]).unwrap();
    assert_eq!(told, "in\ncut\n");
    guard.event("of the cut", |event| event.text("imds_guard.reason") == "caller-changed");
    drop(guard);
    let _guard = bed.guard(&audit().with(&agent));
    let told = play(&caller, "passage_across_exec", &[other.to_str().unwrap()]).unwrap();
    assert_eq!(told, "in\nwhole\n", "audit changes nothing");
}
