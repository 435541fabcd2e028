//! A running server, asked over HTTP: what a command that changes it has to know of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::Failure;
use super::healthcheck::{parse, split};
use crate::api::{decode_binary, encode_binary};
use crate::engine::{DType, Port, Signature, Tensor};

/// A server and who asks it.
#[derive(Debug)]
pub(super) struct Remote<'a> {
    url: &'a str,
    key: Option<&'a str>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    head: String,
    body: Vec<u8>,
}

/// Loading a model, warming it up and verifying it takes as long.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Bytes of an answer: far more than the outputs of the rows that are sent at once.
const ANSWER_MAX: u64 = 256 << 20;

/// What a model takes and gives, and its labels, as the server tells them.
#[derive(Debug)]
pub(super) struct Served {
    inputs: Vec<Json>,
    outputs: Vec<Json>,
    /// Joined by commas; empty if there are none.
    pub(super) labels: String,
}

impl Reply {
    /// The body as text, for a person.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }

    /// The value of a header.
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }
}

impl<'a> Remote<'a> {
    /// # Errors
    /// If the server cannot be asked this way.
    pub(super) fn new(url: &'a str, key: Option<&'a str>) -> Result<Self, Failure> {
        if url.starts_with("https://") {
            return Err("only http:// can be asked; deploy into the folder of a server behind TLS".into());
        }
        if key.is_some_and(|key| key.contains(|c: char| c.is_control() || c == ' ')) {
            return Err("the key has characters that no header may have".into());
        }
        Ok(Self { url: url.trim_end_matches('/'), key })
    }

    /// Posts a body of JSON.
    ///
    /// # Errors
    /// If there is no answer.
    pub(super) fn post(&self, path: &str, body: &[u8]) -> Result<Reply, Failure> {
        self.ask("POST", path, "", body)
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<Reply, Failure> {
        self.exchange(method, path, headers, body).map_err(|error| format!("{}: {error}", self.url).into())
    }

    fn exchange(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<Reply, String> {
        let url = format!("{}{path}", self.url);
        let (host, path) = split(&url)?;
        let key = self.key.map_or(String::new(), |key| format!("X-API-Key: {key}\r\n"));
        let text = |error: std::io::Error| error.to_string();
        let mut stream = TcpStream::connect(&host).map_err(text)?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(text)?;
        // One write, for the reason of `healthcheck`'s.
        let length = body.len();
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{key}{headers}Content-Length: {length}\r\n\r\n")
                .into_bytes();
        request.extend_from_slice(body);
        // A server that refuses a request may answer before it has read it all.
        let sent = stream.write_all(&request).map_err(text);
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer).map_err(text)?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        let Some(end) = end else { return sent.and(Err("the answer is not HTTP".to_owned())) };
        let body = answer.split_off(end);
        let head = String::from_utf8_lossy(&answer).into_owned();
        let (status, _) = parse(&head).ok_or("the answer is not HTTP")?;
        Ok(Reply { status, head, body })
    }

    /// The model of this name; `None` if the server has none.
    ///
    /// # Errors
    /// If it does not tell, as while the model is not ready.
    pub(super) fn served(&self, name: &str) -> Result<Option<Served>, Failure> {
        let reply = self.ask("GET", &format!("/v2/models/{name}"), "", b"")?;
        match reply.status {
            404 => Ok(None),
            200 => {
                let found: Json = serde_json::from_slice(&reply.body).map_err(|error| format!("{}: {error}", self.url))?;
                let ports = |key: &str| found[key].as_array().cloned().unwrap_or_default();
                let labels = found["properties"]["labels"].as_str().unwrap_or_default().to_owned();
                Ok(Some(Served { inputs: ports("inputs"), outputs: ports("outputs"), labels }))
            }
            status => Err(format!("{}: what is there cannot be told: {status}: {}", self.url, reply.text()).into()),
        }
    }

    /// One output of the model for some rows.
    ///
    /// # Errors
    /// If the server does not give it.
    pub(super) fn infer(&self, name: &str, signature: &Signature, inputs: &[Tensor], output: &Port) -> Result<Tensor, Failure> {
        let (mut described, mut bytes) = (Vec::new(), Vec::new());
        for (port, tensor) in signature.inputs.iter().zip(inputs) {
            let values = encode_binary(tensor).ok_or_else(|| format!("input `{}`: {} cannot be sent", port.name, tensor.dtype()))?;
            let size = json!({ "binary_data_size": values.len() });
            described.push(json!({ "name": port.name, "shape": tensor.shape(), "datatype": tensor.dtype().oip(), "parameters": size }));
            bytes.extend_from_slice(&values);
        }
        let wanted = json!([{ "name": output.name, "parameters": { "binary_data": true } }]);
        let mut body = json!({ "inputs": described, "outputs": wanted }).to_string().into_bytes();
        let headers = format!("Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {}\r\n", body.len());
        body.append(&mut bytes);
        let reply = self.ask("POST", &format!("/v2/models/{name}/infer"), &headers, &body)?;
        if reply.status != 200 {
            return Err(
                format!("{}: the model that is there does not answer the data: {}: {}", self.url, reply.status, reply.text()).into()
            );
        }
        tensor_of(&reply).ok_or_else(|| format!("{}: the answer holds no output `{}`", self.url, output.name).into())
    }
}

/// The one output of an answer whose values lie behind the JSON.
fn tensor_of(reply: &Reply) -> Option<Tensor> {
    let length: usize = reply.header("Inference-Header-Content-Length")?.parse().ok()?;
    let (text, bytes) = reply.body.split_at_checked(length)?;
    let found: Json = serde_json::from_slice(text).ok()?;
    let output = &found["outputs"][0];
    let dtype = DType::from_oip(output["datatype"].as_str()?)?;
    let shape: Vec<usize> =
        output["shape"].as_array()?.iter().map(|size| size.as_u64().map(|size| size as usize)).collect::<Option<_>>()?;
    decode_binary(dtype, &shape, bytes).ok()
}

impl Served {
    /// Whether a model takes and gives the same.
    pub(super) fn fits(&self, signature: &Signature) -> bool {
        let port = |port: &Port, told: &Json| {
            let sizes = |told: &Json| told.as_array().map(|sizes| sizes.iter().map(|size| size.as_i64().unwrap_or(-1)).collect::<Vec<_>>());
            let (name, datatype, shape) = crate::api::described(port);
            told["name"].as_str() == Some(name) && told["datatype"].as_str() == Some(datatype) && sizes(&told["shape"]) == Some(shape)
        };
        let same = |ports: &[Port], told: &[Json]| {
            let own: Vec<&Port> = ports.iter().filter(|port| port.kind.dtype().is_some()).collect();
            own.len() == told.len() && own.into_iter().zip(told).all(|(own, told)| port(own, told))
        };
        same(&signature.inputs, &self.inputs) && same(&signature.outputs, &self.outputs)
    }
}
