//! Replays `request_forms.toml`: every spelling trick against its one normal form, or the fault it must meet.

use imds_guard::request::{Fault, Gate, Host, Limits, RawHead, Step, Strictness, Target};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Forms {
    target: Vec<TargetForm>,
    query: Vec<QueryForm>,
    host: Vec<HostForm>,
    absolute: Vec<HostForm>,
    head: Vec<HeadForm>,
    hygiene: Vec<HygieneForm>,
    body: Vec<BodyForm>,
}

/// A request target: the path it means and how it is sent, or a fault.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetForm {
    ask: String,
    is: Option<String>,
    sent: Option<String>,
    fault: Option<String>,
    #[serde(default, rename = "note")]
    _note: String,
}

/// A query: its keys and values, or a fault.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryForm {
    ask: String,
    pairs: Option<Vec<String>>,
    #[serde(default)]
    hidden: Vec<String>,
    fault: Option<String>,
    #[serde(default, rename = "note")]
    _note: String,
}

/// A Host header (with a target in absolute form, if `ask` is there): what it means, or a fault.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostForm {
    ask: Option<String>,
    host: String,
    is: Option<String>,
    sent: Option<String>,
    fault: Option<String>,
    #[serde(default, rename = "note")]
    _note: String,
}

/// Bytes that the gate refuses, or passes as a head of so many header lines.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadForm {
    raw: String,
    lines: Option<usize>,
    fault: Option<String>,
    #[serde(default, rename = "note")]
    _note: String,
}

/// A request line (GET without one) and header lines that pass the gate: the faults that enforce refuses.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HygieneForm {
    request: Option<String>,
    lines: Vec<String>,
    faults: Vec<String>,
    #[serde(default, rename = "note")]
    _note: String,
}

/// A chunked body: `ok`, `more` or a fault in each mode, and what is left for the next request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BodyForm {
    raw: String,
    enforce: String,
    audit: String,
    #[serde(default)]
    left: String,
    #[serde(default, rename = "note")]
    _note: String,
}

fn forms() -> Result<Forms, toml::de::Error> {
    toml::from_str(include_str!("request_forms.toml"))
}

fn head(target: &str, host: &str) -> Result<RawHead, Fault> {
    let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    RawHead::read(text.as_bytes(), Limits::default())
}

fn read(target: &str, host: &str) -> Result<Target, String> {
    head(target, host).and_then(|head| Target::read(&head)).map_err(|fault| fault.code().to_owned())
}

/// Replays one table; tells every entry that fails, not only the first.
fn replay<F>(forms: &[F], at_least: usize, judge: impl Fn(&F) -> Result<(), String>) {
    let failures: Vec<String> = forms.iter().filter_map(|form| judge(form).err()).collect();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), forms.len(), failures.join("\n"));
    assert!(forms.len() >= at_least, "the table has shrunk to {}", forms.len());
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, wanted: &T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what:?}: found {found:?}, wanted {wanted:?}")) }
}

fn path_of(target: &Target) -> String {
    target.path().segments().iter().flat_map(|segment| ["/", segment]).collect()
}

#[test]
fn targets() {
    replay(&forms().unwrap().target, 130, |form| {
        let found =
            read(&form.ask, "169.254.169.254").map(|target| (path_of(&target), target.sent().to_owned()));
        let sent = form.sent.as_ref().unwrap_or(&form.ask);
        let wanted = match (&form.is, &form.fault) {
            (Some(path), None) => Ok((path.clone(), sent.clone())),
            (None, Some(fault)) => Err(fault.clone()),
            (Some(_), Some(_)) | (None, None) => {
                return Err(format!("{}: one of `is` and `fault`", form.ask));
            }
        };
        equal(&form.ask, &found, &wanted)
    });
}

#[test]
fn queries() {
    replay(&forms().unwrap().query, 50, |form| {
        let found = read(&format!("/?{}", form.ask), "a").map(|target| {
            let written = |pairs: &[(String, String)]| {
                pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
            };
            (written(target.query().pairs()), written(target.query().hidden()))
        });
        let wanted = form.pairs.clone().ok_or_else(|| form.fault.clone().unwrap_or_default());
        let wanted = wanted.map(|pairs| (pairs, form.hidden.clone()));
        equal(&form.ask, &found, &wanted)
    });
}

