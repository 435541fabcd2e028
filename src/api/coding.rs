//! Content codings: gzip and deflate, of requests and of answers.
//!
//! `deflate` is the zlib format, as HTTP defines it (RFC 9110, 8.4.1.2), not a bare deflate stream.

use std::io::{Read, Write};

use axum::body::Bytes;
use flate2::bufread::MultiGzDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compression, Decompress, FlushDecompress, Status};
use http::{HeaderMap, header};

use crate::error::{Error, Kind};

/// What a request's body may be encoded as, for `Accept-Encoding` on a refusal.
pub(super) const READ: &str = "gzip, deflate, identity";

/// A way to compress a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
}

impl Coding {
    /// The name in `Content-Encoding`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    fn named(name: &str) -> Option<Self> {
        match () {
            () if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") => Some(Self::Gzip),
            () if name.eq_ignore_ascii_case("deflate") => Some(Self::Deflate),
            () => None,
        }
    }

    /// How the body of a request is compressed; `None` if it is not.
    ///
    /// # Errors
    /// `UnsupportedEncoding` if in another way, or in several.
    pub(super) fn of_body(headers: &HeaderMap) -> Result<Option<Self>, Error> {
        let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(None) };
        let unsupported = || {
            let message = format!("Content-Encoding {value:?} is not supported; {READ} are");
            Error::new(Kind::UnsupportedEncoding, message)
        };
        match value.to_str().map_err(|_| unsupported())?.trim() {
            name if name.is_empty() || name.eq_ignore_ascii_case("identity") => Ok(None),
            name => Self::named(name).map(Some).ok_or_else(unsupported),
        }
    }

    /// How the client would have the answer compressed; `None` if not at all, or not in a way that the server has.
    pub(super) fn accepted(headers: &HeaderMap) -> Option<Self> {
        let mut best: Option<(Self, f32)> = None;
        let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        for item in values.flat_map(|value| value.split(',')) {
            let (name, weight) = item.split_once(';').unwrap_or((item, ""));
            let Some(coding) = Self::named(name.trim()) else { continue };
            let weight = weight.trim().strip_prefix("q=").map_or(1.0, |weight| weight.trim().parse().unwrap_or(0.0));
            // Of equals the first one.
            if weight > best.map_or(0.0, |(_, best)| best) {
                best = Some((coding, weight));
            }
        }
        best.map(|(coding, _)| coding)
    }

    /// The body that was compressed to `bytes`.
    ///
    /// # Errors
    /// `TooLarge` if it is longer than `max_bytes`, which is found out before more memory is taken; `InvalidArgument` if
    /// `bytes` are not what the coding gives.
    pub(super) fn decompress(self, bytes: &[u8], max_bytes: usize) -> Result<Bytes, Error> {
        let body = match self {
            Self::Gzip => gunzip(bytes, max_bytes),
            Self::Deflate => inflate(bytes, max_bytes),
        };
        let body = body.map_err(|reason| Error::invalid(format!("the body is no valid {} stream: {reason}", self.name())))?;
        if body.len() > max_bytes {
            return Err(Error::new(Kind::TooLarge, format!("the decompressed body has more bytes than the limit of {max_bytes}")));
        }
        Ok(body.into())
    }

    /// The pieces of a body compressed together.
    pub(super) fn compress(self, pieces: &[Bytes]) -> Bytes {
        // Level 1: tensors hardly get smaller with more work, and the client waits.
        let (level, all) = (Compression::fast(), Vec::with_capacity(pieces.iter().map(Bytes::len).sum::<usize>() / 2));
        let compressed = match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(all, level);
                pieces.iter().try_for_each(|piece| encoder.write_all(piece)).and_then(|()| encoder.finish())
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(all, level);
                pieces.iter().try_for_each(|piece| encoder.write_all(piece)).and_then(|()| encoder.finish())
            }
        };
        compressed.expect("memory takes what is written").into()
    }
}

