//! TLS to the metadata service: the caller speaks plain HTTP, the guard judges, and speaks TLS where the policy wants it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::bed::{Bed, PERSON_UID};
use crate::support::caller::Curl;
use crate::support::connection::End;
use crate::support::event::Event;
use crate::support::guard::Guard;
use crate::support::policy::Policy;
use crate::support::simulator::{Options, Received, SECRET_MARK, Simulator};
use crate::support::tls::{self, Authority, GOOGLE, Leaf, TlsServer, Validity};
use crate::support::wait;

const TLS: &str = "169.254.169.254:443";
const PLAIN: &str = "169.254.169.254:80";
const TOKEN: &str = "/computeMetadata/v1/instance/service-accounts/default/token";
const ID: &str = "/computeMetadata/v1/instance/id";
const CERTS: &str = "/computeMetadata/v1/instance/credentials/certs";

/// The guard looks at the files every few seconds.
const RENEWED: Duration = Duration::from_secs(40);

/// Google's metadata service and the files by which this machine knows it and shows itself.
struct Google {
    bed: Bed,
    servers: Authority,
    clients: Authority,
    /// What the guard sees as /run.
    run: TempDir,
}

impl Google {
    fn new() -> Self {
        let bed = Bed::new();
        let run = tempfile::Builder::new().prefix(&bed.name).tempdir().unwrap();
        let (servers, clients) = (Authority::new("decoy servers"), Authority::new("decoy clients"));
        let google = Self { bed, servers, clients, run };
        google.write_files(&google.client(Validity::Valid));
        google
    }

    fn root_file(&self) -> PathBuf {
        self.run.path().join("google-mds-mtls/root.crt")
    }

    fn client_file(&self) -> PathBuf {
        self.run.path().join("google-mds-mtls/client.key")
    }

    fn write_files(&self, client: &Leaf) {
        tls::write(&self.root_file(), self.servers.pem());
        tls::write(&self.client_file(), &client.pem);
    }

    fn client(&self, validity: Validity) -> Leaf {
        self.clients.issue("decoy-vm", validity)
    }

    /// The TLS service, which asks for a certificate of this machine.
    fn serve(&self) -> TlsServer {
        self.serve_as(&self.servers.issue(GOOGLE, Validity::Valid))
    }

    fn serve_as(&self, leaf: &Leaf) -> TlsServer {
        TlsServer::start(&self.bed.network.cloud, TLS, leaf, Some(&self.clients))
    }

    fn guard(&self, policy: &Policy) -> Guard {
        Guard::start_over(&self.bed.network.vm, policy, &[(self.run.path(), "/run")])
    }

    /// The listed agent asks in clear.
    fn ask(&self, path: &str) -> Curl {
        let url = format!("http://169.254.169.254{path}");
        self.bed.agent().curl(&["-H", "Metadata-Flavor: Google", "--path-as-is", &url])
    }

    fn reached(&self, path: &str) -> Vec<Received> {
        self.bed.reached(path)
    }
}

/// The TLS server passes on what it reads from the metadata address itself; the guard comes from the vm's.
fn came_over_tls(received: &Received) -> bool {
    received.peer.ip() == received.listener.ip()
}

fn both(tls: &str) -> [Policy; 2] {
    [Policy::enforce(), Policy::audit()].map(|policy| wants(policy, tls))
}

fn wants(policy: Policy, tls: &str) -> Policy {
    policy.cloud("gcp").guard(&format!("upstream-tls = \"{tls}\""))
}

