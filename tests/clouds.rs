//! The catalogues as a whole: what requests touch, where the doors are, which cloud is detected, how it
//! refuses.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test that fails is meant to panic"
)]

use std::collections::BTreeSet;

use imds_guard::cloud::table::table;
use imds_guard::cloud::tls::TlsAt;
use imds_guard::cloud::{Asked, Catalogue, CatalogueError, Class, Classes, Dmi, Door, Endpoint, Selection};
use imds_guard::request::{Fault, Gate, Limits, RawHead, Step, Strictness};

#[path = "clouds/additions.rs"]
mod additions;
#[path = "clouds/refusals.rs"]
mod refusals;

fn named(names: &[&str]) -> Catalogue {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let selection = if names == ["all"] { Selection::All } else { Selection::Named(names) };
    Catalogue::choose(&selection, &[""; 0]).unwrap()
}

fn at(text: &str) -> Endpoint {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    Endpoint::new(socket.ip(), socket.port())
}

fn shared() -> Endpoint {
    at("169.254.169.254:80")
}

fn head(endpoint: Endpoint, method: &str, target: &str, headers: &[&str]) -> RawHead {
    let host = if headers.iter().any(|header| header.to_ascii_lowercase().starts_with("host:")) {
        String::new()
    } else {
        format!("Host: {endpoint}\r\n")
    };
    let more = headers.iter().map(|header| header.to_string() + "\r\n").collect::<String>();
    let bytes = format!("{method} {target} HTTP/1.1\r\n{host}{more}\r\n");
    let limits = Limits { head_bytes: 16 * 1024, headers: 64 };
    match Gate::new(Strictness::Enforce, limits).step(bytes.as_bytes()) {
        Step::Head { head, .. } => head,
        other => panic!("{bytes:?} makes no head: {other:?}"),
    }
}

fn ask(catalogue: &Catalogue, endpoint: Endpoint, method: &str, target: &str, headers: &[&str]) -> Asked {
    Asked::read(catalogue, endpoint, head(endpoint, method, target, headers))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    cloud: Vec<String>,
    cases: Vec<String>,
}

/// Where a case is asked: the port it names, at the first address that the first cloud has there.
fn door_of(catalogue: &Catalogue, port: u16) -> Endpoint {
    let served = catalogue.clouds().iter().flat_map(|cloud| cloud.served());
    served.map(|one| one.endpoint).find(|endpoint| endpoint.port == port).unwrap()
}

