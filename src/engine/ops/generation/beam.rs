//! Beams: the best sequences so far, and those that have ended.

/// Sequences of one row of the batch that have ended, the best first.
#[derive(Debug)]
struct Ended {
    kept: Vec<(f32, Vec<i32>)>,
    most: usize,
    /// Nothing that is still going on can become better than what is kept.
    done: bool,
}

impl Ended {
    /// Keeps a sequence if it is better than the worst, or there is room.
    fn add(&mut self, sequence: &[i32], score: f32) {
        if self.kept.len() == self.most {
            if self.kept.last().is_none_or(|worst| score <= worst.0) {
                return;
            }
            self.kept.pop();
        }
        let at = self.kept.iter().rposition(|kept| score <= kept.0).map_or(0, |before| before + 1);
        self.kept.insert(at, (score, sequence.to_vec()));
    }
}

/// How sequences of different lengths compare, and when to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) beams: usize,
    pub(super) eos: i32,
    pub(super) pad: i32,
    /// The sum of logarithms is divided by the length to this power.
    pub(super) length_penalty: f32,
    pub(super) early_stopping: bool,
}

impl Choice {
    fn score(&self, sum: f32, length: usize) -> f32 {
        sum / (length as f32).powf(self.length_penalty)
    }
}

/// What continues a beam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Next {
    pub(super) token: i32,
    /// The row whose sequence it continues.
    pub(super) row: usize,
    /// The sum of the logarithms of the sequence's probabilities.
    pub(super) sum: f32,
}

/// The beams of all rows of a batch.
#[derive(Debug)]
pub(super) struct Beams {
    choice: Choice,
    ended: Vec<Ended>,
    pub(super) sums: Vec<f32>,
}

impl Beams {
    pub(super) fn new(choice: Choice, batch: usize) -> Self {
        let ended = (0..batch).map(|_| Ended { kept: Vec::new(), most: choice.beams, done: false }).collect();
        // All beams of a row begin alike: all but the first are to lose.
        let sums = (0..batch * choice.beams).map(|row| if row % choice.beams == 0 { 0.0 } else { -1e9 }).collect();
        Self { choice, ended, sums }
    }

    pub(super) fn done(&self) -> bool {
        self.ended.iter().all(|ended| ended.done)
    }

    /// What continues the beams of a row: `scores`, `[beams, vocabulary]`, are sums that include each beam's own.
    pub(super) fn advance(&mut self, batch: usize, scores: &[f32], sequences: &[Vec<i32>]) -> Vec<Next> {
        let Choice { beams, eos, pad, .. } = self.choice;
        let first = batch * beams;
        let ended = &mut self.ended[batch];
        if ended.done {
            self.sums[first..first + beams].fill(0.0);
            return vec![Next { token: pad, row: 0, sum: 0.0 }; beams];
        }
        let vocabulary = scores.len() / beams;
        // Each beam may end at most once, so that enough are left.
        let best = highest(scores, 2 * beams);
        let mut next = Vec::with_capacity(beams);
        for (rank, &at) in best.iter().enumerate() {
            let (token, row) = ((at % vocabulary) as i32, first + at / vocabulary);
            if token != eos {
                next.push(Next { token, row, sum: scores[at] });
            } else if rank < beams {
                ended.add(&sequences[row], self.choice.score(scores[at], sequences[row].len()));
            }
            if next.len() == beams {
                break;
            }
        }
        self.sums[first..first + beams].iter_mut().zip(&next).for_each(|(sum, next)| *sum = next.sum);
        if ended.kept.len() == beams {
            let length = sequences[first].len();
            let worst = ended.kept.last().map_or(f32::NEG_INFINITY, |worst| worst.0);
            let best = best.first().map_or(f32::NEG_INFINITY, |&at| scores[at]);
            ended.done = self.choice.early_stopping || self.choice.score(best, length) <= worst;
        }
        next
    }