/// At most one byte more than `max_bytes`.
fn gunzip(bytes: &[u8], max_bytes: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    // Several streams in a row are one body; anything else behind the first is an error of its reader.
    let read = MultiGzDecoder::new(bytes).take(max_bytes as u64 + 1).read_to_end(&mut body);
    read.map(|_| body).map_err(|error| error.to_string())
}

/// At most some bytes more than `max_bytes`. flate2's reader takes a stream that is cut for one that has ended.
fn inflate(bytes: &[u8], max_bytes: usize) -> Result<Vec<u8>, String> {
    const GROWTH_MIN: usize = 16 << 10;
    let mut stream = Decompress::new(true);
    let mut body = Vec::new();
    while body.len() <= max_bytes {
        if body.len() == body.capacity() {
            body.reserve(body.len().max(GROWTH_MIN).min(max_bytes + 1 - body.len()));
        }
        let (read, written) = (stream.total_in() as usize, body.len());
        let status = stream.decompress_vec(&bytes[read..], &mut body, FlushDecompress::None).map_err(|error| error.to_string())?;
        let read_now = stream.total_in() as usize;
        match status {
            Status::StreamEnd if read_now == bytes.len() => break,
            Status::StreamEnd => return Err(format!("it ends at byte {read_now}, the body at {}", bytes.len())),
            _ if read_now == read && body.len() == written && body.len() < body.capacity() => return Err("it is cut".to_owned()),
            _ => {}
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const BOTH: [Coding; 2] = [Coding::Gzip, Coding::Deflate];

    fn header(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn what_is_compressed_comes_back() {
        for coding in BOTH {
            let pieces = [Bytes::from_static(b"one "), Bytes::new(), Bytes::from(vec![7; 100_000])];
            let compressed = coding.compress(&pieces);
            assert!(compressed.len() < 10_000);
            assert_eq!(coding.decompress(&compressed, 100_004).unwrap(), pieces.concat());
            let message = |bytes: &[u8], max| coding.decompress(bytes, max).map_err(|error| (error.kind(), error.message().to_owned()));
            assert_eq!(message(&compressed, 100_003).unwrap_err().0, Kind::TooLarge);
            let (cut, more) = (&compressed[..compressed.len() - 1], [&compressed[..], b"more"].concat());
            for bytes in [cut, &more, b"{}", b""] {
                let (kind, text) = message(bytes, 1 << 20).unwrap_err();
                let want = format!("the body is no valid {} stream: ", coding.name());
                assert!(kind == Kind::InvalidArgument && text.starts_with(&want), "{coding:?}: {text}");
            }
        }
        let bare = {
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(b"{}").unwrap();
            encoder.finish().unwrap()
        };
        assert!(Coding::Deflate.decompress(&bare, 10).is_err());
    }

    #[test]
    fn a_bomb_takes_no_more_memory_than_the_limit() {
        let bomb = Coding::Gzip.compress(&[Bytes::from(vec![0; 50 << 20])]);
        assert_eq!(Coding::Gzip.decompress(&bomb, 1000).unwrap_err().kind(), Kind::TooLarge);
    }

    #[test]
    fn the_clients_wish_is_read() {
        let accepted = |value| Coding::accepted(&header(header::ACCEPT_ENCODING, value));
        for (value, want) in [
            ("gzip", Some(Coding::Gzip)),
            ("deflate, gzip", Some(Coding::Deflate)),
            ("deflate;q=0.5, GZIP;q=0.8", Some(Coding::Gzip)),
            ("gzip;q=0", None),
            ("br, zstd", None),
            ("identity", None),
            ("gzip;q=x", None),
        ] {
            assert_eq!(accepted(value), want, "{value}");
        }
        let of_body = |value| Coding::of_body(&header(header::CONTENT_ENCODING, value)).map_err(|error| error.kind());
        assert_eq!(of_body("gzip"), Ok(Some(Coding::Gzip)));
        assert_eq!(of_body("Deflate"), Ok(Some(Coding::Deflate)));
        assert_eq!(of_body("identity"), Ok(None));
        assert_eq!(of_body("br"), Err(Kind::UnsupportedEncoding));
        assert_eq!(of_body("gzip, deflate"), Err(Kind::UnsupportedEncoding));
    }
}
