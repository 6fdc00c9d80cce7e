//! Patterns against examples, and against a slow matcher whose meaning is obvious.

use proptest::prelude::*;

use super::*;

fn path(text: &str) -> Vec<String> {
    text.split('/').filter(|part| !part.is_empty()).map(str::to_ascii_lowercase).collect()
}

fn matches(pattern: &str, text: &str) -> bool {
    PathPattern::parse(pattern).unwrap().matches(&path(text))
}

#[test]
fn stars_count_segments() {
    assert!(matches("/*/user-data", "/latest/user-data"));
    assert!(!matches("/*/user-data", "/user-data"));
    assert!(!matches("/*/user-data", "/latest/user-data/x"));
    assert!(matches("/a/**", "/a") && matches("/a/**", "/a/b/c") && !matches("/a/**", "/ab"));
    assert!(matches("/a/**/z", "/a/z") && matches("/a/**/z", "/a/z/y/z") && !matches("/a/**/z", "/a/z/y"));
    assert!(matches("/**", "/") && matches("/**", "/x") && matches("/", "/") && !matches("/", "/x"));
    assert!(matches("/**/a/**/b", "/a/a/b") && !matches("/**/a/**/b", "/b/a"));
}

#[test]
fn globs_stay_inside_one_segment() {
    assert!(matches("/*/meta-data/iam-ecs-*/info", "/latest/meta-data/iam-ecs-prod/info"));
    assert!(!matches("/*/meta-data/iam-ecs-*/info", "/latest/meta-data/iam-ecs-a/b/info"));
    assert!(!matches("/*/meta-data/iam-ecs-*", "/latest/meta-data/iam"));
    assert!(matches("/v*", "/v") && matches("/v*1", "/v11") && !matches("/v*1", "/v"));
    assert!(!matches("/ab*ba", "/aba"), "the two ends must not overlap");
    assert!(matches("/2*-*-*", "/2021-03-23") && !matches("/2*-*-*", "/2021-0323"));
}

#[test]
fn alternatives_may_span_segments_or_be_empty() {
    for (text, hit) in [("/latest/meta-data", true), ("/meta-data", true), ("/x/meta-data", false)] {
        assert_eq!(matches("/{latest/,}meta-data", text), hit, "{text}");
    }
    let wide = "/{computeMetadata/v1,0.1/meta-data}/**/attributes/{kube-env,cluster-*}";
    assert!(matches(wide, "/0.1/meta-data/attributes/kube-env"));
    assert!(matches(wide, "/computemetadata/v1/instance/attributes/cluster-ca"));
    assert!(!matches(wide, "/computemetadata/v1/instance/attributes/x"));
}

#[test]
fn case_is_folded_once_when_the_pattern_is_read() {
    let pattern = PathPattern::parse("/computeMetadata/V1").unwrap();
    assert_eq!(pattern.to_string(), "/computemetadata/v1");
    assert!(pattern.matches(&path("/ComputeMetadata/v1")));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    use PatternError as E;
    for (text, error) in [
        ("latest", E::NotAbsolute),
        ("", E::NotAbsolute),
        ("{/a,b}", E::NotAbsolute),
        ("/a?x=1", E::Character('?')),
        ("/a%2fb", E::Character('%')),
        ("/[a-z]", E::Character('[')),
        ("/a//b", E::EmptySegment),
        ("/{a,}/b", E::EmptySegment),
        ("/a/../b", E::DotSegment),
        ("/a**", E::PartialRest),
        ("/{a", E::Braces),
        ("/a}", E::Braces),
        ("/{a,{b,c}}", E::Braces),
        ("/{a,b,c,d}{a,b,c,d}{a,b,c,d}{a,b,c,d}{a,b}", E::TooMany),
    ] {
        assert_eq!(PathPattern::parse(text), Err(error), "{text}");
    }
    assert_eq!(PathPattern::parse(&"/a".repeat(33)), Err(E::TooDeep));
}