    /// The best sequences of each row with their scores, when nothing is to be added.
    pub(super) fn finish(mut self, sequences: &[Vec<i32>], count: usize) -> Vec<Vec<(f32, Vec<i32>)>> {
        let beams = self.choice.beams;
        for (batch, ended) in self.ended.iter_mut().enumerate().filter(|(_, ended)| !ended.done) {
            for row in batch * beams..(batch + 1) * beams {
                ended.add(&sequences[row], self.choice.score(self.sums[row], sequences[row].len()));
            }
        }
        self.ended.into_iter().map(|ended| ended.kept.into_iter().take(count).collect()).collect()
    }
}

/// The positions of the `count` highest scores, the highest first, the first of equal ones first.
fn highest(scores: &[f32], count: usize) -> Vec<usize> {
    let key = |at: usize| if scores[at].is_nan() { f32::NEG_INFINITY } else { scores[at] };
    let order = |a: &usize, b: &usize| key(*b).total_cmp(&key(*a)).then(a.cmp(b));
    let mut all: Vec<usize> = (0..scores.len()).collect();
    let count = count.min(all.len());
    if count < all.len() && count > 0 {
        all.select_nth_unstable_by(count - 1, order);
    }
    all.truncate(count);
    all.sort_unstable_by(order);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOICE: Choice = Choice { beams: 2, eos: 0, pad: 9, length_penalty: 1.0, early_stopping: false };

    #[test]
    fn the_highest_come_in_order() {
        assert_eq!(highest(&[1.0, 3.0, f32::NAN, 3.0, 2.0], 3), [1, 3, 4]);
        assert_eq!(highest(&[1.0, 2.0], 4), [1, 0]);
    }

    #[test]
    fn a_beam_ends_only_where_the_end_is_among_the_best() {
        let mut beams = Beams::new(CHOICE, 1);
        let sequences = vec![vec![5], vec![5]];
        let next = beams.advance(0, &[-1.0, -2.0, -3.0, -9.0, -9.0, -9.0], &sequences);
        assert_eq!(next, [Next { token: 1, row: 0, sum: -2.0 }, Next { token: 2, row: 0, sum: -3.0 }]);
        assert_eq!(beams.ended[0].kept, [(-1.0, vec![5])]);
        // The end is the third of the scores: two beams are better.
        let next = beams.advance(0, &[-5.0, -2.5, -9.0, -8.0, -3.0, -9.0], &[vec![5, 1], vec![5, 2]]);
        assert_eq!(next.iter().map(|next| (next.token, next.row)).collect::<Vec<_>>(), [(1, 0), (1, 1)]);
        assert!(!beams.done());
        beams.advance(0, &[-2.6, -20.0, -21.0, -30.0, -31.0, -31.0], &[vec![5, 1, 1], vec![5, 2, 1]]);
        assert_eq!(beams.ended[0].kept.len(), 2);
        assert!(!beams.done(), "the best that goes on may still win");
        beams.advance(0, &[-40.0, -20.0, -21.0, -30.0, -31.0, -31.0], &[vec![5, 1, 1, 1], vec![5, 1, 1, 2]]);
        assert!(beams.done());
        assert_eq!(beams.advance(0, &[0.0; 6], &[vec![], vec![]]), [Next { token: 9, row: 0, sum: 0.0 }; 2]);
        let found = beams.finish(&[vec![], vec![]], 1);
        assert_eq!(found[0].len(), 1);
        assert_eq!(found[0][0].1, [5, 1, 1]);
    }

    #[test]
    fn what_goes_on_at_the_end_counts_too() {
        let mut beams = Beams::new(CHOICE, 1);
        beams.advance(0, &[-9.0, -1.0, -2.0, -9.0, -9.0, -9.0], &[vec![5], vec![5]]);
        let found = beams.finish(&[vec![5, 1], vec![5, 2]], 2);
        assert_eq!(found[0], [(-0.5, vec![5, 1]), (-1.0, vec![5, 2])]);
    }
}
