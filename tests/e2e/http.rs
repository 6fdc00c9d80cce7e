//! HTTP as real clients speak it: nothing of theirs may break.

use std::time::{Duration, Instant};

use crate::support::bed::{Bed, in_both_modes};
use crate::support::policy::Policy;
use crate::support::simulator::Fault;

const METADATA: &str = "169.254.169.254:80";
const URL: &str = "http://169.254.169.254/latest/meta-data/instance-id";

#[test]
#[ignore = "needs root: make test runs it"]
fn a_put_without_content_length() {
    in_both_modes(|bed| {
        let mut connection = bed.agent().connect(METADATA);
        connection.send(
            b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\
              X-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n",
        );
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn expect_100_continue() {
    in_both_modes(|bed| {
        let mut connection = bed.agent().connect(METADATA);
        connection.send(
            b"PUT /computeMetadata/v1/instance/guest-attributes/decoy/key HTTP/1.1\r\nHost: 169.254.169.254\r\n\
              Metadata-Flavor: Google\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        );
        assert_eq!(connection.answer().map(|answer| answer.status), Some(100));
        connection.send(b"value");
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
        assert_eq!(bed.cloud.received()[0].body, 5);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_chunked_request_body() {
    in_both_modes(|bed| {
        let mut connection = bed.agent().connect(METADATA);
        connection.send(
            b"PUT /computeMetadata/v1/instance/guest-attributes/decoy/key HTTP/1.1\r\nHost: 169.254.169.254\r\n\
              Metadata-Flavor: Google\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
        );
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
        assert_eq!(bed.cloud.received()[0].body, 7);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn head_has_the_length_and_no_body() {
    in_both_modes(|bed| {
        let curl = bed.person().curl(&["-I", URL]);
        assert_eq!(curl.exit, 0, "{}", curl.message);
        assert_eq!(curl.answer.header("content-length"), Some("8"));
        assert_eq!(
            bed.cloud.received()[0].text().lines().next(),
            Some("HEAD /latest/meta-data/instance-id HTTP/1.1")
        );
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn http_1_0_is_answered_and_closed() {
    in_both_modes(|bed| {
        let mut connection = bed.person().connect(METADATA);
        connection.send(b"GET /latest/meta-data/instance-id HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n");
        assert_eq!(connection.answer().map(|answer| answer.text()).as_deref(), Some("i-0decoy"));
        assert!(connection.answer().is_none(), "an HTTP/1.0 connection ends after its answer");
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_absolute_form_of_the_endpoint_itself() {
    // What clients send that believe in a proxy from http_proxy.
    in_both_modes(|bed| {
        let mut connection = bed.person().connect(METADATA);
        connection.get(URL, &[]);
        assert_eq!(connection.answer().map(|answer| answer.text()).as_deref(), Some("i-0decoy"));
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn answers_204_and_304_pass_untouched() {
    // cloud-init takes an empty 200 for a failure and asks for two minutes, where 204 says "no user data".
    in_both_modes(|bed| {
        for status in [204, 304] {
            bed.cloud.set_fault(Fault::Status(status));
            let mut connection = bed.person().connect(METADATA);
            connection.get("/latest/meta-data/instance-id", &[]);
            let answer = connection.answer().expect("an answer");
            assert_eq!(answer.status, status);
            assert_eq!(answer.header("etag"), Some("\"decoy\""));
            assert_eq!(answer.header("transfer-encoding"), None);
            assert!(matches!(answer.header("content-length"), None | Some("0")));
        }
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_chunked_answer_arrives_whole() {
    in_both_modes(|bed| {
        bed.cloud.set_fault(Fault::Chunked);
        assert_eq!(bed.person().get(URL).text(), "firstsecond");
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn answers_keep_their_headers_and_gain_none() {
    in_both_modes(|bed| {
        let url = "http://169.254.169.254/computeMetadata/v1/instance/id";
        let direct: Vec<_> = bed.person().get_with(url, &["Metadata-Flavor: Google"]).headers;
        let names: Vec<&str> = direct.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["content-type", "etag", "metadata-flavor", "server", "content-length"] {
            assert!(names.contains(&name), "{name} is missing: {names:?}");
        }
        for name in ["via", "date", "x-imds-guard", "transfer-encoding"] {
            assert!(!names.contains(&name), "{name} was added");
        }
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_cloud_sees_no_trace_of_a_proxy() {
    in_both_modes(|bed| {
        bed.person().get_with(URL, &["User-Agent: decoy/1"]);
        let head = bed.cloud.received()[0].text().to_ascii_lowercase();
        for trace in ["x-forwarded", "forwarded:", "via:", "x-real-ip"] {
            assert!(!head.contains(trace), "{head}");
        }
        assert!(head.contains("\r\nhost: 169.254.169.254\r\n"), "{head}");
        assert!(head.contains("\r\nuser-agent: decoy/1\r\n"), "{head}");
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_redirects_location_is_built_from_the_callers_host() {
    in_both_modes(|bed| {
        let answer = bed.person().get_with(
            "http://169.254.169.254/computeMetadata/v1/instance/service-accounts",
            &["Metadata-Flavor: Google", "Host: metadata.google.internal"],
        );
        assert_eq!(answer.status, 301);
        let wanted = "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/";
        assert_eq!(answer.header("location"), Some(wanted));
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_long_poll_is_not_cut() {
    // Longer than every time limit that this policy has; the change comes when it comes.
    for policy in [Policy::enforce(), Policy::audit()] {
        let bed = Bed::new();
        let _guard = bed.guard(&policy.with("[guard.limits]\nidle-seconds = 1\nhead-seconds = 1"));
        let mut connection = bed.agent().connect(METADATA);
        connection.get(
            "/computeMetadata/v1/instance/?wait_for_change=true&recursive=true",
            &["Metadata-Flavor: Google"],
        );
        assert!(
            connection.is_silent_for(Duration::from_secs(4)),
            "it was answered, or cut, before the change"
        );
        bed.cloud.change();
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_long_poll_with_its_own_limit_is_answered_then() {
    in_both_modes(|bed| {
        let start = Instant::now();
        let url = "http://169.254.169.254/computeMetadata/v1/instance/id?wait_for_change=true&timeout_sec=2";
        assert_eq!(bed.person().get_with(url, &["Metadata-Flavor: Google"]).status, 200);
        assert!(start.elapsed() >= Duration::from_secs(2));
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_body_of_100_megabytes_streams() {
    const LENGTH: u64 = 100 << 20;
    let bed = Bed::new();
    let guard = bed.guard(&Policy::enforce());
    bed.cloud.set_fault(Fault::BigBody(LENGTH));
    let curl = bed.agent().curl(&[
        "--no-include",
        "--max-time",
        "60",
        "-o",
        "/dev/null",
        "-w",
        "%{size_download}",
        URL,
    ]);
    assert_eq!(curl.exit, 0, "{}", curl.message);
    assert_eq!(String::from_utf8_lossy(&curl.answer.body), LENGTH.to_string());
    let peak = crate::support::guard::status_field(guard.proxy(), "VmHWM").expect("a running proxy");
    let kilobytes: u64 = peak.trim_end_matches(" kB").parse().expect("a number");
    assert!(kilobytes < 64 * 1024, "the body was collected in memory: {peak}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_half_closed_client_still_gets_its_answer() {
    in_both_modes(|bed| {
        bed.cloud.set_fault(Fault::Slow(Duration::from_millis(500)));
        let mut connection = bed.person().connect(METADATA);
        connection.get("/latest/meta-data/instance-id", &[]);
        connection.half_close();
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200));
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_answer_that_ends_with_its_connection_arrives_whole() {
    in_both_modes(|bed| {
        bed.cloud.set_fault(Fault::Unframed);
        let curl = bed.person().curl(&[URL]);
        assert_eq!((curl.exit, curl.answer.text().as_str()), (0, "to the end"), "{}", curl.message);
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_first_half_of_a_body_does_not_wait_for_the_second() {
    in_both_modes(|bed| {
        bed.cloud.set_fault(Fault::Pause(Duration::from_secs(2)));
        let mut connection = bed.person().connect(METADATA);
        connection.get("/latest/meta-data/instance-id", &[]);
        assert!(connection.wait_for(b"first"), "it never came");
        assert!(!connection.unread_text().contains("second"), "it was held back");
        assert_eq!(connection.answer().map(|answer| answer.text()).as_deref(), Some("firstsecond"));
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_service_that_closes_without_saying_so_is_not_noticed() {
    // The guard keeps connections to the service open; the one that it is about to use again may be gone.
    in_both_modes(|bed| {
        bed.cloud.set_fault(Fault::CloseAfter);
        let mut connection = bed.person().connect(METADATA);
        for number in 0..50 {
            connection.get("/latest/meta-data/instance-id", &[]);
            assert_eq!(connection.answer().map(|answer| answer.status), Some(200), "request {number}");
        }
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn every_name_of_the_service_is_its_name() {
    in_both_modes(|bed| {
        for host in [
            "169.254.169.254",
            "169.254.169.254:80",
            "metadata.google.internal",
            "METADATA.google.internal.",
            "metadata",
            "instance-data",
            "instance-data.ec2.internal",
        ] {
            let answer = bed.person().get_with(URL, &[&format!("Host: {host}")]);
            assert_eq!(answer.text(), "i-0decoy", "{host}");
        }
        let v6 = bed.person().get("http://[fd00:ec2::254]:80/latest/meta-data/instance-id");
        assert_eq!(v6.text(), "i-0decoy");
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_get_that_says_it_has_no_body() {
    in_both_modes(|bed| {
        assert_eq!(bed.person().get_with(URL, &["Content-Length: 0"]).text(), "i-0decoy");
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn header_names_keep_their_case_and_order() {
    // Azure's guest agent and some appliances are known to care.
    in_both_modes(|bed| {
        bed.person().get_with(URL, &["x-Second-FIRST: 1", "X-First-second: 2", "zeta: 3"]);
        let head = bed.cloud.received()[0].text();
        let place = |line: &str| head.find(line).unwrap_or_else(|| panic!("{line} is missing: {head}"));
        assert!(place("x-Second-FIRST: 1") < place("X-First-second: 2"), "{head}");
        assert!(place("X-First-second: 2") < place("zeta: 3"), "{head}");
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_large_upload_streams() {
    // vmAgentLog and guest attributes: tens of megabytes upwards.
    in_both_modes(|bed| {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(30 << 20).unwrap();
        let url = "http://169.254.169.254/computeMetadata/v1/instance/guest-attributes/decoy/key";
        let upload = format!("@{}", file.path().display());
        let arguments =
            ["-X", "PUT", "-H", "Metadata-Flavor: Google", "--data-binary", &upload, "--max-time", "30", url];
        let curl = bed.agent().curl(&arguments);
        assert_eq!((curl.exit, curl.answer.status), (0, 200), "{}", curl.message);
        assert_eq!(bed.cloud.received()[0].body, 30 << 20);
    });
}
