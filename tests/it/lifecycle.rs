//! Connections, overload and shutdown.

use std::time::Duration;

use ndserve::api::{Limits, ServerOptions, Stats};

use crate::client::{Client, get, post, request};
use crate::models;
use crate::server::{Server, strict};

const BODY: &str = r#"{"instances": [[1,2]]}"#;

/// A request whose body does not come yet.
fn begin(client: &mut Client) {
    let head = format!("POST /predict HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n", BODY.len());
    client.write(head.as_bytes());
    // The server asks for the body once the request is under way.
    let mut line = [0; 25];
    std::io::Read::read_exact(client.stream(), &mut line).unwrap();
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
}

fn only_two_features(limits: Limits, options: ServerOptions) -> Server {
    Server::start(models::only(&["two-features"]), limits, options)
}

#[test]
fn a_connection_serves_many_requests_also_ahead_of_their_answers() {
    let server = strict();
    let mut client = Client::connect(server.address);
    let one = request("POST", "/predict", &[], BODY);
    for _ in 0..3 {
        assert_eq!(client.send(&one).status, 200);
    }
    client.write(&one.repeat(5));
    for _ in 0..5 {
        assert_eq!(client.read().unwrap().status, 200);
    }
    // A refused request whose body was read leaves the connection open.
    assert_eq!(client.send(&request("POST", "/predict", &[], "{")).status, 400);
    assert_eq!(client.send(&one).status, 200);
}

#[test]
fn shutdown_answers_what_is_under_way_and_then_closes() {
    let mut server = only_two_features(Limits::default(), ServerOptions::default());
    let (mut idle, mut busy) = (Client::connect(server.address), Client::connect(server.address));
    assert_eq!(idle.send(&request("GET", "/livez", &[], "")).status, 200);
    begin(&mut busy);
    server.begin_stop();
    assert!(idle.closed(), "an idle connection is closed");
    busy.write(BODY.as_bytes());
    assert_eq!(busy.read().unwrap().status, 200);
    assert!(busy.closed(), "a connection is closed after its last answer");
    assert_eq!(server.stop(), Stats { accepted: 2, answered: 2, dropped: 0 });
}

#[test]
fn a_draining_server_answers_and_asks_the_client_to_connect_anew() {
    let server = strict();
    let mut client = Client::connect(server.address);
    let one = request("POST", "/predict", &[], BODY);
    assert_eq!(client.send(&one).header("connection"), None);
    server.repository.start_draining();
    let answer = client.send(&one);
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(client.closed());
    assert_eq!(get(server.address, "/readyz").status, 503);
    assert_eq!(post(server.address, "/predict", BODY).status, 200, "whoever comes is still served");
}

#[test]
fn what_is_not_finished_by_the_drain_timeout_is_dropped_and_counted() {
    let options = ServerOptions { drain_timeout: Duration::from_millis(50), ..ServerOptions::default() };
    let server = only_two_features(Limits::default(), options);
    let mut busy = Client::connect(server.address);
    begin(&mut busy);
    assert_eq!(server.stop(), Stats { accepted: 1, answered: 0, dropped: 1 });
    assert!(busy.closed());
}

#[test]
fn beyond_the_limit_requests_are_refused_at_once_and_probes_are_not() {
    let server = only_two_features(Limits { max_in_flight: 1, ..Limits::default() }, ServerOptions::default());
    let mut busy = Client::connect(server.address);
    begin(&mut busy);
    let refused = post(server.address, "/predict", BODY);
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert!(refused.error().contains("has 1 requests under way, which is its limit"), "{refused:?}");
    assert_eq!(get(server.address, "/readyz").status, 200);
    busy.write(BODY.as_bytes());
    assert_eq!(busy.read().unwrap().status, 200);
    assert_eq!(post(server.address, "/predict", BODY).status, 200);
}

#[test]
fn a_client_that_goes_away_is_counted() {
    let server = only_two_features(Limits::default(), ServerOptions::default());
    let mut gone = Client::connect(server.address);
    begin(&mut gone);
    drop(gone);
    // The next requests are answered, and by the end the lost one is known.
    assert_eq!(post(server.address, "/predict", BODY).status, 200);
    let stats = server.stop();
    assert_eq!((stats.accepted, stats.answered + stats.dropped), (2, 2), "{stats:?}");
}

#[test]
fn a_connection_without_a_request_is_closed_in_time() {
    let options = ServerOptions { header_timeout: Duration::from_millis(50), ..ServerOptions::default() };
    let server = only_two_features(Limits::default(), options);
    let mut silent = Client::connect(server.address);
    silent.write(b"POST /predict HTTP/1.1\r\nhost");
    assert!(silent.closed());
    assert_eq!(post(server.address, "/predict", BODY).status, 200);
}

#[test]
fn connections_beyond_the_limit_wait_for_one_to_close() {
    let server = only_two_features(Limits::default(), ServerOptions { max_connections: 1, ..ServerOptions::default() });
    let mut first = Client::connect(server.address);
    assert_eq!(first.send(&request("GET", "/livez", &[], "")).status, 200);
    let mut second = Client::connect(server.address);
    second.write(&request("GET", "/livez", &[], ""));
    drop(first);
    assert_eq!(second.read().unwrap().status, 200);
}
