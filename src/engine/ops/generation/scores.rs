//! Which tokens may come next: what onnxruntime does to the scores of a sequence before it chooses.

use crate::engine::op::OpError;

/// The score of a token that may not come.
const NEVER: f32 = f32::MIN;

/// What changes scores, in this order.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    /// What a token's score is divided by if the sequence has it, or multiplied with where it is negative.
    pub(super) repetition_penalty: f32,
    /// No n-gram of this length comes twice; 0 for any.
    pub(super) ngram: usize,
    /// Per token whether it may come at all.
    pub(super) vocabulary: Option<&'a [i32]>,
    /// Per sequence of the batch and token whether it may come first.
    pub(super) first: Option<&'a [i32]>,
    /// A sequence does not end before it is so long.
    pub(super) min_length: usize,
    pub(super) eos: i32,
}

impl Rules<'_> {
    /// # Errors
    /// If a mask is not as long as there are scores.
    pub(super) fn check(&self, batch: usize, vocabulary: usize) -> Result<(), OpError> {
        let unfit = |what: &str, len: usize| Err(OpError::shape(format!("{what} has {len} elements for {batch} sequences of {vocabulary} tokens")));
        match (self.vocabulary, self.first) {
            (Some(mask), _) if mask.len() != vocabulary => unfit("the mask of the vocabulary", mask.len()),
            (_, Some(mask)) if Some(mask.len()) != batch.checked_mul(vocabulary) => unfit("the mask of the first tokens", mask.len()),
            _ => Ok(()),
        }
    }

    /// Changes the scores of what follows `sequence`, which belongs to row `batch`; `first` before anything was generated.
    pub(super) fn apply(&self, sequence: &[i32], batch: usize, first: bool, scores: &mut [f32]) {
        if self.repetition_penalty != 1.0 {
            self.penalise(sequence, scores);
        }
        if self.ngram > 0 && sequence.len() >= self.ngram {
            let last = &sequence[sequence.len() + 1 - self.ngram..];
            for ngram in sequence.windows(self.ngram).filter(|ngram| ngram[..self.ngram - 1] == *last) {
                forbid(scores, ngram[self.ngram - 1]);
            }
        }
        let width = scores.len();
        let mut mask = |mask: &[i32]| scores.iter_mut().zip(mask).filter(|(_, may)| **may == 0).for_each(|(score, _)| *score = NEVER);
        self.vocabulary.into_iter().for_each(&mut mask);
        self.first.filter(|_| first).map(|all| &all[batch * width..]).into_iter().for_each(&mut mask);
        if sequence.len() < self.min_length {
            forbid(scores, self.eos);
        }
    }
}

impl Rules<'_> {
    /// Every token that the sequence has, once however often it has it.
    fn penalise(&self, sequence: &[i32], scores: &mut [f32]) {
        let mut tokens = sequence.to_vec();
        tokens.sort_unstable();
        tokens.dedup();
        for score in tokens.into_iter().filter_map(|token| usize::try_from(token).ok()) {
            if let Some(score) = scores.get_mut(score) {
                *score = if *score < 0.0 { *score * self.repetition_penalty } else { *score / self.repetition_penalty };
            }
        }
    }
}

fn forbid(scores: &mut [f32], token: i32) {
    if let Some(score) = usize::try_from(token).ok().and_then(|token| scores.get_mut(token)) {
        *score = NEVER;
    }
}

/// The logarithm of the softmax, in place.
pub(super) fn log_softmax(scores: &mut [f32]) {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = scores.iter().map(|score| (score - most).exp()).sum();
    let log = sum.ln();
    scores.iter_mut().for_each(|score| *score = *score - most - log);
}

/// The position of the highest score, the first of several; one that is no number is never the highest.
pub(super) fn highest(scores: &[f32]) -> usize {
    let mut best = 0;
    for (at, score) in scores.iter().enumerate() {
        if *score > scores[best] || (scores[best].is_nan() && !score.is_nan()) {
            best = at;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Rules<'_> = Rules { repetition_penalty: 1.0, ngram: 0, vocabulary: None, first: None, min_length: 0, eos: 3 };

    #[test]
    fn each_rule_forbids_what_it_says() {
        let rules = [
            (Rules { repetition_penalty: 2.0, ..NONE }, [2.0, -8.0, 2.0, 1.0]),
            (Rules { ngram: 1, ..NONE }, [NEVER, NEVER, 2.0, 1.0]),
            (Rules { ngram: 2, ..NONE }, [4.0, NEVER, 2.0, 1.0]),
            (Rules { vocabulary: Some(&[1, 1, 0, 1]), ..NONE }, [4.0, -4.0, NEVER, 1.0]),
            (Rules { first: Some(&[1, 1, 1, 1, 0, 1, 1, 1]), ..NONE }, [NEVER, -4.0, 2.0, 1.0]),
            (Rules { min_length: 4, ..NONE }, [4.0, -4.0, 2.0, NEVER]),
            (Rules { min_length: 3, ..NONE }, [4.0, -4.0, 2.0, 1.0]),
            (Rules { min_length: 4, eos: -1, ..NONE }, [4.0, -4.0, 2.0, 1.0]),
        ];
        for (rules, want) in rules {
            let mut scores = [4.0, -4.0, 2.0, 1.0];
            rules.apply(&[0, 1, 0], 1, true, &mut scores);
            assert_eq!(scores, want, "{rules:?}");
        }
        let mut later = [4.0, -4.0, 2.0, 1.0];
        Rules { first: Some(&[0; 8]), ..NONE }.apply(&[0, 1, 0], 1, false, &mut later);
        assert_eq!(later, [4.0, -4.0, 2.0, 1.0]);
        Rules { repetition_penalty: 2.0, ngram: 1, ..NONE }.apply(&[-1, 9], 0, true, &mut later);
        assert_eq!(later, [4.0, -4.0, 2.0, 1.0], "tokens that have no score");
    }

    #[test]
    fn the_first_of_equal_scores_is_the_highest_and_nan_never() {
        assert_eq!(highest(&[1.0, 2.0, 2.0]), 1);
        assert_eq!(highest(&[f32::NAN, 1.0, 0.0]), 1);
        assert_eq!(highest(&[f32::NAN; 2]), 0);
    }

    #[test]
    fn a_softmax_of_far_apart_scores_stays_finite() {
        let mut scores = [1000.0, 0.0];
        log_softmax(&mut scores);
        assert_eq!(scores, [0.0, -1000.0]);
    }
}
