//! What a refused client is told.

use imds_guard::cloud::Catalogue;

use super::{ask, door_of, named};

/// Status, headers and body for one refused request.
fn refused(
    names: &[&str],
    method: &str,
    target: &str,
    headers: &[&str],
) -> (u16, Vec<(String, String)>, String) {
    let catalogue = named(names);
    let endpoint = door_of(&catalogue, catalogue.clouds()[0].served()[0].endpoint.port);
    let answer = catalogue.refusal(&ask(&catalogue, endpoint, method, target, headers));
    let body = answer.render("rule \"x\" says no", "0123");
    (answer.status, answer.headers, body)
}

fn has(headers: &[(String, String)], name: &str, value: &str) -> bool {
    headers.iter().any(|(n, v)| n.eq_ignore_ascii_case(name) && v.starts_with(value))
}

#[test]
fn refusals_make_real_clients_give_up() {
    let keys = "/latest/meta-data/iam/security-credentials/x";
    assert_eq!(refused(&["aws"], "GET", keys, &[]).0, 404);
    assert_eq!(
        refused(&["aws"], "PUT", "/latest/api/token", &[]).0,
        400,
        "403, 404 and 405 switch SDKs to v1"
    );
    assert_eq!(refused(&["aws"], "PUT", "/latest/meta-data/mac", &[]).0, 403);
    assert_eq!(refused(&["oracle-oci"], "GET", "/opc/v2/identity/key.pem", &[]).0, 403, "404 is retried");
    assert_eq!(
        refused(&["azure-wireserver"], "GET", "/machine?comp=certificates", &[]).0,
        404,
        "403 is retried"
    );
    assert_eq!(refused(&["azure-imds"], "GET", "/metadata/instance", &[]).0, 403, "404 is retried");

    let (status, headers, body) = refused(&["gcp"], "GET", "/computeMetadata/v1/?recursive=true", &[]);
    assert_eq!(status, 404);
    assert!(has(&headers, "Metadata-Flavor", "Google") && has(&headers, "Content-Type", "text/plain"));
    assert!(body.contains("rule \"x\" says no") && body.contains("0123"));
    let broken = refused(&["gcp"], "GET", "/computeMetadata/v1/%zz", &[]);
    assert!(broken.0 == 400 && has(&broken.1, "Metadata-Flavor", "Google"), "errors carry it too");

    let (status, headers, body) = refused(&["azure-imds"], "GET", "/metadata/identity/oauth2/token", &[]);
    assert!(status == 400 && has(&headers, "Content-Type", "application/json"));
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["error"], "invalid_request");
    let words = json["error_description"].as_str().unwrap();
    assert!(words.contains("Identity not found") && words.contains("rule \"x\" says no"), "{words}");
}

#[test]
fn among_many_clouds_the_one_that_is_addressed_answers() {
    let token = "/computeMetadata/v1/instance/service-accounts/default/token";
    let google = refused(&["all"], "GET", token, &["Metadata-Flavor: Google"]);
    assert!(google.0 == 404 && has(&google.1, "Metadata-Flavor", "Google"));
    let azure = refused(&["all"], "GET", "/nothing/here", &["Metadata: true"]);
    assert_eq!(azure.0, 403);
    let nobody = refused(&["all"], "GET", "/nothing/here", &[]);
    assert!(nobody.0 == 404 && !has(&nobody.1, "Metadata-Flavor", ""));
    let digital = refused(&["digitalocean", "upcloud"], "GET", "/metadata/v1.json", &[]);
    assert_eq!(digital.0, 404);
}

#[test]
fn no_refusal_can_be_taken_for_a_call_to_try_again() {
    for cloud in Catalogue::builtin().clouds() {
        let alone = named(&[cloud.id()]);
        let Some(served) = alone.cloud(cloud.id()).and_then(|cloud| cloud.served().first()) else { continue };
        for resource in cloud.resources() {
            // The pattern itself, as a path, touches at least what its row says.
            let path = resource.pattern.to_string().replace(['{', '}', ',', '*'], "x");
            let asked = ask(&alone, served.endpoint, "GET", &path, &[]);
            let answer = alone.refusal(&asked);
            assert!([400, 403, 404, 405].contains(&answer.status), "{} {path}", cloud.id());
            assert!(answer.headers.iter().any(|(name, _)| name == "Content-Type"));
            assert!(answer.body.contains("{reason}") && answer.body.contains("{event}"), "{}", cloud.id());
        }
    }
}
