//! Where a server listens: `address:port`, `http://address:port`, `https://address:port` or `unix:/path`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::value::Value;

/// One place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// HTTP/1.1 and HTTP/2, readable on the way.
    Http(SocketAddr),
    /// The same over TLS.
    Https(SocketAddr),
    /// The same over a Unix-domain socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// Whether only this machine reaches it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Http(address) | Self::Https(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// The address, if it has one.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Http(address) | Self::Https(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(format!("`{text}` has no path")) } else { Ok(Self::Unix(path.into())) };
        }
        let (make, address): (fn(SocketAddr) -> Self, _) = match text.split_once("://") {
            None => (Self::Http, text),
            Some(("http", address)) => (Self::Http, address),
            Some(("https", address)) => (Self::Https, address),
            Some((scheme, _)) => return Err(format!("`{text}`: {scheme}:// cannot be listened at; http://, https:// and unix: can")),
        };
        SocketAddr::parse(address.strip_suffix('/').unwrap_or(address)).map(make)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Https(address) => write!(f, "https://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Several places to listen at: separated by commas in a flag or variable, an array or one text in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints(pub Vec<Endpoint>);

impl Value for Endpoints {
    const NAME: &'static str = "ENDPOINT,…";

    fn parse(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(Endpoint::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl<'de> serde::Deserialize<'de> for Endpoints {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum OneOrMany {
            One(String),
            Many(Vec<String>),
        }
        let text = match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(text) => text,
            OneOrMany::Many(texts) => texts.join(","),
        };
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written() {
        let parse = |text: &str| Endpoints::parse(text).map(|list| list.0.iter().map(Endpoint::to_string).collect::<Vec<_>>());
        assert_eq!(parse("127.0.0.1:80").unwrap(), ["http://127.0.0.1:80"]);
        let all = ["http://[::]:0", "https://0.0.0.0:8443", "unix:/run/a.sock"];
        assert_eq!(parse(&all.join(", ")).unwrap(), all);
        assert_eq!(parse("").unwrap(), Vec::<String>::new());
        for (wrong, message) in [
            ("everywhere", "`everywhere` is not an address with a port"),
            ("127.0.0.1", "is not an address with a port"),
            ("ftp://127.0.0.1:1", "ftp:// cannot be listened at"),
            ("unix:", "has no path"),
            ("http://localhost:80", "`localhost:80` is not an address with a port"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(message), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_only_this_machine_reaches_is_known() {
        let local = |text: &str| Endpoints::parse(text).unwrap().0[0].is_local();
        assert!(local("127.0.0.1:1") && local("[::1]:1") && local("unix:a") && local("https://127.1.2.3:4"));
        assert!(!local("0.0.0.0:1") && !local("[::]:1") && !local("10.0.0.1:1"));
    }
}
