//! Other tools' rules and routes beside the guard: its callers are judged all the same, theirs is left as it is, and
//! neither takes the other's changes for an attack. The files beside this one hold each tool's rules.

use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::caller::PYTHON;
use crate::support::policy::Policy;
use crate::support::simulator::SECRET_MARK;

const METADATA: &str = "169.254.169.254";

/// The mark of systemd-imdsd's sockets, and the number of the routing table that it fills.
const IMDSD: u32 = 0x7FFF_0815;

fn fed(mut command: Command, input: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Loads a tool's rules as the tool does: it replaces what it has of its own.
pub(super) fn load(bed: &Bed, file: &str) {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/coexistence").join(file);
    let text = std::fs::read_to_string(rules).unwrap();
    let is_nft = Path::new(file).extension().is_some_and(|extension| extension == "nft");
    let mut command = bed.network.vm.command(if is_nft { "nft" } else { "iptables-restore" });
    command.args(if is_nft { &["-f", "-"][..] } else { &[] });
    fed(command, &text);
}

/// All rules but the guard's, without counters.
fn others(bed: &Bed) -> String {
    let (_, listing) = bed.nft(&["-s", "list", "ruleset"]);
    let mut kept = String::new();
    let mut guards = false;
    for line in listing.lines() {
        if line.starts_with("table ") {
            guards = line.contains("imds_guard");
        }
        if !guards {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

fn assert_guarded(bed: &Bed, enforces: bool) {
    for host in [METADATA, "[fd00:ec2::254]"] {
        let url = format!("http://{host}{ROLE_PATH}");
        assert_eq!(bed.agent().get(&url).status, 200, "{host}");
        let web = bed.webapp().get(&url);
        assert_eq!(web.is_refusal(), enforces, "{host}: {}", web.status);
        assert!(enforces || web.status == 200, "{host}: {}", web.status);
    }
}

/// What is not the guard's business still gets through: a datagram to the same address.
fn assert_dns_passes(bed: &Bed) {
    let echo = bed.echo_udp_once(53);
    bed.network.vm.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(b"question", (METADATA, 53)).unwrap();
        socket.recv_from(&mut [0; 16]).expect("the answer comes");
    });
    echo.join().unwrap();
}

fn coexists(file: &str) {
    for (policy, enforces) in [(Policy::enforce(), true), (Policy::audit(), false)] {
        let bed = Bed::new();
        load(&bed, file);
        let before = others(&bed);
        let mut guard = bed.guard(&policy);
        assert_guarded(&bed, enforces);
        assert_dns_passes(&bed);
        // The tool starts again, or learns something new: its rules come anew, behind the guard's.
        load(&bed, file);
        assert_guarded(&bed, enforces);
        assert_eq!(others(&bed), before, "the guard changed the rules of {file}");
        let alarm =
            guard.events().into_iter().find(|event| event.text("imds_guard.reason").starts_with("redirect"));
        assert!(alarm.is_none(), "{file} was taken for an attack: {alarm:?}");
        guard.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(guard.wait_for_end().success());
        assert_eq!(others(&bed), before, "what is left of the guard changed the rules of {file}");
    }
}

macro_rules! beside {
    ($($test:ident: $file:literal)*) => {$(
        #[test]
        #[ignore = "needs root: make test runs it"]
        fn $test() {
            coexists($file);
        }
    )*};
}

beside! {
    guarded_beside_docker: "docker.rules"
    guarded_beside_ufw: "ufw.rules"
    guarded_beside_firewalld: "firewalld.nft"
    guarded_beside_the_ecs_agent: "ecs.rules"
    guarded_beside_an_eks_node_s_agents: "eks.rules"
    guarded_beside_the_azure_agent: "waagent.rules"
}

/// The routes of systemd-imdsd in its locked mode: only sockets with its mark get to the metadata service.
fn lock_as_imdsd_does(bed: &Bed) {
    bed.network.vm.ip(&format!(
        "route del {METADATA}\nroute add prohibit {METADATA}\n\
         route add {METADATA} via 10.99.0.1 table {IMDSD}\nrule add fwmark {IMDSD} lookup {IMDSD}\n"
    ));
}

/// systemd-imdsd's own user, which is not root and has CAP_NET_ADMIN for the mark.
const IMDSD_UID: u32 = 63_261;

fn locked_policy(mark: bool) -> Policy {
    let policy = Policy::enforce().with(&format!(
        "[[agent]]\nname = \"imdsd\"\nunit = \"systemd-imdsd.service\"\nuser = {IMDSD_UID}\nallow = [\"credentials\"]"
    ));
    if mark { policy.guard_key("upstream-mark = 0x7FFF0815") } else { policy }
}

/// A marked socket of systemd-imdsd's asks; the whole answer, or what Python says of the failure.
fn ask_as_imdsd(bed: &Bed) -> String {
    const ASK: &str = "import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, 36, int(sys.argv[1]))
s.settimeout(5)
s.connect((sys.argv[2], 80))
s.sendall(f'GET {sys.argv[3]} HTTP/1.1\\r\\nHost: {sys.argv[2]}\\r\\nConnection: close\\r\\n\\r\\n'.encode())
print(b''.join(iter(lambda: s.recv(4096), b'')).decode())";
    let uid = IMDSD_UID.to_string();
    let mut command = bed.caller("systemd-imdsd.service", 0).command("setpriv");
    command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
    command.args(["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin", "--", PYTHON, "-c", ASK]);
    let output = command.args([&IMDSD.to_string(), METADATA, ROLE_PATH]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
#[ignore = "needs root: make test runs it"]
fn systemd_imdsd_gets_through_by_its_mark_and_nobody_else() {
    let bed = Bed::new();
    lock_as_imdsd_does(&bed);
    let guard = bed.guard(&locked_policy(true));
    let answer = ask_as_imdsd(&bed);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(SECRET_MARK), "{answer}");
    assert_eq!(guard.event_for(ROLE_PATH).text("imds_guard.agent"), "imdsd");
    // Its route refuses others before the guard could see them, as it does without a guard.
    let curl = bed.agent().curl(&[&format!("http://{METADATA}{ROLE_PATH}")]);
    assert_ne!(curl.exit, 0, "{:?}", curl.answer);
    assert_eq!(bed.reached(ROLE_PATH).len(), 1);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn without_the_mark_the_guard_itself_is_locked_out() {
    let bed = Bed::new();
    lock_as_imdsd_does(&bed);
    let _guard = bed.guard(&locked_policy(false));
    assert!(!ask_as_imdsd(&bed).contains("HTTP/1.1 200"));
    assert!(bed.reached(ROLE_PATH).is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_mark_lends_nobody_root_s_place_at_wireserver() {
    let bed = Bed::new();
    load(&bed, "waagent.rules");
    let _guard = bed.guard(&Policy::audit().guard_key("upstream-mark = 0x7FFF0815"));
    let url = "http://168.63.129.16/machine?comp=goalstate";
    let _ = bed.webapp().curl(&["--max-time", "1", "-H", "x-ms-version: 2012-11-30", url]);
    assert!(bed.reached("/machine").is_empty());
    assert_eq!(bed.agent().curl(&["-H", "x-ms-version: 2012-11-30", url]).exit, 0);
}
