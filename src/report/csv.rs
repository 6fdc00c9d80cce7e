//! The rows as CSV (RFC 4180), for spreadsheets.

use std::io::{self, Write};

use super::escape;
use super::summary::Summary;
use super::table::moment;

const HEADINGS: [&str; 21] = [
    "caller",
    "uid",
    "agent",
    "executable",
    "cloud",
    "classes",
    "method",
    "path",
    "verdict",
    "reason",
    "fault",
    "session",
    "count",
    "refused",
    "would_deny",
    "first",
    "last",
    "signals",
    "suspect",
    "event",
    "decoys",
];

/// Writes one line for each row.
pub fn write(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    write!(out, "{}\r\n", HEADINGS.join(","))?;
    for row in summary.sorted() {
        let who = summary.callers.get(row.caller).map(|caller| &caller.who);
        let signals: Vec<&str> = summary.signals(row.caller).map(super::signals::Signal::code).collect();
        let fields = [
            who.map_or("", |who| who.home.text()).to_owned(),
            who.and_then(|who| who.uid).map(|uid| uid.to_string()).unwrap_or_default(),
            row.agent.clone(),
            row.executable.clone(),
            row.cloud.clone(),
            row.classes.to_string(),
            row.method.clone(),
            row.path.clone(),
            row.verdict.clone(),
            row.reason.clone(),
            row.fault.clone(),
            row.session.clone(),
            row.count.to_string(),
            row.refused.to_string(),
            row.would_deny.to_string(),
            moment(row.first),
            moment(row.last),
            signals.join(" "),
            summary.is_suspect(row.caller).to_string(),
            row.event.clone(),
            row.decoys.to_string(),
        ];
        write!(out, "{}\r\n", fields.map(|field| escape::csv(&field)).join(","))?;
    }
    Ok(())
}
