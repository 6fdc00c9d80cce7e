//! `imds-guard report`: what was seen.

use std::io::{self, Write as _};

use serde_json::json;

use super::{Exit, input, output, talk};
use crate::cli::ReportArgs;
use crate::cloud::Classes;
use crate::report::log::Tally;
use crate::report::summary::{Row, Summary};
use crate::report::table::{Table, count, moment};
use crate::report::{csv, html};

/// A table on a terminal is for reading; JSON and CSV have all rows.
const SHOWN: usize = 200;

/// Reads the logs and tells what is in them.
pub fn run(args: &ReportArgs) -> anyhow::Result<Exit> {
    let logs = input::logs(&args.logs, &args.config)?;
    let mut summary = Summary::default();
    let tally = input::read(&args.logs, &logs, |record| {
        if args.session.is_none_or(|session| session.takes(record)) {
            summary.add(record);
        }
    })?;
    if tally.events == 0 {
        talk("the logs hold no events that count");
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    if let Some(path) = &args.html {
        let page = html::page(&summary, &tally, jiff::Timestamp::now().as_second());
        output::replace(path, page.as_bytes())?;
    } else if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&told(&summary, &tally))?)?;
    } else if args.csv {
        csv::write(&summary, &mut out)?;
    } else {
        show(&summary, &mut out)?;
    }
    out.flush()?;
    Ok(Exit::Success)
}

fn told(summary: &Summary, tally: &Tally) -> serde_json::Value {
    let callers: Vec<_> = (0..)
        .zip(&summary.callers)
        .map(|(at, caller)| {
            json!({
                "caller": caller.who,
                "requests": caller.count,
                "denied": caller.denied,
                "signals": summary.signals(at).collect::<Vec<_>>(),
                "suspect": summary.is_suspect(at),
            })
        })
        .collect();
    let rows: Vec<_> = summary
        .sorted()
        .into_iter()
        .map(|row| {
            let mut value = serde_json::to_value(row).unwrap_or_default();
            if let Some(object) = value.as_object_mut() {
                let who = summary.callers.get(row.caller).map(|caller| &caller.who);
                object.insert("caller".to_owned(), json!(who));
                object.insert("first".to_owned(), json!(iso(row.first)));
                object.insert("last".to_owned(), json!(iso(row.last)));
            }
            value
        })
        .collect();
    json!({
        "requests": summary.requests,
        "denied": summary.denied,
        "would_deny": summary.would_deny,
        "decoys": summary.decoys,
        "lost": summary.lost,
        "callers": callers,
        "rows": rows,
        "log": tally,
    })
}

fn iso(seconds: i64) -> Option<String> {
    (seconds > 0).then(|| jiff::Timestamp::from_second(seconds).ok().map(|moment| moment.to_string()))?
}

fn show(summary: &Summary, out: &mut impl io::Write) -> anyhow::Result<()> {
    let mut table = Table::new(
        &["COUNT", "VERDICT", "CALLER", "EXECUTABLE", "CLOUD", "REQUEST", "TOUCHES", "WHY", "FIRST", "LAST"],
        &[0],
    );
    let rows = summary.sorted();
    for row in rows.iter().take(SHOWN) {
        let who = summary.callers.get(row.caller).map(|caller| caller.who.to_string()).unwrap_or_default();
        let agent = if row.agent.is_empty() { who } else { format!("{} ({who})", row.agent) };
        table.row([
            &*count(row.count),
            verdict(row),
            &agent,
            &row.executable,
            &row.cloud,
            &format!("{} {}", row.method, row.path),
            &touches(row.classes, &row.session),
            if row.fault.is_empty() { &row.reason } else { &row.fault },
            &moment(row.first),
            &moment(row.last),
        ]);
    }
    if !table.is_empty() {
        table.write(out)?;
    }
    if rows.len() > SHOWN {
        writeln!(out, "… {} more rows: use --csv or --json", count((rows.len() - SHOWN) as u64))?;
    }
    suspects(summary, out)?;
    writeln!(
        out,
        "\n{} requests of {} callers: {} refused, {} passed that enforce would refuse",
        count(summary.requests),
        count(summary.callers.len() as u64),
        count(summary.denied - summary.would_deny),
        count(summary.would_deny)
    )?;
    if summary.decoys > 0 {
        writeln!(out, "{} decoys were given: look for whoever took them", count(summary.decoys))?;
    }
    if summary.lost > 0 {
        writeln!(out, "{} events were lost, as the guard told itself", count(summary.lost))?;
    }
    Ok(())
}

fn suspects(summary: &Summary, out: &mut impl io::Write) -> anyhow::Result<()> {
    let suspects: Vec<usize> = (0..summary.callers.len()).filter(|at| summary.is_suspect(*at)).collect();
    if suspects.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nLooks like an attack:")?;
    let mut table = Table::new(&["CALLER", "DENIED", "SIGNALS"], &[1]);
    for at in suspects.into_iter().take(SHOWN) {
        let Some(caller) = summary.callers.get(at) else { continue };
        let signals: Vec<&str> = summary.signals(at).map(crate::report::signals::Signal::code).collect();
        table.row([&*caller.who.to_string(), &count(caller.denied), &signals.join(" ")]);
    }
    Ok(table.write(out)?)
}

fn verdict(row: &Row) -> &'static str {
    match (row.refused, row.would_deny) {
        (1.., _) if row.decoys > 0 => "decoy",
        (1.., _) => "refused",
        (0, 1..) => "would deny",
        (0, 0) => "allow",
    }
}

fn touches(classes: Classes, session: &str) -> String {
    if session.is_empty() { classes.to_string() } else { format!("{classes} ({session})") }
}
