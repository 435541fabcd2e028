//! The identity of a span and its way through headers: W3C Trace Context, levels 1 and 2.

use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A span among all spans of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace; never all zeros.
    pub trace: [u8; 16],
    /// The span; never all zeros.
    pub span: [u8; 8],
    /// Whether whoever began the trace wants its spans kept.
    pub sampled: bool,
}

impl Context {
    /// The first span of a new trace.
    pub fn root(sampled: bool) -> Self {
        let mut trace = [0; 16];
        trace[..8].copy_from_slice(&random().to_be_bytes());
        trace[8..].copy_from_slice(&random().to_be_bytes());
        Self { trace, span: random().to_be_bytes(), sampled }
    }

    /// Another span of the same trace.
    pub fn child(&self) -> Self {
        Self { span: random().to_be_bytes(), ..*self }
    }

    /// Reads a `traceparent` header; `None` if it is not valid, which the standard treats as none.
    pub fn parse(header: &[u8]) -> Option<Self> {
        const LEN: usize = 55;
        let (head, rest) = header.split_at_checked(LEN)?;
        let (version, trace, span, flags) = (&head[..2], &head[3..35], &head[36..52], &head[53..]);
        if [2, 35, 52].iter().any(|&at| head[at] != b'-') {
            return None;
        }
        let [version] = unhex::<1>(version)?;
        // What later versions add stands behind a dash; 255 is no version.
        let known = match version {
            0 => rest.is_empty(),
            255 => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        let (trace, span, [flags]) = (unhex::<16>(trace)?, unhex::<8>(span)?, unhex::<1>(flags)?);
        (known && trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span, sampled: flags & 1 == 1 })
    }

    /// The value of a `traceparent` header.
    pub fn header(&self) -> String {
        format!("00-{}-{}-0{}", hex(&self.trace), hex(&self.span), u8::from(self.sampled))
    }

    /// The trace's id as it is searched for.
    pub fn trace_id(&self) -> String {
        hex(&self.trace)
    }

    /// A number that is the same for every server that sees the trace, for sampling.
    pub(super) fn lot(&self) -> u64 {
        // Level 2 of the standard makes the last 7 bytes the random ones.
        u64::from_be_bytes(self.trace[8..].try_into().expect("eight bytes")) & ((1 << 56) - 1)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Lower case only, as the standard has it.
fn unhex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// A number that is unlikely to come twice anywhere, and never 0. Ids need not be secret.
fn random() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // The system's random numbers seed it: two servers that start at once go different ways.
    static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    // SplitMix64: its step visits every number once, its mixer is a bijection.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = SEED.wrapping_add(NEXT.fetch_add(STEP, Relaxed));
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state ^ (state >> 31)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the standard.
    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_is_read_and_written() {
        let context = Context::parse(EXAMPLE.as_bytes()).unwrap();
        assert_eq!(context.header(), EXAMPLE);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let child = context.child();
        assert_eq!((child.trace, child.sampled), (context.trace, true));
        assert_ne!(child.span, context.span);
        assert!(!Context::parse(EXAMPLE.replace("-01", "-02").as_bytes()).unwrap().sampled);
        assert!(Context::parse(format!("01{}-new", &EXAMPLE[2..]).as_bytes()).is_some(), "a later version may go on");
    }

    #[test]
    fn what_is_not_valid_is_none() {
        let zeros = |from: usize, to: usize| format!("{}{}{}", &EXAMPLE[..from], "0".repeat(to - from), &EXAMPLE[to..]);
        for wrong in [
            String::new(),
            EXAMPLE[..54].to_owned(),
            format!("{EXAMPLE}-more"),
            format!("ff{}", &EXAMPLE[2..]),
            format!("01{}more", &EXAMPLE[2..]),
            EXAMPLE.to_uppercase(),
            EXAMPLE.replace('-', "_"),
            zeros(3, 35),
            zeros(36, 52),
        ] {
            assert_eq!(Context::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn new_ids_are_new() {
        let mut ids: Vec<_> = (0..1000).map(|_| Context::root(true).span).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 1000);
    }
}
