//! Nothing of what is withheld gets out, and all the rest does.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::cloud::{Class, Members, PathPattern};

fn withholding(format: Format, list: &[(&str, Class)]) -> Withholding {
    let patterns = list.iter().map(|(text, class)| (PathPattern::parse(text).unwrap(), *class)).collect();
    let members = Members::new(format, patterns).unwrap();
    let classes = members.classes();
    Withholding::new(vec![members], classes, Vec::new()).unwrap()
}

fn google() -> Withholding {
    withholding(
        Format::Json,
        &[("/instance/attributes/*", Class::UserData), ("/instance/attributes/ssh-keys", Class::Config)],
    )
}

fn text(answer: Result<Vec<u8>, Unredactable>) -> String {
    String::from_utf8(answer.unwrap()).unwrap()
}

#[test]
fn only_what_is_withheld_goes_and_the_rest_keeps_order_and_spelling() {
    let answer = r#" {"zone":"z","instance" : {"id": 12345678901234567890123, "f": 1.50e+3,
        "attributes": {"startup-script":"secret","ssh-keys":"k\u00e9y","other":{"deep":["secret"]}}, "tags":[1.0, "b"]},
        "a":null} "#;
    assert_eq!(
        text(redact(answer.as_bytes(), &google())),
        r#"{"zone":"z","instance":{"id":12345678901234567890123,"f":1.50e+3,"attributes":{"ssh-keys":"k\u00e9y"},"tags":[1.0,"b"]},"a":null}"#
    );
}

