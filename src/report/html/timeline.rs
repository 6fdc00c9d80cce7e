//! Requests over time, as a drawing that needs no script.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::report::summary::Summary;
use crate::report::table::{count, moment};

/// At most so many bars.
const BARS: i64 = 96;
const HEIGHT: u64 = 120;

/// Draws the timeline, and gives the same numbers as a table for those who cannot see it.
pub(super) fn write(summary: &Summary, page: &mut String) {
    let (Some(first), Some(last)) = (summary.timeline.keys().next(), summary.timeline.keys().next_back())
    else {
        return;
    };
    let width = width((last - first).max(1));
    let mut bars: BTreeMap<i64, (u64, u64)> = BTreeMap::new();
    for (at, (allowed, denied)) in &summary.timeline {
        let bar = bars.entry((at - first) / width).or_default();
        bar.0 += allowed;
        bar.1 += denied;
    }
    let highest = bars.values().map(|(allowed, denied)| allowed + denied).max().unwrap_or(1).max(1);
    let number = bars.keys().next_back().map_or(1, |last| last + 1);
    let _ = write!(
        page,
        "<section><h2>Over time</h2><svg class=timeline viewBox=\"0 0 {} {}\" preserveAspectRatio=none role=img aria-label=\"Requests over time; the table below has the numbers\">",
        number * 10,
        HEIGHT
    );
    for (at, (allowed, denied)) in &bars {
        let (x, when) = (at * 10, moment(first + at * width));
        let share = |part: u64| (u128::from(part) * u128::from(HEIGHT)).div_ceil(u128::from(highest));
        let (yes, no) = (share(*allowed), share(*denied).min(u128::from(HEIGHT)));
        let yes = yes.min(u128::from(HEIGHT) - no);
        let _ = write!(
            page,
            "<g><title>{when}: {} allowed, {} denied</title><rect class=bar-yes x=\"{x}\" y=\"{}\" width=\"9\" height=\"{yes}\"/><rect class=bar-no x=\"{x}\" y=\"{}\" width=\"9\" height=\"{no}\"/></g>",
            count(*allowed),
            count(*denied),
            u128::from(HEIGHT) - yes - no,
            u128::from(HEIGHT) - no
        );
    }
    page.push_str("</svg><details><summary>The numbers</summary><div class=wide><table><thead><tr><th scope=col>From (UTC)</th><th scope=col class=n>Allowed</th><th scope=col class=n>Denied</th></tr></thead><tbody>");
    for (at, (allowed, denied)) in &bars {
        let when = moment(first + at * width);
        let _ = write!(
            page,
            "<tr><td>{when}</td><td class=n>{}</td><td class=n>{}</td></tr>",
            count(*allowed),
            count(*denied)
        );
    }
    page.push_str("</tbody></table></div></details></section>");
}

/// The seconds of a bar: round numbers, so that bars begin at moments that people name.
fn width(span: i64) -> i64 {
    const ROUND: [i64; 9] = [300, 900, 3600, 10_800, 21_600, 86_400, 604_800, 2_592_000, 31_536_000];
    ROUND.into_iter().find(|width| span / width < BARS).unwrap_or(span / BARS + 1)
}
