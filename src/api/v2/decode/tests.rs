//! Tests of reading Open Inference requests.

use super::*;
use crate::engine::Kind;
use std::time::Duration;

fn port(name: &str, dtype: DType, dims: &[Option<usize>]) -> Port {
    let dims = dims.iter().map(|dim| dim.map_or(Dim::Free("n".into()), Dim::Fixed)).collect();
    Port { name: name.to_owned(), kind: Kind::Tensor(dtype), dims: Some(dims) }
}

fn signature(inputs: Vec<Port>) -> Signature {
    Signature { inputs, batchable: true, ..Signature::default() }
}

fn read(json: &str, binary: &[u8]) -> std::result::Result<Envelope, Error> {
    let header = (!binary.is_empty()).then_some(json.len());
    decode(&[json.as_bytes(), binary].concat().into(), header, &signature(vec![]))
}

fn tensor_of(input: &Input) -> Tensor {
    match &input.contents {
        Contents::Tensor(tensor) => tensor.clone(),
        Contents::Raw { dtype, shape, bytes } => raw::decode(*dtype, shape, bytes).unwrap(),
    }
}

#[test]
fn data_may_be_flat_or_nested_and_members_in_any_order() {
    let want = Tensor::new(&[2, 2], vec![1.0_f32, 2.0, 3.0, 4.0]).unwrap();
    for x in [
        r#"{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2,3,4]}"#,
        r#"{"data":[[1,2],[3,4]],"datatype":"FP32","shape":[2,2],"name":"x","parameters":{"a":1}}"#,
        r#"{"datatype":"FP32","data":[[1,2],[3,4]],"name":"x","shape":[2,2]}"#,
    ] {
        let body = format!(
            r#"{{"id":"7","inputs":[{x}],"outputs":[{{"name":"p","parameters":{{"classification":2}}}}],"parameters":{{"timeout":5000,"other":[1],"priority":1}},"more":null}}"#
        );
        let envelope = read(&body, b"").unwrap();
        assert_eq!((envelope.inputs[0].name.as_str(), tensor_of(&envelope.inputs[0])), ("x", want.clone()), "{x}");
        assert_eq!(envelope.id.as_deref(), Some("7"));
        assert_eq!((envelope.outputs[0].name.as_str(), envelope.outputs[0].classes, envelope.outputs[0].binary), ("p", 2, None));
        assert_eq!((envelope.parameters.timeout, envelope.parameters.priority), (Some(Duration::from_millis(5)), 1));
    }
}

#[test]
fn binary_inputs_follow_the_json_in_their_order() {
    let body = r#"{"inputs":[
        {"name":"a","shape":[1],"datatype":"INT32","parameters":{"binary_data_size":4}},
        {"name":"j","shape":[2],"datatype":"UINT8","data":[1,2]},
        {"name":"e","shape":[0,3],"datatype":"FP32","parameters":{"binary_data_size":0}},
        {"name":"h","shape":[1,1],"datatype":"BF16","parameters":{"binary_data_size":2}},
        {"name":"s","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":6}}],
        "outputs":[{"name":"p","parameters":{"binary_data":false}},{"name":"q"}],"parameters":{"binary_data_output":true}}"#;
    let envelope = read(body, b"\x01\0\0\0\x80\x3f\x02\0\0\0ab").unwrap();
    let want = [
        Tensor::vector(vec![1_i32]),
        Tensor::vector(vec![1_u8, 2]),
        Tensor::zeros(DType::F32, &[0, 3]),
        Tensor::new(&[1, 1], vec![half::bf16::ONE]).unwrap(),
        Tensor::vector(vec!["ab".to_owned()]),
    ];
    assert_eq!(envelope.inputs.iter().map(tensor_of).collect::<Vec<_>>(), want);
    assert!(envelope.parameters.binary_output);
    assert_eq!(envelope.outputs.iter().map(|output| output.binary).collect::<Vec<_>>(), [Some(false), None]);
}

