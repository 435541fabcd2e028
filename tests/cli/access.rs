//! Keys, TLS and listeners from the command line: what works, and what is told if it does not.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;

use crate::fixture::{Folder, Node, onnx};
use crate::server::Server;

fn repository() -> Folder {
    let folder = Folder::new();
    folder.write("models/relu/1/model.onnx", onnx(&[Node("Relu", &["x"], &["y"])], &["x"], &["y"]));
    folder
}

/// A certificate for localhost and its key.
fn pair(folder: &Folder) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    folder.write("cert.pem", made.cert.pem());
    folder.write("key.pem", made.signing_key.serialize_pem());
}

fn status(address: &str, path: &str, key: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    let key = if key.is_empty() { String::new() } else { format!("Authorization: Bearer {key}\r\n") };
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: t\r\n{key}Connection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_new_key_opens_a_server_and_is_shown_once() {
    let folder = repository();
    let made = folder.run(&["key", "--name", "app", "--rate", "100"]).ok();
    let key = made.err.trim().to_owned();
    assert!(key.starts_with("nds_") && !made.out.contains(&key), "{made:?}");
    let admin = folder.run(&["key", "--name", "operator", "--role", "admin"]).ok();
    folder.write("keys.toml", made.out + &admin.out);
    let mut server = Server::start(&folder, &["--keys-file", "keys.toml"]);
    server.until("relu  version 1 ready");
    let statuses = ["", "nds_wrong", &key, admin.err.trim()].map(|key| status(&server.address, "/v2", key));
    assert_eq!(statuses, [401, 401, 200, 200]);
    assert_eq!([&key, admin.err.trim()].map(|key| status(&server.address, "/metrics", key)), [403, 200]);
    assert_eq!(status(&server.address, "/readyz", ""), 200);
    folder.run(&["healthcheck", "--url", &format!("http://{}/readyz", server.address)]).ok();

    // SIGHUP has the file read at once, and does not end the server.
    let other = folder.run(&["key", "--name", "other"]).ok();
    folder.write("keys.toml", &other.out);
    server.signal(Signal::HUP);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while status(&server.address, "/v2", other.err.trim()) != 200 {
        assert!(std::time::Instant::now() < end, "the new key is not known");
    }
    assert_eq!(status(&server.address, "/v2", &key), 401);
    folder.run(&["key", "--name", "a", "--role", "root"]).fails(2, &["`root` is none of infer, metrics, admin"]);
    folder.run(&["key"]).fails(2, &["--name"]);
}

#[test]
fn keys_of_the_environment_count_too() {
    let folder = repository();
    let key = "0123456789abcdef0123456789abcdef";
    let mut command = folder.command(&["--listen", "127.0.0.1:0"]);
    let mut server = Server::spawn(command.env("NDSERVE_API_KEYS", format!("app={key}")));
    server.until("ready");
    assert_eq!(["", key].map(|key| status(&server.address, "/v2", key)), [401, 200]);
    let mut short = folder.command(&["--listen", "127.0.0.1:0"]);
    let ran = crate::fixture::Ran::from(short.env("NDSERVE_ADMIN_KEYS", "hunter2").output().unwrap());
    assert!(!ran.err.contains("hunter2"), "{ran:?}");
    ran.fails(1, &["NDSERVE_ADMIN_KEYS: key `env-admin-1`: it must have 32"]);
}

#[test]
fn a_server_that_strangers_reach_says_so() {
    let folder = repository();
    let mut server = Server::start(&folder, &["--listen", "0.0.0.0:0"]);
    let text = server.until("ready");
    assert!(text.contains("OPEN: whoever reaches http://0.0.0.0:") && text.contains("may use, load and unload every model"), "{text}");
    let mut local = Server::start(&folder, &[]);
    assert!(!local.until("ready").contains("OPEN"));
}

#[test]
fn every_listener_is_told_and_reached() {
    let folder = repository();
    pair(&folder);
    let args = ["--listen", "127.0.0.1:0,https://127.0.0.1:0,unix:here.sock", "--admin-listen", "127.0.0.1:0"];
    let mut server = Server::start(&folder, &[&args[..], &["--tls-cert", "cert.pem", "--tls-key", "key.pem"]].concat());
    let admin = server.line();
    let admin = admin.split_once("administration listens on http://").expect(&admin).1.trim().to_owned();
    server.until("ready");
    assert_eq!((status(&server.address, "/metrics", ""), status(&admin, "/metrics", "")), (404, 200));
    assert!(folder.path("here.sock").exists());
    folder.run(&["--listen", "unix:here.sock"]).fails(1, &["unix:here.sock: another process listens at this path"]);
    server.signal(Signal::TERM);
    server.end().ok();
    assert!(!folder.path("here.sock").exists());
}

#[test]
fn what_is_wrong_with_access_is_told() {
    let folder = repository();
    pair(&folder);
    folder.write("empty.toml", "");
    folder.write("letter.txt", "Dear server,");
    let tls = |cert: &'static str, key: &'static str| ["--listen", "https://127.0.0.1:0", "--tls-cert", cert, "--tls-key", key];
    folder.run(&["--keys-file", "nothing.toml"]).fails(1, &["keys-file: nothing.toml: "]);
    folder.run(&["--keys-file", "empty.toml"]).fails(1, &["keys-file: empty.toml: there is no [[key]]"]);
    folder.run(&["--keys-file", "models"]).fails(1, &["keys-file: models: "]);
    folder.run(&tls("letter.txt", "key.pem")).fails(1, &["letter.txt: there is no certificate in PEM form"]);
    folder.run(&tls("cert.pem", "letter.txt")).fails(1, &["letter.txt: there is no private key in PEM form"]);
    folder.run(&tls("cert.pem", "nothing.pem")).fails(1, &["nothing.pem: "]);
    folder.run(&["--listen", "https://127.0.0.1:0"]).fails(1, &["https://127.0.0.1:0 needs tls-cert and tls-key"]);
    folder.run(&["--listen", "unix:letter.txt"]).fails(1, &["unix:letter.txt: there is something at this path, and it is no socket"]);
    folder.run(&["--cors-origins", "example.com"]).fails(1, &["cors-origins: `example.com` is neither `*` nor an origin"]);
    folder.run(&["--otlp-endpoint", "https://collector:4318"]).fails(1, &["TLS is not spoken to collectors"]);
    assert_eq!(std::fs::read_to_string(folder.path("letter.txt")).unwrap(), "Dear server,");
    let healthcheck = ["healthcheck", "--listen", "unix:/run/a.sock"];
    folder.run(&healthcheck).fails(1, &["unix:/run/a.sock: only http:// can be asked; add one on 127.0.0.1"]);
}
