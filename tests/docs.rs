//! What the documentation names exists: tests, files, folders, subcommands and their options.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must stop and say so"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};
use imds_guard::cli::Cli;
use imds_guard::policy::{Accounts, Context, Policy, Source};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file below a directory whose name ends so.
fn files(directory: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, suffix));
        } else if path.to_string_lossy().ends_with(suffix) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The pages at the top and those below docs/.
fn pages() -> Vec<PathBuf> {
    let top = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    top.iter().map(|name| root().join(name)).chain(files(&root().join("docs"), ".md")).collect()
}

/// The lines of a page that stand in fences, without those that open and close them.
fn fenced(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        inside ^= is_fence;
        inside && !is_fence
    })
}

/// What stands between backticks in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The names of all tests of the sources: functions with a test attribute, and those that a macro makes.
fn tests() -> BTreeSet<String> {
    let sources = [root().join("src"), root().join("tests")].into_iter().flat_map(|dir| files(&dir, ".rs"));
    sources.flat_map(|path| tests_of(&read(&path))).collect()
}

fn tests_of(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    let has_macro = source.contains("fn $test()");
    for line in source.lines().map(str::trim) {
        if let Some((name, _)) = line.split_once(": \"").filter(|(name, _)| has_macro && is_name(name)) {
            names.push(name.to_owned());
        } else if line == "#[test]" {
            is_test = true;
        } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
            names.push(rest.split(['(', '<']).next().unwrap().to_owned());
            is_test = false;
        }
    }
    names
}

fn is_name(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The rows of a page's tables whose last column is about tests: what is said, and the tests that show it.
fn rows(text: &str) -> Vec<(String, Vec<String>)> {
    let mut rows = Vec::new();
    let mut is_about_tests = false;
    for line in text.lines() {
        let Some(cells) = line.strip_prefix('|').and_then(|line| line.trim_end().strip_suffix('|')) else {
            is_about_tests = false;
            continue;
        };
        let (said, last) = cells.rsplit_once('|').unwrap_or_default();
        if last.trim() == "tests" {
            is_about_tests = true;
        } else if is_about_tests && !last.trim().starts_with("--") {
            rows.push((said.trim().to_owned(), quoted(last).map(str::to_owned).collect()));
        }
    }
    rows
}

#[test]
fn the_tests_that_the_threat_model_names_exist() {
    let (tests, rows) = (tests(), rows(&read(&root().join("docs/threat-model.md"))));
    assert!(tests.len() > 200 && rows.len() > 30, "{} tests, {} rows", tests.len(), rows.len());
    for (said, named) in rows {
        assert!(!named.is_empty(), "nothing shows this: {said}");
        for name in named {
            assert!(tests.contains(&name), "there is no test {name}, which is to show: {said}");
        }
    }
}

#[test]
fn relative_links_lead_to_files() {
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let file = link.split('#').next().unwrap();
            assert!(page.with_file_name(file).exists(), "{}: {link} leads nowhere", page.display());
            count += 1;
        }
    }
    assert!(count > 20, "only {count} links were found");
}

/// The policies, and parts of them, that pages show; a page of its own and its test have the reference's.
#[test]
fn the_policies_that_pages_show_compile() {
    let accounts = Accounts::parse("imds-guard:x:990:990::/:", "imds-guard:x:990:\nadm:x:4:");
    let mut count = 0;
    for page in pages().into_iter().filter(|page| !page.ends_with("docs/policy.md")) {
        let text = read(&page);
        for block in text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
            let mode = if block.contains("mode = ") { "" } else { "mode = \"audit\"\n" };
            let source = Source { name: page.display().to_string(), text: format!("{mode}{block}") };
            let context = Context {
                accounts: accounts.clone(),
                detected: vec!["aws-ec2".to_owned()],
                ..Context::default()
            };
            let compiled = Policy::compile(&[source], &context);
            assert!(compiled.is_ok(), "{}: {:#?}\n{block}", page.display(), compiled.err());
            count += 1;
        }
    }
    assert!(count >= 3, "only {count} policies were found");
}

/// The words behind `imds-guard` in what looks like a command line.
fn commands(line: &str) -> Vec<Vec<&str>> {
    let is_program = |word: &str| word == "imds-guard" || word.ends_with("/imds-guard");
    line.split(['|', ';', '"', '`', '&'])
        .filter_map(|part| {
            let mut words = part.split_whitespace().skip_while(|word| ["$", "#", "sudo"].contains(word));
            words.next().filter(|word| is_program(word))?;
            Some(words.take_while(|word| *word != "#").collect())
        })
        .collect()
}

/// Whether the program takes these words: subcommands to any depth, and long options.
fn is_taken(words: &[&str]) -> bool {
    let mut command: Command = Cli::command();
    command.build();
    let Some(first) = words.first().filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic())) else {
        return true; // the program's name alone, or with options of its own
    };
    let Some(mut at) = command.find_subcommand(first) else { return false };
    for word in words.iter().skip(1) {
        if let Some(option) = word.strip_prefix("--").filter(|option| !option.is_empty()) {
            let name = option.split('=').next().unwrap();
            if !at.get_arguments().any(|argument| argument.get_long() == Some(name)) {
                return false;
            }
        } else if at.has_subcommands() {
            match at.find_subcommand(word) {
                Some(below) => at = below,
                None => return false,
            }
        }
    }
    true
}

#[test]
fn the_program_takes_the_commands_that_are_told() {
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        let spans = text.lines().filter(|line| !line.starts_with("```")).flat_map(quoted);
        for line in spans.chain(fenced(&text)) {
            for words in commands(line) {
                assert!(is_taken(&words), "{}: imds-guard does not take {words:?}", page.display());
                count += usize::from(!words.is_empty());
            }
        }
    }
    assert!(count > 20, "only {count} commands were found");
}

#[test]
fn a_command_that_does_not_exist_would_be_noticed() {
    assert_eq!(commands("sudo imds-guard check --strict # all of it"), [["check", "--strict"]]);
    assert!(commands("2. imds-guard in enforce mode").is_empty());
    assert!(is_taken(&["check", "--strict"]) && is_taken(&["redirect", "verify"]));
    assert!(!is_taken(&["fly"]) && !is_taken(&["check", "--fly"]) && !is_taken(&["redirect", "fly"]));
}

#[test]
fn the_make_targets_that_are_told_exist() {
    let makefile = read(&root().join("Makefile"));
    let targets: BTreeSet<&str> =
        makefile.lines().filter_map(|line| line.split_once(':')).map(|(target, _)| target).collect();
    for page in pages() {
        let text = read(&page);
        let told = text.lines().flat_map(quoted).chain(fenced(&text));
        for target in told.filter_map(|told| told.trim().strip_prefix("make ")) {
            let target = target.split_whitespace().next().unwrap();
            assert!(targets.contains(target), "{}: make {target} does nothing", page.display());
        }
    }
}

/// The map in the README: paths, each with what is there.
fn map() -> BTreeSet<String> {
    let readme = read(&root().join("README.md"));
    let (_, section) = readme.split_once("\n## Map\n").expect("a map");
    let section = section.split("\n## ").next().unwrap();
    fenced(section).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn the_map_is_true_to_the_tree() {
    let map = map();
    for path in &map {
        assert!(root().join(path).exists(), "the map shows {path}, which is not there");
    }
    for file in files(&root().join("src"), ".rs") {
        let path = file.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let room: String = path.split_inclusive('/').take(2).collect();
        assert!(!room.ends_with('/') || map.contains(&room), "{room} is not on the map");
    }
}
