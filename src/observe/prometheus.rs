//! A snapshot as text for Prometheus (exposition format 0.0.4). docs/status.md tells each metric.
//!
//! Its label values come from the policy (agents), from the catalogues (clouds) and from fixed lists: nothing that a
//! caller wrote, and no caller's name but an agent's.

use std::fmt::{self, Write as _};

use super::histogram::Histogram;
use super::snapshot::Snapshot;

/// What `Content-Type` says.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes the metrics.
#[must_use]
pub fn write(snapshot: &Snapshot) -> String {
    let mut page = Page(String::with_capacity(16 << 10));
    guard(&mut page, snapshot);
    requests(&mut page, snapshot);
    connections(&mut page, snapshot);
    endpoints(&mut page, snapshot);
    page.histogram(
        "imds_guard_attribution_seconds",
        "How long it took to find out who calls, for each connection.",
        &snapshot.latency.attribution,
    );
    page.histogram(
        "imds_guard_upstream_seconds",
        "How long the service took to begin its answer.",
        &snapshot.latency.upstream,
    );
    page.0
}

fn guard(page: &mut Page, snapshot: &Snapshot) {
    let (policy, redirect) = (&snapshot.policy, &snapshot.redirect);
    page.family("imds_guard_build_info", "gauge", "The program's version; always 1.");
    page.sample("imds_guard_build_info", &[("version", &snapshot.version)], 1);
    page.gauge(
        "imds_guard_start_timestamp_seconds",
        "When the guard started, in seconds since 1970.",
        snapshot.started.seconds(),
    );
    page.family("imds_guard_policy_info", "gauge", "The policy in force, by its digest and mode; always 1.");
    page.sample("imds_guard_policy_info", &[("version", &policy.version), ("mode", &policy.mode)], 1);
    page.gauge(
        "imds_guard_policy_loaded_timestamp_seconds",
        "When the policy came into force, in seconds since 1970.",
        policy.loaded.seconds(),
    );
    page.gauge(
        "imds_guard_policy_outdated",
        "1 if the files are wrong, and an older policy is in force.",
        u8::from(policy.is_outdated),
    );
    page.counter("imds_guard_reloads_total", "Reloads of the policy.", policy.reloads);
    page.counter(
        "imds_guard_reloads_refused_total",
        "Reloads that were refused because the policy is wrong.",
        policy.refused_reloads,
    );
    page.gauge("imds_guard_redirect_in_place", "1 if the redirect is loaded.", u8::from(redirect.in_place));
    page.counter(
        "imds_guard_redirect_tampered_total",
        "How often somebody else changed or removed the redirect.",
        redirect.tampered,
    );
    page.counter(
        "imds_guard_redirect_failures_total",
        "How often the redirect could not be loaded.",
        redirect.failed,
    );
    page.counter("imds_guard_events_lost_total", "Audit events that were lost.", snapshot.lost_events);
    page.gauge(
        "imds_guard_log_failing",
        "1 if the audit log cannot be written.",
        u8::from(snapshot.log_failing),
    );
    page.gauge("imds_guard_workers", "Threads that serve callers.", snapshot.workers.count);
    page.gauge(
        "imds_guard_workers_silent",
        "Threads that did not answer in time; their figures are older.",
        snapshot.workers.silent,
    );
}

fn requests(page: &mut Page, snapshot: &Snapshot) {
    let name = "imds_guard_requests_total";
    page.family(
        name,
        "counter",
        "Requests that were decided about. Denied ones passed where the mode is audit.",
    );
    for one in &snapshot.decisions {
        let classes: Vec<&str> = one.classes.iter().map(crate::cloud::Class::name).collect();
        let labels = [
            ("cloud", one.cloud.as_str()),
            ("class", &classes.join("+")),
            ("verdict", &one.verdict),
            ("mode", &one.mode),
            ("reason", &one.reason),
            ("agent", &one.agent),
        ];
        page.sample(name, &labels, one.count);
    }
    let name = "imds_guard_results_total";
    page.family(name, "counter", "What became of requests.");
    for (result, count) in &snapshot.results {
        page.sample(name, &[("result", result)], *count);
    }
    page.counter(
        "imds_guard_decoys_total",
        "Decoys that were given: whoever got one is to be looked for.",
        snapshot.decoys,
    );
    let name = "imds_guard_session_reads_total";
    page.family(name, "counter", "Reads where the cloud has session tokens, with one (v2) and without (v1).");
    for (version, count) in &snapshot.sessions {
        page.sample(name, &[("version", version)], *count);
    }
}

fn connections(page: &mut Page, snapshot: &Snapshot) {
    let connections = &snapshot.connections;
    page.gauge("imds_guard_connections_open", "Client connections at this moment.", connections.open);
    let name = "imds_guard_connections_total";
    page.family(name, "counter", "Client connections, by the kernel's answer to who it is.");
    for (attribution, count) in &connections.by_attribution {
        page.sample(name, &[("attribution", attribution)], *count);
    }
    let name = "imds_guard_connections_over_limit_total";
    page.family(name, "counter", "Client connections that were reset because of a limit.");
    page.sample(name, &[("limit", "connections")], connections.over_limit);
    page.sample(name, &[("limit", "connections-per-uid")], connections.over_limit_of_uid);
}

fn endpoints(page: &mut Page, snapshot: &Snapshot) {
    let name = "imds_guard_endpoint_requests_total";
    page.family(name, "counter", "Requests, by the endpoint of the service.");
    for one in &snapshot.endpoints {
        page.sample(name, &[("endpoint", &one.endpoint)], one.requests);
    }
    let name = "imds_guard_endpoint_failures_total";
    page.family(name, "counter", "Requests that the endpoint did not answer.");
    for one in &snapshot.endpoints {
        page.sample(name, &[("endpoint", &one.endpoint)], one.failures);
    }
    let name = "imds_guard_endpoint_reachable";
    page.family(name, "gauge", "1 if the endpoint answered the last request that reached it.");
    for one in &snapshot.endpoints {
        if let Some(reachable) = one.reachable {
            page.sample(name, &[("endpoint", &one.endpoint)], u8::from(reachable));
        }
    }
}

/// The text under way. Writing to a String cannot fail.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{}\"", if at == 0 { '{' } else { ',' }, Escaped(text));
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl fmt::Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (bound, count) in histogram.bounds_us.iter().zip(&histogram.counts) {
            below += count;
            self.sample(&bucket, &[("le", &seconds(*bound).to_string())], below);
        }
        self.sample(&bucket, &[("le", "+Inf")], histogram.count());
        self.sample(&format!("{name}_sum"), &[], seconds(histogram.sum_us));
        self.sample(&format!("{name}_count"), &[], histogram.count());
    }
}

#[expect(clippy::cast_precision_loss, reason = "a duration for people and their graphs")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// A label's value: backslashes, quotes and line breaks escaped, as the format asks.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::snapshot::tests::example;

    #[test]
    fn metrics_are_what_the_snapshot_says() {
        insta::assert_snapshot!(write(&example()));
    }

    #[test]
    fn no_caller_is_named() {
        let text = write(&example());
        for name in ["web.service", "orphan", "/latest", "e-1\"", "slice"] {
            assert!(!text.contains(name), "{name} is in\n{text}");
        }
    }

    #[test]
    fn every_line_is_a_comment_or_one_sample() {
        let text = write(&example());
        assert!(text.ends_with('\n'));
        for line in text.lines().filter(|line| !line.starts_with("# ")) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(name.starts_with("imds_guard_"), "{line}");
        }
        assert!(text.contains(r#"agent="say \"hi\"\n\\""#), "{text}");
    }
}
