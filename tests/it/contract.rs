//! Every route answers as the protocols say.

use ndserve::serve::Label;
use serde_json::{Value, json};

use crate::client::{Answer, Client, get, post, request};
use crate::server::{Server, shared, strict};

fn ok(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.json()
}

fn infer(model: &str, body: &Value) -> Answer {
    post(shared(), &format!("/v2/models/{model}/infer"), &body.to_string())
}

#[test]
fn predict_answers_for_the_only_model() {
    let server = strict();
    let answer = ok(&post(server.address, "/predict", r#"{"instances": [[1,2],[5,6]]}"#));
    let predictions = answer["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), 2);
    assert!(predictions[0][0].as_f64().unwrap() < 0.01, "{answer}");
    assert!(predictions[1][0].as_f64().unwrap() > 0.99, "{answer}");
    let columns = ok(&post(server.address, "/predict", r#"{"inputs": {"x": [[1,2],[5,6]]}}"#));
    assert_eq!(columns["outputs"], answer["predictions"]);
}

#[test]
fn predict_without_a_default_model_says_what_to_do() {
    let answer = post(shared(), "/predict", r#"{"instances": [[1,2]]}"#);
    assert_eq!(answer.status, 400);
    assert!(answer.error().contains("name one in the path"), "{answer:?}");
}

#[test]
fn the_path_names_model_and_version() {
    for path in ["/v1/models/two-features:predict", "/v1/models/two-features/versions/1:predict", "/v1/models/two%2Dfeatures%3Apredict"] {
        let answer = ok(&post(shared(), path, r#"{"instances": [[1,2]]}"#));
        assert_eq!(answer["predictions"].as_array().unwrap().len(), 1, "{path}");
    }
}

/// The first of each pair goes to its handler without the router.
#[test]
fn with_and_without_the_router_answers_and_failures_are_the_same() {
    let tensor =
        |data: &str| format!(r#"{{"id": "1", "inputs": [{{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [{data}]}}]}}"#);
    let rows = |row: &str| format!(r#"{{"instances": [[{row}]]}}"#);
    for (hot, routed, right, wrong) in [
        ("/v1/models/two-features:predict", "/v1/models/two%2Dfeatures:predict", rows("1,2"), rows("1,2,3")),
        ("/v2/models/two-features/infer", "/v2/models/two%2Dfeatures/infer", tensor("1,2"), tensor("1")),
        ("/v1/models/absent:predict", "/v1/models/%61bsent:predict", rows("1,2"), rows("1")),
        ("/v2/models/absent/infer", "/v2/models/%61bsent/infer", tensor("1,2"), tensor("1")),
    ] {
        for body in [right, wrong, "no JSON".to_owned()] {
            let [one, other] = [hot, routed].map(|path| post(shared(), path, &body));
            assert_eq!((one.status, &one.body), (other.status, &other.body), "{hot}");
            for name in ["content-type", "x-request-id", "server-timing"] {
                assert_eq!(one.header(name).is_some(), other.header(name).is_some(), "{hot}: {name}");
            }
        }
    }
}

#[test]
fn labels_come_most_likely_first() {
    let row = |value: f64| vec![vec![vec![value; 8]; 8]; 1];
    let answer = ok(&post(shared(), "/v1/models/digits:predict", &json!({"instances": [row(0.0), row(16.0)]}).to_string()));
    let predictions = answer["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), 2);
    for prediction in predictions {
        let scores = prediction["scores"].as_array().unwrap();
        assert_eq!(scores.len(), 10);
        assert_eq!(scores[0]["label"], prediction["label"]);
        assert_eq!(scores[0]["score"], prediction["score"]);
        let values: Vec<f64> = scores.iter().map(|entry| entry["score"].as_f64().unwrap()).collect();
        assert!(values.is_sorted_by(|a, b| a >= b), "{values:?}");
        assert!((values.iter().sum::<f64>() - 1.0).abs() < 1e-5);
    }
    let columns = ok(&post(shared(), "/v1/models/digits:predict", &json!({"inputs": [row(0.0)]}).to_string()));
    assert_eq!(columns["outputs"][0].as_array().unwrap().len(), 10);
    assert_eq!(columns["predictions"][0], answer["predictions"][0]);
    let raw =
        ok(&infer("digits", &json!({"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": vec![0.0; 64]}]})));
    assert_eq!(raw["outputs"][0]["shape"], json!([1, 10]));
}

#[test]
fn several_inputs_are_rows_of_objects_or_columns_by_name() {
    let path = "/v1/models/pair:predict";
    let rows = ok(&post(shared(), path, r#"{"instances": [{"x": [1,2.5], "n": 7}, {"n": 8, "x": [3,4]}]}"#));
    assert_eq!(rows["predictions"], json!([{"x_out": [1.0, 2.5], "n_out": [7]}, {"x_out": [3.0, 4.0], "n_out": [8]}]));
    let columns = ok(&post(shared(), path, r#"{"inputs": {"x": [[1,2.5]], "n": [[7]]}}"#));
    assert_eq!(columns, json!({"outputs": {"x_out": [[1.0, 2.5]], "n_out": [[7]]}}));
}

#[test]
fn an_initialiser_that_is_an_input_may_be_given_or_left_out() {
    let path = "/v1/models/scaled:predict";
    let predict = |body: Value| ok(&post(shared(), path, &body.to_string()));
    let x = json!([[1, 2], [3, 4]]);
    let plain = predict(json!({"instances": x}));
    assert_eq!(plain["predictions"], json!([[3.0, 6.0], [9.0, 12.0]]));
    assert_eq!(predict(json!({"inputs": {"x": x}}))["outputs"], plain["predictions"]);
    assert_eq!(predict(json!({"inputs": {"x": x, "w": [0.5]}}))["outputs"], json!([[1.0, 2.0], [3.0, 4.0]]));
    assert_eq!(predict(json!({"instances": x}))["predictions"], plain["predictions"]);
    let tensor = |name: &str, shape: Value, data: Value| json!({"name": name, "datatype": "FP32", "shape": shape, "data": data});
    let (x, w) = (tensor("x", json!([1, 2]), json!([1, 2])), tensor("w", json!([1]), json!([10])));
    assert_eq!(ok(&infer("scaled", &json!({"inputs": [w, x]})))["outputs"][0]["data"], json!([20.0, 40.0]));
    assert_eq!(ok(&infer("scaled", &json!({"inputs": [x]})))["outputs"][0]["data"], json!([3.0, 6.0]));
    let metadata = ok(&get(shared(), "/v2/models/scaled"));
    assert_eq!((&metadata["inputs"][0]["name"], metadata["inputs"].as_array().unwrap().len()), (&json!("x"), 1));
    assert_eq!(metadata["optional_inputs"], json!([{"name": "w", "datatype": "FP32", "shape": [-1]}]));
    for (body, want) in [
        (json!({"inputs": [x, w, w]}), "input `w` is given twice"),
        (json!({"inputs": [w]}), "input `x` is missing"),
        (json!({"inputs": [x, tensor("w", json!([]), json!([1]))]}), "input `w` wants shape"),
    ] {
        let answer = infer("scaled", &body);
        assert!(answer.status == 400 && answer.body.contains(want), "{}", answer.body);
    }
    let answer = post(shared(), path, r#"{"inputs": {"x": [[1, 2]], "w": [1], "w": [2]}}"#);
    assert!(answer.status == 400 && answer.body.contains("is given twice"), "{}", answer.body);
}

#[test]
fn every_element_type_goes_in_and_out() {
    for (model, instances, predictions) in [
        ("bytes", "[[0,255,1.0]]", "[[0,255,1]]"),
        ("text", r#"["a\"\u00e9", ""]"#, r#"["a\"é",""]"#),
        ("flags", "[[true,false],[1,0]]", "[[true,false],[true,false]]"),
        ("half", "[[0.5,1]]", "[[0.5,1.0]]"),
        ("any", "[[1e-7,NaN,-Infinity,Infinity]]", "[[1e-7,NaN,-Infinity,Infinity]]"),
    ] {
        let answer = post(shared(), &format!("/v1/models/{model}:predict"), &format!("{{\"instances\":{instances}}}"));
        assert_eq!((answer.status, answer.body.as_str()), (200, format!("{{\"predictions\":{predictions}}}").as_str()));
    }
    for (model, datatype, shape, data) in [
        ("bytes", "UINT8", json!([1, 3]), json!([0, 255, 1])),
        ("text", "BYTES", json!([2]), json!(["a\"é", ""])),
        ("flags", "BOOL", json!([1, 2]), json!([true, false])),
        ("any", "FP32", json!([2, 1]), json!([0.1, 5.0])),
    ] {
        let name = &ok(&get(shared(), &format!("/v2/models/{model}")))["inputs"][0]["name"];
        let input = json!({"name": name, "datatype": datatype, "shape": shape, "data": data});
        let answer = ok(&infer(model, &json!({"inputs": [input]})));
        let output = &answer["outputs"][0];
        assert_eq!((&output["datatype"], &output["shape"], &output["data"]), (&json!(datatype), &shape, &data), "{model}");
    }
}

#[test]
fn v2_answers_flat_and_nested_data_alike() {
    let n = json!({"name": "n", "shape": [2, 1], "datatype": "INT64", "data": [7, 8]});
    let x = |data: Value| json!({"name": "x", "shape": [2, 2], "datatype": "FP32", "data": data});
    let flat = ok(&infer("pair", &json!({"id": "abc", "inputs": [x(json!([1, 2, 3, 4])), n], "outputs": []})));
    let nested = ok(&infer("pair", &json!({"id": "abc", "inputs": [n, x(json!([[1, 2], [3, 4]]))]})));
    assert_eq!(flat, nested);
    let want = json!({
        "model_name": "pair", "model_version": "2", "id": "abc",
        "outputs": [
            {"name": "x_out", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]},
            {"name": "n_out", "datatype": "INT64", "shape": [2, 1], "data": [7, 8]},
        ],
    });
    assert_eq!(flat, want);
    let some = json!({"inputs": [n, x(json!([1, 2, 3, 4]))], "outputs": [{"name": "n_out", "parameters": {"binary_data": false}}]});
    let some = ok(&post(shared(), "/v2/models/pair/versions/1/infer", &some.to_string()));
    assert_eq!(some["model_version"], "1");
    assert_eq!(some["outputs"], json!([{"name": "n_out", "datatype": "INT64", "shape": [2, 1], "data": [7, 8]}]));
    assert!(some["id"].as_str().is_some_and(|id| !id.is_empty()), "{some}");
}

#[test]
fn metadata_of_the_server_tells_which_models_failed() {
    for path in ["/v2", "/v2/"] {
        let answer = ok(&get(shared(), path));
        assert_eq!(answer["name"], "ndserve");
        for extension in ["binary_tensor_data", "classification", "statistics", "model_repository", "logging", "trace"] {
            assert!(answer["extensions"].as_array().unwrap().contains(&json!(extension)), "{answer}");
        }
        let models = answer["models"].as_array().unwrap();
        let find = |name: &str| models.iter().find(|model| model["name"] == name).unwrap();
        assert_eq!(find("digits")["state"], "ready");
        assert_eq!(find("broken")["state"], "failed");
        assert!(find("broken")["reason"].as_str().unwrap().contains("model.onnx"), "{answer}");
    }
}

#[test]
fn metadata_of_a_model() {
    let mut pair = ok(&get(shared(), "/v2/models/pair"));
    // Measured, so different each time.
    let properties = pair["properties"].take();
    assert!(properties["batching_curve"].as_str().unwrap().starts_with("1:"), "{properties}");
    assert!(properties["batch_rows_best"].as_str().unwrap().parse::<usize>().is_ok(), "{properties}");
    assert_eq!(properties.as_object().unwrap().len(), 2);
    let tensor = |name: &str, datatype: &str, width: i64| json!({"name": name, "datatype": datatype, "shape": [-1, width]});
    let want = json!({
        "name": "pair", "versions": ["1", "2"], "platform": "onnx_onnxv1",
        "inputs": [tensor("x", "FP32", 2), tensor("n", "INT64", 1)],
        "outputs": [tensor("x_out", "FP32", 2), tensor("n_out", "INT64", 1)],
        "properties": null,
    });
    assert_eq!(pair, want);
    let digits = ok(&get(shared(), "/v2/models/digits/versions/1"));
    assert_eq!(digits["properties"]["labels"], "0,1,2,3,4,5,6,7,8,9");
    assert_eq!(ok(&get(shared(), "/v2/models/any/versions/v1.2/"))["inputs"][0]["shape"], json!([-1, -1]));
}

#[test]
fn v1_lists_models_and_their_versions() {
    let models = ok(&get(shared(), "/v1/models"));
    assert!(models["models"].as_array().unwrap().contains(&json!("two-features")));
    assert_eq!(ok(&get(shared(), "/v2/models")), models, "KServe's v2 servers list them too");
    let pair = ok(&get(shared(), "/v1/models/pair"));
    assert_eq!((&pair["name"], &pair["ready"]), (&json!("pair"), &json!(true)));
    let status = json!({"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}});
    assert_eq!(pair["model_version_status"][0], status);
    assert_eq!(ok(&get(shared(), "/v1/models/pair/versions/1"))["model_version_status"], json!([status]));
    assert_eq!(get(shared(), "/v1/models/nope").status, 404);
    assert_eq!(get(shared(), "/v1/models/broken").status, 503);
}

#[test]
fn tensorflow_serving_reads_the_signature() {
    let info = |name: &str, dtype: &str, width: &str| {
        json!({"name": name, "dtype": dtype, "tensor_shape": {"unknown_rank": false,
               "dim": [{"size": "-1", "name": "batch"}, {"size": width, "name": ""}]}})
    };
    let definition = json!({
        "inputs": {"x": info("x", "DT_FLOAT", "2"), "n": info("n", "DT_INT64", "1")},
        "outputs": {"x_out": info("x_out", "DT_FLOAT", "2"), "n_out": info("n_out", "DT_INT64", "1")},
        "method_name": "tensorflow/serving/predict",
    });
    for (path, version) in [("/v1/models/pair/metadata", "2"), ("/v1/models/pair/versions/1/metadata", "1")] {
        let want = json!({
            "model_spec": {"name": "pair", "signature_name": "", "version": version},
            "metadata": {"signature_def": {"signature_def": {"serving_default": definition}}},
        });
        assert_eq!(ok(&get(shared(), path)), want, "{path}");
    }
    let named = ok(&post(shared(), "/v1/models/any:predict", r#"{"signature_name": "serving_default", "instances": [[1]]}"#));
    assert_eq!(named["predictions"], json!([[1.0]]));
    let wrong = post(shared(), "/v1/models/any:predict", r#"{"signature_name": "other", "instances": [[1]]}"#);
    assert_eq!((wrong.status, wrong.error().contains("a model has one signature, `serving_default`")), (400, true), "{wrong:?}");
    let base64 = ok(&post(shared(), "/v1/models/text:predict", r#"{"instances": [{"b64": "w6k="}, "b"]}"#));
    assert_eq!(base64["predictions"], json!(["é", "b"]));
}

#[test]
fn cloud_events_come_back_in_their_mode() {
    let path = "/v1/models/any:predict";
    let mut client = Client::connect(shared());
    let headers = ["ce-specversion: 1.0", "ce-id: 1", "ce-source: test", "ce-type: t", "x-request-id: r-1"];
    let binary = client.send(&request("POST", path, &headers, r#"{"instances":[[1]]}"#));
    assert_eq!((binary.status, binary.body.as_str()), (200, r#"{"predictions":[[1.0]]}"#));
    let attributes = ["ce-specversion", "ce-id", "ce-source", "ce-type"].map(|name| binary.header(name).unwrap());
    assert_eq!(attributes, ["1.0", "r-1", "io.kserve.inference.any", "io.kserve.inference.response"]);
    let event = r#"{"specversion":"1.0","id":"1","source":"test","type":"t","data":{"instances":[[1]]}}"#;
    let structured = client.send(&request("POST", path, &["content-type: application/cloudevents+json"], event));
    assert_eq!((structured.status, structured.header("content-type")), (200, Some("application/cloudevents+json")));
    assert_eq!(structured.json()["data"], json!({"predictions": [[1.0]]}));
    let wrong = client.send(&request("POST", path, &["content-type: application/cloudevents+json"], "{}"));
    assert_eq!((wrong.status, wrong.error().contains("has no `data`")), (400, true), "{wrong:?}");
}

#[test]
fn a_label_stands_for_its_version() {
    let server = strict();
    server.repository.set_label("two-features", "stable", Some(Label::version("1"))).unwrap();
    let path = "/v1/models/two-features/labels/stable";
    let answer = ok(&post(server.address, &format!("{path}:predict"), r#"{"instances": [[1,2]]}"#));
    assert_eq!(answer["predictions"].as_array().unwrap().len(), 1);
    assert_eq!(ok(&get(server.address, path))["model_version_status"][0]["version"], "1");
    assert_eq!(ok(&get(server.address, &format!("{path}/metadata")))["model_spec"]["version"], "1");
    let wrong = get(server.address, &format!("{path}:predict"));
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")), "{wrong:?}");
}

#[test]
fn a_label_that_nobody_set_is_not_found() {
    for path in ["/v1/models/pair/labels/canary:predict", "/v1/models/pair/labels/canary%3Apredict"] {
        let answer = post(shared(), path, "{}");
        assert_eq!((answer.status, answer.error().contains("canary")), (404, true), "{answer:?}");
    }
    assert_eq!(get(shared(), "/v1/models/pair/labels/canary").status, 404);
    assert_eq!(get(shared(), "/v1/models/pair/labels/canary/metadata").status, 404);
}

#[test]
fn probes_tell_the_truth() {
    let server = strict();
    let live = json!({"live": true});
    let ready = json!({"live": true, "ready": true});
    for (path, want) in [
        ("/", &json!({"status": "alive"})),
        ("/livez", &live),
        ("/v2/health/live", &live),
        ("/readyz", &ready),
        ("/v2/health/ready", &ready),
        ("/v2/models/two-features/ready", &json!({"name": "two-features", "ready": true})),
        ("/v2/models/two-features/versions/1/ready", &json!({"name": "two-features", "ready": true})),
    ] {
        assert_eq!(ok(&get(server.address, path)), *want, "{path}");
    }
    for path in ["/readyz", "/v2/health/ready"] {
        let answer = get(shared(), path);
        assert_eq!(answer.status, 503);
        assert!(answer.error().contains("model `broken` version 1 failed"), "{answer:?}");
    }
    let broken = get(shared(), "/v2/models/broken/ready");
    assert_eq!((broken.status, broken.header("retry-after")), (503, Some("2")));
    assert_eq!(get(shared(), "/v2/models/nope/ready").status, 404);
    server.repository.start_draining();
    assert_eq!(get(server.address, "/readyz").status, 503);
    assert_eq!(get(server.address, "/livez").status, 200);
}

#[test]
fn answers_carry_a_request_id_and_their_timing() {
    let body = r#"{"instances": [[1,2]]}"#;
    let mut client = Client::connect(shared());
    let given = client.send(&request("POST", "/v1/models/two-features:predict", &["x-request-id: mine-1"], body));
    assert_eq!(given.header("x-request-id"), Some("mine-1"));
    let timing = given.header("server-timing").unwrap();
    for phase in ["parse;dur=", "queue;dur=", "compute;dur=", "serialize;dur="] {
        assert!(timing.contains(phase), "{timing}");
    }
    // The same connection goes on, and an id is made.
    let made = client.send(&request("POST", "/v1/models/two-features:predict", &[], body));
    assert_eq!(made.header("x-request-id").unwrap().len(), 16);
    let failed = client.send(&request("GET", "/nope", &["x-request-id: mine-2"], ""));
    assert_eq!((failed.status, failed.header("x-request-id")), (404, Some("mine-2")));
}

#[test]
fn chunked_bodies_and_any_content_type_are_taken() {
    let mut client = Client::connect(shared());
    let head = "POST /v1/models/two-features:predict HTTP/1.1\r\nhost: t\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
    client.write(head.as_bytes());
    for byte in br#"{"instances": [[1,2]]}"# {
        client.write(format!("1\r\n{}\r\n", char::from(*byte)).as_bytes());
    }
    client.write(b"0\r\n\r\n");
    assert_eq!(client.read().unwrap().status, 200);
}

#[test]
fn head_is_answered_like_get() {
    let mut client = Client::connect(shared());
    client.write(&request("HEAD", "/v2", &["connection: close"], ""));
    // The length is that of GET, the body is not sent: the client of these tests would wait for it.
    let mut text = String::new();
    assert!(std::io::Read::read_to_string(client.stream(), &mut text).is_ok());
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n"), "{text}");
}

#[test]
fn metrics_are_those_of_the_table() {
    let server: Server = strict();
    ok(&post(server.address, "/predict", r#"{"instances": [[1,2]]}"#));
    assert_eq!(get(server.address, "/nope").status, 404);
    let answer = get(server.address, "/metrics");
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let text = &answer.body;
    for metric in ndserve::api::METRICS {
        let line = format!("# TYPE {} {}\n", metric.name, metric.kind);
        assert_eq!(text.matches(&line).count(), 1, "{line}");
    }
    assert_eq!(text.matches("# TYPE").count(), ndserve::api::METRICS.len());
    for line in [
        "ndserve_requests_total{route=\"predict\",status=\"200\"} 1\n",
        "ndserve_requests_total{route=\"other\",status=\"404\"} 1\n",
        "ndserve_errors_total{kind=\"not_found\"} 1\n",
        "ndserve_errors_total{kind=\"internal\"} 0\n",
        "ndserve_request_seconds_count{route=\"predict\"} 1\n",
        "ndserve_phase_seconds_count{model=\"two-features\",version=\"1\",phase=\"compute\"} 1\n",
        "ndserve_batch_rows_bucket{model=\"two-features\",version=\"1\",le=\"1\"} 1\n",
        "ndserve_queue_depth{model=\"two-features\",version=\"1\"} 0\n",
        "ndserve_model_state{model=\"two-features\",version=\"1\",state=\"ready\"} 1\n",
        "ndserve_requests_in_flight 1\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    assert!(text.contains("process_resident_memory_bytes "));
}
