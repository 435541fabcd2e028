//! HTTP/2 in clear text, on the port of HTTP/1.1.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ndserve::api::{Limits, ServerOptions};
use tokio::net::TcpStream;

