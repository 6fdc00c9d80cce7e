//! The configurations that ship the events: the OpenTelemetry Collector runs its own against a receiver of this test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must stop and say so"
)]

mod logs;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use logs::{Event, Logs, ROLE, lines};
use serde_json::Value;

/// A collector takes seconds to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// A collector under test; ended with the test.
struct Collector(Child);

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `None` where none can be had; `make test` says so.
fn collector() -> Option<PathBuf> {
    let output = Command::new("bash").arg(root().join("scripts/collector.sh")).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().into())
}

/// Takes OTLP over HTTP, and passes on the body of each request.
fn receive(listener: TcpListener) -> mpsc::Receiver<Value> {
    let (sender, receiver) = mpsc::sync_channel(64);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                while let Some(body) = request(&stream) {
                    if sender.send(body).is_err() {
                        return;
                    }
                    let _ = (&stream).write_all(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
                    );
                }
            });
        }
    });
    receiver
}

fn request(stream: &TcpStream) -> Option<Value> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}

/// The records of a body: their attributes, text and time.
fn records(body: &Value) -> Vec<(BTreeMap<String, Value>, String, String)> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let resources = list(body, "resourceLogs");
    let scopes = resources.iter().flat_map(|resource| list(resource, "scopeLogs"));
    scopes
        .flat_map(|scope| list(&scope, "logRecords"))
        .map(|record| {
            let attributes = list(&record, "attributes")
                .into_iter()
                .map(|attribute| (attribute["key"].as_str().unwrap().to_owned(), plain(&attribute["value"])));
            let text = record["body"]["stringValue"].as_str().unwrap_or_default().to_owned();
            (attributes.collect(), text, record["timeUnixNano"].as_str().unwrap_or_default().to_owned())
        })
        .collect()
}

/// OTLP's tagged value as plain JSON; its numbers are all floating.
fn plain(value: &Value) -> Value {
    if let Some(items) = value["arrayValue"]["values"].as_array() {
        return items.iter().map(plain).collect();
    }
    value.as_object().and_then(|tagged| tagged.values().next()).cloned().unwrap_or_default()
}

#[test]
fn the_open_telemetry_collector_carries_every_event() {
    let Some(program) = collector() else { return };
    let hostile = "\u{1b}[2J\u{202e}\"}\n{\"event.id\":\"forged\"}";
    let events = [
        Event::new("e-1"),
        Event::new("e-2").asking(ROLE, "credentials").would_deny("no-agent").with("event.severity", 4),
        Event::new("e-3").with("url.path", hostile).with("process.command_line", hostile),
    ];
    let logs = Logs::new(format!("{}half a line of no event\n", lines(&events)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let arriving = receive(listener);
    let said = fs::File::create(logs.directory.path().join("collector.log")).unwrap();
    let _collector = Collector(
        Command::new(program)
            .arg("--config")
            .arg(root().join("docs/shipping/otel-collector.yaml"))
            .env("IMDS_GUARD_LOG", logs.log())
            .env("OTLP_ENDPOINT", endpoint)
            .env("OTLP_ENCODING", "json")
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap(),
    );
    let deadline = Instant::now() + PATIENCE;
    let mut arrived = Vec::new();
    while arrived.len() < events.len() + 1 {
        let left = deadline.saturating_duration_since(Instant::now());
        let body = arriving.recv_timeout(left).unwrap_or_else(|error| {
            let said = fs::read_to_string(logs.directory.path().join("collector.log")).unwrap();
            panic!("{error}; {} records arrived; the collector said:\n{said}", arrived.len())
        });
        arrived.extend(records(&body));
    }
    for Event(event) in &events {
        let (attributes, _, time) = arrived
            .iter()
            .find(|(attributes, _, _)| attributes.get("event.id") == event.get("event.id"))
            .unwrap_or_else(|| panic!("{event:?} is not among {arrived:#?}"));
        for (field, value) in event {
            let got = &attributes[field];
            let same = got == value || (got.as_f64().is_some() && got.as_f64() == value.as_f64());
            assert!(same, "{field}: {got} for {value}");
        }
        assert_eq!(time, "1795510800000000000", "the event's own moment");
    }
    assert!(arrived.iter().any(|(_, text, _)| text == "half a line of no event"), "{arrived:#?}");
    assert!(arrived.iter().all(|(attributes, _, _)| attributes.get("event.id") != Some(&"forged".into())));
}

#[test]
fn each_configuration_reads_the_log_where_the_page_says_and_is_told() {
    let page = read("docs/shipping/README.md");
    let log = "/var/log/imds-guard/audit.jsonl";
    assert!(page.contains(log));
    for entry in fs::read_dir(root().join("docs/shipping")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || page.contains(&format!("`{name}`")), "{name} is not told");
        let text = read(&format!("docs/shipping/{name}"));
        assert!(text.contains(log) || name == "fluent-bit-parsers.conf", "{name} reads another log");
    }
    // Longer lines than any event are none of the guard's; shorter limits would cut events.
    assert!(read("docs/shipping/vector.yaml").contains("max_line_bytes: 262144"));
    assert!(read("docs/shipping/otel-collector.yaml").contains("max_log_size: 256KiB"));
    assert!(read("docs/shipping/fluent-bit.conf").contains("Buffer_Max_Size         256k"));
}
