//! Triton's extensions and the labels, over REST and gRPC: what one does the other shows.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ndserve::api::grpc::proto::inference::model_repository_parameter::ParameterChoice;
use ndserve::api::grpc::proto::inference::*;
use ndserve::api::{Limits, ServerOptions};
use ndserve::serve::{Options, Repository};
use serde_json::{Value, json};
use tonic::Code;

use crate::client::{Answer, Client, get, post, request};
use crate::grpc;
use crate::models::{self, Folder, scaled};
use crate::server::{Server, shared};

/// A server whose folder stays.
struct Living {
    folder: Folder,
    server: Server,
}

/// Serves a model `m` whose versions multiply by their number.
fn living(versions: &[&str]) -> Living {
    let folder = models::new_folder();
    for version in versions {
        scaled(&folder.join("m"), version, version.parse().unwrap());
    }
    std::fs::write(folder.join("m/model.toml"), "versions = 'all'").unwrap();
    let repository = std::sync::Arc::new(Repository::open(Options::new(&*folder)).unwrap());
    repository.load(|_, _, _, _| {});
    Living { server: Server::over(repository, Limits::default(), ServerOptions::default()), folder }
}

impl Living {
    fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        Client::connect(self.server.address).send(&request(method, path, &[], body))
    }

    /// The factor that answers at `m` and what follows it in a path.
    fn factor(&self, path: &str) -> f64 {
        let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]});
        let answer = post(self.server.address, &format!("/v2/models/m{path}/infer"), &body.to_string());
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["outputs"][0]["data"][0].as_f64().unwrap()
    }
}

