//! Whether a pass that has company is split over the engine's threads.
//!
//! A pass that runs alone has the processors to itself, and splitting its operators can only make it shorter. Beside other passes
//! it takes processors from them, waits for those that help it and are at times held up, and may be shorter on one thread. Which it is depends on
//! the model, the size of the batch and the load, so it is measured: both ways are timed for each class of input and size of batch, the
//! better one is taken, and the other one is tried now and then. That is what is best for the pass. Where there is one for each thread, and
//! requests wait behind them, none is split: each would be shorter only by the time that it takes from the others.

use std::collections::HashMap;
use std::time::Duration;

/// Weight of a new pass against what was known.
const WEIGHT: f64 = 0.125;

/// Passes until the worse way is tried again: at first, and at most. The wait doubles each time that it was worse again: trying a
/// long pass on one thread costs its client twice the time.
const RETRY_FIRST: u32 = 16;
const RETRY_MOST: u32 = 512;

/// Classes and sizes of which times are kept; of further ones passes are split.
const KEPT_MAX: usize = 256;

/// How a pass runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Operators with enough work are split over the threads.
    Split,
    /// All of it on one thread.
    Whole,
}

impl Way {
    fn other(self) -> Self {
        match self {
            Self::Split => Self::Whole,
            Self::Whole => Self::Split,
        }
    }
}

/// What is known of one size.
#[derive(Debug)]
struct Known {
    /// Seconds for each row, split and whole.
    row_seconds: [Option<f64>; 2],
    /// Passes until the worse way is tried, and how many these are.
    left: u32,
    retry: u32,
}

impl Known {
    fn better(&self) -> Way {
        match self.row_seconds {
            [Some(split), Some(whole)] if whole < split => Way::Whole,
            _ => Way::Split,
        }
    }
}

/// The times of passes that had company.
#[derive(Debug, Default)]
pub(super) struct Splitting {
    /// By class of input and the power of two that has room for the rows.
    known: HashMap<(u64, u32), Known>,
}

impl Splitting {
    /// How the next pass of `rows` is to run.
    pub(super) fn choose(&mut self, class: u64, rows: usize) -> Way {
        if self.known.len() >= KEPT_MAX && !self.known.contains_key(&size(class, rows)) {
            return Way::Split;
        }
        let first = || Known { row_seconds: [None; 2], left: RETRY_FIRST, retry: RETRY_FIRST };
        let known = self.known.entry(size(class, rows)).or_insert_with(first);
        if known.left > 0 {
            known.left -= 1;
            return known.better();
        }
        known.left = known.retry;
        known.better().other()
    }

    /// Takes into account what a pass took that ran as [`Splitting::choose`] said.
    pub(super) fn observe(&mut self, class: u64, rows: usize, way: Way, time: Duration) {
        let Some(known) = self.known.get_mut(&size(class, rows)) else { return };
        let (better, now) = (known.better(), time.as_secs_f64() / rows.max(1) as f64);
        let seconds = &mut known.row_seconds[way as usize];
        // What is known of the way that is not taken is old: the load it was seen under may be gone.
        *seconds = Some(seconds.filter(|_| way == better).map_or(now, |seconds| seconds + WEIGHT * (now - seconds)));
        if known.better() != better {
            known.retry = RETRY_FIRST;
            known.left = RETRY_FIRST;
        } else if way != better {
            known.retry = (known.retry * 2).min(RETRY_MOST);
            known.left = known.retry;
        }
    }
}

fn size(class: u64, rows: usize) -> (u64, u32) {
    (class, rows.next_power_of_two().trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// Runs passes of which `times` tells the microseconds, split and whole; how many ran whole.
    fn run(splitting: &mut Splitting, rows: usize, passes: usize, times: [u32; 2]) -> usize {
        let ways = (0..passes).map(|_| {
            let way = splitting.choose(7, rows);
            splitting.observe(7, rows, way, times[way as usize] * US);
            way
        });
        ways.filter(|&way| way == Way::Whole).count()
    }

    #[test]
    fn the_better_way_is_taken_and_the_other_one_tried_ever_more_rarely() {
        let mut splitting = Splitting::default();
        assert_eq!(run(&mut splitting, 64, 10_000, [400, 700]), 23, "after 16, 32 … 512 passes, and every 512 then");
        let mut splitting = Splitting::default();
        assert!(run(&mut splitting, 64, 10_000, [700, 400]) > 9_900);
    }

    #[test]
    fn when_the_load_changes_so_does_the_way() {
        let mut splitting = Splitting::default();
        run(&mut splitting, 64, 1000, [400, 700]);
        let whole = run(&mut splitting, 64, 1000, [2000, 900]);
        assert!(whole > 900, "split passes have become longer than whole ones ever were: {whole}");
        assert!(run(&mut splitting, 64, 2000, [400, 700]) < 1100, "the worse way is tried again within 512 passes");
    }

    #[test]
    fn each_size_has_its_own_times() {
        let mut splitting = Splitting::default();
        run(&mut splitting, 64, 100, [700, 400]);
        assert_eq!((splitting.choose(7, 40), splitting.choose(7, 32), splitting.choose(8, 64)), (Way::Whole, Way::Split, Way::Split));
        for class in 0..2 * KEPT_MAX as u64 {
            splitting.choose(class, 1);
        }
        assert_eq!(splitting.known.len(), KEPT_MAX);
    }
}
