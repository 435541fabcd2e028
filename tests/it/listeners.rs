//! Listeners: HTTP/2 without TLS, Unix-domain sockets, several at once, an admin listener, and a shutdown of all of them.

use std::time::Duration;

use ndserve::api::{AppOptions, Limits, Listener, ServerOptions, Stats, Surface};
use ndserve::config::Endpoint;
use tokio::net::{TcpStream, UnixListener, UnixStream};

use crate::models;
use crate::server::Server;
use crate::wire::{Wire, message, run};

const BODY: &str = r#"{"instances": [[1,2]]}"#;

fn free() -> Endpoint {
    Endpoint::Http("127.0.0.1:0".parse().unwrap())
}

/// A path for a socket: the system allows about a hundred bytes.
fn socket_path(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("nds-{}-{name}.sock", std::process::id()))
}

fn start(endpoints: Vec<(Endpoint, Surface)>, options: ServerOptions) -> Server {
    Server::start_on(models::only(&["two-features"]), AppOptions::default(), options, endpoints)
}

/// Beside the model itself the same one that waits for others before it runs: a moment, and longer than any test.
fn start_with_waiting(endpoints: Vec<(Endpoint, Surface)>, options: ServerOptions) -> Server {
    let folder = models::only(&["two-features"]);
    for (name, delay_ms) in [("slow", 2000), ("stuck", 3_600_000)] {
        let model = folder.join(name).join("1");
        std::fs::create_dir_all(&model).unwrap();
        std::fs::copy(folder.join("two-features/1/model.onnx"), model.join("model.onnx")).unwrap();
        // Without a size that is preferred the measured times decide whether waiting pays, which it may not on a busy machine.
        let settings = format!("max_delay_ms = {delay_ms}\nmax_batch_rows = 64\npreferred_batch_rows = [64]");
        std::fs::write(folder.join(name).join("model.toml"), settings).unwrap();
    }
    Server::start_on(folder, AppOptions::default(), options, endpoints)
}

#[test]
fn http2_gives_the_answers_of_http1() {
    let server = start(vec![(free(), Surface::Whole)], ServerOptions::default());
    run(async {
        let mut one = Wire::http1(TcpStream::connect(server.address).await.unwrap()).await;
        let mut two = Wire::http2(TcpStream::connect(server.address).await.unwrap()).await;
        for (method, path, body) in [
            ("POST", "/predict", BODY),
            ("GET", "/v2/models/two-features", ""),
            ("POST", "/predict", "{"),
            ("GET", "/nothing", ""),
            ("PUT", "/predict", ""),
        ] {
            let (a, b) = (one.send(message(method, path, &[], body)).await, two.send(message(method, path, &[], body)).await);
            assert_eq!((a.status, a.text()), (b.status, b.text()), "{method} {path}");
            assert_eq!(a.header("allow"), b.header("allow"));
        }
    });
}