#[test]
fn the_closer_pattern_wins() {
    let ladder = ["/a/**", "/a/**/c", "/a/*", "/a/*/c", "/a/b*", "/a/bc*", "/a/b", "/a/b/c"];
    for pair in ladder.windows(2) {
        let [vague, close] = pair else { unreachable!() };
        assert!(PathPattern::parse(vague).unwrap() < PathPattern::parse(close).unwrap(), "{vague} < {close}");
    }
    assert!(PathPattern::parse("/a").unwrap() > PathPattern::parse("/a/**").unwrap());
    let both = PathPattern::parse("/{a,*}/x").unwrap();
    assert!(both.closeness(&path("/a/x")) > both.closeness(&path("/b/x")));
    assert_eq!(both.closeness(&path("/a")), None);
}

#[test]
fn anchors_and_ancestors() {
    let branch = |text: &str| PathPattern::parse(text).unwrap().branches()[0].clone();
    assert_eq!(branch("/*/meta-data/x").anchor(), Some((2, "x")));
    assert_eq!(branch("/*/meta-data/iam-*/*").anchor(), Some((1, "meta-data")));
    assert_eq!(branch("/a/**/b").anchor(), Some((0, "a")));
    assert_eq!(branch("/**/x").anchor(), None);
    let above = |text: &str| branch(text).ancestors().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(above("/*/meta-data/iam/info"), ["/*/meta-data", "/*/meta-data/iam"]);
    assert_eq!(above("/a/**/b"), ["/a"]);
    assert_eq!(above("/*/**"), Vec::<String>::new());
    assert_eq!(above("/a"), Vec::<String>::new());
}

/// Says what the pattern means, one case after the other, however long it takes.
fn slow(pattern: &[&str], path: &[&str]) -> bool {
    match pattern {
        [] => path.is_empty(),
        ["**", rest @ ..] => (0..=path.len()).any(|skip| slow(rest, &path[skip..])),
        [one, rest @ ..] => !path.is_empty() && slow_segment(one, path[0]) && slow(rest, &path[1..]),
    }
}

fn slow_segment(pattern: &str, text: &str) -> bool {
    match pattern.chars().next() {
        None => text.is_empty(),
        Some('*') => (0..=text.len()).any(|skip| slow_segment(&pattern[1..], &text[skip..])),
        Some(c) => text.starts_with(c) && slow_segment(&pattern[1..], &text[1..]),
    }
}

fn pattern_segment() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[ab]{1,3}",
        2 => "[ab]?\\*[ab]{1,2}(\\*[ab]?)?",
        2 => Just("*".to_owned()),
        2 => Just("**".to_owned()),
    ]
}

proptest! {
    #[test]
    fn the_matcher_agrees_with_the_slow_one(
        pattern in prop::collection::vec(pattern_segment(), 0..6),
        path in prop::collection::vec("[ab]{1,4}", 0..7),
    ) {
        let text = format!("/{}", pattern.join("/"));
        let fast = PathPattern::parse(&text).unwrap().matches(&path);
        let wanted: Vec<&str> = pattern.iter().map(String::as_str).collect();
        let given: Vec<&str> = path.iter().map(String::as_str).collect();
        prop_assert_eq!(fast, slow(&wanted, &given), "{} on {:?}", text, path);
    }

    #[test]
    fn reading_never_panics_and_display_reads_back(text in "[/a*{},.B]{0,24}") {
        if let Ok(pattern) = PathPattern::parse(&text) {
            prop_assert_eq!(PathPattern::parse(&pattern.to_string()).unwrap(), pattern);
        }
    }

    #[test]
    fn alternatives_mean_any_of_them(
        left in "[ab]{1,2}", right in "[ab]{0,2}", path in prop::collection::vec("[ab]{1,3}", 0..3),
    ) {
        let either = PathPattern::parse(&format!("/x{{{left},{right}}}")).unwrap();
        let alone = [left, right].map(|end| PathPattern::parse(&format!("/x{end}")).unwrap());
        prop_assert_eq!(either.matches(&path), alone.iter().any(|one| one.matches(&path)));
    }
}

#[test]
fn long_paths_and_many_stars_stay_cheap() {
    // A matcher that backtracked over every `**` would not come back from this in a lifetime.
    let pattern = PathPattern::parse(&format!("{}/b", "/**/*a".repeat(15))).unwrap();
    let long = vec!["a".to_owned(); 4000];
    assert!(!pattern.matches(&long));
}
