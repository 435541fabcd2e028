//! The binary extension of the Open Inference protocol, compression, classification and the policy for what is not finite:
//! recorded pairs of request and response, to the byte where the protocol defines bytes.

use std::io::{Read, Write};

use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use ndserve::api::{Limits, ServerOptions};
use ndserve::config::NonFinite;
use serde_json::{Value, json};

use crate::client::{Answer, Client, request_of};
use crate::models;
use crate::server::{Server, shared};

/// Sends JSON with bytes behind it.
fn send(model: &str, json: &Value, binary: &[u8], headers: &[&str]) -> Answer {
    let json = json.to_string();
    let length = format!("Inference-Header-Content-Length: {}", json.len());
    let headers = [&[length.as_str()], headers].concat();
    let body = [json.as_bytes(), binary].concat();
    Client::connect(shared()).send(&request_of("POST", &format!("/v2/models/{model}/infer"), &headers, &body))
}

/// The JSON and the bytes of an answer that has both.
fn parts(answer: &Answer) -> (Value, &[u8]) {
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/octet-stream")), "{answer:?}");
    let length: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    (serde_json::from_slice(&answer.bytes[..length]).unwrap(), &answer.bytes[length..])
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Inputs of `pair`: `x` in binary, `n` in JSON.
fn mixed() -> Value {
    json!([
        {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}},
        {"name": "n", "shape": [2, 1], "datatype": "INT64", "data": [7, 8]},
    ])
}

