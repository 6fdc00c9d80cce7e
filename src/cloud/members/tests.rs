//! Which members go, and which lists say two things at once.

use super::*;

fn pattern(text: &str) -> PathPattern {
    PathPattern::parse(text).unwrap()
}

fn members(format: Format, list: &[(&str, Class)]) -> Result<Members, MembersError> {
    Members::new(format, list.iter().map(|(text, class)| (pattern(text), *class)).collect())
}

fn withholding(list: &[(&str, Class)], classes: &[Class]) -> Withholding {
    let members = members(Format::Json, list).unwrap();
    Withholding::new(vec![members], classes.iter().copied().collect(), Vec::new()).unwrap()
}

fn path(text: &str) -> Vec<String> {
    text.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_closest_pattern_says_what_a_member_is() {
    let attributes = withholding(
        &[
            ("/instance/attributes/*", Class::UserData),
            ("/instance/attributes/{kube-env,cluster-*}", Class::Credentials),
            ("/instance/attributes/{ssh-keys,cluster-name}", Class::Config),
        ],
        &[Class::UserData],
    );
    for (member, goes) in [
        ("/instance/attributes/startup-script", true),
        ("/instance/attributes/ssh-keys", false),
        ("/instance/attributes/kube-env", false),
        ("/instance/attributes/cluster-name", false),
        ("/instance/attributes", false),
        ("/instance/name", false),
    ] {
        assert_eq!(attributes.takes(&path(member)), goes, "{member}");
    }
    assert!(attributes.takes_leaf(&path("/instance/attributes")), "a text in place of the members");
}

#[test]
fn a_list_that_contradicts_itself_is_refused() {
    for (list, wanted) in [
        (&[("/a", Class::Config)][..], MembersError::Nothing),
        (&[("/", Class::UserData)][..], MembersError::Whole("/".into())),
        (&[("/a", Class::Unknown)][..], MembersError::Whole("/a".into())),
        (&[("/{a,b}", Class::UserData), ("/b", Class::Config)][..], MembersError::Twice("/b".into())),
        (
            &[("/a", Class::UserData), ("/a/b", Class::Config)][..],
            MembersError::Inside { inner: "/a/b".into(), outer: "/a".into() },
        ),
    ] {
        assert_eq!(members(Format::Json, list).unwrap_err(), wanted);
    }
    let deep = members(Format::Yaml, &[("/a/b", Class::UserData)]).unwrap_err();
    assert_eq!(deep, MembersError::TooDeep("/a/b".into()));
}

#[test]
fn each_form_has_its_own_fingerprint() {
    let list = [("/a", Class::UserData), ("/b", Class::Credentials)];
    let forms = [
        withholding(&list, &[Class::UserData]),
        withholding(&list, &[Class::Credentials]),
        withholding(&list, &[Class::UserData, Class::Credentials]),
        withholding(&[("/a", Class::UserData), ("/c", Class::Credentials)], &[Class::UserData]),
    ];
    let mut seen: Vec<String> = forms.iter().map(Withholding::fingerprint).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), forms.len());
}

#[test]
fn what_no_list_finds_cannot_be_withheld() {
    let user_data = || members(Format::Json, &[("/a", Class::UserData)]).unwrap();
    let none = |lists, class| Withholding::new(lists, Classes::of(class), Vec::new()).is_none();
    assert!(none(vec![user_data()], Class::Credentials));
    assert!(none(Vec::new(), Class::UserData));
    let yaml = members(Format::Yaml, &[("/a", Class::UserData)]).unwrap();
    assert!(none(vec![user_data(), yaml], Class::UserData));
}
