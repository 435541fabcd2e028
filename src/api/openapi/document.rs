//! The OpenAPI 3.1 document of a list of operations.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::super::error::codes;
use super::{Content, Header, Operation, example};
use crate::error::Kind;
use crate::serve::Repository;

/// The body of every answer that is no success.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Failed {
    /// What is wrong, where, and what is wanted.
    error: String,
}

/// The document. Parameters named `model` and `version` have those that are served as examples.
pub(super) fn document(operations: &[Operation], repository: &Repository) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let failed = json!({"application/json": {"schema": generator.subschema_for::<Failed>()}});
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for operation in operations {
        let described = describe(operation, &mut generator, &failed, repository);
        paths.entry(&operation.path).or_default().insert(operation.method.to_owned(), described);
    }
    let mut tags: Vec<&str> = operations.iter().map(|operation| operation.tag).collect();
    tags.dedup();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ndserve",
            "version": env!("CARGO_PKG_VERSION"),
            "description": env!("CARGO_PKG_DESCRIPTION"),
            "license": {"name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE")},
        },
        "servers": [{"url": "/"}],
        "tags": tags.iter().map(|tag| json!({"name": tag})).collect::<Vec<_>>(),
        "paths": paths,
        "components": {"schemas": generator.take_definitions(true)},
    })
}

fn describe(operation: &Operation, generator: &mut SchemaGenerator, failed: &Value, repository: &Repository) -> Value {
    let doc = &operation.doc;
    let mut responses = Map::new();
    let ok = json!({
        "description": if doc.answer.is_empty() { "Success, with no body" } else { "Success" },
        "content": contents(&doc.answer, generator, None),
        "headers": doc.answer_headers.iter().map(|(name, text)| ((*name).to_owned(), json!({"description": text, "schema": {"type": "string"}}))).collect::<Map<_, _>>(),
    });
    responses.insert("200".to_owned(), ok);
    // A wrong method is the path's answer, not an operation's; clients that try get this.
    for kind in doc.errors.iter().chain([&Kind::MethodNotAllowed]) {
        let status = codes(*kind).http;
        responses
            .entry(status.as_str().to_owned())
            .or_insert_with(|| json!({"description": status.canonical_reason().unwrap_or_default(), "content": failed}));
    }
    let names = operation.path.split('{').skip(1).filter_map(|part| part.split('}').next());
    let path_parameters = names.map(|name| path_parameter(name, repository));
    let parameters: Vec<Value> = path_parameters.chain(doc.request_headers.iter().map(header_parameter)).collect();
    let mut described = json!({
        "tags": [operation.tag],
        "operationId": identity(operation),
        "summary": doc.summary,
        "parameters": parameters,
        "responses": responses,
    });
    if !doc.request.is_empty() {
        let example = doc.example.and_then(|example| example::of(example, operation.path.contains("{model}"), repository));
        described["requestBody"] = json!({"required": doc.body_required, "content": contents(&doc.request, generator, example.as_ref())});
    }
    described
}

/// `POST /v2/models/{model}/infer` is `post_v2_models_model_infer`.
fn identity(operation: &Operation) -> String {
    let words = operation.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    [operation.method].into_iter().chain(words).collect::<Vec<_>>().join("_")
}

fn contents(contents: &[Content], generator: &mut SchemaGenerator, example: Option<&Value>) -> Value {
    let content = |Content { content_type, schema }: &Content| {
        let mut media = Map::new();
        if let Some(schema) = schema {
            media.insert("schema".to_owned(), schema(generator).into());
            if let Some(example) = example {
                media.insert("example".to_owned(), example.clone());
            }
        }
        ((*content_type).to_owned(), media.into())
    };
    Value::Object(contents.iter().map(content).collect())
}

fn path_parameter(name: &str, repository: &Repository) -> Value {
    let names = || repository.ready().into_iter().map(|handle| (handle.name().to_owned(), handle.version().to_owned()));
    let mut examples: Vec<String> = match name {
        "model" => names().map(|(model, _)| model).collect(),
        "version" => names().map(|(_, version)| version).collect(),
        _ => Vec::new(),
    };
    examples.sort();
    examples.dedup();
    let text = match name {
        "model" => "The model's name, percent-encoded where a path needs it.",
        "version" => "A version: any text without a slash. Without it the newest that is ready answers.",
        "label" => "A label that stands for a version, such as `stable`.",
        _ => "",
    };
    let mut parameter = json!({
        "name": name, "in": "path", "required": true, "description": text, "schema": {"type": "string", "minLength": 1},
    });
    if !examples.is_empty() {
        let examples = examples.iter().map(|value| (value.clone(), json!({"value": value})));
        parameter["examples"] = Value::Object(examples.collect());
    }
    parameter
}

fn header_parameter(&(name, text): &Header) -> Value {
    json!({"name": name, "in": "header", "required": false, "description": text, "schema": {"type": "string"}})
}

#[cfg(test)]
mod tests {
    use super::super::{Doc, Example, Routes};
    use super::*;
    use crate::serve::Options;

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is used")]
    struct Message {
        /// How many.
        count: u32,
    }

    async fn handler() {}

    #[test]
    fn a_route_is_described_with_its_messages_parameters_and_failures() {
        let repository = Repository::open(Options::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models"))).unwrap();
        let doc = Doc::new("Does it.").takes::<Message>().json::<Message>().bytes("application/octet-stream").example(Example::Tensors);
        let routes = Routes::new("One").get("/a", handler, Doc::new("Reads it.").json::<Message>()).post(
            "/a/{model}/versions/{version}",
            handler,
            doc.request_headers(&[("x-a", "A.")]).answer_headers(&[("x-b", "B.")]),
        );
        let document = document(&routes.operations, &repository);
        assert_eq!(document["openapi"], "3.1.0");
        let post = &document["paths"]["/a/{model}/versions/{version}"]["post"];
        assert_eq!(post["operationId"], "post_a_model_versions_version");
        let parameters: Vec<&Value> = post["parameters"].as_array().unwrap().iter().map(|parameter| &parameter["name"]).collect();
        assert_eq!(parameters, ["model", "version", "x-a"]);
        let reference = json!({"$ref": "#/components/schemas/Message"});
        assert_eq!(post["requestBody"]["content"]["application/json"]["schema"], reference);
        assert_eq!(post["responses"]["200"]["content"]["application/json"]["schema"], reference);
        assert!(post["responses"]["200"]["headers"]["x-b"].is_object());
        let statuses: Vec<&str> = post["responses"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(statuses, ["200", "400", "401", "403", "404", "405", "408", "413", "415", "429", "431", "500", "503", "504"]);
        assert_eq!(document["components"]["schemas"]["Message"]["properties"]["count"]["description"], "How many.");
        assert_eq!(document["components"]["schemas"]["Failed"]["required"], json!(["error"]));
    }
}
