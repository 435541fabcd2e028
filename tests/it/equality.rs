//! Every protocol gives the same bits for the same request: tensors as JSON, as bytes, and both mixed; over gRPC raw and typed.

use ndserve::api::json::Writer;
use ndserve::engine::{Element, Tensor};
use proptest::prelude::*;
use serde_json::Value;

use ndserve::api::grpc::proto::inference::{InferTensorContents, ModelInferRequest, ModelInferResponse};

use crate::client::{Client, request_of};
use crate::grpc;
use crate::server::shared;

/// An input as it is sent: its name, type, values, and their bytes.
#[derive(Clone, Debug)]
struct Input {
    name: &'static str,
    datatype: &'static str,
    tensor: Tensor,
    bytes: Vec<u8>,
}

/// An output as it came back: its name and bytes, or its JSON.
type Outputs = Vec<(String, Vec<u8>)>;

fn header(input: &Input) -> String {
    format!(r#""name":"{}","datatype":"{}","shape":{:?}"#, input.name, input.datatype, input.tensor.shape())
}

/// Sends the inputs, each in binary if its bit of `binary` is set; wants bytes back or JSON.
fn infer(client: &mut Client, model: &str, inputs: &[Input], binary: u32, bytes_back: bool) -> (Value, Vec<u8>) {
    let (mut json, mut behind) = (Vec::new(), Vec::new());
    for (i, input) in inputs.iter().enumerate() {
        // The protocol has no JSON for half floats.
        if binary >> i & 1 == 1 || input.datatype.ends_with("16") && !input.datatype.contains("INT") {
            json.push(format!(r#"{{{},"parameters":{{"binary_data_size":{}}}}}"#, header(input), input.bytes.len()));
            behind.extend_from_slice(&input.bytes);
        } else {
            let mut writer = Writer::default();
            writer.tensor(&input.tensor);
            json.push(format!(r#"{{{},"data":{}}}"#, header(input), String::from_utf8(writer.into_bytes()).unwrap()));
        }
    }
    let json = format!(r#"{{"inputs":[{}],"parameters":{{"binary_data_output":{bytes_back}}}}}"#, json.join(","));
    let length = format!("Inference-Header-Content-Length: {}", json.len());
    let body = [json.as_bytes(), &behind].concat();
    let answer = client.send(&request_of("POST", &format!("/v2/models/{model}/infer"), &[&length], &body));
    assert_eq!(answer.status, 200, "{answer:?}");
    let length = answer.header("inference-header-content-length").map_or(answer.bytes.len(), |length| length.parse().unwrap());
    (serde_json::from_slice(&answer.bytes[..length]).unwrap(), answer.bytes[length..].to_vec())
}

/// The outputs of an answer in bytes.
fn split(json: &Value, mut bytes: &[u8]) -> Outputs {
    let outputs = json["outputs"].as_array().unwrap().iter().map(|output| {
        let size = output["parameters"]["binary_data_size"].as_u64().unwrap() as usize;
        let (own, rest) = bytes.split_at(size);
        bytes = rest;
        (output["name"].as_str().unwrap().to_owned(), own.to_vec())
    });
    outputs.collect()
}

/// Calls of gRPC from a test that does not wait otherwise.
struct Grpc {
    runtime: tokio::runtime::Runtime,
    client: grpc::Client,
}

impl Grpc {
    fn connect() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(grpc::client(shared()));
        Self { runtime, client }
    }

    /// Sends the inputs raw, or those that have a typed form typed.
    fn infer(&mut self, model: &str, inputs: &[Input], typed: bool) -> ModelInferResponse {
        let mut request = ModelInferRequest { model_name: model.into(), ..Default::default() };
        for input in inputs {
            let shape: Vec<i64> = input.tensor.shape().iter().map(|&size| size as i64).collect();
            let mut message = grpc::input(input.name, input.datatype, &shape);
            if typed {
                message.contents = Some(contents(input));
            } else {
                request.raw_input_contents.push(input.bytes.clone().into());
            }
            request.inputs.push(message);
        }
        self.runtime.block_on(self.client.model_infer(request)).unwrap().into_inner()
    }
}

/// The values of an input in the field of its type.
fn contents(input: &Input) -> InferTensorContents {
    fn all<T: Element, U>(input: &Input, each: impl Fn(&T) -> U) -> Vec<U> {
        input.tensor.slice::<T>().unwrap().iter().map(each).collect()
    }
    let mut contents = InferTensorContents::default();
    match input.datatype {
        "BOOL" => contents.bool_contents = all(input, |&value: &bool| value),
        "UINT8" => contents.uint_contents = all(input, |&value: &u8| value.into()),
        "UINT16" => contents.uint_contents = all(input, |&value: &u16| value.into()),
        "UINT32" => contents.uint_contents = all(input, |&value: &u32| value),
        "UINT64" => contents.uint64_contents = all(input, |&value: &u64| value),
        "INT8" => contents.int_contents = all(input, |&value: &i8| value.into()),
        "INT16" => contents.int_contents = all(input, |&value: &i16| value.into()),
        "INT32" => contents.int_contents = all(input, |&value: &i32| value),
        "INT64" => contents.int64_contents = all(input, |&value: &i64| value),
        "FP32" => contents.fp32_contents = all(input, |&value: &f32| value),
        "FP64" => contents.fp64_contents = all(input, |&value: &f64| value),
        "BYTES" => contents.bytes_contents = all(input, |value: &String| value.clone().into_bytes().into()),
        other => panic!("{other} has no typed form"),
    }
    contents
}

/// The outputs of a raw answer in bytes.
fn raw(answer: &ModelInferResponse) -> Outputs {
    let named = answer.outputs.iter().zip(&answer.raw_output_contents);
    named.map(|(output, bytes)| (output.name.clone(), bytes.to_vec())).collect()
}

fn input<T: Element>(name: &'static str, rows: usize, values: &[T], bytes: impl Fn(&T) -> Vec<u8>) -> Input {
    let tensor = Tensor::new(&[rows, values.len() / rows], values.to_vec()).unwrap();
    Input { name, datatype: T::DTYPE.oip(), tensor, bytes: values.iter().flat_map(bytes).collect() }
}

macro_rules! numbers {
    ($name:literal, $rows:expr, $t:ty, $bits:expr) => {
        input($name, $rows, &$bits.iter().map(|&bits| bits as $t).collect::<Vec<_>>(), |value| value.to_le_bytes().to_vec())
    };
}

/// One input of each type from the same bits. No NaN: its JSON has no room for the bits.
fn every_type(rows: usize, bits: &[u64], texts: &[String]) -> Vec<Input> {
    let (bits, texts) = (&bits[..rows * 2], &texts[..rows * 2]);
    let f32s: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits as u32)).map(|v| if v.is_nan() { -0.0 } else { v }).collect();
    let f64s: Vec<f64> = bits.iter().map(|&bits| f64::from_bits(bits)).map(|v| if v.is_nan() { 1.5 } else { v }).collect();
    let halves = || bits.iter().map(|&bits| bits as u16);
    let flags: Vec<bool> = bits.iter().map(|bits| bits & 1 == 1).collect();
    vec![
        input("FP32", rows, &f32s, |value| value.to_le_bytes().to_vec()),
        numbers!("UINT8", rows, u8, bits),
        numbers!("INT8", rows, i8, bits),
        numbers!("UINT16", rows, u16, bits),
        numbers!("INT16", rows, i16, bits),
        numbers!("INT32", rows, i32, bits),
        numbers!("INT64", rows, i64, bits),
        input("BYTES", rows, texts, |text| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()),
        input("BOOL", rows, &flags, |&flag| vec![u8::from(flag)]),
        input("FP16", rows, &halves().map(half::f16::from_bits).collect::<Vec<_>>(), |value| value.to_le_bytes().to_vec()),
        input("FP64", rows, &f64s, |value| value.to_le_bytes().to_vec()),
        numbers!("UINT32", rows, u32, bits),
        numbers!("UINT64", rows, u64, bits),
        input("BF16", rows, &halves().map(half::bf16::from_bits).collect::<Vec<_>>(), |value| value.to_le_bytes().to_vec()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_type_has_the_same_bits_in_json_in_binary_and_over_grpc(
        rows in 1..4_usize,
        bits in prop::collection::vec(any::<u64>(), 8),
        texts in prop::collection::vec(any::<String>(), 8),
        binary in any::<u32>(),
    ) {
        let inputs = every_type(rows, &bits, &texts);
        let mut client = Client::connect(shared());
        let want: Outputs = inputs.iter().map(|input| (format!("{}_out", input.name), input.bytes.clone())).collect();
        for binary in [0, u32::MAX, binary] {
            let (json, bytes) = infer(&mut client, "types", &inputs, binary, true);
            prop_assert_eq!(split(&json, &bytes), want.clone());
        }
        prop_assert_eq!(raw(&Grpc::connect().infer("types", &inputs, false)), want);
    }

    #[test]
    fn typed_contents_have_the_bits_of_raw_ones(
        rows in 1..4_usize,
        bits in prop::collection::vec(any::<u64>(), 8),
        texts in prop::collection::vec(any::<String>(), 8),
    ) {
        // Half floats have no typed form.
        let mut inputs = every_type(rows, &bits, &texts);
        inputs.retain(|input| !matches!(input.datatype, "FP16" | "BF16"));
        let mut grpc = Grpc::connect();
        let typed = grpc.infer("typed", &inputs, true);
        prop_assert!(typed.raw_output_contents.is_empty());
        for (output, input) in typed.outputs.iter().zip(&inputs) {
            prop_assert_eq!(&output.name, &format!("{}_out", input.name));
            // Bits and not values: a zero has a sign.
            prop_assert_eq!(format!("{:?}", output.contents.clone().unwrap()), format!("{:?}", contents(input)));
        }
        prop_assert_eq!(typed.outputs.len(), inputs.len());
        let want: Outputs = inputs.iter().map(|input| (format!("{}_out", input.name), input.bytes.clone())).collect();
        prop_assert_eq!(raw(&grpc.infer("typed", &inputs, false)), want);
    }

    #[test]
    fn a_network_has_the_same_bits_in_json_in_binary_and_over_grpc(rows in 1..5_usize, values in prop::collection::vec(-3.0_f32..3.0, 40)) {
        let values = &values[..rows * 10];
        let inputs = [input("features", rows, values, |value| value.to_le_bytes().to_vec())];
        let mut client = Client::connect(shared());
        let (json, bytes) = infer(&mut client, "diabetes", &inputs, 0, true);
        let want = split(&json, &bytes);
        let (json, bytes) = infer(&mut client, "diabetes", &inputs, 1, true);
        prop_assert_eq!(&split(&json, &bytes), &want);
        let mut grpc = Grpc::connect();
        prop_assert_eq!(&raw(&grpc.infer("diabetes", &inputs, false)), &want);
        let typed = grpc.infer("diabetes", &inputs, true).outputs[0].contents.clone().unwrap().fp32_contents;
        prop_assert_eq!(&typed.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>(), &want[0].1);
        let from_json = infer(&mut client, "diabetes", &inputs, 0, false).0["outputs"].clone();
        let from_binary = infer(&mut client, "diabetes", &inputs, 1, false).0["outputs"].clone();
        prop_assert_eq!(&from_json, &from_binary);
        // The shortest decimal of a float32 reads back to its bits.
        let read: Vec<u8> = from_json[0]["data"].as_array().unwrap().iter().flat_map(|v| (v.as_f64().unwrap() as f32).to_le_bytes()).collect();
        prop_assert_eq!(&read, &want[0].1);
    }
}
