//! Whether two patterns could describe one path: a rule's, and a catalogue's row's.
//!
//! Answers "yes" where it is in doubt, so that "no" can be relied on.

use super::{Branch, PathPattern, Segment};

impl PathPattern {
    /// Whether some path may fit both patterns.
    #[must_use]
    pub fn may_meet(&self, other: &Self) -> bool {
        self.branches.iter().any(|one| other.branches.iter().any(|two| one.may_meet(two)))
    }

    /// The same for the path behind its first name: what a server sees that takes `//name/...` for a host and a path.
    #[must_use]
    pub fn may_meet_behind_authority(&self, other: &Self) -> bool {
        self.branches.iter().any(|one| {
            let behind = match one.segments.as_slice() {
                [Segment::Rest, ..] => one.segments.as_slice(),
                [_, behind @ ..] => behind,
                [] => return false,
            };
            other.branches.iter().any(|two| meet(behind, &two.segments))
        })
    }
}

impl Branch {
    fn may_meet(&self, other: &Self) -> bool {
        meet(&self.segments, &other.segments)
    }
}

/// Both are walked along at once. A bit of `here` stands for a place in `two` that can be reached together with the
/// present place in `one`; patterns have at most 32 segments.
fn meet(one: &[Segment], two: &[Segment]) -> bool {
    let end = 1_u64 << two.len();
    // `**` of the other may match nothing, so the place behind it is reached as well.
    let settle = |mut here: u64| {
        for (at, segment) in two.iter().enumerate() {
            if *segment == Segment::Rest && here >> at & 1 == 1 {
                here |= 1 << (at + 1);
            }
        }
        here
    };
    let mut here = settle(1);
    for segment in one {
        let places = two.iter().enumerate().filter(|(at, _)| here >> at & 1 == 1);
        let next = match segment {
            // Any number of the other's names may be swallowed, from the first place on.
            Segment::Rest => (end << 1) - (1 << here.trailing_zeros()),
            Segment::Literal(_) | Segment::Glob(_) | Segment::Any => places.fold(0, |next, (at, other)| {
                let behind = u64::from(segment.may_be(other)) << (at + 1);
                next | if *other == Segment::Rest { 1 << at } else { behind }
            }),
        };
        here = settle(next);
        if here == 0 {
            return false;
        }
    }
    here & end != 0
}

impl Segment {
    /// Whether one name may fit both.
    fn may_be(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any | Self::Rest, _) | (_, Self::Any | Self::Rest) => true,
            (Self::Literal(one), Self::Literal(two)) => one == two,
            (Self::Literal(name), glob @ Self::Glob(_)) | (glob @ Self::Glob(_), Self::Literal(name)) => {
                glob.accepts(name)
            }
            // What lies between the two ends could be anything.
            (Self::Glob(one), Self::Glob(two)) => {
                let ends = |runs: &[Box<str>]| runs.first().cloned().zip(runs.last().cloned());
                let (Some((start, end)), Some((begin, stop))) = (ends(one), ends(two)) else { return true };
                (start.starts_with(&*begin) || begin.starts_with(&*start))
                    && (end.ends_with(&*stop) || stop.ends_with(&*end))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meets(one: &str, two: &str) -> bool {
        PathPattern::parse(one).unwrap().may_meet(&PathPattern::parse(two).unwrap())
    }

    #[test]
    fn patterns_meet_where_one_path_fits_both() {
        for (one, two) in [
            ("/latest/user-data", "/*/user-data"),
            ("/a/**", "/a"),
            ("/**/b", "/a/**"),
            ("/a/*/c", "/{x,a}/b/c"),
            ("/iam-*/x", "/*-prod/x"),
            ("/**/a/**/b", "/*/*/*/*"),
        ] {
            assert!(meets(one, two) && meets(two, one), "{one} {two}");
        }
        for (one, two) in [
            ("/latest/meta-data/instance-id", "/*/meta-data/iam/security-credentials/**"),
            ("/a/**/c", "/a/b"),
            ("/a", "/a/b"),
            ("/a/**", "/b/**"),
            ("/iam-*", "/ecs-*"),
            ("/x-*", "/y"),
            ("/**/a", "/**/b"),
        ] {
            assert!(!meets(one, two) && !meets(two, one), "{one} {two}");
        }
    }

    proptest! {
        #[test]
        fn what_fits_both_makes_them_meet(
            one in prop::collection::vec("(a|b|\\*|\\*\\*|a\\*|\\*b)", 0..5),
            two in prop::collection::vec("(a|b|\\*|\\*\\*|a\\*|\\*b)", 0..5),
        ) {
            let parse = |parts: &[String]| PathPattern::parse(&format!("/{}", parts.join("/"))).unwrap();
            let (one, two) = (parse(&one), parse(&two));
            let met = one.may_meet(&two);
            prop_assert_eq!(met, two.may_meet(&one));
            // Every path of up to five of these names: enough for what patterns of that length can tell apart.
            let mut paths: Vec<Vec<String>> = vec![Vec::new()];
            for length in 0..5 {
                let last: Vec<_> = paths.iter().filter(|path| path.len() == length).cloned().collect();
                let with = |name: &str| {
                    last.iter().map(|path| [path.as_slice(), &[name.to_owned()]].concat()).collect::<Vec<_>>()
                };
                paths.extend(["a", "b", "ab"].into_iter().flat_map(with));
            }
            let both = paths.iter().any(|path| one.matches(path) && two.matches(path));
            prop_assert!(!both || met, "{one} {two}");
        }
    }
}