#[test]
fn json_and_binary_may_be_mixed_both_ways() {
    let values = floats(&[1.0, -2.5, f32::NAN, 4.0]);
    let request = json!({"id": "1", "inputs": mixed(), "parameters": {"binary_data_output": true},
                         "outputs": [{"name": "n_out", "parameters": {"binary_data": false}}, {"name": "x_out"}]});
    let answer = send("pair", &request, &values, &[]);
    let (json, binary) = parts(&answer);
    let want = json!({"model_name": "pair", "model_version": "2", "id": "1", "outputs": [
        {"name": "n_out", "datatype": "INT64", "shape": [2, 1], "data": [7, 8]},
        {"name": "x_out", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}},
    ]});
    assert_eq!((json, binary), (want, &values[..]));
    // Without a wish for bytes the answer is JSON alone.
    let answer = send("pair", &json!({"inputs": mixed()}), &values, &[]);
    assert_eq!((answer.header("content-type"), answer.header("inference-header-content-length")), (Some("application/json"), None));
    assert!(answer.body.contains(r#""data":[1.0,-2.5,NaN,4.0]"#), "{answer:?}");
    // A request in JSON may ask for bytes.
    let inputs = json!([{"name": "b", "shape": [1, 3], "datatype": "UINT8", "data": [1, 2, 3]}]);
    let answer = send("bytes", &json!({"inputs": inputs, "outputs": [{"name": "b_out", "parameters": {"binary_data": true}}]}), b"", &[]);
    assert_eq!(parts(&answer).1, [1, 2, 3]);
}

#[test]
fn every_datatype_goes_through_in_binary_unchanged() {
    let (mut inputs, mut binary) = (Vec::new(), Vec::new());
    for (name, _) in models::TYPES {
        let bytes: Vec<u8> = match name {
            "BYTES" => [&b"\x03\0\0\0a\xc3\xa9"[..], &b"\0\0\0\0"[..]].concat(),
            "BOOL" => vec![1, 0],
            "UINT8" | "INT8" => vec![0xff, 7],
            "UINT16" | "INT16" | "FP16" | "BF16" => vec![1, 0x80, 0xff, 0x7f],
            "UINT32" | "INT32" | "FP32" => (200..208).collect(),
            _ => (200..216).collect(),
        };
        inputs.push(json!({"name": name, "shape": [1, 2], "datatype": name, "parameters": {"binary_data_size": bytes.len()}}));
        binary.extend(bytes);
    }
    let answer = send("types", &json!({"inputs": inputs, "parameters": {"binary_data_output": true}}), &binary, &[]);
    let (json, bytes) = parts(&answer);
    assert_eq!(bytes, binary);
    for (output, (name, _)) in json["outputs"].as_array().unwrap().iter().zip(models::TYPES) {
        let want = (&json!(format!("{name}_out")), &json!(name), &json!([1, 2]));
        assert_eq!((&output["name"], &output["datatype"], &output["shape"]), want);
    }
}

#[test]
fn tensors_may_be_empty() {
    let request = json!({"inputs": [{"name": "x", "shape": [2, 0], "datatype": "FP32", "parameters": {"binary_data_size": 0}}],
                         "parameters": {"binary_data_output": true}});
    let answer = send("any", &request, b"", &[]);
    let (json, binary) = parts(&answer);
    assert_eq!(json["outputs"][0], json!({"name": "x_out", "datatype": "FP32", "shape": [2, 0], "parameters": {"binary_data_size": 0}}));
    assert!(binary.is_empty());
    let answer = send("any", &json!({"inputs": [{"name": "x", "shape": [2, 0], "datatype": "FP32", "data": []}]}), b"", &[]);
    assert_eq!(answer.json()["outputs"][0]["data"], json!([]));
}

#[test]
fn a_raw_body_is_the_one_input() {
    let raw = |model: &str, body: &[u8]| {
        let headers = ["Inference-Header-Content-Length: 0"];
        Client::connect(shared()).send(&request_of("POST", &format!("/v2/models/{model}/infer"), &headers, body))
    };
    let answer = raw("bytes", &[9, 8, 7]);
    assert_eq!(parts(&answer).1, [9, 8, 7]);
    let answer = raw("any", &floats(&[1.0, 2.0, 3.0]));
    assert_eq!((&parts(&answer).0["outputs"][0]["shape"], parts(&answer).1), (&json!([1, 3]), &floats(&[1.0, 2.0, 3.0])[..]));
    let answer = raw("text", "é".as_bytes());
    assert_eq!(parts(&answer).1, b"\x02\0\0\0\xc3\xa9");
    let wrong = raw("bytes", &[9, 8]);
    assert_eq!(wrong.status, 400);
    assert!(wrong.error().contains("cannot carry input `b` ([batch, 3]): 2 elements do not fit its shape"), "{wrong:?}");
}

fn compress(coding: &str, body: &[u8]) -> Vec<u8> {
    if coding == "gzip" {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(body).unwrap();
        return encoder.finish().unwrap();
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn decompress(coding: &str, body: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    if coding == "gzip" { GzDecoder::new(body).read_to_end(&mut all) } else { ZlibDecoder::new(body).read_to_end(&mut all) }.unwrap();
    all
}

#[test]
fn bodies_are_compressed_both_ways() {
    let values = floats(&[0.5; 1000]);
    let json = json!({"inputs": [{"name": "x", "shape": [1, 1000], "datatype": "FP32", "parameters": {"binary_data_size": 4000}}],
                      "parameters": {"binary_data_output": true}})
    .to_string();
    let plain = [json.as_bytes(), &values].concat();
    let length = format!("inference-header-content-length: {}", json.len());
    for coding in ["gzip", "deflate"] {
        let headers = [length.as_str(), &format!("content-encoding: {coding}"), &format!("accept-encoding: {coding}")];
        let mut client = Client::connect(shared());
        let answer = client.send(&request_of("POST", "/v2/models/any/infer", &headers, &compress(coding, &plain)));
        assert_eq!((answer.status, answer.header("content-encoding")), (200, Some(coding)), "{answer:?}");
        assert_eq!(answer.header("vary"), Some("accept-encoding"));
        let body = decompress(coding, &answer.bytes);
        let length: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
        assert_eq!(&body[length..], values, "the length is that of the JSON before compression");
        // What is short is not compressed.
        let short = client.send(&request_of("POST", "/v1/models/any:predict", &["accept-encoding: gzip"], br#"{"instances":[[1]]}"#));
        assert_eq!((short.body.as_str(), short.header("content-encoding")), (r#"{"predictions":[[1.0]]}"#, None));
        let long = format!(r#"{{"instances":[{:?}]}}"#, vec![1; 1000]);
        let headers = [format!("content-encoding: {coding}"), "accept-encoding: gzip;q=0.1, deflate".to_owned()];
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let long = client.send(&request_of("POST", "/v1/models/any:predict", &headers, &compress(coding, long.as_bytes())));
        assert_eq!(long.header("content-encoding"), Some("deflate"));
        assert!(decompress("deflate", &long.bytes).starts_with(br#"{"predictions":[[1.0,1.0"#));
    }
}

#[test]
fn the_limit_holds_for_the_decompressed_body() {
    let limits = Limits { max_body_bytes: 10_000, ..Limits::default() };
    let server = Server::start(models::only(&["two-features"]), limits, ServerOptions::default());
    for coding in ["gzip", "deflate"] {
        let bomb = compress(coding, &vec![b' '; 1_000_000]);
        assert!(bomb.len() < 10_000);
        let headers = [format!("content-encoding: {coding}")];
        let answer = Client::connect(server.address).send(&request_of("POST", "/predict", &[&headers[0]], &bomb));
        assert_eq!(answer.status, 413);
        assert!(answer.error().contains("the decompressed body has more bytes than the limit of 10000"), "{answer:?}");
    }
}

#[test]
fn a_body_of_megabytes_comes_back_whole() {
    let values: Vec<f32> = (0..2_000_000).map(|i| i as f32).collect();
    let bytes = floats(&values);
    let input = json!({"name": "x", "shape": [1, 2_000_000], "datatype": "FP32", "parameters": {"binary_data_size": bytes.len()}});
    let answer = send("any", &json!({"inputs": [input], "parameters": {"binary_data_output": true}}), &bytes, &[]);
    assert!(parts(&answer).1 == bytes);
    let answer = send("any", &json!({"inputs": [input]}), &bytes, &[]);
    assert_eq!(answer.json()["outputs"][0]["data"][1_999_999], json!(1_999_999.0));
}

#[test]
fn outputs_are_classified() {
    let image = vec![0.0_f32; 2 * 64];
    let input = json!({"name": "image", "shape": [2, 1, 8, 8], "datatype": "FP32", "parameters": {"binary_data_size": 512}});
    let name = &crate::client::get(shared(), "/v2/models/digits").json()["outputs"][0]["name"];
    let request = |classes: usize, binary: bool| json!({"inputs": [input], "outputs": [{"name": name, "parameters": {"classification": classes, "binary_data": binary}}]});
    let answer = send("digits", &request(3, false), &floats(&image), &[]).json();
    let output = &answer["outputs"][0];
    assert_eq!((&output["datatype"], &output["shape"]), (&json!("BYTES"), &json!([2, 3])));
    let classes: Vec<Vec<&str>> =
        output["data"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().split(':').collect()).collect();
    let scores: Vec<f32> = classes.iter().map(|class| class[0].parse().unwrap()).collect();
    assert!(scores[..3].is_sorted_by(|a, b| a >= b) && scores[..3] == scores[3..], "{answer}");
    // The labels of the digits are the digits.
    assert!(classes.iter().all(|class| class.len() == 3 && class[1] == class[2]), "{answer}");
    let all = send("digits", &request(100, true), &floats(&image), &[]);
    let (json, binary) = parts(&all);
    assert_eq!(json["outputs"][0]["shape"], json!([2, 10]));
    assert_eq!(binary.len(), json["outputs"][0]["parameters"]["binary_data_size"].as_u64().unwrap() as usize);
    let wrong = send(
        "text",
        &json!({"inputs": [{"name": "s", "shape": [1], "datatype": "BYTES", "data": ["a"]}],
                                     "outputs": [{"name": "s_out", "parameters": {"classification": 1}}]}),
        b"",
        &[],
    );
    assert_eq!((wrong.status, wrong.error().contains("output `s_out` is BYTES, which has no classes")), (400, true), "{wrong:?}");
}

#[test]
fn what_is_not_finite_is_written_as_the_setting_says() {
    for (non_finite, v2, v1) in [
        (NonFinite::Token, Some("NaN,-Infinity"), Some(r#"{"predictions":[[NaN,-Infinity]]}"#)),
        (NonFinite::Null, Some("null,null"), Some(r#"{"predictions":[[null,null]]}"#)),
        (NonFinite::Error, None, None),
    ] {
        let server = Server::start(models::folder(), Limits { non_finite, ..Limits::default() }, ServerOptions::default());
        let mut client = Client::connect(server.address);
        let mut check = |path: &str, body: &str, want: Option<&str>| {
            let answer = client.send(&request_of("POST", path, &[], body.as_bytes()));
            match want {
                Some(want) => assert!(answer.status == 200 && answer.body.contains(want), "{answer:?}"),
                None => {
                    assert!(answer.status == 400 && answer.error().contains("2 of the answer's values are NaN or infinite"), "{answer:?}")
                }
            }
        };
        let input = r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,-Infinity]}"#;
        check("/v2/models/any/infer", &format!(r#"{{"inputs":[{input}]}}"#), v2);
        check("/v1/models/any:predict", r#"{"instances":[[NaN,-Infinity]]}"#, v1);
        // Bytes are exact, whatever the setting.
        let body = format!(r#"{{"inputs":[{input}],"parameters":{{"binary_data_output":true}}}}"#);
        let answer = client.send(&request_of("POST", "/v2/models/any/infer", &[], body.as_bytes()));
        assert_eq!(parts(&answer).1, floats(&[f32::NAN, f32::NEG_INFINITY]));
    }
}
