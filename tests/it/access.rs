//! API keys through the public API: what opens what, rates, a file that changes, and cross-origin requests.

use std::time::Duration;

use ndserve::api::access::{Cors, KeyRing, Keyless, Role, new_key};
use ndserve::api::{Access, AppOptions, ServerOptions, Surface, Watched};
use ndserve::config::Endpoint;

use crate::client::{Answer, Client, request};
use crate::models::{self, Folder};
use crate::server::Server;

const BODY: &str = r#"{"instances": [[1,2]]}"#;

/// A file of keys, watched as the command does.
fn watched(folder: &Folder, entries: &str) -> Watched<KeyRing> {
    let file = folder.join("keys.toml");
    std::fs::write(&file, entries).unwrap();
    Watched::open(vec![file], |bytes, before| Ok(KeyRing::parse(std::str::from_utf8(&bytes[0]).unwrap())?.keeping(before))).unwrap()
}

fn start(access: Access, surfaces: &[Surface]) -> Server {
    let app = AppOptions { access, ..AppOptions::default() };
    let options = ServerOptions { reload_interval: Duration::from_millis(10), ..ServerOptions::default() };
    let endpoints = surfaces.iter().map(|&surface| (Endpoint::Http("127.0.0.1:0".parse().unwrap()), surface)).collect();
    Server::start_on(models::only(&["two-features"]), app, options, endpoints)
}

fn ask(server: &Server, listener: usize, method: &str, path: &str, headers: &[&str]) -> Answer {
    let body = if method == "POST" { BODY } else { "" };
    Client::connect(server.endpoints[listener].address().unwrap()).send(&request(method, path, headers, body))
}

#[test]
fn every_route_but_probes_needs_a_key() {
    let folder = models::only(&[]);
    let made = [Role::Infer, Role::Metrics, Role::Admin].map(|role| new_key(role.name(), role, None).unwrap());
    let entries: String = made.iter().map(|(_, entry)| entry.as_str()).collect();
    let [infer, metrics, admin] = made.map(|(key, _)| format!("authorization: Bearer {key}"));
    let access = Access { keys: Some(watched(&folder, &entries)), keyless: Keyless { probes: true, metrics: false }, ..Access::default() };
    let server = start(access, &[Surface::Whole]);
    let status = |method: &str, path: &str, headers: &[&str]| ask(&server, 0, method, path, headers).status;

    let refused = ask(&server, 0, "POST", "/predict", &[]);
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer realm=\"ndserve\"")));
    assert!(refused.error().contains("an API key is needed"), "{refused:?}");
    let wrong = ask(&server, 0, "POST", "/predict", &["x-api-key: nds_wrong"]);
    assert_eq!((wrong.status, wrong.error()), (401, "the API key is not known".to_owned()));

    for (method, path) in [("POST", "/predict"), ("POST", "/v2/models/two-features/infer"), ("GET", "/v2"), ("GET", "/nothing")] {
        assert_eq!(status(method, path, &[]), 401, "{path}");
        assert_eq!(status(method, path, &[&metrics]), 403, "{path}");
        for key in [&infer, &admin] {
            assert!(![401, 403].contains(&status(method, path, &[key])), "{path}");
        }
    }
    assert_eq!(status("POST", "/predict", &[&infer.replace("authorization: Bearer", "x-api-key:")]), 200);
    for path in ["/livez", "/readyz", "/v2/health/ready", "/v2/models/two-features/ready"] {
        assert_eq!(status("GET", path, &[]), 200, "{path}");
    }
    let statuses = [&infer, &metrics, &admin].map(|key| status("GET", "/metrics", &[key]));
    assert_eq!(statuses, [403, 200, 200]);
    let statuses = [&infer, &metrics].map(|key| status("POST", "/v2/repository/models/two-features/unload", &[key]));
    assert_eq!(statuses, [403, 403]);
    let page = ask(&server, 0, "GET", "/metrics", &[&metrics]).body;
    assert!(page.contains("ndserve_key_requests_total{key=\"metrics\",outcome=\"admitted\"} 2"), "{page}");
    assert!(page.contains("ndserve_errors_total{kind=\"unauthenticated\"}"));
}

