//! The page in a real browser. Chromium comes from the system's packages (`apt-get install chromium`); on a machine
//! without it these tests say so, and pass.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a helper of a test may fail the test, and tells why it does not run"
)]

mod logs;

use std::path::Path;
use std::process::Command;

use logs::{Event, Logs, ROLE, arg, lines, run};
use serde_json::json;

const HOSTILE: &str =
    "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>\"'\u{202e}";

/// Whether there is a browser to test with.
fn lacks_browser() -> bool {
    let lacks = Command::new("chromium").arg("--version").output().is_err();
    if lacks {
        eprintln!("SKIPPED: chromium is not installed");
    }
    lacks
}

/// What the browser made of a page, and what its console said.
fn opened(page: &Path, options: &[&str]) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=3000",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(options)
        .arg(format!("file://{}", arg(page)))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(output.stdout), text(output.stderr))
}

/// The log: an agent, and an attacker whose every name is hostile.
fn page() -> (Logs, std::path::PathBuf) {
    let attacker = Event::new(HOSTILE)
        .from("web.service", 33)
        .asking(HOSTILE, "credentials")
        .would_deny("host-foreign")
        .with("imds_guard.faults", json!(["host-foreign"]))
        .with("process.executable", HOSTILE)
        .with("imds_guard.agent", HOSTILE)
        .with("cloud.provider", HOSTILE);
    let logs =
        Logs::new(lines(&[Event::new("e-1").asking(ROLE, "credentials"), Event::new("e-2"), attacker]));
    let page = logs.directory.path().join("report.html");
    assert_eq!(run(&["report", "--html", arg(&page), logs.log()]).0, 0);
    (logs, page)
}

#[test]
fn the_page_runs_its_own_script_and_nothing_else() {
    if lacks_browser() {
        return;
    }
    let (_logs, page) = page();
    let (dom, console) = opened(&page, &["--dump-dom"]);
    assert!(dom.contains("3 of 3 kinds of requests"), "the script ran: {console}");
    assert!(dom.contains("<title>imds-guard report</title>"), "no hostile name ran");
    assert_eq!((dom.matches("<script>").count(), dom.matches("<img").count()), (1, 0));
    assert!(!console.contains("CONSOLE"), "{console}");
}

#[test]
fn the_page_filters_and_sorts() {
    if lacks_browser() {
        return;
    }
    let (_logs, page) = page();
    // The page's own policy lets no other script run, so a copy without it is driven.
    let text = std::fs::read_to_string(&page).unwrap();
    let policy = text.split("<meta http-equiv").nth(1).unwrap().split('>').next().unwrap();
    let text = text.replace(&format!("<meta http-equiv{policy}>"), "");
    let drive = r##"<script>
        const said = [];
        const shown = () => [...document.querySelectorAll("#rows tbody tr")].filter((row) => !row.hidden);
        const change = (id, value) => {
            const field = document.getElementById(id);
            field.value = value;
            field.dispatchEvent(new Event("input", { bubbles: true }));
        };
        change("verdict", "deny"); said.push(shown().length);
        change("verdict", ""); change("words", "instance-id"); said.push(shown().length);
        document.querySelector("td.maybe a, td.no a").click(); said.push(shown().length);
        document.querySelector("button[type=reset]").click();
        setTimeout(() => {
            said.push(shown().length);
            const heads = [...document.querySelectorAll("#rows th button")];
            heads[3].click();
            const paths = shown().map((row) => row.cells[3].textContent);
            said.push(paths.join() === [...paths].sort(new Intl.Collator("en", { numeric: true }).compare).join());
            document.title = "said " + said.join(" ");
        }, 10);
    </script></body>"##;
    let driven = page.with_file_name("driven.html");
    std::fs::write(&driven, text.replace("</body>", drive)).unwrap();
    let (dom, console) = opened(&driven, &["--dump-dom"]);
    assert!(
        dom.contains("<title>said 1 1 1 3 true</title>"),
        "{console}\n{}",
        &dom[dom.find("<title>").unwrap()..][..80]
    );
}

/// What a script finds in a copy of the page, in a browser that was started so.
fn found(page: &Path, name: &str, script: &str, options: &[&str]) -> String {
    let text = std::fs::read_to_string(page).unwrap();
    let policy = text.split("<meta http-equiv").nth(1).unwrap().split('>').next().unwrap();
    let text = text.replace(&format!("<meta http-equiv{policy}>"), "");
    let drive = format!("<script>document.title = \"said \" + ({script});</script></body>");
    let driven = page.with_file_name(name);
    std::fs::write(&driven, text.replace("</body>", &drive)).unwrap();
    let (dom, console) = opened(&driven, &[&["--dump-dom"], options].concat());
    let said = dom.split("<title>said ").nth(1).unwrap_or_else(|| panic!("{console}\n{dom}"));
    said.split("</title>").next().unwrap().to_owned()
}

/// On a phone, by day and night, by keyboard and by ear, on paper.
#[test]
fn the_page_is_for_every_reader() {
    if lacks_browser() {
        return;
    }
    let (logs, page) = page();
    let wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(
        found(&page, "phone.html", wide, &["--window-size=500,900"]),
        "0",
        "a phone has to be scrolled sideways"
    );
    let colours = "getComputedStyle(document.body).backgroundColor + getComputedStyle(document.body).color";
    let scheme = |number: u8| {
        let setting = format!("--blink-settings=preferredColorScheme={number}");
        found(&page, "colours.html", colours, &[&setting])
    };
    assert_ne!(scheme(0), scheme(1), "light and dark are the same");
    // Whatever can be used can be reached by the keyboard, and whatever is read out has a name.
    let silent = r#"[
        ...[...document.querySelectorAll("a,button,input,select,summary")].filter((one) => one.tabIndex < 0),
        ...[...document.querySelectorAll("input,select")].filter((field) => !field.labels.length),
        ...[...document.querySelectorAll("th")].filter((head) => !head.scope),
        ...[...document.querySelectorAll("svg")].filter((picture) => picture.getAttribute("role") !== "img" || !picture.getAttribute("aria-label")),
        ...[...document.querySelectorAll("a[href^='#']")].filter((link) => !document.querySelector(link.getAttribute("href"))),
        ...[...document.querySelectorAll("[onclick]")],
    ].map((one) => one.outerHTML.slice(0, 80)).join() + document.documentElement.lang + document.querySelectorAll("h1").length"#;
    assert_eq!(found(&page, "reader.html", silent, &[]), "en1");
    let paper = logs.directory.path().join("report.pdf");
    opened(&page, &[&format!("--print-to-pdf={}", paper.display())]);
    let printed = std::fs::read(&paper).unwrap();
    assert!(printed.starts_with(b"%PDF") && printed.len() > 4096, "{} bytes", printed.len());
}
