//! What is redirected, and what must be left alone.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::connection::End;
use crate::support::netns::VM;
use crate::support::policy::Policy;
use crate::support::simulator::SECRET_MARK;

const METADATA: &str = "169.254.169.254";

fn in_both_modes(test: impl Fn(&Bed)) {
    for policy in [Policy::enforce(), Policy::audit()] {
        let bed = Bed::new();
        let _guard = bed.guard(&policy);
        test(&bed);
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn dns_and_ntp_on_the_metadata_address_are_untouched() {
    in_both_modes(|bed| {
        for port in [53, 123] {
            let echo = bed.echo_udp_once(port);
            let back = bed.network.vm.enter(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                socket.send_to(b"question", (METADATA, port)).unwrap();
                let mut buffer = [0_u8; 64];
                let (length, from) = socket.recv_from(&mut buffer).expect("the answer comes");
                assert_eq!(from.to_string(), format!("{METADATA}:{port}"));
                buffer[..length].to_vec()
            });
            assert_eq!(back, b"question");
            assert_eq!(echo.join().unwrap().ip().to_string(), VM[0], "it was not the vm itself that asked");
        }
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn dns_over_tcp_on_the_metadata_address_is_untouched() {
    in_both_modes(|bed| {
        let listener = bed.network.cloud.enter(|| TcpListener::bind((METADATA, 53))).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0_u8; 8];
            stream.read_exact(&mut question).unwrap();
            stream.write_all(&question).unwrap();
        });
        let mut answer = [0_u8; 8];
        bed.network.vm.enter(|| {
            let mut stream = TcpStream::connect((METADATA, 53)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.write_all(b"question").unwrap();
            stream.read_exact(&mut answer).unwrap();
        });
        assert_eq!(&answer, b"question");
        server.join().unwrap();
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_listeners_own_address_is_refused() {
    // Else the guard would be an open relay for whoever finds its port.
    for policy in [Policy::enforce(), Policy::audit()] {
        let bed = Bed::new();
        let guard = bed.guard(&policy);
        let ports = guard.listening_ports();
        assert!(!ports.is_empty());
        for port in ports {
            for host in ["127.0.0.1", "[::1]", VM[0], "[fd99::2]"] {
                let mut connection = bed.agent().connect(&format!("{host}:{port}"));
                connection.get(ROLE_PATH, &[]);
                let answer = connection.answer().unwrap_or_default();
                assert!(answer.status == 0 || answer.is_refusal(), "{host}:{port}: {answer:?}");
                assert!(!answer.text().contains(SECRET_MARK));
            }
        }
        assert!(bed.cloud.received().is_empty());
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_neighbour_cannot_use_the_guard() {
    // In audit mode too: the guard must not make the vm a metadata service for its network.
    in_both_modes(|bed| {
        let attempts = bed.network.cloud.enter(|| {
            (1..1024_u16)
                .filter(|port| *port != 80)
                .filter_map(|port| TcpStream::connect((VM[0], port)).ok())
                .map(|mut stream| {
                    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                    let _ = write!(stream, "GET {ROLE_PATH} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
                    let mut answer = String::new();
                    let _ = stream.read_to_string(&mut answer);
                    answer
                })
                .collect::<Vec<String>>()
        });
        assert!(attempts.iter().all(|answer| !answer.contains(SECRET_MARK)), "{attempts:?}");
        assert!(bed.cloud.received().is_empty());
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_connection_from_before_the_guard_is_reset_in_enforce() {
    let bed = Bed::new();
    let mut connection = bed.webapp().connect("169.254.169.254:80");
    connection.get("/latest/meta-data/instance-id", &[]);
    assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    let _guard = bed.guard(&Policy::enforce());
    connection.get(ROLE_PATH, &[]);
    assert!(connection.answer().is_none());
    assert_eq!(connection.end(), End::Reset);
    assert!(bed.reached(ROLE_PATH).is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_connection_from_before_the_guard_lives_on_in_audit() {
    let bed = Bed::new();
    let mut connection = bed.webapp().connect("169.254.169.254:80");
    connection.get("/latest/meta-data/instance-id", &[]);
    assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    let _guard = bed.guard(&Policy::audit());
    connection.get("/latest/meta-data/instance-type", &[]);
    assert_eq!(connection.answer().map(|answer| answer.text()).as_deref(), Some("t3.small"));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_redirect_leaves_the_rest_of_port_80_alone() {
    in_both_modes(|bed| {
        let listener = bed.network.cloud.enter(|| TcpListener::bind("10.99.0.1:80")).unwrap();
        let server = std::thread::spawn(move || listener.accept().unwrap().1);
        bed.network.vm.enter(|| TcpStream::connect("10.99.0.1:80")).unwrap();
        assert_eq!(server.join().unwrap().ip().to_string(), VM[0]);
    });
}