#[test]
fn every_request_touches_what_the_table_says() {
    let groups: toml::Table = toml::from_str(include_str!("cases/classes.toml")).unwrap();
    let groups: Vec<Group> = groups["group"].clone().try_into().unwrap();
    let (mut count, mut wrong) = (0, Vec::new());
    for group in &groups {
        let catalogue = named(&group.cloud.iter().map(String::as_str).collect::<Vec<_>>());
        let mut seen = BTreeSet::new();
        for case in &group.cases {
            assert!(seen.insert(case), "{case} is there twice");
            count += 1;
            let (request, classes) = case.split_once(" -> ").unwrap();
            let wanted: Classes = classes.split(", ").map(|name| Class::from_name(name).unwrap()).collect();
            let (line, header) = request.split_once(" | ").map_or((request, None), |(a, b)| (a, Some(b)));
            let (method, target) = line.split_once(' ').unwrap();
            let first = door_of(&catalogue, catalogue.clouds()[0].served()[0].endpoint.port);
            let (method, endpoint) = match method.split_once(':') {
                Some((method, port)) => (method, door_of(&catalogue, port.parse().unwrap())),
                None => (method, first),
            };
            let headers: Vec<&str> = header.into_iter().collect();
            let asked = ask(&catalogue, endpoint, method, target, &headers);
            if let Err(fault) = &asked.target {
                wrong.push(format!("{:?} {case}\n    cannot be read: {}", group.cloud, fault.code()));
            } else if asked.touched.classes != wanted || asked.touched.classes.to_string() != classes {
                wrong.push(format!("{:?} {case}\n    touches {}", group.cloud, asked.touched.classes));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 300, "only {count} cases");
}

#[test]
fn a_cloud_that_is_not_at_the_endpoint_has_no_say() {
    let all = named(&["all"]);
    // Alibaba's keys, asked where Alibaba does not answer, and the other way round.
    let ram = "/latest/meta-data/ram/security-credentials/x";
    assert_eq!(ask(&all, shared(), "GET", ram, &[]).touched.classes, Classes::of(Class::Unknown));
    let alibaba = at("100.100.100.200:80");
    assert_eq!(ask(&all, alibaba, "GET", ram, &[]).touched.classes, Classes::of(Class::Credentials));
    let google = "/computeMetadata/v1/instance/service-accounts/default/token";
    assert_eq!(ask(&all, alibaba, "GET", google, &[]).touched.classes, Classes::of(Class::Unknown));
    assert_eq!(ask(&all, at("192.0.2.1:80"), "GET", "/", &[]).touched.classes, Classes::of(Class::Unknown));
}

#[test]
fn who_knows_the_path_is_told() {
    let all = named(&["all"]);
    let clouds =
        |target: &str| ask(&all, shared(), "GET", target, &[]).touched.clouds.iter().collect::<Vec<_>>();
    assert_eq!(clouds("/metadata/identity/oauth2/token"), ["azure-imds"]);
    assert_eq!(clouds("/metadata/v1.json"), ["digitalocean", "upcloud"]);
    assert!(clouds("/foo").is_empty());
}

#[test]
fn secrets_in_paths_long_polls_and_constants_are_marked() {
    let ecs = named(&["aws-ecs"]);
    let secret = ask(&ecs, at("169.254.170.2:80"), "GET", "/v2/credentials/some-id", &[]).touched;
    assert!(secret.secret_path);
    let gcp = named(&["gcp"]);
    let touched = |target: &str| ask(&gcp, shared(), "GET", target, &[]).touched;
    assert!(touched("/computeMetadata/v1/instance/licenses/?recursive=true&wait_for_change=true").long_poll);
    assert!(!touched("/computeMetadata/v1/instance/licenses/?recursive=true").long_poll);
    assert!(touched("/computeMetadata/v1/instance/id").constant);
    assert!(!touched("/computeMetadata/v1/instance/id?recursive=true").constant);
    assert!(!touched("/computeMetadata/v1/instance/hostname").constant);
    assert!(touched("/computeMetadata/v1/?recursive=true").withholdable.contains(Class::UserData));
    let below = "/computeMetadata/v1/instance/attributes/?recursive=true";
    assert!(touched(below).withholdable.is_empty(), "all of it is user data");
    assert!(!ask(&gcp, shared(), "PUT", "/computeMetadata/v1/instance/id", &[]).touched.constant);
    // Constant for one cloud and unknown to the others is constant; constant for one only is not.
    let two = named(&["aws-ec2", "openstack"]);
    assert!(!ask(&two, shared(), "GET", "/latest/meta-data/instance-id", &[]).touched.constant);
    assert!(ask(&two, shared(), "GET", "/latest/meta-data/system", &[]).touched.constant);
}

#[test]
fn a_read_without_a_session_token_is_version_1_where_there_are_tokens() {
    let version = |clouds: &[&str], target: &str, headers: &[&str]| {
        let catalogue = named(clouds);
        ask(&catalogue, shared(), "GET", target, headers).session_version()
    };
    let token = ["X-aws-ec2-metadata-token: t"];
    assert_eq!(version(&["aws"], "/latest/meta-data/instance-id", &[]), Some("v1"));
    assert_eq!(version(&["aws"], "/latest/meta-data/instance-id", &token), Some("v2"));
    assert_eq!(version(&["gcp"], "/computeMetadata/v1/instance/id", &token), None);
}

#[test]
fn endpoints_are_exact_and_what_is_set_aside_is_not_caught() {
    let texts = |names: &[&str]| named(names).endpoints().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        texts(&["aws"]),
        [
            "169.254.169.254:80",
            "169.254.170.2:80",
            "169.254.170.23:80",
            "[fd00:ec2::23]:80",
            "[fd00:ec2::254]:80"
        ]
    );
    assert_eq!(texts(&["azure"]), ["168.63.129.16:80", "168.63.129.16:32526", "169.254.169.254:80"]);
    assert_eq!(texts(&["hetzner"]), ["169.254.169.254:80", "[fe80::a9fe:a9fe]:80"]);

    assert_eq!(
        texts(&["gcp"]),
        [
            "169.254.169.254:80",
            "169.254.169.254:443",
            "169.254.169.254:8080",
            "[fd20:ce::254]:80",
            "[fd20:ce::254]:443",
            "[fd20:ce::254]:8080"
        ]
    );
    assert_eq!(texts(&["openstack"]), ["169.254.169.254:80", "[fe80::a9fe:a9fe]:80"]);
    assert_eq!(texts(&["cloudstack"]), [""; 0]);
    for kept in ["169.254.169.252", "127.0.0.1"] {
        assert!(!texts(&["all"]).iter().any(|text| text.contains(kept)), "{kept} would be caught");
    }
    // Kept from the redirect, yet known.
    assert!(named(&["aws"]).serves(at("169.254.170.2:80")));
}

#[test]
fn doors_are_http_only_where_everybody_agrees() {
    let (plain, tls, grpc) = (shared(), at("169.254.169.254:443"), at("169.254.169.254:8080"));
    let gcp = named(&["gcp"]);
    assert_eq!([plain, tls, grpc].map(|e| gcp.door(e)), [Door::Http, Door::Opaque, Door::Opaque]);
    assert_eq!(named(&["exoscale"]).door(grpc), Door::Http);
    assert_eq!(named(&["exoscale", "gcp"]).door(grpc), Door::Either);
    assert_eq!(named(&["gcp", "exoscale"]).door(grpc), Door::Either);
    assert_eq!(named(&["all"]).door(plain), Door::Http);
    assert_eq!(gcp.door(at("192.0.2.1:80")), Door::Opaque);
}

#[test]
fn tls_is_spoken_only_where_one_family_of_clouds_may_be_meant() {
    let tls = |names: &[&str], endpoint| match named(names).upstream_tls(endpoint) {
        TlsAt::Nowhere => "nowhere".to_owned(),
        TlsAt::Uncertain => "uncertain".to_owned(),
        TlsAt::Sure(tls) => tls.server_name.clone(),
    };
    let v6 = at("[fd20:ce::254]:80");
    assert_eq!(tls(&["gcp"], shared()), "metadata.google.internal");
    assert_eq!(tls(&["gcp"], v6), "metadata.google.internal");
    assert_eq!(tls(&["ibm"], shared()), "api.metadata.cloud.ibm.com");
    assert_eq!(tls(&["aws"], shared()), "nowhere");
    assert_eq!(tls(&["gcp"], at("169.254.169.254:443")), "nowhere");
    for several in [&["gcp", "ibm"][..], &["aws", "gcp"], &["all"]] {
        assert_eq!(tls(several, shared()), "uncertain");
    }
    assert_eq!(tls(&["all"], v6), "metadata.google.internal");
    assert_eq!(named(&["all"]).sure_tls().map(|tls| tls.port), Some(443));
    assert!(named(&["aws", "azure"]).sure_tls().is_none());
}

#[test]
fn undetected_means_everybody_at_the_shared_address_only() {
    let auto = Catalogue::choose(&Selection::Auto, &[""; 0]).unwrap();
    assert_eq!(auto.clouds().len(), Catalogue::builtin().clouds().len());
    let endpoints: Vec<String> = auto.endpoints().iter().map(ToString::to_string).collect();
    assert_eq!(endpoints, ["169.254.169.254:80", "169.254.169.254:443", "169.254.169.254:8080"]);
    assert!(!auto.serves(at("100.100.100.200:80")));
    let found = Catalogue::choose(&Selection::Auto, &["alibaba"]).unwrap();
    assert_eq!(found.endpoints().len(), 2);
}

#[test]
fn families_select_their_members_and_strangers_are_refused() {
    let ids = |names: &[&str]| named(names).clouds().iter().map(|cloud| cloud.id()).collect::<Vec<_>>();
    assert_eq!(ids(&["aws"]), ["aws-ec2", "aws-ecs", "aws-eks-pod-identity"]);
    assert_eq!(ids(&["azure"]), ["azure-imds", "azure-wireserver"]);
    assert_eq!(ids(&["azure-wireserver"]), ["azure-wireserver"]);
    let error = Catalogue::builtin().select(&["awz".to_owned()]).unwrap_err();
    assert!(matches!(&error, CatalogueError::UnknownCloud { name, .. } if name == "awz"), "{error}");
    assert_eq!(Catalogue::builtin().select(&[]).unwrap_err(), CatalogueError::Nothing);
}

#[test]
fn hosts_are_the_endpoints_own_address_or_a_name_of_its_cloud() {
    let gcp = named(&["gcp"]);
    let foreign = |catalogue: &Catalogue, endpoint: &str, host: &str| {
        let asked = ask(catalogue, at(endpoint), "GET", "/", &[&format!("Host: {host}")]);
        asked.faults.contains(&Fault::HostForeign)
    };
    for own in [
        "169.254.169.254",
        "169.254.169.254:80",
        "metadata",
        "metadata.google.internal",
        "METADATA.google.internal.",
        "metadata.google.internal:80",
        "metadata.goog",
        "[::ffff:169.254.169.254]",
    ] {
        assert!(!foreign(&gcp, "169.254.169.254:80", own), "{own}");
    }
    for other in [
        "evil.example",
        "169.254.169.253",
        "169.254.169.254:8080",
        "metadata.google.internal.evil.example",
        "instance-data",
        "127.0.0.1",
        "localhost",
        "metadata.google.internal:81",
    ] {
        assert!(foreign(&gcp, "169.254.169.254:80", other), "{other}");
    }
    assert!(!foreign(&gcp, "[fd20:ce::254]:80", "[fd20:ce::254]"));
    assert!(foreign(&gcp, "[fd20:ce::254]:80", "169.254.169.254"));
    // A name counts only where its cloud answers.
    let all = named(&["all"]);
    assert!(foreign(&all, "100.100.100.200:80", "metadata.google.internal"));
    assert!(!foreign(&all, "169.254.169.254:80", "instance-data"));
}

#[test]
fn the_targets_fault_comes_first_and_touches_nothing_known() {
    let aws = named(&["aws"]);
    let asked = ask(&aws, shared(), "GET", "/latest/meta-data/%2561", &["X-Forwarded-For: 1.2.3.4"]);
    assert!(asked.target.is_err());
    assert_eq!(asked.faults.first(), asked.target.as_ref().err());
    assert!(asked.faults.contains(&Fault::ForwardingHeader));
    assert_eq!(asked.touched.classes, Classes::of(Class::Unknown));
    let unclear = Asked::unclear(shared(), None, Fault::BareLf);
    assert_eq!(unclear.faults, [Fault::BareLf]);
    assert_eq!(aws.refusal(&unclear).status, 400);
    assert_eq!(aws.refusal(&Asked::unclear(shared(), None, Fault::HeadTooLarge)).status, 431);
}

#[test]
fn firmware_gives_the_cloud_away() {
    let dmi = |change: fn(&mut Dmi)| {
        let mut dmi = Dmi::default();
        change(&mut dmi);
        Catalogue::detect(&dmi)
    };
    let aws = ["aws-ec2", "aws-ecs", "aws-eks-pod-identity"];
    assert_eq!(dmi(|d| d.bios_vendor = "Amazon EC2".into()), aws);
    assert_eq!(dmi(|d| d.sys_vendor = "Amazon EC2\n".into()), aws);
    assert_eq!(dmi(|d| d.hypervisor_uuid = "ec2f1d2c-0000".into()), ["aws-ec2"]);
    assert_eq!(
        dmi(|d| {
            d.product_uuid = "EC2A0000-1".into();
            d.product_serial = "ec2a0000-1".into();
        }),
        ["aws-ec2"]
    );
    assert!(dmi(|d| d.product_uuid = "EC2A0000-1".into()).is_empty(), "one of the two is no proof");
    assert_eq!(dmi(|d| d.product_name = "Google Compute Engine".into()), ["gcp", "gke-metadata-server"]);
    assert_eq!(dmi(|d| d.product_serial = "GoogleCloud-ABC".into()), ["gcp", "gke-metadata-server"]);
    let tag = |d: &mut Dmi| d.chassis_asset_tag = "7783-7084-3265-9085-8269-3286-77".into();
    assert_eq!(dmi(tag), ["azure-imds", "azure-wireserver"]);
    assert_eq!(dmi(|d| d.chassis_asset_tag = "OracleCloud.com".into()), ["oracle-oci"]);
    assert_eq!(dmi(|d| d.product_name = "Alibaba Cloud ECS".into()), ["alibaba"]);
    assert_eq!(dmi(|d| d.sys_vendor = "Tencent Cloud".into()), ["tencent"]);
    assert_eq!(dmi(|d| d.product_name = "OpenStack Nova".into()), ["openstack"]);
    assert_eq!(dmi(|d| d.chassis_asset_tag = "HUAWEICLOUD".into()), ["huawei"]);
    assert_eq!(dmi(|d| d.chassis_asset_tag = "OpenTelekomCloud".into()), ["huawei"]);
    assert_eq!(dmi(|d| d.sys_vendor = "DigitalOcean".into()), ["digitalocean"]);
    assert_eq!(dmi(|d| d.sys_vendor = "Hetzner".into()), ["hetzner"]);
    assert_eq!(dmi(|d| d.sys_vendor = "Scaleway".into()), ["scaleway"]);
    assert_eq!(dmi(|d| d.sys_vendor = "Vultr".into()), ["vultr"]);
    assert_eq!(dmi(|d| d.sys_vendor = "Akamai".into()), ["akamai-linode"]);
    assert_eq!(dmi(|d| d.product_name = "Exoscale Compute Platform".into()), ["exoscale"]);
    assert_eq!(dmi(|d| d.product_name = "CloudStack KVM Hypervisor".into()), ["cloudstack"]);
    assert_eq!(dmi(|d| d.sys_vendor = "UpCloud".into()), ["upcloud"]);
    assert_eq!(dmi(|d| d.product_serial = "srv-x.gb1.brightbox.com".into()), ["ec2-clones"]);
    let outscale = |d: &mut Dmi| {
        d.sys_vendor = "3DS Outscale".into();
        d.product_name = "3DS Outscale VM".into();
    };
    assert_eq!(dmi(outscale), ["ec2-clones"]);
    assert!(dmi(|_| ()).is_empty());
    assert!(dmi(|d| d.sys_vendor = "QEMU".into()).is_empty());
}

#[test]
fn tables_show_every_written_row() {
    for cloud in Catalogue::builtin().clouds() {
        let rows = table(cloud);
        assert!(!rows.is_empty(), "{}", cloud.id());
        assert!(
            rows.iter()
                .all(|row| row.path.contains('/') && !row.methods.is_empty() && !row.classes.is_empty())
        );
    }
    let rows = table(Catalogue::builtin().cloud("exoscale").unwrap());
    assert!(rows.iter().any(|row| row.path == ":8080/**  [DomU_Request: send_my_password]"));
}

#[test]
fn derived_listings_are_harmless() {
    // They are config, end at a directory, and never lie inside one that holds credentials.
    for cloud in Catalogue::builtin().clouds() {
        for listing in cloud.resources().iter().filter(|resource| resource.listing) {
            assert_eq!(listing.classes, Classes::of(Class::Config));
            assert!(!listing.pattern.as_str().contains("**"), "{} {}", cloud.id(), listing.pattern);
            assert!(!listing.pattern.as_str().contains("credential"), "{} {}", cloud.id(), listing.pattern);
        }
    }
}

#[test]
fn what_the_catalogue_calls_constant_is_harmless_and_belongs_to_the_machine() {
    const MAY_CHANGE: [&str; 8] =
        ["/macs", "interfaces", "token", "credential", "identity", "user-data", "tags", "attributes"];
    let mut constants = 0;
    for cloud in Catalogue::builtin().clouds() {
        for row in cloud.resources().iter().filter(|row| row.constant) {
            let path = row.pattern.to_string();
            constants += 1;
            assert_eq!(row.classes, Classes::EMPTY.with(Class::Config), "{}: {path}", cloud.id());
            for moving in MAY_CHANGE {
                assert!(!path.contains(moving), "{}: {path} can change, or is a secret", cloud.id());
            }
        }
    }
    assert!(constants > 10, "{constants}: there are constants");
}