/// The rows of the index as (version, state).
fn index(living: &Living) -> Vec<(String, String)> {
    let rows = living.send("POST", "/v2/repository/index", "").json();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(|row| (text(row, "version"), text(row, "state"))).collect()
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(version, state)| ((*version).to_owned(), (*state).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_loaded_and_unloaded_over_both() {
    let living = living(&["1"]);
    let mut client = grpc::client(living.server.address).await;
    assert_eq!(index(&living), pairs(&[("1", "READY")]));

    // REST loads, gRPC tells.
    scaled(&living.folder.join("m"), "2", 2.0);
    let loaded = living.send("POST", "/v2/repository/models/m/load", "");
    assert_eq!((loaded.status, loaded.body.as_str()), (200, ""));
    assert_eq!(living.factor(""), 2.0);
    let all = client.repository_index(RepositoryIndexRequest::default()).await.unwrap().into_inner().models;
    let rows: Vec<_> = all.iter().map(|row| (row.name.as_str(), row.version.as_str(), row.state.as_str())).collect();
    assert_eq!(rows, [("m", "1", "READY"), ("m", "2", "READY")]);

    // gRPC unloads, REST tells; the unloading may still be under way.
    let unload = RepositoryModelUnloadRequest { model_name: "m".into(), ..Default::default() };
    client.repository_model_unload(unload).await.unwrap();
    assert_eq!(get(living.server.address, "/v2/models/m/ready").status, 404);
    while index(&living) != pairs(&[("1", "UNAVAILABLE"), ("2", "UNAVAILABLE")]) {
        tokio::task::yield_now().await;
    }
    let ready = RepositoryIndexRequest { ready: true, ..Default::default() };
    assert!(client.repository_index(ready).await.unwrap().into_inner().models.is_empty());

    // gRPC loads with a configuration; REST unloads.
    let parameter = |choice| ModelRepositoryParameter { parameter_choice: Some(choice) };
    let config = ParameterChoice::StringParam(r#"{"max_batch_size": 3, "version_policy": {"specific": {"versions": [1]}}}"#.into());
    let load = |parameters| RepositoryModelLoadRequest { model_name: "m".into(), parameters, ..Default::default() };
    client.repository_model_load(load(HashMap::from([("config".into(), parameter(config))]))).await.unwrap();
    assert_eq!(living.factor(""), 1.0);
    let told = client.model_config(ModelConfigRequest { name: "m".into(), version: String::new() }).await.unwrap().into_inner();
    assert_eq!(told.config.unwrap().max_batch_size, 3);

    // Files: bytes over gRPC, base64 over REST.
    let other = models::new_folder();
    scaled(&other, "7", 7.0);
    let file = std::fs::read(other.join("7/model.onnx")).unwrap();
    let config = || parameter(ParameterChoice::StringParam(r#"{"version_policy": {"all": {}}}"#.into()));
    let parameters =
        HashMap::from([("config".into(), config()), ("file:7/model.onnx".into(), parameter(ParameterChoice::BytesParam(file.clone())))]);
    client.repository_model_load(load(parameters)).await.unwrap();
    assert_eq!((living.factor(""), living.factor("/versions/7")), (7.0, 7.0));
    let parameters = json!({"config": "{}", "file:8/model.onnx": BASE64.encode(&file)});
    assert_eq!(living.send("POST", "/v2/repository/models/m/load", &json!({"parameters": parameters}).to_string()).status, 200);
    assert_eq!(living.factor("/versions/8"), 7.0);
    assert_eq!(living.send("POST", "/v2/repository/models/m/unload", "{}").status, 200);
    assert_eq!(
        client.model_ready(ModelReadyRequest { name: "m".into(), version: String::new() }).await.unwrap().into_inner(),
        ModelReadyResponse { ready: false }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_loaded_is_refused_over_both() {
    let living = living(&["1"]);
    let mut client = grpc::client(living.server.address).await;
    for (model, parameters, status, code, want) in [
        ("no", json!({}), 404, Code::NotFound, "no"),
        ("m", json!({"config": "{"}), 400, Code::InvalidArgument, "config"),
        ("m", json!({"colour": "red"}), 400, Code::InvalidArgument, "colour"),
        ("m", json!({"file:1/model.onnx": "AAAA"}), 400, Code::InvalidArgument, "without the parameter `config`"),
        ("m", json!({"config": "{}", "file:../1/model.onnx": "AAAA"}), 400, Code::InvalidArgument, "`../1/model.onnx`"),
        ("m", json!({"config": "{}", "file:/etc/model.onnx": "AAAA"}), 400, Code::InvalidArgument, "`/etc/model.onnx`"),
        ("m", json!({"config": "{}", "file:1/model.onnx": "AAAA"}), 400, Code::InvalidArgument, "version 1"),
    ] {
        let body = json!({"parameters": parameters}).to_string();
        let answer = living.send("POST", &format!("/v2/repository/models/{model}/load"), &body);
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        assert!(answer.error().contains(want), "{body}: {answer:?}");
        let text = |value: &Value| ModelRepositoryParameter {
            parameter_choice: Some(ParameterChoice::StringParam(value.as_str().unwrap().into())),
        };
        let parameters = parameters.as_object().unwrap().iter().map(|(key, value)| (key.clone(), text(value))).collect();
        let load = RepositoryModelLoadRequest { model_name: model.into(), parameters, ..Default::default() };
        let failure = client.repository_model_load(load).await.unwrap_err();
        assert_eq!(failure.code(), code, "{body}: {failure:?}");
        assert!(failure.message().contains(want), "{body}: {failure:?}");
        assert_eq!(living.factor(""), 1.0, "what served still does");
    }
    let unload = RepositoryModelUnloadRequest { model_name: "no".into(), ..Default::default() };
    assert_eq!(client.repository_model_unload(unload).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(living.send("POST", "/v2/repository/models/no/unload", "").status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_are_the_same_over_both() {
    let living = living(&["1", "2"]);
    let mut client = grpc::client(living.server.address).await;
    for _ in 0..3 {
        living.factor("/versions/1");
    }
    let wrong = r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}"#;
    assert_eq!(post(living.server.address, "/v2/models/m/versions/1/infer", wrong).status, 400);
    let rest = get(living.server.address, "/v2/models/m/versions/1/stats").json();
    let of = |version: &str| ModelStatisticsRequest { name: "m".into(), version: version.into() };
    let told = client.model_statistics(of("1")).await.unwrap().into_inner();
    assert_eq!(serde_json::to_value(&told).unwrap(), rest);
    let stats = &told.model_stats[0];
    assert_eq!((stats.inference_count, stats.execution_count), (3, 3));
    let counts = stats.inference_stats.as_ref().unwrap();
    assert_eq!((counts.success.as_ref().unwrap().count, counts.fail.as_ref().unwrap().count), (3, 1));
    assert_eq!((stats.batch_stats[0].batch_size, stats.batch_stats[0].compute_infer.as_ref().unwrap().count), (1, 3));
    assert!(stats.last_inference > 1_600_000_000_000, "milliseconds since 1970: {}", stats.last_inference);
    for (version, count) in [("", 2), ("2", 1)] {
        assert_eq!(client.model_statistics(of(version)).await.unwrap().into_inner().model_stats.len(), count);
    }
    assert_eq!(client.model_statistics(of("9")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.model_statistics(ModelStatisticsRequest::default()).await.unwrap().into_inner().model_stats.len(), 2);
}

#[test]
fn labels_are_set_and_removed_while_the_server_runs() {
    let living = living(&["1", "2"]);
    let labels = "/v2/repository/models/m/labels";
    assert_eq!(living.send("GET", labels, "").json(), json!({}));
    let stable = living.send("PUT", &format!("{labels}/stable"), r#"{"version": "1"}"#);
    assert_eq!((stable.status, stable.json()), (200, json!({"stable": {"version": "1"}})));
    let rule = json!({"split": {"1": 0, "2": 1}, "mirror": {"version": "1", "share": 0.5}});
    assert_eq!(living.send("PUT", &format!("{labels}/canary"), &rule.to_string()).status, 200);
    assert_eq!(living.send("PUT", &format!("{labels}/default"), r#""1""#).status, 200);
    assert_eq!((living.factor("/versions/stable"), living.factor("/versions/canary"), living.factor("")), (1.0, 2.0, 1.0));
    let tf = post(living.server.address, "/v1/models/m/labels/canary:predict", r#"{"instances": [[1, 2]]}"#);
    assert_eq!(tf.json(), json!({"predictions": [[2.0, 4.0]]}));
    assert_eq!(living.send("GET", labels, "").json(), json!({"canary": rule, "default": {"version": "1"}, "stable": {"version": "1"}}));

    // It holds over a reload, until it is set anew or removed.
    assert_eq!(living.send("POST", "/v2/repository/models/m/load", "").status, 200);
    assert_eq!(living.factor("/versions/stable"), 1.0);
    assert_eq!(living.send("PUT", &format!("{labels}/stable"), r#"{"version": "2"}"#).status, 200);
    assert_eq!(living.factor("/versions/stable"), 2.0);
    assert_eq!(living.send("DELETE", &format!("{labels}/default"), "").status, 200);
    assert_eq!(living.factor(""), 2.0);

    for (method, path, body, status, want) in [
        ("PUT", "m/labels/stable", r#"{"version": "9"}"#, 404, "version `9` is not ready"),
        ("PUT", "m/labels/stable", r#"{"split": {"1": 0}}"#, 400, "a weight above 0"),
        ("PUT", "m/labels/stable", r#"{"version": "1", "split": {"1": 1}}"#, 400, "either `version` or `split`"),
        ("PUT", "m/labels/stable", r#"{"version": "1", "mirror": {"version": "2", "share": 2}}"#, 400, "a share of 2"),
        ("PUT", "m/labels/stable", "{", 400, "no rule for a label"),
        ("PUT", "m/labels/stable", r#"{"colour": "red"}"#, 400, "is wanted"),
        ("PUT", "m/labels/..", r#"{"version": "1"}"#, 400, "no name for a label"),
        ("PUT", "no/labels/stable", r#"{"version": "1"}"#, 404, "`no` is not known"),
        ("DELETE", "m/labels/gone", "", 404, "has no label `gone`"),
        ("GET", "no/labels", "", 404, "`no` is not known"),
    ] {
        let answer = living.send(method, &format!("/v2/repository/models/{path}"), body);
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        assert!(answer.error().contains(want), "{method} {path} {body}: {answer:?}");
    }
    assert_eq!(living.factor("/versions/stable"), 2.0, "what is wrong changes nothing");
}

#[tokio::test]
async fn an_initialiser_that_is_an_input_may_be_replaced_over_grpc() {
    let mut client = grpc::client(shared()).await;
    let bytes = |values: &[f32]| -> bytes::Bytes { values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into() };
    let x = grpc::input("x", "FP32", &[1, 2]);
    let plain = ModelInferRequest {
        model_name: "scaled".into(),
        inputs: vec![x.clone()],
        raw_input_contents: vec![bytes(&[1.0, 2.0])],
        ..Default::default()
    };
    let replaced = ModelInferRequest {
        inputs: vec![grpc::input("w", "FP32", &[1]), x],
        raw_input_contents: vec![bytes(&[10.0]), bytes(&[1.0, 2.0])],
        ..plain.clone()
    };
    // The model's own answers before and after.
    for (request, want) in [(&plain, [3.0, 6.0]), (&replaced, [20.0, 40.0]), (&plain, [3.0, 6.0])] {
        let answer = client.model_infer(request.clone()).await.unwrap().into_inner();
        assert_eq!(answer.raw_output_contents, [bytes(&want)]);
    }
    let mut typed = ModelInferRequest { raw_input_contents: Vec::new(), ..replaced.clone() };
    for (input, values) in typed.inputs.iter_mut().zip([vec![10.0], vec![1.0, 2.0]]) {
        input.contents = Some(InferTensorContents { fp32_contents: values, ..Default::default() });
    }
    let answer = client.model_infer(typed).await.unwrap().into_inner();
    assert_eq!(answer.outputs[0].contents.as_ref().unwrap().fp32_contents, [20.0, 40.0]);
    let mut wrong = replaced;
    wrong.inputs[0].shape = vec![];
    wrong.raw_input_contents[0] = bytes(&[1.0]);
    let failure = client.model_infer(wrong).await.unwrap_err();
    assert_eq!(failure.code(), Code::InvalidArgument);
    assert!(failure.message().contains("input `w` wants shape"), "{failure:?}");
}
