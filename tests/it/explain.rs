//! `:explain` over HTTP.

use base64::Engine as _;
use ndserve::api::{Limits, ServerOptions};
use serde_json::{Value, json};

use crate::client::{Client, get, post, request};
use crate::models;
use crate::server::Server;

fn ask(server: &Server, model: &str, body: &Value) -> Value {
    let answer = post(server.address, &format!("/v1/models/{model}:explain"), &body.to_string());
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn refused(server: &Server, model: &str, body: &Value) -> (u16, String) {
    let answer = post(server.address, &format!("/v1/models/{model}:explain"), &body.to_string());
    (answer.status, answer.error())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn image() -> Vec<Vec<Vec<f32>>> {
    vec![(0..8).map(|y| (0..8).map(|x| ((x * y) % 17) as f32).collect()).collect()]
}

#[test]
fn a_table_is_told_as_contributions_the_greatest_first() {
    let server = Server::start(models::only(&["two-features", "breast-cancer"]), Limits::default(), ServerOptions::default());
    let predicted = post(server.address, "/v1/models/two-features:predict", r#"{"instances": [[1, 2], [5, 6]]}"#).json();
    for method in ["shapley", "integrated_gradients", "gradient_input"] {
        let body = json!({"instances": [[1, 2], [5, 6]], "method": method, "steps": 1000, "background": [[3, 4], [0, 0]]});
        let answer = ask(&server, "two-features", &body);
        assert_eq!(answer["background"], json!({"source": "request", "rows": 2}));
        let explanations = answer["explanations"].as_array().unwrap();
        assert_eq!(explanations.len(), 2);
        for (explanation, predicted) in explanations.iter().zip(predicted["predictions"].as_array().unwrap()) {
            assert_eq!(explanation["method"], method);
            let answer = number(&explanation["answer"]);
            assert!((answer - number(&predicted[0])).abs() < 1e-6, "{explanation}");
            let contributions = explanation["contributions"].as_array().unwrap();
            let sizes: Vec<f64> = contributions.iter().map(|c| number(&c["contribution"]).abs()).collect();
            assert!(sizes.is_sorted_by(|a, b| a >= b), "{explanation}");
            let sum: f64 = contributions.iter().map(|c| number(&c["contribution"])).sum();
            let error = (number(&explanation["base_value"]) + sum - number(&explanation["value"])).abs();
            assert!((error - number(&explanation["completeness_error"])).abs() < 1e-9, "{explanation}");
            if method != "gradient_input" {
                assert!(error < 1e-3, "{explanation}");
            }
        }
    }
    // With labels the class is told and chosen by its name.
    let row: Vec<f32> = (0..30).map(|i| i as f32).collect();
    let body = json!({"instances": [row], "method": "gradient_input", "target": "benign", "top": 3});
    let answer = ask(&server, "breast-cancer", &body);
    assert_eq!(answer["explanations"][0]["target"], json!({"output": "probabilities", "index": 1, "label": "benign"}));
    assert_eq!(answer["explanations"][0]["contributions"].as_array().unwrap().len(), 3);
}

#[test]
fn an_image_has_attributions_in_its_shape_and_a_heat_map() {
    let server = Server::start(models::only(&["digits"]), Limits::default(), ServerOptions::default());
    for method in ["integrated_gradients", "occlusion"] {
        let answer = ask(&server, "digits", &json!({"instances": [image()], "method": method}));
        assert_eq!(answer["background"], json!({"source": "zeros", "rows": 1}));
        let explanation = &answer["explanations"][0];
        let rows = explanation["attributions"]["image"][0].as_array().unwrap();
        assert!(rows.len() == 8 && rows.iter().all(|row| row.as_array().unwrap().len() == 8), "{explanation}");
        assert_eq!(explanation.get("contributions"), None);
        let png = explanation["heat_maps"]["image"]["b64"].as_str().unwrap();
        let png = base64::engine::general_purpose::STANDARD.decode(png).unwrap();
        assert!(png.starts_with(b"\x89PNG\r\n"));
        let bare = ask(&server, "digits", &json!({"instances": [image()], "method": method, "heat_map": false}));
        assert_eq!(bare["explanations"][0].get("heat_maps"), None);
        assert_eq!(bare["explanations"][0]["attributions"], explanation["attributions"], "the same bits each time");
    }
}

#[test]
fn what_a_folder_declares_is_used() {
    let folder = models::only(&["two-features"]);
    let background = ndserve::engine::Tensor::new(&[2, 2], vec![1.0_f32, 1.0, 3.0, 5.0]).unwrap();
    std::fs::write(folder.join("two-features/background.npz"), ndserve::engine::npz::write(&[("x", &background)]).unwrap()).unwrap();
    let settings = "[explain]\nmethod = 'shapley'\nfeatures = ['width', 'height']\nbackground = 'background.npz'\nmax_evaluations = 100\n";
    std::fs::write(folder.join("two-features/model.toml"), settings).unwrap();
    let server = Server::start(folder, Limits::default(), ServerOptions::default());
    let answer = ask(&server, "two-features", &json!({"instances": [[4, 2]]}));
    assert_eq!(answer["background"], json!({"source": "model", "rows": 2}));
    assert_eq!(answer["explanations"][0]["method"], "shapley");
    let mut names: Vec<&str> =
        answer["explanations"][0]["contributions"].as_array().unwrap().iter().map(|c| c["feature"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["height", "width"]);
    let many: Vec<[f32; 2]> = vec![[1.0, 2.0]; 40];
    let (status, error) = refused(&server, "two-features", &json!({"instances": many}));
    assert_eq!(status, 400);
    assert!(error.contains("evaluations, the limit is 100 (max_evaluations)"), "{error}");
    let metrics = get(server.address, "/metrics").body;
    let line = "ndserve_explanations_total{model=\"two-features\",version=\"1\",method=\"shapley\"} 1";
    assert!(metrics.lines().any(|found| found == line), "{metrics}");
    let success = server.repository.get("two-features", None).unwrap().handle().unwrap().stats();
    assert_eq!((success.success.count, success.fail.count), (0, 0), "passes of explanations are no inferences");
    assert!(success.explain_rows > 0);
}

#[test]
fn what_cannot_be_explained_is_refused() {
    let server = Server::start(models::folder(), Limits { max_evaluations: 50, ..Limits::default() }, ServerOptions::default());
    for (model, body, status, want) in [
        (
            "two-features",
            json!({"instances": [[1, 2]], "method": "tree_shap"}),
            501,
            "model `two-features`: the model has 0 nodes of trees",
        ),
        ("text", json!({"instances": ["a"], "method": "shapley"}), 501, "model `text`: the model has no output of floating-point"),
        (
            "pair",
            json!({"instances": [{"x": [1, 2], "n": 1}], "method": "gradient_input"}),
            501,
            "input `n` is int64, which has no gradient",
        ),
        ("two-features", json!({"instances": [[1, 2]], "method": "shapley", "target": 4}), 400, "target is 4; the output has 1 elements"),
        ("two-features", json!({"instances": [[1, 2]], "methods": "shapley"}), 400, "methods is not known; known are instances"),
        ("two-features", json!({"instances": [[1, 2]], "method": "integrated_gradients"}), 400, "the limit is 50"),
        ("nope", json!({"instances": [[1, 2]]}), 404, "nope"),
    ] {
        let (found, error) = refused(&server, model, &body);
        assert_eq!(found, status, "{body}: {error}");
        assert!(error.contains(want), "{body}\n got: {error}\nwant: {want}");
    }
}

#[test]
fn an_explanation_keeps_its_deadline() {
    let server = Server::start(models::only(&["digits"]), Limits::default(), ServerOptions::default());
    let body = json!({"instances": [image()], "method": "shapley", "samples": 1000, "timeout_ms": 1});
    let (status, error) = refused(&server, "digits", &body);
    assert!(status == 504 || (status == 503 && error.contains("the deadline cannot be met")), "{status} {error}");
    let stats = server.repository.get("digits", None).unwrap().handle().unwrap().stats();
    assert!(stats.explain_rows < 64_000, "it was given up: {} rows", stats.explain_rows);
    // Headers say it too, as for predictions; zero is none.
    let body = json!({"instances": [image()], "method": "shapley", "samples": 1000}).to_string();
    let send =
        |header: &str, body: &str| Client::connect(server.address).send(&request("POST", "/v1/models/digits:explain", &[header], body));
    for header in ["x-request-timeout-ms: 1", "x-envoy-expected-rq-timeout-ms: 1"] {
        assert!([503, 504].contains(&send(header, &body).status), "{header}");
    }
    let wrong = send("x-request-timeout-ms: soon", &body);
    assert_eq!(wrong.status, 400);
    assert!(wrong.error().contains("x-request-timeout-ms is \"soon\" where a whole number of milliseconds is wanted"), "{wrong:?}");
    let patient = json!({"instances": [image()], "method": "gradient_input", "timeout_ms": 0}).to_string();
    assert_eq!(send("x-request-timeout-ms: 0", &patient).status, 200);
}
