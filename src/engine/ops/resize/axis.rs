//! One axis of a Resize: from which input positions, with which weights, each output position is made.

use crate::engine::op::OpError;

/// How an output position becomes a coordinate of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transform {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    TfHalfPixelForNn,
    TfCropAndResize,
}

/// Which of two neighbours is nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nearest {
    RoundPreferFloor,
    RoundPreferCeil,
    Floor,
    Ceil,
    /// What the operators without the attribute do: floor, or ceil when an axis shrinks.
    Simple,
}

/// A filter that weighs neighbours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Filter {
    Linear,
    /// With the coefficient `a` of Keys' cubic convolution.
    Cubic(f64),
}

/// One axis that is resized.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) scale: f64,
    pub(super) transform: Transform,
    /// Start and end of the region of interest, for [`Transform::TfCropAndResize`].
    pub(super) roi: (f64, f64),
}

/// Input positions per output position; `None` where the output is extrapolated.
pub(super) type Picks = Vec<Option<usize>>;

/// Weighted input positions per output position.
#[derive(Debug)]
pub(super) struct Taps<A> {
    /// Taps of each output position.
    pub(super) count: usize,
    /// `count` input positions per output position.
    pub(super) positions: Vec<usize>,
    /// The weight of each.
    pub(super) weights: Vec<A>,
}

impl Axis {
    /// Whether the output along this axis is the input.
    pub(super) fn is_identity(&self) -> bool {
        let whole = self.transform != Transform::TfCropAndResize || self.roi == (0.0, 1.0);
        self.scale == 1.0 && self.input == self.output && whole
    }

    /// The input coordinate of output position `at`.
    fn coordinate(&self, at: usize) -> f64 {
        let (at, scale, input) = (at as f64, self.scale, self.input as f64);
        // The length that the scale asks for, not rounded to a number of elements.
        let length = scale * input;
        match self.transform {
            Transform::HalfPixel => (at + 0.5) / scale - 0.5,
            Transform::HalfPixelSymmetric => input / 2.0 * (1.0 - self.output as f64 / length) + (at + 0.5) / scale - 0.5,
            Transform::PytorchHalfPixel if self.output <= 1 => 0.0,
            Transform::PytorchHalfPixel => (at + 0.5) / scale - 0.5,
            Transform::AlignCorners if length == 1.0 => 0.0,
            Transform::AlignCorners => at * (input - 1.0) / (length - 1.0),
            Transform::Asymmetric => at / scale,
            Transform::TfHalfPixelForNn => (at + 0.5) / scale,
            Transform::TfCropAndResize => {
                let (start, end) = self.roi;
                let within = if length == 1.0 { (end - start) * (input - 1.0) / 2.0 } else { at * (end - start) * (input - 1.0) / (length - 1.0) };
                within + start * (input - 1.0)
            }
        }
    }

    /// Whether the coordinate has no value in the input.
    fn is_outside(&self, x: f64) -> bool {
        self.transform == Transform::TfCropAndResize && !(0.0..=self.input as f64 - 1.0).contains(&x)
    }

    /// The output positions that are extrapolated.
    pub(super) fn outside(&self) -> Vec<usize> {
        let all = if self.transform == Transform::TfCropAndResize { self.output } else { 0 };
        (0..all).filter(|&at| self.is_outside(self.coordinate(at))).collect()
    }

    /// The nearest input position of each output position. The input is not empty.
    pub(super) fn picks(&self, nearest: Nearest) -> Picks {
        let pick = |at| {
            let x = self.coordinate(at);
            if self.is_outside(x) {
                return None;
            }
            // Scales are f32: a coordinate that f32 cannot tell from an integer, or from a half, is one.
            let x = f64::from(x as f32);
            let x = match nearest {
                Nearest::RoundPreferFloor => (x - 0.5).ceil(),
                Nearest::RoundPreferCeil => (x + 0.5).floor(),
                Nearest::Floor => x.floor(),
                Nearest::Ceil => x.ceil(),
                Nearest::Simple if self.scale < 1.0 => x.ceil(),
                Nearest::Simple => x.trunc(),
            };
            Some(self.clamp(x))
        };
        (0..self.output).map(pick).collect()
    }

    fn clamp(&self, x: f64) -> usize {
        x.clamp(0.0, self.input as f64 - 1.0) as usize
    }

