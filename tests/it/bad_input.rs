//! Every kind of bad input, through the socket: the status, a message that names what was wrong and what was wanted, no error
//! in the server's log, and the next request is answered.

use crate::client::{Client, post, request, request_of};
use crate::server::{logged_errors, shared, strict};

/// A request and what is wanted of the answer.
struct Row {
    name: &'static str,
    request: Vec<u8>,
    /// The client stops writing after the request.
    finish: bool,
    status: u16,
    /// Parts of the message.
    wants: &'static [&'static str],
}

fn row(name: &'static str, request: Vec<u8>, status: u16, wants: &'static [&'static str]) -> Row {
    Row { name, request, finish: false, status, wants }
}

/// A prediction by `two-features`: FP32 `x` [batch, 2].
fn predict(name: &'static str, body: &str, status: u16, wants: &'static [&'static str]) -> Row {
    row(name, request("POST", "/v1/models/two-features:predict", &[], body), status, wants)
}

/// An inference by `pair`: FP32 `x` [batch, 2], INT64 `n` [batch, 1], at most four rows.
fn infer(name: &'static str, body: &str, status: u16, wants: &'static [&'static str]) -> Row {
    row(name, request("POST", "/v2/models/pair/infer", &[], body), status, wants)
}

/// An inference by `pair` whose JSON has so many bytes.
fn header(name: &'static str, length: &str, body: &[u8], wants: &'static [&'static str]) -> Row {
    let header = format!("Inference-Header-Content-Length: {length}");
    row(name, request_of("POST", "/v2/models/pair/infer", &[&header], body), 400, wants)
}

/// The inputs of `pair` around one that is under test.
fn pair(x: &str) -> String {
    format!(r#"{{"inputs":[{{"name":"x",{x}}},{{"name":"n","shape":[1,1],"datatype":"INT64","data":[1]}}]}}"#)
}

fn predict_rows() -> Vec<Row> {
    let deep = format!("{{\"instances\": {}", "[".repeat(5000));
    let too_many = format!(r#"{{"instances": [{}]}}"#, vec!["[1,2]"; 65].join(","));
    let not_utf8 =
        [b"POST /v1/models/two-features:predict HTTP/1.1\r\nhost: t\r\ncontent-length: 5\r\n\r\n".as_slice(), b"{\"\xff\"}"].concat();
    vec![
        predict("malformed JSON", r#"{"instances": [[1,2]"#, 400, &["not valid JSON", "expected `,` or `]`", "byte 20"]),
        predict("trailing comma", r#"{"instances": [[1,2],]}"#, 400, &["not valid JSON", "expected a value, found `]` at byte 21"]),
        predict("text behind the JSON", r#"{"instances": [[1,2]]} x"#, 400, &["expected the end, found `x`"]),
        predict("no body", "", 400, &["not valid JSON", "found the end at byte 0"]),
        row("no UTF-8", not_utf8, 400, &["UTF-8", "byte 2"]),
        predict("wrong type of the body", "[[1,2]]", 400, &["the body is an array where an object is wanted"]),
        predict(
            "wrong type of a value",
            r#"{"instances": [[1,"2"]]}"#,
            400,
            &["instances[0][1] is a string where a number (float32) is wanted"],
        ),
        predict("null", r#"{"instances": [[1,null]]}"#, 400, &["instances[0][1] is null where a number"]),
        predict("no known key", r#"{"instance": [[1,2]]}"#, 400, &["neither `instances`", "nor `inputs`", "it has `instance`"]),
        predict("both keys", r#"{"instances": [[1,2]], "inputs": [[1,2]]}"#, 400, &["`instances` or `inputs`; one of them is wanted"]),
        predict("ragged array", r#"{"instances": [[1,2],[3]]}"#, 400, &["instances[1] has 1 element where 2 are wanted"]),
        predict(
            "wrong rank",
            r#"{"instances": [[[1,2]]]}"#,
            400,
            &["model `two-features`", "input `x` wants shape [batch, 2], got [1, 1, 2]"],
        ),
        predict("too low a rank", r#"{"instances": [1,2]}"#, 400, &["input `x` wants shape [batch, 2], got [2]"]),
        predict("wrong width", r#"{"instances": [[1,2,3]]}"#, 400, &["input `x` wants shape [batch, 2], got [1, 3]"]),
        predict("empty batch", r#"{"instances": []}"#, 400, &["instances is empty; at least one row is wanted"]),
        predict("empty columns", r#"{"inputs": [[],[]]}"#, 400, &["wants shape [batch, 2], got [2, 0]"]),
        predict("batch over the limit", &too_many, 400, &["65 rows are more than the limit of 64", "max_batch_rows"]),
        predict("huge number", r#"{"instances": [[1,1e999]]}"#, 400, &["instances[0][1] is 1e999, out of range of float32"]),
        predict(
            "huge number of digits",
            r#"{"instances": [[1,400000000000000000000000000000000000000]]}"#,
            400,
            &["out of range of float32"],
        ),
        predict("misspelt token", r#"{"instances": [[1,nan]]}"#, 400, &["not valid JSON", "expected `null`, found `a` at byte 19"]),
        predict("Open Inference at :predict", r#"{"inputs": [{"name": "x"}]}"#, 400, &["/v2/models/<model>/infer"]),
        predict("unknown input", r#"{"inputs": {"z": [[1,2]]}}"#, 400, &["inputs.z is not known; the model's inputs are `x`"]),
        predict("duplicate input", r#"{"inputs": {"x": [[1,2]], "x": [[1,2]]}}"#, 400, &["inputs.x is given twice"]),
        predict("deep nesting", &deep, 400, &["nested deeper than 100 levels", "byte "]),
    ]
}

fn infer_rows() -> Vec<Row> {
    let x = |x: &str| pair(x);
    let good = r#""shape":[1,2],"datatype":"FP32","data":[1,2]"#;
    let five = r#"{"inputs":[{"name":"x","shape":[5,2],"datatype":"FP32","data":[1,2,3,4,5,6,7,8,9,10]},{"name":"n","shape":[5,1],"datatype":"INT64","data":[1,2,3,4,5]}]}"#;
    let outputs = |outputs: &str| format!(r#"{},"outputs":{outputs}}}"#, x(good).strip_suffix('}').unwrap());
    let bytes = r#"{"inputs":[{"name":"b","shape":[1,3],"datatype":"UINT8","data":[1,2,300]}]}"#;
    let half = r#"{"inputs":[{"name":"h","shape":[1,2],"datatype":"FP16","data":[1,2]}]}"#;
    let flags = r#"{"inputs":[{"name":"f","shape":[3,2],"datatype":"BOOL","data":[true]}]}"#;
    vec![
        infer("malformed JSON", r#"{"inputs": ["#, 400, &["model `pair`", "not valid JSON", "byte 12"]),
        infer(
            "wrong datatype",
            &x(r#""shape":[1,2],"datatype":"FP64","data":[1,2]"#),
            400,
            &["input `x` wants element type float32, got float64"],
        ),
        infer("unknown datatype", &x(r#""shape":[1,2],"datatype":"FLOAT","data":[1,2]"#), 400, &["datatype is `FLOAT`; known are FP32"]),
        infer(
            "count and shape differ",
            &x(r#""shape":[1,2],"datatype":"FP32","data":[1,2,3]"#),
            400,
            &["`x`", "wants 2 values, data has 3"],
        ),
        infer("nesting and shape differ", &x(r#""shape":[1,2],"datatype":"FP32","data":[[1],[2]]"#), 400, &["nested as [2, 1]"]),
        infer(
            "ragged data",
            &x(r#""shape":[1,2],"datatype":"FP32","data":[[1,2],[3]]"#),
            400,
            &["inputs[0].data[1] has 1 element where 2 are wanted"],
        ),
        infer("wrong rank", &x(r#""shape":[2],"datatype":"FP32","data":[1,2]"#), 400, &["input `x` wants shape [batch, 2], got [2]"]),
        infer(
            "wrong width",
            &x(r#""shape":[1,3],"datatype":"FP32","data":[1,2,3]"#),
            400,
            &["input `x` wants shape [batch, 2], got [1, 3]"],
        ),
        infer("negative dimension", &x(r#""shape":[-1,2],"datatype":"FP32","data":[]"#), 400, &["shape[0] is -1, out of range"]),
        infer("huge shape", &x(r#""shape":[4294967296,4294967296],"datatype":"FP32","data":[]"#), 400, &["total element count"]),
        infer(
            "rows differ",
            &x(r#""shape":[2,2],"datatype":"FP32","data":[1,2,3,4]"#),
            400,
            &["dimension `batch` is 2 in input `x` and 1 in input `n`"],
        ),
        infer(
            "empty batch",
            r#"{"inputs":[{"name":"x","shape":[0,2],"datatype":"FP32","data":[]},{"name":"n","shape":[0,1],"datatype":"INT64","data":[]}]}"#,
            400,
            &["the batch is empty"],
        ),
        infer("batch over the limit", five, 400, &["5 rows are more than the limit of 4"]),
        infer(
            "unknown input",
            &x(good).replace(r#""name":"n""#, r#""name":"m""#),
            400,
            &["model `pair`: input `m` is not known; the inputs are `x`, `n`"],
        ),
        infer("missing input", r#"{"inputs":[]}"#, 400, &["input `x` is missing; the inputs are `x`, `n`"]),
        infer("no inputs", "{}", 400, &["input `x` is missing"]),
        infer("duplicate input", &x(good).replace(r#""name":"n""#, r#""name":"x""#), 400, &["model `pair`: input `x` is given twice"]),
        infer(
            "unknown output",
            &outputs(r#"[{"name":"z"}]"#),
            400,
            &["model `pair`: output `z` is not known; the outputs are `x_out`, `n_out`"],
        ),
        infer(
            "binary input without its bytes",
            &x(r#""shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}"#),
            400,
            &["model `pair`", "`x`: binary_data_size is 8; 0 bytes are left behind the JSON"],
        ),
        infer("output twice", &outputs(r#"[{"name":"x_out"},{"name":"x_out"}]"#), 400, &["output `x_out` is asked for twice"]),
        infer(
            "classes that are no number",
            &outputs(r#"[{"name":"x_out","parameters":{"classification":"3"}}]"#),
            400,
            &["outputs[0].parameters.classification is \"3\" where how many classes"],
        ),
        infer(
            "shared memory",
            &outputs(r#"[{"name":"x_out","parameters":{"shared_memory_region":"r"}}]"#),
            400,
            &["shared_memory_region asks for shared memory"],
        ),
        infer(
            "reserved parameter",
            &format!(r#"{},"parameters":{{"triton_final_response":true}}}}"#, x(good).strip_suffix('}').unwrap()),
            400,
            &["parameters.triton_final_response is reserved"],
        ),
        header("binary header that is no number", "x", b"{}", &["Inference-Header-Content-Length is \"x\" where a number of bytes"]),
        header("negative binary header", "-1", b"{}", &["Inference-Header-Content-Length is \"-1\""]),
        header("binary header over the body", "3", b"{}", &["Inference-Header-Content-Length is 3; the body has 2 bytes"]),
        header("binary header that cuts the JSON", "1", b"{}", &["not valid JSON"]),
        header("bytes that nobody wants", "2", b"{}abc", &["3 bytes are left behind the binary data"]),
        header("raw body for two inputs", "0", b"abc", &["has one input; the inputs are `x`, `n`"]),
        row(
            "out of range",
            request("POST", "/v2/models/bytes/infer", &[], bytes),
            400,
            &["inputs[0].data[2] is 300, out of range of uint8 (0 to 255)"],
        ),
        row(
            "token for an integer",
            request("POST", "/v1/models/bytes:predict", &[], r#"{"instances":[[1,NaN,3]]}"#),
            400,
            &["instances[0][1] is NaN where a whole number (uint8) is wanted"],
        ),
        row(
            "fraction for an integer",
            request("POST", "/v1/models/bytes:predict", &[], r#"{"instances":[[1,1.5,3]]}"#),
            400,
            &["instances[0][1] is 1.5 where a whole number"],
        ),
        row("half floats", request("POST", "/v2/models/half/infer", &[], half), 400, &["receiving FP16 data via JSON is not supported"]),
        row("count of booleans", request("POST", "/v2/models/flags/infer", &[], flags), 400, &["wants 6 values, data has 1"]),
    ]
}

fn path_rows() -> Vec<Row> {
    let body = r#"{"instances": [[1,2]]}"#;
    let truncated = b"POST /v1/models/two-features:predict HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n{\"instances\": [[1".to_vec();
    vec![
        row(
            "unknown model",
            request("POST", "/v1/models/nope:predict", &[], body),
            404,
            &["model `nope` is not known; known are", "two-features"],
        ),
        row("unknown model, v2", request("POST", "/v2/models/nope/infer", &[], body), 404, &["model `nope` is not known"]),
        row(
            "unknown version",
            request("POST", "/v1/models/two-features/versions/9:predict", &[], body),
            404,
            &["no version `9`; its versions are 1"],
        ),
        row(
            "unknown version, v2",
            request("POST", "/v2/models/pair/versions/9/infer", &[], body),
            404,
            &["no version `9`; its versions are 1, 2"],
        ),
        row("broken model", request("POST", "/v1/models/broken:predict", &[], body), 503, &["model `broken` version 1 failed to load"]),
        row(
            "unknown verb",
            request("POST", "/v1/models/pair:classify", &[], body),
            501,
            &["`:classify` is not offered; `:predict` and `:explain` are"],
        ),
        row("unknown path", request("GET", "/nope", &[], ""), 404, &["path /nope is not known", "/predict"]),
        row(
            "versions without one",
            request("GET", "/v2/models/pair/versions", &[], ""),
            404,
            &["path /v2/models/pair/versions is not known"],
        ),
        row("wrong method", request("GET", "/predict", &[], ""), 405, &["method GET is not allowed on /predict; allowed: POST"]),
        row("wrong method, v1", request("GET", "/v1/models/pair:predict", &[], ""), 405, &["method GET is not allowed", "allowed: POST"]),
        row("wrong method, model", request("POST", "/v1/models/pair", &[], body), 405, &["method POST is not allowed", "allowed: GET"]),
        row("wrong method, v2", request("PUT", "/v2/models/pair/infer", &[], body), 405, &["method PUT is not allowed", "allowed: POST"]),
        row("path that is no UTF-8", request("POST", "/v1/models/%ff:predict", &[], body), 400, &["/v1/models/%ff:predict", "UTF-8"]),
        row(
            "body that is not compressed",
            request("POST", "/v1/models/pair:predict", &["content-encoding: gzip"], body),
            400,
            &["the body is no valid gzip stream"],
        ),
        row(
            "unknown compression",
            request("POST", "/v1/models/pair:predict", &["content-encoding: br"], body),
            415,
            &["Content-Encoding \"br\" is not supported; gzip, deflate, identity are"],
        ),
        Row { name: "truncated body", request: truncated, finish: true, status: 400, wants: &["the body ended too early"] },
        row(
            "broken chunk",
            b"POST /v1/models/pair:predict HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec(),
            400,
            &["malformed"],
        ),
        row("no HTTP", b"hello\r\n\r\n".to_vec(), 400, &["no valid HTTP/1.1"]),
        row("broken length", b"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-length: x\r\n\r\n".to_vec(), 400, &["no valid HTTP/1.1"]),
    ]
}

/// For a server that takes bodies of 10,000 bytes within 200 ms and heads of 8,192 bytes.
fn limit_rows() -> Vec<Row> {
    let large = format!(r#"{{"instances": [{}]}}"#, vec!["[1,2]"; 2000].join(","));
    let chunk = "1,".repeat(6000);
    let chunked =
        format!("POST /predict HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{chunk}\r\n0\r\n\r\n", chunk.len());
    let slow = b"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n{\"inst".to_vec();
    let header = format!("x-long: {}", "a".repeat(20_000));
    vec![
        row("body over the limit", request("POST", "/predict", &[], &large), 413, &["the body has 12016 bytes, the limit is 10000"]),
        // More than the socket's buffers hold: the client gets the answer although it is still writing.
        row("body far over the limit", request("POST", "/predict", &[], &" ".repeat(8 << 20)), 413, &["8388608 bytes, the limit is 10000"]),
        row("chunked body over the limit", chunked.into_bytes(), 413, &["more bytes than the limit of 10000"]),
        row("slow body", slow, 408, &["the body did not arrive within 200ms"]),
        row(
            "header over the limit",
            request("POST", "/predict", &[&header], "{}"),
            431,
            &["the head of the request", "longer than the limit"],
        ),
        row("path over the limit", request("GET", &format!("/{}", "a".repeat(70_000)), &[], ""), 431, &["longer than the limit"]),
    ]
}

fn check(address: std::net::SocketAddr, path: &str, rows: Vec<Row>) {
    let mut wrong = Vec::new();
    for Row { name, request, finish, status, wants } in rows {
        let mut client = Client::connect(address);
        client.write(&request);
        if finish {
            client.finish();
        }
        let Some(answer) = client.read() else {
            wrong.push(format!("{name}: no answer"));
            continue;
        };
        let message = answer.error();
        if answer.status != status || !wants.iter().all(|want| message.contains(want)) {
            wrong.push(format!("{name}: wanted {status} {wants:?}, got {} {message}", answer.status));
        }
        if status == 405 && answer.header("allow").is_none() {
            wrong.push(format!("{name}: no Allow"));
        }
        if status == 415 && answer.header("accept-encoding").is_none() {
            wrong.push(format!("{name}: no Accept-Encoding"));
        }
        if status == 503 && answer.header("retry-after").is_none() {
            wrong.push(format!("{name}: no Retry-After"));
        }
        let next = post(address, path, r#"{"instances": [[1,2]]}"#);
        if next.status != 200 {
            wrong.push(format!("{name}: the next request got {next:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(logged_errors(), 0, "bad input is no error of the server");
}

#[test]
fn bad_input_is_refused_and_the_next_request_answered() {
    let rows = [predict_rows(), infer_rows(), path_rows()].into_iter().flatten().collect();
    check(shared(), "/v1/models/two-features:predict", rows);
}

#[test]
fn limits_hold_and_the_next_request_is_answered() {
    check(strict().address, "/predict", limit_rows());
}

/// A number that no float holds is refused; the tokens for what is not finite are numbers of the contract.
#[test]
fn special_tokens_are_numbers() {
    let answer = post(shared(), "/v1/models/any:predict", r#"{"instances": [[NaN,1],[-Infinity,Infinity],[1e-400,2]]}"#);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.starts_with(r#"{"predictions":[[NaN,1.0],[-Infinity,Infinity],["#), "{answer:?}");
}
