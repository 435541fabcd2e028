//! The OpenAPI document says what the server does: every operation that it has is answered as it says.

use std::collections::BTreeSet;

use ndserve::serve::Label;
use serde_json::{Value, json};

use crate::client::{Client, get, post, request};
use crate::server::{shared, strict};

fn document() -> Value {
    let answer = get(shared(), "/openapi.json");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    answer.json()
}

/// Calls every operation with a model, a version and a label that exist.
#[test]
fn every_operation_answers_as_the_document_says() {
    let server = strict();
    server.repository.set_label("two-features", "stable", Some(Label::version("1"))).unwrap();
    let document = document();
    let mut client = Client::connect(server.address);
    let mut seen = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let real = path.replace("{model}", "two-features").replace("{version}", "1").replace("{label}", "stable");
        for (method, operation) in methods.as_object().unwrap() {
            assert!(seen.insert(operation["operationId"].as_str().unwrap().to_owned()), "{operation}");
            // The other operations need the model.
            if path.ends_with("/load") || path.ends_with("/unload") {
                continue;
            }
            let body = match &operation["requestBody"] {
                Value::Null => String::new(),
                _ if path.contains("labels") && path.starts_with("/v2") => json!({"version": "1"}).to_string(),
                body if body["required"] == json!(false) => String::new(),
                _ if path.contains("infer") => {
                    json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).to_string()
                }
                _ => json!({"instances": [[1, 2]]}).to_string(),
            };
            let answer = client.send(&request(&method.to_uppercase(), &real, &[], &body));
            let response = &operation["responses"][answer.status.to_string()];
            assert!(response.is_object(), "{method} {path} has no {}: {answer:?}", answer.status);
            let content_type = answer.header("content-type").unwrap().split(';').next().unwrap();
            assert!(response["content"][content_type].is_object(), "{method} {path} has no {content_type}");
            // This process does its own logging.
            assert_eq!(answer.status, if path == "/v2/logging" { 501 } else { 200 }, "{method} {path}: {answer:?}");
            if let Some(required) = schema(&document, &response["content"][content_type]["schema"])["required"].as_array() {
                let body = answer.json();
                assert!(required.iter().all(|member| body.get(member.as_str().unwrap()).is_some()), "{method} {path}: {answer:?}");
            }
            // The document has no method that is not there, and the path none that the document has not.
            let wrong = client.send(&request("PATCH", &real, &[], ""));
            assert_eq!(wrong.status, 405, "{path}");
        }
    }
    assert!(seen.len() > 40, "{seen:?}");
    for known in [
        "get_v2_models_stats",
        "post_v2_repository_models_model_load",
        "post_v2_trace_setting",
        "put_v2_repository_models_model_labels_label",
    ] {
        assert!(seen.contains(known), "{known}: {seen:?}");
    }
}

fn schema<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference} leads nowhere")),
        None => schema,
    }
}

#[test]
fn every_reference_leads_to_a_schema() {
    fn check(document: &Value, value: &Value) -> usize {
        match value {
            Value::Object(members) => {
                let here = usize::from(members.get("$ref").is_some_and(|_| !schema(document, value).is_null()));
                here + members.values().map(|member| check(document, member)).sum::<usize>()
            }
            Value::Array(elements) => elements.iter().map(|element| check(document, element)).sum(),
            _ => 0,
        }
    }
    let document = document();
    assert!(check(&document, &document) > 50);
}

/// The examples of the document are requests that the server answers.
#[test]
fn examples_are_answered() {
    let document = document();
    for path in ["/v2/models/{model}/infer", "/v1/models/{model}:predict"] {
        let operation = &document["paths"][path]["post"];
        let example = &operation["requestBody"]["content"]["application/json"]["example"];
        let models = operation["parameters"][0]["examples"].as_object().unwrap();
        assert!(models.contains_key("digits") && models.values().all(|example| example["value"].is_string()), "{models:?}");
        // The example is that of the first one.
        let model = example_model(models);
        let answer = post(shared(), &path.replace("{model}", &model), &example.to_string());
        assert_eq!(answer.status, 200, "{model}: {example} {answer:?}");
    }
}

fn example_model(models: &serde_json::Map<String, Value>) -> String {
    models.keys().next().unwrap().clone()
}

#[test]
fn the_page_for_people_needs_nothing_from_elsewhere() {
    let answer = get(shared(), "/docs");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/html; charset=utf-8")));
    for elsewhere in ["http://", "https://", "src=", "@import", "url(", "<link"] {
        assert!(!answer.body.contains(elsewhere), "{elsewhere}");
    }
    assert!(answer.header("content-security-policy").unwrap().contains("default-src 'none'"));
    assert!(answer.body.contains("openapi.json"));
}