#[test]
fn null_is_as_good_as_nothing() {
    let input = r#"{"name":"x","shape":[1],"datatype":"INT8","parameters":null,"data":[1]}"#;
    let body = format!(r#"{{"id":null,"parameters":null,"inputs":[{input}],"outputs":[{{"name":"p","parameters":null}}]}}"#);
    let envelope = read(&body, b"").unwrap();
    assert_eq!((envelope.id.is_none(), envelope.inputs.len(), envelope.outputs.len()), (true, 1, 1));
    assert_eq!(read(r#"{"inputs":null,"outputs":null}"#, b"").unwrap().inputs.len(), 0);
    assert!(
        read(r#"{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":null}]}"#, b"").unwrap_err().message().contains("no `data`")
    );
}

#[test]
fn what_is_wrong_is_named() {
    let x = |member: &str| format!(r#"{{"inputs":[{{"name":"x",{member}}}]}}"#);
    let cases = [
        (x(r#""shape":[1,2],"datatype":"FP32","data":[1,2,3]"#), "inputs[0] `x`: shape [1, 2] wants 2 values, data has 3"),
        (x(r#""shape":[1,2],"datatype":"FP32","data":[[1],[2]]"#), "shape [1, 2] wants 2 values, data has 2, nested as [2, 1]"),
        (x(r#""shape":[-1,2],"datatype":"FP32","data":[]"#), "inputs[0].shape[0] is -1, out of range of uint64"),
        (x(r#""shape":[4294967296,4294967296],"datatype":"FP32","data":[]"#), "inputs[0].shape causes the total element count to exceed"),
        (x(r#""shape":[0,9223372036854775807,9],"datatype":"FP32","data":[]"#), "inputs[0].shape causes the total element count to exceed"),
        (x(r#""shape":[1,2],"datatype":"FP31","data":[]"#), "inputs[0].datatype is `FP31`; known are FP32, FP64"),
        (x(r#""shape":[1,2],"datatype":"FP16","data":[]"#), "receiving FP16 data via JSON is not supported. Please use the binary"),
        (x(r#""data":[],"shape":[1,2],"datatype":"BF16""#), "data format for input `x`"),
        (x(r#""shape":[1,2],"datatype":"UINT8","data":[1,300]"#), "inputs[0].data[1] is 300, out of range of uint8 (0 to 255)"),
        (x(r#""shape":[1,2],"data":[1,300],"datatype":"UINT8""#), "inputs[0].data[1] is 300, out of range of uint8 (0 to 255)"),
        (x(r#""shape":[1],"datatype":"BOOL","data":["true"]"#), "inputs[0].data[0] is a string where true or false is wanted"),
        (x(r#""shape":[1,2],"datatype":"FP32","data":3"#), "inputs[0].data is a number where an array is wanted"),
        (x(r#""shape":[1,2],"datatype":"FP32""#), "inputs[0] has no `data`"),
        (x(r#""shape":[1,2],"data":[]"#), "inputs[0] has no `datatype`"),
        (x(r#""shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}"#), "binary_data_size is 8; 0 bytes are left behind"),
        (x(r#""shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":-8}"#), "binary_data_size is no number of bytes"),
        (x(r#""shape":[1],"datatype":"INT8","data":[1],"parameters":{"binary_data_size":0}"#), "one of them is wanted"),
        (x(r#""shape":[1,2],"datatype":"FP32","parameters":{"shared_memory_region":"r"}"#), "shared_memory_region asks for shared memory"),
        (x(r#""name":"x""#), "inputs[0].name is given twice"),
        (r#"{"inputs":[],"inputs":[]}"#.to_owned(), "inputs is given twice"),
        (r#"{"outputs":[{}]}"#.to_owned(), "outputs[0] has no `name`"),
        (
            r#"{"outputs":[{"name":"p","parameters":{"binary_data":1}}]}"#.to_owned(),
            "outputs[0].parameters.binary_data is 1 where true or false is wanted",
        ),
        (
            r#"{"parameters":{"timeout":"soon"}}"#.to_owned(),
            "parameters.timeout is \"soon\" where a whole number of microseconds is wanted",
        ),
        (r#"{"parameters":{"triton_x":1}}"#.to_owned(), "parameters.triton_x is reserved"),
        (r#"{"id":7}"#.to_owned(), "id is a number where a string is wanted"),
        ("[]".to_owned(), "the body is an array where an object is wanted"),
    ];
    for (body, want) in cases {
        let message = read(&body, b"").unwrap_err().message().to_owned();
        assert!(message.contains(want), "{body}\n got: {message}\nwant: {want}");
    }
}

#[test]
fn the_parts_of_the_body_must_fit() {
    let input = |size| format!(r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"FP32","parameters":{{"binary_data_size":{size}}}}}]}}"#);
    let message = |json: &str, binary: &[u8]| read(json, binary).unwrap_err().message().to_owned();
    assert_eq!(message(&input(4), &[0; 6]), "2 bytes are left behind the binary data of the inputs");
    assert!(message(&input(8), &[0; 4]).contains("`x`: binary_data_size is 8; 4 bytes are left behind the JSON"));
    let long = decode(&Bytes::from_static(b"{}"), Some(3), &signature(vec![])).unwrap_err();
    assert_eq!(long.message(), "Inference-Header-Content-Length is 3; the body has 2 bytes");
    let short = decode(&Bytes::from_static(b"{}"), Some(1), &signature(vec![])).unwrap_err();
    assert!(short.message().contains("not valid JSON"));
    let header = |value: &'static str| header_length(&HeaderMap::from_iter([(HEADER_LENGTH, http::HeaderValue::from_static(value))]));
    assert_eq!(header(" 12 ").unwrap(), Some(12));
    for wrong in ["-1", "x", "", "99999999999999999999999"] {
        assert!(header(wrong).unwrap_err().message().contains("where a number of bytes is wanted"), "{wrong}");
    }
}

#[test]
fn a_raw_body_is_one_row_of_the_one_input() {
    let request = |port: Port, body: &'static [u8]| {
        let envelope = decode(&Bytes::from_static(body), Some(0), &signature(vec![port]));
        envelope.map_err(|error| error.message().to_owned()).map(|envelope| {
            assert!(envelope.parameters.binary_output);
            tensor_of(&envelope.inputs[0])
        })
    };
    let bytes = |dims: &[Option<usize>]| port("x", DType::U8, dims);
    assert_eq!(request(bytes(&[None, Some(3)]), b"abc"), Ok(Tensor::new(&[1, 3], b"abc".to_vec()).unwrap()));
    assert_eq!(request(bytes(&[None, None]), b"abc"), Ok(Tensor::new(&[1, 3], b"abc".to_vec()).unwrap()));
    assert_eq!(request(bytes(&[Some(1), Some(2), None]), b"abcd"), Ok(Tensor::new(&[1, 2, 2], b"abcd".to_vec()).unwrap()));
    assert_eq!(request(bytes(&[None, None]), b""), Ok(Tensor::zeros(DType::U8, &[1, 0])));
    let text = |dims: &[Option<usize>]| port("s", DType::String, dims);
    assert_eq!(request(text(&[None]), "é".as_bytes()), Ok(Tensor::vector(vec!["é".to_owned()])));
    assert_eq!(request(text(&[None, Some(1)]), b""), Ok(Tensor::new(&[1, 1], vec![String::new()]).unwrap()));
    for (port, body, want) in [
        (bytes(&[None, Some(3)]), &b"ab"[..], "2 elements do not fit its shape"),
        (bytes(&[None, Some(2), None]), b"abc", "3 elements do not fit its shape"),
        (bytes(&[None, None, None]), b"abc", "more than one of its dimensions is free"),
        (port("f", DType::F32, &[None, None]), b"abc", "3 bytes are no whole number of FP32 elements"),
        (text(&[None]), b"\xff", "no UTF-8 text"),
        (text(&[None, Some(2)]), b"a", "1 elements do not fit its shape"),
        (Port { dims: None, ..bytes(&[]) }, b"a", "its rank is not known"),
    ] {
        let message = request(port, body).unwrap_err();
        assert!(message.contains(want), "{message}");
    }
    let two = decode(&Bytes::new(), Some(0), &signature(vec![bytes(&[None]), bytes(&[None])])).unwrap_err();
    assert!(two.message().contains("has one input; the inputs are `x`, `x`"), "{}", two.message());
}
