//! Floods the audit log: how many events a second a file takes, and whether what it does not take is counted.
//!
//! usage: `audit_events FILE SECONDS`. Part of `make bench`; prints JSON.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a measurement that cannot go on must stop and say so"
)]

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use imds_guard::audit::event::{Action, Event, Outcome, ProcessSource};
use imds_guard::audit::{Destination, Sink};

/// What the log has to take, in events a second.
const PACE: u64 = 50_000;

/// How long a paced sender sleeps after its share of this time.
const STEP: Duration = Duration::from_millis(1);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (file, seconds) = (Path::new(&arguments[1]), arguments[2].parse().unwrap());
    let found: Vec<_> = [Some(PACE), None]
        .into_iter()
        .map(|pace| measure(file, Duration::from_secs(seconds), pace))
        .collect();
    println!("{}", serde_json::Value::from(found));
}

/// Sends for so long at that pace, or as fast as it goes, and counts what stands in the file.
fn measure(file: &Path, time: Duration, pace: Option<u64>) -> serde_json::Value {
    let senders = thread::available_parallelism().map_or(1, usize::from) as u64;
    let (sink, writer) = Sink::start(Destination::Stream(File::create(file).unwrap())).unwrap();
    let start = Instant::now();
    let sending: Vec<_> = (0..senders)
        .map(|_| {
            let sink = sink.clone();
            let share = pace.map(|pace| pace / senders);
            thread::spawn(move || send(&sink, start, time, share))
        })
        .collect();
    let sent: u64 = sending.into_iter().map(|sender| sender.join().unwrap()).sum();
    let took = start.elapsed();
    sink.close();
    writer.join().unwrap();
    let (mut written, mut told) = (0_u64, 0);
    let text = std::fs::read_to_string(file).unwrap();
    for line in text.lines() {
        match line.split_once("\"imds_guard.count\":") {
            Some((_, count)) => told += count.trim_end_matches('}').parse::<u64>().unwrap(),
            None => written += 1,
        }
    }
    serde_json::json!({
        "pace": pace,
        "seconds": took.as_secs_f64(),
        "bytes": text.lines().next().map_or(0, str::len),
        "sent": sent,
        "written": written,
        "dropped": sink.dropped(),
        "told": told,
    })
}

fn send(sink: &Sink, start: Instant, time: Duration, pace: Option<u64>) -> u64 {
    let mut sent: u64 = 0;
    while start.elapsed() < time {
        match pace {
            // In nanoseconds, so that no share of a step is lost.
            Some(pace)
                if u128::from(sent) * 1_000_000_000 > start.elapsed().as_nanos() * u128::from(pace) =>
            {
                thread::sleep(STEP);
            }
            _ => {
                sink.tell(&event(&sent.to_string()));
                sent += 1;
            }
        }
    }
    sent
}

/// An event such as a permitted credential read leaves.
fn event(id: &str) -> Event<'_> {
    Event {
        outcome: "success",
        duration_ns: Some(412_345),
        mode: Some("enforce"),
        verdict: Some("allow"),
        would_deny: Some(false),
        result: Some(Outcome::Forwarded),
        reason: Some("granted".into()),
        agent: Some("amazon-ssm-agent".into()),
        classes: vec!["credentials"],
        cloud: Some("aws-ec2".into()),
        method: Some("GET".into()),
        path: Some("/latest/meta-data/iam/security-credentials/role".into()),
        user_agent: Some("aws-sdk-go/1.55.5 (go1.22.12; linux; amd64)".into()),
        session: Some("v2"),
        status: Some(200),
        response_bytes: Some(1024),
        source_ip: Some([10, 0, 0, 7].into()),
        source_port: Some(41_234),
        destination_ip: Some([169, 254, 169, 254].into()),
        destination_port: Some(80),
        attribution: Some("stamped"),
        user_id: Some("0".into()),
        cgroup: Some("/system.slice/amazon-ssm-agent.service".into()),
        unit: Some("amazon-ssm-agent.service".into()),
        process_source: Some(ProcessSource::Fresh),
        holders: Some(1),
        pid: Some(1234),
        parent_pid: Some(1),
        process_name: Some("amazon-ssm-agen".into()),
        executable: Some("/usr/bin/amazon-ssm-agent".into()),
        command_line: Some("/usr/bin/amazon-ssm-agent".into()),
        attribution_us: Some(9),
        decision_us: Some(3),
        upstream_us: Some(280),
        ..Event::now(id, Action::Request)
    }
}
