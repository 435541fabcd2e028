//! The server as a process: what it prints, whether that works, and how it goes down.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::{Folder, Node, Ran, onnx};

/// A running server; it is killed with the test.
pub(crate) struct Server {
    child: Child,
    out: BufReader<ChildStdout>,
    pub(crate) address: String,
    /// The line that says so.
    pub(crate) first: String,
}

impl Server {
    /// On a free port, unless the arguments say where.
    pub(crate) fn start(folder: &Folder, args: &[&str]) -> Self {
        let anywhere: &[&str] = if args.contains(&"--listen") { &["serve"] } else { &["serve", "--listen", "127.0.0.1:0"] };
        Self::spawn(&mut folder.command(&[anywhere, args].concat()))
    }

    pub(crate) fn spawn(command: &mut std::process::Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut server = Self { out: BufReader::new(child.stdout.take().unwrap()), child, address: String::new(), first: String::new() };
        server.first = server.line();
        let line = &server.first;
        server.address = line.split_once("http://").expect(line).1.split([' ', ',']).next().unwrap().to_owned();
        server
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }

    /// The lines up to one that has `part`.
    #[track_caller]
    pub(crate) fn until(&mut self, part: &str) -> String {
        let mut text = String::new();
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "`{part}` is not in `{text}`");
            text += &line;
            if line.contains(part) {
                return text;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Status and body of an answer.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let (host, len) = (&self.address, body.len());
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub(crate) fn end(mut self) -> Ran {
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        Ran { code: self.child.wait().unwrap().code(), out, err }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A repository with one model, which passes `x` through Relu to `y`.
fn repository() -> Folder {
    let folder = Folder::new();
    folder.write("models/relu/1/model.onnx", onnx(&[Node("Relu", &["x"], &["y"])], &["x"], &["y"]));
    folder
}

#[test]
fn the_curl_line_works_and_the_server_stops_in_order() {
    let folder = repository();
    let mut server = Server::start(&folder, &["--drain-delay", "300ms"]);
    let text = server.until("try: curl");
    assert!(text.contains("relu  version 1 ready"), "{text}");
    let line = text.lines().last().unwrap();
    let (url, body) = line.strip_prefix("try: curl ").unwrap().split_once(" -d ").unwrap();
    let path = url.strip_prefix(&format!("http://{}", server.address)).expect(url);
    let (status, answer) = server.ask("POST", path, body.trim_matches('\''));
    assert_eq!((status, answer.contains("\"predictions\"")), (200, true), "{answer}");
    let url = format!("http://{}/readyz", server.address);
    folder.run(&["healthcheck", "--url", &url]).ok();

    server.signal(Signal::TERM);
    let end = Instant::now() + Duration::from_secs(5);
    while folder.run(&["healthcheck", "--url", &url]).code == Some(0) {
        assert!(Instant::now() < end, "it is still ready");
    }
    assert_eq!(server.ask("POST", path, body.trim_matches('\'')).0, 200, "it serves on during the drain delay");
    let ran = server.end().ok();
    // Two predictions, and at least one probe before and one after the signal.
    let numbers: Vec<u64> = ran.out.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    assert!(matches!(numbers[..], [accepted, answered, 0] if accepted >= 4 && accepted == answered), "{ran:?}");
    folder.run(&["healthcheck", "--url", &url]).fails(1, &[&url]);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let folder = repository();
    let mut server = Server::start(&folder, &["--drain-delay", "1h"]);
    server.until("ready");
    server.signal(Signal::INT);
    let end = Instant::now() + Duration::from_secs(5);
    while server.ask("GET", "/readyz", "").0 == 200 {
        assert!(Instant::now() < end, "it is still ready");
    }
    server.signal(Signal::TERM);
    assert_eq!(server.end().code, Some(128 + 15));
}

#[test]
fn a_broken_model_is_told_and_strict_refuses_it() {
    let folder = repository();
    folder.write("models/broken/1/model.onnx", b"not a model");
    let mut server = Server::start(&folder, &[]);
    let text = server.until("relu ");
    assert!(text.contains("broken  FAILED: ") && text.contains("not an ONNX model"), "{text}");
    let (status, answer) = server.ask("GET", "/readyz", "");
    assert!(status == 503 && answer.contains("broken"), "{status} {answer}");
    assert_eq!(server.ask("POST", "/v1/models/relu:predict", r#"{"instances": [[1, -1]]}"#).0, 200);
    server.signal(Signal::TERM);
    server.end().ok();

    Server::start(&folder, &["--strict"]).end().fails(1, &["1 of the models cannot be served"]);
}

#[test]
fn what_keeps_it_from_starting_is_told() {
    let folder = repository();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    folder.run(&["--listen", &address]).fails(1, &[&address, "in use"]);
    folder.run(&["--models", "nothing"]).fails(1, &["nothing: "]);
    folder.run(&["--default-model", "nothing"]).fails(1, &["the default model `nothing` is not in models; there are relu"]);
}

#[test]
fn json_logs_are_json() {
    let folder = repository();
    let mut command = folder.command(&["--listen", "127.0.0.1:0", "--log-format", "json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut seen = Vec::new();
    while !seen.iter().any(|message| message == "model ready") {
        let mut line = String::new();
        err.read_line(&mut line).unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).expect(&line);
        seen.push(event["message"].as_str().unwrap().to_owned());
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(0), Vec::new()));
}