#[test]
fn http2_carries_requests_side_by_side_and_large_ones() {
    let server = start(vec![(free(), Surface::Whole)], ServerOptions::default());
    run(async {
        let Wire::Http2(sender) = Wire::http2(TcpStream::connect(server.address).await.unwrap()).await else { unreachable!() };
        let requests = (0..300).map(|i| {
            let mut wire = Wire::Http2(sender.clone());
            tokio::spawn(async move {
                // Space between tokens makes some of them several windows long.
                let space = " ".repeat(if i % 100 == 0 { 5 << 20 } else { 1 });
                wire.post("/predict", &format!(r#"{{"instances": [[{}, 2]]{space}}}"#, i % 7)).await
            })
        });
        let mut answers = Vec::new();
        for request in requests.collect::<Vec<_>>() {
            let reply = request.await.unwrap();
            assert_eq!(reply.status, 200, "{}", reply.text());
            answers.push(reply.body);
        }
        assert!((7..300).all(|i| answers[i] == answers[i - 7]), "an answer went to another request");
    });
}

#[test]
fn a_head_over_the_limit_and_a_body_over_the_limit_are_refused_in_http2_too() {
    let app = AppOptions::from(Limits { max_body_bytes: 10_000, ..Limits::default() });
    let options = ServerOptions { max_header_bytes: 8192, ..ServerOptions::default() };
    let server = Server::start_on(models::only(&["two-features"]), app, options, vec![(free(), Surface::Whole)]);
    run(async {
        let mut wire = Wire::http2(TcpStream::connect(server.address).await.unwrap()).await;
        assert_eq!(wire.post("/predict", &"x".repeat(10_001)).await.status, 413);
        let long = "x".repeat(20_000);
        let refused = wire.try_send(message("GET", "/livez", &[("x-long", &long)], "")).await;
        assert!(refused.is_err() || refused.is_ok_and(|reply| reply.status == 431));
    });
}

#[test]
fn a_silent_or_idle_client_is_closed_in_time() {
    let options = ServerOptions { header_timeout: Duration::from_millis(100), ..ServerOptions::default() };
    let server = start(vec![(free(), Surface::Whole)], options);
    run(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for first in [&b""[..], b"PRI * HTTP/2.0\r\n"] {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(first).await.unwrap();
            // Closed, perhaps after an answer to what is no whole head.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
        let mut wire = Wire::http2(TcpStream::connect(server.address).await.unwrap()).await;
        assert_eq!(wire.get("/livez").await.status, 200);
        let Wire::Http2(sender) = &mut wire else { unreachable!() };
        while sender.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_unix_socket_serves_and_goes_with_the_server() {
    let path = socket_path("serves");
    let server = start(vec![(Endpoint::Unix(path.clone()), Surface::Whole), (free(), Surface::Whole)], ServerOptions::default());
    run(async {
        let mut one = Wire::http1(UnixStream::connect(&path).await.unwrap()).await;
        let mut two = Wire::http2(UnixStream::connect(&path).await.unwrap()).await;
        let mut tcp = Wire::http1(TcpStream::connect(server.address).await.unwrap()).await;
        let want = tcp.post("/predict", BODY).await;
        for wire in [&mut one, &mut two] {
            assert_eq!(wire.post("/predict", BODY).await.body, want.body);
        }
    });
    server.stop();
    assert!(!path.exists());
}

#[test]
fn only_the_socket_of_a_dead_server_is_replaced() {
    run(async {
        let bind = async |path: &std::path::Path| Listener::bind(&Endpoint::Unix(path.to_owned()), None, Surface::Whole).await;
        let path = socket_path("replaced");
        // A listener that is dropped without removing its path, as by a crash.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = bind(&path).await.unwrap();
        let error = bind(&path).await.unwrap_err();
        assert!(error.contains("another process listens") && error.contains("replaced.sock"), "{error}");
        drop(first);
        std::fs::write(&path, "a letter").unwrap();
        assert!(bind(&path).await.unwrap_err().contains("it is no socket"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a letter");
        std::fs::remove_file(&path).unwrap();
        let nowhere = socket_path("none").join("a.sock");
        assert!(bind(&nowhere).await.unwrap_err().contains("a.sock"));
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::Http(taken.local_addr().unwrap());
        let error = Listener::bind(&endpoint, None, Surface::Whole).await.unwrap_err();
        assert!(error.starts_with(&endpoint.to_string()) && error.contains("in use"), "{error}");
    });
}

#[test]
fn an_admin_listener_takes_administration_away_from_the_public_one() {
    let server = start(vec![(free(), Surface::Public), (free(), Surface::Admin)], ServerOptions::default());
    let [public, admin] = [0, 1].map(|i| server.endpoints[i].address().unwrap());
    run(async {
        let mut public = Wire::http1(TcpStream::connect(public).await.unwrap()).await;
        let mut admin = Wire::http1(TcpStream::connect(admin).await.unwrap()).await;
        for path in ["/metrics", "/v2/repository/models/two-features/load", "/v2/logging", "/v2/models/two-features/trace/setting"] {
            let reply = public.get(path).await;
            assert_eq!(reply.status, 404, "{path}");
            assert!(reply.text().contains("on the admin listener"), "{path}: {}", reply.text());
            assert!(!admin.get(path).await.text().contains("on the admin listener"), "{path}");
        }
        assert_eq!(public.post("/predict?profile=1", BODY).await.status, 404);
        for wire in [&mut public, &mut admin] {
            assert_eq!(wire.get("/readyz").await.status, 200);
            assert_eq!(wire.post("/predict", BODY).await.status, 200);
        }
        assert_eq!(admin.get("/metrics").await.status, 200);
    });
}

#[test]
fn shutdown_closes_every_listener_and_finishes_what_is_under_way_on_each() {
    let path = socket_path("drains");
    let endpoints = vec![(free(), Surface::Public), (Endpoint::Unix(path.clone()), Surface::Public), (free(), Surface::Admin)];
    let mut server = start_with_waiting(endpoints, ServerOptions::default());
    let [public, admin] = [0, 2].map(|i| server.endpoints[i].address().unwrap());
    run(async {
        let tcp = async |address: std::net::SocketAddr| TcpStream::connect(address).await.unwrap();
        let mut idle = tcp(public).await;
        let mut wires = [
            Wire::http1(tcp(public).await).await,
            Wire::http2(tcp(public).await).await,
            Wire::http1(UnixStream::connect(&path).await.unwrap()).await,
            Wire::http2(tcp(admin).await).await,
        ];
        for wire in &mut wires {
            assert_eq!(wire.get("/livez").await.status, 200);
        }
        let under_way = wires.map(|mut wire| tokio::spawn(async move { wire.post("/v1/models/slow:predict", BODY).await.status }));
        while server.repository.get("slow", None).unwrap().handle().unwrap().stats().waiting < 4 {
            tokio::task::yield_now().await;
        }
        server.begin_stop();
        for request in under_way {
            assert_eq!(request.await.unwrap(), 200);
        }
        assert_eq!(tokio::io::AsyncReadExt::read(&mut idle, &mut [0]).await.unwrap(), 0, "an idle connection is closed");
    });
    assert_eq!(server.stop(), Stats { accepted: 8, answered: 8, dropped: 0 });
    assert!(std::net::TcpStream::connect(public).is_err() && std::net::TcpStream::connect(admin).is_err());
}

#[test]
fn requests_of_http2_that_outlast_the_drain_timeout_are_dropped_and_counted() {
    let options = ServerOptions { drain_timeout: Duration::from_millis(50), ..ServerOptions::default() };
    let server = start_with_waiting(vec![(free(), Surface::Whole)], options);
    run(async {
        let Wire::Http2(sender) = Wire::http2(TcpStream::connect(server.address).await.unwrap()).await else { unreachable!() };
        let requests = [0, 1].map(|_| {
            let mut wire = Wire::Http2(sender.clone());
            tokio::spawn(async move { wire.try_send(message("POST", "/v1/models/stuck:predict", &[], BODY)).await.is_err() })
        });
        while server.repository.get("stuck", None).unwrap().handle().unwrap().stats().waiting < 2 {
            tokio::task::yield_now().await;
        }
        let stats = tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
        assert_eq!(stats, Stats { accepted: 2, answered: 0, dropped: 2 });
        for request in requests {
            assert!(request.await.unwrap());
        }
    });
}

#[test]
fn clients_who_took_all_places_do_not_keep_administrators_out() {
    let options = ServerOptions { max_connections: 1, ..ServerOptions::default() };
    let server = start(vec![(free(), Surface::Public), (free(), Surface::Public), (free(), Surface::Admin)], options);
    let [one, two, admin] = [0, 1, 2].map(|i| server.endpoints[i].address().unwrap());
    run(async {
        let tcp = async |address: std::net::SocketAddr| TcpStream::connect(address).await.unwrap();
        let mut first = Wire::http1(tcp(one).await).await;
        assert_eq!(first.get("/livez").await.status, 200);
        // The limit holds for both public listeners together.
        let mut second = Wire::http1(tcp(two).await).await;
        let waiting = tokio::spawn(async move { second.get("/livez").await.status });
        assert_eq!(Wire::http1(tcp(admin).await).await.get("/metrics").await.status, 200);
        assert!(!waiting.is_finished());
        drop(first);
        assert_eq!(waiting.await.unwrap(), 200);
    });
}
