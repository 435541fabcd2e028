//! The deadline that the headers of a request give, for protocols without a parameter for it and for what stands between
//! client and server.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};

use crate::error::Error;

/// The client's own, in milliseconds.
pub(super) const TIMEOUT: &str = "x-request-timeout-ms";

/// What the document says of it.
pub(super) const ABOUT: &str = "How many milliseconds the client waits for the answer; 0 for the model's default.";

/// Headers that say how long somebody waits for the answer, in milliseconds. The second is set by Envoy, and so by the meshes
/// that are made of it: what comes later is thrown away there.
const HEADERS: [HeaderName; 2] = [HeaderName::from_static(TIMEOUT), HeaderName::from_static("x-envoy-expected-rq-timeout-ms")];

/// When the first of those who wait gives up, of a request that came at `arrived`; 0 means that it waits for ever.
///
/// # Errors
/// `InvalidArgument` for a value that is no whole number.
pub(super) fn of(headers: &HeaderMap, arrived: impl Fn() -> Instant) -> Result<Option<Instant>, Error> {
    let mut first = None;
    for (name, value) in HEADERS.iter().filter_map(|name| Some((name, headers.get(name)?))) {
        let millis = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
        let millis = millis.ok_or_else(|| Error::invalid(format!("{name} is {value:?} where a whole number of milliseconds is wanted")))?;
        let deadline = arrived().checked_add(Duration::from_millis(millis)).filter(|_| millis > 0);
        first = first.into_iter().chain(deadline).min();
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_first_to_give_up_counts() {
        let now = Instant::now();
        let millis = |values: [Option<&'static str>; 2]| {
            let pairs = HEADERS.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?)));
            let headers = pairs.map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
            of(&headers, || now).map(|deadline| deadline.map(|deadline| deadline.duration_since(now).as_millis()))
        };
        for (values, want) in [
            ([None, None], None),
            ([Some("250"), None], Some(250)),
            ([Some("250"), Some("15000")], Some(250)),
            ([Some("0"), Some("15000")], Some(15000)),
            ([Some("0"), None], None),
            ([Some("18446744073709551615"), None], Some(u128::from(u64::MAX))),
        ] {
            assert_eq!(millis(values).unwrap(), want, "{values:?}");
        }
        for wrong in ["", "-1", "1.5", "50ms", "soon"] {
            let error = millis([Some(wrong), None]).unwrap_err();
            assert!(error.message().starts_with("x-request-timeout-ms is"), "{error}");
        }
    }
}