fn describe(host: &Host) -> String {
    let (kind, text, port) = match host {
        Host::Ip(address, port) => ("ip", address.to_string(), port),
        Host::Name(name, port) => ("name", name.clone(), port),
    };
    port.map_or(format!("{kind} {text}"), |port| format!("{kind} {text} {port}"))
}

fn judge_host(form: &HostForm) -> Result<(), String> {
    let ask = form.ask.as_deref().unwrap_or("/");
    let target = read(ask, &form.host);
    if let (Ok(target), Some(sent)) = (&target, &form.sent) {
        equal(ask, &target.sent().to_owned(), sent)?;
    }
    let found = target.map(|target| target.host().map(describe).unwrap_or_default());
    let wanted = form.is.clone().ok_or_else(|| form.fault.clone().unwrap_or_default());
    equal(&format!("{ask} {}", form.host), &found, &wanted)
}

#[test]
fn hosts() {
    replay(&forms().unwrap().host, 50, judge_host);
}

#[test]
fn absolute_targets() {
    replay(&forms().unwrap().absolute, 20, judge_host);
}

#[test]
fn heads() {
    replay(&forms().unwrap().head, 90, |form| {
        for strictness in [Strictness::Enforce, Strictness::Audit] {
            let found = match Gate::new(strictness, Limits::default()).step(form.raw.as_bytes()) {
                Step::Head { head, .. } => Ok(head.headers().count()),
                Step::Refused(fault) => Err(fault.code().to_owned()),
                other @ (Step::NeedMore | Step::Body(_) | Step::RequestComplete | Step::Hold) => {
                    Err(format!("{other:?}"))
                }
            };
            let wanted = form.lines.ok_or_else(|| form.fault.clone().unwrap_or_default());
            equal(&form.raw, &found, &wanted)?;
        }
        Ok(())
    });
}

#[test]
fn hygiene() {
    replay(&forms().unwrap().hygiene, 80, |form| {
        let request = form.request.as_deref().unwrap_or("GET / HTTP/1.1");
        let lines: String = form.lines.iter().flat_map(|line| [line, "\r\n"]).collect();
        let text = format!("{request}\r\n{lines}\r\n");
        let head = RawHead::read(text.as_bytes(), Limits::default())
            .map_err(|fault| format!("{text:?}: {fault:?}"))?;
        let found: Vec<String> = head.hygiene().iter().map(|fault| fault.code().to_owned()).collect();
        equal(&text, &found, &form.faults)
    });
}

/// What a gate makes of a chunked body, and what it leaves unread.
fn chunked(body: &str, strictness: Strictness) -> (String, String) {
    let mut gate = Gate::new(strictness, Limits::default());
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(matches!(gate.step(head), Step::Head { .. }));
    let mut unread = body;
    loop {
        match gate.step(unread.as_bytes()) {
            Step::Body(count) => unread = &unread[count..],
            Step::RequestComplete => return ("ok".to_owned(), unread.to_owned()),
            Step::NeedMore => return ("more".to_owned(), unread.to_owned()),
            Step::Refused(fault) => return (fault.code().to_owned(), String::new()),
            Step::Head { .. } | Step::Hold => return ("lost".to_owned(), unread.to_owned()),
        }
    }
}

#[test]
fn bodies() {
    replay(&forms().unwrap().body, 35, |form| {
        for (strictness, wanted) in [(Strictness::Enforce, &form.enforce), (Strictness::Audit, &form.audit)] {
            let (found, left) = chunked(&form.raw, strictness);
            equal(&format!("{strictness:?} {}", form.raw), &found, wanted)?;
            if found == "ok" {
                equal(&form.raw, &left, &form.left)?;
            }
        }
        Ok(())
    });
}

/// Every fault that the table can provoke is provoked by it: a fault without an entry is a check without a
/// test.
#[test]
fn every_fault_has_an_entry() {
    let text = include_str!("request_forms.toml");
    let elsewhere = [
        // Sizes and ends of heads are tested beside the gate; foreign hosts need a catalogue.
        Fault::HeadTooLarge,
        Fault::TooManyHeaders,
        Fault::ChunkOverhead,
        Fault::HeadIncomplete,
        Fault::HostForeign,
    ];
    for fault in Fault::ALL.iter().filter(|fault| !elsewhere.contains(fault)) {
        assert!(text.contains(&format!("\"{}\"", fault.code())), "no entry for {}", fault.code());
    }
}