    /// The weighted input positions of each output position. The input is not empty.
    ///
    /// # Errors
    /// If the filter is so wide that its weights exceed `limit`.
    pub(super) fn taps<A: Copy>(
        &self,
        (filter, antialias, exclude_outside): (Filter, bool, bool),
        limit: usize,
        weight: fn(f64) -> A,
    ) -> Result<Taps<A>, OpError> {
        // Stretching the filter takes in all the input that an output position stands for.
        let stretch = if antialias { self.scale.min(1.0) } else { 1.0 };
        let half = (if filter == Filter::Linear { 1.0 } else { 2.0 } / stretch).ceil();
        let wanted = 2.0 * half * self.output as f64;
        if wanted.is_nan() || wanted > limit as f64 {
            return Err(OpError::shape(format!("a filter of {} weights for each of {} positions is too large", 2.0 * half, self.output)));
        }
        let count = 2 * half as usize;
        let mut taps = Taps { count, positions: Vec::new(), weights: Vec::new() };
        let mut row = vec![0.0; count];
        for at in 0..self.output {
            let x = self.coordinate(at);
            let first = x.floor() - (half - 1.0);
            for (i, w) in row.iter_mut().enumerate() {
                *w = filter.weight((first + i as f64 - x) * stretch);
            }
            if exclude_outside {
                let inside = |p: f64| (0.0..self.input as f64).contains(&p);
                if (0..count).any(|i| inside(first + i as f64) && row[i] != 0.0) {
                    row.iter_mut().enumerate().filter(|(i, _)| !inside(first + *i as f64)).for_each(|(_, w)| *w = 0.0);
                }
            }
            if exclude_outside || antialias {
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|w| *w /= sum);
            }
            taps.positions.extend((0..count).map(|i| self.clamp(first + i as f64)));
            taps.weights.extend(row.iter().map(|&w| weight(w)));
        }
        Ok(taps)
    }
}

impl Filter {
    fn weight(self, distance: f64) -> f64 {
        let x = distance.abs();
        match self {
            Self::Linear => (1.0 - x).max(0.0),
            Self::Cubic(a) if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            Self::Cubic(a) if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
            Self::Cubic(_) => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(input: usize, output: usize, transform: Transform) -> Axis {
        Axis { input, output, scale: output as f64 / input as f64, transform, roi: (0.0, 1.0) }
    }

    #[test]
    fn nearest_modes_differ_at_halves_and_between() {
        // Coordinates 0, 0.5, 1, 1.5.
        let x = axis(2, 4, Transform::Asymmetric);
        let of = |nearest| x.picks(nearest).into_iter().map(Option::unwrap).collect::<Vec<_>>();
        assert_eq!(of(Nearest::RoundPreferFloor), [0, 0, 1, 1]);
        assert_eq!(of(Nearest::RoundPreferCeil), [0, 1, 1, 1]);
        assert_eq!(of(Nearest::Floor), [0, 0, 1, 1]);
        assert_eq!(of(Nearest::Ceil), [0, 1, 1, 1]);
        assert_eq!(of(Nearest::Simple), [0, 0, 1, 1]);
        assert_eq!(axis(5, 2, Transform::Asymmetric).picks(Nearest::Simple), [Some(0), Some(3)]);
    }

    #[test]
    fn a_coordinate_that_is_nearly_an_integer_is_one() {
        // 4 / 1.3333334 is a little less than 3.
        let x = Axis { scale: f64::from(4.0_f32 / 3.0), ..axis(6, 8, Transform::Asymmetric) };
        assert_eq!(x.picks(Nearest::Floor)[4], Some(3));
    }

    #[test]
    fn weights_sum_to_one() {
        for filter in [Filter::Linear, Filter::Cubic(-0.75), Filter::Cubic(-0.5)] {
            for (antialias, exclude) in [(false, false), (false, true), (true, false), (true, true)] {
                for (input, output) in [(7, 3), (3, 7), (1, 4), (9, 1)] {
                    for transform in [Transform::HalfPixel, Transform::AlignCorners, Transform::Asymmetric] {
                        let taps = axis(input, output, transform).taps((filter, antialias, exclude), 1 << 20, |w| w).unwrap();
                        for row in taps.weights.chunks(taps.count) {
                            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{filter:?} {row:?}");
                        }
                        assert!(taps.positions.iter().all(|&p| p < input));
                    }
                }
            }
        }
    }

    #[test]
    fn a_filter_that_is_too_wide_is_refused() {
        let x = Axis { scale: 1e-30, ..axis(2, 2, Transform::HalfPixel) };
        assert!(x.taps((Filter::Linear, true, false), 1 << 20, |w| w).is_err());
    }
}
