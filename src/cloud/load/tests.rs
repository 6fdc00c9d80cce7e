//! Every built-in file loads, and a file with any one thing wrong does not.

use super::super::builtin::FILES;
use super::*;

const GOOD: &str = r#"
id = "test"
name = "a test"
family = "test"
listings = true
hostnames = ["imds.test"]

[[endpoint]]
address = "169.254.169.254"
port = 80

[[detect]]
sys-vendor = "Test*"

[session]
method = "PUT"
path = "/*/api/token"
ttl-min = 1
ttl-max = 60
token-header = "X-Token"
required-status = 401

[[resource]]
path = "/*/api/token"
class = "session"
methods = ["PUT"]

[[resource]]
path = "/*/tree/secrets/**"
class = "credentials"

[[resource]]
path = "/*/tree/deep/leaf"
class = "config"

[refusal.default]
status = 404

[refusal.credentials]
status = 404

[refusal.session]
status = 400

[[never-intercept]]
what = "time"
addresses = ["169.254.169.123", "169.254.171.0/24", "fd00:80::/64"]
ports = ["udp/123", "tcp/80"]
"#;

fn fault(change: impl Fn(&str) -> String) -> String {
    load("test", 0, &change(GOOD)).map(|_| ()).unwrap_err().to_string()
}

fn with(from: &'static str, to: &'static str) -> String {
    assert!(GOOD.contains(from), "{from}");
    fault(|good| good.replacen(from, to, 1))
}

