//! `ndserve healthcheck`: is a server ready? A container's health check, since its image has neither shell nor curl.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::Outcome;
use crate::config::{Address, Endpoint, Flags, Settings};

/// Ask a server whether it is ready; exit with 0 if it is.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to ask [default: /readyz at the address that the server listens on]
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    flags: Flags<Address>,
}

/// Time for everything: name, connection, answer. Docker's default interval is ten times as long.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Enough of an answer to show why a server is not ready.
const ANSWER_MAX: u64 = 16 << 10;

pub(super) fn command(args: Args) -> Outcome {
    let url = match args.url {
        Some(url) => url,
        None => format!("http://{}/readyz", own_address(&args.flags.settings()?)?),
    };
    let (status, body) = get(&url).map_err(|error| format!("{url}: {error}"))?;
    if status == 200 {
        return Ok(ExitCode::SUCCESS);
    }
    Err(format!("{url}: {status} {}", body.trim()).into())
}

/// An address of the server's own that can be asked without TLS; an admin listener has probes too.
fn own_address(settings: &Settings) -> Result<SocketAddr, String> {
    let endpoints = settings.listen.0.iter().chain(&settings.admin_listen.0);
    let plain = endpoints.clone().find_map(|endpoint| match endpoint {
        Endpoint::Http(address) => Some(reachable(*address)),
        Endpoint::Https(_) | Endpoint::Unix(_) => None,
    });
    plain.ok_or_else(|| {
        let all: Vec<String> = endpoints.map(Endpoint::to_string).collect();
        format!("{}: only http:// can be asked; add one on 127.0.0.1 to `listen` or `admin-listen`", all.join(", "))
    })
}

/// The address by which this machine reaches a server that listens on `address`.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    address
}

/// Host with port, and path, of an `http://` address.
pub(super) fn split(url: &str) -> Result<(String, &str), String> {
    let rest = url.strip_prefix("http://").ok_or("only http:// can be asked")?;
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    if host.is_empty() || url.contains(|c: char| c.is_control() || c == ' ') {
        return Err("this is not the address of a server".to_owned());
    }
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok((if has_port { host.to_owned() } else { format!("{host}:80") }, path))
}

/// Status and body of the answer to a GET.
fn get(url: &str) -> Result<(u16, String), String> {
    let (host, path) = split(url)?;
    let end = Instant::now() + TIMEOUT;
    let text = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => format!("no answer within {TIMEOUT:?}"),
        _ => error.to_string(),
    };
    // A timeout of zero would mean none.
    let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut last = "the name has no address".to_owned();
    for address in host.to_socket_addrs().map_err(text)? {
        let mut stream = match TcpStream::connect_timeout(&address, left()) {
            Ok(stream) => stream,
            Err(error) => {
                last = text(error);
                continue;
            }
        };
        stream.set_write_timeout(Some(left())).map_err(text)?;
        // One write: a request in pieces may meet a server that answers and closes after the first.
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(text)?;
        let mut answer = Vec::new();
        let mut limited = stream.try_clone().map_err(text)?.take(ANSWER_MAX);
        let mut chunk = [0; 1024];
        loop {
            stream.set_read_timeout(Some(left())).map_err(text)?;
            match limited.read(&mut chunk).map_err(text)? {
                0 => break,
                n => answer.extend_from_slice(&chunk[..n]),
            }
            if Instant::now() >= end {
                return Err(format!("no whole answer within {TIMEOUT:?}"));
            }
        }
        return parse(&String::from_utf8_lossy(&answer)).ok_or_else(|| "the answer is not HTTP".to_owned());
    }
    Err(last)
}

/// Status and body of an answer; `None` if it is not HTTP.
pub(super) fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.get(..3)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(split("http://a:1/readyz"), Ok(("a:1".into(), "/readyz")));
        assert_eq!(split("http://a"), Ok(("a:80".into(), "/")));
        assert_eq!(split("http://[::1]/x"), Ok(("[::1]:80".into(), "/x")));
        assert!(split("https://a/").is_err() && split("http:///x").is_err() && split("http://a/\r\nx").is_err());
        assert_eq!(reachable("0.0.0.0:9".parse().unwrap()).to_string(), "127.0.0.1:9");
        assert_eq!(reachable("[::]:9".parse().unwrap()).to_string(), "[::1]:9");
    }

    #[test]
    fn the_status_and_the_reason_are_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 256];
            let n = stream.read(&mut request).unwrap();
            assert!(request[..n].starts_with(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:"));
            stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n{\"error\": \"loading\"}").unwrap();
        });
        assert_eq!(get(&url), Ok((503, "{\"error\": \"loading\"}".to_owned())));
        server.join().unwrap();
    }
}
