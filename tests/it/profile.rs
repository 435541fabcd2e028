//! `?profile=1`, and Triton's names in `/metrics`.

use ndserve::api::access::{KeyRing, Role};
use ndserve::api::{Access, AppOptions, Limits, ServerOptions, Surface, Watched};
use ndserve::config::Endpoint;

use crate::client::{Client, get, post, request};
use crate::models;
use crate::server::Server;

const BODY: &str = r#"{"instances": [[1,2]]}"#;

fn start(app: AppOptions) -> Server {
    let folder = models::only(&["two-features"]);
    let queued = folder.join("queued");
    std::fs::create_dir_all(queued.join("1")).unwrap();
    std::fs::copy(folder.join("two-features/1/model.onnx"), queued.join("1/model.onnx")).unwrap();
    // Through the queue, since it waits; a moment in which other requests come.
    std::fs::write(queued.join("model.toml"), "max_delay_ms = 50").unwrap();
    let endpoint = (Endpoint::Http("127.0.0.1:0".parse().unwrap()), Surface::Whole);
    Server::start_on(folder, app, ServerOptions::default(), vec![endpoint])
}

#[test]
fn a_profile_has_the_operators_of_that_request_and_leaves_the_answer_as_it_is() {
    let server = start(Limits::default().into());
    for model in ["two-features", "queued"] {
        for (path, body) in [
            (format!("/v1/models/{model}:predict"), BODY),
            (
                format!("/v2/models/{model}/infer"),
                r#"{"id": "a", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}"#,
            ),
        ] {
            let plain = post(server.address, &path, body).json();
            let mut profiled = post(server.address, &format!("{path}?profile=1"), body).json();
            let profile = profiled.as_object_mut().unwrap().remove("profile").unwrap_or_else(|| panic!("{path}: {profiled}"));
            assert_eq!(profiled, plain, "{path}");
            let [pass] = &profile.as_array().unwrap()[..] else { panic!("one pass: {profile}") };
            assert_eq!((pass["model"].as_str(), pass["version"].as_str()), (Some(model), Some("1")));
            let nodes = server.repository.get(model, None).unwrap().handle().unwrap().model().graph().nodes.len();
            let operators = pass["operators"].as_array().unwrap();
            assert_eq!(operators.len(), nodes, "{profile}");
            let total: f64 = operators.iter().map(|operator| operator["ms"].as_f64().unwrap()).sum();
            assert!(total > 0.0 && total <= pass["compute_ms"].as_f64().unwrap(), "{profile}");
        }
    }
}

#[test]
fn a_profiled_request_shares_its_pass_with_no_other() {
    let server = start(Limits::default().into());
    let path = "/v1/models/queued:predict";
    std::thread::scope(|scope| {
        for suffix in ["", "", "?profile=1", "?profile=1"] {
            scope.spawn(move || assert_eq!(post(server.address, &format!("{path}{suffix}"), BODY).status, 200));
        }
    });
    let stats = server.repository.get("queued", None).unwrap().handle().unwrap().stats();
    assert_eq!(stats.rows, 4);
    assert!(stats.batches() >= 3, "each of two alone: {} passes", stats.batches());
}

#[test]
fn a_binary_answer_has_its_profile_in_the_json_part() {
    let server = start(Limits::default().into());
    let path = "/v2/models/two-features/infer?profile=1";
    let body =
        r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}], "parameters": {"binary_data_output": true}}"#;
    crate::wire::run(async {
        let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let reply = crate::wire::Wire::http1(stream).await.post(path, body).await;
        assert_eq!(reply.status, 200);
        let length: usize = reply.header("inference-header-content-length").unwrap().parse().unwrap();
        let (json, tensor) = reply.body.split_at(length);
        let json: serde_json::Value = serde_json::from_slice(json).unwrap();
        assert!(json["profile"][0]["operators"].as_array().is_some_and(|operators| !operators.is_empty()), "{json}");
        assert_eq!(tensor.len(), 4);
    });
}

#[test]
fn a_profile_needs_an_admin_key_where_there_are_keys_and_a_model_that_runs() {
    let keys = ["infer-0123456789abcdef0123456789abcdef", "admin-0123456789abcdef0123456789abcdef"];
    let mut ring = KeyRing::default();
    ring.add_plain(keys[0], Role::Infer, "infer").unwrap();
    ring.add_plain(keys[1], Role::Admin, "admin").unwrap();
    let keyring = Watched::open(vec![], move |_, _| Ok(ring.clone())).unwrap();
    let server = start(AppOptions { access: Access { keys: Some(keyring), ..Access::default() }, ..AppOptions::default() });
    let statuses = keys.map(|key| {
        let message = request("POST", "/v1/models/two-features:predict?profile=1", &[&format!("x-api-key: {key}")], BODY);
        Client::connect(server.address).send(&message).status
    });
    assert_eq!(statuses, [403, 200]);
    let message = request("GET", "/v2/models/two-features?profile=1", &[&format!("x-api-key: {}", keys[1])], "");
    let refused = Client::connect(server.address).send(&message);
    assert_eq!(refused.status, 501);
    assert!(refused.error().contains("runs no model"), "{refused:?}");
}

#[test]
fn tritons_names_are_there_if_wanted_and_count_what_it_counts() {
    let without = start(Limits::default().into());
    assert!(!get(without.address, "/metrics").body.contains("nv_inference"));
    let server = start(AppOptions { triton_metrics: true, ..AppOptions::default() });
    for body in [BODY, BODY, r#"{"instances": [[1,2],[3,4],[5,6]]}"#] {
        assert_eq!(post(server.address, "/v1/models/two-features:predict", body).status, 200);
    }
    let page = get(server.address, "/metrics").body;
    let value = |name: &str| -> f64 {
        let line = page
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{model=\"two-features\",version=\"1\"")))
            .unwrap_or_else(|| panic!("{name}: {page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!([value("nv_inference_request_success"), value("nv_inference_count"), value("nv_inference_exec_count")], [3.0, 5.0, 3.0]);
    assert_eq!([value("nv_inference_pending_request_count"), value("nv_inference_request_failure")], [0.0, 0.0]);
    let parts =
        ["queue", "compute_input", "compute_infer", "compute_output"].map(|part| value(&format!("nv_inference_{part}_duration_us")));
    // Each is cut to whole microseconds.
    assert!(parts.iter().sum::<f64>() <= value("nv_inference_request_duration_us") + 4.0, "{parts:?}");
}
