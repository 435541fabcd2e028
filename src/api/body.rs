//! Reading a request's body: whole, under a size limit and a time limit, without copying one that came in one piece.

use std::time::Duration;

use axum::body::{Body, Bytes};
use bytes::BytesMut;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::Body as _;

use crate::error::{Error, Kind};

/// Reads the body.
///
/// # Errors
/// - `TooLarge`: it is longer than `max_bytes`, announced or counted;
/// - `Timeout`: it did not arrive within `timeout`;
/// - `InvalidArgument`: the client closed the connection first;
/// - `Unsupported`: it is compressed.
pub(super) async fn read(headers: &HeaderMap, body: Body, max_bytes: usize, timeout: Duration) -> Result<Bytes, Error> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        return Err(Error::new(Kind::Unsupported, format!("Content-Encoding {encoding:?} is not supported; send the body uncompressed")));
    }
    let announced = body.size_hint().lower();
    if announced > max_bytes as u64 {
        return Err(Error::new(Kind::TooLarge, format!("the body has {announced} bytes, the limit is {max_bytes}")));
    }
    match tokio::time::timeout(timeout, collect(body, max_bytes)).await {
        Ok(bytes) => bytes,
        Err(_) => Err(Error::new(Kind::Timeout, format!("the body did not arrive within {timeout:?}"))),
    }
}

async fn collect(mut body: Body, max_bytes: usize) -> Result<Bytes, Error> {
    let Some(first) = data(&mut body).await? else { return Ok(Bytes::new()) };
    let mut all = match first.len() {
        len if len > max_bytes => return Err(too_large(max_bytes)),
        _ if body.is_end_stream() => return Ok(first),
        _ => BytesMut::from(first),
    };
    // Only what came is allocated at first: a client must not reserve memory by announcing a length.
    while let Some(chunk) = data(&mut body).await? {
        if all.len() + chunk.len() > max_bytes {
            return Err(too_large(max_bytes));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

/// The next piece of data; trailers are skipped.
async fn data(body: &mut Body) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::invalid(format!("the body ended too early or is malformed: {error}")))?;
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

fn too_large(max_bytes: usize) -> Error {
    Error::new(Kind::TooLarge, format!("the body has more bytes than the limit of {max_bytes}"))
}
