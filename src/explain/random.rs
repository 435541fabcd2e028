//! Random orders that are the same on every machine: SplitMix64 by Steele, Lea and Flood.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// The stream of a seed and two numbers.
    pub(super) fn new(seed: u64, a: usize, b: usize) -> Self {
        Self(mixed(mixed(mixed(seed).wrapping_add(a as u64)).wrapping_add(b as u64)))
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// A number below `n`, which is not 0; without bias: numbers beyond the last multiple are drawn again.
    fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        let limit = u64::MAX - u64::MAX % n;
        loop {
            let bits = self.bits();
            if bits < limit {
                return (bits % n) as usize;
            }
        }
    }

    /// The numbers below `n` in an order of which each is equally likely (Fisher and Yates).
    pub(super) fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_repeat_differ_and_are_spread_evenly() {
        assert_eq!(Random::new(1, 2, 3).order(20), Random::new(1, 2, 3).order(20));
        assert_ne!(Random::new(1, 2, 3).order(20), Random::new(1, 3, 2).order(20));
        let mut counts = [[0; 4]; 4];
        for i in 0..4000 {
            Random::new(7, i, 0).order(4).into_iter().enumerate().for_each(|(at, item)| counts[at][item] += 1);
        }
        assert!(counts.iter().flatten().all(|count| (880..1120).contains(count)), "{counts:?}");
    }
}
