//! One page that tells everything, for people who do not use a terminal.
//!
//! It holds attackers' texts and is opened by managers, so: every text goes through [`escape::html`], and a content
//! security policy lets exactly the page's own style and script run, by their digests, and nothing be fetched.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::escape;
use super::log::Tally;
use super::signals::Signal;
use super::summary::{Row, Summary};
use super::table::{count, moment};
use crate::cloud::Class;

mod timeline;

const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");

/// More rows than this make a page that browsers are slow with; CSV and JSON have them all.
const ROWS: usize = 3_000;

/// Writes the page. `now` is when it was made, in seconds since 1970.
#[must_use]
pub fn page(summary: &Summary, tally: &Tally, now: i64) -> String {
    let mut page = String::with_capacity(64 << 10);
    head(&mut page);
    let _ = write!(
        page,
        "<body><a class=skip href=\"#events\">Skip to the requests</a><header><h1>Who asked the metadata service</h1><p>{} to {} (UTC), made {} by imds-guard {}</p></header><main>",
        span(summary, true),
        span(summary, false),
        moment(now),
        env!("CARGO_PKG_VERSION")
    );
    numbers(summary, tally, &mut page);
    timeline::write(summary, &mut page);
    matrix(summary, &mut page);
    suspects(summary, &mut page);
    breakage(summary, &mut page);
    rows(summary, &mut page);
    troubles(tally, &mut page);
    let _ = writeln!(page, "</main><script>{SCRIPT}</script></body></html>");
    page
}

fn head(page: &mut String) {
    let csp = format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; base-uri 'none'; form-action 'none'",
        digest(STYLE),
        digest(SCRIPT)
    );
    let _ = write!(
        page,
        "<!doctype html><html lang=en><head><meta charset=utf-8>\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{csp}\">\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\
         <meta name=color-scheme content=\"light dark\"><meta name=referrer content=no-referrer>\
         <title>imds-guard report</title><style>{STYLE}</style></head>"
    );
}

fn span(summary: &Summary, first: bool) -> String {
    let mut grains = summary.timeline.keys();
    moment(if first { grains.next() } else { grains.next_back() }.copied().unwrap_or(0))
}

fn numbers(summary: &Summary, tally: &Tally, page: &mut String) {
    let suspects = (0..summary.callers.len()).filter(|at| summary.is_suspect(*at)).count();
    let refused = summary.denied - summary.would_deny;
    let numbers = [
        (summary.requests, "requests", "#events", ""),
        (summary.callers.len() as u64, "callers", "#callers", ""),
        (refused, "refused", "#events", "deny"),
        (summary.would_deny, "enforce would have refused", "#breaks", "deny"),
        (suspects as u64, "callers look like an attack", "#attacks", if suspects > 0 { "bad" } else { "" }),
        (summary.decoys, "decoys given", "#events", if summary.decoys > 0 { "bad" } else { "" }),
        (summary.lost, "events lost", "#log", if summary.lost > 0 { "bad" } else { "" }),
        (tally.skipped(), "lines skipped", "#log", ""),
    ];
    page.push_str("<section aria-label=\"In numbers\" class=numbers>");
    for (number, what, link, class) in numbers {
        let _ =
            write!(page, "<a class=\"number {class}\" href=\"{link}\"><b>{}</b> {what}</a>", count(number));
    }
    page.push_str("</section>");
}

