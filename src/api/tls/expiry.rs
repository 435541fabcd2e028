//! When a certificate ends: the one field of X.509 that nothing else here reads (RFC 5280, 4.1.2.5).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The tag of the version, which certificates of version 1 leave out.
const VERSION: u8 = 0xa0;

/// When the certificate ends; `None` if that cannot be read.
pub(super) fn expiry(certificate: &[u8]) -> Option<SystemTime> {
    let mut rest = certificate;
    let mut certificate = element(&mut rest, Some(SEQUENCE))?.1;
    let mut fields = element(&mut certificate, Some(SEQUENCE))?.1;
    if fields.first() == Some(&VERSION) {
        element(&mut fields, None)?;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        element(&mut fields, None)?;
    }
    let mut validity = element(&mut fields, Some(SEQUENCE))?.1;
    element(&mut validity, None)?;
    let (tag, text) = element(&mut validity, None)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// Takes one element off `rest`: its tag and its content.
fn element<'a>(rest: &mut &'a [u8], want: Option<u8>) -> Option<(u8, &'a [u8])> {
    let (&tag, after) = rest.split_first()?;
    let (&first, mut after) = after.split_first()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > size_of::<u32>() {
            return None;
        }
        let (bytes, content) = after.split_at_checked(count)?;
        length = bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
        after = content;
    }
    let (content, next) = after.split_at_checked(length)?;
    *rest = next;
    (want.is_none() || want == Some(tag)).then_some((tag, content))
}

/// `YYMMDDHHMMSSZ` until 2049, `YYYYMMDDHHMMSSZ` after it.
fn time(tag: u8, text: &str) -> Option<SystemTime> {
    let digits = text.strip_suffix('Z').filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))?;
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year: u64 = digits[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        (GENERALIZED_TIME, 14) => (digits[..4].parse().ok()?, &digits[4..]),
        _ => return None,
    };
    let part = |at: usize| rest[at..at + 2].parse::<u64>().ok();
    let (month, day, hour, minute, second) = (part(0)?, part(2)?, part(4)?, part(6)?, part(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    /// Days from March of the year 0 until 1970.
    const EPOCH: u64 = 719_468;
    Some(UNIX_EPOCH + Duration::from_secs((days.checked_sub(EPOCH)? * 24 + hour) * 3600 + minute * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(tag: u8, text: &str) -> Option<u64> {
        time(tag, text).map(|time| time.duration_since(UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn times_are_read() {
        for (tag, text, want) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "240229235959Z", Some(1_709_251_199)),
            (UTC_TIME, "240301000000Z", Some(1_709_251_200)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "21000301000000Z", Some(4_107_542_400)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "700101000000", None),
            (UTC_TIME, "701301000000Z", None),
            (GENERALIZED_TIME, "19691231235959Z", None),
            (2, "700101000000Z", None),
        ] {
            assert_eq!(seconds(tag, text), want, "{text}");
        }
    }

    #[test]
    fn a_certificate_is_read_and_no_part_of_it_panics() {
        for (year, want) in [(2031, 1_956_441_600), (2999, 32_503_593_600)] {
            let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 12, 31);
            let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            let found = expiry(certificate.der()).unwrap();
            assert_eq!(found.duration_since(UNIX_EPOCH).unwrap().as_secs(), want);
            for end in 0..certificate.der().len() {
                assert_eq!(expiry(&certificate.der()[..end]), None);
            }
        }
        assert_eq!(expiry(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(expiry(&[0x30, 0x80]), None);
    }
}
