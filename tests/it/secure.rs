//! TLS: both protocols over it, client certificates, and certificates that are replaced while the server runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ndserve::api::{AppOptions, Change, ServerOptions, Surface, Tls, TlsFiles, open_tls};
use ndserve::config::Endpoint;

use crate::client::get;
use crate::models::{self, Folder};
use crate::server::Server;
use crate::wire::{Authority, Pair, Wire, run, tls};

const BODY: &str = r#"{"instances": [[1,2]]}"#;

/// PEM files in a folder of a test.
struct Files {
    folder: Folder,
    authority: Authority,
}

impl Files {
    fn new() -> Self {
        let files = Self { folder: models::only(&[]), authority: Authority::new() };
        files.write(&files.authority.sign("localhost", 2999));
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, pair: &Pair) {
        std::fs::write(self.path("cert.pem"), &pair.cert).unwrap();
        std::fs::write(self.path("key.pem"), &pair.key).unwrap();
    }

    fn open(&self, client_ca: Option<&Path>) -> Result<Tls, String> {
        open_tls(&TlsFiles { cert: self.path("cert.pem"), key: self.path("key.pem"), client_ca: client_ca.map(Path::to_owned) })
    }

    fn start(&self, client_ca: Option<&Path>) -> Server {
        let app = AppOptions { tls: Some(Arc::new(self.open(client_ca).unwrap())), ..AppOptions::default() };
        let any = "127.0.0.1:0".parse().unwrap();
        let endpoints = vec![(Endpoint::Https(any), Surface::Whole), (Endpoint::Http(any), Surface::Whole)];
        let options = ServerOptions { reload_interval: Duration::from_millis(10), ..ServerOptions::default() };
        Server::start_on(models::only(&["two-features"]), app, options, endpoints)
    }
}

#[test]
fn the_handshake_chooses_the_protocol() {
    let files = Files::new();
    let server = files.start(None);
    run(async {
        let mut bodies = Vec::new();
        for (offered, chosen) in [(&["h2", "http/1.1"][..], Some(&b"h2"[..])), (&["http/1.1"], Some(b"http/1.1")), (&[], None)] {
            let stream = tls(server.address, &files.authority, None, offered).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), chosen);
            let mut wire = if chosen == Some(b"h2") { Wire::http2(stream).await } else { Wire::http1(stream).await };
            let reply = wire.post("/predict", BODY).await;
            assert_eq!(reply.status, 200);
            bodies.push(reply.body);
            assert_eq!(wire.post("/predict", "{").await.status, 400);
        }
        assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]));
        assert!(tls(server.address, &Authority::new(), None, &[]).await.is_err(), "a client that knows another authority");
        assert!(tls(server.address, &files.authority, None, &["spdy/1"]).await.is_err(), "no protocol in common");
    });
    // What is no TLS gets no answer of HTTP, and hurts nobody.
    let plain = server.endpoints[1].address().unwrap();
    let mut confused = crate::client::Client::connect(server.address);
    confused.write(b"GET /livez HTTP/1.1\r\nhost: t\r\n\r\n");
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(confused.stream(), &mut rest);
    assert!(!rest.starts_with(b"HTTP/"));
    assert_eq!(get(plain, "/livez").status, 200);
    let metrics = get(plain, "/metrics").body;
    let failed = metrics.lines().find_map(|line| line.strip_prefix("ndserve_tls_handshakes_failed_total ")).unwrap();
    assert!(failed.parse::<f64>().unwrap() >= 2.0, "{failed}");
}

#[test]
fn with_an_authority_for_clients_only_its_certificates_come_in() {
    let files = Files::new();
    let clients = Authority::new();
    std::fs::write(files.path("ca.pem"), clients.pem()).unwrap();
    let server = files.start(Some(&files.path("ca.pem")));
    run(async {
        // In TLS 1.3 the client learns after its own part of the handshake that it is refused: by its first request.
        let asks = async |own: Option<&Pair>| {
            let Ok(stream) = tls(server.address, &files.authority, own, &["http/1.1"]).await else { return false };
            Wire::http1(stream).await.try_send(crate::wire::message("GET", "/livez", &[], "")).await.is_ok()
        };
        assert!(asks(Some(&clients.sign("client", 2999))).await);
        assert!(!asks(None).await, "no certificate");
        assert!(!asks(Some(&clients.sign("client", 2001))).await, "an expired one");
        assert!(!asks(Some(&Authority::new().sign("client", 2999))).await, "one of another authority");
        assert!(!asks(Some(&files.authority.sign("client", 2999))).await, "one of the server's authority");
    });
}

#[test]
fn a_new_certificate_is_used_without_closing_connections() {
    let files = Files::new();
    let server = files.start(None);
    run(async {
        let serial = async || {
            let stream = tls(server.address, &files.authority, None, &["h2"]).await.unwrap();
            stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
        };
        let mut kept = Wire::http2(tls(server.address, &files.authority, None, &["h2"]).await.unwrap()).await;
        assert_eq!(kept.get("/livez").await.status, 200);
        let before = serial().await;

        files.write(&files.authority.sign("localhost", 2998));
        while serial().await == before {
            tokio::task::yield_now().await;
        }
        let after = serial().await;
        assert_eq!(kept.get("/livez").await.status, 200, "the old connection goes on");

        let page = get(server.endpoints[1].address().unwrap(), "/metrics").body;
        // The end of 2998.
        assert!(page.contains("\nndserve_tls_certificate_expiry_time_seconds 32472057600\n"), "{page}");

        // Half of a pair, or nothing: the certificate in force stays.
        let plain = server.endpoints[1].address().unwrap();
        let refused = || {
            let metrics = get(plain, "/metrics").body;
            let count = metrics.lines().find_map(|line| line.strip_prefix("ndserve_reloads_failed_total ").map(str::to_owned));
            count.unwrap().parse::<u64>().unwrap()
        };
        let earlier = refused();
        std::fs::write(files.path("cert.pem"), files.authority.sign("localhost", 2997).cert).unwrap();
        while refused() == earlier {
            tokio::task::yield_now().await;
        }
        assert_eq!(serial().await, after);
    });
}

#[test]
fn files_that_do_not_fit_are_told_by_name() {
    let files = Files::new();
    assert!(files.open(None).is_ok());
    let pair = files.authority.sign("localhost", 2999);
    let other = files.authority.sign("localhost", 2999);
    for (cert, key, message) in [
        ("", &pair.key[..], "cert.pem: there is no certificate in PEM form"),
        (&pair.cert, "", "key.pem: there is no private key in PEM form"),
        (&pair.cert, &pair.cert, "key.pem: there is no private key in PEM form"),
        (&pair.cert, &other.key, "key.pem: this is not the key of the certificate in"),
        ("-----BEGIN CERTIFICATE-----\nnonsense!\n-----END CERTIFICATE-----\n", &pair.key, "cert.pem: "),
    ] {
        files.write(&Pair { cert: cert.to_owned(), key: key.to_owned() });
        let error = files.open(None).unwrap_err();
        assert!(error.contains(message), "{message}: {error}");
    }
    files.write(&pair);
    std::fs::write(files.path("ca.pem"), "").unwrap();
    assert!(files.open(Some(&files.path("ca.pem"))).unwrap_err().contains("ca.pem: there is no certificate in PEM form"));
    assert!(files.open(Some(&files.path("nothing.pem"))).unwrap_err().contains("nothing.pem: "));
    let tls = files.open(None).unwrap();
    std::fs::remove_file(files.path("key.pem")).unwrap();
    assert!(matches!(tls.poll(), Change::Refused(error) if error.contains("key.pem")));
}
