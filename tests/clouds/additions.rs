//! What a policy may add to the catalogues, and what it may not.

use imds_guard::cloud::{
    AddedEndpoint, AddedResource, Catalogue, CatalogueError, Class, Classes, Endpoint, Selection,
};
use imds_guard::request::Fault;

use super::{ask, at, named, shared};

fn endpoint_from(text: &str) -> AddedEndpoint {
    toml::from_str(text).unwrap()
}

fn resource_from(text: &str) -> AddedResource {
    toml::from_str(text).unwrap()
}

#[test]
fn a_policy_adds_endpoints() {
    let router = endpoint_from(
        "address = '10.1.1.1'\nport = 80\ncloud = 'cloudstack'\nhostnames = ['Data-Server.lan']",
    );
    let password = endpoint_from("address = '10.1.1.1'\nport = 8080\ncloud = 'cloudstack'");
    let catalogue = named(&["cloudstack"]).with_additions(&[router, password], &[]).unwrap();
    assert_eq!(catalogue.endpoints(), [at("10.1.1.1:80"), at("10.1.1.1:8080")]);
    let touches = |port: u16, target: &str, headers: &[&str]| {
        ask(&catalogue, Endpoint::new("10.1.1.1".parse().unwrap(), port), "GET", target, headers)
    };
    assert_eq!(touches(80, "/latest/user-data", &[]).touched.classes, Classes::of(Class::UserData));
    let wanted = Classes::of(Class::Credentials).with(Class::Write);
    assert_eq!(touches(8080, "/", &["DomU_Request: saved_password"]).touched.classes, wanted);
    assert!(!touches(80, "/", &["Host: data-server.lan"]).faults.contains(&Fault::HostForeign));
    assert!(touches(80, "/", &["Host: elsewhere.lan"]).faults.contains(&Fault::HostForeign));

    // Also where nobody knows which cloud this is.
    let router = endpoint_from("address = '10.1.1.1'\nport = 80\ncloud = 'cloudstack'");
    let auto = Catalogue::choose(&Selection::Auto, &[""; 0]).unwrap().with_additions(&[router], &[]).unwrap();
    assert!(auto.endpoints().contains(&at("10.1.1.1:80")));
    let asked = ask(&auto, at("10.1.1.1:80"), "GET", "/latest/user-data", &[]);
    assert_eq!(asked.touched.clouds.iter().collect::<Vec<_>>(), ["cloudstack"]);

    // Of no particular cloud: all that were chosen judge there.
    let anybody = endpoint_from("address = '192.0.2.7'\nport = 8775\nhostnames = ['imds.test']");
    let catalogue = named(&["aws"]).with_additions(&[anybody], &[]).unwrap();
    let keys = "/latest/meta-data/iam/security-credentials/x";
    let asked = ask(&catalogue, at("192.0.2.7:8775"), "GET", keys, &["Host: imds.test:8775"]);
    assert_eq!(asked.touched.classes, Classes::of(Class::Credentials));
    assert!(asked.faults.is_empty());
    assert!(catalogue.endpoints().contains(&at("192.0.2.7:8775")));
}

#[test]
fn a_policy_cannot_catch_what_is_no_metadata() {
    for (address, port) in
        [("169.254.169.253", 53), ("169.254.171.9", 443), ("0.0.0.0", 80), ("224.0.0.1", 80)]
    {
        let entry = endpoint_from(&format!("address = '{address}'\nport = {port}"));
        let result = named(&["aws"]).with_additions(&[entry], &[]);
        assert!(matches!(result, Err(CatalogueError::Addition(_))), "{address}");
    }
    let stranger = endpoint_from("address = '10.0.0.1'\nport = 80\ncloud = 'gcp'");
    assert!(named(&["aws"]).with_additions(&[stranger], &[]).is_err());
    assert!(toml::from_str::<AddedEndpoint>("address = '10.0.0.1'").is_err(), "an address without a port");
    assert!(toml::from_str::<AddedEndpoint>("address = '10.0.0.1'\nport = 80\nprot = 'x'").is_err());
}

#[test]
fn a_policy_adds_resources_and_takes_nothing_away() {
    let tags =
        resource_from("path = '/*/meta-data/tags/instance/secret-*'\nclass = 'user-data'\ncloud = 'aws-ec2'");
    let fresh = resource_from("path = '/latest/meta-data/brand-new'\nclass = ['config']");
    let weak = resource_from("path = '/latest/meta-data/iam/security-credentials/x'\nclass = 'config'");
    let asks = resource_from("path = '/**'\nclass = 'identity'\nquery = 'prove'\nmethod = ['GET']");
    let catalogue = named(&["aws"]).with_additions(&[], &[tags, fresh, weak, asks]).unwrap();
    let touches = |target: &str| ask(&catalogue, shared(), "GET", target, &[]).touched.classes;
    assert_eq!(touches("/latest/meta-data/tags/instance/secret-db"), Classes::of(Class::UserData));
    assert_eq!(touches("/latest/meta-data/tags/instance/name"), Classes::of(Class::Config));
    assert_eq!(touches("/latest/meta-data/brand-new"), Classes::of(Class::Config));
    let both = Classes::of(Class::Credentials).with(Class::Config);
    assert_eq!(
        touches("/latest/meta-data/iam/security-credentials/x"),
        both,
        "the built-in row still counts"
    );
    assert_eq!(touches("/nowhere?prove"), Classes::of(Class::Identity));
    assert_eq!(touches("/nowhere"), Classes::of(Class::Unknown));
    let asked = ask(&catalogue, shared(), "GET", "/latest/meta-data/brand-new", &[]);
    assert_eq!(asked.touched.clouds.iter().collect::<Vec<_>>(), ["policy"]);
    assert_eq!(catalogue.refusal(&asked).status, 404);
    let unknown = resource_from("path = '/x'\nclass = 'unknown'");
    assert!(named(&["aws"]).with_additions(&[], &[unknown]).is_err());
}
