//! Redaction: what is withheld never gets out, the rest stays, and twice is no more than once.

use imds_guard::cloud::{Class, Format, Members, PathPattern, Withholding};
use imds_guard::redact::redact;
use serde_json::Value;

/// Any bytes as an answer in either format.
pub fn check(answer: &[u8]) {
    let json = withholding(Format::Json, &["/compute/userData", "/attributes/**"]);
    if let Ok(left) = redact(answer, &json) {
        // Numbers keep their spelling, also those that no machine word holds.
        let Ok(mut wanted) = serde_json::from_slice::<Value>(answer) else { return };
        take_out(&mut wanted, &mut Vec::new());
        let got: Value = serde_json::from_slice(&left).expect("what is left is JSON");
        let mut again = got.clone();
        take_out(&mut again, &mut Vec::new());
        assert_eq!(got, again, "a withheld member is left");
        assert_eq!(names(&got), names(&wanted), "something else went, or came");
        assert_eq!(redact(&left, &json).as_deref(), Ok(&left[..]), "twice is more than once");
    }
    let yaml = withholding(Format::Yaml, &["/vendor_data"]);
    if let Ok(left) = redact(answer, &yaml) {
        let text = String::from_utf8(left.clone()).expect("what is left is text");
        let key = |line: &str| line.trim_start_matches(['"', '\'']).to_ascii_lowercase();
        assert!(!text.lines().any(|line| key(line).starts_with("vendor_data:")), "{text}");
        // Where nothing is left, there is no document either.
        if let Ok(again) = redact(&left, &yaml) {
            assert_eq!(again, left, "twice is more than once");
        }
    }
}

fn withholding(format: Format, members: &[&str]) -> Withholding {
    let patterns = members.iter().map(|text| (PathPattern::parse(text).expect("a pattern"), Class::UserData));
    let members = Members::new(format, patterns.collect()).expect("members");
    let classes = members.classes();
    Withholding::new(vec![members], classes, Vec::new()).expect("something to withhold")
}

/// The slow and obvious way, over a document that was read whole: lists add nothing to a member's path.
fn take_out(value: &mut Value, path: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            let keys: Vec<String> = members.keys().cloned().collect();
            for key in keys {
                path.push(key.to_ascii_lowercase());
                if is_withheld(path) {
                    members.remove(&key);
                } else if let Some(inner) = members.get_mut(&key) {
                    take_out(inner, path);
                }
                path.pop();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| take_out(item, path)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_withheld(path: &[String]) -> bool {
    path == ["compute", "userdata"] || path.first().is_some_and(|first| first == "attributes")
}

/// Every name in the document, in order; what stands where members were expected may go, so values are not compared.
fn names(value: &Value) -> Vec<String> {
    match value {
        Value::Object(members) => {
            members.iter().flat_map(|(name, inner)| [name.clone()].into_iter().chain(names(inner))).collect()
        }
        Value::Array(items) => items.iter().flat_map(names).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}
