//! The index against a reading of the same rows that looks at every one of them.

use proptest::prelude::*;

use super::super::catalogue::Catalogue;
use super::*;
use crate::request::{Gate, Limits, Step, Strictness};

fn target(method: &str, path: &str) -> Option<Target> {
    let bytes = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nDomU_Request: saved_password\r\n\r\n");
    let limits = Limits { head_bytes: 16 * 1024, headers: 64 };
    let step = Gate::new(Strictness::Enforce, limits).step(bytes.as_bytes());
    if let Step::Head { head, .. } = step { Target::read(&head).ok() } else { None }
}

/// The closest rows without a condition and the closest whose condition holds, cloud by cloud.
fn slow(catalogue: &Catalogue, endpoint: Endpoint, target: &Target) -> Classes {
    let mut sum = Classes::EMPTY;
    for cloud in
        catalogue.clouds().iter().filter(|cloud| cloud.served.iter().any(|one| one.endpoint == endpoint))
    {
        for conditional in [false, true] {
            let speaking = cloud.resources.iter().filter(|row| {
                row.condition.is_empty() != conditional
                    && cloud.counts_at(row, endpoint.port)
                    && row.condition.holds(target)
            });
            let closest = |row: &Resource| row.pattern.closeness(target.path().segments()).cloned();
            let Some(best) = speaking.clone().filter_map(closest).max() else { continue };
            for row in speaking.filter(|row| closest(row).as_ref() == Some(&best)) {
                sum = sum.union(row.classes);
                if !row.methods.iter().any(|method| **method == *target.method().as_str()) {
                    sum = sum.with(Class::Write);
                }
            }
        }
    }
    if sum.is_empty() { Classes::of(Class::Unknown) } else { sum }
}

/// Segments that the catalogues spell out, and some that they do not.
fn segment() -> impl Strategy<Value = String> {
    let mut words: Vec<String> =
        vec!["x".into(), "1.0".into(), "2021-03-23".into(), "iam-ecs-a".into(), "v2".into()];
    for cloud in Catalogue::builtin().clouds() {
        for branch in cloud.resources.iter().flat_map(|row| row.pattern.branches()) {
            words.extend(branch.example().into_iter().filter(|word| !word.contains('*')));
        }
    }
    words.sort();
    words.dedup();
    prop::sample::select(words)
}

/// A path that some row describes, or one put together at random.
fn path() -> impl Strategy<Value = String> {
    let mut known: Vec<String> = Vec::new();
    for cloud in Catalogue::builtin().clouds() {
        for branch in cloud.resources.iter().flat_map(|row| row.pattern.branches()) {
            known.push(branch.to_string().replace("/**", "/more").replace('*', "latest"));
        }
    }
    prop_oneof![
        prop::sample::select(known),
        prop::collection::vec(segment(), 0..6).prop_map(|parts| format!("/{}", parts.join("/"))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_index_finds_what_looking_at_every_row_finds(
        path in path(),
        method in prop::sample::select(vec!["GET", "HEAD", "PUT", "POST"]),
        query in prop::sample::select(vec!["", "?recursive", "?comp=certificates", "?comp=config&type=fullConfig"]),
        names in prop::sample::select(vec!["all", "aws", "gcp", "azure", "exoscale", "tencent", "huawei"]),
    ) {
        let all = Catalogue::builtin();
        let catalogue = if names == "all" { all.clone() } else { all.select(&[names.to_owned()]).unwrap() };
        let Some(target) = target(method, &format!("{path}{query}")) else { return Ok(()) };
        let served = catalogue.clouds().iter().flat_map(|cloud| &cloud.served);
        for endpoint in served.map(|one| one.endpoint).collect::<std::collections::BTreeSet<_>>() {
            let fast = catalogue.classify(endpoint, &target).classes;
            prop_assert_eq!(fast, slow(&catalogue, endpoint, &target), "{} {} at {}", method, path, endpoint);
        }
    }
}

#[test]
fn every_pattern_of_every_cloud_finds_its_own_row() {
    for cloud in Catalogue::builtin().clouds() {
        let alone = Catalogue::builtin().select(&[cloud.id().to_owned()]).unwrap();
        let Some(door) = cloud.served.first() else { continue };
        for row in cloud.resources.iter().filter(|row| row.condition.is_empty() && row.port.is_none()) {
            for branch in row.pattern.branches() {
                // `*` and `**` as literal segments: no other row spells them out.
                let text = branch.to_string();
                let method = row.methods.first().unwrap();
                let target = target(method, &text).unwrap();
                let touched = alone.classify(door.endpoint, &target);
                assert!(!touched.classes.contains(Class::Unknown), "{} {text}", cloud.id());
                assert!(
                    row.classes.is_subset_of(touched.classes) || text.ends_with('*'),
                    "{} {text}",
                    cloud.id()
                );
            }
        }
    }
}