#[test]
fn the_admin_listener_has_its_own_key() {
    let folder = models::only(&[]);
    let (infer, one) = new_key("app", Role::Infer, None).unwrap();
    let (admin, two) = new_key("operator", Role::Admin, None).unwrap();
    let (infer, admin) = (format!("x-api-key: {infer}"), format!("x-api-key: {admin}"));
    let access =
        Access { keys: Some(watched(&folder, &(one + &two))), keyless: Keyless { probes: true, metrics: true }, ..Access::default() };
    let server = start(access, &[Surface::Public, Surface::Admin]);
    assert_eq!(ask(&server, 0, "POST", "/predict", &[&infer]).status, 200);
    assert_eq!(ask(&server, 1, "POST", "/predict", &[&infer]).status, 403);
    assert_eq!(ask(&server, 1, "POST", "/predict", &[&admin]).status, 200);
    assert_eq!(ask(&server, 1, "GET", "/metrics", &[]).status, 200, "metrics need no key as configured");
    assert_eq!(ask(&server, 0, "GET", "/metrics", &[&admin]).status, 404);
}

#[test]
fn a_rate_holds_for_its_key_alone() {
    let folder = models::only(&[]);
    let (slow, one) = new_key("slow", Role::Infer, Some(0.01)).unwrap();
    let (fast, two) = new_key("fast", Role::Infer, None).unwrap();
    let server = start(Access { keys: Some(watched(&folder, &(one + &two))), ..Access::default() }, &[Surface::Whole]);
    let (slow, fast) = (format!("x-api-key: {slow}"), format!("x-api-key: {fast}"));
    assert_eq!(ask(&server, 0, "POST", "/predict", &[&slow]).status, 200);
    let limited = ask(&server, 0, "POST", "/predict", &[&slow]);
    assert_eq!(limited.status, 429);
    let seconds: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((90..=100).contains(&seconds), "{seconds}");
    assert!(limited.error().contains("`slow` has used up its rate"));
    for _ in 0..5 {
        assert_eq!(ask(&server, 0, "POST", "/predict", &[&fast]).status, 200);
    }
}

#[test]
fn a_changed_file_of_keys_is_in_force_at_once_and_a_broken_one_is_not() {
    let folder = models::only(&[]);
    let (old, one) = new_key("old", Role::Infer, None).unwrap();
    let (new, two) = new_key("new", Role::Infer, None).unwrap();
    let server = start(Access { keys: Some(watched(&folder, &one)), ..Access::default() }, &[Surface::Whole]);
    let status = |key: &str| ask(&server, 0, "POST", "/predict", &[&format!("x-api-key: {key}")]).status;
    assert_eq!((status(&old), status(&new)), (200, 401));
    std::fs::write(folder.join("keys.toml"), "[[key]]\nname = 'broken'").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((status(&old), status(&new)), (200, 401), "a broken file locks nobody out");
    std::fs::write(folder.join("keys.toml"), two).unwrap();
    while status(&new) != 200 {
        std::thread::yield_now();
    }
    assert_eq!(status(&old), 401);
}

#[test]
fn pages_of_other_origins_read_answers_only_if_configured() {
    let preflight = ["origin: https://a.example", "access-control-request-method: POST"];
    let closed = start(Access::default(), &[Surface::Whole]);
    let answer = ask(&closed, 0, "OPTIONS", "/predict", &preflight);
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (405, None));

    let folder = models::only(&[]);
    let (key, entry) = new_key("page", Role::Infer, None).unwrap();
    let cors = Cors::new(&["https://a.example".to_owned()]).unwrap();
    let open = start(Access { keys: Some(watched(&folder, &entry)), cors, ..Access::default() }, &[Surface::Whole]);
    let head = request("OPTIONS", "/predict", &preflight, "");
    let mut client = Client::connect(open.address);
    client.write(&head);
    let mut bytes = [0; 1024];
    let count = std::io::Read::read(client.stream(), &mut bytes).unwrap();
    let text = String::from_utf8_lossy(&bytes[..count]).to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 204 "), "a preflight brings no key: {text}");
    assert!(text.contains("access-control-allow-origin: https://a.example\r\n") && text.contains("x-api-key"), "{text}");

    let key = format!("x-api-key: {key}");
    let answer = ask(&open, 0, "POST", "/predict", &["origin: https://a.example", &key]);
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("https://a.example")));
    let refused = ask(&open, 0, "POST", "/predict", &["origin: https://a.example"]);
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("https://a.example")));
    let other = ask(&open, 0, "POST", "/predict", &["origin: https://b.example", &key]);
    assert_eq!((other.status, other.header("access-control-allow-origin")), (200, None));
}