/// Who touched what: a caller in each line, a class in each column, coloured by the worst verdict.
fn matrix(summary: &Summary, page: &mut String) {
    page.push_str("<section id=callers><h2>Callers and classes</h2><p>A number leads to its requests. Green passed, amber passed and enforce would refuse it, red was refused.</p><div class=wide><table class=matrix><thead><tr><th scope=col>Caller</th>");
    for class in Class::ALL {
        let _ = write!(page, "<th scope=col>{class}</th>");
    }
    page.push_str("</tr></thead><tbody>");
    let mut order: Vec<usize> = (0..summary.callers.len()).collect();
    order.sort_by_key(|at| {
        let count = summary.callers.get(*at).map_or(0, |caller| caller.count);
        (!summary.is_suspect(*at), std::cmp::Reverse(count), *at)
    });
    for at in order.into_iter().take(500) {
        let Some(caller) = summary.callers.get(at) else { continue };
        let mark = if summary.is_suspect(at) { " <span class=\"tag bad\">attack?</span>" } else { "" };
        let _ = write!(page, "<tr><th scope=row>{}{mark}</th>", escape::html(&caller.who.to_string()));
        for class in Class::ALL {
            cell(summary, at, class, page);
        }
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table></div></section>");
}

fn cell(summary: &Summary, caller: usize, class: Class, page: &mut String) {
    let (mut passed, mut would, mut refused) = (0, 0, 0);
    for row in summary.rows.iter().filter(|row| row.caller == caller && row.classes.contains(class)) {
        would += row.would_deny;
        refused += row.refused;
        passed += row.count - row.would_deny - row.refused;
    }
    let (style, told) = match (passed, would, refused) {
        (0, 0, 0) => return page.push_str("<td></td>"),
        (_, _, 1..) => ("no", "some refused"),
        (_, 1.., _) => ("maybe", "enforce would refuse some"),
        (_, _, _) => ("yes", "all passed"),
    };
    let _ = write!(
        page,
        "<td class={style}><a href=\"#events\" data-caller=\"{caller}\" data-class=\"{class}\" title=\"{told}\">{}<span class=sr> ({told})</span></a></td>",
        count(passed + would + refused)
    );
}

fn suspects(summary: &Summary, page: &mut String) {
    page.push_str("<section id=attacks><h2>What looks like an attack</h2>");
    let suspects: Vec<usize> = (0..summary.callers.len()).filter(|at| summary.is_suspect(*at)).collect();
    if suspects.is_empty() {
        page.push_str("<p>Nothing.</p></section>");
        return;
    }
    page.push_str("<ul class=cards>");
    for at in suspects.into_iter().take(200) {
        let Some(caller) = summary.callers.get(at) else { continue };
        let _ = write!(
            page,
            "<li><h3><a href=\"#events\" data-caller=\"{at}\">{}</a></h3><p>{} requests, {} of them denied</p><ul>",
            escape::html(&caller.who.to_string()),
            count(caller.count),
            count(caller.denied)
        );
        for signal in summary.signals(at).collect::<Vec<Signal>>() {
            let _ = write!(page, "<li><code>{}</code> {}</li>", signal.code(), signal.meaning());
        }
        page.push_str("</ul></li>");
    }
    page.push_str("</ul></section>");
}

/// What enforce would refuse of callers that do not look like attackers.
fn breakage(summary: &Summary, page: &mut String) {
    page.push_str("<section id=breaks><h2>What enforce would break</h2><p>Denied requests of callers without the signs of an attack: allow them, or know that they will fail.</p>");
    let rows: Vec<&Row> = summary
        .sorted()
        .into_iter()
        .filter(|row| row.would_deny > 0 && !summary.is_suspect(row.caller))
        .take(200)
        .collect();
    if rows.is_empty() {
        page.push_str("<p>Nothing.</p></section>");
        return;
    }
    page.push_str("<div class=wide><table><thead><tr><th scope=col>Caller</th><th scope=col>Request</th><th scope=col>Touches</th><th scope=col>Why</th><th scope=col class=n>Count</th></tr></thead><tbody>");
    for row in rows {
        let who = summary.callers.get(row.caller).map(|caller| caller.who.to_string()).unwrap_or_default();
        let _ = write!(
            page,
            "<tr><td><a href=\"#events\" data-caller=\"{}\">{}</a></td><td><code>{} {}</code></td><td>{}</td><td>{}</td><td class=n>{}</td></tr>",
            row.caller,
            escape::html(&who),
            escape::html(&row.method),
            escape::html(&row.path),
            row.classes,
            escape::html(&row.reason),
            count(row.would_deny)
        );
    }
    page.push_str("</tbody></table></div></section>");
}

fn rows(summary: &Summary, page: &mut String) {
    page.push_str("<section id=events tabindex=-1><h2>Requests</h2><form id=filter hidden><label>Filter <input type=search id=words autocomplete=off></label> <label>Verdict <select id=verdict><option value=\"\">any<option>allow<option>deny</select></label> <button type=reset>Show all</button> <output id=shown aria-live=polite></output></form><div class=wide><table id=rows><thead><tr>");
    for (heading, class) in [
        ("Caller", ""),
        ("Executable", ""),
        ("Agent", ""),
        ("Request", ""),
        ("Cloud", ""),
        ("Touches", ""),
        ("Verdict", ""),
        ("Why", ""),
        ("Count", " class=n"),
        ("First", ""),
        ("Last", ""),
        ("Last event", ""),
    ] {
        let _ = write!(page, "<th scope=col{class}>{heading}</th>");
    }
    page.push_str("</tr></thead><tbody>");
    let rows = summary.sorted();
    for row in rows.iter().take(ROWS) {
        one_row(summary, row, page);
    }
    page.push_str("</tbody></table></div>");
    if rows.len() > ROWS {
        let _ = write!(
            page,
            "<p>{} more kinds of requests are in the CSV and JSON reports.</p>",
            count((rows.len() - ROWS) as u64)
        );
    }
    page.push_str("</section>");
}

fn one_row(summary: &Summary, row: &Row, page: &mut String) {
    let who = summary.callers.get(row.caller).map(|caller| caller.who.to_string()).unwrap_or_default();
    let why = if row.fault.is_empty() { &row.reason } else { &row.fault };
    let style = match (row.refused, row.would_deny) {
        (1.., _) => "no",
        (0, 1..) => "maybe",
        (0, 0) => "yes",
    };
    let _ = write!(
        page,
        "<tr data-caller=\"{}\" data-verdict=\"{}\" data-classes=\"{}\"><td>{}</td><td><code>{}</code></td><td>{}</td><td><code>{} {}</code></td><td>{}</td><td>{}</td><td class={style}>{}</td><td>{}</td><td class=n data-sort=\"{}\">{}</td><td>{}</td><td>{}</td><td><code>{}</code></td></tr>",
        row.caller,
        if row.verdict == "deny" { "deny" } else { "allow" },
        row.classes,
        escape::html(&who),
        escape::html(&row.executable),
        escape::html(&row.agent),
        escape::html(&row.method),
        escape::html(&row.path),
        escape::html(&row.cloud),
        row.classes,
        if style == "maybe" { "would deny" } else { &row.verdict },
        escape::html(why),
        row.count,
        count(row.count),
        moment(row.first),
        moment(row.last),
        escape::html(&row.event)
    );
}

fn troubles(tally: &Tally, page: &mut String) {
    let _ = write!(
        page,
        "<section id=log><h2>The log</h2><p>{} lines, {} events that count.</p>",
        count(tally.lines),
        count(tally.events)
    );
    for trouble in tally.troubles() {
        let _ = write!(page, "<p>{}</p>", escape::html(&trouble));
    }
    page.push_str("</section>");
}

/// A digest as content security policies write it.
fn digest(text: &str) -> String {
    format!("sha256-{}", base64(&Sha256::digest(text)))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let value = chunk.iter().fold(0_usize, |value, byte| value << 8 | usize::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS.get(value >> (18 - 6 * place) & 63).copied().unwrap_or(b'=');
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Record;

    const HOSTILE: &str = r#"/latest/\u003cscript\u003ealert(1)\u003c/script\u003e\"' onmouseover=x \u202e"#;

    fn made() -> String {
        let mut summary = Summary::default();
        let line = format!(
            r#"{{"@timestamp":"2026-11-24T09:00:00Z","event.dataset":"imds-guard.audit","imds_guard.schema":1,"event.id":"{HOSTILE}","event.action":"request","imds_guard.verdict":"deny","imds_guard.would_deny":true,"imds_guard.reason":"{HOSTILE}","imds_guard.faults":["forwarding-header"],"imds_guard.attribution":"stamped","user.id":"0","imds_guard.cgroup":"/system.slice/{HOSTILE}","process.executable":"{HOSTILE}","imds_guard.agent":"{HOSTILE}","cloud.provider":"{HOSTILE}","imds_guard.classes":["credentials"],"http.request.method":"{HOSTILE}","url.path":"{HOSTILE}"}}"#
        );
        summary.add(&Record::read(line.as_bytes()).unwrap());
        let tally = Tally { broken_off: vec!["<b>x</b>".to_owned()], ..Tally::default() };
        page(&summary, &tally, 0)
    }

    #[test]
    fn hostile_texts_stay_text() {
        let page = made();
        assert_eq!(page.matches("<script").count(), 1, "only its own");
        assert!(
            !page.contains("\" onmouseover") && !page.contains("' onmouseover") && !page.contains("<b>x")
        );
        assert!(page.contains("&lt;script&gt;alert(1)") && page.contains("\\u{202e}"));
        assert!(page.contains("looks like an attack") && page.contains("ssrf-marks"));
    }

    #[test]
    fn nothing_is_fetched_and_only_the_page_s_own_code_runs() {
        let page = made();
        for address in ["http://", "https://", "src=\"", "@import", "url("] {
            assert!(!page.contains(address), "{address}");
        }
        assert!(page.contains(&format!("script-src '{}'", digest(SCRIPT))));
        assert!(!page.contains("style=") && !page.contains("unsafe-inline"));
    }

    #[test]
    fn base64_is_base64() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
