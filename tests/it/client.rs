//! A client that writes what it is told, valid or not, and reads one answer.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The head's lines, lower case names.
    pub(crate) headers: Vec<(String, String)>,
    /// The body as text; what is no UTF-8 is replaced.
    pub(crate) body: String,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON. The bare tokens of special floats are no JSON: tests of those look at the text.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The message of a failed answer, which must have one.
    pub(crate) fn error(&self) -> String {
        assert!(self.status >= 400, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        self.json()["error"].as_str().unwrap_or_else(|| panic!("no error: {self:?}")).to_owned()
    }
}

/// A connection that stays open between requests.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, unread: Vec::new() }
    }

    /// Writes bytes. The server may have answered and closed before it read all: that is no failure.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Tells the server that nothing more comes.
    pub(crate) fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads one answer; `None` if the server closes without one.
    pub(crate) fn read(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if !self.read_more() {
                assert!(self.unread.is_empty(), "a part of an answer: {:?}", String::from_utf8_lossy(&self.unread));
                return None;
            }
        };
        let head = String::from_utf8(self.unread.drain(..end).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Answer { status, headers, body: String::new(), bytes: Vec::new() };
        let length: usize = answer.header("content-length").expect("a length").parse().unwrap();
        while self.unread.len() < length {
            assert!(self.read_more(), "the body is cut: {answer:?}");
        }
        answer.bytes = self.unread.drain(..length).collect();
        answer.body = String::from_utf8_lossy(&answer.bytes).into_owned();
        Some(answer)
    }

    /// Whether anything came; `false` at the end.
    fn read_more(&mut self) -> bool {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(count) => {
                self.unread.extend_from_slice(&chunk[..count]);
                count > 0
            }
            Err(error) => panic!("no answer: {error}"),
        }
    }

    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Whether the server has closed the connection.
    pub(crate) fn closed(&mut self) -> bool {
        self.unread.is_empty() && !self.read_more()
    }

    pub(crate) fn send(&mut self, request: &[u8]) -> Answer {
        self.write(request);
        self.read().expect("an answer")
    }
}

/// The bytes of a request with a body of text.
pub(crate) fn request(method: &str, path: &str, headers: &[&str], body: &str) -> Vec<u8> {
    request_of(method, path, headers, body.as_bytes())
}

/// The bytes of a request with any body.
pub(crate) fn request_of(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    if !body.is_empty() {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    Client::connect(address).send(&request("GET", path, &[], ""))
}

pub(crate) fn post(address: SocketAddr, path: &str, body: &str) -> Answer {
    Client::connect(address).send(&request("POST", path, &[], body))
}