#[test]
fn every_file_loads() {
    for ((id, text), number) in FILES.iter().zip(0..) {
        let cloud = load(id, number, text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(cloud.id(), *id);
        assert!(!cloud.served().is_empty() || cloud.dynamic_address().is_some());
        // A key in a table after `[[resource]]` would land in the last row; the form forbids it, this makes sure.
        assert!(cloud.resources().iter().all(|row| !row.classes.is_empty()));
    }
    assert!(FILES.len() < usize::from(super::super::additions::NUMBER));
}

#[test]
fn the_good_file_loads_with_its_listings() {
    let cloud = load("test", 0, GOOD).unwrap();
    let listed: Vec<&str> =
        cloud.resources().iter().filter(|row| row.listing).map(|row| row.pattern.as_str()).collect();
    assert_eq!(listed, ["/*/api", "/*/tree", "/*/tree/deep"]);
    let without = load("test", 0, &GOOD.replace("listings = true", "listings = false")).unwrap();
    assert!(without.resources().iter().all(|row| !row.listing));
}

#[test]
fn a_listing_never_softens_a_written_row() {
    let text = GOOD.replace("/*/tree/deep/leaf", "/*/tree/secrets/deep/leaf");
    let cloud = load("test", 0, &text).unwrap();
    let listed: Vec<&str> =
        cloud.resources().iter().filter(|row| row.listing).map(|row| row.pattern.as_str()).collect();
    assert_eq!(listed, ["/*/api", "/*/tree"], "secrets/deep is below secrets/**");
}

#[test]
fn what_is_missing_is_missed() {
    assert!(with("listings = true\n", "").contains("listings"));
    assert!(with("port = 80\n", "").contains("port"));
    assert!(with("[[endpoint]]\naddress = \"169.254.169.254\"\nport = 80\n", "").contains("dynamic-address"));
    assert!(with("[refusal.default]\nstatus = 404\n", "").contains("no refusal for `default`"));
    assert!(with("[refusal.credentials]\nstatus = 404\n", "").contains("no refusal for `credentials`"));
    assert!(with("[refusal.session]\nstatus = 400\n", "").contains("no refusal for `session`"));
    assert!(with("class = \"config\"\n", "").contains("class"));
    assert!(with("class = \"config\"", "class = []").contains("no class"));
    assert!(with("name = \"a test\"", "name = \" \"").contains("name"));
}

#[test]
fn what_is_not_understood_is_refused() {
    assert!(with("family =", "familly =").contains("familly"));
    assert!(with("methods =", "method =").contains("method"));
    assert!(with("class = \"config\"", "class = \"harmless\"").contains("clouds/test.toml"));
    assert!(with("class = \"config\"", "class = \"unknown\"").contains("called unknown"));
    assert!(with("/*/tree/deep/leaf", "/*/tree//leaf").contains("empty segment"));
    assert!(with("[refusal.session]", "[refusal.sessions]").contains("neither a class"));
    assert!(with("169.254.169.254", "169.254.169").contains("clouds/test.toml"));
    assert!(with("\"udp/123\"", "\"ntp\"").contains("ntp"));
    assert!(with("169.254.171.0/24", "169.254.171.0/33").contains("169.254.171.0/33"));
    assert!(with("methods = [\"PUT\"]", "methods = [\"put\"]").contains("capitals"));
    assert!(with("methods = [\"PUT\"]", "methods = []").contains("lists no method"));
    assert!(with("sys-vendor = \"Test*\"", "").contains("asks for nothing"));
    assert!(with("sys-vendor = \"Test*\"", "sys-vendor = \"*\"").contains("asks for nothing"));
    assert!(with("imds.test", "IMDS.test").contains("hostnames"));
    assert!(with("family =", "like = \"nowhere\"\nfamily =").contains("nowhere"));
    assert!(with("family =", "like = \"huawei\"\nfamily =").contains("huawei"), "builds on another itself");
}

#[test]
fn what_contradicts_itself_is_refused() {
    assert!(with("id = \"test\"", "id = \"tset\"").contains("tset"));
    assert!(with("/*/tree/deep/leaf", "/*/tree/{secrets/**,x}").contains("there twice"));
    let again = "[[endpoint]]\naddress = \"::ffff:169.254.169.254\"\nport = 80\n\n[[detect]]";
    assert!(with("[[detect]]", again).contains("there twice"), "the mapped address is the same endpoint");
    assert!(with("address = \"169.254.169.254\"", "address = \"169.254.171.7\"").contains("time"));
    assert!(with("ttl-max = 60", "ttl-max = 0").contains("session"));
    assert!(with("required-status = 401", "required-status = 200").contains("session"));
    assert!(with("required-status = 401", "").contains("required-status"));
    let fetch = |path: &str, more: &str| {
        let keys = format!("required-status = 401\nfetch = \"{path}\"\n{more}");
        load("test", 0, &GOOD.replace("required-status = 401", &keys))
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert!(fetch("/latest/api/token", "ttl-header = \"X-TTL\"").is_ok());
    assert!(
        fetch("/latest/api/tokens", "ttl-header = \"X-TTL\"").is_err(),
        "not where tokens are handed out"
    );
    assert!(fetch("/latest/api/token", "").is_err(), "no lifetime can be asked for");
    assert!(fetch("/latest/api/token", "ttl-header = \"X-TTL\"\ntoken-member = \"t\"").is_err());
    assert!(with("path = \"/*/api/token\"\nttl", "path = \"/*/api/tokens\"\nttl").contains("session"));
    assert!(with("class = \"config\"", "class = \"config\"\nport = 81").contains("port"));
    for entry in ["port = 80", "port = 443", "port = 443\nroots = \"root.crt\""] {
        let tls = format!("[upstream-tls]\nserver-name = \"imds.test\"\n{entry}\n\n[[detect]]");
        assert!(fault(|good| good.replacen("[[detect]]", &tls, 1)).contains("upstream-tls"), "{entry}");
    }
    assert!(with("class = \"config\"", "class = \"config\"\nquery = {}").contains("query"));
    assert!(with("class = \"config\"", "class = \"config\"\nquery = { a = [] }").contains("query"));
    assert!(with("class = \"config\"", "class = \"config\"\nquery = \"Recursive\"").contains("query"));
}

#[test]
fn statuses_that_invite_another_try_are_refused() {
    for status in [200, 204, 301, 401, 408, 410, 429, 500, 503] {
        let text = GOOD.replace(
            "[refusal.credentials]\nstatus = 404",
            &format!("[refusal.credentials]\nstatus = {status}"),
        );
        let error = load("test", 0, &text).unwrap_err().to_string();
        assert!(error.contains(&status.to_string()), "{error}");
    }
}
