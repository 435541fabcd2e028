//! A token bucket: how often something may happen, with time as an argument.

use std::time::{Duration, Instant};

/// How often: on average, and at most at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    /// Tokens that come per second; more than 0.
    pub(super) per_second: f64,
    /// Most tokens that wait to be used; at least 1.
    pub(super) burst: f64,
}

/// Tokens at one moment. A new bucket is full.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: rate.burst, at: now }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// There is none: how long until there is one, if nobody else takes it.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let Rate { per_second, burst } = self.rate;
        // Callers read the clock before they lock: an earlier moment may come later.
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * per_second).min(burst);
        self.at = self.at.max(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        // A rate may be so low that the wait is no Duration.
        Err(Duration::try_from_secs_f64((1.0 - self.tokens) / per_second).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 10.0, burst: 3.0 }, start);
        for _ in 0..3 {
            assert_eq!(bucket.take(start), Ok(()));
        }
        assert_eq!(bucket.take(start), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(start + Duration::from_millis(60)).unwrap_err().as_millis(), 40);
        assert_eq!(bucket.take(start + Duration::from_millis(101)), Ok(()));
        let later = start + Duration::from_secs(3600);
        let passed = (0..10).filter(|_| bucket.take(later).is_ok()).count();
        assert_eq!(passed, 3, "what is not used is not saved beyond the burst");
    }

    #[test]
    fn a_clock_that_was_read_earlier_gives_nothing_twice() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 1.0, burst: 1.0 }, start);
        assert_eq!(bucket.take(start + Duration::from_secs(1)), Ok(()));
        assert!(bucket.take(start).is_err());
        assert!(bucket.take(start + Duration::from_millis(1500)).is_err());
        let mut slow = Bucket::new(Rate { per_second: f64::MIN_POSITIVE, burst: 1.0 }, start);
        assert_eq!((slow.take(start), slow.take(start)), (Ok(()), Err(Duration::MAX)));
    }
}