#[test]
fn no_spelling_of_a_name_hides_it() {
    let azure = withholding(Format::Json, &[("/compute/userData", Class::UserData)]);
    for name in ["userData", "USERDATA", "user\\u0044ata", "\\u0075serData", "userdata"] {
        for outer in ["compute", "Compute", "c\\u006fmpute"] {
            let answer = format!(r#"{{"{outer}":{{"{name}":"secret","name":"vm"}}}}"#);
            let redacted = text(redact(answer.as_bytes(), &azure));
            assert!(!redacted.contains("secret") && redacted.contains("\"vm\""), "{answer}: {redacted}");
        }
    }
}

#[test]
fn lists_add_nothing_to_a_member_s_path() {
    let answer = r#"{"instance":[{"attributes":[{"a":"secret"},"secret",["secret",{"ssh-keys":"k"}]]}]}"#;
    let redacted = text(redact(answer.as_bytes(), &google()));
    assert_eq!(redacted, r#"{"instance":[{"attributes":[{},[{"ssh-keys":"k"}]]}]}"#);
    // A text where members were expected is one of them.
    let answer = r#"{"instance":{"attributes":"secret","name":"n"}}"#;
    assert_eq!(text(redact(answer.as_bytes(), &google())), r#"{"instance":{"name":"n"}}"#);
}

#[test]
fn what_has_no_single_meaning_is_refused() {
    let deep = format!("{}1{}", "{\"a\":".repeat(60), "}".repeat(60));
    let deep_lists = format!("{{\"a\":{}1{}}}", "[".repeat(60), "]".repeat(60));
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(ANSWER_BYTES));
    for (answer, why) in [
        ("", Unredactable::Malformed),
        ("instance/attributes/startup-script secret", Unredactable::Malformed),
        ("\"secret\"", Unredactable::Malformed),
        ("[{\"a\":1}]", Unredactable::Malformed),
        ("\u{feff}{}", Unredactable::Malformed),
        ("{} {}", Unredactable::Malformed),
        ("{}x", Unredactable::Malformed),
        ("{\"a\":1,}", Unredactable::Malformed),
        ("{'a':1}", Unredactable::Malformed),
        ("{\"a\":1} // secret", Unredactable::Malformed),
        ("{\"\\ud800\":1}", Unredactable::Malformed),
        ("{\"a\":\"\n\"}", Unredactable::Malformed),
        (r#"{"a":1,"a":2}"#, Unredactable::Repeated),
        (r#"{"a":1,"\u0061":2}"#, Unredactable::Repeated),
        (r#"{"a":{"b":1,"b":2}}"#, Unredactable::Repeated),
        (deep.as_str(), Unredactable::TooDeep),
        (deep_lists.as_str(), Unredactable::TooDeep),
        (large.as_str(), Unredactable::TooLarge),
    ] {
        assert_eq!(redact(answer.as_bytes(), &google()).unwrap_err(), why, "{answer:.80}");
    }
    assert_eq!(redact(b"{\"a\":\"\xff\"}", &google()).unwrap_err(), Unredactable::Malformed);
    assert_eq!(redact(b"{\"a\":\"\xc0\xaf\"}", &google()).unwrap_err(), Unredactable::Malformed);
}

fn hetzner() -> Withholding {
    withholding(Format::Yaml, &[("/vendor_data", Class::UserData)])
}

#[test]
fn a_yaml_mapping_loses_the_lines_of_a_withheld_key() {
    let answer = "availability-zone: hel1-dc2\nhostname: web\ninstance-id: 42\nvendor_data: |\n  #cloud-config\n  secret: |\n\n    secret\n# secret\npublic-keys:\n- ssh-ed25519 AAAA\nnetwork-config:\n  config:\n  - mac: 96:00\n";
    let redacted = text(redact(answer.as_bytes(), &hetzner()));
    let expected = "availability-zone: hel1-dc2\nhostname: web\ninstance-id: 42\npublic-keys:\n- ssh-ed25519 AAAA\nnetwork-config:\n  config:\n  - mac: 96:00\n";
    assert_eq!(redacted, expected);
    let quoted = "a: \"x y\"\nVendor_Data: \"secret\"\nb: [1, 2]\n";
    assert_eq!(text(redact(quoted.as_bytes(), &hetzner())), "a: \"x y\"\nb: [1, 2]\n");
}

#[test]
fn yaml_whose_values_have_no_certain_end_is_refused() {
    for answer in [
        "",
        "secret\n",
        "{vendor_data: secret}\n",
        "\"vendor\\x5fdata\": secret\n",
        "? vendor_data\n: secret\n",
        "vendor_data: \"secret\nhostname: secret\"\n",
        "vendor_data: 'secret\nhostname: secret'\n",
        "vendor_data: [secret,\nhostname: secret]\n",
        "vendor_data: {a: [secret],\nb: secret}\n",
        "vendor_data: &anchor secret\n",
        "a: *anchor\n",
        "a: 1\n---\nvendor_data: secret\n",
        "%YAML 1.2\n---\na: 1\n",
        "a: 1\n\tb: secret\n",
        "a: 1\r b: secret\n",
        "a: 1\u{2028}vendor_data: secret\n",
        "vendor_data:secret\n",
        "  vendor_data: secret\n",
        "- vendor_data: secret\n",
        "\u{feff}vendor_data: secret\n",
    ] {
        assert_eq!(redact(answer.as_bytes(), &hetzner()).unwrap_err(), Unredactable::Malformed, "{answer:?}");
    }
    let twice = "vendor_data: a\nVENDOR_DATA: b\n";
    assert_eq!(redact(twice.as_bytes(), &hetzner()).unwrap_err(), Unredactable::Repeated);
}

/// What the redacted document is, by a reading that keeps nothing of the text: the obvious reference.
fn expected(value: &Value, path: &mut Vec<String>, withholding: &Withholding) -> Option<Value> {
    let goes = match value {
        Value::Object(_) | Value::Array(_) => withholding.takes(path),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => withholding.takes_leaf(path),
    };
    if goes {
        return None;
    }
    Some(match value {
        Value::Object(members) => {
            let kept = members.iter().filter_map(|(name, value)| {
                path.push(name.to_lowercase());
                let kept = expected(value, path, withholding);
                path.pop();
                Some((name.clone(), kept?))
            });
            Value::Object(kept.collect())
        }
        Value::Array(items) => {
            Value::Array(items.iter().filter_map(|item| expected(item, path, withholding)).collect())
        }
        scalar @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => scalar.clone(),
    })
}

/// Every value carries a mark that stands nowhere else; those that must not get out.
fn withheld_marks(
    value: &Value,
    path: &mut Vec<String>,
    all: bool,
    withholding: &Withholding,
    marks: &mut Vec<String>,
) {
    let takes = |path: &[String], leaf: bool| {
        if leaf { withholding.takes_leaf(path) } else { withholding.takes(path) }
    };
    match value {
        Value::Object(members) => {
            let all = all || takes(path, false);
            for (name, value) in members {
                path.push(name.to_lowercase());
                withheld_marks(value, path, all, withholding, marks);
                path.pop();
            }
        }
        Value::Array(items) => {
            let all = all || takes(path, false);
            for item in items {
                withheld_marks(item, path, all, withholding, marks);
            }
        }
        Value::String(mark) if all || takes(path, true) => marks.push(mark.clone()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn document() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        Just("instance".to_owned()),
        Just("Attributes".to_owned()),
        Just("attributes".to_owned()),
        Just("ssh-keys".to_owned()),
        "[a-zA-Z_\"\\\\\u{e9}\u{130}]{1,4}",
    ];
    let leaf = prop_oneof![
        any::<i64>().prop_map(Value::from),
        Just(Value::Null),
        "[a-z]{1,3}".prop_map(Value::from)
    ];
    let value = leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    });
    value.prop_map(|value| {
        let mut number = 0;
        let mut value = if value.is_object() { value } else { json!({ "instance": value }) };
        mark(&mut value, &mut number);
        value
    })
}

fn mark(value: &mut Value, number: &mut usize) {
    match value {
        Value::String(text) => {
            *number += 1;
            *text = format!("<{number}>");
        }
        Value::Array(items) => items.iter_mut().for_each(|item| mark(item, number)),
        Value::Object(members) => members.values_mut().for_each(|member| mark(member, number)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

proptest! {
    #[test]
    fn nothing_of_what_is_withheld_is_in_the_answer(document in document(), escape: bool) {
        let withholding = google();
        let spelt = if escape { escaped(&document) } else { document.to_string() };
        let redacted = text(redact(spelt.as_bytes(), &withholding));
        let mut marks = Vec::new();
        withheld_marks(&document, &mut Vec::new(), false, &withholding, &mut marks);
        for mark in marks {
            prop_assert!(!redacted.contains(&mark), "{mark} in {redacted} of {spelt}");
        }
        let wanted = expected(&document, &mut Vec::new(), &withholding).unwrap();
        prop_assert_eq!(serde_json::from_str::<Value>(&redacted).unwrap(), wanted);
    }

    #[test]
    fn no_bytes_make_it_panic_or_leak(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..200) {
        let whole = br#"{"instance":{"attributes":{"a":"<secret>"},"b":[1,"<open>"]}}"#;
        // A document with a hole, and one with something strange in its middle, but not in a name: that makes another name.
        let cut = at.min(whole.len());
        prop_assume!(!(2..=10).contains(&cut) && !(14..=24).contains(&cut));
        for answer in [bytes.clone(), whole[..cut].to_vec(), [&whole[..cut], &bytes[..], &whole[cut..]].concat()] {
            for withholding in [google(), hetzner()] {
                if let Ok(redacted) = redact(&answer, &withholding)
                    && withholding.format() == Format::Json
                    && !bytes.contains(&b'"')
                {
                    let redacted = String::from_utf8(redacted).unwrap();
                    prop_assert!(!redacted.contains("<secret>"), "{redacted}");
                }
            }
        }
    }
}

/// The document with every name's characters as escapes.
fn escaped(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let spell = |name: &str| {
                name.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<Vec<_>>().concat()
            };
            let members: Vec<String> = members
                .iter()
                .map(|(name, value)| format!("\"{}\" :\n{}", spell(name), escaped(value)))
                .collect();
            format!("{{ {} }}", members.join(" , "))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(escaped).collect::<Vec<_>>().join(" ,"))
        }
        scalar @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => scalar.to_string(),
    }
}