fn told(event: &Event) -> String {
    event.text("imds_guard.upstream.tls")
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_guard_speaks_tls_for_callers_that_do_not() {
    for policy in both("require").into_iter().chain(both("prefer")) {
        let google = Google::new();
        let server = google.serve();
        let guard = google.guard(&policy);
        let answer = google.ask(TOKEN).answer;
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains(SECRET_MARK));
        let reached = google.reached(TOKEN);
        assert!(reached.iter().all(came_over_tls) && reached.len() == 1 && server.accepted() == 1);
        assert!(reached[0].text().contains(&format!("\r\nHost: {GOOGLE}\r\n")), "{}", reached[0].text());
        assert_eq!(told(&guard.event_for(TOKEN)), "established");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn tls_changes_nothing_about_who_may_what() {
    let google = Google::new();
    let server = google.serve();
    let guard = google.guard(&wants(Policy::enforce(), "require"));
    let url = format!("http://169.254.169.254{TOKEN}");
    assert!(google.bed.webapp().get_with(&url, &["Metadata-Flavor: Google"]).is_refusal());
    assert_eq!(told(&guard.event_for(TOKEN)), "");
    assert_eq!((server.accepted(), google.reached(TOKEN).len()), (0, 0));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn without_the_key_nothing_is_asked_over_tls() {
    for policy in [Policy::enforce(), Policy::audit()] {
        let google = Google::new();
        let server = google.serve();
        let guard = google.guard(&policy.cloud("gcp"));
        assert_eq!(google.ask(TOKEN).answer.status, 200);
        assert_eq!(told(&guard.event_for(TOKEN)), "");
        assert_eq!(server.accepted(), 0);
        assert!(google.reached(TOKEN)[0].text().contains("\r\nHost: 169.254.169.254\r\n"));
    }
}

/// Each kind of wrong certificate, under both settings and in both modes: reset, told, and nothing of it sent.
fn is_not_believed(leaf: impl Fn(&Google) -> Leaf, fault: &str) {
    for policy in both("require").into_iter().chain(both("prefer")) {
        let google = Google::new();
        let _server = google.serve_as(&leaf(&google));
        let guard = google.guard(&policy);
        let curl = google.ask(TOKEN);
        assert_ne!(curl.exit, 0, "an answer came: {:?}", curl.answer);
        let event = guard.event_for(TOKEN);
        assert_eq!(event.text("imds_guard.result"), "upstream-failed");
        assert_eq!(event.text("message"), format!("the metadata service's certificate {fault}"));
        assert_eq!(told(&event), "failed");
        assert!(google.reached(TOKEN).is_empty(), "it was asked all the same");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_expired_certificate_is_not_believed() {
    is_not_believed(|google| google.servers.issue(GOOGLE, Validity::Expired), "has expired");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_foreign_certificate_is_not_believed() {
    let fault = "is signed by nobody who is trusted for it";
    is_not_believed(|_| Authority::new("decoy servers").issue(GOOGLE, Validity::Valid), fault);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_certificate_for_another_name_is_not_believed() {
    is_not_believed(
        |google| google.servers.issue("metadata.google.example", Validity::Valid),
        "is for another name",
    );
}

/// What clients get for their own certificates is signed by another authority than the service's.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_client_s_certificate_does_not_make_a_service() {
    let fault = "is signed by nobody who is trusted for it";
    is_not_believed(|google| google.clients.issue(GOOGLE, Validity::Valid), fault);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn prefer_asks_in_clear_where_no_tls_is_spoken() {
    for policy in both("prefer") {
        let google = Google::new();
        let guard = google.guard(&policy);
        assert_eq!(google.ask(TOKEN).answer.status, 200);
        assert_eq!(told(&guard.event_for(TOKEN)), "declined");
        assert!(google.reached(TOKEN)[0].text().contains("\r\nHost: 169.254.169.254\r\n"));
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn prefer_asks_in_clear_where_the_port_speaks_something_else() {
    let google = Google::new();
    let at = [TLS.parse().unwrap()];
    let other = google.bed.network.cloud.enter(|| Simulator::start(&at, Options::default())).unwrap();
    let guard = google.guard(&wants(Policy::enforce(), "prefer"));
    assert_eq!(google.ask(TOKEN).answer.status, 200);
    assert_eq!(told(&guard.event_for(TOKEN)), "declined");
    assert!(other.received().is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn require_asks_nothing_in_clear() {
    for policy in both("require") {
        let google = Google::new();
        let guard = google.guard(&policy);
        assert_ne!(google.ask(TOKEN).exit, 0);
        let event = guard.event_for(TOKEN);
        assert_eq!(told(&event), "failed");
        assert_eq!(
            event.text("message"),
            "TLS is required, and the metadata service does not speak it with this machine"
        );
        assert!(google.reached(TOKEN).is_empty());
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn without_certificates_prefer_asks_in_clear_and_require_not_at_all() {
    for (tls, exit, told_as) in [("prefer", 0, "no-certificate"), ("require", 52, "failed")] {
        let google = Google::new();
        let server = google.serve();
        fs::remove_file(google.client_file()).unwrap();
        let guard = google.guard(&wants(Policy::enforce(), tls));
        let curl = google.ask(TOKEN);
        assert_eq!(curl.exit == 0, exit == 0, "{}", curl.message);
        assert_eq!(told(&guard.event_for(TOKEN)), told_as);
        assert_eq!(google.reached(TOKEN).len(), usize::from(exit == 0));
        assert_eq!(server.accepted(), 0);
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn files_that_others_could_have_written_are_not_believed() {
    let spoil: [fn(&Path); 3] = [
        |file| chown(file, Some(PERSON_UID), None).unwrap(),
        |file| fs::set_permissions(file, PermissionsExt::from_mode(0o666)).unwrap(),
        |file| fs::write(file, vec![b'\n'; (1 << 20) + 1]).unwrap(),
    ];
    for spoil in spoil {
        let google = Google::new();
        let server = google.serve();
        spoil(&google.root_file());
        let guard = google.guard(&wants(Policy::enforce(), "require"));
        assert_ne!(google.ask(TOKEN).exit, 0);
        let message = guard.event_for(TOKEN).text("message");
        assert_eq!(message, "TLS is required, and the certificates for it are not there");
        assert!(guard.output().contains("certificates are not used"), "{}", guard.output());
        assert_eq!((server.accepted(), google.reached(TOKEN).len()), (0, 0));
    }
}

/// The guest agent asks for the client's certificate in clear: without that path there would never be one.
#[test]
#[ignore = "needs root: make test runs it"]
fn what_the_certificate_is_made_from_goes_in_clear_and_nothing_beside_it() {
    for policy in both("require") {
        let google = Google::new();
        let guard = google.guard(&policy);
        assert_eq!(google.ask(CERTS).exit, 0);
        assert_eq!(told(&guard.event_for(CERTS)), "bootstrap");
        assert_eq!(google.reached(CERTS).len(), 1);
        for beside in [
            format!("{CERTS}/../../service-accounts/default/token"),
            format!("{CERTS}/%2e%2e/%2e%2e/service-accounts/default/token"),
            format!("{CERTS}/../certs/../../service-accounts/default/token?x=/certs"),
        ] {
            google.ask(&beside);
            assert!(google.reached("token").is_empty(), "{beside}");
        }
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn certificates_are_taken_when_they_come_and_when_they_change() {
    let google = Google::new();
    fs::remove_file(google.client_file()).unwrap();
    let server = google.serve();
    let guard = google.guard(&wants(Policy::enforce(), "require"));
    let is_served = || google.ask(TOKEN).exit == 0;
    assert!(!is_served());
    google.write_files(&google.client(Validity::Valid));
    wait::until_true("the certificate that came is used", RENEWED, is_served);
    drop(server);
    let renewed = Google { clients: Authority::new("other clients"), ..google };
    let _server = renewed.serve();
    let is_served = || renewed.ask(TOKEN).exit == 0;
    assert!(!is_served(), "the old certificate was taken");
    // A file that is half written replaces nothing, and hinders nothing when it is whole.
    tls::write(&renewed.client_file(), "-----BEGIN CERTIFICATE-----\n");
    wait::until_true("the broken file is noticed", RENEWED, || {
        guard.output().contains("those from before stay in use")
    });
    renewed.write_files(&renewed.client(Validity::Valid));
    wait::until_true("the certificate that changed is used", RENEWED, is_served);
    assert!(renewed.reached(TOKEN).iter().all(came_over_tls));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn when_the_service_turns_the_machine_away_prefer_asks_in_clear_and_require_not_at_all() {
    for (tls, served, told_as) in [("prefer", true, "declined"), ("require", false, "")] {
        let google = Google::new();
        google.write_files(&google.client(Validity::Expired));
        let _server = google.serve();
        let guard = google.guard(&wants(Policy::enforce(), tls));
        assert_eq!(google.ask(TOKEN).exit == 0, served);
        assert_eq!(told(&guard.event_for(TOKEN)), told_as);
        assert_eq!(google.reached(TOKEN).len(), usize::from(served));
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_kept_connection_goes_over_tls_as_soon_as_the_policy_wants_it() {
    let google = Google::new();
    let _server = google.serve();
    let guard = google.guard(&wants(Policy::audit(), "off"));
    let mut kept = google.bed.agent().connect(PLAIN);
    for (tls, over_tls) in [("off", false), ("require", true), ("off", false)] {
        guard.reload(&wants(Policy::audit(), tls));
        kept.get(ID, &["Metadata-Flavor: Google"]);
        assert_eq!(kept.answer().map(|answer| answer.status), Some(200));
        assert_eq!(google.reached(ID).last().map(came_over_tls), Some(over_tls), "{tls}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_audit_cannot_read_goes_over_tls_too() {
    let google = Google::new();
    let server = google.serve();
    let guard = google.guard(&wants(Policy::audit(), "require"));
    let mut person = google.bed.person().connect(PLAIN);
    let unreadable =
        format!("GET  {ID} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata-Flavor: Google\r\n\r\n");
    person.send(unreadable.as_bytes());
    assert_eq!(person.answer().map(|answer| answer.status), Some(200));
    assert!(google.reached(ID).iter().all(came_over_tls));
    drop(server);
    let mut person = google.bed.person().connect(PLAIN);
    person.send(unreadable.as_bytes());
    assert_eq!(person.end(), End::Reset);
    guard.event("of the bytes", |event| event.text("event.action") == "unjudged");
    assert_eq!(google.reached(ID).len(), 1);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_redirect_leads_back_to_where_the_caller_came_from() {
    let google = Google::new();
    let _server = google.serve();
    let _guard = google.guard(&wants(Policy::enforce(), "require"));
    let answer = google.ask("/computeMetadata/v1/instance/attributes").answer;
    assert_eq!(answer.status, 301);
    assert_eq!(
        answer.header("location"),
        Some("http://169.254.169.254/computeMetadata/v1/instance/attributes/")
    );
}

#[test]
#[ignore = "needs root: make test runs it"]
fn where_several_clouds_may_be_meant_require_asks_nothing() {
    let google = Google::new();
    let server = google.serve();
    let guard = google.guard(&Policy::enforce().guard("upstream-tls = \"require\""));
    assert_ne!(google.ask(TOKEN).exit, 0);
    let message = guard.event_for(TOKEN).text("message");
    assert_eq!(message, "TLS is required, and which cloud this is is not certain");
    assert_eq!((server.accepted(), google.reached(TOKEN).len()), (0, 0));
    guard.reload(&Policy::enforce().guard("upstream-tls = \"prefer\""));
    assert_eq!(google.ask(TOKEN).exit, 0);
    assert!(!google.reached(TOKEN).iter().any(came_over_tls));
}

/// IBM's service has a public name, a certificate that systems trust, and asks for none.
#[test]
#[ignore = "needs root: make test runs it"]
fn ibm_is_asked_over_tls_by_the_roots_of_the_system() {
    const NAME: &str = "api.metadata.cloud.ibm.com";
    const INSTANCE: &str = "/metadata/v1/instance";
    let bed = Bed::new();
    let (trusted, foreign) = (Authority::new("decoy public"), Authority::new("somebody else"));
    let bundle = tempfile::Builder::new().prefix(&bed.name).tempdir().unwrap();
    let roots = bundle.path().join("roots.crt");
    tls::write(&roots, trusted.pem());
    let policy = Policy::enforce().cloud("ibm").guard("upstream-tls = \"require\"");
    let mounts = [(&*roots, "/etc/ssl/certs/ca-certificates.crt")];
    let guard = Guard::start_over(&bed.network.vm, &policy, &mounts);
    let ask = || bed.agent().curl(&["-X", "PUT", &format!("http://169.254.169.254{INSTANCE}")]);
    let server = TlsServer::start(&bed.network.cloud, TLS, &foreign.issue(NAME, Validity::Valid), None);
    assert_ne!(ask().exit, 0);
    drop(server);
    let server = TlsServer::start(&bed.network.cloud, TLS, &trusted.issue(NAME, Validity::Valid), None);
    assert_eq!(ask().exit, 0);
    assert_eq!(
        (server.accepted(), bed.reached(INSTANCE).iter().filter(|r| came_over_tls(r)).count()),
        (1, 1)
    );
    guard.event("over TLS", |event| told(event) == "established");
}
